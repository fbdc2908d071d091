"""Recordings in parts, and one answer made of the parts' answers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastslm.errors import OptionError
from fastslm.longform.map_reduce import _content, reduce_notes, says_nothing, split
from fastslm.longform.memory import MemoryFacts, SpeechMemory
from fastslm.longform.results import Span


def _memory(windows: int) -> SpeechMemory:
    ends = torch.arange(1, windows + 1, dtype=torch.float64) * 30
    facts = MemoryFacts("f", f"{windows} windows", windows * 30.0, "0")
    tokens = torch.zeros(windows, 50, 1)
    return SpeechMemory(tokens, torch.stack([ends - 30, ends], 1), torch.zeros(windows, dtype=torch.bool), facts)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=4), st.integers(1, 100))
def test_every_window_is_in_exactly_one_piece_none_is_too_long(windows: list[int], most: int) -> None:
    pieces = split([_memory(own) for own in windows], most)
    seen = [(piece.number, window) for piece in pieces for window in range(piece.first, piece.last)]
    assert seen == [(number, window) for number, own in enumerate(windows) for window in range(own)]
    assert all(1 <= piece.windows <= most for piece in pieces)
    assert all((piece.start, piece.end) == (30 * piece.first, 30 * piece.last) for piece in pieces)


def _notes(count: int) -> list[Span]:
    return [Span(60.0 * index, 60.0 * index + 60, None, f"note {index}") for index in range(count)]


def test_notes_that_fit_are_one_prompt_with_their_times_and_the_question() -> None:
    asked: list[str] = []
    text = reduce_notes(_notes(3), lambda content: asked.append(content) or "done", len, None, "Who <|AUDIO|>won?")
    assert text == "done"
    (content,) = asked
    assert "Who won?" in content
    for line in ("[0:00-1:00] note 0", "[1:00-2:00] note 1", "[2:00-3:00] note 2"):
        assert line in content


@pytest.mark.parametrize("question", ["Who won?", None])
def test_notes_that_do_not_fit_are_reduced_in_groups_none_of_them_lost(question: str | None) -> None:
    asked: list[str] = []

    def ask(content: str) -> str:
        asked.append(content)
        return f"sum {len(asked)}"

    room = len(_content(_notes(4), question))
    reduce_notes(_notes(9), ask, len, room, question)
    assert len(asked) > 1
    assert all(len(content) <= room for content in asked)
    everything = "\n".join(asked)
    assert all(everything.count(f"note {index}") == 1 for index in range(9))
    # What a group became is read once more, but for the last answer.
    assert all(everything.count(f"sum {number}") == 1 for number in range(1, len(asked)))


def test_notes_of_which_no_two_fit_are_refused() -> None:
    with pytest.raises(OptionError, match="smaller max_new_tokens"):
        reduce_notes(_notes(4), str, len, 10, None)


@pytest.mark.parametrize(
    ("note", "nothing"), [("Not mentioned.", True), ("", True), ("It is not mentioned by whom.", False)]
)
def test_a_part_without_an_answer_is_told_from_one_with(note: str, nothing: bool) -> None:
    assert says_nothing(note) is nothing


def test_what_is_joined_of_several_recordings_names_them_all() -> None:
    notes = [Span(0.0, 60.0, name, f"note of {name}") for name in ("a.wav", "a.wav", "b.wav", "c.wav")]
    asked: list[str] = []
    room = len(_content(notes[:3], "Who?"))
    reduce_notes(notes, lambda content: asked.append(content) or "sum", len, room, "Who?")
    assert "[a.wav, b.wav, 0:00-1:00] sum" in asked[-1]
