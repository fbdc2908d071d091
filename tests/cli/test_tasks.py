"""The tasks on the command line: results on standard output, sentences on standard error, exit statuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_fastslm import MakeCheckpoint, noise

from fastslm.audio import WINDOW_SECONDS
from fastslm.cli import run
from fastslm.longform import encoder
from fastslm.longform.results import clock
from fastslm.model.modeling import FastSLMForConditionalGeneration

NO_TRACE = "Traceback"


@pytest.fixture
def talk(tmp_path: Path, encode) -> Path:
    return encode(tmp_path / "talk.wav", noise(3.0))


@pytest.fixture
def fastslm(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """`fastslm(arguments)` → exit status, standard output, standard error; the tiny model unless one is named."""

    def call(*arguments: object, model: str | None = "tiny") -> tuple[int, str, str]:
        named = [] if model is None else ["--model", str(tiny_checkpoint) if model == "tiny" else model]
        capsys.readouterr()
        status = run([*map(str, arguments), *named])
        out, err = capsys.readouterr()
        assert NO_TRACE not in err
        return status, out, err

    return call


def _said(err: str) -> list[str]:
    """Sentences on standard error, without what was chosen automatically."""
    return [line for line in err.splitlines() if " runs on " not in line]


# What it does


def test_a_transcript_goes_to_standard_output_alone(fastslm, talk: Path) -> None:
    status, out, err = fastslm("transcribe", talk)
    assert status == 0
    assert out.count("\n") == 1
    assert len(out) > 10
    assert _said(err) == []


def test_json_is_one_object_a_file_that_names_file_reader_and_usage(
    fastslm, talk: Path, tmp_path: Path, encode
) -> None:
    other = encode(tmp_path / "other.flac", noise(31, 1), codec="flac")
    status, out, _ = fastslm("transcribe", talk, other, "--json")
    assert status == 0
    results = [json.loads(line) for line in out.splitlines()]
    assert [result["file"] for result in results] == [str(talk), str(other)]
    assert [result["usage"]["audio_tokens"] for result in results] == [50, 100]
    assert {result["usage"]["reader"] for result in results} == {"ctc"}
    assert {"text", "segments", "language", "duration", "warnings", "finish_reason"} <= results[0].keys()
    assert results[0]["segments"][0]["words"][0].keys() == {"text", "start", "end", "log_probability"}


@pytest.mark.parametrize(("form", "start"), [("srt", "1\n00:00:0"), ("vtt", "WEBVTT\n\n00:00:0")])
def test_subtitles_are_written(fastslm, talk: Path, form: str, start: str) -> None:
    status, out, _ = fastslm("transcribe", talk, "--format", form)
    assert status == 0
    assert out.startswith(start)


def test_an_output_folder_gets_a_file_for_each(fastslm, talk: Path, tmp_path: Path) -> None:
    status, out, _ = fastslm("transcribe", talk, "--format", "srt", "--output-dir", tmp_path / "new" / "folder")
    target = tmp_path / "new" / "folder" / "talk.srt"
    assert (status, out) == (0, f"{target}\n")
    assert list(target.parent.iterdir()) == [target]
    assert "-->" in target.read_text()


@pytest.mark.parametrize("task", [["translate", "--to", "ko"], ["summarize"], ["ask", "--question", "Who won?"]])
def test_the_language_models_tasks_answer_and_say_that_they_are_poor(fastslm, talk: Path, task: list[str]) -> None:
    status, out, err = fastslm(*task, talk, "--json", "--max-new-tokens", 4)
    assert status == 0
    result = json.loads(out)
    assert result["usage"]["text_tokens"] <= 4
    assert result["spans"] == [{"start": 0.0, "end": 3.0, "recording": None, "text": None}]
    assert "does not read speech tokens yet" in err


def test_the_question_may_follow_the_files(fastslm, talk: Path) -> None:
    status, _, _ = fastslm("ask", talk, "Who won?", "--max-new-tokens", 2)
    assert status == 0
    status, _, err = fastslm("ask", talk)
    assert status == 2
    assert "no question" in err


def test_several_files_are_asked_about_together(fastslm, talk: Path, tmp_path: Path, encode) -> None:
    other = encode(tmp_path / "other.wav", noise(2.0, 1))
    status, out, _ = fastslm("ask", talk, other, "Who won?", "--together", "--json", "--max-new-tokens", 3)
    assert status == 0
    result = json.loads(out)
    assert result["files"] == [str(talk), str(other)]
    assert [span["recording"] for span in result["spans"]] == [talk.name, other.name]


def test_a_prefix_file_is_written_once_and_taken_again(fastslm, talk: Path, tmp_path: Path) -> None:
    kept, cached = tmp_path / "talk.kv", []
    for _ in range(2):
        options = ["--prefix-file", kept, "--json", "--max-new-tokens", 3]
        status, out, _ = fastslm("ask", talk, "Who won?", *options)
        assert status == 0
        cached.append(json.loads(out)["usage"]["cached_tokens"])
    assert cached[0] == 0
    assert cached[1] > 50
    status, _, err = fastslm("ask", talk, talk, "Who?", "--prefix-file", kept)
    assert status == 2
    assert "several files" in err


@pytest.mark.parametrize("there", [True, False])
def test_a_result_is_not_written_over_the_prefix_file(fastslm, talk: Path, tmp_path: Path, there: bool) -> None:
    kept = tmp_path / "talk.json"
    if there:
        kept.write_bytes(b"an hour of work")
    (tmp_path / "link").symlink_to(tmp_path)
    place = ["--output-dir", tmp_path / "link", "--json"]
    status, out, err = fastslm("ask", talk, "Who won?", "--prefix-file", kept, *place)
    assert (status, out) == (2, "")
    assert _said(err) == [f"fastslm: The result of {talk} would be written over {kept}: give them different names."]
    assert kept.exists() == there
    more = ["--overwrite"] if there else []
    status, out, _ = fastslm("ask", talk, "Who won?", "--prefix-file", tmp_path / "talk.kv", *place, *more)
    assert (status, out) == (0, f"{tmp_path / 'link' / 'talk.json'}\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["transcribe", "--method", "whole"], "decoder ctc has no method whole"),
        (["transcribe", "--repetition", "cut"], "writes no tokens"),
        (["summarize", "--rope-scaling", "0.5"], "above 1"),
        (["summarize", "--method", "whole", "--span-seconds", "60"], "by the method map_reduce"),
    ],
)
def test_methods_that_do_not_go_together_are_a_sentence(fastslm, talk: Path, arguments: list[str], words: str) -> None:
    status, out, err = fastslm(*arguments, talk)
    assert (status, out) == (2, "")
    assert words in err


def test_a_memory_is_written_and_every_task_takes_it(fastslm, talk: Path, tmp_path: Path) -> None:
    status, out, _ = fastslm("encode", talk, "--output-dir", tmp_path / "kept")
    memory = tmp_path / "kept" / "talk.fslm"
    assert (status, out) == (0, f"{memory}\n")
    assert fastslm("transcribe", memory)[:2] == fastslm("transcribe", talk)[:2]
    assert (
        fastslm("ask", memory, "Who?", "--max-new-tokens", 3)[1]
        == fastslm("ask", talk, "Who?", "--max-new-tokens", 3)[1]
    )


def test_a_memory_is_written_to_the_current_folder_unless_another_is_named(
    fastslm, talk: Path, tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert fastslm("encode", talk)[:2] == (0, "talk.fslm\n")
    assert list((tmp_path / "here").iterdir()) == [tmp_path / "here" / "talk.fslm"]


def test_a_bad_file_does_not_cost_the_others(fastslm, talk: Path, tmp_path: Path, encode) -> None:
    broken = encode(tmp_path / "nan.wav", np.full(16_000, np.nan, np.float32), codec="pcm_f32le")
    status, out, err = fastslm("transcribe", "missing.wav", broken, talk)
    assert status == 2
    assert out.startswith(f"==> {talk} <==\n")
    first, second = _said(err)
    assert first.startswith("fastslm: missing.wav does not exist")
    assert second.startswith(f"fastslm: {broken} holds a sample at")


def test_what_is_wrong_with_every_file_is_said_once(fastslm, talk: Path, tmp_path: Path, encode) -> None:
    other = encode(tmp_path / "other.wav", noise(1))
    status, out, err = fastslm("transcribe", talk, other, "--language", "klingon")
    assert (status, out) == (2, "")
    assert len(_said(err)) == 1


def test_silence_is_no_error_and_gives_no_text(fastslm, tmp_path: Path, encode) -> None:
    silent = encode(tmp_path / "silent.wav", np.zeros(32_000, np.float32))
    status, out, err = fastslm("transcribe", silent)
    assert (status, out) == (0, "\n")
    assert _said(err) == [f"fastslm: warning: {silent}: No speech was heard from 0:00 to 0:02 (2.0 s)."]


@pytest.mark.parametrize(("rate", "channels"), [(8_000, 1), (192_000, 8)])
def test_any_rate_and_number_of_channels_is_heard(fastslm, tmp_path: Path, encode, rate: int, channels: int) -> None:
    samples = np.tile(noise(rate / 16_000), (channels, 1))
    status, out, _ = fastslm("transcribe", encode(tmp_path / "a.wav", samples, rate), "--json")
    assert status == 0
    assert json.loads(out)["duration"] == pytest.approx(1.0)


# What is at fault, each one sentence


def _missing(folder: Path, encode) -> tuple[Path, str]:
    return folder / "none.mp3", "does not exist"


def _folder(folder: Path, encode) -> tuple[Path, str]:
    return folder, "is a folder"


def _empty(folder: Path, encode) -> tuple[Path, str]:
    (folder / "empty.wav").touch()
    return folder / "empty.wav", "is empty"


def _truncated(folder: Path, encode) -> tuple[Path, str]:
    file = encode(folder / "cut.m4a", noise(3), codec="aac")
    file.write_bytes(file.read_bytes()[:2000])
    return file, "is cut short"


def _text(folder: Path, encode) -> tuple[Path, str]:
    (folder / "text.mp3").write_text("These are words. " * 100)
    return folder / "text.mp3", "is no sound or video file"


def _mute(folder: Path, encode) -> tuple[Path, str]:
    return encode(folder / "mute.mp4", None, picture=True), "has no sound"


def _nan(folder: Path, encode) -> tuple[Path, str]:
    return encode(folder / "nan.wav", np.full(16_000, np.nan, np.float32), codec="pcm_f32le"), "NaN or infinite"


def _short(folder: Path, encode) -> tuple[Path, str]:
    return encode(folder / "short.wav", noise(0.05)), "at least 0.1 s is needed"


@pytest.mark.parametrize("make", [_missing, _folder, _empty, _truncated, _text, _mute, _nan, _short])
@pytest.mark.parametrize("task", ["transcribe", "encode"])
def test_a_bad_recording_is_one_sentence_and_leaves_nothing(fastslm, tmp_path, encode, make, task: str) -> None:
    source = tmp_path / "in"
    source.mkdir()
    file, words = make(source, encode)
    status, out, err = fastslm(task, file, "--output-dir", tmp_path / "out")
    assert (status, out) == (2, "")
    (sentence,) = _said(err)
    assert sentence.startswith(f"fastslm: {file}")
    assert words in sentence
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("task", [["transcribe"], ["encode"], ["ask", "--question", "Who won?"]], ids=lambda t: t[0])
def test_a_sample_far_inside_that_is_no_number_is_named_by_its_second_and_leaves_nothing(
    fastslm, talk: Path, tmp_path: Path, encode, task: list[str]
) -> None:
    samples = noise(200)
    samples[round(190.25 * 16_000)] = np.nan  # groups of windows are encoded, and kept, before it
    file = encode(tmp_path / "nan.wav", samples, codec="pcm_f32le")
    status, out, err = fastslm(*task, file, "--output-dir", tmp_path / "out")
    assert (status, out) == (2, "")
    (sentence,) = _said(err)
    assert sentence.startswith(f"fastslm: {file} holds a sample at 190.250 s that is NaN or infinite")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["transcribe", "--model", "fastslm-tinny"], "did you mean 'fastslm-tiny'"),
        (["transcribe", "--language", "klingon"], "no language 'klingon'"),
        (["transcribe", "--decoder", "lmm"], "no decoder 'lmm', did you mean 'llm'"),
        (["transcribe", "--decoder", "llm", "--reader", "ctc"], "--reader is the old name of --decoder"),
        (["transcribe", "--format", "sr"], "did you mean 'srt'"),
        (["transcribe", "--json", "--format", "srt"], "choose one of them"),
        (["transcribe", "--max-new-tokens", "5"], "leave it out"),
        (["transcribe", "--device", "gpu"], "The device 'gpu' cannot be used"),
        (["transcribe", "--dtype", "int4"], "no dtype 'int4'"),
        (["transcribe", "--colour"], "No such option"),
        (["translate", "--to", "koraen"], "did you mean 'korean'"),
        (["ask", "--question", ""], "no question"),
        (["ask", ""], "no question"),
        (["transcribe", "", "--reader", "ctc"], "A path is empty"),
        (["transcribe", "--output-dir", ""], "A path is empty"),
        (["transcribe", "--decoder", "llm", "--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["translate", "--max-new-tokens", "-3"], "max_new_tokens is -3"),
        (["transcribe", "--decoder", "ctc", "--method", "whole"], "decoder ctc has no method whole"),
        (["transcribe", "--method", "windows"], "did you mean 'window'"),
        (["transcribe", "--cuts", "quit"], "did you mean 'quiet'"),
        (["transcribe", "--context-windows", "2"], "by the method context"),
        (["summarize", "--method", "hole"], "There is no method 'hole'"),
        (["summarize", "--span-seconds", "nan"], "span_seconds is nan"),
        (["summarize", "--span-seconds", "inf"], "span_seconds is inf"),
        (["summarize", "--rope-scaling", "inf"], "rope_scaling is inf"),
        (["transcrib"], "Did you mean 'transcribe'"),
    ],
)
def test_a_wrong_option_is_one_sentence_and_no_weights_are_loaded(
    fastslm, talk: Path, monkeypatch, arguments: list[str], words: str
) -> None:
    load = FastSLMForConditionalGeneration.from_pretrained
    monkeypatch.setattr(FastSLMForConditionalGeneration, "from_pretrained", lambda *_, **__: pytest.fail(f"{load}"))
    named = None if "--model" in arguments or arguments == ["transcrib"] else "tiny"
    files = [talk, *arguments[1:]] if arguments == ["ask", ""] else [*arguments[1:], talk]
    status, out, err = fastslm(arguments[0], *files, model=named)
    assert (status, out) == (2, "")
    (sentence,) = _said(err)
    assert sentence.startswith("fastslm: ")
    assert words in sentence


def test_two_files_of_one_name_do_not_overwrite_each_other(fastslm, talk: Path, tmp_path: Path, encode) -> None:
    other = encode(tmp_path / "talk.flac", noise(1), codec="flac")
    status, _, err = fastslm("encode", talk, other, "--output-dir", tmp_path / "out")
    assert status == 2
    assert "would both be written" in err
    assert list((tmp_path / "out").iterdir()) == []


def test_an_output_that_cannot_be_written_is_a_sentence_before_a_model_is_loaded(
    fastslm, talk: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("fastslm.cli.files.load_quietly", lambda *_: pytest.fail("a model was loaded"))
    (tmp_path / "file").touch()
    status, _, err = fastslm("transcribe", talk, "--output-dir", tmp_path / "file")
    assert status == 2
    assert "cannot be made" in err
    (tmp_path / "out" / "talk.txt").mkdir(parents=True)
    status, _, err = fastslm("transcribe", talk, "--output-dir", tmp_path / "out")
    assert status == 2
    assert "talk.txt is a folder" in err
    for place in (tmp_path, tmp_path / "none" / "talk.kv"):
        status, _, err = fastslm("ask", talk, "Who?", "--prefix-file", place)
        assert status == 2
        assert "cannot be a file, or its folder does not exist" in err


def test_a_memory_of_another_model_is_refused(
    fastslm, talk: Path, tmp_path: Path, make_checkpoint: MakeCheckpoint
) -> None:
    fastslm("encode", talk, "--output-dir", tmp_path)
    status, out, err = fastslm("transcribe", tmp_path / "talk.fslm", model=str(make_checkpoint(seed=5)))
    assert (status, out) == (2, "")
    assert "made by another model" in err


# How it ends otherwise


def test_ctrl_c_leaves_with_130_and_nothing_half_written(fastslm, talk: Path, tmp_path: Path, monkeypatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(encoder.WindowEncoder, "tokens", interrupt)
    status, out, err = fastslm("encode", talk, "--output-dir", tmp_path / "out")
    assert (status, out) == (130, "")
    assert err.endswith("fastslm: stopped.\n")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_bug_keeps_its_traceback(fastslm, talk: Path, monkeypatch) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(encoder.WindowEncoder, "tokens", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        fastslm("transcribe", talk)


# Cuts and resumption


def test_quiet_cuts_move_the_segments_and_lose_nothing(fastslm, tmp_path: Path, encode) -> None:
    samples = noise(40)
    samples[27 * 16_000 : 27 * 16_000 + 8000] = 0
    file = encode(tmp_path / "a.wav", samples)
    _, out, _ = fastslm("transcribe", file, "--json", "--cuts", "quiet")
    ((start, middle), (same, end)) = [(s["start"], s["end"]) for s in json.loads(out)["segments"]]
    assert (start, middle, end) == (0, same, 40)
    assert 27 < middle < 27.5


def test_a_wrong_cut_is_a_sentence_and_a_memory_is_not_cut_again(
    fastslm, talk: Path, tmp_path: Path, monkeypatch
) -> None:
    assert "did you mean 'quiet'" in fastslm("encode", talk, "--cuts", "quit", "--output-dir", tmp_path / "o")[2]
    fastslm("encode", talk, "--output-dir", tmp_path / "o")
    monkeypatch.setattr("fastslm.cli.files.load_quietly", lambda *_: pytest.fail("a model was loaded"))
    memory = tmp_path / "o" / "talk.fslm"
    for task in (["transcribe"], ["encode", "--output-dir", tmp_path], ["plan"]):
        status, out, err = fastslm(*task, memory, "--cuts", "quiet")
        assert (status, out) == (2, "")
        assert _said(err) == [
            f"fastslm: Cuts 'quiet' were asked of {memory}, a speech memory, which is cut already: leave them out, or "
            "give the recording."
        ]


def test_ctrl_c_in_a_long_encoding_says_where_it_goes_on_and_it_does(
    fastslm, tmp_path: Path, monkeypatch, encode
) -> None:
    file = encode(tmp_path / "long.wav", noise(200))
    ordinary = encoder.WindowEncoder.tokens
    calls = 0

    def once(self, features):
        nonlocal calls
        calls += 1
        if calls > 1:
            raise KeyboardInterrupt
        return ordinary(self, features)

    monkeypatch.setattr(encoder.WindowEncoder, "tokens", once)
    status, out, err = fastslm("encode", file, "--output-dir", tmp_path / "out")
    assert (status, out) == (130, "")
    kept = tmp_path / "out" / "long.fslm.partial"
    assert f"{kept} holds what is done" in err
    assert list((tmp_path / "out").iterdir()) == [kept]
    monkeypatch.undo()
    status, out, err = fastslm("encode", file, "--output-dir", tmp_path / "out")
    assert (status, out) == (0, f"{tmp_path / 'out' / 'long.fslm'}\n")
    assert f"goes on at {clock(encoder.GROUP_WINDOWS * WINDOW_SECONDS)}, from {kept}" in err
    assert list((tmp_path / "out").iterdir()) == [tmp_path / "out" / "long.fslm"]


def test_a_result_is_not_written_over_its_recording(fastslm, tmp_path: Path, encode) -> None:
    talk = encode(tmp_path / "talk.wav", noise(1)).rename(tmp_path / "talk.txt")
    content = talk.read_bytes()
    status, out, err = fastslm("transcribe", talk, "--output-dir", tmp_path)
    assert (status, out) == (2, "")
    assert f"would be written over {talk}: choose another --output-dir" in err
    assert talk.read_bytes() == content


def test_a_dash_for_standard_input_is_told_the_file_that_is_it(fastslm) -> None:
    status, out, err = fastslm("transcribe", "-")
    assert (status, out) == (2, "")
    assert "for standard input give /dev/stdin" in err
