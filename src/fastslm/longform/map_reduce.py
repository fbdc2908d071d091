"""Recordings beyond the language model's positions: asked span by span, and one answer made of the spans' answers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from fastslm.errors import OptionError
from fastslm.longform.memory import SpeechMemory
from fastslm.longform.results import Span, clock
from fastslm.prompts import CONTROL_TOKEN, NOT_MENTIONED

# A span that answers so is not cited. The words are those that models are taught: in others they do not answer.
MAP_QUESTION = "{question}\nIf this part of the recording does not say it, answer only: " + NOT_MENTIONED + "."
REDUCE_QUESTION = (
    "Parts of a recording were asked: {question}\nTheir answers, each with its time:\n{notes}\n"
    "Answer the question in short from these answers alone."
)
REDUCE_SUMMARY = "These are summaries of the parts of a recording, in order:\n{notes}\nSummarize them as one."


@dataclass(frozen=True)
class Piece:
    """Windows first to last - 1 of one memory; number: which of the memories it is."""

    memory: SpeechMemory
    number: int
    first: int
    last: int

    @classmethod
    def whole(cls, memory: SpeechMemory, number: int) -> "Piece":
        """All of a memory."""
        return cls(memory, number, 0, len(memory.tokens))

    @property
    def windows(self) -> int:
        """How many they are."""
        return self.last - self.first

    @property
    def start(self) -> float:
        """Seconds at which it begins."""
        return float(self.memory.times[self.first, 0])

    @property
    def end(self) -> float:
        """Seconds at which it ends."""
        return float(self.memory.times[self.last - 1, 1])

    @property
    def silent(self) -> bool:
        """Whether nothing in it could be speech."""
        return bool(self.memory.silent[self.first : self.last].all())


def split(memories: Sequence[SpeechMemory], windows: int) -> list[Piece]:
    """Every window of every memory in exactly one piece, in order; pieces of a memory are about equally long.

    Args:
        windows: of a piece at most, 1 or more.
    """
    pieces = []
    for number, memory in enumerate(memories):
        whole = len(memory.tokens)
        count = math.ceil(whole / windows)
        edges = [round(index * whole / count) for index in range(count + 1)]
        pieces += [Piece(memory, number, a, b) for a, b in pairwise(edges)]
    return pieces


def says_nothing(note: str) -> bool:
    """Whether a span's answer is that it has none."""
    return note.strip().strip(".").lower() in ("", NOT_MENTIONED)


def reduce_notes(
    notes: Sequence[Span],
    ask: Callable[[str], str],
    places: Callable[[str], int],
    room: int | None,
    question: str | None,
) -> str:
    """One answer made of the notes of spans: in one prompt, or where they do not fit, of answers made of some of them.

    Args:
        notes: their text, and from when to when.
        ask: what the language model writes for a content without speech.
        places: that such a content takes.
        room: places that a prompt may have, `None` for any number.
        question: that was asked; `None` for a summary.

    Raises:
        OptionError: not even two notes fit.
    """
    groups: list[list[Span]] = [[]]
    for note in notes:
        grown = [*groups[-1], note]
        if len(grown) > 1 and room is not None and places(_content(grown, question)) > room:
            groups.append([note])
        else:
            groups[-1] = grown
    if len(groups) == 1:
        return ask(_content(groups[0], question))
    if len(groups) == len(notes):
        raise OptionError(
            "The answers of two parts do not fit into the language model's context together: give a smaller "
            "max_new_tokens."
        )
    fewer = [
        group[0]
        if len(group) == 1
        else Span(group[0].start, group[-1].end, _names(group), ask(_content(group, question)))
        for group in groups
    ]
    return reduce_notes(fewer, ask, places, room, question)


def _names(notes: Sequence[Span]) -> str | None:
    return ", ".join(dict.fromkeys(note.recording for note in notes if note.recording)) or None


def _content(notes: Sequence[Span], question: str | None) -> str:
    several = len({note.recording for note in notes}) > 1
    lines = "\n".join(
        f"[{f'{note.recording}, ' if several else ''}{clock(note.start)}-{clock(note.end)}] "
        f"{CONTROL_TOKEN.sub('', note.text or '')}"
        for note in notes
    )
    if question is None:
        return REDUCE_SUMMARY.format(notes=lines)
    return REDUCE_QUESTION.format(question=CONTROL_TOKEN.sub("", question), notes=lines)
