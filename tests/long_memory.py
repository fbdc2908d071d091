"""Speech memories of any length for the tiny model, made up: nothing is encoded."""

from collections.abc import Sequence

import torch
from tiny_fastslm import WIDTH

from fastslm.longform.memory import MemoryFacts, SpeechMemory
from fastslm.speech import FastSLM


def long_memory(
    tiny: FastSLM, windows: int, clip: torch.Tensor | None = None, places: Sequence[int] = (), name: str = "long"
) -> SpeechMemory:
    """Random windows, with one clip's tokens (50, hidden) at some places."""
    generator = torch.Generator().manual_seed(0)
    # A shift of each window's own makes the random language model say different things of them.
    tokens = torch.randn(windows, 50, WIDTH, generator=generator)
    tokens += 20 * torch.randn(windows, 1, WIDTH, generator=generator)
    for place in places:
        assert clip is not None
        tokens[place] = clip
    ends = torch.arange(1, windows + 1, dtype=torch.float64) * 30
    facts = MemoryFacts(tiny.encoder.fingerprint, name, windows * 30.0, "0")
    return SpeechMemory(tokens, torch.stack([ends - 30, ends], 1), torch.zeros(windows, dtype=torch.bool), facts)
