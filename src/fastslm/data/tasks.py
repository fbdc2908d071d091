"""Instruction data: what manifests know → rows with a task, an instruction in one of several phrasings, an answer.

    transcribe   text → the text; a label without text (nobody speaks) → an empty answer
    translate    translation → the translation
    summarize    summary → people's; long text → a summary taken from it, or key words (`synthetic`)
    ask          text → how a phrase goes on, in which half minute it is said (`synthetic`), and about phrases of other
                 clips, of clips without speech too: "not mentioned"

What `label_kind` says is where the answer is from. Each row draws from its own generator, of (seed, task, clip).

Summaries and key words are taken from a transcript by counting its words (ours). No sentence is written anew: the first
one leads, and of the others those follow, in their order, whose words are the most frequent in the whole (Luhn's idea,
1958). It teaches the form of the task, not the art.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from fastslm.audio import WINDOW_SECONDS
from fastslm.data.conversion import clip_of_cut
from fastslm.data.cut_audio import Cut, CutSound, sounding
from fastslm.data.manifest import Clip
from fastslm.errors import ManifestError, OptionError
from fastslm.prompts import NOT_MENTIONED, TASKS, language_code, language_name, task_named

# How the tasks are asked for: the default words of `fastslm.prompts` first, then others.
TRANSCRIBE = (
    TASKS["transcribe"].phrasing or "",
    "Write down what is said.",
    "What is said in this recording?",
    "Transcribe this.",
    "Please give a transcript of the audio.",
    "Type out the speech, word for word.",
    "Write the words that you hear.",
)
TRANSLATE = (
    TASKS["translate"].phrasing or "",
    "What is said, in {language}?",
    "Write in {language} what is said.",
    "Translate this recording into {language}.",
    "Please give a {language} translation of the speech.",
    "Put the speech into {language}.",
)
SUMMARIZE = (
    TASKS["summarize"].phrasing or "",
    "Give a short summary of the recording.",
    "What is this recording about?",
    "Sum up what is said.",
    "Tell me the main points, briefly.",
    "Please summarise the speech.",
)
KEYWORDS = (
    "List the key words of the recording.",
    "Which words matter most in what is said?",
    "Give a few key words for the speech.",
    "Name the most important words of the recording.",
)
CONTINUATION = (
    'What is said right after "{words}"?',
    'How does the speaker go on after "{words}"?',
    'Which words follow "{words}"?',
    'Complete from the recording: "{words} …"',
)
HALF_MINUTE = (
    'In which half minute is "{words}" said?',
    'Which half minute of the recording holds "{words}"?',
    'When is "{words}" said? Answer with the half minute.',
)

QUESTIONS = 2  # about each clip with text
PHRASE_WORDS = 4  # of a phrase that is asked about
ANSWER_WORDS = 3
LEAST_PHRASE_TEXT = 12  # words of a text that phrases are taken of
KEYWORD_SHARE = 0.25  # of the texts with a summary, those that are asked for key words
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
# Keys of a clip that are about the other tasks.
LEFT_OUT = ("summary", "translation", "words", "task", "instruction", "answer", "label_kind")
SUMMARY_SHARE = 1 / 3  # of the words
SUMMARY_WORDS = 60  # at most
LEAST_WORDS = 40  # of a text that is worth a summary
KEYWORD_COUNT = 5

_WORD = re.compile(r"[^\W\d_][\w'’-]*")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_COMMON_WORDS = """
a about above after again against all also am an and any are as at be because been before being below between both but
by came can cannot come could did do does doing down during each even ever every few first for from further get go
good had has have having he her here hers herself him himself his how i if in into is it its itself just know like
little long made make man many may me men might mister more most much must my myself never no nor not now of off old
on once one only or other our ours out over own people said same say see shall she should so some still such than that
the their theirs them themselves then there these they thing things think this those through time to too two under
until up upon us very was we well went were what when where which while who whom why will with without would yet you
your yours it's don't i'm i'll can't didn't that's
"""
_COMMON = frozenset(_COMMON_WORDS.split())

Line = dict[str, Any]
# Rows of the caller's own about a clip, which draw from its generator first.
Ask = Callable[[Clip, Random], list[Line]]


def synthesize(
    clips: Sequence[Clip],
    folder: Path,
    tasks: Sequence[str] = tuple(TASKS),
    seed: int = 0,
    questions: int = QUESTIONS,
    ask: Ask | None = None,
) -> list[Line]:
    """Rows of an instruction manifest in `folder`, in the order of the clips.

    Args:
        tasks: of `fastslm.prompts.TASKS`.
        questions: about each clip with text; half of them, rounded down, are about what was not said.
        ask: makes further rows of the task `ask`, ahead of the others of their clip.

    Raises:
        OptionError: an unknown task, or fewer than no questions.
        ManifestError: the clips have nothing to make rows of, an unknown language, or audio is missing.
    """
    rows: list[Line] = []
    for clip, made in tasks_of(clips, tasks, seed, questions, ask):
        shared = {key: value for key, value in clip.row(folder).items() if key not in LEFT_OUT}
        rows += [shared | {"of": clip.id, "id": f"{clip.id}/{i}"} | row for i, row in enumerate(made)]
    return rows


def synthesize_cuts(
    cuts: Sequence[CutSound], tasks: Sequence[str] = tuple(TASKS), seed: int = 0, questions: int = QUESTIONS
) -> list[Cut]:
    """Cuts with a task, an instruction and an answer among their custom fields. Arguments and errors: `synthesize`."""
    clips = [clip_of_cut(own.cut, own.folder) for own in cuts]
    sounds = {own.cut["id"]: own for own in cuts}
    found: list[Cut] = []
    for clip, made in tasks_of(clips, tasks, seed, questions):
        for number, row in enumerate(made):
            cut = sounds[clip.id].by_reference()
            _, first = sounding(cut)[0]
            kept = {key: value for key, value in (first.get("custom") or {}).items() if key not in LEFT_OUT}
            first["custom"] = kept | {"of": clip.id} | row
            found.append(cut | {"id": f"{clip.id}/{number}"})
    return found


def tasks_of(
    clips: Sequence[Clip], tasks: Sequence[str], seed: int, questions: int = QUESTIONS, ask: Ask | None = None
) -> list[tuple[Clip, list[Line]]]:
    """What is made of each clip of which anything can be. Arguments and errors as of `synthesize`."""
    if questions < 0:
        raise OptionError(f"{questions} questions a clip are not possible: ask for 0 or more.")
    wanted = [task_named(task).name for task in tasks]
    phrases = _Phrases(clips)
    found: list[tuple[Clip, list[Line]]] = []
    for clip in clips:
        made: list[Line] = []
        for task in wanted:
            rng = Random(f"{seed} {task} {clip.id}".encode(errors="surrogateescape"))
            if task == "ask":
                made += ask(clip, rng) if ask is not None else []
                made += _asked(clip, phrases, rng, questions)
            else:
                made += {"transcribe": _transcribed, "translate": _translated, "summarize": _summed_up}[task](clip, rng)
        if made:
            found.append((clip, made))
    if not found:
        raise ManifestError(
            f"{clips[0].place if clips else 'The manifest'}: neither it nor any other clip has what there is to "
            f"{' or '.join(wanted)}; give clips with text, translation, summary or label, or ask for "
            "other --tasks."
        )
    return found


def tally(rows: Sequence[Line]) -> dict[str, dict[str, int]]:
    """How many rows there are of each task and kind of label."""
    counts: dict[str, dict[str, int]] = {}
    for (task, kind), count in sorted(Counter((row["task"], row["label_kind"]) for row in rows).items()):
        counts.setdefault(task, {})[kind] = count
    return counts


def task_row(task: str, instruction: str, answer: str, label_kind: str, **more: Any) -> Line:
    return {"task": task, "instruction": instruction, "answer": answer, "label_kind": label_kind, **more}


def _transcribed(clip: Clip, rng: Random) -> list[Line]:
    silent = not clip.text and clip.label is not None
    if not silent and not (clip.text or "").strip():
        return []
    return [task_row("transcribe", rng.choice(TRANSCRIBE), (clip.text or "").strip(), clip.label_kind or "human")]


def _translated(clip: Clip, rng: Random) -> list[Line]:
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
    return [task_row("translate", asked, answer, clip.label_kind or "human", target_language=code)]


def _summed_up(clip: Clip, rng: Random) -> list[Line]:
    text = clip.text or ""
    if (clip.summary or "").strip():
        return [task_row("summarize", rng.choice(SUMMARIZE), (clip.summary or "").strip(), clip.label_kind or "human")]
    if len(text.split()) < LEAST_WORDS:
        return []
    summary = extractive_summary(sentences_of(text, [segment.text or "" for segment in clip.segments or ()]))
    if summary is None or rng.random() < KEYWORD_SHARE:
        words = keywords(text)
        return (
            [task_row("summarize", rng.choice(KEYWORDS), ", ".join(words), "synthetic", kind="keywords")]
            if words
            else []
        )
    return [task_row("summarize", rng.choice(SUMMARIZE), summary, "synthetic", kind="extract")]


def _asked(clip: Clip, phrases: "_Phrases", rng: Random, count: int) -> list[Line]:
    rows: list[Line] = []
    own = list(phrases.of(clip, rng, count - count // 2))
    silent = not clip.text and clip.label is not None
    for words, after, window in own:
        if window is not None and rng.random() < 0.5:
            asked_for = rng.choice(HALF_MINUTE).format(words=words)
            rows.append(task_row("ask", asked_for, ordinal(window), "synthetic", kind="half minute", windows=[window]))
        else:
            where = {} if window is None else {"windows": [window]}
            rows.append(
                task_row(
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
        rows.append(task_row("ask", asked_for, NOT_MENTIONED, "synthetic", kind="continuation"))
    return rows


def ordinal(index: int) -> str:
    """The index-th in words, or 11th and so on: as an answer to "which half minute?"."""
    return f"the {ORDINALS[index]}" if index < len(ORDINALS) else f"the {index + 1}{_ending(index + 1)}"


def _ending(number: int) -> str:
    return "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")


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


def sentences_of(text: str, segments: Sequence[str] = ()) -> list[str]:
    """The sentences of a text by its marks; of one without marks, its segments; else nothing, for none can be told."""
    marked = [part.strip() for part in _SENTENCE_END.split(text) if part.strip()]
    if len(marked) > 1:
        return marked
    return [segment.strip() for segment in segments if segment.strip()] if len(segments) > 1 else []


def extractive_summary(sentences: Sequence[str]) -> str | None:
    """The lead and the sentences of the most frequent words, in their order; `None` for what is too short to sum up."""
    lengths = [len(sentence.split()) for sentence in sentences]
    if len(sentences) < 3 or sum(lengths) < LEAST_WORDS:
        return None
    counts = Counter(word for sentence in sentences for word in content_words(sentence))
    scores = [
        sum(counts[w] for w in set(content_words(s))) / (n + 3) if n else 0.0
        for s, n in zip(sentences, lengths, strict=True)
    ]
    budget = min(SUMMARY_WORDS, SUMMARY_SHARE * sum(lengths))
    chosen, used = {0}, lengths[0]
    telling = [index for index in range(1, len(sentences)) if scores[index] > sum(scores) / len(scores)]
    for index in sorted(telling, key=lambda i: (-scores[i], i)):
        if used + lengths[index] <= budget:
            chosen.add(index)
            used += lengths[index]
    return " ".join(sentences[index] for index in sorted(chosen)) if len(chosen) < len(sentences) else None


def keywords(text: str, count: int = KEYWORD_COUNT) -> list[str]:
    """The words that occur most often, in order of their first occurrence; of equally frequent ones the longest."""
    found = content_words(text)
    counts = Counter(found)
    ranked = sorted(counts, key=lambda word: (-counts[word], -len(word), found.index(word)))[:count]
    return sorted(ranked, key=found.index)


def content_words(text: str) -> list[str]:
    """The words of a text in lower case without those that any text has."""
    return [word for word in (w.lower() for w in _WORD.findall(text)) if word not in _COMMON and len(word) > 2]
