"""Corpora on disk → manifests, all of a corpus or nothing: LibriSpeech, Common Voice, Hugging Face data sets.

The audio of the first two stays where it is and is named from the manifest. Hugging Face data sets (parquet or arrow
files with an audio column) hold their encoded recordings, which go as they are into shards beside the manifest. Other
corpora come as Lhotse cuts (`fastslm.data.cuts`).
"""

import csv
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from fastslm.audio import SAMPLE_RATE, probe_duration, stream_audio
from fastslm.data.shards import ShardWriter, sharded_manifest
from fastslm.errors import FastSLMError, ManifestError, OptionError

KINDS = ("librispeech", "commonvoice", "hf")
Row = dict[str, Any]
# Files that state their duration to the sample, so that nothing needs to be decoded to know it.
_EXACT = {".flac", ".wav", ".opus", ".ogg"}
_LIBRISPEECH_AUDIO = (".flac", ".opus", ".ogg", ".wav", ".mp3")
AUDIO_COLUMNS = ("audio", "file", "speech")
TEXT_COLUMNS = ("text", "sentence", "transcription", "transcript", "normalized_text", "raw_text")
ID_COLUMNS = ("id", "utt_id", "utterance_id", "key")
SPEAKER_COLUMNS = ("speaker", "speaker_id", "client_id")
LANGUAGE_COLUMNS = ("language", "lang", "locale")
BATCH_ROWS = 64


@dataclass(frozen=True)
class Columns:
    """Which columns hold what; `None` is the first of the usual names that is there.

    Attributes:
        translation: of what is said, into `target_language`.
        language: of the speech, where no column names it.
    """

    audio: str | None = None
    text: str | None = None
    id: str | None = None
    translation: str | None = None
    target_language: str | None = None
    language: str | None = None

    def __post_init__(self) -> None:
        if (self.translation is None) != (self.target_language is None):
            raise OptionError("A column of translations and their language belong together: give both, or neither.")


def import_corpus(
    source: Path,
    out: Path,
    kind: str,
    *,
    split: str | None = None,
    columns: Columns | None = None,
    on_fault: Callable[[str], None] | None = None,
    on_clip: Callable[[int], None] | None = None,
) -> tuple[int, float]:
    """Write the manifest `out` of a corpus; of `hf`, the audio goes into shards beside it, else it stays where it is.

    Args:
        kind: one of `KINDS`.
        split: of `commonvoice`, the table, `validated` by default.
        columns: of `hf`.
        on_fault: is told what is wrong with a clip, which is then left out; without it the first fault is raised.
        on_clip: is told how many clips are done.

    Returns:
        How many clips there are, and their seconds.

    Raises:
        OptionError: an unknown kind, an option of another, or `out` exists.
        ManifestError, AudioError: the corpus, or without `on_fault` a clip, is at fault. Nothing is written.
    """
    if kind not in KINDS:
        near = get_close_matches(kind.lower(), KINDS, n=1)
        hint = f", did you mean {near[0]!r}" if near else ""
        raise OptionError(f"There is no kind of corpus {kind!r}{hint}: choose one of {', '.join(KINDS)}.")
    if split is not None and kind != "commonvoice":
        raise OptionError(f"A split belongs to commonvoice: leave it out, and name the {kind} folder of one.")
    if columns not in (None, Columns()) and kind != "hf":
        raise OptionError(f"Columns and languages belong to hf, a {kind} folder states its own: leave them out.")
    if not source.exists():
        raise ManifestError(f"{source} does not exist: check the path.")
    seconds = 0.0
    with sharded_manifest(out) as writer:
        if kind == "librispeech":
            rows = librispeech_rows(source, out.resolve().parent, on_fault)
        elif kind == "commonvoice":
            rows = common_voice_rows(source, out.resolve().parent, split or "validated", on_fault)
        else:
            rows = dataset_rows(source, writer, columns or Columns(), on_fault)
        for row in rows:
            writer.rows.append(row)
            seconds += row["duration"]
            if on_clip:
                on_clip(len(writer.rows))
        if not writer.rows:
            raise ManifestError(f"{source}: there is no clip to import in it; name a folder that holds some.")
    return len(writer.rows), seconds


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
        stated = sum(len(block) for block in stream_audio(source)) / SAMPLE_RATE
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


def dataset_rows(
    source: Path, writer: ShardWriter, columns: Columns, on_fault: Callable[[str], None] | None = None
) -> Iterator[dict[str, Any]]:
    """Rows of all .parquet, or else all .arrow files in a folder, or of one such file; audio goes to `writer`.

    Args:
        on_fault: is told what is wrong with a row, which is then left out; without it the first fault is raised.

    Raises:
        OptionError: pyarrow is not installed.
        ManifestError: there are no such files, or a column is missing, or a row has no audio or text.
        AudioError: a recording cannot be read.
    """
    seen: set[str] = set()
    for file in _files(source):
        for number, record in enumerate(_records(file), start=1):
            with naming(f"{file}, row {number}", on_fault):
                row = _dataset_row(record, columns, f"{file.stem}-{number - 1:06d}", file)
                if row["id"] in seen:
                    raise ManifestError(f"the id {row['id']} occurs twice; name a column with others by --id-column.")
                seen.add(row["id"])
                content, suffix = row.pop("content")
                row["duration"] = seconds_of(content, exact=suffix in (".flac", ".wav", ".opus", ".ogg"))
                yield row | {"audio": writer.add(f"{row['id']}{suffix}", content)}


def _dataset_row(record: dict[str, Any], columns: Columns, name: str, file: Path) -> dict[str, Any]:
    audio = record[_column(record, columns.audio, AUDIO_COLUMNS, "audio", file)]
    content, path = (audio.get("bytes"), audio.get("path")) if isinstance(audio, dict) else (audio, None)
    if not isinstance(content, bytes):
        local = file.parent / str(path or content or "")
        if not local.is_file():
            raise ManifestError(
                "its audio is neither in the row nor a file beside it; save the data set with its audio embedded "
                "(`embed_external_files` of datasets)."
            )
        path, content = local.name, local.read_bytes()
    text = record[_column(record, columns.text, TEXT_COLUMNS, "text", file)]
    if text is not None and not str(text).strip():
        raise ManifestError("its text is empty; write it, or remove the row.")
    row: dict[str, Any] = {"id": name, "text": text, "content": (content, Path(str(path or "")).suffix.lower())}
    for key, given, usual in (
        ("id", columns.id, ID_COLUMNS),
        ("speaker", None, SPEAKER_COLUMNS),
        ("language", None, LANGUAGE_COLUMNS),
    ):
        column = given or next((c for c in usual if c in record), None)
        if column is not None and record.get(column) not in (None, ""):
            row[key] = str(record[column])
    row.setdefault("language", columns.language)
    if columns.translation is not None:
        row["translation"] = record[_column(record, columns.translation, (), "translation", file)]
        row["target_language"] = columns.target_language
    return {key: value for key, value in row.items() if value is not None} | {"label_kind": "human"}


def _column(record: dict[str, Any], given: str | None, usual: Sequence[str], what: str, file: Path) -> str:
    column = given or next((name for name in usual if name in record), None)
    if column is None or column not in record:
        wanted = f"no column {given}" if given else f"none of the columns {', '.join(usual)}"
        raise ManifestError(
            f"{file} has {wanted}, only {', '.join(record)}: name the one that holds the {what} by --{what}-column."
        )
    return column


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    for pattern in ("*.parquet", "*.arrow"):
        if found := sorted(source.rglob(pattern)):
            return found
    raise ManifestError(
        f"{source} holds no .parquet and no .arrow file: name the folder of a data set as `save_to_disk`, "
        "`to_parquet` or a download writes it."
    )


def _records(file: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise OptionError("Reading data sets needs pyarrow, which is not installed: pip install pyarrow.") from None
    try:
        if file.suffix == ".arrow":
            with pyarrow.memory_map(str(file)) as mapped:
                for batch in pyarrow.ipc.open_stream(mapped):
                    for start in range(0, batch.num_rows, BATCH_ROWS):
                        yield from batch.slice(start, BATCH_ROWS).to_pylist()
        else:
            with pyarrow.parquet.ParquetFile(file) as table:
                for batch in table.iter_batches(batch_size=BATCH_ROWS):
                    yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise ManifestError(f"{file} cannot be read ({error}); write or copy the file again.") from None
