"""Parts of recordings on the command line: a track, a start, a duration."""

import json
from pathlib import Path

import pytest
from timed_sound import timed
from tiny_fastslm import noise

from fastslm.cli import run
from fastslm.longform.memory import SpeechMemory


@pytest.fixture
def fastslm(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]):
    """`fastslm(arguments)` → exit status, standard output, standard error without what runs where."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = run([*map(str, arguments), "--model", str(tiny_checkpoint)])
        out, err = capsys.readouterr()
        return status, out, "".join(line for line in err.splitlines(keepends=True) if " runs on " not in line)

    return call


@pytest.fixture
def talk(tmp_path: Path, encode) -> Path:
    return encode(tmp_path / "talk.wav", noise(70))


@pytest.mark.fault
def test_a_part_is_read_alone_and_its_times_are_those_of_the_file(fastslm, talk: Path, tmp_path: Path, encode) -> None:
    status, out, _ = fastslm("transcribe", talk, "--json", "--start", "0:32", "--duration", 31)
    result = json.loads(out)
    assert status == 0
    assert (result["start"], result["duration"], result["usage"]["windows"]) == (32, 31, 2)
    assert [(segment["start"], segment["end"]) for segment in result["segments"]] == [(32, 62), (62, 63)]
    alone = encode(tmp_path / "alone.wav", noise(70)[32 * 16_000 : 63 * 16_000])
    expected = json.loads(fastslm("transcribe", alone, "--json")[1])
    assert result["text"] == expected["text"]
    for own, other in zip(result["segments"], expected["segments"], strict=True):
        for word, same in zip(own["words"], other["words"], strict=True):
            assert word["start"] == pytest.approx(same["start"] + 32, abs=0.01)


@pytest.mark.fault
def test_cues_of_a_part_lie_where_the_player_plays_them(fastslm, talk: Path) -> None:
    status, out, _ = fastslm("transcribe", talk, "--format", "srt", "--start", 3600 // 60, "--reader", "ctc")
    assert status == 0
    times = [line for line in out.splitlines() if " --> " in line]
    assert times
    assert all("00:01:00,000" <= line[:12] <= line[17:] <= "00:01:10,500" for line in times)


@pytest.mark.fault
def test_a_memory_of_a_part_keeps_the_clock_of_the_file_for_whatever_is_asked_of_it(
    fastslm, talk: Path, tmp_path: Path
) -> None:
    status, out, _ = fastslm("encode", talk, "--start", 35, "--output-dir", tmp_path / "out", "--json")
    assert status == 0
    assert json.loads(out)["start"] == 35
    memory = SpeechMemory.load(tmp_path / "out" / "talk.fslm")
    assert memory.times.tolist() == [[35, 65], [65, 70]]
    for task in (["transcribe"], ["ask", "--question", "Who?", "--max-new-tokens", 2]):
        result = json.loads(fastslm(*task, tmp_path / "out" / "talk.fslm", "--json")[1])
        spans = result["segments"] if task == ["transcribe"] else result["spans"]
        assert (spans[0]["start"], spans[-1]["end"]) == (35, 70)
        assert result["duration"] == 35
    direct = json.loads(fastslm("summarize", talk, "--start", 35, "--max-new-tokens", 2, "--json")[1])
    assert (direct["spans"][0]["start"], direct["spans"][-1]["end"]) == (35, 70)


@pytest.mark.fault
def test_another_track_is_another_transcript(fastslm, tmp_path: Path) -> None:
    file = tmp_path / "film.mkv"
    file.write_bytes(timed("matroska", 44_100, "aac", tracks=("eng", "fra"), frequencies=(300.0, 3000.0)))
    first, second = (json.loads(fastslm("transcribe", file, "--json", "--track", n)[1]) for n in (1, 2))
    assert first["segments"] != second["segments"]
    assert first["warnings"] == second["warnings"] == []
    status, _, err = fastslm("transcribe", file)
    assert status == 0
    assert "has 2 audio tracks, of which 1 (eng, aac, mono) was read: choose another one with --track" in err


@pytest.mark.fault
@pytest.mark.parametrize("task", ["transcribe", "encode", "summarize"])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--track", 2], "has no audio track 2, its tracks are 1 (pcm_s16le, mono): choose one of them"),
        (["--track", 0], "a number from 1 on is allowed"),
        (["--start", 70.5], "ends at 70.0 s, and what is asked for starts at 70.5 s: give an earlier start"),
        (["--start", "1:00:00"], "give an earlier start"),
        (["--start", "-1"], "The start is '-1', seconds or H:MM:SS from 0 on are allowed"),
        (["--duration", "-5"], "The duration is '-5', seconds or H:MM:SS from 0 on are allowed"),
        (["--duration", "0"], "The duration is 0"),
        (["--duration", "a minute"], "give it as 90, 1:30 or 0:01:30"),
    ],
)
def test_a_part_that_cannot_be_is_one_sentence_and_nothing_is_written(
    fastslm, talk: Path, tmp_path: Path, task: str, options: list[object], words: str
) -> None:
    status, out, err = fastslm(task, talk, "--output-dir", tmp_path / "out", *options)
    assert (status, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_a_memory_has_no_parts(fastslm, talk: Path, tmp_path: Path) -> None:
    assert fastslm("encode", talk, "--output-dir", tmp_path)[0] == 0
    for task in ("transcribe", "plan", "summarize"):
        status, out, err = fastslm(task, tmp_path / "talk.fslm", "--start", 3)
        assert (status, out) == (2, "")
        assert "a speech memory: leave it out, or give the recording" in err
