"""Fixtures that several test modules share: encoded recordings, made on the spot."""

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

Encode = Callable[..., Path]


def _tone(seconds: float, rate: int = 16_000, frequency: float = 440.0, amplitude: float = 0.25) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    return (amplitude * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


@pytest.fixture(scope="session")
def tone() -> Callable[..., np.ndarray]:
    """`tone(seconds, rate, frequency, amplitude)`: a sine, float32 (samples,)."""
    return _tone


@pytest.fixture(scope="session")
def encode() -> Encode:
    """`encode(path, samples, rate, codec)`: writes (channels, samples) as a file of the kind its name ends in.

    `layout` names FFmpeg's channel layout; `picture=True` adds a second of video, and `samples=None` leaves the
    sound out; further arguments are the codec's options.
    """

    def write(
        path: Path,
        samples: np.ndarray | None,
        rate: int = 16_000,
        codec: str = "pcm_s16le",
        *,
        layout: str | None = None,
        picture: bool = False,
        container_options: dict[str, str] | None = None,
        **options: str,
    ) -> Path:
        with av.open(str(path), "w", options=container_options or {}) as container:
            video = container.add_stream("mpeg4", rate=25, width=32, height=32, pix_fmt="yuv420p") if picture else None
            sound = None
            if samples is not None:
                samples = np.atleast_2d(samples)
                layout = layout or {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}[len(samples)]
                sound = container.add_stream(codec, rate=rate, layout=layout, options=options)
            if video is not None:
                for _ in range(25):
                    frame = av.VideoFrame.from_ndarray(np.zeros((48, 32), np.uint8), format="yuv420p")
                    container.mux(video.encode(frame))
                container.mux(video.encode(None))
            if sound is not None:
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T.reshape(1, -1)), "flt", layout)
                frame.rate, frame.pts = rate, 0
                resampler = av.AudioResampler(sound.format, layout, rate, sound.codec_context.frame_size or 1024)
                for piece in [*resampler.resample(frame), *resampler.resample(None)]:
                    container.mux(sound.encode(piece))
                container.mux(sound.encode(None))
        return path

    return write


PARITY = Path(__file__).parents[2] / "shared" / "parity"


@pytest.fixture(scope="session")
def parity() -> Path:
    """The folder of what the authors' code computed, which is not part of the repository."""
    if not PARITY.is_dir():
        pytest.skip("the recorded parity cases are not beside the repository")
    return PARITY
