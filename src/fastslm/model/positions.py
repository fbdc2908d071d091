"""Where things are in time: Whisper's sinusoids, and which keys lie near which token's slot."""

import functools
import math

import torch


def sinusoids_at(positions: torch.Tensor, channels: int) -> torch.Tensor:
    """Whisper's position code at any, also fractional, positions.

    Timescales run from 1 to 10,000 in `channels / 2` geometric steps; sines first, then cosines (paper section 3,
    Whisper's own table).

    Args:
        positions: (...,) in units of keys.
        channels: width of the code, even.

    Returns:
        (..., channels), float32.
    """
    step = math.log(10_000) / (channels // 2 - 1)
    inverse_timescales = torch.exp(-step * torch.arange(channels // 2, dtype=torch.float32))
    angles = positions.float()[..., None] * inverse_timescales.to(positions.device)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


@functools.lru_cache(maxsize=64)
def sinusoids(length: int, channels: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """The fixed table of positions 0 … length − 1, (length, channels). Computed in float32, never trained."""
    with torch.inference_mode(False):
        return sinusoids_at(torch.arange(length), channels).to(device=device, dtype=dtype)


def slot_middles(slots: int, length: int) -> torch.Tensor:
    """Middle of each of `slots` equal parts of `length` keys, in key units: (i + ½) · length / slots − ½. (slots,)"""
    return (torch.arange(slots) + 0.5) * (length / slots) - 0.5


def key_slots(slots: int, length: int) -> torch.Tensor:
    """Which of `slots` equal parts each of `length` keys falls into. (length,) of int64"""
    return torch.arange(length) * slots // length


@functools.lru_cache(maxsize=64)
def slot_and_key_times(
    slots: int, lengths: tuple[int, ...], channels: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sinusoids of each slot's middle, (slots, channels), and of every key's time, (keys, channels). float32

    Args:
        lengths: the sequences that stand one after another among the keys, each covering the whole window. Time is
            counted in keys of the first: key j of one that is f times as short is at f · j.
    """
    with torch.inference_mode(False):
        times = torch.cat([torch.arange(length) * (lengths[0] // length) for length in lengths])
        middles = slot_middles(slots, lengths[0])
        return sinusoids_at(middles, channels).to(device), sinusoids_at(times, channels).to(device)


@functools.lru_cache(maxsize=64)
def visible_keys(queries: int, lengths: tuple[int, ...], span: int | None, device: torch.device) -> torch.Tensor | None:
    """Which keys each query may see: those of its own slot and of `span` slots on each side (ours).

    Args:
        queries: tokens, each of which owns one slot of the window.
        lengths: the sequences that stand one after another among the keys, each covering the whole window.
        span: slots on each side, `None` for all.

    Returns:
        (queries, sum(lengths)) of bool, or `None` where everything is visible.
    """
    if span is None:
        return None
    with torch.inference_mode(False):
        slots = torch.cat([key_slots(queries, length) for length in lengths])
        return ((slots[None, :] - torch.arange(queries)[:, None]).abs() <= span).to(device)


@functools.lru_cache(maxsize=64)
def neighbourhoods(
    queries: int, lengths: tuple[int, ...], span: int, device: torch.device
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The visible keys of each query as indices, so that only they need to be touched.

    Returns:
        per sequence, (queries, most visible keys) of int64, filled up with a key that the mask hides; and the mask of
        what is real, (queries, total), in the order of the sequences.
    """
    with torch.inference_mode(False):
        indices, masks = [], []
        for length in lengths:
            seen = visible_keys(queries, (length,), span, torch.device("cpu"))
            assert seen is not None
            widest = int(seen.sum(1).max())
            # A stable sort of "not seen" brings the visible keys to the front, in their own order.
            order = torch.sort((~seen).to(torch.int8), dim=1, stable=True).indices[:, :widest]
            indices.append(order.contiguous().to(device))
            masks.append(seen.gather(1, order))
        return indices, torch.cat(masks, dim=1).to(device)
