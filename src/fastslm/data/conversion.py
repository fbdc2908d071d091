"""JSONL manifests → Lhotse cuts or a Shar folder, and cuts → a manifest.

Audio is named where it lies, as far as the other format can: a file, or a member of a tar archive. What a manifest
cannot name, such as a stretch of a longer recording, is copied into shards beside it; a Shar folder copies everything.
"""

import gzip
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fastslm.audio import SAMPLE_RATE
from fastslm.data.augmentation import encode
from fastslm.data.cut_audio import (
    IN_TAR,
    Cut,
    CutSound,
    duration_of,
    known_of,
    sounding,
    supervisions_of,
    tar_members,
)
from fastslm.data.cuts import CutRows, require_lhotse
from fastslm.data.manifest import Clip, read_manifest
from fastslm.data.reference import AudioReference
from fastslm.data.shards import refuse_existing, sharded_manifest
from fastslm.errors import FastSLMError, ManifestError, OptionError
from fastslm.writing import beside

SHARD_CUTS = 1000
# Of a clip, what a cut says in places of its own: everything else is a custom field.
_PLACED = ("id", "audio", "duration", "text", "segments", "speaker", "language", "gender")
OnCut = Callable[[int], None]


def manifest_to_cuts(manifest: Path, out: Path, on_cut: OnCut | None = None) -> int:
    """Write the cuts of a manifest to `out` (.jsonl or .jsonl.gz), by reference. Returns how many.

    Raises:
        OptionError: Lhotse is not installed, `out` exists or is no such name.
        ManifestError: the manifest cannot be read, a row has no sound, or its audio is a byte range of no tar archive.
        AudioError: a recording cannot be read.
    """
    require_lhotse()
    if not out.name.endswith((".jsonl", ".jsonl.gz")):
        raise OptionError(f"{out}: cuts are written as .jsonl or .jsonl.gz; name such a file, or a folder with --shar.")
    refuse_existing(out)
    return write_cuts(out, (cut_of_clip(clip) for clip in read_manifest(manifest)), on_cut)


def write_cuts(out: Path, cuts: Iterable[Cut], on_cut: OnCut | None = None) -> int:
    """Write a file of cuts, whole or not at all. Returns how many.

    Raises:
        FastSLMError: it cannot be written.
    """
    count = 0
    with beside(out) as scratch:
        # Without the time of writing, equal cuts are equal files.
        packed = gzip.GzipFile(scratch, "wb", mtime=0) if out.suffix == ".gz" else scratch.open("wb")
        with packed as file:
            for count, cut in enumerate(cuts, start=1):
                file.write(json.dumps(cut, ensure_ascii=False).encode() + b"\n")
                if on_cut:
                    on_cut(count)
    return count


def manifest_to_shar(manifest: Path, out: Path, on_cut: OnCut | None = None, shard_cuts: int = SHARD_CUTS) -> int:
    """Write a Shar folder of a manifest: shards of cuts, and of their audio as FLAC at 16 kHz. Returns how many cuts.

    Errors are those of `manifest_to_cuts`.
    """
    require_lhotse()
    from lhotse.shar import SharWriter

    refuse_existing(out)
    scratch = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name[:50]}.", suffix=".partial"))
    count = 0
    try:
        with SharWriter(str(scratch), fields={"recording": "flac"}, shard_size=shard_cuts) as writer:
            for count, clip in enumerate(read_manifest(manifest), start=1):
                writer.write(_in_memory(clip))
                if on_cut:
                    on_cut(count)
        scratch.chmod(0o755)
        scratch.rename(out)
    except OSError as error:
        raise FastSLMError(
            f"{out} cannot be written ({error.strerror or error}): choose another place, or free some room."
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return count


def cuts_to_manifest(cuts: Path, out: Path, on_cut: OnCut | None = None) -> int:
    """Write a manifest of a file of cuts or a Shar folder, with shards beside it where audio has to be copied.

    Raises:
        OptionError: Lhotse is not installed, or `out` exists.
        ManifestError, AudioError: the cuts or their audio cannot be read. Nothing is written.
    """
    folder = out.resolve().parent
    with sharded_manifest(out) as writer:
        for count, (cut, sound) in enumerate(_by_reference(CutRows(cuts, lenient=True)), start=1):
            row = _row(cut, folder)
            if row is None:
                wave = np.concatenate(list(sound.windows()))
                name = f"{cut['id'].replace('/', '-')}.flac"
                row = {"audio": writer.add(name, encode(wave, "flac", "flac", SAMPLE_RATE, None))}
            writer.rows.append(_described(cut, row))
            if on_cut:
                on_cut(count)
        return len(writer.rows)


def cut_of_clip(clip: Clip) -> Cut:
    """The cut of a clip, its audio by reference; of a composition, its pieces one after another with their pauses.

    Raises:
        ManifestError: the clip has no sound, or its audio is a byte range of no tar archive.
        AudioError: its audio cannot be read.
    """
    clip.check_audio()
    if not clip.pieces:
        assert clip.audio is not None
        recording = _recording(clip, clip.audio, clip.id)
        cut = _mono_cut(clip.id, recording, clip.duration)
        cut["supervisions"] = _supervisions(clip, recording["id"])
        return cut | _custom(clip)
    tracks: list[dict[str, Any]] = []
    end = 0.0
    for number, piece in enumerate(clip.pieces):
        assert piece.audio is not None
        name = f"{clip.id}-{number:03d}"
        recording = _recording(clip, piece.audio, name)
        own = _mono_cut(piece.id or name, recording, min(piece.end - piece.start, recording["duration"]))
        if piece.text:
            extra = piece.model_extra or {}
            said = {"text": piece.text, "language": clip.language, "speaker": extra.get("speaker", clip.speaker)}
            own["supervisions"] = [_supervision(own["id"], recording["id"], 0.0, own["duration"], said)]
        if piece.start > end:
            pause = {"id": f"{name}-pause", "duration": round(piece.start - end, 8), "num_samples": 0}
            pause |= {"sampling_rate": recording["sampling_rate"], "feat_value": 0.0}
            pause["num_samples"] = round(pause["duration"] * pause["sampling_rate"])
            tracks.append({"cut": pause, "type": "PaddingCut", "offset": end})
        if not tracks or not any(track["type"] == "MonoCut" for track in tracks):
            own |= _custom(clip)
        own.pop("type")
        tracks.append({"cut": own, "type": "MonoCut", "offset": piece.start})
        end = piece.start + own["duration"]
    return {"id": clip.id, "tracks": tracks, "type": "MixedCut"}


def clip_of_cut(cut: Cut, folder: Path) -> Clip:
    """What a manifest's line would say of a cut. Its audio is the cut's alone to name: the clip cannot be read."""
    row = _described(cut, {"audio": {"path": cut["id"]}})
    clip = Clip.model_validate(row)
    clip._folder, clip._where = folder, "cuts"
    return clip


def _mono_cut(name: str, recording: dict[str, Any], duration: float) -> Cut:
    seconds = min(duration, recording["duration"])
    cut = {"id": name, "start": 0.0, "duration": seconds, "channel": 0, "supervisions": [], "recording": recording}
    return cut | {"type": "MonoCut"}


def _recording(clip: Clip, audio: AudioReference, name: str) -> dict[str, Any]:
    from lhotse import Recording

    file = audio.find(clip._folder, clip.place).resolve()
    if audio.offset is None:
        recording, where = _stated(clip, lambda: Recording.from_file(file, recording_id=name)), str(file)
    else:
        member = next((own for own, (at, _) in tar_members(file).items() if at == audio.offset), None)
        content = audio.encoded(clip._folder, clip.place)
        if member is None or file.suffix != ".tar" or not isinstance(content, bytes):
            raise ManifestError(
                f"{clip.place}: its audio is a part of {file} that is no member of a tar archive, which cuts cannot "
                "name; write a Shar folder with --shar."
            )
        recording, where = _stated(clip, lambda: Recording.from_bytes(content, name)), f"{file}/{member}"
    found = recording.to_dict()
    # Of several channels the first is taken, as a cut of one channel has it.
    found["sources"] = [{"type": "file", "channels": recording.channel_ids, "source": where}]
    return found


def _stated(clip: Clip, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except Exception as error:
        # Lhotse's decoders raise all kinds.
        raise ManifestError(
            f"{clip.place}: lhotse cannot read its audio ({str(error).splitlines()[0]}); write a Shar folder with "
            "--shar, which decodes it."
        ) from error


def _supervisions(clip: Clip, recording: str) -> list[dict[str, Any]]:
    who = {"language": clip.language, "speaker": clip.speaker, "gender": (clip.model_extra or {}).get("gender")}
    spoken = [segment for segment in clip.segments or () if segment.text]
    if spoken:
        return [
            _supervision(f"{clip.id}-{number:03d}", recording, own.start, own.end - own.start, who | {"text": own.text})
            for number, own in enumerate(spoken)
        ]
    if not clip.text:
        return []
    return [_supervision(clip.id, recording, 0.0, clip.duration, who | {"text": clip.text})]


def _supervision(name: str, recording: str, start: float, duration: float, said: dict[str, Any]) -> dict[str, Any]:
    found = {"id": name, "recording_id": recording, "start": start, "duration": duration, "channel": 0}
    return found | {key: value for key, value in said.items() if value is not None}


def _custom(clip: Clip) -> dict[str, Any]:
    row = clip.model_dump(mode="json", exclude_none=True)
    custom = {key: value for key, value in row.items() if key not in _PLACED}
    return {"custom": custom} if custom else {}


def _in_memory(clip: Clip) -> Any:
    """A clip as a Lhotse cut whose audio is FLAC in memory."""
    from lhotse import Recording
    from lhotse.cut.set import deserialize_cut

    wave = clip.read()
    stream = io.BytesIO(encode(wave, "flac", "flac", SAMPLE_RATE, None))
    recording = Recording.from_bytes(stream.getvalue(), clip.id)
    cut = _mono_cut(clip.id, {"duration": len(wave) / SAMPLE_RATE}, len(wave) / SAMPLE_RATE) | _custom(clip)
    cut["supervisions"] = _supervisions(clip, clip.id)
    del cut["recording"]
    made: Any = deserialize_cut(cut)
    made.recording = recording
    return made


def _by_reference(rows: CutRows) -> Iterator[tuple[Cut, CutSound]]:
    for sound in rows.sounds():
        yield sound.by_reference(), sound


def _row(cut: Cut, folder: Path) -> dict[str, Any] | None:
    """How a manifest in `folder` names a cut's audio; `None` where it cannot."""
    if cut["type"] != "MixedCut":
        audio = _reference(cut, folder)
        return None if audio is None else {"audio": audio}
    if cut.get("transforms") or any(track.get("snr") is not None for track in cut["tracks"]):
        return None
    segments: list[dict[str, Any]] = []
    end = 0.0
    for start, own in sounding(cut):
        audio = _reference(own, folder)
        if audio is None or start < end - 1e-6:
            return None
        end = start + own["duration"]
        said = known_of({**own, "custom": None})
        kept = {key: said[key] for key in ("text", "speaker") if key in said}
        segments.append({"start": start, "end": end, "id": own["id"], "audio": audio, **kept})
    return {"audio": None, "segments": segments}


def _reference(cut: Cut, folder: Path) -> dict[str, Any] | None:
    """A cut that is a whole recording of one channel in a file or a tar archive, as a manifest names it."""
    recording = cut["recording"]
    sources = recording["sources"]
    whole = cut["start"] == 0 and abs(cut["duration"] - recording["duration"]) < 1e-3
    if not whole or recording.get("transforms") or len(sources) != 1 or len(sources[0]["channels"]) != 1:
        return None
    if sources[0]["type"] != "file":
        return None
    archive, inside, name = sources[0]["source"].partition(IN_TAR)
    if not inside:
        return AudioReference(path=archive).rebased(Path(), folder, cut["id"]).model_dump(exclude_none=True)
    offset, length = tar_members(Path(archive + ".tar"))[name]
    reference = AudioReference(path=archive + ".tar", offset=offset, length=length)
    return reference.rebased(Path(), folder, cut["id"]).model_dump(exclude_none=True)


def _described(cut: Cut, row: dict[str, Any]) -> dict[str, Any]:
    """A line of a manifest: the audio of `row`, and all that the cut says."""
    first = next(own for _, own in sounding(cut))
    custom = first.get("custom") or {}
    found = {"id": cut["id"], "duration": duration_of(cut)} | {k: v for k, v in custom.items() if k not in _PLACED}
    found |= known_of(cut) | row
    spoken = [(start, own) for start, own in supervisions_of(cut) if (own.get("text") or "").strip()]
    if len(spoken) > 1 and "segments" not in row:
        found["segments"] = [
            {"start": max(0.0, start), "end": start + own["duration"], "text": own["text"].strip()}
            for start, own in sorted(spoken, key=lambda placed: placed[0])
        ]
    return found
