"""Questions made from slots."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastslm.data.questions import KINDS, NOT_MENTIONED, order_questions
from fastslm.errors import OptionError

SLOTS = {
    "coffeeDrink": "iced mocha",
    "size": "large",
    "roast": "dark roast",
    "numberOfShots": "double shot",
    "milkAmount": "a lot of skim milk",
    "sugarAmount": "sugar",
}
SOME = st.sets(st.sampled_from(sorted(SLOTS))).map(lambda names: {name: SLOTS[name] for name in names})


@given(SOME)
def test_what_is_said_is_answered_with_its_words_and_all_else_is_not_mentioned(slots: dict[str, str]) -> None:
    questions = order_questions(slots)
    assert [question.kind for question in questions] == list(KINDS)
    assert sorted(q.answer for q in questions if q.mentioned) == sorted(slots.values())
    assert sum(q.answer == NOT_MENTIONED for q in questions) == len(SLOTS) - len(slots)


def test_an_evaluation_asks_the_same_every_time_and_training_never_in_those_words() -> None:
    evaluated = {q.question for q in order_questions(SLOTS)}
    assert evaluated == {q.question for q in order_questions({})}
    trained = {q.question for seed in range(200) for q in order_questions(SLOTS, Random(seed))}
    assert not evaluated & trained
    assert len(trained) == 6 * 6


def test_a_seed_gives_the_same_phrasings() -> None:
    assert order_questions(SLOTS, Random(5)) == order_questions(SLOTS, Random(5))


def test_only_the_kinds_that_are_wanted_are_asked_in_that_order() -> None:
    assert [(q.answer, q.kind) for q in order_questions({"size": "small"}, kinds=["size", "drink"])] == [
        ("small", "size"),
        ("not mentioned", "drink"),
    ]


def test_unknown_kinds_and_slots_are_refused() -> None:
    with pytest.raises(OptionError, match="did you mean 'shots'"):
        order_questions({}, kinds=["shot"])
    with pytest.raises(OptionError, match="no questions for the slot 'city'"):
        order_questions({"city": "Oslo"})
