"""The speech memory of a recording: its tokens, 50 for each window, kept so that it is encoded only once."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fastslm.errors import CheckpointError, FastSLMError
from fastslm.longform.output import beside

SUFFIX = ".fslm"
FORMAT = "fastslm-memory"
VERSION = 1


@dataclass(frozen=True)
class MemoryFacts:
    """What belongs to the tokens.

    Attributes:
        token_fingerprint: of the model that made them (`fastslm.longform.fingerprint`).
        name: of the recording.
        duration: seconds, as decoded.
        audio_sha256: of the recording's samples as float32 at 16 kHz.
        warnings: what could not be decoded, one sentence each.
    """

    token_fingerprint: str
    name: str
    duration: float
    audio_sha256: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class SpeechMemory:
    """A recording as the HFQ-Former hears it, before the projection: every task reads this.

    Attributes:
        tokens: (windows, 50, hidden), in the dtype that they were computed in, on the CPU.
        times: (windows, 2), float64, seconds at which each window starts and ends; the first starts at 0, each starts
            where the one before ends, and the last ends with the recording.
        silent: (windows,), bool, whether a window holds no sound that could be speech.
    """

    tokens: torch.Tensor
    times: torch.Tensor
    silent: torch.Tensor
    facts: MemoryFacts

    @property
    def duration(self) -> float:
        """Seconds of the recording."""
        return self.facts.duration

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
        with beside(path) as scratch:
            save_file(tensors, scratch, metadata=metadata)
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "SpeechMemory":
        """Read what `save` wrote.

        Raises:
            FastSLMError: there is no such file.
            CheckpointError: it is no speech memory, damaged, or of a newer version.
        """
        name = os.fspath(path)
        if not os.path.isfile(name):
            raise FastSLMError(f"{name} does not exist as a file: make a speech memory with `fastslm encode`.")
        try:
            with safe_open(name, "pt") as file:
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
            return cls(**tensors, facts=MemoryFacts(**{**facts, "warnings": tuple(facts["warnings"])}))
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise CheckpointError(
                f"{name} is no speech memory, or it is damaged ({error}): encode the recording again."
            ) from error

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
