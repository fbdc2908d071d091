"""Manifests: one clip a line as JSON, its audio in a file of its own or as a byte range of a tar shard."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydantic

from fastslm.audio import load_audio
from fastslm.errors import ManifestError


class AudioReference(pydantic.BaseModel):
    """Where a clip's encoded audio lies: a file, or `length` bytes of it from `offset`."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)
    path: str
    offset: int | None = None
    length: int | None = None


class Clip(pydantic.BaseModel):
    """One line of a manifest. Keys that are not named here (gender, accent, source …) are kept.

    Attributes:
        id: unique in its manifest.
        audio: a path, or a byte range of a file; relative to the manifest's folder or to that folder's parent.
        duration: seconds.
        text: what is said, `None` where no transcript is known.
    """

    model_config = pydantic.ConfigDict(extra="allow", frozen=True)
    id: str
    audio: AudioReference
    duration: float = pydantic.Field(gt=0, allow_inf_nan=False)
    text: str | None = None
    speaker: str | None = None
    language: str | None = None
    label: str | None = None
    slots: dict[str, str] | None = None
    segments: list[Any] | None = None
    words: list[Any] | None = None
    _folder: Path = pydantic.PrivateAttr(default=Path())

    @pydantic.field_validator("audio", mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    def audio_file(self) -> Path:
        """The file that holds the audio.

        Raises:
            ManifestError: it lies neither beside the manifest nor in the folder above.
        """
        for folder in (self._folder, self._folder.parent):
            if (folder / self.audio.path).is_file():
                return folder / self.audio.path
        raise ManifestError(
            f"{self.id}: its audio {self.audio.path} is neither in {self._folder} nor in the folder above; "
            "put the file there or correct the manifest."
        )

    def read(self) -> np.ndarray:
        """Decode the clip: (samples,) float32, 16 kHz mono."""
        file = self.audio_file()
        if self.audio.offset is None:
            return load_audio(file)
        with file.open("rb") as shard:
            shard.seek(self.audio.offset)
            return load_audio(shard.read(self.audio.length if self.audio.length is not None else -1))


def iter_manifest(path: str | Path) -> Iterator[Clip]:
    """Read a manifest line by line.

    Raises:
        ManifestError: the file is missing, or a line is not a clip; the sentence names file, line and fault.
    """
    path = Path(path)
    if not path.is_file():
        raise ManifestError(f"{path}: there is no such manifest; give a JSONL file with one clip a line.")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                clip = Clip.model_validate(json.loads(line.decode("utf-8")))
            except UnicodeDecodeError:
                raise ManifestError(f"{path}, line {number}: this is not UTF-8; save the file as UTF-8.") from None
            except json.JSONDecodeError as error:
                raise ManifestError(
                    f"{path}, line {number}: this is not JSON ({error.msg}); correct the line."
                ) from None
            except pydantic.ValidationError as error:
                fault = error.errors()[0]
                where = ".".join(str(part) for part in fault["loc"])
                raise ManifestError(f"{path}, line {number}: {where}: {fault['msg']}; correct the line.") from None
            clip._folder = path.parent
            yield clip


def read_manifest(path: str | Path) -> list[Clip]:
    """All clips of a manifest, in its order.

    Raises:
        ManifestError: as `iter_manifest`; also an empty manifest, or an id that occurs twice.
    """
    clips = list(iter_manifest(path))
    if not clips:
        raise ManifestError(f"{path}: the manifest is empty; it needs at least one clip.")
    seen: set[str] = set()
    for clip in clips:
        if clip.id in seen:
            raise ManifestError(f"{path}: the id {clip.id} occurs twice; every clip needs its own.")
        seen.add(clip.id)
    return clips


def manifest_digest(path: str | Path) -> str:
    """SHA-256 of a manifest's bytes, in hexadecimal: two runs over equal manifests may share a cache."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
