"""Recordings of short tones, one a second, whose packets are moved in time as cameras, recorders and calls do it."""

import io
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np

from fastslm.audio import SAMPLE_RATE

# Format, rate, codec: each kind of timestamp, and of what codecs put before the sound.
TIMED = [
    ("matroska", 16_000, "aac"),
    ("matroska", 48_000, "libopus"),
    ("matroska", 44_100, "libmp3lame"),
    ("matroska", 44_100, "pcm_s16le"),
    ("webm", 48_000, "libopus"),
    ("mp4", 44_100, "aac"),
    ("mov", 48_000, "aac"),
    ("flv", 44_100, "aac"),
    ("nut", 44_100, "aac"),
    ("asf", 44_100, "libmp3lame"),
    ("mpegts", 44_100, "aac"),
    ("mpeg", 48_000, "mp2"),
    ("ogg", 48_000, "libopus"),
]
Move = tuple[float, float]


def names(kinds: Sequence[tuple[str, int, str]]) -> list[str]:
    return [f"{form}-{codec}" for form, _, codec in kinds]


def timed(
    form: str,
    rate: int,
    codec: str,
    moves: Sequence[Move] = (),
    seconds: float = 6.0,
    *,
    picture: bool = False,
    tracks: Sequence[str] = ("eng",),
    frequencies: Sequence[float] = (600.0,),
) -> bytes:
    """A file with a tone of 0.2 s in the middle of each second.

    Args:
        moves: (from second s of the sound on, every packet comes so many seconds later).
        picture: whether there are 2 s of video, from 0 on.
        tracks: languages of the audio tracks, each with a tone of its own frequency.
    """
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        video = container.add_stream("mpeg4", rate=25, width=32, height=32, pix_fmt="yuv420p") if picture else None
        streams = []
        for language in tracks:
            streams.append(container.add_stream(codec, rate=rate, layout="mono"))
            streams[-1].metadata["language"] = language
        packets = []
        if video is not None:
            for _ in range(50):
                image = av.VideoFrame.from_ndarray(np.zeros((48, 32), np.uint8), format="yuv420p")
                packets += video.encode(image)
            packets += video.encode(None)
        for stream, frequency in zip(streams, frequencies, strict=True):
            frame = av.AudioFrame.from_ndarray(tones(seconds, rate, frequency)[None], "flt", "mono")
            frame.rate, frame.pts = rate, 0
            size = stream.codec_context.frame_size or 1024
            resampler = av.AudioResampler(stream.format, "mono", rate, size)
            for piece in [*resampler.resample(frame), *resampler.resample(None), None]:
                packets += [_moved(packet, moves) for packet in stream.encode(piece)]
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
    return file.getvalue()


def tones(seconds: float, rate: int, frequency: float = 600.0) -> np.ndarray:
    """The samples of `timed`, float32 (samples,)."""
    time = np.arange(round(seconds * rate)) / rate
    sounds = np.abs(time % 1 - 0.6) < 0.1
    return (0.5 * sounds * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


def onsets(samples: np.ndarray) -> list[float]:
    """The seconds at which tones begin."""
    loud = np.flatnonzero(np.abs(samples) > 0.1)
    first = np.concatenate([[True], np.diff(loud) > 0.2 * SAMPLE_RATE])
    return (loud[first] / SAMPLE_RATE).tolist()


def expected(moves: Sequence[Move] = (), seconds: float = 6.0) -> list[float]:
    """The onsets of `timed`."""
    return [second + sum(by for since, by in moves if second >= since) for second in np.arange(0.5, seconds, 1.0)]


def _moved(packet: av.Packet, moves: Sequence[Move]) -> av.Packet:
    second = float(packet.pts * packet.time_base)
    by = sum(by for since, by in moves if second >= since - 1e-6)
    ticks = round(Fraction(by).limit_denominator(10_000) / packet.time_base)
    packet.pts += ticks
    packet.dts = packet.pts
    return packet
