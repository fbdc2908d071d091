"""transformers' `pipeline("automatic-speech-recognition")` for a FastSLM: what `transcribe` gives, of any length.

    from fastslm import FastSLMForConditionalGeneration  # transformers knows the model from here on
    from transformers import pipeline
    read = pipeline("automatic-speech-recognition", model="checkpoints/fastslm-tiny")
    read("talk.mp3")["text"]

transformers' own pipeline would cut a recording at 30 s, and hand the log-mel to `generate` where a prompt belongs. The
tasks `any-to-any` and `audio-text-to-text` need no pipeline of their own: theirs takes a chat with `{"type": "audio"}`.
"""

import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from transformers.pipelines.automatic_speech_recognition import AutomaticSpeechRecognitionPipeline

from fastslm.audio import WINDOW_SECONDS
from fastslm.errors import OptionError
from fastslm.longform.memory import SpeechMemory
from fastslm.longform.results import Transcript
from fastslm.longform.transcription import Transcriber, TranscriptionOptions
from fastslm.model.modeling import FastSLMForConditionalGeneration
from fastslm.model.processing import FastSLMProcessor
from fastslm.speech import FastSLM, Source

# What `generate_kwargs` may hold, as the same pipeline has it for Whisper.
TOLD_TO_WRITE = ("language", "max_new_tokens", "task")


class TranscriptionPipeline(AutomaticSpeechRecognitionPipeline):
    """The pipeline that `automatic-speech-recognition` names once fastslm is imported; other models get transformers'.

    Recordings are read as by `FastSLM.transcribe`, whose options (`reader`, `method`, `no_speech`, …) are options here
    too. Results are transformers': a dictionary with `text`, and `chunks` where `return_timestamps` is `True` (one for
    each window) or `"word"`; and, where something was not read, `warnings`.

    Args:
        batch_size: windows that are read together; it changes no text.
    """

    def __new__(cls, model: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(_beneath(model), FastSLMForConditionalGeneration):
            return AutomaticSpeechRecognitionPipeline(model, *args, **kwargs)
        return super().__new__(cls)

    def __init__(self, model: Any, feature_extractor: Any = None, tokenizer: Any = None, **kwargs: Any):
        super().__init__(model, feature_extractor=feature_extractor, tokenizer=tokenizer, **kwargs)
        if self.assistant_model is not None:
            raise OptionError("An assistant_model has nothing to assist with in a transcript: leave it out.")
        own, config = _beneath(model), model.config
        processor = FastSLMProcessor(
            self.feature_extractor,  # type: ignore[arg-type]
            self.tokenizer,
            tokens_per_window=config.tokens_per_window,
            mel_mode=config.mel_mode,
            prompt_layout=config.prompt_layout,
        )
        self.speech = FastSLM(own, processor, name=own.name_or_path or "the model")

    def __call__(self, inputs: Any, *, batch_size: int | None = None, **options: Any) -> Any:
        """Transcribe one recording, a list of them, or as many as an iterator or dataset gives.

        Args:
            inputs: a path, an encoded file's content, an array (samples,) at 16 kHz, a dictionary with `raw` or `array`
                and its `sampling_rate`, torchcodec's decoder, or a speech memory.

        Returns:
            a dictionary, a list of them, or an iterator over them.

        Raises:
            AudioError: a recording cannot be read.
            OptionError: an option that cannot be followed.
        """
        one = _is_recording(inputs)
        times, chosen = self._chosen(**options)
        results = self._results([inputs] if one else inputs, times, chosen, batch_size or self._batch_size)
        if one:
            return next(results)
        return list(results) if isinstance(inputs, list | tuple) else results

    def _results(
        self,
        inputs: Iterable[Any],
        return_timestamps: bool | str,
        options: dict[str, Any],
        read_together: int | None,
    ) -> Iterator[dict[str, Any]]:
        chosen = TranscriptionOptions(**options).resolved(self.speech.model)
        transcriber = Transcriber(self.speech.model, self.speech.processor, read_together)
        memories = (self.speech.encode(source, sampling_rate=rate) for source, rate in map(_source, inputs))
        for transcript in transcriber.transcribe(memories, chosen):
            yield _result(transcript, return_timestamps)

    def _chosen(self, **given: Any) -> tuple[bool | str, dict[str, Any]]:
        """Timestamps and options of `transcribe`, as a call asks for them on top of what the pipeline was made with."""
        _, options, _ = self._sanitize_parameters(**given)
        options = {**self._forward_params, **options}
        return options.pop("return_timestamps", False), options

    def _sanitize_parameters(  # type: ignore[override]
        self,
        return_timestamps: bool | str | None = None,
        generate_kwargs: dict[str, Any] | None = None,
        chunk_length_s: float | None = None,
        **options: Any,
    ) -> tuple[dict, dict[str, Any], dict]:
        """transformers' three shares of the options, of which this pipeline has one."""
        if chunk_length_s not in (None, 0, WINDOW_SECONDS):
            raise OptionError(
                f"chunk_length_s is {chunk_length_s!r}, but recordings of any length are read in windows of "
                f"{WINDOW_SECONDS} s: leave it out."
            )
        if return_timestamps not in (None, False, True, "word"):
            raise OptionError(f"return_timestamps is {return_timestamps!r}: choose True, for windows, or 'word'.")
        # Generation options that the pipeline was made with are kept apart by transformers.
        written = {**getattr(self, "_generate_kwargs", {}), **(generate_kwargs or {})}
        written |= {name: options.pop(name) for name in TOLD_TO_WRITE if name in options}
        if written.pop("task", "transcribe") != "transcribe":
            raise OptionError("The pipeline transcribes: for a translation use fastslm.load(...).translate.")
        options |= {name: written.pop(name) for name in TOLD_TO_WRITE if name in written}
        known = TranscriptionOptions.__dataclass_fields__
        if unknown := sorted({*written, *(options.keys() - known.keys())}):
            raise OptionError(
                f"The pipeline does not know {', '.join(unknown)}: leave it out, or choose of {', '.join(known)}."
            )
        if return_timestamps is not None:
            options["return_timestamps"] = return_timestamps
        return {}, options, {}

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Model and processor, as a folder that `pipeline` and `fastslm.load` open."""
        self.speech.model.save_pretrained(save_directory, **kwargs)
        self.speech.processor.save_pretrained(save_directory)


def _beneath(model: Any) -> Any:
    """The model that PEFT wraps, if it does."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _is_recording(inputs: Any) -> bool:
    known = (str, bytes, bytearray, os.PathLike, np.ndarray, torch.Tensor, dict, SpeechMemory)
    return isinstance(inputs, known) or hasattr(inputs, "read") or hasattr(inputs, "get_all_samples")


def _source(given: Any) -> tuple[Source, float | None]:
    """A recording as transformers' pipeline is given it, and the rate of an array."""
    if hasattr(given, "get_all_samples"):
        decoded = given.get_all_samples()
        return decoded.data, decoded.sample_rate
    if not isinstance(given, dict):
        return given, None
    source = next((given[key] for key in ("raw", "array") if given.get(key) is not None), given.get("path"))
    if source is None:
        raise OptionError(
            f"A dictionary with {', '.join(map(str, given)) or 'nothing'} was given: give raw or array, and its "
            "sampling_rate."
        )
    return source, None if isinstance(source, str) else given.get("sampling_rate")


def _result(transcript: Transcript, return_timestamps: bool | str) -> dict[str, Any]:
    result: dict[str, Any] = {"text": transcript.text}
    if transcript.warnings:
        result["warnings"] = list(transcript.warnings)
    parts: Any = transcript.segments
    if return_timestamps == "word":
        parts = [word for segment in transcript.segments for word in segment.words]
        if transcript.text and not parts:
            raise OptionError("The model has no CTC head to time words with: choose return_timestamps=True.")
    if return_timestamps:
        result["chunks"] = [{"text": own.text, "timestamp": (own.start, own.end)} for own in parts if own.text]
    return result
