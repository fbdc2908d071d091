"""What a recording will take on this machine: windows, tokens, memory, and whether one prompt holds it.

Sizes follow from the configuration and were checked against processes that did the work: memory within 20 % on a CPU.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from fastslm.audio import SAMPLE_RATE, WINDOW_SECONDS
from fastslm.errors import CheckpointError
from fastslm.features import WINDOW_FRAMES
from fastslm.longform.cuts import SEARCH_SAMPLES, Cuts
from fastslm.longform.encoder import GROUP_WINDOWS
from fastslm.longform.generation import context_length
from fastslm.longform.results import clock
from fastslm.longform.workers import worker_count
from fastslm.model.configuration import FastSLMConfig
from fastslm.model.fast_decoder import fast_decoder_bytes
from fastslm.model.modeling import FastSLMForConditionalGeneration
from fastslm.model.narrow_copy import narrow_bytes
from fastslm.model.products import Kernels

# Python, torch, transformers and the buffers of their kernels, measured on Linux: the same whatever the model.
PROGRAM_BYTES = 590_000_000
# Positions of a prompt besides speech: its words, the question, and the answer.
OTHER_POSITIONS = 320
# A run is long, and says at its start what it will take, from here on.
LONG_SECONDS = 600.0


@dataclass(frozen=True)
class Plan:
    """What encoding a recording and asking about it takes. Bytes are of memory, but `memory_file_bytes` of the disk.

    Attributes:
        seconds: as the container says, `None` where it says nothing; the model's own sizes are known all the same.
        windows: with quiet cuts at most; of a memory those that it holds.
        weight_bytes: of all parameters.
        group_windows: that are in the encoder at a time, all workers together.
        group_bytes: of those windows, and of others that are decoded ahead of them.
        kv_bytes: of the language model's cache for one prompt that holds the recording, or as much as fits.
        longest_seconds: what one prompt holds; `None` where the language model states no limit.
        total_bytes: of the encoding: program, weights, group and tokens; a question adds the cache.
        cuts: `None` of a memory, which is cut already.
    """

    seconds: float | None
    windows: int | None
    audio_tokens: int | None
    memory_file_bytes: int | None
    program_bytes: int
    weight_bytes: int
    group_windows: int
    group_bytes: int
    kv_bytes: int | None
    context: int | None
    longest_seconds: float | None
    total_bytes: int
    available_bytes: int
    device: str
    dtype: str
    cuts: Cuts | None
    reasons: tuple[str, ...]

    @property
    def fits_prompt(self) -> bool:
        """Whether one prompt holds the recording, whatever its quiet cuts; beyond it, it is read in spans."""
        if self.windows is None or self.longest_seconds is None:
            return True
        return self.windows * WINDOW_SECONDS <= self.longest_seconds

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "fits_prompt": self.fits_prompt}

    def line(self) -> str:
        """In one sentence, without the recording's name."""
        length = "of unknown length" if self.seconds is None else f"{clock(self.seconds)} long"
        parts = [f"about {_size(self.total_bytes)} of memory on the {self.device}"]
        if self.windows is not None:
            most = "at most " if self.cuts == "quiet" else ""
            parts = [f"{most}{self.windows} windows, {self.audio_tokens} speech tokens", *parts]
        if self.longest_seconds is not None:
            parts.append(f"one prompt holds {clock(self.longest_seconds)}")
        return f"{length}: {', '.join(parts)}."

    def table(self) -> str:
        """For people to read."""
        rows: list[tuple[str, str]] = []
        if self.seconds is not None:
            most = "at most " if self.cuts == "quiet" else ""
            rows += [
                ("length", clock(self.seconds)),
                ("windows", f"{most}{self.windows}, {f'{self.cuts} cuts' if self.cuts else 'as the memory is cut'}"),
                ("speech tokens", f"{most}{self.audio_tokens}, {_size(self.memory_file_bytes or 0)} as a memory"),
            ]
        rows += [
            ("program", f"{_size(self.program_bytes)} (Python, torch and their buffers)"),
            ("weights", f"{_size(self.weight_bytes)}, {self.dtype}"),
            ("encoder group", f"{_size(self.group_bytes)}, {self.group_windows} windows at a time"),
            ("encoding", f"{_size(self.total_bytes)} together; {_size(self.available_bytes)} are free"),
        ]
        if self.kv_bytes is not None:
            rows.append(("KV cache", f"{_size(self.kv_bytes)} more for a question in one prompt"))
        if self.longest_seconds is not None:
            may = "may be" if self.cuts == "quiet" else "is"
            beyond = "" if self.fits_prompt else f"; this recording {may} longer, and is then read in spans"
            rows.append(("longest", f"{clock(self.longest_seconds)} in one prompt of {self.context} positions{beyond}"))
        rows += [("chosen", reason) for reason in self.reasons]
        return "\n".join(f"{name:14} {value}" for name, value in rows)


def plan(
    model: FastSLMForConditionalGeneration,
    seconds: float | None,
    *,
    dtype: torch.dtype | None = None,
    device: str | None = None,
    cuts: Cuts = "fixed",
    windows: int | None = None,
    group_windows: int | None = None,
    encoder_dtype: torch.dtype | None = None,
    kernels: Kernels = "torch",
    reasons: tuple[str, ...] = (),
) -> Plan:
    """What a recording of so many seconds takes.

    Args:
        model: loaded, or on the meta device, where it costs nothing.
        dtype, device: that it is to run in and on, where the model is not loaded.
        windows: that a memory holds, whose cuts are what they are.
        group_windows: that are in the encoder at a time, by default what `WindowEncoder` does on the device.
        encoder_dtype: what the encoder computes in (`WindowEncoder`), by default the model's.
        kernels: what multiplies in it (`WindowEncoder`).
        reasons: why things were chosen as they are, a sentence each.
    """
    config = model.config
    dtype = dtype or model.dtype
    chosen = cuts if windows is None else None
    if windows is None and seconds is not None:
        windows = most_windows(seconds, cuts)
    tokens = config.tokens_per_window
    kept = (windows or 0) * tokens * config.hfq_config.hidden_size * (encoder_dtype or dtype).itemsize
    weights = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    decoder = None if model.whisper_decoder is None else model.whisper_decoder.decoder
    copied = [model.encoder, decoder] if encoder_dtype not in (None, dtype) else []
    if copied and encoder_dtype is not None:
        weights += narrow_bytes(model.hfq_former, encoder_dtype, dtype)
    if kernels == "products":
        copied = [model.encoder]
        weights += 0 if decoder is None else fast_decoder_bytes(decoder)
    for part in copied:
        weights += (
            0 if part is None else sum(own.numel() for own in part.parameters()) * (encoder_dtype or dtype).itemsize
        )
    device = device or str(model.device)
    group_windows = group_windows or GROUP_WINDOWS * worker_count(torch.device(device))
    group = group_bytes(model, group_windows, encoder_dtype or dtype)
    context = context_length(model)
    room = None if context is None else max(0, context - OTHER_POSITIONS) // tokens
    for task, taught in (config.capabilities.taught_seconds or {}).items():
        reasons += (f"{task}: parts of {clock(taught)} of what is longer (the model was taught no longer recordings)",)
    prompt = None if windows is None else (windows if room is None else min(windows, room)) * tokens + OTHER_POSITIONS
    return Plan(
        seconds=seconds,
        windows=windows,
        audio_tokens=None if windows is None else windows * tokens,
        memory_file_bytes=None if windows is None else kept,
        program_bytes=PROGRAM_BYTES,
        weight_bytes=weights,
        group_windows=group_windows,
        group_bytes=group,
        kv_bytes=None if prompt is None else kv_bytes(model, prompt, dtype),
        context=context,
        longest_seconds=None if room is None else float(room * WINDOW_SECONDS),
        total_bytes=PROGRAM_BYTES + weights + group + kept,
        available_bytes=psutil.virtual_memory().available,
        device=device,
        dtype=str(dtype).removeprefix("torch."),
        cuts=chosen,
        reasons=reasons,
    )


def empty_model(folder: Path) -> FastSLMForConditionalGeneration:
    """A checkpoint's model without its weights, on the meta device: its sizes, in a moment.

    Raises:
        CheckpointError: the folder holds no FastSLM.
    """
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} holds no config.json: give a checkpoint's folder.")
    try:
        with torch.device("meta"):
            return FastSLMForConditionalGeneration(FastSLMConfig.from_pretrained(folder))
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{folder} does not describe a FastSLM ({reason}): give a checkpoint's folder."
        ) from error


def most_windows(seconds: float, cuts: Cuts) -> int:
    """Windows of a recording: exactly, of fixed cuts; at most, of quiet ones.

    Each quiet cut may fall 5 s early, and there is none where 30 s or less are left.
    """
    least = WINDOW_SECONDS - (SEARCH_SAMPLES / SAMPLE_RATE if cuts == "quiet" else 0)
    return 1 + max(0, math.ceil((seconds - WINDOW_SECONDS) / least - 1e-9))


def group_bytes(model: FastSLMForConditionalGeneration, windows: int, dtype: torch.dtype) -> int:
    """What windows hold at the encoder's widest place, and the log-mels that wait for it.

    There, in a feed-forward part, each frame has two vectors of the inner width and about four of the outer.
    """
    config = model.config
    audio = config.audio_config
    frame = (2 * audio.encoder_ffn_dim + 4 * audio.d_model) * dtype.itemsize
    mel = audio.num_mel_bins * WINDOW_FRAMES * torch.float32.itemsize
    # As many again are ready, and one is in the making.
    return windows * config.hfq_config.window_frames * frame + (3 * windows + 1) * mel


def kv_bytes(model: FastSLMForConditionalGeneration, positions: int, dtype: torch.dtype) -> int | None:
    """The language model's cache of a prompt, exactly; `None` of one whose layers are not all alike attention."""
    config = model.config.text_config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or getattr(config, "num_attention_heads", None)
    layers, width = getattr(config, "num_hidden_layers", None), getattr(config, "hidden_size", None)
    if not heads or not layers or not width:
        return None
    head = getattr(config, "head_dim", None) or width // config.num_attention_heads
    return layers * 2 * heads * head * positions * dtype.itemsize


def _size(count: int) -> str:
    """12345678 → 12 MB"""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"
