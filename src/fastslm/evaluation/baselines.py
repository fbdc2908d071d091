"""What FastSLM is compared with: Whisper's own decoder on the same encoder, greedily, on the same clips."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.utils import logging

from fastslm.audio import SAMPLE_RATE, WINDOW_SAMPLES
from fastslm.loading import choose_device, choose_dtype
from fastslm.weights import resolve

WHISPER = "whisper-tiny.en"
CLIPS_TOGETHER = 8
MAX_NEW_TOKENS = 440  # of the decoder's 448 positions; its prompt takes up to 4


class WhisperSystem:
    """Whisper with its own decoder: greedy, no timestamps, no fallback.

    Each 30 s is decoded alone, as FastSLM reads windows; what Whisper does across windows is not used.
    """

    def __init__(self, model: WhisperForConditionalGeneration, processor: WhisperProcessor, name: str = WHISPER):
        self.model = model.eval()
        self.processor = processor
        self.name = name

    @property
    def facts(self) -> dict[str, Any]:
        """As `fastslm.evaluation.suites.asr.System`."""
        return {
            "system": "whisper",
            "model": self.name,
            "fingerprint": None,
            "reader": "whisper's decoder, greedy, each 30 s alone",
            "device": self.model.device.type,
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }

    def hear(self, waveforms: Iterable[np.ndarray]) -> Iterator[tuple[str, str]]:
        """As `fastslm.evaluation.suites.asr.System`."""
        remaining = iter(waveforms)
        while group := list(islice(remaining, CLIPS_TOGETHER)):
            windows = [[w[i : i + WINDOW_SAMPLES] for i in range(0, len(w), WINDOW_SAMPLES)] for w in group]
            texts = iter(self._decode([window for own in windows for window in own]))
            for own in windows:
                parts = [next(texts) for _ in own]
                cut = any(reason == "length" for _, reason in parts)
                yield " ".join(text for text, _ in parts if text), "length" if cut else "stop"

    @torch.inference_mode()
    def _decode(self, windows: list[np.ndarray]) -> Iterator[tuple[str, str]]:
        for start in range(0, len(windows), CLIPS_TOGETHER):
            features = self.processor.feature_extractor(
                windows[start : start + CLIPS_TOGETHER], sampling_rate=SAMPLE_RATE, return_tensors="pt"
            ).input_features
            written: Any = self.model.generate(
                features.to(self.model.device, self.model.dtype),
                do_sample=False,
                num_beams=1,
                max_new_tokens=MAX_NEW_TOKENS,
            )
            end = self.processor.tokenizer.eos_token_id
            texts = self.processor.batch_decode(written, skip_special_tokens=True)
            for text, ids in zip(texts, written.tolist(), strict=True):
                # The end token of the longest row is left out.
                yield text.strip(), "length" if len(ids) >= MAX_NEW_TOKENS and end not in ids else "stop"


def load_whisper(device: str = "auto", dtype: str = "auto", name: str = WHISPER) -> WhisperSystem:
    """Whisper of the base weights, decoder included.

    Raises:
        WeightsError: the weights cannot be found or fetched.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    chosen, _ = choose_device(device)
    folder = resolve(name)
    model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=choose_dtype(dtype, chosen)[0])
    return WhisperSystem(model.to(chosen), WhisperProcessor.from_pretrained(folder), name)  # type: ignore[arg-type]
