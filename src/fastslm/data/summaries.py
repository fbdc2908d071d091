"""Summaries and key words taken from a transcript by counting its words: weak labels, called `synthetic` (ours).

No sentence is written anew. The first sentence leads, and of the others those follow, in their order, whose words are
the most frequent in the whole (Luhn's idea, 1958). It teaches the form of the task, not the art.
"""

import re
from collections import Counter
from collections.abc import Sequence

SUMMARY_SHARE = 1 / 3  # of the words
SUMMARY_WORDS = 60  # at most
LEAST_WORDS = 40  # of a text that is worth a summary
KEYWORDS = 5

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


def keywords(text: str, count: int = KEYWORDS) -> list[str]:
    """The words that occur most often, in order of their first occurrence; of equally frequent ones the longest."""
    found = content_words(text)
    counts = Counter(found)
    ranked = sorted(counts, key=lambda word: (-counts[word], -len(word), found.index(word)))[:count]
    return sorted(ranked, key=found.index)


def content_words(text: str) -> list[str]:
    """The words of a text in lower case without those that any text has."""
    return [word for word in (w.lower() for w in _WORD.findall(text)) if word not in _COMMON and len(word) > 2]
