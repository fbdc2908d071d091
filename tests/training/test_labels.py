"""Styled labels: people's words stay, each in its place, and only their case and marks are what was heard."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastslm.data.manifest import Clip, read_manifest
from fastslm.training.labels import is_styled, label_clips, styled_words, write_labelled

WORD = st.text(alphabet=st.sampled_from("abIT'é한글&—-.,!6"), min_size=1, max_size=4)


def letters(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalnum())


@given(st.lists(WORD, max_size=12), st.lists(WORD, max_size=12))
def test_a_word_is_lent_case_and_marks_only(words: list[str], heard: list[str]) -> None:
    lent = styled_words(words, " ".join(heard))
    assert len(lent) == len(words)
    for word, new in zip(words, lent, strict=True):
        if new is not None:
            assert new in heard
            assert letters(new) == letters(word)
            # What has no letters is only ever itself.
            assert letters(word) or new.lower() == word.lower()
    taken = [new for new in lent if new is not None]
    rest = iter(heard)
    assert all(new in rest for new in taken), "what was heard was taken in another order"


SPOKEN = st.text(alphabet="abcde'", max_size=4).map("a{}".format)


@given(st.lists(SPOKEN, min_size=1, max_size=15), st.randoms())
def test_a_text_that_was_heard_as_it_is_takes_all_of_its_style(words: list[str], random: Any) -> None:
    heard = [random.choice([word, word.capitalize(), word.upper(), f"{word},", f"{word}."]) for word in words]
    assert styled_words(words, " ".join(heard)) == heard


def test_words_that_were_heard_otherwise_stand() -> None:
    words = ["mister", "quilter", "is", "the", "apostle", "—", "don't", "you", "know"]
    lent = styled_words(words, "Mr. Quilter is the Apostle. Don’t, you know?")
    assert lent == [None, "Quilter", "is", "the", "Apostle.", None, "Don’t,", "you", "know?"]


@pytest.mark.parametrize(
    ("text", "styled"),
    [
        ("Hello there", True),
        ("hello there.", True),
        ("hello, there", True),
        ("hello there", False),
        ("HELLO THERE", False),  # LibriSpeech's capitals are no case
        ("안녕 하세요", False),
        ("안녕 하세요.", True),
        ("66", False),
    ],
)
def test_a_text_has_a_style_of_its_own_where_it_has_marks_or_both_cases(text: str, styled: bool) -> None:
    assert is_styled(text) is styled


class Hears:
    """Says what each recording's level stands for, passes over the fifth among others, and counts what it was given."""

    def __init__(self, said: dict[int, str]):
        self.said, self.recordings = said, 0

    def hear(self, waveforms: Iterable[np.ndarray]) -> Iterator[tuple[str, str]]:
        for waveform in waveforms:
            self.recordings += 1
            levels: list[int] = []
            for level in np.round(waveform * 10).astype(int):
                if level and (not levels or levels[-1] != level):
                    levels.append(int(level))
            heard = [level for level in levels if level != 5 or len(levels) == 1]
            yield " ".join(self.said[level] for level in heard), "stop"


@pytest.fixture
def clips(tmp_path: Path, encode: Any) -> list[Clip]:
    """Recordings whose level, in tenths, tells them apart."""
    rows = [
        ("plain", 1, "the house is red", None),
        ("styled", 2, "Where is it?", "pseudo"),
        ("unknown", 3, None, None),
        ("silent", 4, None, None),
        ("passed-over", 5, "NOBODY HEARD THIS TODAY", None),
        ("machine", 6, "say it again", "synthetic"),
    ]
    lines = []
    for name, level, text, kind in rows:
        encode(tmp_path / f"{name}.wav", np.full(32_000, level / 10, np.float32))
        row = {"id": name, "audio": f"{name}.wav", "duration": 2.0, "text": text, "label_kind": kind, "accent": "x"}
        lines.append(json.dumps({key: value for key, value in row.items() if value is not None}))
    (tmp_path / "clips.jsonl").write_text("\n".join(lines) + "\n")
    return read_manifest(tmp_path / "clips.jsonl")


def test_every_clip_gets_the_words_that_are_known_in_the_style_that_was_heard(
    clips: list[Clip], tmp_path: Path
) -> None:
    listener = Hears({1: "The house is red.", 3: "Good morning!", 4: "", 5: "Something else, heard this.", 6: "Say it"})
    counts: list[int] = []
    labels = label_clips(clips, listener, counts.append)
    assert labels == {
        "plain": ("The house is red.", "human"),
        "styled": ("Where is it?", "pseudo"),
        "unknown": ("Good morning!", "pseudo"),
        "silent": ("", "pseudo"),
        "passed-over": ("nobody heard this. today", "human"),
        "machine": ("Say it again", "synthetic"),
    }
    # Those with plain words together in one window, what was passed over there once more alone, and two unknown.
    assert listener.recordings == 4
    assert counts == sorted(counts)
    assert counts[-1] == len(clips)

    (tmp_path / "out").mkdir()
    assert write_labelled(clips, labels, tmp_path / "out" / "labelled.jsonl") == 5
    written = {clip.id: clip for clip in read_manifest(tmp_path / "out" / "labelled.jsonl")}
    assert {name: (clip.text, clip.label_kind) for name, clip in written.items()} == {
        name: label for name, label in labels.items() if name != "silent"
    }
    for clip in clips:
        if clip.id in written:
            assert written[clip.id].audio_file().samefile(clip.audio_file())
            assert (written[clip.id].model_extra or {})["accent"] == "x"


def test_clips_that_all_have_a_style_are_not_heard(clips: list[Clip]) -> None:
    listener = Hears({})
    assert label_clips(clips[1:2], listener) == {"styled": ("Where is it?", "pseudo")}
    assert listener.recordings == 0
