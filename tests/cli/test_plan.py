"""`fastslm plan`, and what a long run says at its start."""

import json
from pathlib import Path

import pytest
from timed_sound import timed
from tiny_fastslm import MakeCheckpoint, noise

from fastslm.cli import files, run
from fastslm.longform import plan as planning


@pytest.fixture
def talk(tmp_path: Path, encode) -> Path:
    return encode(tmp_path / "talk.wav", noise(95))


def test_a_plan_names_windows_tokens_memory_and_the_reasons(
    talk: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["plan", str(talk), "--model", str(tiny_checkpoint), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    for words in ("4, fixed cuts", "200, ", "KV cache", "in one prompt of 2048 positions", "are free", "float32 ("):
        assert words in out


@pytest.fixture
def cut_at_pauses(make_checkpoint: MakeCheckpoint) -> list[str]:
    """The option of a model whose own cuts are quiet ones."""
    return ["--model", str(make_checkpoint(reader=True, transcript_reader="whisper"))]


def test_a_plan_is_of_the_cuts_that_the_tasks_make(
    talk: Path, cut_at_pauses: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["plan", str(talk), *cut_at_pauses]) == 0
    out = capsys.readouterr().out
    assert "windows        at most 4, quiet cuts\n" in out
    assert "speech tokens  at most 200, " in out
    assert run(["plan", str(talk), *cut_at_pauses, "--cuts", "fixed"]) == 0
    assert "windows        4, fixed cuts\n" in capsys.readouterr().out


def test_a_plan_is_json_for_machines_and_of_a_memory_too(
    talk: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", str(tiny_checkpoint)]
    assert run(["encode", str(talk), "--output-dir", str(tmp_path / "out"), *model]) == 0
    capsys.readouterr()
    assert run(["plan", str(talk), str(tmp_path / "out" / "talk.fslm"), "--json", *model]) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (first["windows"], first["audio_tokens"]) == (4, 200)
    alike = {"file": "", "available_bytes": 0, "cuts": None}
    assert {**second, **alike} == {**first, **alike}
    assert (first["cuts"], second["cuts"]) == ("fixed", None)


def test_of_a_memory_the_windows_that_it_holds_are_counted(
    tiny_checkpoint: Path, tmp_path: Path, encode, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = noise(89)
    for second in (25, 51):  # quiet cuts there make 4 windows of what are 3 of 30 s
        sound[second * 16_000 + 4000 : second * 16_000 + 12_000] = 0
    talk, model = encode(tmp_path / "talk.wav", sound), ["--model", str(tiny_checkpoint)]
    assert run(["encode", str(talk), "--cuts", "quiet", "--output-dir", str(tmp_path), *model]) == 0
    capsys.readouterr()
    assert run(["plan", str(tmp_path / "talk.fslm"), *model]) == 0
    out = capsys.readouterr().out
    assert "windows        4, as the memory is cut\n" in out
    assert "speech tokens  200, " in out


@pytest.mark.parametrize(("arguments", "words"), [(["missing.wav"], "does not exist"), (["--cuts", "qiet"], "quiet")])
def test_what_cannot_be_planned_is_a_sentence(
    talk: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    named = arguments if arguments[0] == "missing.wav" else [str(talk), *arguments]
    assert run(["plan", *named, "--model", str(tiny_checkpoint)]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.fault
@pytest.mark.parametrize(
    ("moves", "seconds"), [([(-1, 4.0)], 100), ([(30.0, 200.0)], 296), ([(-1, 7.0), (50.0, 40.0)], 143)]
)
@pytest.mark.parametrize("form", ["matroska", "mp4"])
def test_a_plan_is_of_the_clock_by_which_the_recording_is_heard(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, moves, seconds: int
) -> None:
    file, model = tmp_path / "a", ["--model", str(tiny_checkpoint)]
    file.write_bytes(timed(form, 16_000, "aac", moves, seconds=96.0))
    assert run(["plan", str(file), "--json", *model]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["seconds"] == pytest.approx(seconds, abs=0.2)
    assert run(["encode", str(file), "--json", "--output-dir", str(tmp_path), *model]) == 0
    encoded = json.loads(capsys.readouterr().out)
    assert encoded["duration"] == pytest.approx(planned["seconds"], abs=0.2)
    assert encoded["windows"] == planned["windows"]


def test_a_plan_is_of_the_part_that_is_asked_for(
    talk: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["plan", str(talk), "--json", "--model", str(tiny_checkpoint), "--start", "0:30"]
    for more, seconds, windows in ([], 65, 3), (["--duration", "31"], 31, 2), (["--duration", "1:00:00"], 65, 3):
        assert run([*command, *more]) == 0
        planned = json.loads(capsys.readouterr().out)
        assert (planned["seconds"], planned["windows"]) == (seconds, windows)


def test_a_long_run_says_at_its_start_what_it_takes_and_a_short_one_does_not(
    talk: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    command = ["encode", str(talk), "--output-dir", str(tmp_path / "out"), "--model", str(tiny_checkpoint)]
    run(command)
    assert "windows" not in capsys.readouterr().err
    monkeypatch.setattr(planning, "LONG_SECONDS", 90)
    run([*command, "--overwrite"])
    said = capsys.readouterr().err
    assert f"fastslm: {talk} is 1:35 long: 4 windows, 200 speech tokens, about " in said
    assert "one prompt holds 17:00." in said


@pytest.mark.parametrize(("cuts", "words"), [([], "at most 4 windows"), (["--cuts", "fixed"], "4 windows")])
def test_a_long_run_says_how_many_windows_its_own_cuts_make(
    talk: Path, cut_at_pauses: list[str], tmp_path: Path, capsys, monkeypatch, cuts: list[str], words: str
) -> None:
    monkeypatch.setattr(planning, "LONG_SECONDS", 90)
    assert run(["encode", str(talk), "--output-dir", str(tmp_path / "out"), *cut_at_pauses, *cuts]) == 0
    assert f"fastslm: {talk} is 1:35 long: {words}, " in capsys.readouterr().err


def test_without_a_terminal_progress_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    clock = iter([0.0, 1.0, 20.0, 40.0, 50.0])
    monkeypatch.setattr(files, "monotonic", lambda: next(clock))
    with files.progress_bar("talk.mp3") as show:
        for done in (100.0, 200.0, 300.0, 350.0):  # it went on at 100
            show(done, 500.0, f"{done:.0f} s heard")
    assert capsys.readouterr().err == "fastslm: talk.mp3: 300 s heard, about 0:00:40 left\n"
