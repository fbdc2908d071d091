"""Characters in time, on an aligner that says what it is told."""

from typing import Any

import pytest
import torch

from fastslm.errors import TrainingError
from fastslm.model.ctc_head import BLANK, ctc_ids
from fastslm.training import alignment
from fastslm.training.alignment import AlignedCharacters
from fastslm.training.feature_cache import WindowLabel
from fastslm.training.objectives import Batch
from fastslm.training.recipe import Recipe, check_recipe

STEPS, FRAMES = 120, 150
WORDS = [("cat", 10, 30), ("i", 100, 110)]


class Fake:
    """Says the same words of every window, and remembers the frames that it was asked about."""

    asked: list[torch.Tensor]

    def __init__(self, name: str):
        Fake.asked = []

    def words(self, frames: torch.Tensor, text: str) -> list[tuple[str, int, int]]:
        Fake.asked.append(frames)
        return WORDS


@pytest.fixture
def recipe(recipe_content: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.setattr(alignment, "_Aligner", Fake)
    return check_recipe(recipe_content, "recipe")


def batch(*shifts: int, text: str = "cat i", names: str = "abcdef") -> Batch:
    frames = torch.arange(FRAMES).float().repeat(len(shifts), 1)[..., None]
    rolled = torch.stack([window.roll(shift, 0) for window, shift in zip(frames, shifts, strict=True)])
    return Batch(rolled, [WindowLabel(text, 150, (), name) for name in names[: len(shifts)]], list(shifts))


def test_a_words_characters_share_out_its_time_and_all_else_is_blank(recipe: Recipe) -> None:
    (row,) = AlignedCharacters(recipe).classes(batch(0), STEPS)
    c, a, t = ctc_ids("cat")
    assert row[8:24].tolist() == [c] * 6 + [a] * 5 + [t] * 5
    assert row[80:88].tolist() == ctc_ids("i") * 8
    rest = torch.cat([row[:8], row[24:80], row[88:]])
    assert (rest == BLANK).all()


def test_a_shift_rolls_the_characters_and_the_aligner_hears_the_window_unrolled(recipe: Recipe) -> None:
    straight, rolled = AlignedCharacters(recipe).classes(batch(0, 15), STEPS)
    assert torch.equal(rolled, straight.roll(12))
    assert torch.equal(Fake.asked[0], Fake.asked[1])


def test_windows_of_the_same_text_are_aligned_each_for_itself(recipe: Recipe) -> None:
    aligned = AlignedCharacters(recipe)
    aligned.classes(batch(0, 0), STEPS)
    assert len(Fake.asked) == 2
    aligned.classes(batch(0, 0), STEPS)
    assert len(Fake.asked) == 2


def test_a_window_without_text_is_blank_and_never_aligned(recipe: Recipe) -> None:
    (row,) = AlignedCharacters(recipe).classes(batch(0, text=""), STEPS)
    assert (row == BLANK).all()


def test_alignments_outlive_the_run_and_a_torn_line_is_made_again(recipe: Recipe) -> None:
    first = AlignedCharacters(recipe)
    expected = first.classes(batch(0, 0, 0), STEPS)
    first.file.write_bytes(first.file.read_bytes()[:-7])
    again = AlignedCharacters(recipe)
    assert torch.equal(again.classes(batch(0, 0, 0), STEPS), expected)
    assert len(Fake.asked) == 1
    assert len(AlignedCharacters(recipe).words) == 3


def test_a_word_that_is_too_short_for_its_letters_still_gets_each_of_them(recipe: Recipe) -> None:
    aligned = AlignedCharacters(recipe)
    aligned.words["a"] = [("cat", 10, 10)]
    (row,) = aligned.classes(batch(0), STEPS)
    assert row[8:11].tolist() == ctc_ids("cat")


def test_without_ctranslate2_the_sentence_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(TrainingError, match=r"pip install 'fastslm\[align\]'"):
        alignment.require_aligner()
