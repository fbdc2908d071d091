"""Word times: the best of all CTC paths, found by trying every one of them; and what holds for any text."""

from itertools import groupby, pairwise, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastslm.longform import timestamps
from fastslm.longform.timestamps import SPACE, _best_paths, _spell, word_times
from fastslm.model.configuration import CTC_CHARACTERS
from fastslm.model.ctc_head import BLANK, ctc_ids

CLASSES = len(CTC_CHARACTERS) + 1


def scores_of(steps: int, seed: int, windows: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(windows, steps, CLASSES, generator=generator)).log_softmax(-1)


def best_by_trying(log_probs: torch.Tensor, ids: list[int]) -> float | None:
    """The score of the likeliest path that CTC reads as `ids`, by enumeration."""
    best = None
    for path in product(sorted({BLANK, *ids}), repeat=len(log_probs)):
        if [kind for kind, _ in groupby(path) if kind != BLANK] == ids:
            score = sum(float(log_probs[step, kind]) for step, kind in enumerate(path))
            best = score if best is None else max(best, score)
    return best


def path_score(log_probs: torch.Tensor, letters: list[tuple[int, int, int]]) -> float:
    """The score of the path with these letters at these steps, and blank at all others."""
    kinds = [BLANK] * len(log_probs)
    for first, last, kind in letters:
        kinds[first : last + 1] = [kind] * (last + 1 - first)
    assert [kind for kind, _ in groupby(kinds) if kind != BLANK] == [kind for _, _, kind in letters]
    return sum(float(log_probs[step, kind]) for step, kind in enumerate(kinds))


@pytest.mark.parametrize("text", ["a", "ab", "aa", "aba", "a b", "aab", "abc"])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 7])
def test_the_path_is_the_likeliest_of_all_that_write_the_text(text: str, steps: int) -> None:
    ids = ctc_ids(text)
    for seed in range(4):
        log_probs = scores_of(steps, seed)
        expected = best_by_trying(log_probs[0], ids)
        (found,) = _best_paths(log_probs, [ids], [steps])
        assert (found is None) == (expected is None)
        if found is not None and expected is not None:
            assert path_score(log_probs[0], found) == pytest.approx(expected, abs=1e-4)


def test_a_windows_path_does_not_depend_on_the_windows_beside_it() -> None:
    texts = [ctc_ids(text) for text in ("hello there", "", "oo", "a much longer text than the others")]
    lasting = [30, 40, 12, 80]
    log_probs = scores_of(80, seed=3, windows=4)
    together = _best_paths(log_probs, texts, lasting)
    for row in range(4):
        assert _best_paths(log_probs[row : row + 1], [texts[row]], [lasting[row]]) == [together[row]]
    assert together[1] == []
    assert all(last < limit for path, limit in zip(together, lasting, strict=True) for _, last, _ in path or [])


@pytest.mark.parametrize("together", [2, 3, 32, 500])
def test_a_path_does_not_depend_on_how_many_steps_are_looked_up_in_one_go(
    together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [ctc_ids(text) for text in ("hello there and so on", "oo", "", "i was told that it is so")]
    arguments = scores_of(100, seed=5, windows=4), texts, [100, 65, 34, 33]
    monkeypatch.setattr(timestamps, "STEPS_TOGETHER", 1)
    one_by_one = _best_paths(*arguments)
    monkeypatch.setattr(timestamps, "STEPS_TOGETHER", together)
    assert _best_paths(*arguments) == one_by_one
    assert all(path is not None for path in one_by_one)


WORDS = st.lists(st.sampled_from(["the", "two", "66", "…", "well-known", "café", "Oh,", "see", "x"]), max_size=9)


@given(WORDS, st.integers(1, 120), st.floats(0.05, 30.0))
def test_every_word_is_there_and_times_rise_within_the_sound(words: list[str], steps: int, end: float) -> None:
    (found,) = word_times(scores_of(steps, seed=steps), [" ".join(words)], [end], 30.0)
    assert [word.text for word in found] == words
    times = [time for word in found for time in (word.start, word.end)]
    assert all(earlier <= later + 1e-9 for earlier, later in pairwise(times))
    assert all(0 <= time <= end + 1e-9 for time in times)


def test_words_stand_where_their_letters_are_likeliest() -> None:
    log_probs = torch.full((1, 60, CLASSES), -20.0)
    log_probs[..., BLANK] = -0.1
    for step, kind in [(6, "h"), (7, "i"), (20, " "), (30, "y"), (33, "o"), (34, "u")]:
        log_probs[0, step] = -20.0
        log_probs[0, step, CTC_CHARACTERS.index(kind) + 1] = -0.2
    hi, number, you = word_times(log_probs, ["Hi, 66 you!"], [28.0], 30.0)[0]
    assert (hi.text, hi.start, hi.end) == ("Hi,", 3.0, 4.0)
    assert (you.text, you.start, you.end) == ("you!", 15.0, 17.5)
    # What the head cannot write takes what is left between its neighbours, and no score.
    assert (number.start, number.end, number.log_probability) == (4.0, 15.0, None)
    assert hi.log_probability == pytest.approx(-0.2)


def test_a_words_score_is_the_mean_over_its_letters() -> None:
    log_probs = torch.full((1, 2, CLASSES), -20.0)
    log_probs[0, 0, ctc_ids("h")[0]], log_probs[0, 1, ctc_ids("i")[0]] = -1.0, -3.0
    assert word_times(log_probs, ["hi"], [30.0], 30.0)[0][0].log_probability == pytest.approx(-2.0)


def test_a_text_that_the_steps_cannot_write_is_spread_evenly() -> None:
    (found,) = word_times(scores_of(4, seed=0), ["one two three four"], [20.0], 30.0)
    assert [(word.start, word.end) for word in found] == [(0, 5), (5, 10), (10, 15), (15, 20)]
    assert {word.log_probability for word in found} == {None}


def test_spelling_owns_every_letter_and_no_space_between_words() -> None:
    ids, owners = _spell(["it's", "66", "well-known", "—", "on"])
    written = "".join(CTC_CHARACTERS[kind - 1] for kind in ids)
    assert written == "it's well known on"
    assert [owner for kind, owner in zip(ids, owners, strict=True) if kind != SPACE] == [0] * 4 + [2] * 9 + [4] * 2
    assert owners[4] == owners[-3] == -1
    assert owners[9] == 2  # within a word that is written as two
