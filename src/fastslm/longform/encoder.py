"""Recordings → speech memories: windows stream from the file to the model in groups, and only tokens are kept."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from fastslm.audio import SAMPLE_RATE, WINDOW_SAMPLES, AudioSource, load_audio, probe_duration, stream_audio
from fastslm.features import file_mel, window_mel
from fastslm.longform.fingerprint import token_fingerprint
from fastslm.longform.memory import MemoryFacts, SpeechMemory
from fastslm.longform.results import Progress
from fastslm.model.modeling import FastSLMForConditionalGeneration

# Windows that pass the model together. Fixed, so that memory and results do not depend on the recording.
GROUP_WINDOWS = 4
# A window is silent where no half second of it is louder than this, relative to full scale.
SILENCE_DBFS = -60.0
STRETCH_SAMPLES = SAMPLE_RATE // 2

OnProgress = Callable[[Progress], None]


@dataclass
class _Recording:
    """One recording on its way through the model."""

    name: str
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    samples: list[int] = field(default_factory=list)  # of each window
    silent: list[bool] = field(default_factory=list)
    tokens: list[torch.Tensor] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    complete: bool = False  # all windows are read, though not all may be encoded


class WindowEncoder:
    """Encodes recordings with one model.

    Args:
        model: in evaluation mode, on the device where it is to run.
        group_windows: windows that pass the model together.
    """

    def __init__(self, model: FastSLMForConditionalGeneration, group_windows: int = GROUP_WINDOWS):
        self.model = model
        self.group_windows = group_windows
        self._fingerprint: str | None = None

    @property
    def fingerprint(self) -> str:
        """Of the tokens that this encoder makes."""
        if self._fingerprint is None:
            self._fingerprint = token_fingerprint(self.model)
        return self._fingerprint

    def encode(
        self,
        source: AudioSource,
        sampling_rate: float | None = None,
        *,
        name: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> SpeechMemory:
        """The speech memory of a recording of any length. Arguments and errors are `fastslm.audio.stream_audio`'s.

        Memory does not grow with the duration but by the tokens, 50 × hidden numbers for 30 s; in the mel mode
        `authors` the waveform is held whole.
        """
        (memory,) = self.encode_many([(name or name_of(source), source)], sampling_rate, on_progress=on_progress)
        if on_progress:
            on_progress(Progress(memory.duration, memory.duration))
        return memory

    def encode_many(
        self,
        sources: Iterable[tuple[str, AudioSource]],
        sampling_rate: float | None = None,
        *,
        on_progress: OnProgress | None = None,
    ) -> Iterator[SpeechMemory]:
        """The memories of named recordings, in their order; windows of several share a group.

        A window's tokens do not depend on its group: each memory equals that of `encode` to the arithmetic's rounding.
        """
        waiting: list[_Recording] = []
        group: list[tuple[_Recording, torch.Tensor]] = []
        for name, source in sources:
            recording = _Recording(name)
            waiting.append(recording)
            total = None
            if on_progress:
                total = probe_duration(source, sampling_rate)
                on_progress(Progress(0.0, total))
            for features in self._features(recording, source, sampling_rate):
                group.append((recording, features))
                if len(group) == self.group_windows:
                    self._run(group)
                    if on_progress:
                        on_progress(Progress(sum(recording.samples) / SAMPLE_RATE, total))
            recording.complete = True
            while waiting and waiting[0].complete and len(waiting[0].tokens) == len(waiting[0].samples):
                yield self._memory(waiting.pop(0))
        self._run(group)
        for recording in waiting:
            yield self._memory(recording)

    def _features(
        self, recording: _Recording, source: AudioSource, sampling_rate: float | None
    ) -> Iterator[torch.Tensor]:
        """Log-mel windows (mel bins, 3000), one by one."""
        mels = self.model.config.audio_config.num_mel_bins
        if self.model.config.mel_mode == "authors":
            waveform = load_audio(source, sampling_rate, on_warning=recording.warnings.append)
            whole = file_mel(waveform, mels)
            for index, features in enumerate(whole):
                # The last window takes what is less than a frame beyond it.
                stop = None if index + 1 == len(whole) else (index + 1) * WINDOW_SAMPLES
                _note(recording, waveform[index * WINDOW_SAMPLES : stop])
                yield features
            return
        for window in stream_audio(source, sampling_rate, on_warning=recording.warnings.append):
            _note(recording, window)
            yield window_mel([window], mels)[0]

    @torch.inference_mode()
    def _run(self, group: list[tuple[_Recording, torch.Tensor]]) -> None:
        if not group:
            return
        features = torch.stack([features for _, features in group]).to(self.model.device)
        tokens = self.model.get_speech_tokens(features).cpu()
        for (recording, _), own in zip(group, tokens, strict=True):
            # A view would keep the whole group in memory.
            recording.tokens.append(own.clone())
        group.clear()

    def _memory(self, recording: _Recording) -> SpeechMemory:
        ends = np.cumsum(recording.samples) / SAMPLE_RATE
        times = torch.from_numpy(np.stack([np.concatenate([[0.0], ends[:-1]]), ends], axis=1))
        facts = MemoryFacts(
            token_fingerprint=self.fingerprint,
            name=recording.name,
            duration=float(ends[-1]),
            audio_sha256=recording.digest.hexdigest(),
            warnings=tuple(recording.warnings),
        )
        return SpeechMemory(torch.stack(recording.tokens), times, torch.tensor(recording.silent), facts)


def name_of(source: AudioSource) -> str:
    """What messages call a recording: its path, or that it is an array."""
    name = source if isinstance(source, str) else getattr(source, "name", None) or getattr(source, "__fspath__", None)
    if callable(name):
        name = name()
    return str(name) if isinstance(name, str) else "the recording"


def is_silent(samples: np.ndarray) -> bool:
    """Whether no half second is louder than `SILENCE_DBFS`: digital silence, and the noise of quantising it."""
    loudest = 0.0
    for start in range(0, len(samples), STRETCH_SAMPLES):
        stretch = samples[start : start + STRETCH_SAMPLES]
        loudest = max(loudest, float(np.mean(np.square(stretch, dtype=np.float64))))
    return loudest < 10 ** (SILENCE_DBFS / 10)


def _note(recording: _Recording, samples: np.ndarray) -> None:
    recording.digest.update(np.ascontiguousarray(samples, dtype=np.float32).tobytes())
    recording.samples.append(len(samples))
    recording.silent.append(is_silent(samples))


def window_seconds(times: torch.Tensor) -> list[float]:
    """Seconds of each window, (windows, 2) → windows numbers."""
    return [end - start for start, end in times.tolist()]
