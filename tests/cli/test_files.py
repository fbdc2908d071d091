"""What is said of files before anything slow, and what the command alone prints."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from fastslm.cli import run


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


@pytest.mark.parametrize("group", [[], ["weights"], ["evaluate"]])
def test_a_group_alone_prints_its_help_and_no_empty_line(group: list[str], capsys) -> None:
    assert run(group) == 2
    printed = capsys.readouterr()
    assert "Commands" in printed.out
    assert printed.err == ""


def test_the_usage_of_ask_reads_as_it_is_written(capsys) -> None:
    assert run(["ask", "--help"]) == 0
    assert "fastslm ask [OPTIONS] {FILE}... {QUESTION}" in capsys.readouterr().out
