"""What FastSLM is compared with on the same clips: Whisper's own decoder, and a language model that reads its text."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)
from transformers.utils import logging

from fastslm.audio import SAMPLE_RATE, WINDOW_SAMPLES
from fastslm.evaluation.systems import SYSTEMS, Heard, Reply
from fastslm.loading import choose_device, choose_dtype
from fastslm.model.base_weights import load_text_model
from fastslm.prompts import DEFAULT_LANGUAGE, NOT_MENTIONED, language_name
from fastslm.weights import resolve

WHISPER = "whisper-tiny.en"
CLIPS_TOGETHER = 8
TEXT_MODEL = "smollm2-135m-instruct"
INSTRUCTIONS = {
    "ask": f"{{question}} Answer in a few words of the transcript. If it does not say, answer: {NOT_MENTIONED}",
    "summarize": "Summarize the recording in one or two sentences.",
    "translate": "Translate the transcript into {language}. Write only the translation.",
}
# Shown before every question: without them, so small a model repeats the whole transcript.
EXAMPLES = (
    ("Anna left the red house at noon with two dogs.", "What colour is the house?", "red"),
    ("Anna left the red house at noon with two dogs.", "What is the weather like?", NOT_MENTIONED),
    ("We should meet in Berlin on the third of May.", "Where should they meet?", "Berlin"),
)
MAX_NEW_TOKENS = 440  # of the decoder's 448 positions; its prompt takes up to 4


class WhisperSystem:
    """Whisper with its own decoder: greedy, no timestamps, no fallback.

    Each 30 s is decoded alone, as FastSLM reads windows; what Whisper does across windows is not used.
    """

    tasks = SYSTEMS["whisper"]

    def __init__(self, model: WhisperForConditionalGeneration, processor: WhisperProcessor, name: str = WHISPER):
        self.model = model.eval()
        self.processor = processor
        self.name = name

    def facts(self, task: str) -> dict[str, Any]:
        """As `fastslm.evaluation.systems.System`."""
        return {
            "system": "whisper",
            "model": self.name,
            "fingerprint": None,
            "reader": "whisper's decoder, greedy, each 30 s alone",
            "device": self.model.device.type,
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }

    def reply(self, task: str, recordings: Iterable[Heard]) -> Iterator[list[Reply]]:
        """As `fastslm.evaluation.systems.System`."""
        for text, reason in self.hear(heard.waveform for heard in recordings):
            yield [Reply(text, reason)]

    def hear(self, waveforms: Iterable[np.ndarray]) -> Iterator[tuple[str, str]]:
        """Text and finish reason of each recording, float32 (samples,), 16 kHz mono, in their order."""
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


class CascadeSystem:
    """Whisper's transcript, and the base language model that reads it: no training, no speech token.

    What it is told is fixed, `INSTRUCTIONS` and `EXAMPLES`; what a better prompt would give is not known.
    """

    tasks = SYSTEMS["cascade"]

    def __init__(
        self,
        whisper: WhisperSystem,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_new_tokens: int,
        name: str = TEXT_MODEL,
    ):
        self.whisper = whisper
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.tokenizer.padding_side = "left"
        self.max_new_tokens = max_new_tokens
        self.name = name

    def facts(self, task: str) -> dict[str, Any]:
        """As `fastslm.evaluation.systems.System`."""
        heard = self.whisper.facts("transcribe")
        return {
            **heard,
            "system": "cascade",
            "model": f"{self.whisper.name}, then {self.name}",
            "reader": f"the language model reads the transcript of {heard['reader']}",
            "max_new_tokens": self.max_new_tokens,
        }

    def reply(self, task: str, recordings: Iterable[Heard]) -> Iterator[list[Reply]]:
        """As `fastslm.evaluation.systems.System`. What is asked about one recording is answered together."""
        asked: list[list[dict[str, Any]]] = []

        def waveforms() -> Iterator[np.ndarray]:
            for heard in recordings:
                asked.append(heard.requests)
                yield heard.waveform

        for transcript, _ in self.whisper.hear(waveforms()):
            yield self._write([self._prompt(task, transcript, **request) for request in asked.pop(0)])

    def _prompt(
        self,
        task: str,
        transcript: str,
        question: str = "",
        to: str = DEFAULT_LANGUAGE,
        instruction: str | None = None,
    ) -> str:
        turns = []
        for said, asked, answer in EXAMPLES if task == "ask" else ():
            turns += [_turn(said, _instruction(task, asked)), {"role": "assistant", "content": answer}]
        turns.append(_turn(transcript, instruction or _instruction(task, question, to)))
        return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    @torch.inference_mode()
    def _write(self, prompts: list[str]) -> list[Reply]:
        batch = self.tokenizer(prompts, padding=True, add_special_tokens=False, return_tensors="pt")
        written: Any = self.model.generate(  # type: ignore[operator]
            **batch.to(self.model.device),
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            max_new_tokens=self.max_new_tokens,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        new = written[:, batch["input_ids"].shape[1] :]
        texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        ended = (new == self.tokenizer.eos_token_id).any(1).tolist()
        return [Reply(text.strip(), "stop" if end else "length") for text, end in zip(texts, ended, strict=True)]


def _instruction(task: str, question: str, to: str = DEFAULT_LANGUAGE) -> str:
    return INSTRUCTIONS[task].format(question=question, language=language_name(to))


def _turn(transcript: str, instruction: str) -> dict[str, str]:
    return {"role": "user", "content": f"Transcript of a recording:\n{transcript}\n\n{instruction}"}


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


def load_cascade(device: str = "auto", dtype: str = "auto", *, max_new_tokens: int) -> CascadeSystem:
    """Whisper, and the base language model as it was before any training here.

    Raises:
        WeightsError: the weights cannot be found or fetched.
    """
    whisper = load_whisper(device, dtype)
    model = load_text_model(TEXT_MODEL, whisper.model.dtype).to(whisper.model.device)
    return CascadeSystem(whisper, model, AutoTokenizer.from_pretrained(resolve(TEXT_MODEL)), max_new_tokens)
