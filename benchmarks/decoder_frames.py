"""How few frames Whisper's decoder can read, and how much of a slot a linear map to one token's width keeps.

    python benchmarks/decoder_frames.py ../shared/data [--clips 60] [--windows 400]

The encoder's 1500 frames of a window are averaged to fewer and given to the decoder; then each token's slot of them is
reduced to its first principal components, fitted on training clips, and written back. No training is involved: this is
where the unfolder of `src/fastslm/model/whisper_decoder.py` has its frame rate from.
"""

import argparse
from pathlib import Path

import jiwer
import numpy as np
import torch
import torch.nn.functional as F

from fastslm.data.manifest import read_manifest
from fastslm.evaluation.baselines import load_whisper
from fastslm.evaluation.metrics import normalize
from fastslm.features import window_mel

TOKENS = 50
BATCH = 20
RATES = (1500, 600, 300, 200)
SLOT_RATE = 300
COMPONENTS = (384, 768)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--windows", type=int, default=400)
    arguments = parser.parse_args()
    whisper = load_whisper()
    clips = read_manifest(arguments.data / "librispeech/validation.jsonl")[: arguments.clips]
    frames = encode(whisper, [clip.read() for clip in clips])
    references = [normalize(clip.text or "") for clip in clips]
    print("| frames a window | channels a token | word error rate |\n|---|---|---|")
    for rate in RATES:
        wrong = error_rate(whisper, pooled(frames, rate), references)
        print(f"| {rate} | {rate // TOKENS * frames.shape[-1]} | {wrong:.1%} |")
    mean, components = principal(whisper, arguments.data, arguments.windows)
    slots = (pooled(frames, SLOT_RATE) - mean).reshape(-1, len(components))
    for count in COMPONENTS:
        kept = components[:, :count]
        back = (slots @ kept @ kept.T).reshape(len(frames), SLOT_RATE, -1) + mean
        print(f"| {SLOT_RATE}, by {count} components | {count} | {error_rate(whisper, back, references):.1%} |")


@torch.inference_mode()
def encode(whisper, waveforms: list[np.ndarray]) -> torch.Tensor:
    """(clips, 1500, hidden)"""
    mels = [window_mel(waveforms[i : i + BATCH], 80) for i in range(0, len(waveforms), BATCH)]
    return torch.cat([whisper.model.model.encoder(mel.to(whisper.model.dtype)).last_hidden_state for mel in mels])


def pooled(frames: torch.Tensor, rate: int) -> torch.Tensor:
    """Averages of as many neighbours as leave `rate` frames."""
    return F.adaptive_avg_pool1d(frames.float().transpose(1, 2), rate).transpose(1, 2)


@torch.inference_mode()
def error_rate(whisper, frames: torch.Tensor, references: list[str]) -> float:
    """Of the decoder's greedy text."""
    from transformers import GenerationMixin
    from transformers.modeling_outputs import BaseModelOutput

    texts = []
    start = whisper.processor.tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", "<|notimestamps|>"])
    for group in frames.to(whisper.model.dtype).split(BATCH):
        written = GenerationMixin.generate(
            whisper.model,
            encoder_outputs=BaseModelOutput(last_hidden_state=group),
            decoder_input_ids=torch.tensor([start] * len(group)),
            max_new_tokens=100,
            do_sample=False,
        )
        texts += whisper.processor.batch_decode(written, skip_special_tokens=True)
    return jiwer.wer(references, [normalize(text) for text in texts])


@torch.inference_mode()
def principal(whisper, data: Path, windows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean window, and the principal components of its slots in training clips, most varied first."""
    clips = read_manifest(data / "librispeech/train.jsonl")
    chosen = [clips[i] for i in np.random.default_rng(0).permutation(len(clips))[:windows]]
    batches = [
        pooled(encode(whisper, [clip.read() for clip in chosen[i : i + BATCH]]), SLOT_RATE)
        for i in range(0, windows, BATCH)
    ]
    every = torch.cat(batches)
    mean = every.mean(0)
    slots = (every - mean).reshape(windows * TOKENS, -1)
    return mean, torch.linalg.eigh(slots.T @ slots).eigenvectors.flip(1)


if __name__ == "__main__":
    main()
