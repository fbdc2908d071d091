"""Lhotse cuts as recordings: what is known of a cut, and its audio, window by window and by reference."""

import copy
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from fastslm.audio import SAMPLE_RATE, WINDOW_SECONDS, window_count
from fastslm.data.manifest import KNOWN
from fastslm.data.rows import digest_of, file_digest
from fastslm.errors import AudioError

# Where `path.tar/member` is Lhotse's own notation for a file in a tar archive.
IN_TAR = ".tar/"

Cut = dict[str, Any]  # as its line of JSON holds it


def known_of(cut: Cut) -> dict[str, Any]:
    """What is known of a cut, by the names of `fastslm.data.rows.asked_of`: its supervisions, and its custom fields.

    Of a cut of several tracks the custom fields are those of the first one that sounds, as Lhotse has it.
    """
    supervisions = [own for _, own in sorted(supervisions_of(cut), key=lambda placed: placed[0])]
    known: dict[str, Any] = {}
    texts = [own["text"].strip() for own in supervisions if (own.get("text") or "").strip()]
    if texts:
        known["text"] = " ".join(texts)
    for key in ("language", "speaker", "gender"):
        values = {own.get(key) for own in supervisions}
        if len(values) == 1 and (value := values.pop()) is not None:
            known[key] = value
    first = next((own for _, own in sounding(cut)), cut)
    custom = first.get("custom") or {}
    return known | {key: custom[key] for key in KNOWN if custom.get(key) is not None}


def duration_of(cut: Cut) -> float:
    """Seconds."""
    if cut["type"] != "MixedCut":
        return float(cut["duration"])
    return max(float(own.get("offset", 0.0)) + float(own["cut"]["duration"]) for own in cut["tracks"])


def sounding(cut: Cut) -> list[tuple[float, Cut]]:
    """The cuts with a recording that a cut is made of, and where in it each starts."""
    tracks = cut["tracks"] if cut["type"] == "MixedCut" else [{"cut": cut, "type": cut["type"]}]
    found = []
    for track in tracks:
        own = track["cut"]
        own.setdefault("type", track.get("type"))
        if own["type"] != "PaddingCut" and not track.get("mute"):
            found.append((float(track.get("offset", 0.0)), own))
    return found


def supervisions_of(cut: Cut) -> Iterator[tuple[float, dict[str, Any]]]:
    """With their starts in the whole cut."""
    for offset, own in sounding(cut):
        for supervision in own.get("supervisions") or ():
            yield offset + supervision["start"], supervision


def of_shar(cut: Cut) -> bool:
    """Whether a cut's audio is in the tar archive of its Shar folder."""
    return any(source["type"] == "shar" for source in cut["recording"]["sources"])


@dataclass(frozen=True)
class CutSound:
    """The recording of a cut.

    Attributes:
        cut: as its line of JSON.
        folder: of the file of cuts, where paths are looked for that are not found from the working folder.
        recordings: the tar file that has the audio of a Shar folder's cut.
    """

    cut: Cut
    folder: Path
    recordings: Path | None = None

    def windows(self) -> Iterator[np.ndarray]:
        """As `fastslm.data.rows.Sound`: only what sounds in a window is read for it.

        Raises:
            AudioError: the audio is missing or cannot be read.
        """
        whole = self.loaded()
        samples = round(whole.duration * SAMPLE_RATE)
        try:
            for index in range(window_count(samples)):
                first = index * WINDOW_SECONDS
                last = min(first + WINDOW_SECONDS, samples / SAMPLE_RATE)
                piece = whole
                if first or last < samples / SAMPLE_RATE:
                    piece = whole.truncate(offset=first, duration=last - first, preserve_id=True)
                yield _fitted(_mono(piece), round((last - first) * SAMPLE_RATE))
        except Exception as error:
            # Lhotse and its decoders raise all kinds; each means that this cut cannot be read.
            reason = " ".join(str(error).split("\n")[0].split())[:300] or type(error).__name__
            raise AudioError(f"The cut {self.cut['id']} cannot be read: {reason}") from error

    def loaded(self) -> Any:
        """The `lhotse.cut.Cut`, its audio named so that it is found.

        Raises:
            AudioError: the audio is missing.
        """
        from lhotse.cut.set import deserialize_cut

        cut: Any = deserialize_cut(self.by_reference())
        for track in [own.cut for own in cut.tracks] if hasattr(cut, "tracks") else [cut]:
            for source in track.recording.sources if getattr(track, "recording", None) is not None else ():
                if source.type == "file" and IN_TAR in source.source:
                    source.type, source.source = "memory", _member(source.source)
        return cut

    def by_reference(self) -> Cut:
        """The cut with each file named by a path that is found from the working folder.

        Raises:
            AudioError: a file is missing.
        """
        cut = copy.deepcopy(self.cut)
        for _, own in sounding(cut):
            if self.recordings is not None and of_shar(own):
                own["recording"] = _recording_in(self.recordings, own["id"])
            for source in own["recording"]["sources"]:
                if source["type"] == "file":
                    source["source"] = str(_found(source["source"], self.folder, own["id"]))
        return cut

    def digest(self) -> str:
        """As `fastslm.data.rows.Sound`."""
        cut = self.by_reference()
        parts: list[Any] = [duration_of(cut), cut.get("transforms")]
        tracks = cut["tracks"] if cut["type"] == "MixedCut" else [{"cut": cut}]
        for track in tracks:
            own = track["cut"]
            kept = {key: own.get(key) for key in ("type", "start", "duration", "channel")}
            placed = {key: track.get(key) for key in ("offset", "snr", "mute")}
            recording = own.get("recording")
            audio = [_content(source) for source in recording["sources"]] if recording else []
            changed = recording.get("transforms") if recording else None
            parts.append((sorted(kept.items()), sorted(placed.items()), audio, changed))
        return digest_of("cut", parts)


def _found(source: str, folder: Path, owner: str) -> Path:
    """Where a file is that a cut names by an absolute path, or from the working folder, or from that of the cuts."""
    archive, separator, _ = source.partition(IN_TAR)
    file = Path(archive + separator.rstrip("/"))
    for place in (Path(), folder, folder.parent):
        if (place / file).is_file():
            return place / source
    raise AudioError(
        f"The audio {source} of the cut {owner} is neither there nor beside the cuts: put it there, or correct the "
        "paths (CutSet.with_recording_path_prefix of lhotse)."
    )


@lru_cache(maxsize=64)
def tar_members(path: Path) -> dict[str, tuple[int, int]]:
    """Where the members of a tar archive are: offset and length in bytes, by their names.

    Raises:
        AudioError: it is no such archive.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            return {own.name: (own.offset_data, own.size) for own in archive if own.isfile()}
    except (OSError, tarfile.TarError) as error:
        raise AudioError(f"{path} cannot be read as a tar archive ({error}): copy the file again.") from None


def _member(source: str) -> bytes:
    """The content of PATH.tar/MEMBER."""
    archive, _, name = source.partition(IN_TAR)
    path = Path(archive + ".tar")
    members = tar_members(path)
    if name not in members:
        raise AudioError(f"{path} has no member {name}: copy the archive again, or correct the cuts.")
    offset, length = members[name]
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)


@lru_cache(maxsize=64)
def _names(recordings: Path) -> dict[str, str]:
    """The members with audio of a Shar folder's archive, by the ids of their cuts."""
    names = [name for name in tar_members(recordings) if not name.endswith((".json", ".nodata", ".nometa"))]
    return {str(Path(name).with_suffix("")): name for name in names}


def _recording_in(recordings: Path, cut_id: str) -> dict[str, Any]:
    """The recording of a Shar folder's cut, as a member of its tar archive."""
    archive = str(recordings)
    name = _names(recordings).get(cut_id)
    if name is None:
        raise AudioError(f"{archive} has no audio of the cut {cut_id}: write the Shar folder again.")
    recording = json.loads(_member(f"{archive}/{cut_id}.json"))
    for source in recording["sources"]:
        source |= {"type": "file", "source": f"{archive}/{name}"}
    return recording


def _content(source: dict[str, Any]) -> tuple[object, str]:
    """What tells the content of an audio source."""
    kind, where = source["type"], source["source"]
    if kind != "file":
        return source.get("channels"), digest_of(kind, where)
    content = digest_of(_member(where)) if IN_TAR in where else file_digest(Path(where))
    return source.get("channels"), content


def _mono(cut: Any) -> np.ndarray:
    """(samples,) float32 at 16 kHz of a Lhotse cut; the mean of its channels."""
    tracks: list[Any] = getattr(cut, "tracks", [])
    if not tracks or cut.transforms or any(own.snr is not None for own in tracks):
        audio = cut.load_audio()
        audio = audio.mean(axis=0) if audio.ndim == 2 else audio
        if cut.sampling_rate != SAMPLE_RATE:
            audio = soxr.resample(audio, cut.sampling_rate, SAMPLE_RATE)
        return audio.astype(np.float32, copy=False)
    # Tracks one after another, which may differ in their sampling rates.
    wave = np.zeros(round(cut.duration * SAMPLE_RATE), np.float32)
    for track in tracks:
        if type(track.cut).__name__ == "PaddingCut" or track.mute:
            continue
        sound = _mono(track.cut)
        start = round(track.offset * SAMPLE_RATE)
        sound = sound[: max(0, len(wave) - start)]
        wave[start : start + len(sound)] += sound
    return wave


def _fitted(wave: np.ndarray, samples: int) -> np.ndarray:
    """Decoders and resamplers round a duration up or down by a few samples."""
    return np.pad(wave[:samples], (0, max(0, samples - len(wave))))
