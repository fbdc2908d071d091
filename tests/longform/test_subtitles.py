"""SRT and WebVTT."""

import re
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from fastslm.longform.results import Segment, Transcript, Usage, Word
from fastslm.longform.subtitles import CUE_SECONDS, LINE_CHARACTERS, LINES, cues, write_srt, write_vtt

USAGE = Usage(1, 50, 0, 30.0, 30.0, 1.0, 0.03, "ctc", "window")
LETTERS = st.text("abcdefghij'", min_size=1, max_size=12)


def _transcript(*segments: Segment) -> Transcript:
    text = " ".join(segment.text for segment in segments if segment.text)
    return Transcript(text, segments, "en", 30.0, (), USAGE)


@st.composite
def _spoken(draw: st.DrawFn) -> Transcript:
    """Words with gaps between them, in one segment."""
    clock, words = 0.0, []
    for text in draw(st.lists(LETTERS, min_size=1, max_size=40)):
        start = clock + draw(st.floats(0, 3))
        clock = start + draw(st.floats(0.01, 1))
        words.append(Word(text, start, clock))
    return _transcript(Segment(0.0, clock, " ".join(word.text for word in words), tuple(words)))


@given(_spoken())
def test_cues_hold_every_word_in_order_without_overlap_in_readable_lines(transcript: Transcript) -> None:
    found = list(cues(transcript))
    assert " ".join(line for cue in found for line in cue.lines) == transcript.text
    for before, after in pairwise(found):
        assert before.end <= after.start
    for cue in found:
        assert cue.start < cue.end <= cue.start + CUE_SECONDS
        assert len(cue.lines) <= LINES
        assert max(map(len, cue.lines)) <= LINE_CHARACTERS


@given(st.lists(LETTERS, min_size=1, max_size=60))
def test_words_without_times_share_their_segment(words: list[str]) -> None:
    segment = Segment(30.0, 60.0, " ".join(words))
    found = list(cues(_transcript(segment)))
    assert " ".join(line for cue in found for line in cue.lines) == segment.text
    assert found[0].start == 30.0
    assert abs(found[-1].end - 60.0) < 1e-6


def test_a_pause_ends_a_cue_and_silence_has_none() -> None:
    words = (Word("one", 1.0, 1.5), Word("two", 4.0, 4.25))
    transcript = _transcript(Segment(0, 30, "one two", words), Segment(30, 60, "", (), "silence"))
    assert write_srt(transcript) == ("1\n00:00:01,000 --> 00:00:01,500\none\n\n2\n00:00:04,000 --> 00:00:04,250\ntwo\n")


def test_hours_are_counted_and_vtt_marks_are_escaped() -> None:
    transcript = _transcript(Segment(3600, 7200, "a<b&c", (Word("a<b&c", 3723.0456, 3724.0),)))
    assert write_vtt(transcript) == "WEBVTT\n\n01:02:03.046 --> 01:02:04.000\na&lt;b&amp;c\n"


def test_an_empty_transcript_is_a_file_without_cues() -> None:
    empty = _transcript(Segment(0, 30, "", (), "silence"))
    assert write_srt(empty) == ""
    assert re.fullmatch(r"WEBVTT\n+", write_vtt(empty))
