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
from fastslm.errors import AudioError
from fastslm.features import file_mel, window_mel
from fastslm.longform.cuts import Cuts, cut
from fastslm.loudness import is_silent


@dataclass
class Recording:
    """One recording on its way through the model."""

    name: str
    total_seconds: float | None = None  # as its container says
    samples: list[int] = field(default_factory=list)  # of each window that was read
    silent: list[bool] = field(default_factory=list)
    tokens: list[torch.Tensor] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    partial: bool = False  # it breaks off, and what is there was asked for
    audio_digest: bytes = b""  # of what was read
    complete: bool = False  # all windows are read, though not all may be encoded

    @property
    def is_encoded(self) -> bool:
        """Whether all of it is."""
        return self.complete and len(self.tokens) == len(self.samples)

    def break_off(self, sentence: str) -> None:
        """It ended too early, as the sentence says."""
        self.warnings.append(sentence)
        self.partial = True


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
    """A window as it was read. features: (mel bins, 3000), `None` where its tokens are kept from before."""

    recording: Recording
    features: torch.Tensor | None
    samples: int
    silent: bool
    audio_digest: bytes


@dataclass(frozen=True)
class Hearing:
    """How recordings are read.

    Attributes:
        mel_bins, mel_mode: of the model's log-mel.
        sampling_rate: Hz, of arrays.
        cuts: where windows end.
        partial: whether of one that breaks off what is there is taken.
        known: windows of the first whose tokens are kept from before: they are read, but not looked at.
        probe: whether anybody wants to know beforehand how long they are.
    """

    mel_bins: int
    mel_mode: str
    sampling_rate: float | None = None
    cuts: Cuts = "fixed"
    partial: bool = False
    known: int = 0
    probe: bool = False

    def events(self, sources: Iterable[tuple[str, AudioSource]]) -> Iterator[Begun | Window | Ended]:
        """Of each named recording its beginning, its windows and its end.

        Raises:
            AudioError: one of them cannot be read, or changed meanwhile.
        """
        for name, source in sources:
            before = _file_stamp(source)
            recording = Recording(name, probe_duration(source, self.sampling_rate) if self.probe else None)
            yield Begun(recording)
            digest = hashlib.sha256()
            changed = f"{name} changed while it was read: wait until it is written, and run this again."
            try:
                for samples, features in self._features(recording, source):
                    digest.update(np.ascontiguousarray(samples, dtype=np.float32).tobytes())
                    length, silent = len(samples), is_silent(samples)
                    del samples
                    yield Window(recording, features, length, silent, digest.digest())
                    del features
            except AudioError as error:
                raise (AudioError(changed) if _file_stamp(source) != before else error) from error.__cause__
            if _file_stamp(source) != before:
                raise AudioError(changed)
            yield Ended(recording)

    def _features(self, recording: Recording, source: AudioSource) -> Iterator[tuple[np.ndarray, torch.Tensor | None]]:
        """Windows (samples,) and their log-mel (mel bins, 3000), one by one; no log-mel for the first `known`."""
        remarks: Any = {"on_warning": recording.warnings.append}
        remarks["on_cut"] = recording.break_off if self.partial else None
        if self.mel_mode == "authors":
            waveform = load_audio(source, self.sampling_rate, **remarks)
            whole = file_mel(waveform, self.mel_bins)
            for index, features in enumerate(whole):
                # The last window takes what is less than a frame beyond it.
                stop = None if index + 1 == len(whole) else (index + 1) * WINDOW_SAMPLES
                yield waveform[index * WINDOW_SAMPLES : stop], None if index < self.known else features
            return
        for index, window in enumerate(cut(stream_audio(source, self.sampling_rate, **remarks), self.cuts)):
            features = None if index < self.known else window_mel([window], self.mel_bins)[0]
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
