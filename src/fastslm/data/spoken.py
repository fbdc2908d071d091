"""What is said in each window of a recording, as far as its segments tell: how a long row is laid out (ours).

At inference every window of 30 s gives its own words. Of a transcript only the times of segments are known, so a word
takes the share of its segment that it has of the segment's letters, and belongs to the window that its middle is in.
"""

from collections.abc import Sequence

import numpy as np

from fastslm.audio import SAMPLE_RATE, WINDOW_SECONDS, window_count
from fastslm.data.manifest import Clip
from fastslm.data.reference import Segment


def clip_windows(clip: Clip) -> int:
    """How many windows of 30 s hold a clip."""
    return window_count(round(clip.duration * SAMPLE_RATE))


def window_texts(clip: Clip) -> list[str]:
    """The words of each window of a clip; joined, they are its words, each once and in order.

    A clip without segments is taken as one; one of a single window keeps its text as it is.
    """
    count = clip_windows(clip)
    if count == 1:
        return [clip.text or ""]
    found: list[list[str]] = [[] for _ in range(count)]
    for segment in clip.segments or [Segment(start=0, end=clip.duration, text=clip.text)]:
        words = (segment.text or "").split()
        for word, middle in zip(words, _middles(words, segment.start, segment.end), strict=True):
            found[min(int(middle // WINDOW_SECONDS), count - 1)].append(word)
    return [" ".join(words) for words in found]


def _middles(words: Sequence[str], start: float, end: float) -> list[float]:
    """When the middle of each word is said, in seconds, if every letter takes as long as any other."""
    if not words:
        return []
    lengths = np.array([len(word) + 1 for word in words], dtype=float)
    ends = np.cumsum(lengths)
    return (start + (ends - lengths / 2) / ends[-1] * (end - start)).tolist()
