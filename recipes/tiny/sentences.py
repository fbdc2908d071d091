"""Paragraphs → sentences of 5 to 35 words that a voice can read, and documents of a few minutes (`texts.py`)."""

# ruff: noqa: SIM905 - a list of words is read and changed more easily as text
import html
import re
from collections.abc import Iterable, Sequence

LONGEST, SHORTEST = 35, 5  # words of a sentence
DOCUMENT_WORDS = (120, 900)
_REPLACED = {"“": '"', "”": '"', "‘": "'", "’": "'", "…": "...", "‑": "-", "–": "-", "⸺": "—", "⸻": "—"}
_REMOVED = dict.fromkeys("\u2060\u200b\ufeff\u00ad")
_CHARACTERS = str.maketrans({**_REPLACED, **_REMOVED})
_ABBREVIATIONS = frozenset(
    "mr mrs ms dr st prof rev hon capt col gen lt sgt maj gov sen rep pres sr jr esq messrs mme mlle no vs etc viz cf "
    "vol ch pp fig inc ltd co corp dept est approx jan feb mar apr jun jul aug sep sept oct nov dec".split()
)
_END = re.compile(r"""([.!?]+["')\]]*)\s+(?=["'(\[]?[A-Z0-9])""")
# Where a sentence that is too long may be cut, and how many words off the middle a worse place counts.
_CUTS = (
    (re.compile(r"""[;:]["']?\s|—"""), 0),
    (re.compile(r""",["']?\s"""), 6),
    (re.compile(r"\s(?=(?:and|but|or|which|that|who|where|when|while|because|for|with|to)\s)"), 25),
)


def clean(text: str) -> str:
    """`text` on one line, with plain quotation marks and dashes."""
    text = html.unescape(text).translate(_CHARACTERS)
    text = re.sub(r"\s*--+\s*", "—", text)
    return " ".join(text.split())


def sentences(paragraphs: Iterable[str]) -> list[str]:
    """The sentences of cleaned paragraphs in running order; long ones are cut, short ones joined to a neighbour."""
    found: list[str] = []
    for paragraph in paragraphs:
        for piece in (piece for sentence in _split(paragraph) for piece in _cut(sentence)):
            short = found and min(_count(found[-1]), _count(piece)) < SHORTEST
            if short and _count(found[-1]) + _count(piece) <= LONGEST:
                found[-1] += f" {piece}"
            else:
                found.append(piece)
    return [sentence for sentence in found if speakable(sentence)]


def speakable(sentence: str) -> bool:
    """Whether a sentence is mostly Latin letters, without addresses and marks of a format."""
    letters = sum(char.isalpha() for char in sentence)
    if letters < 0.6 * len(sentence.replace(" ", "")):
        return False
    if re.search(r"[<>{}|\\^~=_@#]|https?:|www\.|\[\d", sentence):
        return False
    return not any(char.isalpha() and char > "\u024f" for char in sentence)


def documents(found: Sequence[str]) -> list[list[str]]:
    """Sentences in even parts of at most about 900 words; nothing of fewer than 120."""
    shortest, longest = DOCUMENT_WORDS
    total = sum(map(_count, found))
    if total < shortest:
        return []
    target = total / -(-total // longest)
    parts: list[list[str]] = [[]]
    done = 0
    for sentence in found:
        if parts[-1] and done >= target * len(parts) - 8 and total - done >= shortest:
            parts.append([])
        parts[-1].append(sentence)
        done += _count(sentence)
    return parts


def _split(paragraph: str) -> list[str]:
    found, start = [], 0
    for match in _END.finditer(paragraph):
        last = paragraph[start : match.start()].split()[-1:] or [""]
        word = last[0].strip("\"'(").lower()
        initial = re.fullmatch(r"(?:[a-z]\.)*[a-z]", word) and word != "i"
        if match[1] != "." or not (word in _ABBREVIATIONS or initial):
            found.append(paragraph[start : match.end(1)].strip())
            start = match.end()
    return [*found, paragraph[start:].strip()] if paragraph[start:].strip() else found


def _cut(sentence: str) -> list[str]:
    words = _count(sentence)
    if words <= LONGEST:
        return [sentence]
    places = []
    for pattern, worse in _CUTS:
        for match in pattern.finditer(sentence):
            before = _count(sentence[: match.end()])
            if min(before, words - before) >= SHORTEST:
                places.append((abs(2 * before - words) + worse, match.end()))
    if places:
        at = min(places)[1]
        halves = sentence[:at].strip(), sentence[at:].strip()
    else:
        split = sentence.split()
        halves = " ".join(split[: words // 2]), " ".join(split[words // 2 :])
    return [*_cut(halves[0]), *_cut(halves[1])]


def _count(sentence: str) -> int:
    return len(sentence.split())
