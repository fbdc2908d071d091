"""What a task returns: the text, where in the recording it comes from, how it ended, and what it cost."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length", "silence", "repetition"]


@dataclass(frozen=True)
class Word:
    """A word and when it is said, in seconds from the start of the recording.

    log_probability: mean over the word's letters, of the reader that wrote it.
    """

    text: str
    start: float
    end: float
    log_probability: float | None = None


@dataclass(frozen=True)
class Segment:
    """A stretch of a recording and what is said in it.

    finish_reason: `stop`, the reader came to its end; `length`, its token budget did first; `silence`, nothing was
    there to read; `repetition`, it fell into a loop whatever was tried, and the copies were cut.
    attempts: how often it was read: more than once where it fell into a loop.
    """

    start: float
    end: float
    text: str
    words: tuple[Word, ...] = ()
    finish_reason: FinishReason = "stop"
    attempts: int = 1


@dataclass(frozen=True)
class Span:
    """Seconds of a recording that an answer rests on.

    recording: its name where there are several. text: what was said of these seconds alone, where a long recording was
    asked span by span.
    """

    start: float
    end: float
    recording: str | None = None
    text: str | None = None


@dataclass(frozen=True)
class Usage:
    """What a result cost, and how it came about.

    Attributes:
        windows: of 30 s, the last one shorter.
        audio_tokens: what the windows became (50 each).
        text_tokens: what was written, by the language model or Whisper's decoder; 0 of the CTC head.
        seconds: the recording's, as it was decoded.
        seconds_heard: those of them in windows that held sound and were read to the end.
        processing_seconds: wall time of this call; of a memory, without the encoding.
        real_time_factor: processing seconds for a second of the recording.
        reader: what read the tokens: `ctc`, the CTC head, `whisper`, Whisper's decoder, or `llm`, the language model,
            with what it was given beside them.
        method: how they were read: `window`, each window alone; `context`, each with those before it; `whole`, all of
            them in one prompt; `map_reduce`, span by span, and the answer made of the spans' answers.
        prompt_tokens: places that passed the language model before it wrote, those of every prompt; 0 where it had no
            part.
        cached_tokens: places that a kept recording saved it.
        seconds_silent: those in windows in which nothing could be speech. They are not read, or only as a part of one
            prompt about all.
    """

    windows: int
    audio_tokens: int
    text_tokens: int
    seconds: float
    seconds_heard: float
    processing_seconds: float
    real_time_factor: float
    reader: str
    method: str
    prompt_tokens: int = 0
    cached_tokens: int = 0
    seconds_silent: float = 0.0

    @property
    def coverage(self) -> float:
        """Seconds heard for a second given, 0 to 1; silence is not heard."""
        return self.seconds_heard / self.seconds


@dataclass(frozen=True)
class Transcript:
    """What is said in a recording.

    duration: seconds. language: a code. warnings: one sentence for each thing that the text does not show. options:
    those that it was made with, nothing left open. partial: the recording breaks off before its end, so the text does;
    missing_seconds: how much of it lacks, where that is known. start: second of the recording at which it begins.
    """

    text: str
    segments: tuple[Segment, ...]
    language: str
    duration: float
    warnings: tuple[str, ...]
    usage: Usage
    options: Mapping[str, Any] = field(default_factory=dict)
    partial: bool = False
    missing_seconds: float | None = None
    start: float = 0.0

    @property
    def end(self) -> float:
        """Second of the recording at which it ends."""
        return self.start + self.duration

    @property
    def finish_reason(self) -> FinishReason:
        """`length` or `repetition` where any segment was cut, `silence` where nothing was in any, else `stop`."""
        return ended([segment.finish_reason for segment in self.segments])

    def as_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON."""
        return _as_dict(self, finish_reason=self.finish_reason)


@dataclass(frozen=True)
class Answer:
    """What the language model says of a recording: a translation, a summary, an answer.

    spans: the seconds that it rests on: those in front of the model that are not silent, or the spans whose own answers
    it was made of. Else as `Transcript`.
    """

    text: str
    spans: tuple[Span, ...]
    duration: float
    warnings: tuple[str, ...]
    usage: Usage
    finish_reason: FinishReason = "stop"
    options: Mapping[str, Any] = field(default_factory=dict)
    partial: bool = False
    missing_seconds: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON."""
        return _as_dict(self)


@dataclass(frozen=True)
class Progress:
    """How far a recording is encoded. `total_seconds` is what its container says, `None` where it says nothing."""

    seconds: float
    total_seconds: float | None


def clock(seconds: float) -> str:
    """75 → 1:15, 3675 → 1:01:15"""
    hours, minutes = divmod(round(seconds) // 60, 60)
    rest = f"{round(seconds) % 60:02}"
    return f"{hours}:{minutes:02}:{rest}" if hours else f"{minutes}:{rest}"


def without_speech(start: float, end: float, of: str = "") -> str:
    """The sentence about seconds in which there is none, to the tenth."""
    return f"No speech was heard from {clock(start)} to {clock(end)}{of} ({end - start:.1f} s)."


def ended(reasons: Sequence[FinishReason]) -> FinishReason:
    """How a whole ended whose parts ended so: `length` or `repetition` before `stop`, `silence` if all are."""
    for cut in ("length", "repetition"):
        if cut in reasons:
            return cut
    return "silence" if reasons and all(reason == "silence" for reason in reasons) else "stop"


def _as_dict(result: "Transcript | Answer", **more: Any) -> dict[str, Any]:
    content = {**asdict(result), **more}
    content["usage"]["coverage"] = result.usage.coverage
    return _plain(content)


def _plain(value: Any) -> Any:
    """Milliseconds are all that times hold, and six digits all that other numbers do."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return round(value, 6 if abs(value) < 1 else 3) if isinstance(value, float) else value
