"""Encoded recordings gathered into tar shards, whose byte ranges a manifest names; all of them are there, or none."""

import contextlib
import io
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastslm.data.manifest import write_manifest
from fastslm.errors import FastSLMError, OptionError

SHARD_BYTES = 20_000_000


class ShardWriter:
    """Takes recordings one after another; a new shard begins when one is full. Made by `sharded_manifest`."""

    def __init__(self, folder: Path, stem: str):
        self._folder, self._stem = folder, stem
        self._shards: list[Path] = []
        self._tar: tarfile.TarFile | None = None
        self.rows: list[dict[str, Any]] = []

    def add(self, name: str, content: bytes) -> dict[str, Any]:
        """Store a file's content as it is. Returns its reference: path, offset, length."""
        if self._tar is None or self._tar.offset + len(content) > SHARD_BYTES:
            self.close()
            self._shards.append(self._folder / f"{self._stem}-{len(self._shards):03d}.tar")
            self._tar = tarfile.open(self._shards[-1], "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        member = tarfile.TarInfo(name)
        member.size = len(content)
        self._tar.addfile(member, io.BytesIO(content))
        padded = -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        return {"path": self._shards[-1].name, "offset": self._tar.offset - padded, "length": len(content)}

    def close(self) -> None:
        """Finish the shard that is open."""
        if self._tar is not None:
            self._tar.close()
            self._tar = None

    def move_to(self, folder: Path) -> None:
        """Give the shards their place beside the manifest."""
        for shard in self._shards:
            shard.replace(folder / shard.name)


def refuse_existing(out: Path) -> None:
    """Refuse to import over a manifest whose audio others may use.

    Raises:
        OptionError: `out` exists, or its folder does not.
    """
    if out.exists():
        raise OptionError(f"{out} exists already; remove it, or choose another name.")
    if not out.parent.is_dir():
        raise OptionError(f"The folder {out.parent} does not exist; make it first, or choose another place.")


@contextlib.contextmanager
def sharded_manifest(out: Path) -> Iterator[ShardWriter]:
    """A writer whose shards, and `rows` as the manifest `out`, take their places if the context ends without an error.

    The manifest comes last: whoever finds it finds all its audio.

    Raises:
        OptionError: as `refuse_existing`.
        FastSLMError: something cannot be written.
    """
    refuse_existing(out)
    try:
        folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.stem}.", suffix=".partial"))
    except OSError as error:
        raise FastSLMError(f"{out} cannot be written ({error.strerror or error}): choose another place.") from error
    writer = ShardWriter(folder, out.stem)
    try:
        yield writer
        writer.close()
        writer.move_to(out.parent)
        write_manifest(out, writer.rows)
    except OSError as error:
        raise FastSLMError(
            f"{out} cannot be written ({error.strerror or error}): choose another place, or free some room."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
