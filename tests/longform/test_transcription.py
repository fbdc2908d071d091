"""Methods, failures and places of transcripts, mostly with a reader that is made up."""

import json
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from long_memory import long_memory
from tiny_fastslm import WIDTH, MakeCheckpoint, noise

from fastslm.errors import OptionError
from fastslm.loading import load
from fastslm.longform import transcription
from fastslm.longform.generation import PLAIN, WATCHED, Decoding
from fastslm.longform.memory import SpeechMemory
from fastslm.longform.readers import CTCReader, LLMReader, Method, Reading
from fastslm.longform.repetition import RETRIES
from fastslm.longform.transcription import Transcriber, TranscriptionOptions
from fastslm.speech import FastSLM


class _Looping:
    """Says of each window the number that stands in it, and of 7 nothing else for ever."""

    name: ClassVar[str] = "ctc"
    writes_tokens: ClassVar[bool] = True
    methods: ClassVar[tuple[Method, ...]] = ("window",)
    read_together: ClassVar[int] = 8

    def __init__(self, model: Any, processor: Any): ...

    def caveats(self) -> list[str]:
        return []

    @staticmethod
    def lacking(model: Any) -> str | None:
        return None

    def read(
        self, tokens: torch.Tensor, seconds: Sequence[float], budgets: Sequence[int], decoding: Decoding = PLAIN
    ) -> list[Reading]:
        said = [int(window[0, 0]) for window in tokens]
        return [
            Reading("said", (), (7,) * budget if own == 7 else (own,))
            for own, budget in zip(said, budgets, strict=True)
        ]

    def text_of(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))


@pytest.fixture
def looping(tiny: FastSLM, monkeypatch: pytest.MonkeyPatch) -> FastSLM:
    monkeypatch.setitem(transcription.READERS, "ctc", _Looping)
    return tiny


def _numbers(tiny: FastSLM, *numbers: float) -> SpeechMemory:
    memory = long_memory(tiny, len(numbers), torch.zeros(50, WIDTH))
    memory.tokens[:, 0, 0] = torch.tensor(numbers)
    return memory


def _transcribe(model: FastSLM, memory: SpeechMemory, together: int = 8, **options: Any) -> Any:
    transcriber = Transcriber(model.model, model.processor, together)
    return next(transcriber.transcribe(iter([memory]), TranscriptionOptions(**options)))


def test_a_loop_is_cut_warned_of_and_not_counted_as_heard(looping: FastSLM) -> None:
    result = _transcribe(looping, _numbers(looping, 1, 7, 2))
    assert [segment.finish_reason for segment in result.segments] == ["stop", "repetition", "stop"]
    assert result.segments[1].text == "7"
    assert result.segments[1].attempts == 3
    assert result.finish_reason == "repetition"
    assert result.warnings == (
        "The text from 0:30 to 1:00 said the same again and again, and the copies are left out.",
    )
    assert result.usage.coverage == pytest.approx(2 / 3)


class _Ears(CTCReader):
    """Hears letters wherever there is no 0."""

    def read(self, tokens: torch.Tensor, *arguments: Any, **options: Any) -> list[Reading]:
        return [Reading("x" if window[0, 0] else "") for window in tokens]


def test_windows_are_read_so_many_together_and_those_that_loop_again_in_one_go(looping: FastSLM, monkeypatch) -> None:
    numbers = [1.0] * 20
    numbers[3] = numbers[12] = numbers[19] = 7
    asked: list[tuple[int, Decoding]] = []
    read = _Looping.read

    def counted(self: Any, tokens: torch.Tensor, seconds: Any, budgets: Any, decoding: Decoding) -> list[Reading]:
        asked.append((len(tokens), decoding))
        return read(self, tokens, seconds, budgets, decoding)

    monkeypatch.setattr(_Looping, "read", counted)
    result = _transcribe(looping, _numbers(looping, *numbers), reader="ctc", no_speech="read")
    assert asked == [(8, WATCHED), (8, WATCHED), (4, WATCHED), *((3, decoding) for decoding in RETRIES)]
    cut = [number == 7 for number in numbers]
    assert [segment.finish_reason == "repetition" for segment in result.segments] == cut
    assert sum("again and again" in warning for warning in result.warnings) == 3


def test_a_window_in_which_no_letter_is_heard_is_not_read_unless_that_is_asked_for(looping, monkeypatch) -> None:
    monkeypatch.setattr(transcription, "CTCReader", _Ears)
    memory = _numbers(looping, 1, 0, 2)
    result = _transcribe(looping, memory)
    assert [segment.finish_reason for segment in result.segments] == ["stop", "silence", "stop"]
    assert result.warnings == ("No speech was heard from 0:30 to 1:00 (30.0 s).",)
    assert _transcribe(looping, memory, no_speech="read").segments[1].text == "said"


def test_without_a_ctc_head_nothing_tells_speech_from_music(make_checkpoint: MakeCheckpoint) -> None:
    model = load(make_checkpoint(ctc_head=False), quiet=True)
    assert model.transcribe(noise(1), max_new_tokens=3).options["no_speech"] == "read"
    with pytest.raises(OptionError, match="no CTC head to tell"):
        model.transcribe(noise(1), no_speech="skip")


def test_the_result_says_by_which_options_it_came_about(tiny: FastSLM) -> None:
    options = tiny.transcribe(noise(1), reader="llm", method="context", max_new_tokens=4).as_dict()["options"]
    assert options == {
        "language": "en",
        "decoder": "llm",
        "max_new_tokens": 4,
        "method": "context",
        "context_windows": 2,
        "repetition": "retry",
        "no_speech": "skip",
        "prompt": None,
        "hotwords": None,
    }


@pytest.mark.parametrize("reader", ["ctc", "llm"])
def test_a_clip_reads_the_same_alone_and_at_any_place_of_three_hours(tiny: FastSLM, reader: str) -> None:
    clip = tiny.encode(noise(30)).tokens[0]
    places = [3, 180, 356]  # at 1 %, 50 % and 99 % of 360 windows
    options: Any = {"reader": reader}
    if reader == "llm":
        options |= {"max_new_tokens": 10, "repetition": "keep"}
    alone = tiny.transcribe(long_memory(tiny, 1, clip, [0]), **options)
    result = tiny.transcribe(long_memory(tiny, 360, clip, places), **options)
    assert alone.text
    texts = [segment.text for segment in result.segments]
    assert texts.count(alone.text) < 180
    for place in places:
        assert result.segments[place].text == alone.text
        assert (result.segments[place].start, result.segments[place].end) == (30 * place, 30 * place + 30)


@pytest.mark.parametrize("reader", ["ctc", "llm"])
def test_one_window_at_a_time_and_32_together_give_the_same_text(tiny: FastSLM, reader: str) -> None:
    memory = long_memory(tiny, 40)
    options: Any = {"reader": reader, "max_new_tokens": None if reader == "ctc" else 20}
    if reader == "llm":
        options["repetition"] = "keep"
    texts = [
        [segment.text for segment in _transcribe(tiny, memory, together, **options).segments] for together in (1, 32)
    ]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 20


def test_context_of_a_single_window_reads_as_the_window_alone_and_later_ones_hear_those_before(tiny: FastSLM) -> None:
    memory = tiny.encode(noise(95))
    options: Any = {"reader": "llm", "max_new_tokens": 12, "repetition": "keep"}
    alone = tiny.transcribe(memory, **options)
    context = tiny.transcribe(memory, method="context", **options)
    assert context.usage.method == "context"
    assert [(s.start, s.end) for s in context.segments] == [(s.start, s.end) for s in alone.segments]
    assert context.segments[0].text == alone.segments[0].text
    assert [s.text for s in context.segments[1:]] != [s.text for s in alone.segments[1:]]
    # As many windows before it as asked for, and no more.
    for windows in (1, 2):
        result = tiny.transcribe(memory, method="context", context_windows=windows, **options)
        first = 3 - windows
        reader = LLMReader(tiny.model, tiny.processor)
        before = [segment.text for segment in result.segments[first:3]]
        assert reader.read_after(memory.tokens[first:4], before, 12).text == result.segments[3].text


def test_whole_is_one_text_over_the_recording_and_of_one_window_that_of_the_window(tiny: FastSLM) -> None:
    options: Any = {"reader": "llm", "max_new_tokens": 12, "repetition": "keep"}
    whole = tiny.transcribe(noise(65), method="whole", **options)
    assert [(s.start, s.end) for s in whole.segments] == [(0, 65)]
    short = noise(20)
    assert tiny.transcribe(short, method="whole", **options).text == tiny.transcribe(short, **options).text


def test_numbers_of_numpy_are_told_as_json(tiny: FastSLM) -> None:
    options: Any = {"max_new_tokens": np.int64(4), "context_windows": np.int32(1)}
    result = tiny.transcribe(noise(1), reader="llm", method="context", **options).as_dict()
    told = json.loads(json.dumps(result))["options"]
    assert (told["max_new_tokens"], told["context_windows"]) == (4, 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "whole"}, "decoder ctc has no method whole: choose the decoder llm"),
        ({"method": "windw"}, "did you mean 'window'"),
        ({"reader": "llm", "context_windows": 2}, "by the method context"),
        ({"reader": "llm", "method": "context", "context_windows": 0}, "is 0 by .* 1 or more"),
        ({"reader": "llm", "method": "context", "context_windows": "2"}, "is '2' by .* 1 or more"),
        ({"reader": "llm", "method": "context", "context_windows": 1.5}, "is 1.5 by .* 1 or more"),
        ({"reader": "llm", "max_new_tokens": True}, "is True, a whole number"),
        ({"repetition": "cut"}, "writes no tokens: leave it out"),
        ({"no_speech": "skip"}, "writes no tokens: leave it out"),
        ({"reader": "llm", "no_speech": "hear"}, "choose one of skip, read"),
        ({"reader": "llm", "repetition": "never"}, "choose one of retry"),
    ],
)
def test_what_a_reader_cannot_do_is_refused(tiny: FastSLM, options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        tiny.transcribe("missing.wav", **options)
