"""Commands that are really killed, or for which there is really no room, leave nothing half done."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_fastslm import make_checkpoint, noise, tiny, tiny_checkpoint

from fastslm.cli import run
from fastslm.longform.memory import SpeechMemory
from fastslm.speech import FastSLM

__all__ = ["make_checkpoint", "tiny", "tiny_checkpoint"]
pytestmark = pytest.mark.slow


PROGRAM = """
import resource, signal, sys, torch
torch.set_num_threads(int(sys.argv.pop(1)))
room = int(sys.argv.pop(1))
if room:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
from fastslm.cli import main
main()
"""


def _command(arguments: list[object], checkpoint: Path, room: int = 0) -> tuple[list[str], dict[str, str]]:
    """A command line and its environment; no file may grow beyond `room` bytes."""
    command = [sys.executable, "-c", PROGRAM, str(torch.get_num_threads()), str(room), *map(str, arguments)]
    # In float32 on every processor, as the tiny model of the tests.
    return [*command, "--dtype", "float32", "--model", str(checkpoint)], {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
    }


def test_a_killed_command_goes_on_to_the_memory_of_one_that_was_not(
    tiny: FastSLM, tiny_checkpoint: Path, tmp_path: Path, encode, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL, as soon as the first groups are kept."""
    file = encode(tmp_path / "talk.wav", noise(600))
    kept, target = tmp_path / "out" / "talk.fslm.partial", tmp_path / "out" / "talk.fslm"
    command, environment = _command(["encode", file, "--output-dir", target.parent], tiny_checkpoint)
    running = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while running.poll() is None and not kept.exists():
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert not target.exists()

    assert run(command[5:]) == 0
    assert "goes on at" in capsys.readouterr().err
    assert list(target.parent.iterdir()) == [target]
    expected = tiny.encoder.encode(file)
    memory = SpeechMemory.load(target)
    assert torch.equal(memory.tokens, expected.tokens)
    assert memory.facts == expected.facts


@pytest.mark.parametrize("after", [1, 3, 5])
def test_a_killed_transcription_leaves_whole_texts_alone(
    tiny_checkpoint: Path, tmp_path: Path, encode, capsys: pytest.CaptureFixture[str], after: int
) -> None:
    """SIGKILL, as soon as so many texts are there."""
    files = [encode(tmp_path / f"{index}.wav", noise(20, index)) for index in range(8)]
    out, whole = tmp_path / "out", tmp_path / "whole"
    command, environment = _command(["transcribe", *files, "--json", "--output-dir", out], tiny_checkpoint)
    running = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while running.poll() is None and len(list(out.glob("[0-9].json"))) < after:
        time.sleep(0.001)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert run(["transcribe", *map(str, files), "--json", "--output-dir", str(whole), *command[-4:]]) == 0
    done = sorted(out.glob("[0-9].json"))
    assert after <= len(done) < len(files)
    for file in done:
        own, expected = (json.loads((folder / file.name).read_text()) for folder in (out, whole))
        assert own["segments"] == expected["segments"]


@pytest.mark.parametrize("share", [0.01, 0.5, 0.98])
def test_an_encoding_without_room_is_a_sentence_and_goes_on_when_there_is_some(
    tiny: FastSLM, tiny_checkpoint: Path, tmp_path: Path, encode, share: float
) -> None:
    """Room for a share of the memory."""
    file, target = encode(tmp_path / "talk.wav", noise(600)), tmp_path / "out" / "talk.fslm"
    expected = tiny.encoder.encode(file)
    room = int(expected.save(tmp_path / "expected.fslm").stat().st_size * share)
    command, environment = _command(["encode", file, "--output-dir", target.parent], tiny_checkpoint, room)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "cannot be written (" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not target.exists()
    assert run(command[5:]) == 0
    assert list(target.parent.iterdir()) == [target]
    assert torch.equal(SpeechMemory.load(target).tokens, expected.tokens)


def test_a_text_without_room_is_a_sentence_and_no_file(tiny_checkpoint: Path, tmp_path: Path, encode) -> None:
    file, out = encode(tmp_path / "talk.wav", noise(60)), tmp_path / "out"
    command, environment = _command(["transcribe", file, "--json", "--output-dir", out], tiny_checkpoint, 1_000)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "talk.json cannot be written (File too large)" in done.stderr
    assert list(out.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
def test_a_full_standard_output_is_a_sentence(tiny_checkpoint: Path, tmp_path: Path, encode) -> None:
    file = encode(tmp_path / "talk.wav", noise(5))
    command, environment = _command(["transcribe", file], tiny_checkpoint)
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, env=environment, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert "The result cannot be written (No space left on device)" in done.stderr.splitlines()[-1]
