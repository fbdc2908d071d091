"""The log, the line and the plot of a run."""

import json
from pathlib import Path
from typing import Any

import pytest

from fastslm.errors import TrainingError
from fastslm.training import log as log_module
from fastslm.training.log import RunLog, StepLine, draw_curves, format_seconds


def row(step: int, kind: str = "step") -> dict[str, Any]:
    return {"kind": kind, "step": step, "seconds": step * 1.5, "speech_lm": 1.0, "wer": 0.5}


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0:00"),
        (0.4, "0:00"),
        (59.6, "1:00"),
        (75, "1:15"),
        (3599.7, "1:00:00"),
        (3675, "1:01:15"),
        (90000, "25:00:00"),
    ],
)
def test_seconds_are_written_as_a_clock(seconds: float, said: str) -> None:
    assert format_seconds(seconds) == said


@pytest.mark.parametrize("torn", ["", '{"kind": "st', '{"kind": "step", "step": 8}', "\x00\x00\x00", "7"])
def test_a_resumed_log_has_each_step_once_whatever_line_a_kill_tore(tmp_path: Path, torn: str) -> None:
    log = RunLog(tmp_path, 0)
    for step in range(1, 8):
        log.write(row(step))
        if step == 4:
            log.write(row(step, "validation"))
    with log.path.open("a") as out:
        out.write(torn)
    again = RunLog(tmp_path, 4)
    for step in range(5, 10):
        again.write(row(step))
    rows = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [r["step"] for r in rows if r["kind"] == "step"] == list(range(1, 10))
    assert [r["step"] for r in rows if r["kind"] == "validation"] == [4]
    assert rows == again.rows()


def test_a_log_on_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 0)
    if not Path("/dev/full").exists():
        pytest.skip("needs a device that is always full")
    log.path.unlink()
    log.path.symlink_to("/dev/full")
    with pytest.raises(TrainingError, match=r"metrics\.jsonl: the log could not be written \(the disk is full\)"):
        log.write(row(1))


def test_the_time_left_counts_steps_not_what_came_before_them(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(log_module.time, "monotonic", lambda: now[0])
    line = StepLine(quiet=True)
    now[0] += 900.0  # loading, right after a resume
    line.show(501, 1000, {})
    assert line.remaining(499) is None
    for step in range(502, 512):
        now[0] += 2.0
        line.show(step, 1000, {})
    assert line.remaining(489) == pytest.approx(978.0)


def test_the_time_left_follows_a_change_of_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(log_module.time, "monotonic", lambda: now[0])
    line = StepLine(quiet=True)
    for seconds in [1.0] * 500 + [4.0] * log_module.RECENT:
        now[0] += seconds
        line.show(1, 2, {})
    assert line.remaining(10) == pytest.approx(40.0)


def test_quiet_says_nothing_and_a_line_holds_what_it_should(capsys: pytest.CaptureFixture[str]) -> None:
    StepLine(quiet=True).say("nothing")
    StepLine(quiet=True).show(1, 1, {"loss": 1.0})
    assert capsys.readouterr().err == ""
    StepLine().show(3, 600, {"loss": 1.2345})
    assert capsys.readouterr().err == "step 3/600  loss 1.23\n"


@pytest.mark.parametrize(
    "rows", [[], [row(1)], [row(1), row(2), row(2, "validation"), {**row(3), "speech_lm": float("nan")}]]
)
def test_curves_are_drawn_from_whatever_there_is(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    draw_curves(rows, tmp_path / "curves.png", "a run")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]
