"""What is said of files before anything slow, and what the command alone prints."""

import errno
import io
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fastslm.cli import run
from fastslm.cli.files import progress_bar
from fastslm.cli.outputs import outputs
from fastslm.longform.memory import SpeechMemory


@pytest.mark.parametrize(
    ("seconds", "value", "words"),
    [(0.05, 0.1, "at least 0.1 s is needed"), (40.0, np.nan, "NaN or infinite"), (40.0, 3e4, "divide them by")],
)
def test_what_shows_in_the_first_second_is_one_line_and_costs_no_model(
    tmp_path: Path, encode, capsys, monkeypatch, seconds: float, value: float, words: str
) -> None:
    monkeypatch.setattr("fastslm.cli.files.load_quietly", lambda *_: pytest.fail("a model was loaded"))
    samples = np.full(round(seconds * 16_000), value, np.float32)
    file = encode(tmp_path / "bad.wav", samples, codec="pcm_f32le")
    assert run(["transcribe", str(file)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"fastslm: {file}")
    assert words in printed.err
    assert printed.err.count("\n") == 1


def test_the_bar_shows_a_name_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with progress_bar("talk [dQw4w9WgXcQ].mp3"):
        pass
    assert "talk [dQw4w9WgXcQ].mp3" in terminal.getvalue()


def test_a_pipe_is_heard_from_its_first_byte(tmp_path: Path, encode, tone, tiny_checkpoint: Path, capsys) -> None:
    sound = encode(tmp_path / "a.flac", tone(2.0), codec="flac")
    assert run(["transcribe", str(sound), "--model", str(tiny_checkpoint)]) == 0
    expected = capsys.readouterr().out
    reading, writing = os.pipe()
    os.write(writing, sound.read_bytes())  # less than a pipe holds
    os.close(writing)
    try:
        assert run(["transcribe", f"/dev/fd/{reading}", "--model", str(tiny_checkpoint)]) == 0
    finally:
        os.close(reading)
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "No space left"), (errno.EFBIG, "File too large")])
def test_a_result_for_which_there_is_no_room_is_a_sentence(
    tmp_path: Path, encode, tone, tiny_checkpoint: Path, capsys, monkeypatch, number: int, words: str
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fastslm.cli.tasks._print_text", full)
    sound = encode(tmp_path / "a.wav", tone(2.0))
    assert run(["transcribe", str(sound), "--model", str(tiny_checkpoint)]) == 2
    printed = capsys.readouterr()
    assert f"fastslm: The result cannot be written ({words}" in printed.err
    assert "Traceback" not in printed.err


def _with_nobody_reading(*arguments: object) -> tuple[int, str]:
    """The command in a process of its own, its standard output a pipe that is closed → exit status, standard error."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        command = [sys.executable, "-m", "fastslm", *map(str, arguments)]
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writing)
    return done.returncode, done.stderr


@pytest.mark.parametrize("command", [["--help"], ["--version"], ["transcribe"]], ids=lambda command: command[0])
def test_where_nobody_reads_on_it_ends_without_a_word_as_other_commands_do(
    tmp_path: Path, encode, tone, tiny_checkpoint: Path, command: list[str]
) -> None:
    sounds = [encode(tmp_path / name, tone(2.0)) for name in ("a.wav", "b.wav")]
    of_files = [*sounds, "--model", tiny_checkpoint, "--device", "cpu", "--dtype", "float32"]
    status, err = _with_nobody_reading(*command, *(of_files if command == ["transcribe"] else []))
    assert status == 128 + signal.SIGPIPE
    assert [line for line in err.splitlines() if " runs on " not in line] == []


@pytest.mark.parametrize(("task", "suffix"), [("transcribe", ".txt"), ("encode", ".fslm")])
def test_files_are_all_written_and_whole_though_nobody_reads_their_names(
    tmp_path: Path, encode, tone, tiny_checkpoint: Path, task: str, suffix: str
) -> None:
    sounds = [encode(tmp_path / name, tone(2.0)) for name in ("a.wav", "b.wav")]
    options = ["--model", tiny_checkpoint, "--device", "cpu", "--dtype", "float32", "--output-dir"]
    status, err = _with_nobody_reading(task, *sounds, *options, tmp_path / "out")
    assert status == 0
    assert [line for line in err.splitlines() if " runs on " not in line] == []
    written = sorted((tmp_path / "out").iterdir())
    assert [file.name for file in written] == [f"a{suffix}", f"b{suffix}"]
    for file in written:
        assert SpeechMemory.load(file).duration == 2 if task == "encode" else file.read_text().endswith("\n")


def test_a_result_is_not_written_over_any_recording_that_is_asked_about(
    tmp_path: Path, encode, tone, capsys, monkeypatch
) -> None:
    monkeypatch.setattr("fastslm.cli.files.load_quietly", lambda *_: pytest.fail("a model was loaded"))
    first, second = encode(tmp_path / "a.wav", tone(1.0)), encode(tmp_path / "b.wav", tone(2.0))
    second = second.rename(tmp_path / "a.txt")
    content = second.read_bytes()
    assert run(["ask", "--together", str(first), str(second), "Who?", "--output-dir", str(tmp_path)]) == 2
    assert f"would be written over {second}: choose another --output-dir" in capsys.readouterr().err
    assert second.read_bytes() == content


def test_each_of_many_files_is_looked_at_once(tmp_path: Path, monkeypatch) -> None:
    files = [tmp_path / f"{number}.wav" for number in range(20)]
    targets = {file: file.with_suffix(".txt") for file in files}
    for file in (*files, *targets.values()):
        file.touch()
    looked, ordinary = Counter[str](), os.stat

    def counted(path, **options):
        looked[str(path)] += 1
        return ordinary(path, **options)

    monkeypatch.setattr(os, "stat", counted)
    assert outputs(files, tmp_path, ".txt", overwrite=True).targets == targets
    monkeypatch.undo()
    assert {looked[str(file)] for file in (*files, *targets.values())} == {1}


@pytest.mark.parametrize("task", ["transcribe", "plan", "ask"])
@pytest.mark.parametrize("named", ["n" * 300, "n" * 300 + ".fslm"], ids=["recording", "memory"])
def test_a_name_longer_than_names_can_be_is_a_sentence_and_costs_the_other_files_nothing(
    tmp_path: Path, encode, tone, tiny_checkpoint: Path, capsys, monkeypatch, task: str, named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    question = ["--question", "Who?"] if task == "ask" else []
    sound = str(encode(tmp_path / "a.wav", tone(1.0)))
    assert run([task, named, sound, *question, "--model", str(tiny_checkpoint)]) == 2
    printed = capsys.readouterr()
    assert len([line for line in printed.err.splitlines() if line.startswith(f"fastslm: {named} ")]) == 1
    assert f"==> {sound} <==" in printed.out


def test_a_result_whose_name_is_too_long_is_a_sentence_before_a_model_is_loaded(
    tmp_path: Path, encode, tone, capsys, monkeypatch
) -> None:
    monkeypatch.setattr("fastslm.cli.files.load_quietly", lambda *_: pytest.fail("a model was loaded"))
    sound = encode(tmp_path / "a.wav", tone(1.0)).rename(tmp_path / f"{'n' * 251}.wav")
    assert run(["encode", str(sound), "--output-dir", str(tmp_path / "out")]) == 2
    assert "too long a name for the disk: shorten the file's name" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ["transcribe", "a.wav", "--model"],
        ["evaluate", "asr", "--manifest"],
        ["data", "validate"],
        ["train"],
        ["verify-parity"],
    ],
    ids=lambda command: command[0],
)
def test_a_name_too_long_is_a_sentence_of_any_command(
    tmp_path: Path, encode, tone, capsys, monkeypatch, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    encode(tmp_path / "a.wav", tone(1.0))
    assert run([*command, "n" * 300]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert "n" * 300 in printed.err


@pytest.mark.parametrize("group", [[], ["weights"], ["evaluate"]])
def test_a_group_alone_prints_its_help_and_no_empty_line(group: list[str], capsys) -> None:
    assert run(group) == 2
    printed = capsys.readouterr()
    assert "Commands" in printed.out
    assert printed.err == ""


def test_the_usage_of_ask_reads_as_it_is_written(capsys) -> None:
    assert run(["ask", "--help"]) == 0
    assert "fastslm ask [OPTIONS] {FILE}... {QUESTION}" in capsys.readouterr().out
