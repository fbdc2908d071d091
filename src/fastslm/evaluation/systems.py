"""What can be measured: FastSLM itself, and the interface that baselines share with it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Protocol

import numpy as np

from fastslm.errors import OptionError
from fastslm.longform.memory import SpeechMemory
from fastslm.longform.questions import AnswerOptions, reader_of_answers
from fastslm.longform.results import Answer
from fastslm.longform.transcription import Decoder, TranscriptionOptions
from fastslm.prompts import TASKS
from fastslm.speech import FastSLM, own_cuts

# What each can do, of `fastslm.prompts.TASKS`.
SYSTEMS = {
    "fastslm": tuple(TASKS),
    "whisper": ("transcribe",),
    "cascade": ("translate", "summarize", "ask"),
}


@dataclass(frozen=True)
class Heard:
    """A recording, float32 (samples,), 16 kHz mono, and what is asked about it: arguments of the task's method."""

    waveform: np.ndarray
    requests: list[dict[str, Any]] = field(default_factory=lambda: [{}])


@dataclass(frozen=True)
class Reply:
    """What a system wrote, and how it ended: `stop`, `length` or `silence`."""

    text: str
    finish_reason: str


class System(Protocol):
    """Recordings in, texts out, in the same order."""

    def facts(self, task: str) -> dict[str, Any]:
        """What says which system did a task, for the report: at least `system`, `model`, `reader`."""
        ...

    @property
    def tasks(self) -> tuple[str, ...]:
        """What it can do, of `fastslm.prompts.TASKS`."""
        ...

    def reply(self, task: str, recordings: Iterable[Heard]) -> Iterator[list[Reply]]:
        """For each recording, one reply for each request."""
        ...


class FastSLMSystem:
    """A FastSLM with one decoder.

    Args:
        decoder: of transcripts; the other tasks are the language model's.
        max_new_tokens: of each text; by default what the task allows.
    """

    tasks = SYSTEMS["fastslm"]

    def __init__(self, model: FastSLM, decoder: str = "auto", max_new_tokens: int | None = None):
        self.model = model
        self.max_new_tokens = max_new_tokens
        options = TranscriptionOptions(decoder=decoder)  # type: ignore[arg-type]
        self.decoder: Decoder = options.resolved(model.model).decoder

    def facts(self, task: str) -> dict[str, Any]:
        """As `System`."""
        parameters, reader = next(self.model.model.parameters()), self.model.model.reader
        return {
            "system": "fastslm",
            "model": self.model.name,
            "fingerprint": self.model.fingerprint,
            "reader": self.decoder if task == "transcribe" else reader_of_answers(self.model.model),
            "max_new_tokens": self.max_new_tokens,
            "device": parameters.device.type,
            "dtype": str(parameters.dtype).removeprefix("torch."),
            "encoder_dtype": str(self.model.encoder.dtype or parameters.dtype).removeprefix("torch."),
            "kernels": self.model.encoder.kernels,
            **({} if reader is None else {"reader_dtype": reader.computes_in}),
        }

    def reply(self, task: str, recordings: Iterable[Heard]) -> Iterator[list[Reply]]:
        """As `System`. Short recordings are encoded together, and each once, whatever is asked about it."""
        if task == "transcribe":
            waveforms = (heard.waveform for heard in recordings)
            for transcript in self.model.transcribe_many(
                waveforms, decoder=self.decoder, max_new_tokens=self.max_new_tokens
            ):
                yield [Reply(transcript.text, transcript.finish_reason)]
            return
        waiting: list[list[dict[str, Any]]] = []

        def named() -> Iterator[tuple[str, np.ndarray]]:
            for heard in recordings:
                waiting.append(heard.requests)
                yield "the recording", heard.waveform

        # As the tasks cut them: a figure is that of what a user gets.
        for memory in self.model.encoder.encode_many(named(), cuts=own_cuts(self.model.model)):
            answers = [self._answer(task, memory, request) for request in waiting.pop(0)]
            yield [Reply(answer.text, answer.finish_reason) for answer in answers]

    def _answer(self, task: str, memory: SpeechMemory, request: dict[str, Any]) -> Answer:
        if "instruction" in request:  # which only the prompt knows
            options = AnswerOptions(max_new_tokens=self.max_new_tokens)
            return self.model.answerer.answer([memory], task, options, **request)
        ask = {"translate": self.model.translate, "summarize": self.model.summarize, "ask": self.model.ask}[task]
        return ask(memory, max_new_tokens=self.max_new_tokens, **request)


def system_named(name: str, task: str) -> str:
    """Check the name of a system that is to do a task, before it is loaded.

    Raises:
        OptionError: it is unknown, and the nearest is named; or it cannot do that.
    """
    able = [known for known, tasks in SYSTEMS.items() if task in tasks]
    if name in able:
        return name
    if name in SYSTEMS:
        raise OptionError(f"The system {name} cannot {task}: choose {' or '.join(able)}.")
    near = get_close_matches(name.lower(), SYSTEMS, n=1)
    hint = f", did you mean {near[0]!r}" if near else ""
    raise OptionError(f"There is no system {name!r}{hint}: choose {' or '.join(able)}.")
