"""SRT and WebVTT."""

import re
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from fastslm.longform.results import Segment, Transcript, Usage, Word
from fastslm.longform.subtitles import CUE_SECONDS, LINE_CHARACTERS, LINES, cues, write_srt, write_vtt

USAGE = Usage(1, 50, 0, 30.0, 30.0, 1.0, 0.03, "ctc", "window")
LETTERS = st.text("abcdefghij'", min_size=1, max_size=12)
MARKED = st.builds(lambda word, mark: word + mark, LETTERS, st.sampled_from(["", "", "", "", ",", ".", "?"]))


def _transcript(*segments: Segment) -> Transcript:
    text = " ".join(segment.text for segment in segments if segment.text)
    return Transcript(text, segments, "en", 30.0, (), USAGE)


@st.composite
def _spoken(draw: st.DrawFn) -> Transcript:
    """Words with gaps between them, in one segment."""
    clock, words = 0.0, []
    for text in draw(st.lists(MARKED, min_size=1, max_size=40)):
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
    assert all(cue.end - cue.start <= CUE_SECONDS + 1e-9 for cue in found)
    assert found[-1].end <= 60.0 + 1e-6


def test_a_pause_ends_a_cue_and_silence_has_none() -> None:
    words = (Word("one", 1.0, 1.5), Word("two", 4.0, 4.25))
    transcript = _transcript(Segment(0, 30, "one two", words), Segment(30, 60, "", (), "silence"))
    assert write_srt(transcript) == ("1\n00:00:01,000 --> 00:00:02,000\none\n\n2\n00:00:04,000 --> 00:00:05,000\ntwo\n")


def _said(text: str, seconds_a_word: float = 0.3, pauses: dict[int, float] | None = None) -> Transcript:
    """Words that follow one another, but for pauses before some of them."""
    clock, words = 0.0, []
    for index, word in enumerate(text.split()):
        clock += (pauses or {}).get(index, 0.0)
        words.append(Word(word, clock, clock + seconds_a_word))
        clock += seconds_a_word
    return _transcript(Segment(0.0, 30.0, text, tuple(words)))


def test_a_cue_ends_with_its_sentence_where_that_fills_it_well() -> None:
    text = "the first of the sentences that are said is so long. and the next one goes on for some more words than fit"
    found = list(cues(_said(text)))
    assert found[0].lines[-1].endswith("so long.")
    assert found[1].lines[0].startswith("and the next one")


def test_a_cue_is_not_cut_short_for_a_sentence_of_two_words() -> None:
    found = list(
        cues(_said("oh no. it was not at all what they had in mind when they began to talk about it that day"))
    )
    assert found[0].lines[0].startswith("oh no. it was")


def test_a_cue_ends_at_a_breath_where_there_is_no_mark() -> None:
    words = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    without, with_pause = list(cues(_said(words))), list(cues(_said(words, pauses={13: 0.5})))
    assert without[0].lines[-1].endswith("fourteen")
    assert with_pause[0].lines[-1].endswith("thirteen")


def test_two_lines_are_broken_after_a_comma_or_about_the_middle() -> None:
    (comma,) = cues(_said("when the second bell rang out loud, nobody in the old house moved at all", 0.25))
    assert comma.lines == ("when the second bell rang out loud,", "nobody in the old house moved at all")
    (middle,) = cues(_said("when the second bell rang out loud nobody in the old house", 0.25))
    assert abs(len(middle.lines[0]) - len(middle.lines[1])) < 8


def test_a_short_cue_stands_a_second_unless_the_next_one_comes() -> None:
    found = list(cues(_said("one two", 0.2, {1: 1.5})))
    assert (found[0].start, found[0].end) == (0.0, 1.0)
    close = _transcript(Segment(0, 2, "one", (Word("one", 1.8, 2.0),)), Segment(2, 30, "two", (Word("two", 2.3, 2.6),)))
    assert next(cues(close)).end == 2.3


def test_hours_are_counted_and_vtt_marks_are_escaped() -> None:
    transcript = _transcript(Segment(3600, 7200, "a<b&c", (Word("a<b&c", 3723.0456, 3724.0),)))
    assert write_vtt(transcript) == "WEBVTT\n\n01:02:03.046 --> 01:02:04.000\na&lt;b&amp;c\n"


def test_an_empty_transcript_is_a_file_without_cues() -> None:
    empty = _transcript(Segment(0, 30, "", (), "silence"))
    assert write_srt(empty) == ""
    assert re.fullmatch(r"WEBVTT\n+", write_vtt(empty))
