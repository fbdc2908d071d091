"""Folders of LibriSpeech and Common Voice → manifests. The audio stays where it is and is named from the manifest."""

import csv
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastslm.audio import SAMPLE_RATE, probe_duration, stream_audio
from fastslm.errors import FastSLMError, ManifestError

Row = dict[str, Any]
# Files that state their duration to the sample, so that nothing needs to be decoded to know it.
_EXACT = {".flac", ".wav", ".opus", ".ogg"}
_LIBRISPEECH_AUDIO = (".flac", ".opus", ".ogg", ".wav", ".mp3")


def librispeech_rows(folder: Path, out_folder: Path, on_fault: Callable[[str], None] | None = None) -> Iterator[Row]:
    """Rows of a folder with SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt and its audio files, at any depth.

    The texts' capitals carry no case, so they are written in lower case. `SPEAKERS.TXT`, here or in a folder above,
    gives the speakers' gender.

    Args:
        on_fault: is told what is wrong with a clip, which is then left out; without it the first fault is raised.

    Raises:
        ManifestError: there are no transcripts, or a clip's audio is missing.
        AudioError: it cannot be read.
    """
    transcripts = sorted(folder.rglob("*.trans.txt"))
    if not transcripts:
        raise ManifestError(
            f"{folder} holds no file that ends in .trans.txt, which LibriSpeech has beside its audio: name the folder "
            "of a part such as train-clean-100."
        )
    genders = _genders(folder)
    for transcript in transcripts:
        for number, line in enumerate(_lines(transcript), start=1):
            if not line.strip():
                continue
            name, _, text = line.strip().partition(" ")
            with naming(f"{transcript}, line {number}", on_fault):
                audio = next((f for s in _LIBRISPEECH_AUDIO if (f := transcript.parent / f"{name}{s}").is_file()), None)
                if audio is None:
                    raise ManifestError(f"the audio of {name} is not beside it; put {name}.flac there.")
                if not text.strip():
                    raise ManifestError(f"{name} has no text; write it there, or remove the line.")
                speaker = name.split("-")[0]
                row = {"id": name, "audio": os.path.relpath(audio, out_folder), "duration": seconds_of(audio)}
                row |= {"text": text.strip().lower(), "speaker": speaker, "language": "en", "label_kind": "human"}
                yield row | ({"gender": genders[speaker]} if speaker in genders else {})


def common_voice_rows(
    folder: Path, out_folder: Path, split: str = "validated", on_fault: Callable[[str], None] | None = None
) -> Iterator[Row]:
    """Rows of a Common Voice language folder: `split`.tsv and the files in clips.

    Args and errors are `librispeech_rows`'; `speaker` is `client_id`, `language` the row's locale or the folder's name.
    """
    table = folder / f"{split}.tsv"
    if not table.is_file():
        there = ", ".join(sorted(path.stem for path in folder.glob("*.tsv"))) or "none"
        raise ManifestError(
            f"{table} does not exist: name a folder with clips and tables, and a split (here: {there})."
        )
    reader = csv.DictReader(_lines(table), delimiter="\t", quoting=csv.QUOTE_NONE)
    if missing := {"client_id", "path", "sentence"} - set(reader.fieldnames or ()):
        raise ManifestError(f"{table}, line 1: there is no column {min(missing)}; give a table of Common Voice.")
    for number, entry in enumerate(reader, start=2):
        with naming(f"{table}, line {number}", on_fault):
            name, text = entry["path"] or "", (entry["sentence"] or "").strip()
            audio = folder / "clips" / (name if Path(name).suffix else f"{name}.mp3")
            if not audio.is_file():
                raise ManifestError(f"its audio {audio} does not exist; put it there, or remove the line.")
            if not text:
                raise ManifestError(f"{name} has no sentence; write it there, or remove the line.")
            row = {"id": audio.stem, "audio": os.path.relpath(audio, out_folder), "duration": seconds_of(audio)}
            row |= {"text": text, "speaker": entry["client_id"], "language": _language(entry, folder)}
            kept = {"gender": "gender", "age": "age", "accents": "accent", "accent": "accent"}
            yield row | {new: entry[old] for old, new in kept.items() if entry.get(old)} | {"label_kind": "human"}


def seconds_of(source: Path | bytes, *, exact: bool | None = None) -> float:
    """The duration of a recording, decoded unless its kind states it to the sample.

    Raises:
        AudioError: it cannot be read.
    """
    exact = isinstance(source, Path) and source.suffix.lower() in _EXACT if exact is None else exact
    stated = probe_duration(source) if exact else None
    if stated is None:
        stated = sum(len(block) for block in stream_audio(source, strict=True)) / SAMPLE_RATE
    return round(stated, 4)


@contextmanager
def naming(place: str, on_fault: Callable[[str], None] | None) -> Iterator[None]:
    """Puts the place before a fault's sentence. One that `on_fault` is told is not raised: the row is left out."""
    try:
        yield
    except FastSLMError as error:
        sentence = f"{place}: {error}"
        if on_fault is None:
            raise type(error)(sentence) from None
        on_fault(sentence)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError:
        raise ManifestError(f"{path}: this is not UTF-8; save the file as UTF-8.") from None


def _genders(folder: Path) -> dict[str, str]:
    for place in (folder, *folder.resolve().parents[:2]):
        if (table := place / "SPEAKERS.TXT").is_file():
            found = (re.match(r"\s*(\d+)\s*\|\s*([MF])\s*\|", line) for line in _lines(table))
            return {match[1]: "male" if match[2] == "M" else "female" for match in found if match}
    return {}


def _language(entry: dict[str, str], folder: Path) -> str:
    return (entry.get("locale") or folder.resolve().name).split("-")[0].lower()
