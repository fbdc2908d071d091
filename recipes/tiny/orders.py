"""Questions about spoken orders, made from their slots: one place for what is trained on and what is measured.

    python recipes/tiny/orders.py cache/labels/coffee.jsonl cache/instructions/coffee.jsonl --seed 1
    python recipes/tiny/orders.py ../shared/data/coffee/test.jsonl cache/instructions/orders-test.jsonl --evaluation

    {"coffeeDrink": "latte", "size": "large"} → ("What drink is ordered?", "latte", "drink"),
                                                ("What size is the drink?", "large", "size"),
                                                ("What roast is the coffee?", "not mentioned", "roast"), …

An evaluation asks in one fixed phrasing; training asks in others, so that a model is measured on words that it was not
trained on, and beside these what `fastslm data synthesize --tasks ask` makes of texts. What nobody said is answered
"not mentioned". With `--unsaid N`, each text in which nobody orders gets N questions about an order too: without such
rows a model that was taught with orders alone names a drink wherever it is asked for one.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from fastslm.audio import WINDOW_SECONDS
from fastslm.data.manifest import Clip, read_manifest, write_manifest
from fastslm.data.tasks import QUESTIONS, synthesize, task_row
from fastslm.errors import ManifestError, OptionError
from fastslm.prompts import NOT_MENTIONED

# What an evaluation asks about. What is added to a drink is said in too many ways ("a bit of", "some") to tell how well
# was heard.
EVALUATED = ("drink", "size", "roast", "shots")
# Of a text that may order something after all.
ORDERED = re.compile(
    r"\b(coffee|tea|latte|espresso|cappuccino|mocha|americano|macchiato|milk|cream|sugar|cups?|drink\w*|drank|orders?|ordered"
    r"|roast\w*|shots?)\b",
    re.IGNORECASE,
)


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


def asked_about(
    clips: Sequence[Clip], folder: Path, seed: int, questions: int = QUESTIONS, unsaid: int = 0
) -> list[dict[str, Any]]:
    """Rows to train on, for a manifest in `folder`: about the orders of clips with `slots`, and about other texts.

    Args:
        questions: about each clip with text, as `fastslm.data.tasks.synthesize` has it.
        unsaid: questions about an order to each clip with text in which nobody orders.

    Raises:
        ManifestError: a clip has unknown slots; else as `synthesize`.
        OptionError: `unsaid` is more than there are kinds of questions.
    """
    if not 0 <= unsaid <= len(KINDS):
        raise OptionError(f"{unsaid} questions about unsaid orders are not possible: ask for 0 to {len(KINDS)}.")

    def ask(clip: Clip, rng: Random) -> list[dict[str, Any]]:
        if clip.slots:
            kind, where = clip.label_kind or "human", _windows(clip)
            return [
                task_row("ask", own.question, own.answer, kind, kind=own.kind, **(where if own.mentioned else {}))
                for own in _questions(clip, rng)
            ]
        if not unsaid or not (clip.text or "").strip() or ORDERED.search(clip.text or ""):
            return []
        # Of its own generator, so that the other questions stay what they are.
        own_rng = Random(f"{seed} unsaid {clip.id}")
        asked = order_questions({}, own_rng, own_rng.sample(KINDS, unsaid))
        return [task_row("ask", own.question, own.answer, "synthetic", kind=own.kind) for own in asked]

    return synthesize(clips, folder, ["ask"], seed, questions, ask)


def evaluated(clips: Sequence[Clip], folder: Path, kinds: Sequence[str] = EVALUATED) -> list[dict[str, Any]]:
    """Rows for `fastslm evaluate sqqa`: each clip with `slots` is asked about `kinds`, always in the same words.

    Raises:
        ManifestError: no clip has slots, or a clip has unknown ones.
    """
    rows = []
    for clip in clips:
        if clip.slots is not None:
            row = clip.row(folder)
            for own in _questions(clip, None, kinds):
                asked = task_row("ask", own.question, own.answer, clip.label_kind or "human", kind=own.kind)
                rows.append(row | {"of": clip.id, "id": f"{clip.id}/{own.kind}"} | asked)
    if not rows:
        raise ManifestError("No clip has slots: give a manifest of orders.")
    return rows


def _questions(clip: Clip, rng: Random | None, kinds: Sequence[str] = KINDS) -> list[Question]:
    try:
        return order_questions(clip.slots or {}, rng, kinds)
    except OptionError as error:
        raise ManifestError(f"{clip.place}: slots: {error}") from None


def _windows(clip: Clip) -> dict[str, Any]:
    """In which windows of a composition its order is, where it is in one."""
    for segment in clip.segments or ():
        if (segment.model_extra or {}).get("slots") is not None:
            first, last = int(segment.start // WINDOW_SECONDS), int(segment.end // WINDOW_SECONDS)
            return {"windows": sorted({first, last})}
    return {}


def main() -> None:
    """Write the rows."""
    parser = argparse.ArgumentParser(description="Questions about spoken orders.")
    parser.add_argument("manifest", type=Path, help="clips, those of orders with slots")
    parser.add_argument("out", type=Path, help="the manifest to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--questions", type=int, default=QUESTIONS, help="about each text")
    parser.add_argument("--unsaid", type=int, default=0, help="questions about an order to each text without one")
    parser.add_argument("--evaluation", action="store_true", help="the fixed questions of an evaluation instead")
    given = parser.parse_args()
    clips, folder = read_manifest(given.manifest), given.out.resolve().parent
    rows = (
        evaluated(clips, folder)
        if given.evaluation
        else asked_about(clips, folder, given.seed, given.questions, given.unsaid)
    )
    print(f"{given.out}: {write_manifest(given.out, rows)} rows")


if __name__ == "__main__":
    main()
