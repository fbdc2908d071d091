"""What is said of files before anything slow, and what the command alone prints."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastslm.cli import run
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


@pytest.mark.parametrize("group", [[], ["weights"], ["evaluate"]])
def test_a_group_alone_prints_its_help_and_no_empty_line(group: list[str], capsys) -> None:
    assert run(group) == 2
    printed = capsys.readouterr()
    assert "Commands" in printed.out
    assert printed.err == ""


def test_the_usage_of_ask_reads_as_it_is_written(capsys) -> None:
    assert run(["ask", "--help"]) == 0
    assert "fastslm ask [OPTIONS] {FILE}... {QUESTION}" in capsys.readouterr().out
