"""Questions about spoken orders, made from their slots: one place for what is trained on and what is measured.

    {"coffeeDrink": "latte", "size": "large"} → ("What drink is ordered?", "latte", "drink"),
                                                ("What size is the drink?", "large", "size"),
                                                ("What roast is the coffee?", "not mentioned", "roast"), …

An evaluation asks in one fixed phrasing; training asks in others, so that a model is measured on words that it was not
trained on. What nobody said is answered "not mentioned".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from random import Random
from typing import NamedTuple

from fastslm.errors import OptionError
from fastslm.prompts import NOT_MENTIONED


class Question(NamedTuple):
    """A question about a recording, its right answer as it is spoken there, and what it is about (`KINDS`)."""

    question: str
    answer: str
    kind: str

    @property
    def mentioned(self) -> bool:
        """Whether the recording says it."""
        return self.answer != NOT_MENTIONED


@dataclass(frozen=True)
class _Slot:
    """A slot of the source, and how it is asked for: in an evaluation, and in training."""

    name: str
    evaluation: str
    training: tuple[str, ...]


_SLOTS = {
    "drink": _Slot(
        "coffeeDrink",
        "What drink is ordered?",
        (
            "Which drink does the customer want?",
            "What is the person ordering?",
            "What would they like to drink?",
            "Name the drink.",
            "Which coffee drink is asked for?",
            "What kind of coffee do they order?",
        ),
    ),
    "size": _Slot(
        "size",
        "What size is the drink?",
        (
            "How big should the drink be?",
            "Which size does the customer want?",
            "What cup size is ordered?",
            "Name the size of the order.",
            "How large a drink do they ask for?",
            "What size do they want?",
        ),
    ),
    "roast": _Slot(
        "roast",
        "What roast is the coffee?",
        (
            "Which roast does the customer want?",
            "How should the coffee be roasted?",
            "What kind of roast is asked for?",
            "Name the roast.",
            "Which roast do they order?",
            "Light, medium or dark roast?",
        ),
    ),
    "shots": _Slot(
        "numberOfShots",
        "How many shots of espresso are ordered?",
        (
            "How many shots does the customer want?",
            "What is the number of shots?",
            "Single, double or triple shot?",
            "How many shots are in the drink?",
            "Name the number of shots.",
            "How many espresso shots do they ask for?",
        ),
    ),
    "milk": _Slot(
        "milkAmount",
        "What milk or cream is added, and how much?",
        (
            "Which milk does the customer want, and how much of it?",
            "What kind of milk goes into the drink?",
            "Do they want milk or cream, and how much?",
            "How much milk is asked for, and of what kind?",
            "Name the milk.",
            "What milk do they order?",
        ),
    ),
    "sugar": _Slot(
        "sugarAmount",
        "What sugar or sweetener is added, and how much?",
        (
            "Which sugar does the customer want, and how much of it?",
            "How should the drink be sweetened?",
            "Do they want sugar or sweetener, and how much?",
            "How much sugar is asked for, and of what kind?",
            "Name the sweetener.",
            "What sugar do they order?",
        ),
    ),
}
KINDS = tuple(_SLOTS)


def order_questions(
    slots: Mapping[str, str], generator: Random | None = None, kinds: Sequence[str] = KINDS
) -> list[Question]:
    """One question of each kind, with its answer.

    Args:
        slots: of one order, `coffeeDrink`, `size`, `roast`, `numberOfShots`, `milkAmount` and `sugarAmount`, each to
            the words that were said. One that is not there was not mentioned.
        generator: picks among the phrasings of training; without one, they are those of an evaluation.
        kinds: what is asked about, in the order of the questions.

    Raises:
        OptionError: an unknown kind or slot.
    """
    known = {slot.name for slot in _SLOTS.values()}
    for name in slots:
        if name not in known:
            raise OptionError(
                f"There are no questions for the slot {name!r}, only for {', '.join(sorted(known))}: write the "
                "questions yourself, as instruction and answer."
            )
    found = []
    for kind in kinds:
        slot = _SLOTS[kind_named(kind)]
        phrasing = slot.evaluation if generator is None else generator.choice(slot.training)
        found.append(Question(phrasing, slots.get(slot.name, NOT_MENTIONED), kind))
    return found


def kind_named(name: str) -> str:
    """The same name, checked.

    Raises:
        OptionError: nothing of that kind is asked; the nearest is named.
    """
    if name in _SLOTS:
        return name
    near = get_close_matches(name.lower(), KINDS, n=1)
    hint = f", did you mean {near[0]!r}" if near else ""
    raise OptionError(f"There are no questions of the kind {name!r}{hint}: choose of {', '.join(KINDS)}.")
