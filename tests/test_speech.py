"""The object that `load` returns: tasks, batches, memories, silence, limits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from long_memory import long_memory
from sounds import decibels, speech_like
from tiny_fastslm import CONTEXT, MakeCheckpoint, make_checkpoint, noise, tiny, tiny_checkpoint

from fastslm.audio import WINDOW_SECONDS
from fastslm.errors import AudioError, CheckpointError, FastSLMError, OptionError
from fastslm.loading import load
from fastslm.longform.encoder import GROUP_WINDOWS
from fastslm.longform.memory import SpeechMemory
from fastslm.longform.results import Progress
from fastslm.model.capabilities import Capabilities
from fastslm.speech import FastSLM

__all__ = ["make_checkpoint", "tiny", "tiny_checkpoint"]


@pytest.mark.parametrize(
    ("seconds", "windows", "tokens"), [(0.5, 1, 50), (30.0, 1, 50), (30.01, 2, 100), (300, 10, 500)]
)
def test_every_30_seconds_are_50_tokens(tiny: FastSLM, seconds: float, windows: int, tokens: int) -> None:
    result = tiny.transcribe(noise(seconds))
    assert (result.usage.windows, result.usage.audio_tokens) == (windows, tokens)
    assert result.duration == pytest.approx(seconds)
    assert result.usage.seconds_heard == pytest.approx(seconds)


def test_segments_follow_one_another_from_the_beginning_to_the_end(tiny: FastSLM) -> None:
    result = tiny.transcribe(noise(65.5))
    assert [(segment.start, segment.end) for segment in result.segments] == [(0, 30), (30, 60), (60, 65.5)]


def test_words_lie_in_their_segment_in_order_and_make_its_text(tiny: FastSLM) -> None:
    result = tiny.transcribe(noise(41.3))
    for segment in result.segments:
        assert " ".join(word.text for word in segment.words) == segment.text
        times = [time for word in segment.words for time in (word.start, word.end)]
        assert times == sorted(times)
        assert segment.start <= times[0]
        assert times[-1] <= segment.end
    assert result.text == " ".join(segment.text for segment in result.segments)


@pytest.mark.parametrize(("reader", "repetition"), [("ctc", "retry"), ("llm", "keep"), ("llm", "retry")])
def test_clips_together_in_any_order_give_the_text_of_each_alone(tiny: FastSLM, reader: str, repetition: str) -> None:
    clips = [noise(seconds, index) for index, seconds in enumerate((3.0, 31.0, 0.4, 12.0, 90.5, 30.0, 7.7, 2.0, 1.0))]
    options: Any = {"reader": reader, "repetition": repetition, "max_new_tokens": None if reader == "ctc" else 30}
    alone = [tiny.transcribe(clip, **options).text for clip in clips]
    # A random language model says nothing but loops, and most in the same words.
    assert len(set(alone)) == len(clips) if reader == "ctc" else len(set(alone)) > 1
    together = [result.text for result in tiny.transcribe_many(clips, **options)]
    reverse = [result.text for result in tiny.transcribe_many(clips[::-1], **options)]
    assert together == alone
    assert reverse[::-1] == alone


def test_the_tokens_of_a_window_do_not_depend_on_its_neighbours(tiny: FastSLM) -> None:
    recording = noise(290)
    whole = tiny.encode(recording).tokens
    for index, start in enumerate(range(0, len(recording), 480_000)):
        alone = tiny.encode(recording[start : start + 480_000]).tokens[0]
        assert torch.allclose(alone, whole[index], atol=1e-4, rtol=0)


def test_an_array_of_another_rate_is_heard_like_its_file(tiny: FastSLM, tmp_path: Path, encode) -> None:
    samples = noise(4.0)
    file = encode(tmp_path / "a.wav", samples, 16_000, "pcm_f32le")
    assert tiny.transcribe(file).text == tiny.transcribe(samples).text
    assert tiny.transcribe(samples, sampling_rate=8_000).duration == pytest.approx(8.0)


# Silence


def test_silence_gives_empty_text_and_says_so(tiny: FastSLM) -> None:
    result = tiny.transcribe(np.zeros(40 * 16_000, np.float32))
    assert result.text == ""
    assert result.finish_reason == "silence"
    assert result.warnings == ("No speech was heard from 0:00 to 0:40 (40.0 s).",)
    assert result.usage.seconds_heard == 0


@pytest.mark.fault
def test_the_seconds_that_were_not_read_are_in_warnings_and_json(tiny: FastSLM) -> None:
    recording = np.concatenate([np.zeros(30 * 16_000, np.float32), noise(10.4)])
    for result in (tiny.transcribe(recording), tiny.ask(recording, "What is said?")):
        assert "No speech was heard from 0:00 to 0:30 (30.0 s)." in result.warnings
        usage = result.as_dict()["usage"]
        assert (usage["seconds_silent"], usage["seconds_heard"]) == (30, 10.4)
    short = tiny.transcribe(np.concatenate([noise(30), np.zeros(3_200, np.float32)]))
    assert short.warnings == ("No speech was heard from 0:30 to 0:30 (0.2 s).",)


@pytest.mark.fault
@pytest.mark.parametrize("gain", [-25, -50, -70])
def test_quiet_speech_is_read_as_the_loud_one_is(tiny: FastSLM, gain: int) -> None:
    loud = speech_like(5)
    result = tiny.transcribe(loud * decibels(gain))
    assert result.finish_reason == "stop"
    assert result.text == tiny.transcribe(loud * decibels(-40)).text
    assert result.usage.seconds_silent == 0


@pytest.mark.fault
def test_the_result_says_that_channels_cancel(tiny: FastSLM) -> None:
    opposed = np.stack([speech_like(5), -speech_like(5)])
    result = tiny.transcribe(opposed)
    assert result.text == tiny.transcribe(speech_like(5)).text
    assert ["cancel one another in 5.0 s" in warning for warning in result.as_dict()["warnings"]] == [True]


def test_a_silent_window_between_others_is_the_only_one_that_is_empty(tiny: FastSLM) -> None:
    recording = noise(90)
    recording[30 * 16_000 : 60 * 16_000] = 1e-5
    result = tiny.transcribe(recording)
    assert [bool(segment.text) for segment in result.segments] == [True, False, True]
    assert result.warnings == ("No speech was heard from 0:30 to 1:00 (30.0 s).",)
    assert result.usage.seconds_heard == pytest.approx(60)


def test_the_language_model_is_not_asked_about_silence(tiny: FastSLM) -> None:
    answer = tiny.ask(np.zeros(16_000, np.float32), "What is said?")
    assert (answer.text, answer.finish_reason, answer.spans) == ("", "silence", ())
    assert answer.usage.text_tokens == 0


def test_a_short_word_in_a_quiet_window_is_not_silence(tiny: FastSLM) -> None:
    recording = np.zeros(30 * 16_000, np.float32)
    recording[200_000:204_000] = noise(0.25)
    assert tiny.transcribe(recording).finish_reason == "stop"


# Readers and languages


def test_the_reader_is_the_ctc_head_where_there_is_one_and_is_named(tiny: FastSLM) -> None:
    assert tiny.transcribe(noise(2)).usage.reader == "ctc"
    assert tiny.transcribe(noise(2), reader="llm").usage.reader == "llm"


def test_the_checkpoint_says_which_reader_is_better(make_checkpoint: MakeCheckpoint) -> None:
    model = load(make_checkpoint(transcript_reader="llm", llm_reads_speech=True), quiet=True)
    result = model.transcribe(noise(2))
    assert result.usage.reader == "llm"
    assert not any("does not read" in warning for warning in result.warnings)


def test_without_a_ctc_head_the_language_model_reads_and_ctc_is_refused(make_checkpoint: MakeCheckpoint) -> None:
    model = load(make_checkpoint(ctc_head=False), quiet=True)
    assert model.transcribe(noise(2)).usage.reader == "llm"
    with pytest.raises(OptionError, match="no CTC head"):
        model.transcribe(noise(2), reader="ctc")


def test_a_text_that_is_cut_says_so(tiny: FastSLM) -> None:
    result = tiny.transcribe(noise(40), reader="llm", max_new_tokens=3)
    assert [segment.finish_reason for segment in result.segments] == ["length", "length"]
    assert result.finish_reason == "length"
    assert result.usage.text_tokens == 6
    assert result.usage.seconds_heard == 0
    assert any("from 0:00 to 0:40 is cut" in warning for warning in result.warnings)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reader": "cct"}, "did you mean 'ctc'"),
        ({"language": "klingon"}, "no language 'klingon'"),
        ({"language": "englsh"}, "did you mean 'english'"),
        ({"language": "ko"}, "does not transcribe Korean: en"),
        ({"max_new_tokens": 5}, "leave it out"),
        ({"reader": "llm", "max_new_tokens": 0}, "1 or more"),
    ],
)
def test_an_option_that_cannot_be_met_is_refused_before_anything_is_read(tiny: FastSLM, options, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        tiny.transcribe("missing.wav", **options)


def test_a_language_may_be_named_or_coded(tiny: FastSLM) -> None:
    assert tiny.transcribe(noise(1), language="English").language == "en"


# The language model's tasks


@pytest.mark.parametrize("task", ["translate", "summarize", "ask"])
def test_every_task_ends_with_a_text_its_spans_and_a_caveat(tiny: FastSLM, task: str) -> None:
    arguments = {"translate": ["ko"], "summarize": [], "ask": ["Who won?"]}[task]
    result = getattr(tiny, task)(noise(40), *arguments, max_new_tokens=5)
    assert [(span.start, span.end) for span in result.spans] == [(0, 40)]
    assert result.finish_reason in ("stop", "length")
    assert result.usage.text_tokens <= 5
    assert result.usage.method == "whole"
    assert any("does not read speech tokens yet" in warning for warning in result.warnings)


def test_a_recording_beyond_the_language_models_context_is_refused_if_one_prompt_is_wanted(tiny: FastSLM) -> None:
    memory = long_memory(tiny, 40)
    with pytest.raises(OptionError, match=rf"has {CONTEXT}: choose the method map_reduce"):
        tiny.ask(memory, "Who won?", method="whole")
    with pytest.raises(OptionError, match=rf"has {CONTEXT}: give a recording of up to"):
        tiny.transcribe(memory, reader="llm", method="whole")


def test_an_answer_takes_what_room_the_context_has_left_for_it(tiny: FastSLM) -> None:
    # Two and a half minutes of translation would want 1532 tokens, where 2048 positions are all there is.
    result = tiny.translate(noise(150), to="ko", repetition="keep")
    assert result.usage.method == "whole"
    assert result.usage.prompt_tokens + result.usage.text_tokens <= CONTEXT


def test_a_language_that_nobody_names_is_the_first_that_was_learnt(tiny: FastSLM, monkeypatch) -> None:
    asked: list[dict[str, Any]] = []
    build = tiny.processor.build_prompt
    monkeypatch.setattr(
        tiny.processor, "build_prompt", lambda task, **given: asked.append(given) or build(task, **given)
    )
    for learnt, code in ((None, "ko"), (["fr", "de"], "fr")):
        monkeypatch.setattr(tiny.model.config, "capabilities", Capabilities(translates_into=learnt))
        tiny.translate(noise(1.5), max_new_tokens=2)
        assert {given["language"] for given in asked} == {code}
        asked.clear()


def test_a_wrong_language_or_an_empty_question_costs_no_encoding(tiny: FastSLM) -> None:
    with pytest.raises(OptionError, match="did you mean 'korean'"):
        tiny.translate("missing.wav", to="koraen")
    with pytest.raises(OptionError, match="no question"):
        tiny.ask("missing.wav", " ")


# Memories


def test_a_saved_memory_answers_as_its_recording_does(tiny: FastSLM, tmp_path: Path) -> None:
    recording = noise(65)
    recording[: 30 * 16_000] = 0
    file = tiny.encode(recording).save(tmp_path / "talk.fslm")
    memory = SpeechMemory.load(file)
    for source in (file, str(file), memory):
        loaded, fresh = tiny.transcribe(source), tiny.transcribe(recording)
        assert (loaded.segments, loaded.warnings) == (fresh.segments, fresh.warnings)
    assert tiny.ask(memory, "Who?", max_new_tokens=8).text == tiny.ask(recording, "Who?", max_new_tokens=8).text
    assert list(tmp_path.iterdir()) == [file]


def test_all_tasks_cut_a_recording_alike_at_pauses_where_the_transcript_is_written(
    make_checkpoint: MakeCheckpoint,
) -> None:
    model = load(make_checkpoint(reader=True, transcript_reader="whisper"), dtype="float32", quiet=True)
    recording = noise(65)
    recording[27 * 16_000 : 28 * 16_000] *= 0.01
    memory = model.encode(recording)
    assert 27 < memory.times[0, 1] < 28
    for reader in ("auto", "ctc", "llm"):
        options = {} if reader == "ctc" else {"max_new_tokens": 8}
        fresh = model.transcribe(recording, reader=reader, **options)
        assert model.transcribe(memory, reader=reader, **options).segments == fresh.segments
        assert fresh.segments[0].end < 28
    (many,) = model.transcribe_many([recording], max_new_tokens=8)
    live = [text.segment.text for text in model.transcribe_stream([recording], max_new_tokens=8) if text.final]
    assert many.text == model.transcribe(recording, max_new_tokens=8).text == " ".join(text for text in live if text)
    answers = [model.ask(source, "Who?", max_new_tokens=8) for source in (recording, memory)]
    assert answers[0].text == answers[1].text
    assert [answer.usage.windows for answer in answers] == [len(memory.tokens)] * 2


def test_a_model_whose_transcript_is_not_written_cuts_at_each_30_s(tiny: FastSLM) -> None:
    recording = noise(65)
    recording[27 * 16_000 : 28 * 16_000] *= 0.01
    assert tiny.encode(recording).times[0, 1] == 30
    assert tiny.transcribe(recording, reader="llm", max_new_tokens=8).segments[0].end == 30


def test_a_prefix_file_may_be_named_by_a_string(tiny: FastSLM, tmp_path: Path) -> None:
    name = str(tmp_path / "a.kv")
    first = tiny.ask(noise(1), "Who?", max_new_tokens=2, prefix_file=name)
    tiny.answerer.prefixes.clear()
    second = tiny.ask(noise(1), "Who?", max_new_tokens=2, prefix_file=name)
    assert (first.usage.cached_tokens, first.text) == (0, second.text)
    assert second.usage.cached_tokens > 0


def test_the_memory_of_another_model_is_refused(tiny: FastSLM, make_checkpoint: MakeCheckpoint) -> None:
    memory = load(make_checkpoint(seed=1), quiet=True).encode(noise(1))
    with pytest.raises(CheckpointError, match="made by another model"):
        tiny.transcribe(memory)


def test_a_memory_fits_the_same_model_in_another_dtype(tiny: FastSLM, tiny_checkpoint: Path) -> None:
    half = load(tiny_checkpoint, dtype="bfloat16", quiet=True)
    assert half.fingerprint == tiny.fingerprint
    memory = half.encode(noise(1))
    assert memory.tokens.dtype is torch.bfloat16
    tiny.transcribe(memory)


@pytest.mark.parametrize("content", [b"", b"nothing", None])
def test_a_damaged_memory_is_refused(tiny: FastSLM, tmp_path: Path, content: bytes | None) -> None:
    file = tiny.encode(noise(1)).save(tmp_path / "a.fslm")
    file.write_bytes(file.read_bytes()[:-100] if content is None else content)
    with pytest.raises(CheckpointError, match="damaged"):
        tiny.transcribe(file)


def test_a_missing_memory_is_named(tiny: FastSLM) -> None:
    with pytest.raises(FastSLMError, match=r"gone\.fslm does not exist"):
        tiny.transcribe("gone.fslm")


def test_a_rate_belongs_to_arrays_not_to_memories(tiny: FastSLM) -> None:
    with pytest.raises(OptionError, match="belongs to arrays"):
        tiny.transcribe(tiny.encode(noise(1)), sampling_rate=16_000)


# The rest


def test_progress_grows_to_the_whole_recording(tiny: FastSLM) -> None:
    seen: list[tuple[float, float | None]] = []
    tiny.encode(noise(500), on_progress=lambda p: seen.append((p.seconds, p.total_seconds)))
    assert [total for _, total in seen] == [500.0] * len(seen)
    assert [seconds for seconds, _ in seen] == [*range(0, 500, GROUP_WINDOWS * WINDOW_SECONDS), 500]


@pytest.mark.parametrize("method", [None, "window", "context"])
def test_of_a_memory_the_reading_is_the_progress(tiny: FastSLM, method: str | None) -> None:
    memory = tiny.encode(noise(500))
    seen: list[Progress] = []
    options = {"reader": "llm", "method": method, "max_new_tokens": 4, "no_speech": "read"} if method else {}
    tiny.transcribe(memory, on_progress=seen.append, **options)  # type: ignore[arg-type]
    seconds = [progress.seconds for progress in seen]
    assert len(seconds) > 1
    assert seconds == sorted(set(seconds))
    assert seen[-1] == Progress(500, 500)


def test_a_memory_has_no_file_for_what_is_finished(tiny: FastSLM, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="kept_at was given with a speech memory"):
        tiny.encode(tiny.encode(noise(1)), kept_at=tmp_path / "talk.partial")


def test_the_authors_mel_counts_whole_frames_only(make_checkpoint: MakeCheckpoint) -> None:
    model = load(make_checkpoint(mel_mode="authors"), quiet=True)
    result = model.transcribe(noise(30.005))
    assert result.usage.windows == 1
    assert result.segments[0].end == pytest.approx(30.005)
    assert model.transcribe(noise(30.01)).usage.windows == 2


def test_too_short_a_recording_is_refused(tiny: FastSLM) -> None:
    with pytest.raises(AudioError, match=r"at least 0\.1 s"):
        tiny.transcribe(noise(0.05))


@pytest.mark.parametrize(
    ("option", "words"), [({"cuts": "quiet"}, "cut already"), ({"sampling_rate": 16_000}, "arrays")]
)
def test_what_a_memory_among_recordings_cannot_have_is_refused_before_any_is_encoded(
    tiny: FastSLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: dict[str, Any], words: str
) -> None:
    memory = tiny.encode(noise(3.0))
    path = memory.save(tmp_path / "talk.fslm")
    monkeypatch.setattr(tiny.encoder, "encode", lambda *_, **__: pytest.fail("a recording was encoded"))
    for given in (memory, path):
        with pytest.raises(OptionError, match=words):
            tiny.ask([noise(3.0), given], "Who won?", **option)
        with pytest.raises(OptionError, match=words):
            tiny.transcribe(given, **option)
