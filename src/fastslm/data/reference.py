"""Where audio lies, and recordings that are put together from others: references into them, rendered span by span."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydantic

from fastslm.audio import SAMPLE_RATE, load_audio
from fastslm.errors import ManifestError

# Seconds by which a recording may differ from its manifest's duration before it would run into the next one.
DURATION_TOLERANCE = 0.25


class AudioReference(pydantic.BaseModel):
    """Where a clip's encoded audio lies: a file, or `length` bytes of it from `offset`."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)
    path: str
    offset: int | None = pydantic.Field(default=None, ge=0)
    length: int | None = pydantic.Field(default=None, gt=0)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @pydantic.model_validator(mode="after")
    def _is_somewhere(self) -> "AudioReference":
        if self.length is not None and self.offset is None:
            raise ValueError("a length without an offset says no place; give both, or neither for the whole file")
        return self

    def find(self, folder: Path, owner: str) -> Path:
        """The file that holds the audio, in `folder` or in the folder above.

        Args:
            owner: whose audio it is, for the sentence.

        Raises:
            ManifestError: it lies in neither.
        """
        for place in (folder, folder.parent):
            if (place / self.path).is_file():
                return place / self.path
        raise ManifestError(
            f"{owner}: its audio {self.path} is neither in {folder} nor in the folder above; "
            "put the file there or correct the manifest."
        )

    def encoded(self, folder: Path, owner: str) -> Path | bytes:
        """What `fastslm.audio` reads: the file, or the bytes of its part.

        Raises:
            ManifestError: as `find`; also a file that ends before the part does.
        """
        file = self.find(folder, owner)
        if self.offset is None:
            return file
        with file.open("rb") as shard:
            shard.seek(self.offset)
            content = shard.read(self.length if self.length is not None else -1)
        if not content or len(content) < (self.length or 0):
            raise ManifestError(
                f"{owner}: {file} ends before the {self.length} bytes from {self.offset} that hold its audio; "
                "copy the file again or correct the manifest."
            )
        return content

    def rebased(self, folder: Path, target: Path, owner: str) -> "AudioReference":
        """The same audio as a manifest in the folder `target` names it."""
        return self.model_copy(update={"path": os.path.relpath(self.find(folder, owner), target)})


class Segment(pydantic.BaseModel):
    """A stretch of a longer recording. With `audio` it is a piece: it lies in a file of its own. Other keys are kept.

    Attributes:
        start, end: seconds in the whole. What lies between two segments is the pause.
        text: what is said in it, `None` where that is unknown.
        id: the clip that a piece was.
    """

    model_config = pydantic.ConfigDict(extra="allow", frozen=True)
    start: float = pydantic.Field(ge=0, allow_inf_nan=False)
    end: float = pydantic.Field(allow_inf_nan=False)
    text: str | None = None
    id: str | None = None
    audio: AudioReference | None = None

    @pydantic.model_validator(mode="after")
    def _has_length(self) -> "Segment":
        if self.end <= self.start:
            raise ValueError(f"it ends at {self.end} s, where or before it starts; times are seconds, and rise")
        return self


def render_span(segments: Sequence[Segment], folder: Path, first: int, last: int, owner: str) -> np.ndarray:
    """Samples `first` to `last` of a composition: (last - first,) float32, silent between the pieces.

    Only pieces that reach into the span are decoded, so a window of 15 minutes costs what a window costs.

    Raises:
        ManifestError: a piece does not last as long as its segment.
        AudioError: a piece cannot be read.
    """
    wave = np.zeros(last - first, dtype=np.float32)
    starts = [round(segment.start * SAMPLE_RATE) for segment in segments]
    slack = round(DURATION_TOLERANCE * SAMPLE_RATE)
    for index, (segment, start) in enumerate(zip(segments, starts, strict=True)):
        # Decoders round a duration up or down: what is over may sound in the pause, never under the next piece.
        end = round(segment.end * SAMPLE_RATE) + slack
        end = min(end, starts[index + 1]) if index + 1 < len(starts) else end
        if start >= last or end <= first or segment.audio is None:
            continue
        name = f"{owner}: its piece {segment.id}"
        sound = load_audio(segment.audio.encoded(folder, name))
        check_duration(sound, segment.end - segment.start, name)
        sound = sound[: end - start]
        here, there = max(start, first), min(start + len(sound), last)
        if here < there:
            wave[here - first : there - first] = sound[here - start : there - start]
    return wave


def check_duration(sound: np.ndarray, stated: float, owner: str) -> None:
    """Make sure that a recording lasts as long as its manifest says.

    Raises:
        ManifestError: it does not, by more than `DURATION_TOLERANCE`.
    """
    seconds = len(sound) / SAMPLE_RATE
    if abs(seconds - stated) > DURATION_TOLERANCE:
        raise ManifestError(
            f"{owner} lasts {seconds:.2f} s, but its manifest says {stated:.2f} s; correct the duration there."
        )
