"""Instruction data: what manifests know → rows with a task, an instruction in one of several phrasings, an answer.

    transcribe   text → the text; a label without text (nobody speaks) → an empty answer
    translate    translation → the translation
    summarize    summary → people's; long text → a summary taken from it, or key words (`synthetic`)
    ask          slots → what was ordered, or "not mentioned"; text → how a phrase goes on, in which half minute it is
                 said (`synthetic`), and about phrases of other clips, of clips without speech too: "not mentioned";
                 on request, what is ordered where nobody orders anything: "not mentioned" (`synthetic`)

What `label_kind` says is where the answer is from. Each row draws from its own generator, of (seed, task, clip).
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from fastslm.audio import WINDOW_SECONDS
from fastslm.data.manifest import Clip
from fastslm.data.phrasings import (
    CONTINUATION,
    HALF_MINUTE,
    KEYWORDS,
    SUMMARIZE,
    TRANSCRIBE,
    TRANSLATE,
)
from fastslm.data.questions import KINDS, NOT_MENTIONED, order_questions
from fastslm.data.summaries import LEAST_WORDS, extractive_summary, keywords, sentences_of
from fastslm.errors import ManifestError, OptionError
from fastslm.prompts import TASKS, language_code, language_name, task_named

QUESTIONS = 2  # about each clip with text
PHRASE_WORDS = 4  # of a phrase that is asked about
ANSWER_WORDS = 3
LEAST_PHRASE_TEXT = 12  # words of a text that phrases are taken of
KEYWORD_SHARE = 0.25  # of the texts with a summary, those that are asked for key words
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
# Of a text that may order something after all.
ORDERED = re.compile(
    r"\b(coffee|tea|latte|espresso|cappuccino|mocha|americano|macchiato|milk|cream|sugar|cups?|drink\w*|drank|orders?|ordered"
    r"|roast\w*|shots?)\b",
    re.IGNORECASE,
)
# Keys of a clip that are about the other tasks.
_LEFT_OUT = ("summary", "translation", "words", "task", "instruction", "answer", "label_kind")

Row = dict[str, Any]


def synthesize(
    clips: Sequence[Clip],
    folder: Path,
    tasks: Sequence[str] = tuple(TASKS),
    seed: int = 0,
    questions: int = QUESTIONS,
    unsaid_orders: int = 0,
) -> list[Row]:
    """Rows of an instruction manifest in `folder`, in the order of the clips.

    Args:
        tasks: of `fastslm.prompts.TASKS`.
        questions: about each clip with text; half of them, rounded down, are about what was not said.
        unsaid_orders: questions about an order to each clip with text and without slots, which are not mentioned
            there. Texts that speak of what is drunk or ordered are left out. Without such rows a model that was taught
            with orders alone names a drink wherever it is asked for one.

    Raises:
        OptionError: an unknown task, or fewer than no questions.
        ManifestError: the clips have nothing to make rows of, an unknown language, or audio is missing.
    """
    if questions < 0:
        raise OptionError(f"{questions} questions a clip are not possible: ask for 0 or more.")
    if not 0 <= unsaid_orders <= len(KINDS):
        raise OptionError(f"{unsaid_orders} questions about unsaid orders are not possible: ask for 0 to {len(KINDS)}.")
    wanted = [task_named(task).name for task in tasks]
    phrases = _Phrases(clips)
    rows: list[Row] = []
    for clip in clips:
        made: list[Row] = []
        for task in wanted:
            rng = Random(f"{seed} {task} {clip.id}".encode("utf-8", "surrogatepass"))
            if task == "ask":
                made += _asked(clip, phrases, rng, questions)
                made += _orders_not_said(clip, rng, unsaid_orders)
            else:
                made += {"transcribe": _transcribed, "translate": _translated, "summarize": _summed_up}[task](clip, rng)
        if made:
            shared = {key: value for key, value in clip.row(folder).items() if key not in _LEFT_OUT}
            rows += [shared | {"of": clip.id, "id": f"{clip.id}/{i}"} | row for i, row in enumerate(made)]
    if not rows:
        raise ManifestError(
            f"{clips[0].place if clips else 'The manifest'}: neither it nor any other clip has what there is to "
            f"{' or '.join(wanted)}; give clips with text, translation, summary, slots or label, or ask for "
            "other --tasks."
        )
    return rows


def tally(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """How many rows there are of each task and kind of label."""
    counts: dict[str, dict[str, int]] = {}
    for (task, kind), count in sorted(Counter((row["task"], row["label_kind"]) for row in rows).items()):
        counts.setdefault(task, {})[kind] = count
    return counts


def _row(task: str, instruction: str, answer: str, label_kind: str, **more: Any) -> Row:
    return {"task": task, "instruction": instruction, "answer": answer, "label_kind": label_kind, **more}


def _transcribed(clip: Clip, rng: Random) -> list[Row]:
    silent = not clip.text and clip.label is not None
    if not silent and not (clip.text or "").strip():
        return []
    return [_row("transcribe", rng.choice(TRANSCRIBE), (clip.text or "").strip(), clip.label_kind or "human")]


def _translated(clip: Clip, rng: Random) -> list[Row]:
    if not (clip.translation or "").strip():
        return []
    if clip.target_language is None:
        raise ManifestError(f"{clip.place}: its translation has no target_language; write which language it is in.")
    try:
        language = language_name(clip.target_language)
    except OptionError as error:
        raise ManifestError(f"{clip.place}: target_language: {error}") from None
    asked = rng.choice(TRANSLATE).format(language=language)
    code = language_code(clip.target_language)
    answer = (clip.translation or "").strip()
    return [_row("translate", asked, answer, clip.label_kind or "human", target_language=code)]


def _summed_up(clip: Clip, rng: Random) -> list[Row]:
    text = clip.text or ""
    if (clip.summary or "").strip():
        return [_row("summarize", rng.choice(SUMMARIZE), (clip.summary or "").strip(), clip.label_kind or "human")]
    if len(text.split()) < LEAST_WORDS:
        return []
    summary = extractive_summary(sentences_of(text, [segment.text or "" for segment in clip.segments or ()]))
    if summary is None or rng.random() < KEYWORD_SHARE:
        words = keywords(text)
        return (
            [_row("summarize", rng.choice(KEYWORDS), ", ".join(words), "synthetic", kind="keywords")] if words else []
        )
    return [_row("summarize", rng.choice(SUMMARIZE), summary, "synthetic", kind="extract")]


def _asked(clip: Clip, phrases: "_Phrases", rng: Random, count: int) -> list[Row]:
    rows: list[Row] = []
    if clip.slots:
        try:
            asked = order_questions(clip.slots, rng)
        except OptionError as error:
            raise ManifestError(f"{clip.place}: slots: {error}") from None
        kind = clip.label_kind or "human"
        where = _order_windows(clip)
        rows += [_row("ask", q.question, q.answer, kind, kind=q.kind, **(where if q.mentioned else {})) for q in asked]
    own = list(phrases.of(clip, rng, count - count // 2))
    silent = not clip.text and clip.label is not None
    for words, after, window in own:
        if window is not None and rng.random() < 0.5:
            asked_for = rng.choice(HALF_MINUTE).format(words=words)
            rows.append(_row("ask", asked_for, ordinal(window), "synthetic", kind="half minute", windows=[window]))
        else:
            where = {} if window is None else {"windows": [window]}
            rows.append(
                _row(
                    "ask",
                    rng.choice(CONTINUATION).format(words=words),
                    after,
                    "synthetic",
                    kind="continuation",
                    **where,
                )
            )
    for words in phrases.strange_to(clip, rng, count // 2 if own or silent else 0):
        asked_for = rng.choice(CONTINUATION).format(words=words)
        rows.append(_row("ask", asked_for, NOT_MENTIONED, "synthetic", kind="continuation"))
    return rows


def _orders_not_said(clip: Clip, rng: Random, count: int) -> list[Row]:
    if not count or clip.slots is not None or not (clip.text or "").strip() or ORDERED.search(clip.text or ""):
        return []
    asked = order_questions({}, rng, rng.sample(KINDS, count))
    return [_row("ask", q.question, q.answer, "synthetic", kind=q.kind) for q in asked]


def ordinal(index: int) -> str:
    """The index-th in words, or 11th and so on: as an answer to "which half minute?"."""
    return f"the {ORDINALS[index]}" if index < len(ORDINALS) else f"the {index + 1}{_ending(index + 1)}"


def _ending(number: int) -> str:
    return "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")


def _order_windows(clip: Clip) -> dict[str, Any]:
    """In which window of a composition its order is, where it is in one."""
    for segment in clip.segments or ():
        if (segment.model_extra or {}).get("slots") is not None:
            first, last = int(segment.start // WINDOW_SECONDS), int(segment.end // WINDOW_SECONDS)
            return {"windows": sorted({first, last})}
    return {}


class _Phrases:
    """Phrases of texts that occur once in theirs, so that there is one answer."""

    def __init__(self, clips: Sequence[Clip]):
        self.spoken = [clip for clip in clips if len((clip.text or "").split()) >= LEAST_PHRASE_TEXT]

    def of(self, clip: Clip, rng: Random, count: int) -> Iterator[tuple[str, str, int | None]]:
        """Up to `count` phrases of a clip, the words that follow, and the window that holds both, if it is known."""
        if len((clip.text or "").split()) < LEAST_PHRASE_TEXT:
            return
        places = [
            (s.text or "", int(s.start // WINDOW_SECONDS), int(s.end // WINDOW_SECONDS)) for s in clip.segments or ()
        ]
        stretches: list[tuple[str, int | None]] = [(text, first) for text, first, last in places if first == last]
        if not places:
            stretches = [(clip.text or "", 0 if clip.duration <= WINDOW_SECONDS else None)]
        long = [(t.split(), w) for t, w in stretches if len(t.split()) >= PHRASE_WORDS + ANSWER_WORDS]
        whole = f" {_plain(clip.text or '')} "
        for words, window in rng.sample(long, min(count, len(long))) if len(long) > 1 else long[:1] * count:
            at = rng.randrange(len(words) - PHRASE_WORDS - ANSWER_WORDS + 1)
            phrase, after = words[at : at + PHRASE_WORDS], words[at + PHRASE_WORDS : at + PHRASE_WORDS + ANSWER_WORDS]
            if whole.count(f" {_plain(' '.join(phrase))} ") == 1:
                yield " ".join(phrase), " ".join(after), window if clip.duration > WINDOW_SECONDS else None

    def strange_to(self, clip: Clip, rng: Random, count: int) -> Iterator[str]:
        """Up to `count` phrases of other clips that do not occur in this one."""
        whole = f" {_plain(clip.text or '')} "
        for _ in range(count * 4):
            if not count or not self.spoken:
                return
            words = (rng.choice(self.spoken).text or "").split()
            at = rng.randrange(len(words) - PHRASE_WORDS + 1)
            phrase = " ".join(words[at : at + PHRASE_WORDS])
            if f" {_plain(phrase)} " not in whole:
                count -= 1
                yield phrase


def _plain(text: str) -> str:
    return " ".join("".join(c for c in word if c.isalnum() or c == "'") for word in text.lower().split())
