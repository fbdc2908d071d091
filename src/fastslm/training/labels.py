"""Texts to train towards: as people wrote the words, and as Whisper writes case and punctuation (ours).

The decoder that reads the tokens writes sentences, but many corpora have their words in lower case and without marks,
and some have none at all. So each recording is heard by Whisper's own decoder once. Where it heard the words that are
known, they take its case and marks; where it heard others, people's stand. A clip without text gets what was heard.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Protocol

import numpy as np

from fastslm.data.manifest import Clip, write_manifest
from fastslm.data.packing import Packing, pack, render

# Full windows, nothing that a label would not want to be heard under.
QUIET = Packing(gap=(0.4, 0.6), silent_ends=0.0, without_speech=0.0, noise=0.0, gain_db=0.0)


class Listener(Protocol):
    """What writes down recordings; `fastslm.evaluation.baselines.WhisperSystem` is one."""

    def hear(self, waveforms: Iterable[np.ndarray]) -> Iterator[tuple[str, str]]:
        """Text and finish reason of each recording, float32 (samples,), 16 kHz mono."""
        ...


def is_styled(text: str) -> bool:
    """Whether a text has marks, or small and capital letters, of its own, so that nothing needs to be lent to it."""
    return bool(re.search(r"[.,?!]", text)) or text not in (text.lower(), text.upper())


def styled_words(words: Sequence[str], heard: str) -> list[str | None]:
    """People's words with the case and marks of what was heard; `None` where something else was heard.

    A word without letters or digits, such as a dash, is like no other.

    Returns:
        As many as `words`, in their order.
    """
    written = heard.split()
    lent: list[str | None] = [None] * len(words)
    matcher = SequenceMatcher(None, [_bare(w) for w in words], [_bare(w) for w in written], autojunk=False)
    for block in matcher.get_matching_blocks():
        for offset in range(block.size):
            lent[block.a + offset] = written[block.b + offset]
    return lent


def _bare(word: str) -> str:
    word = word.lower().replace("\u2019", "'")
    bare = "".join(letter for letter in word if letter.isalnum() or letter == "'")
    return bare if bare.strip("'") else word


def label_clips(
    clips: Sequence[Clip], listener: Listener, on_clip: Callable[[int], None] | None = None
) -> dict[str, tuple[str, str]]:
    """The text to train towards of every clip, by its id, and whose words it is: as the clip says, or `pseudo`.

    Clips with text are heard packed into windows, which takes a fifth of the time.

    Raises:
        ManifestError, AudioError: a recording cannot be read, or is longer than a window.
    """
    found: dict[str, tuple[str, str]] = {}
    plain = [clip for clip in clips if clip.text and not is_styled(clip.text)]
    unknown = [clip for clip in clips if not clip.text]
    found |= {clip.id: (clip.text, clip.label_kind or "human") for clip in clips if clip.text and is_styled(clip.text)}
    windows = pack(plain, [], QUIET, (0,)) if plain else []
    again: list[Clip] = []
    for window, (heard, _) in zip(windows, listener.hear(render(w) for w in windows), strict=True):
        words = [(p.clip.id, word) for p in window.placements for word in (p.clip.text or "").split()]
        lent = styled_words([word for _, word in words], heard)
        for placement in window.placements:
            own = [new for (owner, _), new in zip(words, lent, strict=True) if owner == placement.clip.id]
            if own.count(None) > len(own) / 2:
                # Whisper may pass over a part of a window.
                again.append(placement.clip)
            found[placement.clip.id] = (_written(placement.clip, own), placement.clip.label_kind or "human")
        if on_clip:
            on_clip(len(found))
    for clip, (heard, _) in zip(again, listener.hear(clip.read() for clip in again), strict=True):
        own = styled_words((clip.text or "").split(), heard)
        found[clip.id] = (_written(clip, own), clip.label_kind or "human")
    for clip, (heard, _) in zip(unknown, listener.hear(clip.read() for clip in unknown), strict=True):
        found[clip.id] = (heard, "pseudo")
        if on_clip:
            on_clip(len(found))
    return found


def _written(clip: Clip, lent: Sequence[str | None]) -> str:
    """A clip's words as they were lent; those that were not heard stand in small letters if all came in capitals."""
    text = clip.text or ""
    words = (text.lower() if text.isupper() else text).split()
    return " ".join(word if new is None else new for word, new in zip(words, lent, strict=True))


def write_labelled(clips: Sequence[Clip], labels: dict[str, tuple[str, str]], out: Path) -> int:
    """A manifest of the clips with their new texts, `label_kind`, and paths from where it lies. Returns its rows.

    A clip in which nothing was heard, though its text was unknown, is left out: nobody can say that it is silent.
    """
    heard = [(clip, *labels[clip.id]) for clip in clips if labels[clip.id][0]]
    folder = out.resolve().parent
    return write_manifest(out, [{**clip.row(folder), "text": text, "label_kind": kind} for clip, text, kind in heard])
