"""Hugging Face data sets saved on disk (parquet or arrow files with an audio column) → a manifest and shards.

The encoded recordings are stored as they are found, beside the manifest.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastslm.data.folders import naming, seconds_of
from fastslm.data.shards import ShardWriter
from fastslm.errors import ManifestError, OptionError

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
                row = _row(record, columns, f"{file.stem}-{number - 1:06d}", file)
                if row["id"] in seen:
                    raise ManifestError(f"the id {row['id']} occurs twice; name a column with others by --id-column.")
                seen.add(row["id"])
                content, suffix = row.pop("content")
                row["duration"] = seconds_of(content, exact=suffix in (".flac", ".wav", ".opus", ".ogg"))
                yield row | {"audio": writer.add(f"{row['id']}{suffix}", content)}


def _row(record: dict[str, Any], columns: Columns, name: str, file: Path) -> dict[str, Any]:
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
