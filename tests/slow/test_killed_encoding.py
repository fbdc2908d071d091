"""An encoding that is really killed goes on to the same bits."""

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


def test_a_killed_command_goes_on_to_the_memory_of_one_that_was_not(
    tiny: FastSLM, tiny_checkpoint: Path, tmp_path: Path, encode, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL, as soon as the first groups are kept."""
    file = encode(tmp_path / "talk.wav", noise(600))
    kept, target = tmp_path / "out" / "talk.fslm.partial", tmp_path / "out" / "talk.fslm"
    program = "import sys, torch; torch.set_num_threads(int(sys.argv.pop(1))); from fastslm.cli import main; main()"
    command = [sys.executable, "-c", program, str(torch.get_num_threads()), "encode", str(file)]
    command += ["--model", str(tiny_checkpoint), "--output-dir", str(target.parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    running = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while running.poll() is None and not kept.exists():
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert not target.exists()

    assert run(command[4:]) == 0
    assert "goes on at" in capsys.readouterr().err
    assert list(target.parent.iterdir()) == [target]
    expected = tiny.encoder.encode(file)
    memory = SpeechMemory.load(target)
    assert torch.equal(memory.tokens, expected.tokens)
    assert memory.facts == expected.facts
