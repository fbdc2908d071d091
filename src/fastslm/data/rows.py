"""Rows, the examples of training: a recording, what is asked about it, and the right answer.

Rows come from JSONL manifests (`ManifestRows`), from Lhotse cuts (`fastslm.data.cuts`) and from short clips packed into
windows (`fastslm.data.packing`). A row only refers to its audio, which is decoded where the row is read.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np

from fastslm.audio import SAMPLE_RATE, WINDOW_SAMPLES, WINDOW_SECONDS, window_count
from fastslm.data.manifest import Clip, TaskName, read_manifest
from fastslm.data.reference import DURATION_TOLERANCE, AudioReference
from fastslm.errors import ManifestError, OptionError
from fastslm.prompts import language_code

# A row without sound takes as much of a batch as if its text was spoken, at so many letters a second.
LETTERS_A_SECOND = 15


class Sound(Protocol):
    """The recording of a row, by reference. It travels to worker processes, so it can be pickled."""

    def windows(self) -> Iterator[np.ndarray]:
        """(samples,) float32 at 16 kHz mono, 30 s each, the last as long as what is left."""
        ...

    def digest(self) -> str:
        """A name of the audio's content, in hexadecimal: equal sounds have equal digests, wherever they lie."""
        ...


@dataclass(frozen=True)
class Row:
    """One training example.

    Attributes:
        task: one of `fastslm.prompts.TASKS`.
        instruction: the words of the request; `None` for the default phrasing of the task.
        answer: what is right, as it is written; empty where there is nothing to write.
        language: of the answer, as a code.
        seconds: how long the recording lasts.
        windows: of 30 s that hold it; 0 in a row without sound.
        source: the manifest or folder that the row is from.
        text: what is said, where that is known.
        epoch: how often the source was gone through before.
    """

    id: str
    task: TaskName
    instruction: str | None
    answer: str
    language: str | None
    seconds: float
    windows: int
    source: str
    sound: Sound | None = None
    text: str | None = None
    epoch: int = 0

    @property
    def samples(self) -> int:
        """At 16 kHz."""
        return round(self.seconds * SAMPLE_RATE) if self.windows else 0

    @property
    def batch_seconds(self) -> float:
        """What the row takes of a batch: whole windows, because a model computes whole windows."""
        if self.windows:
            return float(self.windows * WINDOW_SECONDS)
        return len(f"{self.text or ''}{self.instruction or ''}{self.answer}") / LETTERS_A_SECOND

    def waveforms(self) -> Iterator[np.ndarray]:
        """As many arrays as `windows`: (480000,) float32 at 16 kHz mono, the last padded with zeros.

        Raises:
            ManifestError: the recording does not last as long as `seconds`, by more than `DURATION_TOLERANCE`.
            AudioError: it cannot be read.
        """
        found = samples = 0
        for block in self.sound.windows() if self.sound is not None else ():
            samples += len(block)
            if found < self.windows:
                found += 1
                yield np.pad(block, (0, WINDOW_SAMPLES - len(block))) if len(block) < WINDOW_SAMPLES else block
        if self.windows and abs(samples / SAMPLE_RATE - self.seconds) > DURATION_TOLERANCE:
            raise ManifestError(
                f"{self.source}: {self.id} lasts {samples / SAMPLE_RATE:.2f} s, but {self.seconds:.2f} s are stated; "
                "correct the duration there."
            )
        for _ in range(self.windows - found):
            yield np.zeros(WINDOW_SAMPLES, np.float32)


class Rows(Protocol):
    """A source of rows.

    Attributes:
        name: what messages call it.
    """

    name: str

    def durations(self) -> np.ndarray:
        """Seconds of each row, or the most that it can last; of text alone as `Row.batch_seconds`. (rows,)"""
        ...

    def epoch(self, seed: Sequence[int], number: int) -> Sequence[Row]:
        """The rows of an epoch in their order, which is a function of `seed` and `number` alone."""
        ...


class Asked(NamedTuple):
    """What a row asks for."""

    task: TaskName
    instruction: str | None
    answer: str
    language: str | None


def asked_of(known: Mapping[str, Any], place: str, task: str | None = None) -> Asked:
    """What is asked about a recording, from what is known of it.

    Args:
        known: `text`, `label`, `language`, `translation`, `target_language`, `summary`, and `task`, `instruction` and
            `answer` where a row was made before; those that are missing or `None` are unknown.
        place: what messages call the recording.
        task: which one is wanted; by default the row's own, else `transcribe`.

    Raises:
        ManifestError: it has no answer for that task.
    """
    own = known.get("task")
    if own is not None and task in (None, own):
        language = known.get("target_language") if own == "translate" else known.get("language")
        answer = known.get("answer")
        if answer is None:
            raise ManifestError(f"{place} has the task {own} but no answer; write the answer, or take the task out.")
        return Asked(own, known.get("instruction"), answer, _code(language))
    wanted = task or "transcribe"
    key = {"transcribe": "text", "translate": "translation", "summarize": "summary", "ask": "answer"}.get(wanted)
    if key is None:
        raise OptionError(f"There is no task {wanted!r}: choose transcribe, translate, summarize or ask.")
    answer = (known.get(key) or "").strip()
    # A sound that somebody named, and in which nobody speaks.
    silent = wanted == "transcribe" and not answer and known.get("label") is not None
    if not answer and not silent:
        remedy = "transcribe it first (fastslm data label)" if wanted == "transcribe" else f"write it as `{key}`"
        raise ManifestError(f"{place} has no {key}, so there is nothing to learn from it; {remedy}, or leave it out.")
    language = known.get("target_language") if wanted == "translate" else known.get("language")
    if wanted == "translate" and language is None:
        raise ManifestError(f"{place}: its translation has no target_language; write which language it is in.")
    return Asked(cast(TaskName, wanted), None, answer, _code(language))


def _code(language: str | None) -> str | None:
    """The code of a language that corpora give as a code or by its name, with or without a country or an accent.

    Others stay as they are.
    """
    if language is None:
        return None
    for name in (language, re.split("[-_]", language)[0]):  # en_us, English-Nigerian
        try:
            return language_code(name)
        except OptionError:
            continue
    return language


@dataclass(frozen=True)
class ClipSound:
    """The recording of a manifest's line."""

    clip: Clip

    def windows(self) -> Iterator[np.ndarray]:
        """As `Sound`."""
        return self.clip.windows()

    def digest(self) -> str:
        """As `Sound`."""
        clip = self.clip
        if not clip.pieces:
            assert clip.audio is not None
            return reference_digest(clip.audio, clip._folder, clip.place)
        pieces = [
            (piece.start, piece.end, reference_digest(piece.audio, clip._folder, clip.place))
            for piece in clip.pieces
            if piece.audio is not None
        ]
        return digest_of("composition", clip.duration, pieces)


class ManifestRows:
    """The rows of a JSONL manifest, in a new order every epoch.

    Args:
        task: which task the rows are to be of, where a line is no task by itself; `transcribe` by default.

    Raises:
        ManifestError: the manifest cannot be read, a line has nothing to learn, or audio is missing.
    """

    def __init__(self, path: Path, task: str | None = None):
        self.name = str(path)
        self.rows = [self._row(clip, task) for clip in read_manifest(path)]

    def _row(self, clip: Clip, task: str | None) -> Row:
        asked = asked_of(clip.known(), clip.place, task)
        if clip.text_alone:
            return Row(clip.id, *asked, seconds=0.0, windows=0, source=self.name, text=clip.text)
        clip.check_audio()
        windows = window_count(round(clip.duration * SAMPLE_RATE))
        return Row(clip.id, *asked, clip.duration, windows, self.name, ClipSound(clip), clip.text)

    def durations(self) -> np.ndarray:
        """As `Rows`."""
        return np.array([row.seconds if row.windows else row.batch_seconds for row in self.rows])

    def epoch(self, seed: Sequence[int], number: int) -> Sequence[Row]:
        """As `Rows`."""
        order = np.random.default_rng([*seed, number]).permutation(len(self.rows))
        return InOrder(self.rows, order, number)


class InOrder(Sequence[Row]):
    """The rows of an epoch, by their places in a source."""

    def __init__(self, rows: Sequence[Row], order: np.ndarray, epoch: int):
        self.rows, self.order, self.number = rows, order, epoch

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: Any) -> Any:
        return replace(self.rows[int(self.order[index])], epoch=self.number)


def digest_of(*parts: object) -> str:
    """SHA-256 of what `parts` are written as, in hexadecimal."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def reference_digest(reference: AudioReference, folder: Path, owner: str) -> str:
    """The digest of the encoded audio that a reference names."""
    found = reference.encoded(folder, owner)
    if isinstance(found, bytes):
        return hashlib.sha256(found).hexdigest()
    return file_digest(found)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content; read once, however many rows are parts of it."""
    state = path.stat()
    return _file_digest(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=65536)
def _file_digest(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
