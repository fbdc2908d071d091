"""Recordings that break off, on the command line: taken as far as they go and marked, or refused where asked."""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny_fastslm import noise

from fastslm.cli import run
from fastslm.longform.memory import SpeechMemory

KINDS = [
    ("a.wav", 16_000, "pcm_s16le", {}),
    ("a.mp3", 16_000, "libmp3lame", {}),
    ("a.flac", 16_000, "flac", {}),
    ("a.ogg", 48_000, "libopus", {}),
    ("a.m4a", 16_000, "aac", {"movflags": "faststart"}),
    ("a.mkv", 16_000, "aac", {}),
    ("a.webm", 48_000, "libopus", {}),
    ("a.aac", 16_000, "aac", {}),
]


@pytest.fixture
def fastslm(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]):
    """`fastslm(arguments)` → exit status, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = run([*map(str, arguments), "--model", str(tiny_checkpoint)])
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def cut(tmp_path: Path, encode) -> Path:
    """A wav of 8 s of which 3 lack."""
    file = encode(tmp_path / "cut.wav", noise(8))
    file.write_bytes(file.read_bytes()[: -3 * 32_000])
    return file


@pytest.mark.fault
@pytest.mark.parametrize("kind", KINDS, ids=[kind[0] for kind in KINDS])
@pytest.mark.parametrize("lost", [4.0, 0.8])
def test_a_recording_that_breaks_off_is_read_as_far_as_it_goes_marked_and_warned_of(
    fastslm, tmp_path: Path, encode, tone, kind, lost: float
) -> None:
    name, rate, codec, options = kind
    file = encode(tmp_path / name, tone(8.0, rate), rate, codec, container_options=options)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * (1 - lost / 8))])
    status, out, err = fastslm("transcribe", file, "--json")
    result = json.loads(out)
    assert status == 0
    assert result["partial"] is True
    assert result["duration"] == pytest.approx(8 - lost, abs=1)
    assert err.count("is cut short: ") == 1
    assert any(f"{file} is cut short: " in warning for warning in result["warnings"])
    if name not in ("a.ogg", "a.aac"):  # which state no length
        assert result["missing_seconds"] == pytest.approx(8 - result["duration"], abs=0.1)


def test_one_of_which_nothing_can_be_read_without_its_end_is_a_sentence(fastslm, tmp_path: Path, encode, tone) -> None:
    file = encode(tmp_path / "last.m4a", tone(8.0), codec="aac")  # its index comes last
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    status, out, err = fastslm("transcribe", file)
    assert (status, out) == (2, "")
    assert f"fastslm: {file} is no sound or video file, or it is cut short or damaged" in err


@pytest.mark.fault
@pytest.mark.parametrize("task", [["transcribe"], ["encode"], ["summarize"]], ids=lambda task: task[0])
def test_where_that_is_refused_it_is_one_sentence_and_nothing_is_written(
    fastslm, cut: Path, tmp_path: Path, task: list[str]
) -> None:
    status, out, err = fastslm(*task, cut, "--strict", "--output-dir", tmp_path / "out")
    assert (status, out) == (2, "")
    said = [line for line in err.splitlines() if " runs on " not in line]
    assert len(said) == 1
    assert said[0].startswith(f"fastslm: {cut} is cut short: 5.0 s of sound are there of 8.0 s that it announces: ")
    assert "get the file again" in said[0]
    assert list((tmp_path / "out").iterdir()) == []


def test_of_several_files_the_whole_ones_are_done(fastslm, cut: Path, tmp_path: Path, encode) -> None:
    talk = encode(tmp_path / "talk.wav", noise(2))
    status, out, err = fastslm("transcribe", cut, talk, "--strict", "--output-dir", tmp_path / "out")
    assert (status, out) == (2, f"{tmp_path / 'out' / 'talk.txt'}\n")
    assert f"{cut} is cut short: 5.0 s of sound are there of 8.0 s" in err
    status, out, _ = fastslm("ask", talk, cut, "Who won?", "--together", "--strict")
    assert (status, out) == (2, "")


def test_what_is_there_is_marked(fastslm, cut: Path) -> None:
    status, out, err = fastslm("transcribe", cut, "--json")
    result = json.loads(out)
    assert status == 0
    assert result["partial"] is True
    assert result["duration"] == pytest.approx(5)
    assert result["missing_seconds"] == pytest.approx(3)
    (warning,) = result["warnings"]
    assert warning == f"{cut} is cut short: 5.0 s of sound are there of 8.0 s that it announces."
    assert f"fastslm: warning: {warning}\n" in err


@pytest.mark.parametrize("option", [[], ["--partial"], ["--strict"]])
def test_a_whole_recording_is_no_partial_result_whatever_was_asked_for(
    fastslm, tmp_path: Path, encode, option: list[str]
) -> None:
    talk = encode(tmp_path / "talk.wav", noise(2))
    result = json.loads(fastslm("transcribe", talk, "--json", *option)[1])
    assert result["partial"] is False
    assert result["missing_seconds"] is None
    assert result["warnings"] == []


@pytest.mark.fault
def test_what_lies_behind_the_end_that_a_header_states_is_heard(fastslm, tmp_path: Path, encode) -> None:
    talk = encode(tmp_path / "talk.wav", noise(6))
    whole = json.loads(fastslm("transcribe", talk, "--json")[1])
    content = bytearray(talk.read_bytes())
    place = content.index(b"data") + 4
    content[place : place + 4] = (16_000).to_bytes(4, "little")  # half a second, as of a recorder that was killed
    talk.write_bytes(content)
    stale = json.loads(fastslm("transcribe", talk, "--json")[1])
    assert (stale["text"], stale["duration"], stale["warnings"]) == (whole["text"], 6, [])
    assert json.loads(fastslm("plan", talk, "--json")[1])["seconds"] == pytest.approx(6, abs=0.01)


@pytest.mark.parametrize("form", ["text", "srt", "vtt"])
def test_a_text_for_people_ends_with_the_mark(fastslm, cut: Path, form: str) -> None:
    status, out, _ = fastslm("transcribe", cut, "--format", form)
    assert status == 0
    assert out.endswith("[The recording is cut short here.]\n")


def test_a_memory_keeps_the_mark_and_what_is_made_of_it_has_it(fastslm, cut: Path, tmp_path: Path) -> None:
    status, out, _ = fastslm("encode", cut, "--output-dir", tmp_path / "out")
    memory = tmp_path / "out" / "cut.fslm"
    assert (status, out) == (0, f"{memory}\n")
    assert SpeechMemory.load(memory).facts.partial
    for task in (["transcribe"], ["ask", "--question", "Who?", "--max-new-tokens", 2]):
        result = json.loads(fastslm(*task, memory, "--json")[1])
        assert result["partial"] is True
        assert "is cut short" in result["warnings"][0]


@contextmanager
def _piped(content: bytes) -> Iterator[str]:
    """The name of a pipe that gives so much and closes."""
    reading, writing = os.pipe()

    def feed() -> None:
        with open(writing, "wb") as sink:
            sink.write(content)

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        yield f"/dev/fd/{reading}"
        feeder.join()
    finally:
        os.close(reading)


@pytest.mark.parametrize("task", ["transcribe", "encode"])
@pytest.mark.parametrize(("name", "rate", "codec"), [("a.wav", 8_000, "pcm_s16le"), ("a.flac", 8_000, "flac")])
def test_a_pipe_that_stops_half_way_is_marked_or_a_sentence_that_leaves_nothing(
    fastslm, tmp_path: Path, encode, task: str, name: str, rate: int, codec: str
) -> None:
    content = encode(tmp_path / name, noise(160)[:: 16_000 // rate], rate, codec).read_bytes()
    with _piped(content[: int(len(content) * 0.9)]) as pipe:  # a group of windows is encoded, and kept, before the end
        status, out, err = fastslm(task, pipe, "--strict", "--output-dir", tmp_path / "out")
    assert (status, out) == (2, "")
    assert f"fastslm: {pipe} is cut short: 14" in err
    assert list((tmp_path / "out").iterdir()) == []
    with _piped(content[: int(len(content) * 0.9)]) as pipe:
        status, out, _ = fastslm("transcribe", pipe, "--json")
    assert status == 0
    assert json.loads(out)["partial"] is True
