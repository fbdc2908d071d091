"""Error rates of a corpus."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastslm.errors import OptionError
from fastslm.evaluation.metrics import error_rates, normalize

WORDS = st.lists(st.sampled_from(["green", "apples", "fall", "softly"]), min_size=1, max_size=6).map(" ".join)


def test_the_rate_is_that_of_the_corpus_not_the_mean_of_its_clips() -> None:
    rates = error_rates(["a cat", "the dog ran home late today"], ["a dog", "the dog ran home late today"])
    assert rates.wer == pytest.approx(1 / 8)


def test_kinds_of_errors_are_counted_clip_by_clip() -> None:
    rates = error_rates(["the cat sat", "dogs run"], ["the mat", "big dogs run fast"])
    kinds = [(clip.substitutions, clip.deletions, clip.insertions, clip.words) for clip in rates.clips]
    assert kinds == [(1, 1, 0, 3), (0, 0, 2, 2)]
    assert rates.wer == pytest.approx(4 / 5)
    assert [rates.total(kind) for kind in ("substitutions", "deletions", "insertions", "words")] == [1, 1, 2, 5]


def test_both_sides_are_normalised() -> None:
    assert error_rates(["Mr. Smith's colour, twenty one!"], ["mister smith's color 21"]).wer == 0
    assert normalize(" Hmm, uh ") == ""


def test_what_is_invented_for_a_clip_without_words_counts_as_inserted() -> None:
    rates = error_rates(["hmm", "yes it is"], ["thank you", "yes it is"])
    assert rates.wer == pytest.approx(2 / 3)
    assert rates.clips[0].insertions == 2


def test_references_without_a_word_are_refused() -> None:
    with pytest.raises(OptionError, match="No reference holds a word"):
        error_rates(["hmm"], ["yes"])


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=8))
def test_the_interval_holds_the_extremes_of_its_clips_and_the_errors_add_up(pairs: list[tuple[str, str]]) -> None:
    rates = error_rates([reference for reference, _ in pairs], [hypothesis for _, hypothesis in pairs])
    each = [clip.errors / clip.words for clip in rates.clips]
    low, high = rates.wer_interval
    assert min(each) - 1e-9 <= low <= high <= max(each) + 1e-9
    assert rates.wer == pytest.approx(sum(clip.errors for clip in rates.clips) / rates.total("words"))


def test_the_interval_is_the_same_every_time() -> None:
    pairs = [("the cat sat", "the cat"), ("dogs run", "dogs run"), ("we go home", "he goes home")]
    first, second = (error_rates(*zip(*pairs, strict=True)) for _ in range(2))
    assert first.wer_interval == second.wer_interval
    assert first.wer_interval[0] < first.wer < first.wer_interval[1]
