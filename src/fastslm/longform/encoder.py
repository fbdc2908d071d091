"""Recordings → speech memories: windows stream from the file to the model in groups, and only tokens are kept.

Decoding and log-mel run in a thread ahead of the model, in which groups are computed side by side. What is held grows
with the recording by its tokens alone.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from threading import Lock
from typing import Any

import numpy as np
import torch

from fastslm.audio import PAD_TO_SAMPLES, SAMPLE_RATE, AudioSource
from fastslm.audio.part import WHOLE, Part
from fastslm.errors import AudioError, OptionError
from fastslm.features import window_mel
from fastslm.longform.ahead import ahead
from fastslm.longform.cuts import Cuts, check_cuts
from fastslm.longform.fingerprint import token_fingerprint
from fastslm.longform.hearing import Begun, Hearing, Recording, Window
from fastslm.longform.memory import MemoryFacts, SpeechMemory
from fastslm.longform.results import Progress
from fastslm.longform.resumption import KeptGroups
from fastslm.longform.workers import Task, Workers, worker_count
from fastslm.model.adapters import adapted_parts, weights_seen
from fastslm.model.fast_encoder import FastEncoder
from fastslm.model.hfq_former import HFQFormer
from fastslm.model.modeling import FastSLMForConditionalGeneration
from fastslm.model.narrow_copy import narrow_copy
from fastslm.model.products import Kernels

# Windows that pass the model together. Fixed, so that memory and results do not depend on the recording.
GROUP_WINDOWS = 2
OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class _Group:
    """Windows that are being encoded.

    Attributes:
        kept: whether their tokens are of before.
    """

    windows: list[Window]
    tokens: Task[torch.Tensor]
    kept: bool


@dataclass(frozen=True)
class _Narrow:
    """What windows pass on their way, in a narrower type than the model's or with other kernels.

    hfq_former: `None` where it is the model's own.
    """

    encoder: Any
    hfq_former: HFQFormer | None


class WindowEncoder:
    """Encodes recordings with one model.

    Args:
        model: in evaluation mode, on the device where it is to run; its weights stay as they are during an encoding,
            for which they are copied where `dtype` is another than theirs.
        group_windows: windows that pass the model together.
        workers: groups that are computed side by side; `None` is what the device can best do.
        dtype: what encoder and HFQ-Former compute in, and of the tokens; `None` is the model's own. In float32 a
            window's tokens do not depend on its group but for rounding (1e-4); in bfloat16 they agree as far as
            bfloat16 goes.
        kernels: what the encoder multiplies with in bfloat16 (`fastslm.model.products`).

    Raises:
        OptionError: `dtype` is no narrower than the model's own, or not what the kernels are for.
    """

    def __init__(
        self,
        model: FastSLMForConditionalGeneration,
        group_windows: int = GROUP_WINDOWS,
        dtype: torch.dtype | None = None,
        workers: int | None = None,
        kernels: Kernels = "torch",
    ):
        self.model = model
        self.group_windows = group_windows
        self.workers = workers
        self.dtype = None if dtype is model.dtype else dtype
        if self.dtype is not None and not (self.dtype.is_floating_point and self.dtype.itemsize < model.dtype.itemsize):
            asked, own = (str(of).removeprefix("torch.") for of in (self.dtype, model.dtype))
            raise OptionError(
                f"The encoder cannot compute in {asked}, which is no narrower than the model's {own}: load the "
                f"model in {asked}, or leave it out."
            )
        self.kernels: Kernels = kernels
        if kernels == "products" and (self.dtype or model.dtype) is not torch.bfloat16:
            raise OptionError("The kernels `products` compute in bfloat16: give that dtype too, or leave them out.")
        self._fingerprint: str | None = None
        self._blank: torch.Tensor | None = None
        self._copies: _Narrow | None = None
        self._weights: tuple[object, ...] = ()
        self._copying = Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Copied or sent to another process, it makes its narrow copies anew."""
        return {**self.__dict__, "_copies": None, "_copying": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _copying=Lock())

    @property
    def fingerprint(self) -> str:
        """Of the tokens that this encoder makes."""
        self._follow_weights()
        if self._fingerprint is None:
            self._fingerprint = token_fingerprint(self.model)
        return self._fingerprint

    def encode(
        self,
        source: AudioSource,
        sampling_rate: float | None = None,
        *,
        name: str | None = None,
        cuts: Cuts = "fixed",
        kept_at: str | os.PathLike | None = None,
        part: Part = WHOLE,
        strict: bool = False,
        on_progress: OnProgress | None = None,
    ) -> SpeechMemory:
        """The speech memory of a recording of any length. Arguments and errors are `fastslm.audio.stream_audio`'s.

        Memory does not grow with the duration but by the tokens, 50 × hidden numbers for 30 s; in the mel mode
        `authors` the waveform is held whole. A window without any sound, as in a long gap, is not encoded: all have
        the same tokens.

        Args:
            cuts: `fixed`, every 30 s; `quiet`, at the quietest place within the last 5 s of each 30.
            kept_at: a file for the finished groups. Where a stopped encoding of this recording left one, it goes on,
                to the same bits. The caller deletes it once the memory is saved; what was made of a recording that
                cannot be encoded is deleted here.
            part: what of the recording is read; times stay those of the whole recording.
            strict: refuse a recording that breaks off before its end; else what is there is taken, and the memory
                marked.
            on_progress: told how far it is; first how far it was when it went on.

        Raises:
            OptionError: cuts that the model's log-mel does not allow.
            FastSLMError: `kept_at` cannot be written, or belongs to another recording.
        """
        with ExitStack() as stack:
            kept = None
            if kept_at is not None:
                kept = stack.enter_context(KeptGroups(kept_at, self._stamp(cuts, part)))
            sources = [(name or name_of(source), source)]
            try:
                (memory,) = self._encode(sources, sampling_rate, cuts, part, strict, kept, on_progress)
            except AudioError as error:
                # A read that failed may succeed the next time; a recording that is at fault has to be another one.
                if kept is not None and not isinstance(error.__cause__, OSError):
                    kept.discard()
                raise
        return memory

    def encode_many(
        self,
        sources: Iterable[tuple[str, AudioSource]],
        sampling_rate: float | None = None,
        *,
        cuts: Cuts = "fixed",
        part: Part = WHOLE,
        strict: bool = False,
        on_progress: OnProgress | None = None,
    ) -> Iterator[SpeechMemory]:
        """The memories of named recordings, in their order; windows of several share a group.

        A window's tokens do not depend on its group: each memory equals that of `encode` to the arithmetic's rounding.
        The sources are iterated in another thread. Progress is told of one after another, each from its start to its
        end.
        """
        yield from self._encode(sources, sampling_rate, cuts, part, strict, None, on_progress)

    def _encode(
        self,
        sources: Iterable[tuple[str, AudioSource]],
        sampling_rate: float | None,
        cuts: Cuts,
        part: Part,
        strict: bool,
        kept: KeptGroups | None,
        on_progress: OnProgress | None,
    ) -> Iterator[SpeechMemory]:
        check_cuts(cuts, self.model.config.mel_mode)
        count = worker_count(self.model.device) if self.workers is None else self.workers
        known = kept.windows if kept else 0
        waiting: list[Recording] = []
        group: list[Window] = []
        running: deque[_Group] = deque()
        start = kept.samples / SAMPLE_RATE if kept else 0.0
        config = self.model.config
        mel = (config.audio_config.num_mel_bins, config.mel_mode)
        hearing = Hearing(*mel, sampling_rate, cuts, part, strict, known, probe=on_progress is not None)
        events = ahead(hearing.events(sources), count * self.group_windows)
        with Workers(count) as workers, _kept_if_stopped(running, kept):
            for event in events:
                if isinstance(event, Window):
                    event.recording.samples.append(event.samples)
                    event.recording.silent.append(event.silent)
                    event.recording.audio_digest = event.audio_digest
                    if event.blank:
                        event.recording.tokens[event.number] = self.blank_tokens
                    else:
                        group.append(event)
                    if len(group) == self.group_windows:
                        running.append(self._begun(group, kept, workers))
                        group = []
                        # One more than there are workers: none of them is to wait for this thread.
                        if len(running) > count:
                            self._finish(running.popleft(), kept, waiting[0], on_progress)
                elif isinstance(event, Begun):
                    waiting.append(event.recording)
                    if on_progress and len(waiting) == 1:
                        on_progress(Progress(start, event.recording.total_seconds))
                else:
                    event.recording.complete = True
                while waiting and waiting[0].is_encoded:
                    yield self._ended(waiting, part.start, on_progress)
            if group:
                running.append(self._begun(group, kept, workers))
            while running:
                self._finish(running.popleft(), kept, waiting[0], on_progress)
                while waiting and waiting[0].is_encoded:
                    yield self._ended(waiting, part.start, on_progress)

    def _begun(self, group: list[Window], kept: KeptGroups | None, workers: Workers) -> _Group:
        """A group on its way, its tokens taken from before where they are kept."""
        done = kept.take([window.samples for window in group], group[-1].audio_digest) if kept else None
        if done is not None:
            return _Group(group, Task(lambda: done), kept=True)
        features = torch.stack([window.features for window in group if window.features is not None])
        return _Group(group, workers.submit(lambda: self.tokens(features)), kept=False)

    def _finish(
        self, group: _Group, kept: KeptGroups | None, recording: Recording, on_progress: OnProgress | None
    ) -> None:
        """Wait for a group's tokens, and give them to their recordings, of which `recording` is the first."""
        tokens = group.tokens.result()
        _keep(group, kept)
        for window, own in zip(group.windows, tokens, strict=True):
            # A view would keep the whole group in memory.
            window.recording.tokens[window.number] = own.clone()
        if on_progress and not group.kept and not recording.is_encoded:
            heard = sum(recording.samples[number] for number in recording.tokens) / SAMPLE_RATE
            on_progress(Progress(heard, recording.total_seconds))

    def _ended(self, waiting: list[Recording], start: float, on_progress: OnProgress | None) -> SpeechMemory:
        """The memory of the first that waits, now encoded; where progress is told, it ends and the next begins."""
        memory = self._memory(waiting.pop(0), start)
        if on_progress:
            on_progress(Progress(memory.duration, memory.duration))
            if waiting:
                on_progress(Progress(0.0, waiting[0].total_seconds))
        return memory

    @property
    def blank_tokens(self) -> torch.Tensor:
        """The tokens (50, hidden) of a window in which there is no sound at all; encoded once."""
        if self._blank is None:
            mels = self.model.config.audio_config.num_mel_bins
            self._blank = self.tokens(window_mel([np.zeros(PAD_TO_SAMPLES, np.float32)], mels))[0]
        return self._blank

    @torch.inference_mode()
    def tokens(self, features: torch.Tensor) -> torch.Tensor:
        """Log-mel windows (windows, mel bins, 3000) → their tokens (windows, 50, hidden), on the CPU."""
        return self.fold(self.frames(features)).to("cpu", self.dtype)

    @torch.inference_mode()
    def frames(self, features: torch.Tensor) -> torch.Tensor:
        """Whisper's frozen encoder: log-mel windows (windows, mel bins, 3000) → frames (windows, 1500, hidden)."""
        own = self.dtype is None and self.kernels == "torch"
        encoder = self.model.encoder if own else self._narrow.encoder
        if isinstance(encoder, FastEncoder):
            return encoder(features)
        weight = encoder.conv1.weight
        return encoder(features.to(weight.device, weight.dtype)).last_hidden_state

    @torch.inference_mode()
    def fold(self, frames: torch.Tensor) -> torch.Tensor:
        """The HFQ-Former: frames (windows, 1500, hidden) → tokens (windows, 50, hidden)."""
        if self.dtype is None:
            return self.model.get_speech_tokens(encoder_frames=frames)
        former = self._narrow.hfq_former
        assert former is not None
        with torch.autocast(frames.device.type, self.dtype):
            return former(frames.to(former.compressor1.query.dtype))

    @property
    def _narrow(self) -> "_Narrow":
        """Copies in `dtype`: autocast would round their weights again for every group."""
        self._follow_weights()
        with self._copying:
            if self._copies is None:
                former = None if self.dtype is None else narrow_copy(self.model.hfq_former, self.dtype)
                self._copies = _Narrow(self._narrow_encoder(), former)
            return self._copies

    def _narrow_encoder(self) -> Any:
        # An adapter on top computes in layers of its own.
        if self.kernels == "products" and not any(adapted_parts(self.model.encoder)):
            return FastEncoder(self.model.encoder)
        dtype = self.dtype or self.model.dtype
        encoder: Any = narrow_copy(self.model.encoder, dtype)  # transformers hides `to` from type checkers
        return encoder.to(dtype)

    def _follow_weights(self) -> None:
        """Forget copies and fingerprint where the weights are others than before, or have an adapter on top."""
        weights = weights_seen(self.model.encoder, self.model.hfq_former)
        with self._copying:
            if weights != self._weights:
                self._weights, self._fingerprint, self._copies = weights, None, None

    def _stamp(self, cuts: Cuts, part: Part = WHOLE) -> dict[str, object]:
        """All that decides, to the last bit, what a recording's tokens are."""
        stamp: dict[str, object] = {
            "part": asdict(part),
            "token_fingerprint": self.fingerprint,
            "cuts": cuts,
            "group_windows": self.group_windows,
            "dtype": str(self.dtype or self.model.dtype),
            "device": self.model.device.type,
        }
        return stamp if self.kernels == "torch" else {**stamp, "kernels": self.kernels}

    def _memory(self, recording: Recording, start: float) -> SpeechMemory:
        ends = np.cumsum(recording.samples) / SAMPLE_RATE
        times = torch.from_numpy(start + np.stack([np.concatenate([[0.0], ends[:-1]]), ends], axis=1))
        facts = MemoryFacts(
            token_fingerprint=self.fingerprint,
            name=recording.name,
            duration=float(ends[-1]),
            audio_sha256=recording.audio_digest.hex(),
            warnings=tuple(recording.warnings),
            partial=recording.partial,
            missing_seconds=recording.missing_seconds,
        )
        return SpeechMemory(_stacked(recording.tokens), times, torch.tensor(recording.silent), facts)


def _keep(group: _Group, kept: KeptGroups | None) -> None:
    """Into the file of finished groups, if there is one that it did not come from."""
    if kept and not group.kept:
        lengths = [window.samples for window in group.windows]
        kept.append(group.tokens.result(), lengths, group.windows[-1].audio_digest)


@contextmanager
def _kept_if_stopped(running: deque[_Group], kept: KeptGroups | None) -> Iterator[None]:
    """What was read before an error ends the encoding is still computed and kept; at an interrupt, what is finished."""
    try:
        yield
    except BaseException as error:
        waits = isinstance(error, Exception)
        with suppress(Exception):  # it is the first error that is told
            while kept and not kept.is_torn and running and (waits or running[0].tokens.is_done):
                _keep(running.popleft(), kept)
        raise


def _stacked(tokens: dict[int, torch.Tensor]) -> torch.Tensor:
    """As `torch.stack`, but each is given up as it is copied, so that a day of tokens is not held twice."""
    whole = torch.empty(len(tokens), *tokens[0].shape, dtype=tokens[0].dtype)
    for index in range(len(tokens)):
        whole[index] = tokens.pop(index)
    return whole


def fast_dtype(device: torch.device) -> tuple[torch.dtype | None, str]:
    """What encoder and HFQ-Former best compute in on a device, `None` for the model's own, and why."""
    if device.type == "cpu":
        if torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported():
            return torch.bfloat16, "the processor multiplies bfloat16 several times as fast as float32"
        return None, "the processor does not multiply bfloat16"
    return None, "as the model was loaded"


def name_of(source: AudioSource) -> str:
    """What messages call a recording: its path, or that it is an array."""
    name = source if isinstance(source, str) else getattr(source, "name", None) or getattr(source, "__fspath__", None)
    if callable(name):
        name = name()
    return str(name) if isinstance(name, str) else "the recording"


def window_seconds(times: torch.Tensor) -> list[float]:
    """Seconds of each window, (windows, 2) → windows numbers."""
    return [end - start for start, end in times.tolist()]
