"""Names and texts that a stream cannot encode: every command goes on, and says them as well as the stream can."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rote_system import Rote
from tiny_fastslm import noise

from fastslm.cli import run
from fastslm.longform.memory import SpeechMemory
from fastslm.longform.results import Answer, Segment, Transcript, Usage
from fastslm.speech import FastSLM

pytestmark = pytest.mark.fault

# Chinese, an emoji; a combining accent and Hebrew; bytes that are no UTF-8, line breaks of three kinds, a tab; Latin-1.
NAMES = ("会议😀.wav", "e\u0301 שלום.wav", "x\udcff\udcfe.wav", "a\nb\u2028c\x85\td.wav", "été.wav")
ENCODINGS = ("cp1252", "ascii", "latin-1", "cp932", "cp437", "koi8-r", "utf-8", "utf-16")
SPOKEN = "Zoë sagte: “会议” — 5 € 😀 שלום"
USAGE = Usage(1, 50, 5, 1.0, 1.0, 0.1, 0.1, "whisper", "window")
Shell = Callable[..., tuple[int, str, str]]


class _Kept(io.BytesIO):
    """Bytes that outlive the stream above them."""

    def close(self) -> None: ...


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Shell:
    """`shell(encoding, arguments)` → exit status, standard output, standard error, as a terminal of it shows them."""

    def call(encoding: str, *arguments: object) -> tuple[int, str, str]:
        out, err = _Kept(), _Kept()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding, "strict", newline="\n"))
            patch.setattr(sys, "stderr", io.TextIOWrapper(err, encoding, "backslashreplace", newline="\n"))
            status = run([str(argument) for argument in arguments])
            sys.stdout.flush()
        # Not all of it is in the encoding if these raise.
        return status, out.getvalue().decode(encoding), err.getvalue().decode(encoding)

    return call


@pytest.fixture
def recordings(tmp_path: Path, encode, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Recordings of these names in the current folder."""
    monkeypatch.chdir(tmp_path)
    content = encode(tmp_path / "plain.wav", noise(1.0)).read_bytes()
    try:
        for name in NAMES:
            Path(name).write_bytes(content)
    except (OSError, UnicodeError):
        pytest.skip("the file system has no such names")
    return list(NAMES)


@pytest.fixture
def heard(tiny: FastSLM, monkeypatch: pytest.MonkeyPatch) -> FastSLM:
    """A model that is loaded already and hears the same in every recording."""

    def transcribe(self: FastSLM, source: object, **_: Any) -> Transcript:
        warning = f"{source} has a remark."
        return Transcript(SPOKEN, (Segment(0.0, 1.0, SPOKEN),), "en", 1.0, (warning,), USAGE, {"prompt": SPOKEN})

    def answer(self: FastSLM, source: object, *_: Any, **__: Any) -> Answer:
        return Answer(SPOKEN, (), 1.0, (), USAGE)

    monkeypatch.setattr("fastslm.cli.files.load_quietly", lambda *_: tiny)
    monkeypatch.setattr(FastSLM, "transcribe", transcribe)
    for task in ("translate", "summarize", "ask"):
        monkeypatch.setattr(FastSLM, task, answer)
    return tiny


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("task", [["transcribe"], ["summarize"], ["ask", "--question", "Who?"]], ids=lambda t: t[0])
def test_all_files_are_done_and_json_names_each_exactly(
    shell: Shell, recordings: list[str], heard: FastSLM, task: list[str], encoding: str
) -> None:
    status, out, err = shell(encoding, task[0], *recordings, *task[1:], "--json")
    assert status == 0, err
    results = [json.loads(line) for line in out.splitlines()]
    assert [result["file"] for result in results] == recordings
    assert {result["text"] for result in results} == {SPOKEN}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("task", [["transcribe"], ["translate"], ["ask", "--question", "Who?"]], ids=lambda t: t[0])
def test_text_has_a_heading_on_one_line_for_each_file_and_stands_for_what_is_not_there(
    shell: Shell, recordings: list[str], heard: FastSLM, task: list[str], encoding: str
) -> None:
    status, out, _ = shell(encoding, task[0], *recordings, *task[1:])
    assert status == 0
    lines = out.split("\n")
    headings = [line for line in lines if line.startswith("==> ")]
    assert len(headings) == len(recordings)
    assert all(line.endswith(".wav <==") for line in headings)
    texts = [line for line in lines if " sagte: " in line]
    assert len(texts) == len(recordings)
    shown = "".join(c for c in SPOKEN if c.encode(encoding, "ignore"))
    assert texts[0].replace("?", "").replace("\ufffd", "") == shown


def test_characters_that_the_stream_has_are_written_as_they_are(
    shell: Shell, recordings: list[str], heard: FastSLM, tiny_checkpoint: Path
) -> None:
    assert '"file": "été.wav"' in shell("cp1252", "plan", "été.wav", "--json", "--model", tiny_checkpoint)[1]
    assert '"file": "会议😀.wav"' in shell("utf-8", "transcribe", "会议😀.wav", "--json")[1]
    assert "==> 会议😀.wav <==" in shell("utf-8", "transcribe", "会议😀.wav", "été.wav")[1]
    assert "==> 会议?.wav <==" in shell("gbk", "transcribe", "会议😀.wav", "été.wav")[1]


@pytest.mark.parametrize("form", ["text", "json", "srt", "vtt"])
@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_output_files_are_utf8_whatever_the_stream_is(
    shell: Shell, recordings: list[str], heard: FastSLM, form: str, encoding: str
) -> None:
    status, _, err = shell(encoding, "transcribe", *recordings, "--format", form, "--output-dir", "out\udcff")
    assert status == 0, err
    written = {file.stem: file.read_bytes().decode("utf-8") for file in Path("out\udcff").iterdir()}
    assert sorted(written) == sorted(Path(name).stem for name in recordings)
    for stem, content in written.items():
        if form == "json":
            assert json.loads(content)["file"] == f"{stem}.wav"
            assert json.loads(content)["text"] == SPOKEN
        else:
            assert "Zoë sagte: “会议”" in content
    assert shell(encoding, "transcribe", recordings[0], "--format", form)[0] == 0


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_a_plan_names_every_file(shell: Shell, recordings: list[str], tiny_checkpoint: Path, encoding: str) -> None:
    status, out, _ = shell(encoding, "plan", *recordings, "--json", "--model", tiny_checkpoint)
    assert status == 0
    assert [json.loads(line)["file"] for line in out.splitlines()] == recordings
    status, out, _ = shell(encoding, "plan", *recordings, "--model", tiny_checkpoint)
    assert status == 0
    assert out.count("==> ") == out.count(".wav <==\n") == len(recordings)


@pytest.mark.parametrize("encoding", ["cp1252", "utf-8"])
def test_memories_of_any_name_are_written_and_read_again(
    shell: Shell, recordings: list[str], tiny: FastSLM, monkeypatch, encoding: str
) -> None:
    monkeypatch.setattr("fastslm.cli.files.load_quietly", lambda *_: tiny)
    status, _, err = shell(encoding, "encode", *recordings[:4])
    assert status == 0, err
    memories = [f"{Path(name).stem}.fslm" for name in recordings[:4]]
    assert [SpeechMemory.load(memory).facts.name for memory in memories] == recordings[:4]
    status, out, err = shell(encoding, "transcribe", *memories, "--json")
    assert status == 0, err
    assert [json.loads(line)["file"] for line in out.splitlines()] == memories
    asked = ["ask", memories[2], memories[3], "Who?", "--together", "--json", "--max-new-tokens", 1]
    status, out, err = shell(encoding, *asked)
    assert status == 0, err
    assert json.loads(out)["files"] == memories[2:]
    kept = ["--prefix-file", "kept\udcff"]
    for cached in (False, True):
        tiny.answerer.prefixes.clear()
        status, out, err = shell(encoding, "ask", memories[2], "Who?", "--json", "--max-new-tokens", 1, *kept)
        assert status == 0, err
        assert (json.loads(out)["usage"]["cached_tokens"] > 0) == cached


@pytest.mark.parametrize("encoding", ["cp1252", "utf-8"])
def test_a_model_in_a_folder_of_any_name_is_loaded(
    shell: Shell, recordings: list[str], tiny_checkpoint: Path, encoding: str
) -> None:
    os.symlink(tiny_checkpoint, "模型\udcff")
    status, out, err = shell(encoding, "transcribe", "été.wav", "--json", "--model", "模型\udcff")
    assert status == 0, err
    assert json.loads(out)["model"] == "模型\udcff"


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_an_evaluation_prints_and_keeps_names_and_texts(
    shell: Shell, recordings: list[str], monkeypatch, encoding: str
) -> None:
    rows = [{"id": name, "audio": name, "duration": 1.0, "text": SPOKEN} for name in recordings]
    Path("试\udcff.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("fastslm.cli.evaluate._system", lambda *_: Rote(*[SPOKEN] * len(rows)))
    command = ["evaluate", "asr", "--manifest", "试\udcff.jsonl", "--predictions", "预\udcff.jsonl"]
    status, out, err = shell(encoding, *command, "--json")
    assert status == 0, err
    assert json.loads(out)["manifest"] == "试\udcff.jsonl"
    kept = [json.loads(line) for line in Path("预\udcff.jsonl").read_bytes().decode("utf-8").splitlines()]
    assert [row["id"] for row in kept[1:]] == recordings
    assert shell(encoding, "evaluate", "rescore", "预\udcff.jsonl")[0] == 0
    status, out, _ = shell(encoding, "data", "validate", "试\udcff.jsonl", "--json")
    assert (status, json.loads(out)[0]["manifest"]) == (0, "试\udcff.jsonl")
    status, out, err = shell(encoding, "data", "mix", "混\udcff.jsonl", "试\udcff.jsonl=1", "--json")
    assert status == 0, err
    assert shell(encoding, "data", "synthesize", "混\udcff.jsonl", "做\udcff.jsonl")[0] == 0


def test_half_a_character_in_a_manifests_text_is_a_sentence(shell: Shell, recordings: list[str]) -> None:
    row = {"id": "1", "audio": recordings[0], "duration": 1.0, "text": "half \ud83d"}
    Path("a.jsonl").write_text(json.dumps(row) + "\n")
    status, _, err = shell("utf-8", "data", "validate", "a.jsonl")
    assert status == 2
    assert "a.jsonl, line 1: text holds half a character" in err


ODD = "没有\udcff\n😀"
AT_FAULT = [
    ["transcribe", ODD],
    ["encode", ODD],
    ["plan", ODD],
    ["ask", ODD, "Who?"],
    ["ask", "été.wav", f"Who {ODD}?"],
    ["transcribe", "été.wav", "--prompt", ODD],
    ["plan", "été.wav", "--model", ODD],
    ["transcribe", "été.wav", "--language", ODD],
    ["transcribe", "été.wav", "--output-dir", f"été.wav/{ODD}"],
    ["transcribe", "été.wav", f"--{ODD}"],
    ["translate", "été.wav", "--to", ODD],
    ["evaluate", "asr", "--manifest", ODD],
    ["evaluate", "rescore", ODD],
    ["data", "validate", ODD],
    ["weights", "path", ODD],
    ["train", ODD],
    ["verify-parity", ODD],
    ["import-authors", ODD, "out"],
    [ODD],
]


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
@pytest.mark.parametrize("command", AT_FAULT, ids=lambda command: ascii(" ".join(command[:2])))
def test_what_is_at_fault_is_one_line_whatever_it_is_called(
    shell: Shell, recordings: list[str], heard: FastSLM, command: list[str], encoding: str
) -> None:
    status, out, err = shell(encoding, *command)
    assert (status, out) == (2, "")
    assert err.startswith("fastslm: ")
    assert len(err.splitlines()) == 1


def test_a_missing_file_does_not_cost_those_with_odd_names(shell: Shell, recordings: list[str], heard: FastSLM) -> None:
    status, out, err = shell("cp1252", "transcribe", ODD, *recordings, "--json")
    assert status == 2
    assert [json.loads(line)["file"] for line in out.splitlines()] == recordings
    assert err.startswith("fastslm: \\u6ca1\\u6709\\udcff \\U0001f600 does not exist")


def test_progress_shows_a_name_on_one_line(shell: Shell, recordings: list[str], heard: FastSLM, monkeypatch) -> None:
    monkeypatch.setattr("fastslm.cli.files.LINE_SECONDS", 0)

    def transcribe(self: FastSLM, source: object, **options: Any) -> Transcript:
        from fastslm.longform.results import Progress

        options["on_progress"](Progress(1.0, 2.0))
        return Transcript(SPOKEN, (), "en", 1.0, (), USAGE)

    monkeypatch.setattr(FastSLM, "transcribe", transcribe)
    for encoding in ("cp1252", "utf-8"):
        status, _, err = shell(encoding, "transcribe", *recordings)
        assert status == 0
        assert [line.partition(".wav: ")[2] for line in err.splitlines()] == ["0:01 heard"] * len(recordings)


@pytest.mark.parametrize("command", [["--help"], ["transcribe", "--help"]], ids=len)
def test_help_is_printed_on_any_stream(command: list[str]) -> None:
    settings = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run([sys.executable, "-m", "fastslm", *command], env=settings, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"Usage: fastslm" in done.stdout


@pytest.mark.parametrize(
    "settings",
    [
        {"PYTHONIOENCODING": "cp1252"},
        {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=["cp1252", "C without UTF-8"],
)
def test_the_locale_changes_no_name_in_json(
    recordings: list[str], tiny_checkpoint: Path, settings: dict[str, str]
) -> None:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHONIO"))}
    command = [sys.executable, "-m", "fastslm", "plan", *recordings, "--json", "--model", str(tiny_checkpoint)]
    done = subprocess.run(command, env={**kept, **settings}, capture_output=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode("cp1252" if "PYTHONIOENCODING" in settings else "utf-8").splitlines()
    assert [json.loads(line)["file"] for line in lines] == recordings
