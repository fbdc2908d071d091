"""Questions made from slots."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import orders
import pytest
from hypothesis import given
from hypothesis import strategies as st
from orders import EVALUATED, KINDS, asked_about, evaluated, order_questions

from fastslm.data.manifest import Clip, read_manifest, write_manifest
from fastslm.errors import ManifestError, OptionError
from fastslm.prompts import NOT_MENTIONED

SLOTS = {
    "coffeeDrink": "iced mocha",
    "size": "large",
    "roast": "dark roast",
    "numberOfShots": "double shot",
    "milkAmount": "a lot of skim milk",
    "sugarAmount": "sugar",
}
SOME = st.sets(st.sampled_from(sorted(SLOTS))).map(lambda names: {name: SLOTS[name] for name in names})


@given(SOME)
def test_what_is_said_is_answered_with_its_words_and_all_else_is_not_mentioned(slots: dict[str, str]) -> None:
    questions = order_questions(slots)
    assert [question.kind for question in questions] == list(KINDS)
    assert sorted(q.answer for q in questions if q.mentioned) == sorted(slots.values())
    assert sum(q.answer == NOT_MENTIONED for q in questions) == len(SLOTS) - len(slots)


def test_an_evaluation_asks_the_same_every_time_and_training_never_in_those_words() -> None:
    evaluated = {q.question for q in order_questions(SLOTS)}
    assert evaluated == {q.question for q in order_questions({})}
    trained = {q.question for seed in range(200) for q in order_questions(SLOTS, Random(seed))}
    assert not evaluated & trained
    assert len(trained) == 6 * 6


def test_a_seed_gives_the_same_phrasings() -> None:
    assert order_questions(SLOTS, Random(5)) == order_questions(SLOTS, Random(5))


def test_only_the_kinds_that_are_wanted_are_asked_in_that_order() -> None:
    assert [(q.answer, q.kind) for q in order_questions({"size": "small"}, kinds=["size", "drink"])] == [
        ("small", "size"),
        ("not mentioned", "drink"),
    ]


def test_unknown_kinds_and_slots_are_refused() -> None:
    with pytest.raises(OptionError, match="did you mean 'shots'"):
        order_questions({}, kinds=["shot"])
    with pytest.raises(OptionError, match="no questions for the slot 'city'"):
        order_questions({"city": "Oslo"})


@pytest.fixture
def clips(tmp_path: Path) -> Callable[..., list[Clip]]:
    """Makes clips of rows; their audio is one file that nobody decodes."""
    (tmp_path / "a.wav").write_bytes(b"x")

    def make(*rows: dict[str, Any]) -> list[Clip]:
        lines = ({"id": f"c{i}", "audio": "a.wav", "duration": 20.0} | row for i, row in enumerate(rows))
        write_manifest(tmp_path / "m.jsonl", lines)
        return read_manifest(tmp_path / "m.jsonl")

    return make


def test_an_order_is_asked_about_in_all_kinds_beside_what_else_is_said(clips: Any, tmp_path: Path) -> None:
    text = " ".join(f"word{i}" for i in range(20))
    rows = asked_about(clips({"slots": {"coffeeDrink": "latte", "size": "large"}}, {"text": text}), tmp_path, 0)
    answers = {row["kind"]: row["answer"] for row in rows if row["of"] == "c0"}
    assert answers == dict.fromkeys(KINDS, NOT_MENTIONED) | {"drink": "latte", "size": "large"}
    assert {row["kind"] for row in rows if row["of"] == "c1"} <= {"continuation", "half minute"}
    assert any(row["of"] == "c1" for row in rows)


def test_an_order_that_nobody_gives_is_not_mentioned(clips: Any, tmp_path: Path) -> None:
    rows = (
        {"text": "he went home"},
        {"text": "A Cup of tea"},
        {"text": "they ordered a retreat"},
        {"text": "a latte please", "slots": {"coffeeDrink": "latte"}},
        {"text": None, "label": "rain"},
    )
    without = asked_about(clips(*rows), tmp_path, 0)
    found = asked_about(clips(*rows), tmp_path, 0, unsaid=len(KINDS))
    added = [row for row in found if row not in without]
    assert len(found) == len(without) + len(KINDS)
    assert {(row["of"], row["answer"], row["label_kind"]) for row in added} == {("c0", NOT_MENTIONED, "synthetic")}
    assert {row["kind"] for row in added} == set(KINDS)
    with pytest.raises(OptionError, match=r"7 questions .*: ask for 0 to 6"):
        asked_about(clips(*rows), tmp_path, 0, unsaid=7)


def test_an_order_among_other_speech_is_asked_about_and_its_windows_are_told(clips: Any, tmp_path: Path) -> None:
    segments: list[dict[str, Any]] = [
        {"start": 15.0 * i + 1, "end": 15.0 * i + 14, "id": f"p{i}", "audio": "a.wav"} for i in range(10)
    ]
    segments[3]["slots"] = {"size": "large"}
    row = {"audio": None, "duration": 150.0, "segments": segments, "slots": {"size": "large"}}
    told = {r["kind"]: r.get("windows") for r in asked_about(clips(row), tmp_path, 0)}
    assert told.pop("size") == [1]
    assert set(told.values()) == {None}


def test_an_evaluation_is_a_manifest_of_fixed_questions(clips: Any, tmp_path: Path) -> None:
    made = evaluated(clips({"slots": {"size": "large"}}, {"text": "no order"}), tmp_path)
    assert [(row["kind"], row["answer"]) for row in made] == [
        (kind, "large" if kind == "size" else NOT_MENTIONED) for kind in EVALUATED
    ]
    write_manifest(tmp_path / "asked.jsonl", made)
    assert {clip.task for clip in read_manifest(tmp_path / "asked.jsonl")} == {"ask"}
    with pytest.raises(ManifestError, match="No clip has slots"):
        evaluated(clips({"text": "no order"}), tmp_path)
    with pytest.raises(ManifestError, match=r"line 1: c0: slots: There are no questions for the slot 'tea'"):
        evaluated(clips({"slots": {"tea": "green"}}), tmp_path)


def test_the_command_writes_the_rows(clips: Any, tmp_path: Path) -> None:
    clips({"slots": {"size": "large"}})
    command = [sys.executable, orders.__file__, tmp_path / "m.jsonl", tmp_path / "out.jsonl", "--evaluation"]
    done = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True)
    assert done.stdout == f"{tmp_path / 'out.jsonl'}: 4 rows\n"
    assert len(read_manifest(tmp_path / "out.jsonl")) == 4
