"""Error rates of a corpus, and answers that match."""

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastslm.errors import OptionError
from fastslm.evaluation.metrics import error_rates, normalize, normalize_answer, normalizer_name, token_f1

WORDS = st.lists(st.sampled_from(["green", "apples", "fall", "softly"]), min_size=1, max_size=6).map(" ".join)


def test_the_rate_is_that_of_the_corpus_not_the_mean_of_its_clips() -> None:
    rates = error_rates(["a cat", "the dog ran home late today"], ["a dog", "the dog ran home late today"])
    assert rates.wer.value == pytest.approx(1 / 8)


def test_kinds_of_errors_are_counted_clip_by_clip() -> None:
    rates = error_rates(["the cat sat", "dogs run"], ["the mat", "big dogs run fast"])
    kinds = [(clip.substitutions, clip.deletions, clip.insertions, clip.words) for clip in rates.clips]
    assert kinds == [(1, 1, 0, 3), (0, 0, 2, 2)]
    assert rates.wer.value == pytest.approx(4 / 5)
    assert [rates.total(kind) for kind in ("substitutions", "deletions", "insertions", "words")] == [1, 1, 2, 5]


def test_both_sides_are_normalised() -> None:
    assert error_rates(["Mr. Smith's colour, twenty one!"], ["mister smith's color 21"]).wer.value == 0
    assert normalize(" Hmm, uh ") == ""


def test_other_languages_keep_their_words() -> None:
    assert normalize("Hm, EIN Wort!", "de") == "hm ein wort"
    assert normalize("今天好", "zh") == "今 天 好"
    assert normalizer_name(["de", None]).endswith("EnglishTextNormalizer and BasicTextNormalizer")


def test_what_is_invented_for_a_clip_without_words_counts_as_inserted() -> None:
    rates = error_rates(["hmm", "yes it is"], ["thank you", "yes it is"])
    assert rates.wer.value == pytest.approx(2 / 3)
    assert rates.clips[0].insertions == 2


def test_references_without_a_word_are_refused() -> None:
    with pytest.raises(OptionError, match="No reference holds a word"):
        error_rates(["hmm"], ["yes"])


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=8))
def test_the_errors_of_the_clips_add_up_to_jiwers_rates(pairs: list[tuple[str, str]]) -> None:
    references, hypotheses = (list(side) for side in zip(*pairs, strict=True))
    rates = error_rates(references, hypotheses)
    assert rates.wer.value == pytest.approx(jiwer.wer(references, hypotheses))
    assert rates.cer.value == pytest.approx(jiwer.cer(references, hypotheses))


def test_the_interval_is_the_same_every_time() -> None:
    pairs = [("the cat sat", "the cat"), ("dogs run", "dogs run"), ("we go home", "he goes home")]
    first, second = (error_rates(*zip(*pairs, strict=True)) for _ in range(2))
    assert first.wer.interval == second.wer.interval
    assert first.wer.interval is not None
    assert first.wer.value is not None
    assert first.wer.interval[0] < first.wer.value < first.wer.interval[1]


def test_an_answer_needs_neither_article_nor_full_stop() -> None:
    assert normalize_answer("A Latte.") == normalize_answer("the latte") == "latte"
    assert normalize_answer("twelve ounce") == "12 ounce"
    assert normalize_answer("A droite", "fr") == "a droite"


def test_f1_counts_shared_words_whatever_their_order() -> None:
    assert token_f1("a lot of skim milk", "Skim milk, a lot of!") == 1
    assert token_f1("skim milk", "milk") == pytest.approx(2 / 3)
    assert token_f1("milk milk", "milk") == pytest.approx(2 / 3)
    assert token_f1("milk", "") == token_f1("", "milk") == token_f1("milk", "sugar") == 0
    assert token_f1("", ".") == 1
