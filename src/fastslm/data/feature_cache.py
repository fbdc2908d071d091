"""The frozen encoder's frames of rows, computed once and kept on disk.

A frozen encoder's frames of a recording never change: 1500 × 384 numbers in bfloat16 for Whisper tiny, 1.15 MB a
window, and 3.84 MB for large-v3. Each row's frames are a file, named by a digest of all that they depend on: the audio,
the encoder, and how log-mels are made. Files appear whole or not at all, so that several processes may share a folder.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from fastslm.data.rows import Row, digest_of
from fastslm.errors import FastSLMError
from fastslm.features import MelMode
from fastslm.writing import write_tensors

LAYOUT = 2
BYTES_PER_NUMBER = 2

# Log-mels (windows, n_mels, 3000) → frames (windows, frames, hidden).
Encode = Callable[[torch.Tensor], torch.Tensor]


class FeatureCache:
    """Frames of rows in a folder.

    Args:
        folder: of the cache; made if it is not there.
        encoder: the pinned name of the frozen encoder, or its folder, whose files then count.
        mel_mode: as `fastslm.features.extract_features`.

    Raises:
        FastSLMError: the folder cannot be made.
    """

    def __init__(self, folder: Path, encoder: str, mel_mode: MelMode = "window"):
        self.folder, self.mel_mode = folder, mel_mode
        self.encoder = [encoder] if not Path(encoder).is_dir() else _digests(Path(encoder))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FastSLMError(
                f"{folder}: the cache of encoder frames cannot be made there ({error.strerror}): name another folder."
            ) from None

    def path(self, row: Row) -> Path:
        """Where the frames of a row with sound are, or will be."""
        assert row.sound is not None
        name = digest_of(LAYOUT, self.encoder, self.mel_mode, row.windows, row.sound.digest())
        # Folders of thousands of files, not of millions.
        return self.folder / name[:3] / f"{name[3:]}.safetensors"

    def read(self, rows: Iterable[Row]) -> list[torch.Tensor] | None:
        """The frames of each row, (windows, frames, hidden) bfloat16; `None` where those of any row are missing."""
        found = []
        for row in rows:
            if row.sound is None or (frames := self._read(self.path(row))) is None:
                return None
            found.append(frames)
        return found or None

    def _read(self, path: Path) -> torch.Tensor | None:
        try:
            with safe_open(path, "pt") as file:
                return file.get_tensor("frames")
        except (OSError, SafetensorError):
            # Not there, or damaged by the disk: computed anew.
            return None

    def frames(self, row: Row, features: torch.Tensor, encode: Encode) -> torch.Tensor:
        """The frames of one row, from the cache, or computed and kept.

        Args:
            features: the row's log-mels, (windows, n_mels, 3000).
            encode: the frozen encoder.

        Returns:
            (windows, frames, hidden) bfloat16, on the device of `features`.

        Raises:
            FastSLMError: they cannot be written.
        """
        path = self.path(row)
        kept = self._read(path)
        if kept is None:
            kept = encode(features).to(torch.bfloat16)
            self._write(path, kept)
        return kept.to(features.device)

    def _write(self, path: Path, frames: torch.Tensor) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FastSLMError(
                f"{path.parent} cannot be made ({error.strerror}): free some room, or name another cache."
            ) from None
        write_tensors({"frames": frames.contiguous().cpu()}, path, {})

    def bytes_of(self, rows: Sequence[Row], frames: int, hidden: int) -> int:
        """What the frames of rows take on disk, kept already or not."""
        return sum(row.windows for row in rows) * frames * hidden * BYTES_PER_NUMBER


def _digests(folder: Path) -> list[str]:
    """Every file of an encoder's folder with the SHA-256 of its content: what lies in a folder is not pinned."""
    found = []
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        with file.open("rb") as content:
            found.append(f"{file.name} {hashlib.file_digest(content, 'sha256').hexdigest()}")
    return found
