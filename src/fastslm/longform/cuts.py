"""Where a recording is cut into windows: every 30 s, or at the quietest place shortly before, so that no word is split.

Whatever the cuts, concatenating all windows gives the recording exactly, and no window is longer than 30 s.
"""

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Literal, get_args

import numpy as np

from fastslm.audio import SAMPLE_RATE, WINDOW_SAMPLES
from fastslm.errors import OptionError

Cuts = Literal["fixed", "quiet"]
CUTS = get_args(Cuts)
# How far before the 30 s a quiet cut is looked for: a pause between phrases comes every few seconds.
SEARCH_SAMPLES = 5 * SAMPLE_RATE
# Energy is compared in steps, each with its surroundings: a closed consonant of 50 ms is no pause.
STEP_SAMPLES = SAMPLE_RATE // 100
PAUSE_STEPS = 16
# A place is a pause if it has less than this share of the energy that half of the places have: 10 dB below them.
PAUSE_SHARE = 0.1


def check_cuts(cuts: str, mel_mode: str) -> None:
    """Refuse cuts that are unknown, or that the model's log-mel does not allow.

    Raises:
        OptionError: the nearest name, or why not.
    """
    if cuts not in CUTS:
        near = get_close_matches(str(cuts), CUTS, n=1)
        hint = f", did you mean {near[0]!r}" if near else ""
        raise OptionError(f"There are no cuts {cuts!r}{hint}: choose one of {', '.join(CUTS)}.")
    if cuts == "quiet" and mel_mode == "authors":
        raise OptionError(
            "Quiet cuts were asked for, but in the mel mode 'authors' windows are 30 s of the whole file's log-mel: "
            "use fixed cuts."
        )


def refuse_cuts_of_memory(cuts: str | None, name: str) -> None:
    """Raise if cuts were chosen for a speech memory, whose windows are what they are.

    Raises:
        OptionError: they were.
    """
    if cuts is not None:
        raise OptionError(
            f"Cuts {cuts!r} were asked of {name}, a speech memory, which is cut already: leave them out, or give the "
            "recording."
        )


def cut(blocks: Iterable[np.ndarray], cuts: Cuts) -> Iterator[np.ndarray]:
    """Blocks of a recording, of at most 30 s each → its windows, each float32 (samples,).

    Fixed: every window but the last has 30 s. Quiet: every window but the last ends within the last 5 of its 30 s, in
    the middle of the quietest 0.16 s there, or at 30 s where nothing is quieter than the rest; how the recording came
    in blocks changes nothing.
    """
    held: list[np.ndarray] = []
    size = 0
    for block in blocks:
        held.append(block)
        size += len(block)
        del block
        # With just 30 s it may be the end, which needs no cut; a fixed one falls there in any case.
        while size > WINDOW_SAMPLES or (cuts == "fixed" and size == WINDOW_SAMPLES):
            samples = held[0] if len(held) == 1 else np.concatenate(held)
            stop = WINDOW_SAMPLES if cuts == "fixed" else quietest(samples[:WINDOW_SAMPLES])
            # A view would keep what was before it in memory.
            held = [samples[stop:].copy()] if stop < size else []
            size -= stop
            window = samples[:stop]
            del samples
            yield window
            del window
    if size:
        yield np.concatenate(held)


def quietest(samples: np.ndarray) -> int:
    """Where a window that goes on is cut: (samples,) of 30 s → the middle of the quietest place in its last 5 s.

    Where there is no pause, as in silence, noise or music, it is the end: such windows stay whole.
    """
    steps = samples[-SEARCH_SAMPLES:].reshape(-1, STEP_SAMPLES)
    energy = np.square(steps, dtype=np.float64).sum(1)
    around = np.convolve(energy, np.ones(PAUSE_STEPS), mode="valid")
    first = int(np.argmin(around))
    if around[first] >= PAUSE_SHARE * np.median(around):
        return len(samples)
    return len(samples) - SEARCH_SAMPLES + (first + PAUSE_STEPS // 2) * STEP_SAMPLES
