"""Transcripts as SRT and WebVTT, in lines that can be read while they stand."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fastslm.longform.results import Segment, Transcript, Word

LINE_CHARACTERS = 42
LINES = 2
CUE_SECONDS = 7.0
LEAST_SECONDS = 1.0  # a shorter cue stands so long where the next leaves it the time
PAUSE_SECONDS = 1.0  # a longer one ends a cue
SHORT_PAUSE = 0.3  # a longer one is a good place to end a cue
# What a place is worth as the end of a cue, where filling the cue is worth 1.
SENTENCE, CLAUSE, BREATH = 0.8, 0.4, 0.3
SENTENCE_ENDS, CLAUSE_ENDS = (".", "?", "!", "…", "。", "？", "！"), (",", ";", ":", "，", "、", "；", "：")
# What ends a text, and stands on the screen for some seconds, where the recording breaks off.
CUT_MARK = "[The recording is cut short here.]"
MARK_SECONDS = 3.0
CLOSING = "\"'”’)]»"


@dataclass(frozen=True)
class Cue:
    """What stands on the screen from `start` to `end`, in seconds; at most `LINES` lines of `LINE_CHARACTERS`.

    A single word that is longer than a line is not broken.
    """

    start: float
    end: float
    lines: tuple[str, ...]


def cues(transcript: Transcript) -> Iterator[Cue]:
    """The cues of a transcript, in order, without overlap, none over `CUE_SECONDS`; together they hold every word.

    A cue ends where a sentence does, or a clause, or where the speaker pauses, if that leaves it well filled.
    """
    groups = [group for segment in transcript.segments for group in _groups(segment.words or _spread(segment))]
    for index, group in enumerate(groups):
        start, end = group[0].start, min(group[-1].end, group[0].start + CUE_SECONDS)
        free = groups[index + 1][0].start if index + 1 < len(groups) else max(end, transcript.end)
        yield Cue(start, max(end, min(start + LEAST_SECONDS, free)), _lines(group))
    if transcript.partial:
        yield Cue(transcript.end, transcript.end + MARK_SECONDS, (CUT_MARK,))


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


def _spread(segment: Segment) -> tuple[Word, ...]:
    """Words of a segment that knows no times of its words: each takes its share of the letters."""
    words = segment.text.split()
    if not words:
        return ()
    per_letter = (segment.end - segment.start) / sum(len(word) + 1 for word in words)
    spread, start = [], segment.start
    for word in words:
        end = start + (len(word) + 1) * per_letter
        spread.append(Word(word, start, end))
        start = end
    return tuple(spread)


def _groups(words: Sequence[Word]) -> Iterator[Sequence[Word]]:
    """Words in order, cut into what fits into a cue each."""
    while words:
        most = 1
        while most < len(words) and _fits(words[:most], words[most]):
            most += 1
        longest = len(_text(words[:most]))
        worth = {count: len(_text(words[:count])) / longest + _worth(words, count) for count in range(1, most + 1)}
        best = max(worth, key=lambda count: (worth[count], count))
        yield words[:best]
        words = words[best:]


def _fits(group: Sequence[Word], word: Word) -> bool:
    return (
        word.start - group[-1].end <= PAUSE_SECONDS
        and word.end - group[0].start <= CUE_SECONDS
        and len(_wrapped([*group, word])) <= LINES
    )


def _wrapped(words: Sequence[Word]) -> list[str]:
    return textwrap.wrap(_text(words), LINE_CHARACTERS, break_long_words=False, break_on_hyphens=False)


def _worth(words: Sequence[Word], count: int) -> float:
    """What ending after so many words is worth, beyond how full the cue is."""
    if count == len(words):
        return SENTENCE
    pause = words[count].start - words[count - 1].end
    return _mark(words[count - 1].text) + (BREATH if pause > SHORT_PAUSE else 0.0)


def _mark(word: str) -> float:
    bare = word.rstrip(CLOSING)
    return SENTENCE if bare.endswith(SENTENCE_ENDS) else CLAUSE if bare.endswith(CLAUSE_ENDS) else 0.0


def _text(words: Sequence[Word]) -> str:
    return " ".join(word.text for word in words)


def _lines(words: Sequence[Word]) -> tuple[str, ...]:
    """One line if it holds the words, else two about equally long, or broken after a comma or a full stop nearby."""
    whole = _text(words)
    if len(whole) <= LINE_CHARACTERS or len(words) == 1:
        return (whole,)

    def balance(count: int) -> float:
        first, second = len(_text(words[:count])), len(_text(words[count:]))
        beyond = max(0, max(first, second) - LINE_CHARACTERS)
        return _mark(words[count - 1].text) - abs(first - second) / len(whole) - 10 * beyond

    best = max(range(1, len(words)), key=balance)
    return _text(words[:best]), _text(words[best:])


def _time(seconds: float, mark: str) -> str:
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{mark}{milliseconds:03}"


def _escaped(line: str) -> str:
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
