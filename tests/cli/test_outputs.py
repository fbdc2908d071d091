"""Results that are there already: kept unless it is said otherwise, and a batch goes on where it stopped."""

from pathlib import Path
from typing import Any

import pytest
from tiny_fastslm import noise

from fastslm.cli import run
from fastslm.longform import encoder
from fastslm.longform.memory import SpeechMemory
from fastslm.longform.results import Answer, Segment, Transcript, Usage
from fastslm.speech import FastSLM

pytestmark = pytest.mark.fault

USAGE = Usage(1, 50, 5, 1.0, 1.0, 0.1, 0.1, "whisper", "window")
EDITED = "1\n00:00:00,000 --> 00:00:01,000\nedited for an hour\n"
TASKS = [
    (["transcribe"], ".txt"),
    (["transcribe", "--json"], ".json"),
    (["transcribe", "--format", "srt"], ".srt"),
    (["transcribe", "--format", "vtt"], ".vtt"),
    (["translate", "--to", "fr"], ".txt"),
    (["summarize", "--json"], ".json"),
    (["ask", "--question", "Who?"], ".txt"),
]
NAMES = [" ".join(task) for task, _ in TASKS]


@pytest.fixture
def talks(tmp_path: Path, encode) -> list[str]:
    content = encode(tmp_path / "0.wav", noise(1.0)).read_bytes()
    files = [tmp_path / f"{number}.wav" for number in range(4)]
    for file in files[1:]:
        file.write_bytes(content)
    return [str(file) for file in files]


@pytest.fixture
def read(tiny: FastSLM, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The recordings that the model has read, in order; it hears "new" in each."""
    read: list[str] = []

    def transcribe(self: FastSLM, source: object, **_: Any) -> Transcript:
        read.append(str(source))
        return Transcript("new", (Segment(0.0, 1.0, "new"),), "en", 1.0, (), USAGE)

    def answer(self: FastSLM, source: object, *_: Any, **__: Any) -> Answer:
        read.append(str(source))
        return Answer("new", (), 1.0, (), USAGE)

    monkeypatch.setattr("fastslm.cli.files.load_quietly", lambda *_: tiny)
    monkeypatch.setattr(FastSLM, "transcribe", transcribe)
    for task in ("translate", "summarize", "ask"):
        monkeypatch.setattr(FastSLM, task, answer)
    return read


def _call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, list[str]]:
    capsys.readouterr()
    status = run([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, out, err.splitlines()


@pytest.mark.parametrize(("task", "suffix"), TASKS, ids=NAMES)
def test_a_result_that_is_there_is_one_sentence_before_anything_is_read(
    talks: list[str], tmp_path: Path, capsys, monkeypatch, task: list[str], suffix: str
) -> None:
    monkeypatch.setattr("fastslm.cli.files.load_quietly", lambda *_: pytest.fail("a model was loaded"))
    there = tmp_path / "out" / f"2{suffix}"
    there.parent.mkdir()
    there.write_text(EDITED)
    status, out, err = _call(capsys, task[0], *talks, *task[1:], "--output-dir", there.parent)
    remedy = "give --overwrite to replace it, or --skip-existing to keep it."
    assert (status, out, err) == (2, "", [f"fastslm: {there} is there already: {remedy}"])
    assert list(there.parent.iterdir()) == [there]
    assert there.read_text() == EDITED


@pytest.mark.parametrize(("task", "suffix"), TASKS, ids=NAMES)
@pytest.mark.parametrize("option", ["--overwrite", "-f"])
def test_it_is_replaced_where_that_is_asked_for(
    talks: list[str], read: list[str], tmp_path: Path, capsys, task: list[str], suffix: str, option: str
) -> None:
    there = tmp_path / f"2{suffix}"
    there.write_text(EDITED)
    status, out, _ = _call(capsys, task[0], *talks, *task[1:], "-o", tmp_path, option)
    assert status == 0
    assert len(out.splitlines()) == len(read) == 4
    assert "new" in there.read_text()
    assert "edited" not in there.read_text()


@pytest.mark.parametrize(("task", "suffix"), TASKS, ids=NAMES)
def test_files_whose_results_are_there_are_skipped_and_said(
    talks: list[str], read: list[str], tmp_path: Path, capsys, task: list[str], suffix: str
) -> None:
    kept = [tmp_path / f"{number}{suffix}" for number in (0, 2)]
    for file in kept:
        file.write_text(EDITED)
    Path(talks[2]).unlink()  # done, and moved away since
    status, out, err = _call(capsys, task[0], *talks, *task[1:], "--output-dir", tmp_path, "--skip-existing")
    assert status == 0
    assert read == [talks[1], talks[3]]
    assert out.splitlines() == [str(tmp_path / f"{number}{suffix}") for number in (1, 3)]
    assert [line for line in err if "skipped" in line] == [
        f"fastslm: {talk} is skipped: {file} is there." for talk, file in zip(talks[::2], kept, strict=True)
    ]
    assert {file.read_text() for file in kept} == {EDITED}


def test_where_all_is_done_no_model_is_loaded(talks: list[str], tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("fastslm.cli.files.load_quietly", lambda *_: pytest.fail("a model was loaded"))
    for number in range(4):
        (tmp_path / f"{number}.srt").write_text(EDITED)
    command = ["transcribe", *talks, "--format", "srt", "--output-dir", tmp_path, "--skip-existing"]
    status, out, err = _call(capsys, *command)
    assert (status, out, len(err)) == (0, "", 4)


def test_another_format_is_another_result(talks: list[str], read: list[str], tmp_path: Path, capsys) -> None:
    (tmp_path / "0.srt").write_text(EDITED)
    assert _call(capsys, "transcribe", *talks, "--format", "vtt", "--output-dir", tmp_path)[0] == 0
    assert len(read) == 4


def test_a_batch_that_was_stopped_goes_on_with_what_is_left(
    talks: list[str], read: list[str], tmp_path: Path, capsys, monkeypatch
) -> None:
    plain = FastSLM.transcribe

    def stopped(self: FastSLM, source: Any, **options: Any) -> Transcript:
        if len(read) == 2:
            raise KeyboardInterrupt
        return plain(self, source, **options)

    command = ["transcribe", *talks, "--output-dir", tmp_path, "--skip-existing"]
    with monkeypatch.context() as patch:
        patch.setattr(FastSLM, "transcribe", stopped)
        assert _call(capsys, *command)[0] == 130
    assert [(tmp_path / f"{number}.txt").exists() for number in range(4)] == [True, True, False, False]
    status, out, _ = _call(capsys, *command)
    assert (status, out) == (0, f"{tmp_path / '2.txt'}\n{tmp_path / '3.txt'}\n")
    assert read == talks


@pytest.mark.parametrize(
    ("more", "status", "words"), [([], 2, "written by another process"), (["--skip-existing"], 0, "is th")]
)
def test_what_another_process_writes_meanwhile_is_kept(
    talks: list[str], read: list[str], tmp_path: Path, capsys, monkeypatch, more: list[str], status: int, words: str
) -> None:
    plain = FastSLM.transcribe

    def meanwhile(self: FastSLM, source: Any, **options: Any) -> Transcript:
        (tmp_path / "1.txt").write_text(EDITED)
        return plain(self, source, **options)

    monkeypatch.setattr(FastSLM, "transcribe", meanwhile)
    found, out, err = _call(capsys, "transcribe", *talks[1:3], "--output-dir", tmp_path, *more)
    assert (found, out) == (status, f"{tmp_path / '2.txt'}\n")
    assert (tmp_path / "1.txt").read_text() == EDITED
    assert sum(words in line for line in err) == 1
    # What is written before its turn costs no reading.
    for file in tmp_path.glob("*.txt"):
        file.unlink()
    read.clear()
    found, *_ = _call(capsys, "transcribe", talks[3], *talks[:2], "--output-dir", tmp_path, *more)
    assert (found, read) == (status, [talks[3], talks[0]])


@pytest.mark.parametrize("task", ["transcribe", "encode"])
def test_the_two_options_exclude_each_other(talks: list[str], tmp_path: Path, capsys, task: str) -> None:
    status, out, err = _call(capsys, task, *talks, "-o", tmp_path, "--overwrite", "--skip-existing")
    assert (status, out, len(err)) == (2, "", 1)
    assert "choose one of them" in err[0]


@pytest.mark.parametrize("option", ["--overwrite", "--skip-existing"])
@pytest.mark.parametrize("task", [["transcribe"], ["ask", "--question", "Who?"]], ids=lambda task: task[0])
def test_without_a_folder_there_is_nothing_to_keep_or_replace(
    talks: list[str], capsys, task: list[str], option: str
) -> None:
    status, out, err = _call(capsys, task[0], *talks, *task[1:], option)
    assert (status, out, len(err)) == (2, "", 1)
    assert f"{option} was given, but results go to standard output: give --output-dir" in err[0]


def test_a_format_after_f_is_not_taken_for_a_recording(talks: list[str], tmp_path: Path, capsys) -> None:
    (tmp_path / "0.txt").write_text(EDITED)
    status, _, err = _call(capsys, "transcribe", talks[0], "-o", tmp_path, "-f", "srt")
    assert (status, len(err)) == (2, 1)
    assert "give --format srt" in err[0]
    assert (tmp_path / "0.txt").read_text() == EDITED


def test_a_memory_that_is_there_is_kept_skipped_or_replaced(
    talks: list[str], tiny: FastSLM, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr("fastslm.cli.files.load_quietly", lambda *_: tiny)
    there = tmp_path / "0.fslm"
    there.write_text(EDITED)
    command = ["encode", *talks[:2], "--output-dir", tmp_path]
    status, out, err = _call(capsys, *command)
    assert (status, out, len(err)) == (2, "", 1)
    assert not (tmp_path / "1.fslm").exists()
    status, out, err = _call(capsys, *command, "--skip-existing")
    assert (status, out) == (0, f"{tmp_path / '1.fslm'}\n")
    assert err == [f"fastslm: {talks[0]} is skipped: {there} is there."]
    assert there.read_text() == EDITED
    assert _call(capsys, *command, "--overwrite")[0] == 0
    assert SpeechMemory.load(there).duration == 1


def test_a_partial_memory_is_no_result_and_goes_on_beside_those_that_are_skipped(
    talks: list[str], tiny: FastSLM, tmp_path: Path, encode, capsys, monkeypatch
) -> None:
    monkeypatch.setattr("fastslm.cli.files.load_quietly", lambda *_: tiny)
    long = encode(tmp_path / "long.wav", noise(31.0 * encoder.GROUP_WINDOWS))
    plain, calls = encoder.WindowEncoder.tokens, 0

    def once(self: Any, features: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 2:  # the short one, and a group of the long one
            raise KeyboardInterrupt
        return plain(self, features)

    command = ["encode", talks[0], long, "--output-dir", tmp_path / "out", "--skip-existing"]
    with monkeypatch.context() as patch:
        patch.setattr(encoder.WindowEncoder, "tokens", once)
        assert _call(capsys, *command)[0] == 130
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["0.fslm", "long.fslm.partial"]
    status, out, err = _call(capsys, *command)
    assert (status, out) == (0, f"{tmp_path / 'out' / 'long.fslm'}\n")
    assert "is skipped" in err[0]
    assert "goes on at " in err[1]
