"""Transcripts as SRT and WebVTT, in lines that can be read while they stand."""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from fastslm.longform.results import Segment, Transcript, Word

LINE_CHARACTERS = 42
LINES = 2
CUE_SECONDS = 7.0
PAUSE_SECONDS = 1.0  # a longer one ends a cue


@dataclass(frozen=True)
class Cue:
    """What stands on the screen from `start` to `end`, in seconds; at most `LINES` lines of `LINE_CHARACTERS`.

    A single word that is longer than a line is not broken.
    """

    start: float
    end: float
    lines: tuple[str, ...]


def cues(transcript: Transcript) -> Iterator[Cue]:
    """The cues of a transcript, in order, without overlap; together they hold every word of it."""
    for segment in transcript.segments:
        group: list[Word] = []
        for word in segment.words or _spread(segment):
            if group and not _fits(group, word):
                yield _cue(group)
                group = []
            group.append(word)
        if group:
            yield _cue(group)


def write_srt(transcript: Transcript) -> str:
    """SubRip: numbered cues, comma before the milliseconds."""
    blocks = (
        f"{number}\n{_time(cue.start, ',')} --> {_time(cue.end, ',')}\n" + "\n".join(cue.lines) + "\n"
        for number, cue in enumerate(cues(transcript), 1)
    )
    return "\n".join(blocks)


def write_vtt(transcript: Transcript) -> str:
    """WebVTT."""
    blocks = (
        f"{_time(cue.start, '.')} --> {_time(cue.end, '.')}\n" + "\n".join(map(_escaped, cue.lines)) + "\n"
        for cue in cues(transcript)
    )
    return "\n".join(["WEBVTT\n", *blocks])


def _spread(segment: Segment) -> list[Word]:
    """Words of a segment that knows no times of its words: each takes its share of the letters."""
    words = segment.text.split()
    if not words:
        return []
    per_letter = (segment.end - segment.start) / sum(len(word) + 1 for word in words)
    spread, start = [], segment.start
    for word in words:
        end = start + (len(word) + 1) * per_letter
        spread.append(Word(word, start, end))
        start = end
    return spread


def _fits(group: list[Word], word: Word) -> bool:
    return (
        word.start - group[-1].end <= PAUSE_SECONDS
        and word.end - group[0].start <= CUE_SECONDS
        and len(_lines([*group, word])) <= LINES
    )


def _lines(words: list[Word]) -> list[str]:
    text = " ".join(word.text for word in words)
    return textwrap.wrap(text, LINE_CHARACTERS, break_long_words=False, break_on_hyphens=False)


def _cue(words: list[Word]) -> Cue:
    return Cue(words[0].start, words[-1].end, tuple(_lines(words)))


def _time(seconds: float, mark: str) -> str:
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{mark}{milliseconds:03}"


def _escaped(line: str) -> str:
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
