"""Answers about long recordings and several of them, and that a second question costs only itself."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from long_memory import long_memory
from tiny_fastslm import CONTEXT, noise

from fastslm.errors import OptionError
from fastslm.longform.questions import Answerer
from fastslm.longform.readers import Method
from fastslm.longform.transcription import Transcriber
from fastslm.model.capabilities import Capabilities
from fastslm.speech import FastSLM

SHORT: Any = {"max_new_tokens": 8, "repetition": "keep"}


@pytest.fixture
def fresh(tiny: FastSLM, monkeypatch: pytest.MonkeyPatch) -> FastSLM:
    """The tiny model with nothing kept."""
    monkeypatch.setattr(tiny, "answerer", Answerer(tiny.model, tiny.processor))
    transcriber = Transcriber(tiny.model, tiny.processor, recordings=tiny.answerer.recordings)
    monkeypatch.setattr(tiny, "transcriber", transcriber)
    return tiny


@pytest.fixture
def places(tiny: FastSLM, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many places each pass through the language model had."""
    seen: list[int] = []
    forward = tiny.model.language_model.forward

    def counted(*arguments: Any, inputs_embeds: torch.Tensor, **options: Any) -> Any:
        seen.append(inputs_embeds.shape[1])
        return forward(*arguments, inputs_embeds=inputs_embeds, **options)

    monkeypatch.setattr(tiny.model.language_model, "forward", counted)
    return seen


def test_a_second_question_runs_only_itself_and_says_what_it_says_alone(fresh: FastSLM, places: list[int]) -> None:
    memory = long_memory(fresh, 10)
    questions = ["Who won?", "And what did the other one say about it?", "Who won?"]
    kept = []
    for number, question in enumerate(questions):
        places.clear()
        result = fresh.ask(memory, question, **SHORT)
        kept.append(result.text)
        assert sum(places) == result.usage.prompt_tokens + max(0, result.usage.text_tokens - 1)
        assert (result.usage.cached_tokens > 500) == (number > 0)
        if number:
            assert result.usage.prompt_tokens < 200
    for question, text in zip(questions, kept, strict=True):
        fresh.answerer = Answerer(fresh.model, fresh.processor)
        assert fresh.ask(memory, question, **SHORT).text == text


def test_a_second_question_does_not_hear_the_recording_again(fresh: FastSLM, monkeypatch, tmp_path: Path) -> None:
    heard: list[int] = []
    project = fresh.model.project
    monkeypatch.setattr(fresh.model, "project", lambda tokens: heard.append(len(tokens)) or project(tokens))
    memory, file = long_memory(fresh, 10), tmp_path / "talk.prefix"
    for number in range(3):
        if number == 2:
            # As in another process: all that is left is the file.
            fresh.answerer.prefixes.clear()
        fresh.ask(memory, "Who won?", prefix_file=file, **SHORT)
        assert heard == [len(memory.tokens)]


def test_other_tasks_take_the_same_prefix(fresh: FastSLM) -> None:
    memory = fresh.encode(noise(65))
    fresh.summarize(memory, **SHORT)
    assert fresh.translate(memory, **SHORT).usage.cached_tokens > 150
    assert fresh.ask(memory, "Who?", **SHORT).usage.cached_tokens > 150
    assert fresh.ask(fresh.encode(noise(65, 1)), "Who?", **SHORT).usage.cached_tokens == 0


@pytest.mark.parametrize("asked_before", [True, False])
def test_a_transcript_of_the_whole_takes_and_leaves_the_same_prefix(
    fresh: FastSLM, places: list[int], monkeypatch, asked_before: bool
) -> None:
    memory = long_memory(fresh, 10)
    whole: Any = {"reader": "llm", "method": "whole", "no_speech": "read"}

    def ask() -> bool:
        return fresh.ask(memory, "Who won?", **SHORT).usage.cached_tokens > 500

    def transcribe() -> bool:
        places.clear()
        texts.append(fresh.transcribe(memory, **whole, **SHORT).text)
        return max(places) < 100

    texts: list[str] = []
    first, *later = [ask, transcribe, transcribe] if asked_before else [transcribe, ask, transcribe]
    assert not first()
    assert all(task() for task in later)
    monkeypatch.setattr("fastslm.longform.readers.can_keep", lambda model: False)
    assert not transcribe()
    assert len(set(texts)) == 1


def test_a_text_is_that_of_one_prompt_without_any_cache(fresh: FastSLM, monkeypatch) -> None:
    memory = fresh.encode(noise(100))
    cached = fresh.ask(memory, "Who won?", **SHORT)
    monkeypatch.setattr("fastslm.longform.questions.can_keep", lambda model: False)
    plain = fresh.ask(memory, "Who won?", **SHORT)
    assert plain.text == cached.text
    assert plain.usage.prompt_tokens == cached.usage.prompt_tokens
    with pytest.raises(OptionError, match="cannot be kept"):
        fresh.ask(memory, "Who won?", prefix_file=Path("a.kv"))


@pytest.mark.parametrize("method", ["window", "context", "whole"])
def test_transcripts_say_what_passed_the_language_model(fresh: FastSLM, places: list[int], method: Method) -> None:
    memory = long_memory(fresh, 3)
    options: dict[str, Any] = {"reader": "llm", "method": method, "max_new_tokens": 4, "repetition": "keep"}
    fresh.transcriber.read_together = 1  # one prompt in a pass, whose places are counted
    for cached in (False, method == "whole"):
        places.clear()
        transcript = fresh.transcribe(memory, **options)
        written = transcript.usage.text_tokens + sum(s.finish_reason == "stop" for s in transcript.segments)
        assert sum(places) == transcript.usage.prompt_tokens + written - len(transcript.segments)
        assert (transcript.usage.cached_tokens > 150) == cached
    ctc = fresh.transcribe(memory, reader="ctc").usage
    assert (ctc.prompt_tokens, ctc.cached_tokens) == (0, 0)


def test_a_prefix_file_serves_another_process(fresh: FastSLM, tmp_path: Path) -> None:
    memory, file = fresh.encode(noise(65)), tmp_path / "talk.kv"
    first = fresh.ask(memory, "Who won?", prefix_file=file, **SHORT)
    assert list(tmp_path.iterdir()) == [file]
    fresh.answerer = Answerer(fresh.model, fresh.processor)
    second = fresh.ask(memory, "Who won?", prefix_file=file, **SHORT)
    assert second.text == first.text
    assert (first.usage.cached_tokens, second.usage.prompt_tokens < 100) == (0, True)


def test_beyond_the_context_parts_are_asked_and_cited(fresh: FastSLM, places: list[int]) -> None:
    memory = long_memory(fresh, 66)
    result = fresh.ask(memory, "Who won?", max_new_tokens=30, repetition="keep")
    assert result.usage.method == "map_reduce"
    assert max(places) <= CONTEXT
    assert result.spans[0].start == 0
    assert result.spans[-1].end == 66 * 30
    assert all(span.text for span in result.spans)
    assert any(
        f"in {len(result.spans)} parts, the language model having {CONTEXT} positions" in w for w in result.warnings
    )
    again = fresh.ask(memory, "Who won?", max_new_tokens=30, repetition="keep")
    assert again.text == result.text
    assert again.usage.cached_tokens > 50 * len(memory.tokens)


def test_spans_as_short_as_asked_for_are_cited_and_translations_follow_one_another(fresh: FastSLM) -> None:
    memory = fresh.encode(noise(150))
    result = fresh.translate(memory, method="map_reduce", span_seconds=60, **SHORT)
    assert [(span.start, span.end) for span in result.spans] == [(0, 60), (60, 90), (90, 150)]
    assert result.text == " ".join(span.text or "" for span in result.spans)


def test_recordings_longer_than_was_taught_are_read_in_parts_of_that(fresh: FastSLM, monkeypatch, tmp_path) -> None:
    taught = Capabilities(taught_seconds={"ask": 60.0, "translate": 45.0})
    monkeypatch.setattr(fresh.model.config, "capabilities", taught)
    long, short = fresh.encode(noise(150)), fresh.encode(noise(60))
    asked = fresh.ask(long, "Who?", **SHORT)
    assert [(span.start, span.end) for span in asked.spans] == [(0, 60), (60, 90), (90, 150)]
    assert any(
        "in 3 parts, the language model having been taught with 2 windows at most: its text" in w
        for w in asked.warnings
    )
    translated = fresh.translate(short, **SHORT)
    assert [(span.start, span.end) for span in translated.spans] == [(0, 30), (30, 60)]
    alone = fresh.translate(noise(1), method="map_reduce", **SHORT)
    assert not any("read in" in warning for warning in alone.warnings)
    assert fresh.ask(short, "Who?", **SHORT).usage.method == "whole"
    assert fresh.ask([short, short], "Who?", **SHORT).usage.method == "map_reduce"
    assert fresh.summarize(long, **SHORT).usage.method == "whole"
    for options in ({"method": "whole"}, {"prefix_file": tmp_path / "talk.kv"}):
        whole = fresh.ask(long, "Who?", **options, **SHORT)
        assert whole.usage.method == "whole"
        assert any("holds 5 windows, and the language model was taught with 2" in w for w in whole.warnings)
    longer = fresh.ask(long, "Who?", span_seconds=90, **SHORT)
    assert [(span.start, span.end) for span in longer.spans] == [(0, 60), (60, 150)]
    by_parts = fresh.ask(long, "Who?", method="map_reduce", **SHORT)
    assert len(by_parts.spans) == 3


def test_a_silent_part_is_not_asked_and_not_cited(fresh: FastSLM) -> None:
    recording = noise(120)
    recording[30 * 16_000 : 60 * 16_000] = 0
    result = fresh.ask(recording, "Who?", method="map_reduce", span_seconds=30, **SHORT)
    assert (30, 60) not in [(span.start, span.end) for span in result.spans]
    assert len(result.spans) == 3
    assert result.usage.coverage == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("answers", "text", "starts"),
    [
        (["not mentioned", "A latte", "Not mentioned."], "A latte", [30]),
        (["not mentioned", "Not mentioned.", "not mentioned"], "not mentioned", []),
    ],
)
def test_a_part_that_does_not_say_it_is_not_cited(
    fresh: FastSLM, monkeypatch, answers: list[str], text: str, starts: list[float]
) -> None:
    from fastslm.longform import questions
    from fastslm.longform.generation import Generated

    left = iter(answers)
    monkeypatch.setattr(questions, "write", lambda *given, **inputs: [Generated(next(left), (1,), "stop")])
    result = fresh.ask(fresh.encode(noise(90)), "What is ordered?", method="map_reduce", span_seconds=30)
    assert (result.text, [span.start for span in result.spans]) == (text, starts)
    assert result.finish_reason == "stop"


def test_several_recordings_are_asked_about_together_and_cited_by_name(fresh: FastSLM) -> None:
    memories = [fresh.encoder.encode(noise(40, seed), name=f"clip {seed}") for seed in range(3)]
    result = fresh.ask(memories, "Who?", **SHORT)
    assert [(s.recording, s.start, s.end) for s in result.spans] == [(f"clip {n}", 0, 40) for n in range(3)]
    assert result.usage.audio_tokens == 300
    assert result.duration == 120
    assert fresh.ask(memories[::-1], "Who?", **SHORT).usage.cached_tokens == 0
    parts = fresh.ask(memories, "Who?", method="map_reduce", **SHORT)
    assert [s.recording for s in parts.spans] == [f"clip {n}" for n in range(3)]
    with pytest.raises(OptionError, match="no recording"):
        fresh.ask([], "Who?")


def test_an_answer_that_is_a_loop_is_cut_and_says_so(fresh: FastSLM, monkeypatch) -> None:
    from fastslm.longform import questions
    from fastslm.longform.generation import Generated

    def loops(model: Any, processor: Any, ids: Any, budgets: Any, decoding: Any, **inputs: Any) -> list[Generated]:
        return [Generated("loop", (40,) * 60, "length")]

    monkeypatch.setattr(questions, "write", loops)
    result = fresh.ask(noise(1), "Who?")
    assert result.finish_reason == "repetition"
    assert len(result.text) == 1
    assert any("again and again" in warning for warning in result.warnings)
    assert fresh.ask(noise(1), "Who?", repetition="keep").text == "loop"


def test_numbers_of_numpy_are_told_as_json(tiny: FastSLM) -> None:
    options: Any = {"max_new_tokens": np.int64(4), "span_seconds": np.float32(60), "rope_scaling": np.float64(2)}
    result = tiny.ask(noise(1), "Who?", method="map_reduce", **options).as_dict()
    told = json.loads(json.dumps(result))["options"]
    assert [told[name] for name in options] == [4, 60.0, 2.0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "wole"}, "choose one of auto, whole, map_reduce"),
        ({"method": "whole", "span_seconds": 60}, "by the method map_reduce"),
        ({"span_seconds": 10}, "give 30 or more"),
        ({"method": "map_reduce", "prefix_file": Path("a")}, "map_reduce makes several: leave one of them out"),
        ({"span_seconds": 60, "prefix_file": Path("a")}, "span_seconds makes several: leave one of them out"),
        ({"max_new_tokens": 0}, "1 or more"),
        ({"max_new_tokens": 1.5}, "is 1.5, a whole number"),
        ({"max_new_tokens": "3"}, "is '3', a whole number"),
        ({"max_new_tokens": True}, "is True, a whole number"),
        ({"span_seconds": "40"}, "is '40' by"),
        ({"rope_scaling": "2"}, "is '2': give a factor"),
        ({"repetition": "off"}, "choose one of retry"),
    ],
)
def test_options_that_cannot_be_met_are_refused_before_anything_is_read(
    tiny: FastSLM, options: Any, words: str
) -> None:
    with pytest.raises(OptionError, match=words):
        tiny.ask("missing.wav", "Who?", **options)


def test_a_prefix_file_of_a_recording_that_needs_several_prompts_is_refused(fresh: FastSLM, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="needs several"):
        fresh.ask(long_memory(fresh, 66), "Who?", prefix_file=tmp_path / "a.kv")
    assert not list(tmp_path.iterdir())


def test_nothing_is_asked_of_silence(fresh: FastSLM, places: list[int]) -> None:
    result = fresh.summarize(np.zeros(40 * 16_000, np.float32))
    assert (result.text, result.finish_reason, places) == ("", "silence", [])
