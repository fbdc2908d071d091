"""Progress and warnings never end the work."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastslm.cli import run
from fastslm.cli.standard_error import Forgiving


@pytest.fixture(params=["closed", "nobody reads", "full"])
def broken(request: pytest.FixtureRequest, tmp_path: Path):
    """What a shell does to standard error, and what becomes of it."""
    if request.param == "closed":
        yield "2>&-", None
    elif request.param == "full":
        if not os.path.exists("/dev/full"):
            pytest.skip("the system has no /dev/full")
        yield "2>/dev/full", None
    else:
        reading, writing = os.pipe()
        os.close(reading)
        yield "", writing
        os.close(writing)


def test_results_go_out_and_the_status_is_as_otherwise_whatever_becomes_of_standard_error(
    tmp_path: Path, encode, tone, tiny_checkpoint: Path, capsys, broken: tuple[str, int | None]
) -> None:
    redirection, stderr = broken
    sounds = [str(encode(tmp_path / name, tone(2.0))) for name in ("a.wav", "b.wav")]
    options = ["--model", str(tiny_checkpoint), "--device", "cpu", "--dtype", "float32"]
    command = ["transcribe", str(tmp_path / "missing.wav"), *sounds, *options]
    assert run(command) == 2  # for the missing file
    expected = capsys.readouterr().out
    assert [line for line in expected.splitlines() if line.startswith("==>")] == [f"==> {own} <==" for own in sounds]
    shell = ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-m", "fastslm", *command]
    done = subprocess.run(shell, stdout=subprocess.PIPE, stderr=stderr, text=True)
    assert (done.returncode, done.stdout) == (2, expected)


CLOSED = """
import os, sys
from fastslm.cli.standard_error import forgive_standard_error
assert sys.stderr is None
forgive_standard_error()
os.fstat(2)
with open(sys.argv[1], "w") as result:
    os.write(2, b"what a library says")
    print("what a program says", file=sys.stderr, flush=True)
    result.write("the result")
"""


@pytest.mark.parametrize("closed", ["2>&-", "<&- 2>&-"])
def test_where_standard_error_was_closed_no_file_takes_its_place(tmp_path: Path, closed: str) -> None:
    file = tmp_path / "result.txt"
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", CLOSED, str(file)]
    done = subprocess.run(shell, stdout=subprocess.PIPE, text=True)
    assert (done.returncode, done.stdout, file.read_text()) == (0, "", "the result")


class _Fails(io.RawIOBase):
    """A terminal that was closed, or one that takes nothing more without waiting."""

    def __init__(self, error: OSError | None):
        self.error = error

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> None:
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), BrokenPipeError(), None])
def test_no_write_raises(error: OSError | None) -> None:
    stream = io.TextIOWrapper(io.BufferedWriter(Forgiving(_Fails(error))), line_buffering=True)
    for _ in range(3):
        stream.write("how far it is\n")
        stream.flush()


def test_what_can_be_written_is() -> None:
    reading, writing = os.pipe()
    with io.FileIO(writing, "w") as raw:
        stream = io.TextIOWrapper(io.BufferedWriter(Forgiving(raw)), encoding="utf-8", line_buffering=True)
        stream.write("héard\n")
        assert (stream.fileno(), stream.isatty()) == (writing, False)
    with open(reading, encoding="utf-8") as written:
        assert written.read() == "héard\n"
