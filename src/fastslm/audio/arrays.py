"""Samples in arrays and in bytes → (channels, samples): which axis is what is known or stated, never guessed."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch

from fastslm.errors import AudioError, OptionError

# An array of 0.1 s holds 100 samples or more: an axis of at most this length beside a longer one is that of channels.
MOST_CHANNELS = 64

# As FFmpeg names them: sign, bits, byte order. PyAudio's paInt16 is s16le, its paFloat32 f32le.
SAMPLE_FORMATS = {
    "u8": "u1",
    "s8": "i1",
    "s16le": "<i2",
    "s16be": ">i2",
    "s24le": "<i3",
    "s24be": ">i3",
    "s32le": "<i4",
    "s32be": ">i4",
    "f32le": "<f4",
    "f32be": ">f4",
    "f64le": "<f8",
    "f64be": ">f8",
}


def channels_first(array: np.ndarray | torch.Tensor, channel_axis: int | None = None) -> np.ndarray:
    """A whole recording as (channels, samples), a view where that is possible.

    Args:
        array: (samples,), or with two axes.
        channel_axis: which of two axes is that of the channels, 0 or 1; `None` where one of them has at most
            `MOST_CHANNELS` and the other more, as that of every recording of 0.1 s has.

    Raises:
        AudioError: it is no recording by its shape or type, or both axes could be time.
    """
    samples = _numpy(array)
    if not samples.size:
        raise AudioError(f"The array has shape {samples.shape} and holds no samples: give a recording of some length.")
    if samples.ndim == 1:
        return samples[None]
    axis = _channel_axis(channel_axis)
    if axis is None and min(samples.shape) > MOST_CHANNELS:
        raise AudioError(
            f"The array has shape {samples.shape}, of which either axis could be time: say which is that of the "
            "channels (channel_axis=0 or 1)."
        )
    if axis is None:
        axis = int(samples.shape[1] < samples.shape[0])
    return samples if axis == 0 else samples.T


def stream_samples(
    chunks: Iterable[np.ndarray | torch.Tensor | bytes],
    *,
    sample_format: str | None = None,
    channels: int | None = None,
    channel_axis: int | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> Iterator[np.ndarray]:
    """Chunks of a stream as (channels, samples) each, none of them empty. In what chunks they come changes nothing.

    Args:
        chunks: bytes of interleaved samples, whose format is stated; or arrays: (samples,), or with two axes.
        sample_format: of bytes, one of `SAMPLE_FORMATS`. A chunk may end inside a sample.
        channels: how many are interleaved in bytes, or in arrays (samples,); one by default. Of arrays with two axes
            it is only checked.
        channel_axis: of arrays with two axes, which is that of the channels: 0 for (channels, samples), as PyAV and
            torchaudio have it, 1 for (samples, channels), as sounddevice and soundfile do. It may be left out if the
            first chunk leaves no doubt: one axis has at most `MOST_CHANNELS`, the other more.
        on_warning: told in a sentence if the stream ends inside a sample.

    Raises:
        OptionError: an unknown format, a number of channels or an axis that cannot be.
        AudioError: a chunk is of another kind than was stated or than those before, or leaves its axes in doubt.
    """
    axis = check_stated(sample_format, channels, channel_axis)
    if sample_format is not None:
        yield from _from_bytes(chunks, sample_format, channels or 1, on_warning)
    else:
        yield from _from_arrays(chunks, channels, axis, on_warning)


def check_stated(sample_format: str | None, channels: int | None, channel_axis: int | None) -> int | None:
    """The axis of the channels, 0 or 1, if it is stated; refuses statements that cannot be.

    Raises:
        OptionError: see `stream_samples`.
    """
    if sample_format is not None and sample_format not in SAMPLE_FORMATS:
        raise OptionError(
            f"There is no sample format {sample_format!r}: choose one of {', '.join(SAMPLE_FORMATS)} (PyAudio's "
            "paInt16 is s16le)."
        )
    if channels is not None and (isinstance(channels, bool) or not isinstance(channels, int) or channels < 1):
        raise OptionError(f"channels is {channels!r}: give a whole number of 1 or more.")
    axis = _channel_axis(channel_axis)
    if sample_format is not None and axis is not None:
        raise OptionError("channel_axis was given with a sample_format: leave it out, bytes have no axes.")
    return axis


def _from_bytes(
    chunks: Iterable[object], sample_format: str, channels: int, on_warning: Callable[[str], None] | None
) -> Iterator[np.ndarray]:
    dtype = SAMPLE_FORMATS[sample_format]
    size = int(dtype[-1]) * channels
    rest = b""
    for chunk in chunks:
        if not isinstance(chunk, bytes | bytearray | memoryview):
            raise AudioError(
                f"A chunk of the stream is {_kind(chunk)}, but the sample format {sample_format} was stated, which "
                "belongs to bytes: leave sample_format out, or give bytes."
            )
        rest += bytes(chunk)
        whole = len(rest) - len(rest) % size
        if whole:
            yield _decoded(rest[:whole], dtype).reshape(-1, channels).T
            rest = rest[whole:]
    if rest and on_warning:
        on_warning(f"The stream ends inside a sample: its last bytes ({len(rest)} of {size}) were left out.")


def _decoded(content: bytes, dtype: str) -> np.ndarray:
    if dtype[-1] != "3":
        return np.frombuffer(content, dtype)
    # 24 bits are the upper ones of 32.
    wide = np.zeros((len(content) // 3, 4), np.uint8)
    own = np.frombuffer(content, np.uint8).reshape(-1, 3)
    wide[:, 1:] = own if dtype[0] == "<" else own[:, ::-1]
    return wide.view("<i4")[:, 0]


def _from_arrays(
    chunks: Iterable[object], channels: int | None, axis: int | None, on_warning: Callable[[str], None] | None
) -> Iterator[np.ndarray]:
    known = channels
    rest: np.ndarray | None = None
    for chunk in chunks:
        if isinstance(chunk, bytes | bytearray | memoryview):
            raise AudioError(
                "A chunk of the stream is bytes, which do not tell what they hold: state it, such as "
                'sample_format="s16le", channels=1 and the sampling_rate.'
            )
        if not isinstance(chunk, np.ndarray | torch.Tensor):
            raise AudioError(
                f"A chunk of the stream is {_kind(chunk)}, but an array, a tensor or bytes is allowed: give the stream "
                "as an iterable of chunks."
            )
        samples = _numpy(chunk)
        if not samples.size:
            continue
        if samples.ndim == 1:
            if rest is not None and rest.dtype != samples.dtype:
                raise AudioError(
                    f"A chunk of the stream is of type {samples.dtype}, those before of {rest.dtype}: give one type."
                )
            if channels is not None and channels > 1:
                samples = samples if rest is None else np.concatenate([rest, samples])
                whole = len(samples) - len(samples) % channels
                samples, rest = samples[:whole].reshape(-1, channels).T, samples[whole:]
                if not whole:
                    continue
            else:
                samples = samples[None]
        else:
            axis = _axis_of_chunk(samples.shape) if axis is None else axis
            samples = samples if axis == 0 else samples.T
        if known is not None and len(samples) != known:
            raise AudioError(
                f"A chunk of the stream has {len(samples)} channels, where {known} were stated or came before: give "
                "all alike, and the axis of the channels (channel_axis) if it has two."
            )
        known = len(samples)
        yield samples
    if rest is not None and rest.size and on_warning:
        on_warning(f"The stream ends inside a frame of {channels} channels: its last samples were left out.")


def _axis_of_chunk(shape: tuple[int, ...]) -> int:
    """The axis of the channels, of the first chunk with two."""
    few = [axis for axis, length in enumerate(shape) if length <= MOST_CHANNELS]
    if len(few) != 1:
        raise AudioError(
            f"A chunk of the stream has shape {shape}, of which either axis could be that of the channels: state "
            "channel_axis=0 for (channels, samples), or channel_axis=1 for (samples, channels)."
        )
    return few[0]


def _channel_axis(axis: int | None) -> int | None:
    if axis is not None and (isinstance(axis, bool) or axis not in (0, 1, -1, -2)):
        raise OptionError(f"channel_axis is {axis!r}: give 0 for (channels, samples), or 1 for (samples, channels).")
    return None if axis is None else axis % 2


def _kind(chunk: object) -> str:
    return f"of type {type(chunk).__name__}"


def _numpy(array: np.ndarray | torch.Tensor) -> np.ndarray:
    """A view with one axis or two; refuses samples that are no numbers of a known scale."""
    if isinstance(array, torch.Tensor):
        if array.is_complex():
            raise _wrong_type(str(array.dtype))
        tensor = array.detach().cpu()
        # NumPy has no bfloat16
        array = (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()
    known = array.dtype.kind == "f" or (array.dtype.kind + str(array.dtype.itemsize)) in ("i1", "i2", "i4", "u1")
    if not known:
        raise _wrong_type(str(array.dtype))
    if array.ndim not in (1, 2):
        raise AudioError(
            f"The array has {array.ndim} axes, (samples,) or (channels, samples) is allowed: give one recording."
        )
    return array


def _wrong_type(dtype: str) -> AudioError:
    return AudioError(
        f"The array's samples are of type {dtype}, but float (within -1…1), int8, int16, int32 or uint8 is allowed: "
        "convert them."
    )
