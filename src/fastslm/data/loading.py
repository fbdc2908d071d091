"""Rows → tensors: worker processes decode recordings and make log-mels while the model computes.

Batches come in the order of `RowBatches` whatever the number of workers, and each says where to go on after it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from fastslm.data.batches import RowBatches
from fastslm.data.feature_cache import Encode, FeatureCache
from fastslm.data.rows import Row
from fastslm.errors import FastSLMError
from fastslm.features import MelMode, file_mel, window_mel

PREFETCHED_BATCHES = 2  # by each worker


@dataclass(frozen=True)
class RowBatch:
    """A batch as a model reads it. The windows of all rows stand one after another, in the order of the rows.

    Attributes:
        windows_per_row: how many windows are whose; 0 for a row without sound.
        input_features: (windows, n_mels, 3000) float32; `None` where all frames were cached, or no row has sound.
        encoder_frames: (windows, frames, hidden) bfloat16 of a frozen encoder; `None` where they are to be computed.
        state: from where `RowBatches` goes on after this batch.
    """

    rows: list[Row]
    windows_per_row: list[int]
    input_features: torch.Tensor | None
    encoder_frames: torch.Tensor | None
    state: dict[str, Any]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def windows(self) -> int:
        """Of all rows together."""
        return sum(self.windows_per_row)

    def frames(self, encode: Encode, cache: FeatureCache | None = None) -> torch.Tensor | None:
        """The frozen encoder's frames of all windows: (windows, frames, hidden); `None` where no row has sound.

        Args:
            encode: the frozen encoder, log-mels (windows, n_mels, 3000) → frames. With a cache it is given the windows
                of one row at a time, so that frames do not depend on the other rows of the batch.
            cache: keeps what was computed.

        Raises:
            FastSLMError: the cache cannot be written.
        """
        if self.encoder_frames is not None or self.input_features is None:
            return self.encoder_frames
        with torch.no_grad():
            if cache is None:
                return encode(self.input_features)
            parts = zip(self.rows, self.input_features.split(self.windows_per_row), strict=True)
            return torch.cat([cache.frames(row, own, encode) for row, own in parts if len(own)])

    def pin_memory(self) -> "RowBatch":
        """The same in memory from which a GPU copies at once; called by torch's DataLoader."""
        return self._mapped(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device) -> "RowBatch":
        """The same on a device."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def _mapped(self, change: Any) -> "RowBatch":
        features, frames = self.input_features, self.encoder_frames
        return replace(
            self,
            input_features=None if features is None else change(features),
            encoder_frames=None if frames is None else change(frames),
        )


class RowLoader:
    """The batches of `RowBatches` with their tensors.

    Args:
        n_mels: mel bins of the encoder.
        mel_mode: as `fastslm.features.extract_features`.
        cache: where a frozen encoder's frames are kept; a batch whose rows are all there comes as `encoder_frames`.
        workers: processes that decode; with 0 it is done here, when a batch is asked for.
        pin_memory: for a GPU.
    """

    def __init__(
        self,
        batches: RowBatches,
        *,
        n_mels: int,
        mel_mode: MelMode = "window",
        cache: FeatureCache | None = None,
        workers: int = 0,
        pin_memory: bool = False,
    ):
        self.batches, self.workers, self.pin_memory = batches, workers, pin_memory
        self.reading = _Reading(n_mels, mel_mode, cache)
        self._state = batches.state_dict()

    def __iter__(self) -> Iterator[RowBatch]:
        """From where `state_dict` says, without end.

        Raises:
            FastSLMError: a recording cannot be read, or does not last as long as is stated.
        """
        # What workers fetched ahead of an earlier iteration was never handed out.
        self.batches.load_state_dict(self._state)
        loader = DataLoader(
            self.reading,
            batch_size=None,
            sampler=_Drawn(self.batches),
            num_workers=self.workers,
            prefetch_factor=PREFETCHED_BATCHES if self.workers else None,
            pin_memory=self.pin_memory,
        )
        for found in loader:
            if isinstance(found, FastSLMError):
                raise found
            self._state = found.state
            yield found

    def state_dict(self) -> dict[str, Any]:
        """Where to go on after the batch that was handed out last, however far workers are ahead."""
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` says, from the next iteration on. Errors are those of `RowBatches`."""
        self.batches.load_state_dict(state)
        self._state = state


class _Drawn:
    """What torch's DataLoader sends to workers: batches and the states after them."""

    def __init__(self, batches: RowBatches):
        self.batches = batches

    def __iter__(self) -> Iterator[tuple[list[Row], dict[str, Any]]]:
        for rows in self.batches:
            yield rows, self.batches.state_dict()


class _Reading(Dataset):
    """Decodes a batch, in whichever process it is asked to."""

    def __init__(self, n_mels: int, mel_mode: MelMode, cache: FeatureCache | None):
        self.n_mels, self.mel_mode, self.cache = n_mels, mel_mode, cache

    def __getitem__(self, drawn: Any) -> "RowBatch | FastSLMError":
        rows, state = drawn
        try:
            return self.read(rows, state)
        except FastSLMError as error:
            # Raised here, torch would wrap the sentence into a traceback.
            return error

    def read(self, rows: list[Row], state: dict[str, Any]) -> RowBatch:
        if self.cache is not None and (kept := self.cache.read(rows)) is not None:
            return RowBatch(rows, [len(own) for own in kept], None, torch.cat(kept), state)
        features = [self.features(row) for row in rows]
        counts = [len(own) for own in features]
        return RowBatch(rows, counts, torch.cat(features) if sum(counts) else None, None, state)

    def features(self, row: Row) -> torch.Tensor:
        """The log-mels of a row: (windows, n_mels, 3000)."""
        windows = list(row.waveforms())
        if not windows or self.mel_mode == "window":
            return window_mel(windows, self.n_mels)
        return file_mel(np.concatenate(windows)[: row.samples], self.n_mels)
