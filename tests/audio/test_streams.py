"""Streams with times, of bytes, arrays and frames, in several channels: the clock and the mixing hold together."""

from fractions import Fraction

import av
import numpy as np
import pytest
from sounds import RATE, speech_like

from fastslm.audio import TimedSamples, load_audio, stream_chunks
from fastslm.audio.part import Part
from fastslm.errors import AudioError

VOICE = speech_like(4, 1)
OPPOSED = np.round(np.stack([VOICE, -VOICE]) * 32767).astype(np.int16)
STEP = RATE // 50


def _packets(lost: range, kind: str) -> list:
    """Of 20 ms each, with their times; some are lost."""
    found: list = []
    for index in range(OPPOSED.shape[1] // STEP):
        own = OPPOSED[:, index * STEP : (index + 1) * STEP]
        if index in lost:
            continue
        if kind == "frames":
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(own), "s16p", "stereo")
            frame.sample_rate, frame.pts = RATE, index * STEP
            frame.time_base = Fraction(1, RATE)
            found.append(frame)
        else:
            found.append(TimedSamples(own.T.tobytes() if kind == "bytes" else own, index * STEP / RATE))
    return found


OPTIONS = {"frames": {}, "bytes": {"sample_format": "s16le", "channels": 2}, "arrays": {"channel_axis": 0}}


@pytest.mark.fault
@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("lost", [range(0), range(60, 90), range(37, 61)])
def test_opposed_channels_with_lost_packets_keep_speech_at_its_second(kind: str, lost: range) -> None:
    said: list[str] = []
    rate = {} if kind == "frames" else {"sampling_rate": RATE}
    blocks = stream_chunks(_packets(lost, kind), **rate, **OPTIONS[kind], on_warning=said.append)
    expected = OPPOSED[0] / np.float32(32768)
    expected[lost.start * STEP : lost.stop * STEP] = 0
    np.testing.assert_allclose(np.concatenate(list(blocks)), expected, atol=1e-6)
    assert len(said) == 2  # at once, and all at the end
    assert all("cancel one another" in sentence for sentence in said)


@pytest.mark.parametrize(
    "options", [{"sampling_rate": RATE}, {"sample_format": "s16le"}, {"channels": 2}, {"channel_axis": 0}]
)
def test_frames_state_all_themselves(options: dict) -> None:
    with pytest.raises(AudioError, match="state their own"):
        list(stream_chunks(_packets(range(0), "frames"), **options))


def test_a_part_says_what_is_mixed_inside_it_only() -> None:
    channels = np.stack([VOICE, np.where(np.arange(len(VOICE)) < 2 * RATE, VOICE, -VOICE)])
    for part, expected in ((Part.of(duration=1.5), 0), (Part.of(start=2.5, duration=0.7), 1)):
        said: list[str] = []
        load_audio(channels, part=part, on_warning=said.append)
        assert len(said) == expected
