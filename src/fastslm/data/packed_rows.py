"""Short clips packed into windows, as rows: anew in every epoch, each window one row whose answer is its text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fastslm.audio import WINDOW_SECONDS
from fastslm.data.manifest import Clip
from fastslm.data.packing import PackedWindow, Packing, pack, render
from fastslm.data.rows import ClipSound, Row, digest_of


@dataclass(frozen=True)
class PackedSound:
    """The sound of a packed window."""

    window: PackedWindow

    def windows(self) -> Iterator[np.ndarray]:
        """As `fastslm.data.rows.Sound`."""
        yield render(self.window)

    def digest(self) -> str:
        """As `fastslm.data.rows.Sound`."""
        window = self.window
        placed = [
            (ClipSound(own.clip).digest(), own.start, own.samples, own.speed, own.gain_db, own.effects, _of(own.noise))
            for own in window.placements
        ]
        return digest_of("packed", placed, _of(window.noise), window.noise_db, window.seed)


def _of(noise: Clip | None) -> str | None:
    return None if noise is None else ClipSound(noise).digest()


class PackedRows:
    """As `fastslm.data.rows.Rows`: the windows that clips are packed into, in each epoch otherwise.

    Args:
        clips: of speech, with their texts. sounds: what is laid under them.
        name: what messages call them.

    Raises:
        ManifestError: a clip is longer than a window.
    """

    def __init__(self, clips: Sequence[Clip], sounds: Sequence[Clip], packing: Packing, name: str):
        self.clips, self.sounds, self.packing, self.name = clips, sounds, packing, name
        self._first = len(self.epoch((0,), 0))

    def durations(self) -> np.ndarray:
        """As `fastslm.data.rows.Rows`."""
        return np.full(self._first, float(WINDOW_SECONDS))

    def epoch(self, seed: Sequence[int], number: int) -> list[Row]:
        """As `fastslm.data.rows.Rows`."""
        windows = pack(self.clips, self.sounds, self.packing, [*seed, number])
        return [
            Row(
                f"{self.name} {number}-{index}",
                "transcribe",
                None,
                window.text,
                None,
                float(WINDOW_SECONDS),
                1,
                self.name,
                PackedSound(window),
                window.text,
                number,
            )
            for index, window in enumerate(windows)
        ]
