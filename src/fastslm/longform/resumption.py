"""What a long encoding has done so far, kept in a file beside its result: killed, it goes on to the same bits."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from filelock import FileLock, Timeout
from safetensors.torch import load, save

from fastslm.errors import FastSLMError

SUFFIX = ".partial"
MAGIC = b"fastslm-groups 1\n"
LENGTH_BYTES = 8
CHECK_BYTES = 32


@dataclass(frozen=True)
class KeptGroup:
    """Windows that passed the model together.

    Attributes:
        tokens: (windows, 50, hidden).
        samples: of each window.
        audio_digest: SHA-256 of the recording from its beginning to the group's end.
    """

    tokens: torch.Tensor
    samples: tuple[int, ...]
    audio_digest: bytes


class KeptGroups:
    """The finished groups of one encoding, in a file that only grows. Use it as a context.

    What a kill left half written at its end is dropped; so is a file that belongs to another model or way of encoding.
    Windows are grouped from the recording's beginning, so that the groups after a restart are those of a run that was
    never stopped.

    Args:
        path: of the file; it appears with the first group.
        stamp: everything that decides what the tokens are.

    Raises:
        FastSLMError: the file cannot be written, is another kind of file, or another process is at it.
    """

    def __init__(self, path: str | os.PathLike, stamp: dict[str, Any]):
        self.path = Path(path)
        self._head = MAGIC + json.dumps(stamp, sort_keys=True).encode() + b"\n"
        self._lock = FileLock(self.path.with_name(f".{self.path.name}.lock"), timeout=0)
        self._file: BinaryIO | None = None
        self._waiting: list[KeptGroup] = []
        self.is_torn = False  # what would be appended after a write that failed is never read

    def __enter__(self) -> "KeptGroups":
        try:
            self._lock.acquire()
        except Timeout:
            raise FastSLMError(
                f"{self.path} is being written by another process: wait for it, or choose another place."
            ) from None
        except OSError as error:
            raise self._failed(error) from error
        try:
            self._waiting = self._read()
        except OSError as error:
            self._release()
            raise self._failed(error) from error
        except FastSLMError:
            self._release()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._release()

    @property
    def windows(self) -> int:
        """How many windows are kept that were not taken yet."""
        return sum(len(group.samples) for group in self._waiting)

    @property
    def samples(self) -> int:
        """How many samples of the recording they hold."""
        return sum(sum(group.samples) for group in self._waiting)

    def take(self, samples: Sequence[int], audio_digest: bytes) -> torch.Tensor | None:
        """The tokens of the next group, `None` where no more are kept.

        Raises:
            FastSLMError: the recording is not the one that the kept groups were made of.
        """
        if not self._waiting:
            return None
        group = self._waiting.pop(0)
        if (group.samples, group.audio_digest) != (tuple(samples), audio_digest):
            raise FastSLMError(
                f"{self.path} holds the beginning of another recording of that name: delete it to encode this one."
            )
        return group.tokens

    def append(self, tokens: torch.Tensor, samples: Sequence[int], audio_digest: bytes) -> None:
        """Keep a group that was just encoded.

        Raises:
            FastSLMError: the file cannot be written.
        """
        tensors = {"tokens": tokens.contiguous(), "samples": torch.tensor(samples)}
        payload = save({**tensors, "audio": torch.frombuffer(bytearray(audio_digest), dtype=torch.uint8)})
        check = hashlib.sha256(payload).digest()
        try:
            if self._file is None:
                self._file = self.path.open("ab")
                if self._file.tell() == 0:
                    self._file.write(self._head)
            self._file.write(len(payload).to_bytes(LENGTH_BYTES, "little") + check + payload)
            self._file.flush()
        except OSError as error:
            self.is_torn = True
            raise self._failed(error) from error

    def discard(self) -> None:
        """Delete the file: nothing can be made of what it holds."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._waiting.clear()
        self.path.unlink(missing_ok=True)

    def _read(self) -> list[KeptGroup]:
        """What is whole in the file; the rest is cut off."""
        groups: list[KeptGroup] = []
        if not self.path.exists():
            return groups
        with self.path.open("r+b") as file:
            whole = 0
            head = file.read(len(self._head))
            # Of ours, killed while it was begun, there may be less than the magic, but nothing else.
            if not head.startswith(MAGIC[: len(head)]):
                raise FastSLMError(
                    f"{self.path} is no file of finished groups, and would be written over: choose another place, or "
                    "remove it."
                )
            if head == self._head:
                whole = file.tell()
                while (group := _read_group(file)) is not None:
                    groups.append(group)
                    whole = file.tell()
            file.truncate(whole)
        return groups

    def _release(self) -> None:
        self._lock.release()
        Path(self._lock.lock_file).unlink(missing_ok=True)

    def _failed(self, error: OSError) -> FastSLMError:
        return FastSLMError(
            f"{self.path} cannot be written ({error.strerror or error}): choose another place, or free some room."
        )


def _read_group(file: BinaryIO) -> KeptGroup | None:
    """The next group, `None` at the end or where the writing was stopped."""
    size = int.from_bytes(file.read(LENGTH_BYTES), "little")
    check = file.read(CHECK_BYTES)
    # After a power cut anything may stand there, lengths beyond all memory too.
    if not 0 < size <= os.fstat(file.fileno()).st_size - file.tell():
        return None
    payload = file.read(size)
    if hashlib.sha256(payload).digest() != check:
        return None
    tensors = load(payload)
    return KeptGroup(tensors["tokens"], tuple(tensors["samples"].tolist()), tensors["audio"].numpy().tobytes())
