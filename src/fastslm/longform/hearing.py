"""Recordings → windows with their log-mel, in order: what is read, and runs ahead of the model."""

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from fastslm.audio import WINDOW_SAMPLES, AudioSource, load_audio, probe_duration, stream_audio
from fastslm.audio.loudness import is_silent
from fastslm.audio.part import WHOLE, Part
from fastslm.errors import AudioError
from fastslm.features import file_mel, window_mel
from fastslm.longform.cuts import Cuts, cut


@dataclass
class Recording:
    """One recording on its way through the model."""

    name: str
    total_seconds: float | None = None  # as its container says
    samples: list[int] = field(default_factory=list)  # of each window that was read
    silent: list[bool] = field(default_factory=list)
    tokens: dict[int, torch.Tensor] = field(default_factory=dict)  # by the window's number
    warnings: list[str] = field(default_factory=list)
    partial: bool = False  # it breaks off
    missing_seconds: float | None = None  # that lack then, where that is known
    audio_digest: bytes = b""  # of what was read
    complete: bool = False  # all windows are read, though not all may be encoded

    @property
    def is_encoded(self) -> bool:
        """Whether all of it is."""
        return self.complete and len(self.tokens) == len(self.samples)

    def break_off(self, sentence: str, missing: float | None) -> None:
        """It ended too early, as the sentence says, by so many seconds."""
        self.warnings.append(sentence)
        self.partial, self.missing_seconds = True, missing


@dataclass(frozen=True)
class Begun:
    """A recording is about to be read."""

    recording: Recording


@dataclass(frozen=True)
class Ended:
    """All of it is read."""

    recording: Recording


@dataclass(frozen=True)
class Window:
    """A window as it was read.

    Attributes:
        number: of the recording's windows, from 0 on.
        features: (mel bins, 3000), `None` where its tokens are kept from before, or it is blank.
        blank: whether all of its samples are 0: its tokens are those of any such window.
    """

    recording: Recording
    number: int
    features: torch.Tensor | None
    samples: int
    silent: bool
    audio_digest: bytes
    blank: bool = False


@dataclass(frozen=True)
class Hearing:
    """How recordings are read.

    Attributes:
        mel_bins, mel_mode: of the model's log-mel.
        sampling_rate: Hz, of arrays.
        cuts: where windows end.
        part: what of each recording is read.
        strict: whether one that breaks off is an error.
        known: windows of the first whose tokens are kept from before: they are read, but not looked at. Blank ones
            are not among them.
        probe: whether anybody wants to know beforehand how long they are.
    """

    mel_bins: int
    mel_mode: str
    sampling_rate: float | None = None
    cuts: Cuts = "fixed"
    part: Part = WHOLE
    strict: bool = False
    known: int = 0
    probe: bool = False

    def events(self, sources: Iterable[tuple[str, AudioSource]]) -> Iterator[Begun | Window | Ended]:
        """Of each named recording its beginning, its windows and its end.

        Raises:
            AudioError: one of them cannot be read, or changed meanwhile.
        """
        for name, source in sources:
            before = _file_stamp(source)
            recording = Recording(name, probe_duration(source, self.sampling_rate, self.part) if self.probe else None)
            yield Begun(recording)
            digest = hashlib.sha256()
            changed = f"{name} changed while it was read: wait until it is written, and run this again."
            try:
                for number, (samples, features) in enumerate(self._features(recording, source)):
                    digest.update(np.ascontiguousarray(samples, dtype=np.float32).data)
                    blank = self._is_blank(samples)
                    length, silent = len(samples), blank or is_silent(samples)
                    del samples
                    yield Window(recording, number, features, length, silent, digest.digest(), blank)
                    del features
            except AudioError as error:
                raise (AudioError(changed) if _file_stamp(source) != before else error) from error.__cause__
            if _file_stamp(source) != before:
                raise AudioError(changed)
            yield Ended(recording)

    def _is_blank(self, samples: np.ndarray) -> bool:
        """Whether its log-mel is that of no sound; in the mode `authors` it is not its own."""
        return self.mel_mode != "authors" and not samples.any()

    def _features(self, recording: Recording, source: AudioSource) -> Iterator[tuple[np.ndarray, torch.Tensor | None]]:
        """Windows (samples,) and their log-mel (mel bins, 3000), one by one; none for the first `known`, and blanks."""
        options: Any = {"part": self.part, "strict": self.strict}
        options |= {"on_warning": recording.warnings.append, "on_partial": recording.break_off}
        if self.mel_mode == "authors":
            waveform = load_audio(source, self.sampling_rate, **options)
            whole = file_mel(waveform, self.mel_bins)
            for index, features in enumerate(whole):
                # The last window takes what is less than a frame beyond it.
                stop = None if index + 1 == len(whole) else (index + 1) * WINDOW_SAMPLES
                yield waveform[index * WINDOW_SAMPLES : stop], None if index < self.known else features
            return
        known = self.known
        for window in cut(stream_audio(source, self.sampling_rate, **options), self.cuts):
            blank = self._is_blank(window)
            features = None if blank or known > 0 else window_mel([window], self.mel_bins)[0]
            known -= not blank
            yield window, features
            del window, features


def _file_stamp(source: AudioSource) -> tuple[int, int, int] | None:
    """What shows that a file was changed: its number, size and time; `None` of what is no file."""
    if not isinstance(source, str | os.PathLike):
        return None
    try:
        facts = os.stat(source)
    except OSError:  # too long a name, say; decoding it has the sentence
        return None
    return (facts.st_ino, facts.st_size, facts.st_mtime_ns) if stat.S_ISREG(facts.st_mode) else None
