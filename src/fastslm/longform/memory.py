"""The speech memory of a recording: its tokens, 50 for each window, kept so that it is encoded only once."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from fastslm.errors import CheckpointError, FastSLMError
from fastslm.writing import utf8_path, write_tensors

SUFFIX = ".fslm"
FORMAT = "fastslm-memory"
VERSION = 2


@dataclass(frozen=True)
class MemoryFacts:
    """What belongs to the tokens.

    Attributes:
        token_fingerprint: of the model that made them (`fastslm.longform.fingerprint`).
        name: of the recording.
        duration: seconds, as decoded, silence before and between sounds included; of a part, its own.
        audio_sha256: of the recording's samples as float32 at 16 kHz.
        warnings: what could not be decoded, or was not read, one sentence each.
        partial: whether the recording broke off before its end.
        missing_seconds: that lack then, `None` where that is not known.
    """

    token_fingerprint: str
    name: str
    duration: float
    audio_sha256: str
    warnings: tuple[str, ...] = ()
    partial: bool = False
    missing_seconds: float | None = None


@dataclass(frozen=True)
class SpeechMemory:
    """A recording as the HFQ-Former hears it, before the projection: every task reads this.

    Attributes:
        tokens: (windows, 50, hidden), in the dtype that they were computed in, on the CPU.
        times: (windows, 2), float64, seconds of the recording's clock at which each window starts and ends; the first
            starts at 0, or where the part does that was asked for, each starts where the one before ends, and the last
            ends with the recording.
        silent: (windows,), bool, whether a window holds no sound that could be speech.
    """

    tokens: torch.Tensor
    times: torch.Tensor
    silent: torch.Tensor
    facts: MemoryFacts

    @property
    def duration(self) -> float:
        """Seconds of the recording, or of the part that was asked for."""
        return self.facts.duration

    @property
    def start(self) -> float:
        """Second of the recording at which it begins."""
        return float(self.times[0, 0])

    @property
    def end(self) -> float:
        """Second of the recording at which it ends."""
        return float(self.times[-1, 1])

    @property
    def audio_tokens(self) -> int:
        """What the recording takes in a prompt."""
        return self.tokens.shape[0] * self.tokens.shape[1]

    def save(self, path: str | os.PathLike) -> Path:
        """Write it as one safetensors file, whole or not at all. The name is kept as given; `.fslm` is usual.

        Raises:
            FastSLMError: the file cannot be written.
        """
        metadata = {"format": FORMAT, "version": str(VERSION), "facts": json.dumps(asdict(self.facts))}
        tensors = {"tokens": self.tokens.contiguous(), "times": self.times, "silent": self.silent}
        return write_tensors(tensors, path, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "SpeechMemory":
        """Open what `save` wrote. Tokens are mapped into memory: each window is read from the disk when it is used.

        A file that is saved over meanwhile changes nothing, for `save` puts a new one in its place.

        Raises:
            FastSLMError: there is no such file.
            CheckpointError: it is no speech memory, damaged, or of a newer version.
        """
        name = os.fspath(path)
        if not os.path.isfile(name):
            raise FastSLMError(f"{name} does not exist as a file: make a speech memory with `fastslm encode`.")
        try:
            with utf8_path(name) as readable, safe_open(readable, "pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise CheckpointError(f"{name} is no speech memory: make one with `fastslm encode`.")
                if int(metadata["version"]) > VERSION:
                    raise CheckpointError(
                        f"{name} is a speech memory of version {metadata['version']}, up to {VERSION} can be read: "
                        "update fastslm, or encode the recording again."
                    )
                facts = json.loads(metadata["facts"])
                tensors = {key: file.get_tensor(key) for key in ("tokens", "times", "silent")}
            windows = len(tensors["times"])
            if any(len(tensor) != windows for tensor in tensors.values()):
                raise ValueError("its parts differ in their number of windows")
            return cls(**tensors, facts=MemoryFacts(**{**facts, "warnings": tuple(facts["warnings"])}))
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise CheckpointError(
                f"{name} is no speech memory, or it is damaged ({error}): encode the recording again."
            ) from error

    @classmethod
    def concatenate(cls, memories: Sequence["SpeechMemory"]) -> "SpeechMemory":
        """Several recordings as one that plays them one after another; `place_of` finds a second's recording again.

        Its name is those of all, its hash that of their hashes.

        Raises:
            FastSLMError: there are none.
            CheckpointError: they were made by different models.
        """
        if not memories:
            raise FastSLMError("There are no speech memories to put together: give at least one.")
        for memory in memories[1:]:
            memory.require(memories[0].facts.token_fingerprint)
        starts = _starts(memories)
        facts = MemoryFacts(
            token_fingerprint=memories[0].facts.token_fingerprint,
            name=", ".join(memory.facts.name for memory in memories),
            duration=sum(memory.duration for memory in memories),
            audio_sha256=hashlib.sha256("".join(m.facts.audio_sha256 for m in memories).encode()).hexdigest(),
            warnings=tuple(
                warning if memory.facts.name in warning else f"{memory.facts.name}: {warning}"
                for memory in memories
                for warning in memory.facts.warnings
            ),
            partial=any(memory.facts.partial for memory in memories),
            missing_seconds=missing_seconds(memories),
        )
        return cls(
            tokens=torch.cat([memory.tokens for memory in memories]),
            times=torch.cat([m.times - m.start + start for m, start in zip(memories, starts, strict=True)]),
            silent=torch.cat([memory.silent for memory in memories]),
            facts=facts,
        )

    def require(self, token_fingerprint: str) -> None:
        """Refuse the memory of another model.

        Raises:
            CheckpointError: the fingerprints differ.
        """
        if self.facts.token_fingerprint != token_fingerprint:
            raise CheckpointError(
                f"The speech memory of {self.facts.name} was made by another model (its fingerprint is "
                f"{self.facts.token_fingerprint}, this model's {token_fingerprint}): encode the recording again."
            )


def place_of(seconds: float, memories: Sequence[SpeechMemory]) -> tuple[int, float]:
    """Which of several memories a second of their concatenation belongs to, and which second of it that is."""
    starts = _starts(memories)
    index = max(index for index, start in enumerate(starts) if index == 0 or start <= seconds)
    return index, seconds - starts[index] + memories[index].start


def missing_seconds(memories: Sequence[SpeechMemory]) -> float | None:
    """What recordings that break off lack together, `None` where none does, or that is not known of one."""
    lacking = [memory.facts.missing_seconds for memory in memories if memory.facts.partial]
    known = [seconds for seconds in lacking if seconds is not None]
    return sum(known) if known and len(known) == len(lacking) else None


def _starts(memories: Sequence[SpeechMemory]) -> list[float]:
    """Seconds at which each begins when they are played one after another."""
    return [sum(memory.duration for memory in memories[:index]) for index in range(len(memories))]
