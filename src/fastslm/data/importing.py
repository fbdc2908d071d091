"""Corpora on disk → manifests, all of it or nothing."""

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

from fastslm.data.folders import common_voice_rows, librispeech_rows
from fastslm.data.parquet import Columns, dataset_rows
from fastslm.data.shards import sharded_manifest
from fastslm.errors import ManifestError, OptionError

KINDS = ("librispeech", "commonvoice", "hf")


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
