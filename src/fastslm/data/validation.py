"""A manifest looked through before it costs a night: every fault, not only the first, each with its line and remedy."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastslm.audio import SAMPLE_RATE, probe_duration, stream_audio
from fastslm.data.manifest import Clip, manifest_lines, parse_clip
from fastslm.data.reference import DURATION_TOLERANCE, AudioReference
from fastslm.errors import AudioError, ManifestError, OptionError
from fastslm.prompts import language_name

# The words of a fault's kind are what `--json` counts by.
LINE, DUPLICATE, TEXT, LANGUAGE = "unreadable line", "duplicate id", "empty text", "unknown language"
MISSING, UNREADABLE, DURATION, SEGMENT = "missing audio", "unreadable audio", "wrong duration", "wrong segment"
EMPTY = "empty manifest"


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: its kind, where, and a sentence that says it all."""

    kind: str
    line: int
    id: str | None
    sentence: str


@dataclass
class Report:
    """What a manifest holds. `seconds` are the stated ones, of lines that could be read."""

    manifest: str
    clips: int = 0
    seconds: float = 0.0
    faults: list[Fault] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "manifest": self.manifest,
            "clips": self.clips,
            "hours": round(self.seconds / 3600, 4),
            "faults": len(self.faults),
            "kinds": dict(Counter(fault.kind for fault in self.faults)),
            "details": [vars(fault) for fault in self.faults],
        }

    def summary(self) -> str:
        """For a person, one line."""
        kinds = Counter(fault.kind for fault in self.faults)
        faults = ", ".join(f"{count} × {kind}" for kind, count in kinds.items()) or "no faults"
        return f"{self.manifest}: {self.clips} clips, {self.seconds / 3600:.2f} hours, {faults}"


def validate(
    path: Path,
    *,
    decode: bool = True,
    on_fault: Callable[[Fault], None] | None = None,
    on_clip: Callable[[int], None] | None = None,
) -> Report:
    """Look at every line of a manifest.

    Args:
        decode: every recording is decoded, which alone shows damage and wrong durations for sure; without it, durations
            are what the files state.
        on_fault: told each fault as it is found. on_clip: told how many lines are done.

    Raises:
        ManifestError: there is no such file.
    """
    report = Report(str(path))
    first: dict[str, int] = {}
    audio = _Audio(decode)

    def add(kind: str, line: int, clip: Clip | None, sentence: str) -> None:
        fault = Fault(kind, line, clip.id if clip else None, " ".join(sentence.split()))
        report.faults.append(fault)
        if on_fault:
            on_fault(fault)

    count = 0
    for count, (number, line) in enumerate(manifest_lines(path), start=1):
        try:
            clip = parse_clip(path, number, line)
        except ManifestError as error:
            add(LINE, number, None, str(error))
            continue
        report.clips += 1
        report.seconds += clip.duration
        if clip.id in first:
            said = f"the id {clip.id} is that of line {first[clip.id]} too; give every clip its own"
            add(DUPLICATE, number, clip, f"{path}, line {number}: {said}.")
        first.setdefault(clip.id, number)
        for kind, sentence in [*_wrong_words(clip), *_wrong_segments(clip), *audio.faults(clip)]:
            add(kind, number, clip, sentence)
        if on_clip:
            on_clip(count)
    if not count:
        add(EMPTY, 0, None, f"{path}: the manifest is empty; it needs at least one clip.")
    return report


def _wrong_words(clip: Clip) -> Iterator[tuple[str, str]]:
    if clip.text is not None and not clip.text.strip() and clip.label is None and clip.task is None:
        yield (
            TEXT,
            f"{clip.place}: its text is empty; write what is said, null if unknown, or what sounds as its label.",
        )
    if clip.task is not None and not (clip.instruction or "").strip():
        yield TEXT, f"{clip.place}: its instruction is empty; write what is to be done."
    if clip.task not in (None, "transcribe") and not (clip.answer or "").strip():
        yield TEXT, f"{clip.place}: its answer is empty, which is right only of a transcript; write the answer."
    for key in ("language", "target_language"):
        if (language := getattr(clip, key)) is None:
            continue
        try:
            language_name(language)
        except OptionError as error:
            yield LANGUAGE, f"{clip.place}: {key}: {error}"


def _wrong_segments(clip: Clip) -> Iterator[tuple[str, str]]:
    end = 0.0
    for segment in clip.segments or ():
        if segment.start < end - 1e-6:
            yield (
                SEGMENT,
                (
                    f"{clip.place}: the segment from {segment.start} s starts before the one ahead ends, at {end} s; "
                    "put segments in order, without overlap."
                ),
            )
        end = segment.end
    if end > clip.duration + DURATION_TOLERANCE:
        yield (
            SEGMENT,
            (f"{clip.place}: its last segment ends at {end} s, after the clip at {clip.duration} s; correct either."),
        )


class _Audio:
    """What is wrong with recordings; one that occurs again, as pieces of compositions do, is read once."""

    def __init__(self, decode: bool):
        self.decode = decode
        self.known: dict[tuple[Path, AudioReference], tuple[float | None, str | None]] = {}

    def faults(self, clip: Clip) -> Iterator[tuple[str, str]]:
        if clip.audio is not None:
            yield from self._of(clip, clip.audio, clip.duration, clip.place)
        for piece in clip.pieces:
            assert piece.audio is not None
            yield from self._of(clip, piece.audio, piece.end - piece.start, f"{clip.place}: its piece {piece.id}")

    def _of(self, clip: Clip, reference: AudioReference, stated: float, owner: str) -> Iterator[tuple[str, str]]:
        folder = clip._folder
        try:
            file = reference.find(folder, owner)
            key = (file, reference)
            if key not in self.known:
                self.known[key] = self._measure(reference.encoded(folder, owner))
        except ManifestError as error:
            yield MISSING, str(error)
            return
        seconds, damage = self.known[key]
        if damage is not None:
            yield UNREADABLE, f"{owner}: {damage}"
        if seconds is not None and abs(seconds - stated) > DURATION_TOLERANCE:
            yield (
                DURATION,
                (f"{owner} lasts {seconds:.2f} s, but the manifest says {stated:.2f} s; correct the duration there."),
            )

    def _measure(self, source: Path | bytes) -> tuple[float | None, str | None]:
        """Seconds, if they could be found, and what is wrong with the recording, if anything is."""
        damage: list[str] = []
        try:
            if not self.decode:
                return probe_duration(source), None
            samples = sum(len(block) for block in stream_audio(source, strict=True, on_warning=damage.append))
        except AudioError as error:
            return None, str(error)
        return (None, damage[0]) if damage else (samples / SAMPLE_RATE, None)
