"""The words of a long recording, window by window: none lost, none twice, each where it is said."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fastslm.data.manifest import Clip
from fastslm.data.spoken import clip_windows, window_texts

WORDS = st.lists(st.sampled_from(["a", "to", "sea", "house", "extraordinary"]), max_size=30).map(" ".join)


def clip(duration: float, **more: Any) -> Clip:
    return Clip.model_validate({"id": "x", "audio": "none", "duration": duration, **more})


@st.composite
def compositions(draw: st.DrawFn) -> Clip:
    at, segments = 0.0, []
    for text in draw(st.lists(WORDS, min_size=1, max_size=12)):
        start = at + draw(st.floats(0, 5))
        at = start + draw(st.floats(0.1, 40))
        segments.append({"start": start, "end": at, "text": text})
    text = " ".join(segment["text"] for segment in segments if segment["text"])
    return clip(at + draw(st.floats(0, 70)), segments=segments, text=text)


@given(compositions())
def test_the_windows_words_one_after_another_are_the_words_of_the_whole(long: Clip) -> None:
    texts = window_texts(long)
    assert len(texts) == clip_windows(long)
    assert " ".join(texts).split() == (long.text or "").split()


def test_a_segment_that_lies_in_one_window_is_said_there_and_nowhere_else() -> None:
    segments = [
        {"start": 0.0, "end": 29.9, "text": "the first"},
        {"start": 61.0, "end": 89.0, "text": "the third"},
        {"start": 90.0, "end": 95.0, "text": None, "label": "rain"},
    ]
    assert window_texts(clip(95.0, segments=segments)) == ["the first", "", "the third", ""]


def test_a_segment_over_an_edge_is_parted_by_how_long_its_words_are() -> None:
    # Sixteen letters and spaces in 8 s: "extraordinary" is said until 31 s, its middle is at 27.5 s.
    segments = [{"start": 24.0, "end": 32.0, "text": "extraordinary a"}]
    assert window_texts(clip(40.0, segments=segments)) == ["extraordinary", "a"]


def test_without_segments_words_are_spread_over_the_whole_and_a_short_text_stays_as_it_is() -> None:
    assert window_texts(clip(60.0, text="one two six ten")) == ["one two", "six ten"]
    assert window_texts(clip(30.0, text=" as  it is ")) == [" as  it is "]
    assert window_texts(clip(61.0)) == ["", "", ""]
