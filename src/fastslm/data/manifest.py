"""Manifests: one clip a line as JSON, its audio in a file of its own, as a byte range of a tar shard, or in pieces.

The schema is `Clip`. The same lines hold plain speech, compositions of several clips, and tasks with their answers.
What only the language model is taught by needs no sound: such a line may be text alone.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic

from fastslm.audio import SAMPLE_RATE, WINDOW_SAMPLES, load_audio, stream_audio, window_count
from fastslm.data.reference import AudioReference, Segment, render_span
from fastslm.errors import ManifestError, OptionError
from fastslm.writing import json_text, write_text

LabelKind = Literal["human", "pseudo", "synthetic"]
TaskName = Literal["transcribe", "translate", "summarize", "ask"]
# What a line, or a cut's custom fields, may say of what is said, and of what is to be done.
KNOWN = (
    "text",
    "label",
    "language",
    "translation",
    "target_language",
    "summary",
    "task",
    "instruction",
    "answer",
)


# Named after files, whose names may be no Unicode.
FILE_KEYS = ("id", "audio", "mixed_from")


class Clip(pydantic.BaseModel):
    """One line of a manifest. Keys that are not named here (gender, accent, source …) are kept.

    Attributes:
        id: unique in its manifest.
        audio: a path, or a byte range of a file; relative to the manifest's folder or to that folder's parent. `None`
            in a composition, whose `segments` name theirs, and in a row that is text alone.
        duration: seconds.
        text: what is said, `None` where no transcript is known.
        language: of the speech, as a code.
        label: what sounds, in a clip without speech.
        translation: what is said, in `target_language` (a code or an English name).
        summary: of what is said.
        segments: stretches with their times.
        task, instruction, answer: what is to be done, in words, and what is right; all three or none. An empty answer
            is right where there is nothing to write.
        label_kind: who the text or answer comes from: people, a recogniser (pseudo), or a rule or a voice of a machine.
    """

    model_config = pydantic.ConfigDict(extra="allow", frozen=True)
    id: str
    audio: AudioReference | None
    duration: float = pydantic.Field(gt=0, allow_inf_nan=False)
    text: str | None = None
    speaker: str | None = None
    language: str | None = None
    label: str | None = None
    slots: dict[str, str] | None = None
    translation: str | None = None
    target_language: str | None = None
    summary: str | None = None
    segments: list[Segment] | None = None
    words: list[Any] | None = None
    task: TaskName | None = None
    instruction: str | None = None
    answer: str | None = None
    label_kind: LabelKind | None = None
    _folder: Path = pydantic.PrivateAttr(default=Path())
    _where: str = pydantic.PrivateAttr(default="")

    @pydantic.model_validator(mode="after")
    def _whole(self) -> "Clip":
        if (
            self.audio is None
            and not self.text_alone
            and (not self.segments or any(segment.audio is None for segment in self.segments))
        ):
            raise ValueError(
                "audio is null, which only a row may have whose segments each name theirs, or whose text has a task or "
                "a translation"
            )
        if self.audio is not None and any(segment.audio is not None for segment in self.segments or ()):
            raise ValueError("both the row and a segment name audio; only one of them may")
        given = [value is not None for value in (self.task, self.instruction, self.answer)]
        if any(given) != all(given):
            raise ValueError("task, instruction and answer belong together, and one of them is missing")
        return self

    @property
    def place(self) -> str:
        """What messages call the clip: its manifest, line and id."""
        return f"{self._where}: {self.id}" if self._where else self.id

    def known(self) -> dict[str, Any]:
        """What is known of the recording, by the names of `fastslm.data.rows.asked_of`."""
        return {key: getattr(self, key) for key in KNOWN}

    @property
    def text_alone(self) -> bool:
        """Whether nothing sounds: a text to be translated, or with a task, that nobody has spoken."""
        taught = self.task is not None or self.translation is not None
        return self.audio is None and not self.segments and taught and bool((self.text or "").strip())

    @property
    def pieces(self) -> list[Segment]:
        """The segments of a composition; nothing of a clip whose audio is one recording."""
        return [] if self.audio is not None else self.segments or []

    def audio_file(self) -> Path:
        """The file that holds the audio.

        Raises:
            ManifestError: it lies neither beside the manifest nor in the folder above, or the clip is a composition or
                text alone.
        """
        if self.text_alone:
            raise ManifestError(
                f"{self.place} is text without sound, from which only instruction phases can learn: have it "
                "spoken with fastslm data synthesize --tts, or leave it out."
            )
        if self.audio is None:
            raise ManifestError(f"{self.place} is a composition, which has no file of its own; read its windows.")
        return self.audio.find(self._folder, self.place)

    def check_audio(self) -> None:
        """Make sure that the clip's audio is there, all pieces of it, without decoding any.

        Raises:
            ManifestError: some is not.
        """
        for piece in self.pieces:
            assert piece.audio is not None
            piece.audio.find(self._folder, f"{self.place}: its piece {piece.id}")
        if not self.pieces:
            self.audio_file()

    def encoded(self) -> Path | bytes:
        """The encoded recording of a clip that is no composition, as `fastslm.audio` reads it.

        Raises:
            ManifestError: as `audio_file`.
        """
        if self.audio is None:
            self.audio_file()
        assert self.audio is not None
        return self.audio.encoded(self._folder, self.place)

    def read(self) -> np.ndarray:
        """Decode the clip: (samples,) float32, 16 kHz mono."""
        if self.pieces:
            return np.concatenate(list(self.windows()))
        return load_audio(self.encoded(), strict=True)

    def windows(self) -> Iterator[np.ndarray]:
        """The clip in windows of 30 s: (480000,) float32 each, the last as long as what is left.

        Concatenating all windows gives `read` exactly. No more than a window is held at a time.
        """
        if not self.pieces:
            yield from stream_audio(self.encoded(), block_samples=WINDOW_SAMPLES, strict=True)
            return
        for index in range(window_count(self._samples)):
            yield self.window(index)

    def window(self, index: int) -> np.ndarray:
        """The window of that number: of a composition only what sounds in it is decoded; any other is decoded up to it.

        Raises:
            OptionError: there is no window of that number.
        """
        if index >= 0 and self.pieces and index < window_count(self._samples):
            first = index * WINDOW_SAMPLES
            last = min(first + WINDOW_SAMPLES, self._samples)
            return render_span(self.pieces, self._folder, first, last, self.place)
        if index >= 0 and not self.pieces:
            for number, window in enumerate(self.windows()):
                if number == index:
                    return window
        raise OptionError(f"{self.place} lasts {self.duration:.2f} s and has no window {index}: count them from 0.")

    def row(self, folder: Path) -> dict[str, Any]:
        """The clip as a line of a manifest that lies in `folder`, with its audio named from there.

        Raises:
            ManifestError: its audio is missing.
        """
        row = self.model_dump(mode="json", exclude_none=True)
        if self.audio is None:
            row["audio"] = None
        else:
            row["audio"] = self.audio.rebased(self._folder, folder, self.place).model_dump(exclude_none=True)
        for segment, written in zip(self.pieces, row.get("segments", ()), strict=False):
            assert segment.audio is not None
            reference = segment.audio.rebased(self._folder, folder, f"{self.place}: its piece {segment.id}")
            written["audio"] = reference.model_dump(exclude_none=True)
        return row

    @property
    def _samples(self) -> int:
        return round(self.duration * SAMPLE_RATE)


def manifest_lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a manifest that are not empty, with their numbers.

    Raises:
        ManifestError: the file is missing or cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise ManifestError(f"{path}: there is no such manifest; give a JSONL file with one clip a line.")
    try:
        with path.open("rb") as lines:
            yield from ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
    except OSError as error:
        raise ManifestError(
            f"{path} cannot be read ({error.strerror}); give a JSONL file with one clip a line."
        ) from error


def parse_clip(path: str | Path, number: int, line: bytes) -> Clip:
    """The clip that a line of a manifest holds.

    Raises:
        ManifestError: it holds none; the sentence names file, line and fault.
    """
    path = Path(path)
    where = f"{path}, line {number}"
    try:
        row = json.loads(line.decode("utf-8"))
        if b"\\ud" in line.lower() and (key := _half_character(row)) is not None:
            raise ManifestError(f"{where}: {key} holds half a character (\\ud800 to \\udfff); correct the line.")
        clip = Clip.model_validate(row)
    except UnicodeDecodeError:
        raise ManifestError(f"{where}: this is not UTF-8; save the file as UTF-8.") from None
    except json.JSONDecodeError as error:
        raise ManifestError(f"{where}: this is not JSON ({error.msg}); correct the line.") from None
    except pydantic.ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(str(part) for part in fault["loc"])
        said = fault["msg"].removeprefix("Value error, ")
        raise ManifestError(f"{where}: {key}{': ' if key else ''}{said}; correct the line.") from None
    clip._folder, clip._where = path.parent, where
    return clip


def _half_character(value: Any, key: str = "the line") -> str | None:
    """The key of a text that is no Unicode."""
    if isinstance(value, dict):
        own = ((_half_character(item, str(name))) for name, item in value.items() if name not in FILE_KEYS)
        return next((found for found in own if found is not None), None)
    if isinstance(value, list):
        return next((found for item in value if (found := _half_character(item, key)) is not None), None)
    return key if isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value) else None


def iter_manifest(path: str | Path) -> Iterator[Clip]:
    """Read a manifest line by line.

    Raises:
        ManifestError: the file is missing, or a line is not a clip; the sentence names file, line and fault.
    """
    for number, line in manifest_lines(path):
        yield parse_clip(path, number, line)


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
            raise ManifestError(f"{clip._where}: the id {clip.id} occurs twice; every clip needs its own.")
        seen.add(clip.id)
    return clips


def write_manifest(path: str | Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write a manifest, whole or not at all. Returns its rows.

    Raises:
        FastSLMError: it cannot be written.
    """
    lines = [json_text(row) + "\n" for row in rows]
    write_text(path, "".join(lines))
    return len(lines)


def manifest_digest(path: str | Path) -> str:
    """SHA-256 of a manifest's bytes, in hexadecimal: two runs over equal manifests may share a cache."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
