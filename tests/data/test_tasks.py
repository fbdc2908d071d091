"""Instruction rows: the answer is in the recording, or it is said not to be; labels say where they are from."""

import json
from pathlib import Path
from typing import Any

import pytest

from fastslm.data.conversion import manifest_to_cuts, write_cuts
from fastslm.data.cuts import read_rows, read_sounds
from fastslm.data.manifest import Clip, read_manifest, write_manifest
from fastslm.data.spoken import window_texts
from fastslm.data.tasks import (
    CONTINUATION,
    HALF_MINUTE,
    KEYWORDS,
    SUMMARIZE,
    TRANSCRIBE,
    TRANSLATE,
    ordinal,
    synthesize,
    synthesize_cuts,
    tally,
    task_row,
)
from fastslm.errors import ManifestError, OptionError
from fastslm.prompts import NOT_MENTIONED, TASKS

COLOURS = ["red", "orange", "yellow", "green", "blue", "indigo", "violet", "black", "white", "grey", "brown", "pink"]


@pytest.fixture
def clips(tmp_path: Path):
    """Makes clips of rows; their audio is one file that nobody decodes."""
    (tmp_path / "a.wav").write_bytes(b"x")

    def make(*rows: dict[str, Any]) -> list[Clip]:
        write_manifest(
            tmp_path / "m.jsonl",
            ({"id": f"c{i}", "audio": "a.wav", "duration": 20.0} | row for i, row in enumerate(rows)),
        )
        return read_manifest(tmp_path / "m.jsonl")

    return make


def story(number: int, words: int = 60) -> str:
    """A text of words that are in no other."""
    return " ".join(f"{COLOURS[i % 12]}{number}x{i}" for i in range(words))


def test_rows_of_the_callers_own_come_first_and_are_rows_like_the_others(clips: Any, tmp_path: Path) -> None:
    rows = synthesize(
        clips({"text": "hi"}, {"text": "ho"}),
        tmp_path,
        ["transcribe", "ask"],
        ask=lambda clip, rng: [task_row("ask", "Who?", clip.text or "", "human", kind="who")] * int(clip.id == "c1"),
    )
    assert [(row["id"], row["task"], row["answer"]) for row in rows] == [
        ("c0/0", "transcribe", "hi"),
        ("c1/0", "transcribe", "ho"),
        ("c1/1", "ask", "ho"),
    ]


def test_rows_of_each_task_say_whose_answer_it_is(clips: Any, tmp_path: Path) -> None:
    rows = synthesize(
        clips(
            {"text": "hello there"},
            {"text": None, "label": "rain"},
            {"text": "hallo", "translation": " hello ", "target_language": "English", "label_kind": "pseudo"},
            {"text": "long talk", "summary": "A talk."},
        ),
        tmp_path,
    )
    assert [(row["of"], row["task"], row["answer"], row["label_kind"]) for row in rows if row["task"] != "ask"] == [
        ("c0", "transcribe", "hello there", "human"),
        ("c1", "transcribe", "", "human"),
        ("c2", "transcribe", "hallo", "pseudo"),
        ("c2", "translate", "hello", "pseudo"),
        ("c3", "transcribe", "long talk", "human"),
        ("c3", "summarize", "A talk.", "human"),
    ]
    assert next(row for row in rows if row["task"] == "translate")["target_language"] == "en"
    assert tally(rows)["transcribe"] == {"human": 3, "pseudo": 1}
    assert len({row["id"] for row in rows}) == len(rows)


def test_rows_are_a_manifest_again(clips: Any, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    rows = synthesize(clips({"text": story(0), "accent": "welsh"}, {"text": story(1)}), tmp_path / "deep")
    write_manifest(tmp_path / "deep" / "i.jsonl", rows)
    for clip in read_manifest(tmp_path / "deep" / "i.jsonl"):
        clip.check_audio()
        assert clip.instruction
    assert rows[0]["accent"] == "welsh"


def test_every_phrasing_is_used_and_the_default_of_the_prompts_is_one(clips: Any, tmp_path: Path) -> None:
    texts = clips(
        *({"text": "hi", "translation": "salut", "target_language": "fr", "summary": "Hi."} for _ in range(200))
    )
    rows = synthesize(texts, tmp_path, ["transcribe", "translate", "summarize"])
    used = {task: {row["instruction"] for row in rows if row["task"] == task} for task in TASKS}
    assert used["transcribe"] == set(TRANSCRIBE)
    assert used["translate"] == {phrasing.format(language="French") for phrasing in TRANSLATE}
    assert used["summarize"] == set(SUMMARIZE)
    assert TASKS["transcribe"].phrasing in TRANSCRIBE
    assert TASKS["translate"].phrasing in TRANSLATE
    assert TASKS["summarize"].phrasing in SUMMARIZE


def quoted(row: dict[str, Any]) -> str:
    return row["instruction"].split('"')[1].removesuffix(" …")


def test_a_continuation_is_what_follows_in_the_text_and_an_absent_one_is_in_no_part_of_it(
    clips: Any, tmp_path: Path
) -> None:
    texts = [story(i) for i in range(20)]
    rows = synthesize(clips(*({"text": text} for text in texts)), tmp_path, ["ask"], questions=4)
    there = [row for row in rows if row["answer"] != NOT_MENTIONED]
    absent = [row for row in rows if row["answer"] == NOT_MENTIONED]
    assert len(there) == len(absent) == 40
    for row in there:
        assert f"{quoted(row)} {row['answer']}" in row["text"]
    for row in absent:
        assert quoted(row) not in row["text"]
        assert any(quoted(row) in text for text in texts), "words that somebody says, elsewhere"
    assert {row["label_kind"] for row in rows} == {"synthetic"}


def test_a_phrase_that_occurs_twice_is_not_asked_about(clips: Any, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="has what there is to ask"):
        synthesize(clips({"text": " ".join(COLOURS[:6] * 6)}), tmp_path, ["ask"])


def composed(number: int) -> dict[str, Any]:
    """A row of 150 s: a segment of its own words every 15 s."""
    segments = [
        {
            "start": 15.0 * i + 1,
            "end": 15.0 * i + 14,
            "text": story(100 * number + i, 20),
            "id": f"p{i}",
            "audio": "a.wav",
        }
        for i in range(10)
    ]
    text = " ".join(segment["text"] for segment in segments)
    return {"audio": None, "duration": 150.0, "segments": segments, "text": text}


def test_which_half_minute_a_phrase_is_in_is_where_its_segment_is(clips: Any, tmp_path: Path) -> None:
    rows = synthesize(clips(*(composed(i) for i in range(12))), tmp_path, ["ask"], questions=4)
    kinds = {row["kind"] for row in rows}
    assert kinds == {"half minute", "continuation"}
    for row in rows:
        if row["answer"] == NOT_MENTIONED:
            assert "windows" not in row
            continue
        (window,) = row["windows"]
        (segment,) = [s for s in row["segments"] if quoted(row) in s["text"]]
        assert int(segment["start"] // 30) == window
        if row["kind"] == "half minute":
            assert row["answer"] == ordinal(window)


def test_what_is_asked_about_is_among_the_words_of_the_window_that_is_told(clips: Any, tmp_path: Path) -> None:
    write_manifest(tmp_path / "rows.jsonl", synthesize(clips(*(composed(i) for i in range(6))), tmp_path, ["ask"]))
    asked = [row for row in read_manifest(tmp_path / "rows.jsonl") if "windows" in (row.model_extra or {})]
    assert asked
    for row in asked:
        (window,) = (row.model_extra or {})["windows"]
        texts = window_texts(row)
        assert len(texts) == 5
        phrase = (row.instruction or "").split('"')[1].removesuffix(" …")
        assert [phrase in text for text in texts] == [index == window for index in range(5)]


def test_long_text_is_summed_up_or_its_key_words_listed(clips: Any, tmp_path: Path) -> None:
    rows = synthesize(clips(*(composed(i) for i in range(40))), tmp_path, ["summarize"])
    by_kind = {kind: [row for row in rows if row["kind"] == kind] for kind in ("extract", "keywords")}
    assert len(by_kind["extract"]) + len(by_kind["keywords"]) == 40
    assert min(len(of) for of in by_kind.values()) >= 3
    for row in by_kind["extract"]:
        assert row["instruction"] in SUMMARIZE
        assert row["answer"].startswith(row["segments"][0]["text"])
        assert len(row["answer"].split()) <= 60
    for row in by_kind["keywords"]:
        assert row["instruction"] in KEYWORDS
        assert all(word in row["text"] for word in row["answer"].split(", "))
    assert {row["label_kind"] for row in rows} == {"synthetic"}


def test_nobody_speaks_in_a_labelled_sound_whatever_is_asked(clips: Any, tmp_path: Path) -> None:
    rows = synthesize(clips({"text": None, "label": "rain"}, {"text": story(0)}), tmp_path, ["transcribe", "ask"])
    of_rain = [(row["task"], row["answer"]) for row in rows if row["of"] == "c0"]
    assert of_rain == [("transcribe", ""), ("ask", NOT_MENTIONED)]


def test_a_clips_rows_depend_on_the_seed_and_on_no_other_task(clips: Any, tmp_path: Path) -> None:
    texts = clips(*({"text": story(i)} for i in range(8)))

    def transcripts(seed: int, *tasks: str) -> str:
        rows = synthesize(texts, tmp_path, tasks, seed)
        return json.dumps([(row["of"], row["instruction"]) for row in rows if row["task"] == "transcribe"])

    assert transcripts(1, "transcribe") == transcripts(1, "ask", "transcribe")
    assert transcripts(1, "transcribe") != transcripts(2, "transcribe")


def test_what_cannot_be_made_is_one_sentence(clips: Any, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="did you mean 'transcribe'"):
        synthesize(clips({"text": "hi"}), tmp_path, ["transcrib"])
    with pytest.raises(ManifestError, match=r"m\.jsonl, line 1: c0: neither it nor any other clip"):
        synthesize(clips({"text": "hi"}), tmp_path, ["translate"])
    with pytest.raises(ManifestError, match=r"line 1: c0: its translation has no target_language"):
        synthesize(clips({"text": "hi", "translation": "salut"}), tmp_path)
    with pytest.raises(ManifestError, match=r"line 1: c0: target_language: There is no language"):
        synthesize(clips({"text": "hi", "translation": "salut", "target_language": "frnch"}), tmp_path)
    with pytest.raises(OptionError, match="-1 questions a clip"):
        synthesize(clips({"text": "hi"}), tmp_path, questions=-1)


def test_ordinals_are_english() -> None:
    assert [ordinal(i) for i in (0, 9, 10, 11, 12, 20, 21, 22, 110)] == [
        "the first",
        "the tenth",
        "the 11th",
        "the 12th",
        "the 13th",
        "the 21st",
        "the 22nd",
        "the 23rd",
        "the 111th",
    ]


def test_phrasings_hold_what_is_filled_in_and_differ() -> None:
    for phrasings, placeholder in ((TRANSLATE, "{language}"), (CONTINUATION, "{words}"), (HALF_MINUTE, "{words}")):
        assert all(phrasing.count(placeholder) == 1 for phrasing in phrasings)
    for phrasings in (TRANSCRIBE, TRANSLATE, SUMMARIZE, KEYWORDS, CONTINUATION, HALF_MINUTE):
        assert len(set(phrasings)) == len(phrasings) >= 3


def test_cuts_are_given_the_tasks_that_their_clips_are_given(make_manifest: Any, tmp_path: Path) -> None:
    manifest = make_manifest([14.0, 45.0, 2.0], translation="salut", target_language="fr", accent="welsh")
    manifest_to_cuts(manifest, tmp_path / "cuts.jsonl")
    wanted = synthesize(read_manifest(manifest), tmp_path, seed=4)
    write_cuts(tmp_path / "tasks.jsonl", synthesize_cuts(read_sounds(tmp_path / "cuts.jsonl"), seed=4))
    found = {row.id: row for row in read_rows(tmp_path / "tasks.jsonl").epoch([0, 0], 0)}
    assert len(found) == len(wanted)
    for row in wanted:
        own = found[row["id"]]
        assert (own.task, own.instruction, own.answer) == (row["task"], row["instruction"], row["answer"])
        assert own.language == ("fr" if row["task"] == "translate" else "en")
    assert {len(list(found[f"m{i}/0"].waveforms())) for i in (0, 2)} == {1}
    assert '"accent": "welsh"' in (tmp_path / "tasks.jsonl").read_text()
