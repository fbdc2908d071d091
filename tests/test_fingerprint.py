"""What the shipped checkpoint makes of one recording, tensor by tensor, is what it made when it was published.

    python tests/test_fingerprint.py    # records tests/fingerprint.json anew: only for another checkpoint

The recording is 35 s of the public corpus beside the repository, two windows. Of each tensor the file keeps its shape,
its mean, its deviation and values at fixed places: they agree on any processor that computes in float32.
"""

import io
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

import fastslm
from fastslm.inference.cascade import speech_embeddings
from fastslm.speech import FastSLM

HERE = Path(__file__).resolve()
RECORDED = HERE.with_name("fingerprint.json")
CHECKPOINT = HERE.parents[1] / "checkpoints" / "fastslm-tiny"
DATA = next((up / "shared" / "data" for up in HERE.parents if (up / "shared" / "data").is_dir()), Path("shared/data"))
MANIFEST, CLIP, SECONDS = DATA / "longform" / "validation.jsonl", "1320-122617", 35
PLACES = 24
# Of a tensor's deviation: what the order of sums may change.
TOLERANCE = 2e-3
QUESTION = "Who comprehended the difficulties?"

pytestmark = pytest.mark.slow


def recording() -> np.ndarray:
    """The clip's first seconds, float32 (samples,) at 16 kHz, by nothing but FFmpeg."""
    rows = map(json.loads, MANIFEST.read_text(encoding="utf-8").splitlines())
    audio = next(row["audio"] for row in rows if row["id"] == CLIP)
    with (DATA / audio["path"]).open("rb") as file:
        file.seek(audio["offset"])
        content = io.BytesIO(file.read(audio["length"]))
    resampler = av.AudioResampler("flt", "mono", 16_000)
    samples: list[np.ndarray] = []
    with av.open(content) as container:
        for frame in container.decode(audio=0):
            samples += [part.to_ndarray()[0] for part in resampler.resample(frame)]
            if sum(map(len, samples)) >= SECONDS * 16_000:
                break
    return np.concatenate(samples)[: SECONDS * 16_000]


@torch.inference_mode()
def tensors(loaded: FastSLM, samples: np.ndarray) -> dict[str, torch.Tensor]:
    """Every tensor between the log-mel and the language model's scores, by name."""
    model: Any = loaded.model
    prompt = loaded.processor.build_prompt("ask", question=QUESTION)
    batch = loaded.processor(prompt, samples)
    frames = model.encode(batch["input_features"])
    tokens = model.get_speech_tokens(encoder_frames=frames)
    speech = speech_embeddings(model, loaded.processor, tokens)
    return {
        "input_features": batch["input_features"],
        "encoder_frames": frames,
        "tokens": tokens,
        "unfolded": model.whisper_decoder.unfolded(tokens),
        "letters": model.letters(tokens),
        "projected": model.projector(tokens),
        "prompt_embeddings": speech,
        "scores": model(input_ids=batch["input_ids"], speech_tokens=speech, logits_to_keep=1).logits,
    }


def summary(tensor: torch.Tensor) -> dict[str, Any]:
    """What is kept of a tensor."""
    values = tensor.detach().double().flatten()
    places = torch.linspace(0, len(values) - 1, PLACES).long()
    return {
        "shape": list(tensor.shape),
        "mean": float(values.mean()),
        "deviation": float(values.std()),
        "values": values[places].tolist(),
    }


def texts(loaded: FastSLM, samples: np.ndarray) -> dict[str, Any]:
    """What it writes of the recording."""
    memory = loaded.encode(samples, sampling_rate=16_000)
    transcript, answer = loaded.transcribe(memory), loaded.ask(memory, QUESTION)
    words = [(word.text, round(word.start, 1)) for segment in transcript.segments for word in segment.words]
    return {
        "fingerprint": loaded.fingerprint,
        "token_fingerprint": loaded.encoder.fingerprint,
        "times": memory.times.tolist(),
        "transcript": [segment.text for segment in transcript.segments],
        "words": [list(word) for word in words[::10]],
        "letters": loaded.transcribe(memory, reader="ctc").text,
        "answer": answer.text,
        "prompt_tokens": answer.usage.prompt_tokens,
        "written_by": [transcript.usage.reader, answer.usage.reader],
    }


def load() -> FastSLM:
    return fastslm.load(CHECKPOINT, device="cpu", dtype="float32", quiet=True)


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    if not MANIFEST.is_file():
        pytest.skip("the speech corpus is not beside the repository")
    return recording()


@pytest.fixture(scope="module")
def loaded() -> FastSLM:
    return load()


def test_every_tensor_is_as_it_was(loaded: FastSLM, samples: np.ndarray) -> None:
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))["tensors"]
    found = {name: summary(tensor) for name, tensor in tensors(loaded, samples).items()}
    assert found.keys() == recorded.keys()
    for name, expected in recorded.items():
        own, scale = found[name], max(expected["deviation"], 1e-6)
        assert own["shape"] == expected["shape"], name
        for what in ("mean", "deviation", "values"):
            np.testing.assert_allclose(own[what], expected[what], rtol=0, atol=TOLERANCE * scale, err_msg=name)


def test_everything_it_writes_is_as_it_was(loaded: FastSLM, samples: np.ndarray) -> None:
    assert texts(loaded, samples) == json.loads(RECORDED.read_text(encoding="utf-8"))["texts"]


if __name__ == "__main__":
    clip, checkpoint = recording(), load()
    kept = {name: summary(tensor) for name, tensor in tensors(checkpoint, clip).items()}
    RECORDED.write_text(json.dumps({"tensors": kept, "texts": texts(checkpoint, clip)}, indent=1) + "\n")
