"""How loud a window is, whether it could hold speech, and quiet speech raised to the level of what models were taught.

Speech moves: a syllable stands out of what is there between syllables, in several bands at once, however quiet both
are. Digital silence, dither, hum and the noise of a room do not. So a quiet window is judged against its own noise
floor. On the corpora of `docs/data.md` the third-loudest band of noise stands out by at most 4 dB, that of speech by 5
in noise that is 5 dB louder, and by 20 where it is clean.
"""

from itertools import pairwise

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from fastslm.audio import SAMPLE_RATE, WINDOW_SAMPLES

STRETCH_SAMPLES = SAMPLE_RATE // 2  # loudness is that of the loudest half second
QUIET_DBFS = -40.0  # below it a window is judged against its own noise floor, and raised if it could hold speech
SPEECH_DBFS = -20.0  # what it is raised to: the median of LibriSpeech and Common Voice

# A passage inside a louder window is raised if it is this quiet for 2 s, and so much of it stands out by so many dB, in
# bursts. That is no pause, breath or click, nor a tone that fades: of 660 clips of the corpora, three are changed.
PASSAGE_DBFS = -50.0
PASSAGE_STRETCHES = 4
PASSAGE_DB = 8.0
PASSAGE_SECONDS = 1.2
PASSAGE_BURSTS = 3
RAMP_SAMPLES = SAMPLE_RATE // 50

_FRAME = 512
_HOP = 256
_SMOOTHED = 6  # frames: 0.1 s
_BANDS = (100, 200, 300, 450, 650, 900, 1250, 1700, 2300, 3100, 4000)  # Hz
_HISS = 4500  # Hz; above it there is next to nothing of a vowel, but half of all white noise
_FLOOR_PERCENT = 10  # of the time a band holds no more than its floor
_STANDING_OUT = 3  # bands
_SPEECH_DB = 5.0
_SPEECH_FRAMES = 4  # in a row or not
_NOTHING = 1e-8  # of the loudest frame: digital zeros, and what resampling makes of their edges


def is_silent(samples: np.ndarray) -> bool:
    """Whether a window holds no sound that could be speech: (samples,) at 16 kHz.

    It is silent if no half second reaches `QUIET_DBFS` (a constant offset aside) and nothing in it stands out of its
    own noise floor. A louder one is the model's to judge.
    """
    return bool(_loudest(_levels(samples)) < _power(QUIET_DBFS)) and not _could_be_speech(samples)


def levelled(samples: np.ndarray) -> np.ndarray:
    """A window (samples,) with its quiet speech raised; the same array where there is none.

    A quiet window that is not silent is raised as a whole, so that its loudest half second has `SPEECH_DBFS`. Then
    passages are: 2 s or more below `PASSAGE_DBFS` that hold bursts like those of speech, as of somebody far from the
    microphone after somebody near.
    """
    levels = _levels(samples)
    loudest = _loudest(levels)
    if loudest < _power(QUIET_DBFS):
        if is_silent(samples):
            return samples
        samples = _raised(samples, loudest)
        levels = _levels(samples)
    result = samples
    for first, stop in _quiet_runs(levels):
        start, end = first * STRETCH_SAMPLES, min(stop * STRETCH_SAMPLES, len(samples))
        passage = samples[start:end]
        if not _holds_bursts(passage):
            continue
        if result is samples:
            result = samples.copy()
        fade = np.minimum(1, np.arange(1, end - start + 1, dtype=np.float32) / RAMP_SAMPLES)
        # At an end of the window there is nothing to fade from or to.
        share = np.minimum(fade if start else 1, fade[::-1] if end < len(samples) else 1)
        result[start:end] += share * (_raised(passage, max(levels[first:stop])) - passage)
    return result


def levelled_file(samples: np.ndarray) -> np.ndarray:
    """A whole recording (samples,), raised by one factor if all of it is quiet, and any window is not silent."""
    loudest = _loudest(_levels(samples))
    if loudest >= _power(QUIET_DBFS):
        return samples
    windows = (samples[start : start + WINDOW_SAMPLES] for start in range(0, len(samples), WINDOW_SAMPLES))
    return samples if all(map(is_silent, windows)) else _raised(samples, loudest)


def _raised(samples: np.ndarray, loudest: float) -> np.ndarray:
    """Without a constant offset, and at the level of speech."""
    offset, gain = np.float32(samples.mean(dtype=np.float64)), np.float32(np.sqrt(_power(SPEECH_DBFS) / loudest))
    return (samples - offset) * gain


def _power(dbfs: float) -> float:
    return 10 ** (dbfs / 10)


def _levels(samples: np.ndarray) -> list[float]:
    """The power of each half second, around its own mean."""
    stretches = (samples[start : start + STRETCH_SAMPLES] for start in range(0, len(samples), STRETCH_SAMPLES))
    return [float(np.var(stretch, dtype=np.float64)) for stretch in stretches]


def _loudest(levels: list[float]) -> float:
    return max(levels, default=0.0)


def _quiet_runs(levels: list[float]) -> list[tuple[int, int]]:
    """Stretches that follow one another, each quieter than `PASSAGE_DBFS`: their first, and the one behind the last."""
    runs: list[tuple[int, int]] = []
    first = 0
    for index, level in enumerate([*levels, np.inf]):
        if level >= _power(PASSAGE_DBFS):
            if index - first >= PASSAGE_STRETCHES:
                runs.append((first, index))
            first = index + 1
    return runs


def _could_be_speech(samples: np.ndarray) -> bool:
    return int((_standing_out(samples) >= _SPEECH_DB).sum()) >= min(_SPEECH_FRAMES, _frames(len(samples)))


def _holds_bursts(passage: np.ndarray) -> bool:
    stands_out = _standing_out(passage) >= PASSAGE_DB
    bursts = int(stands_out[0]) + int((stands_out[1:] & ~stands_out[:-1]).sum())
    return bursts >= PASSAGE_BURSTS and stands_out.sum() * _HOP / SAMPLE_RATE >= PASSAGE_SECONDS


def _frames(samples: int) -> int:
    """How many smoothed frames there are."""
    count = 1 + (max(samples, _FRAME) - _FRAME) // _HOP
    return max(1, count - _SMOOTHED + 1)


def _standing_out(samples: np.ndarray) -> np.ndarray:
    """By how many dB each 0.1 s stands out of the noise floor in the third of its loudest bands: (frames,).

    The floor of a band is what it holds a tenth of the time, zeros aside, and never less than the hiss of the moment,
    as dense as it is above `_HISS`: the steps of quantising are clicks, and would stand out of nothing.
    """
    wave = samples.astype(np.float64) - samples.mean(dtype=np.float64)
    if len(wave) < _FRAME:
        wave = np.pad(wave, (0, _FRAME - len(wave)))
    frames = sliding_window_view(wave, _FRAME)[::_HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(_FRAME + 1)[:-1])) ** 2
    smoothed = min(_SMOOTHED, len(power))
    total = np.cumsum(np.concatenate([np.zeros_like(power[:1]), power]), axis=0)
    power = np.maximum(total[smoothed:] - total[:-smoothed], 0) / smoothed
    frequency = np.fft.rfftfreq(_FRAME, 1 / SAMPLE_RATE)
    edges = np.searchsorted(frequency, _BANDS)
    bands = np.stack([power[:, low:high].mean(axis=1) for low, high in pairwise(edges)], axis=1)
    hiss = power[:, frequency >= _HISS].mean(axis=1)
    loud = bands.sum(axis=1)
    there = loud > _NOTHING * loud.max()
    result = np.zeros(len(bands))
    if there.any():
        floor = np.maximum(np.percentile(bands[there], _FLOOR_PERCENT, axis=0), hiss[there, None])
        ratio = bands[there] / np.maximum(floor, np.finfo(np.float64).tiny)
        result[there] = 10 * np.log10(np.maximum(np.sort(ratio, axis=1)[:, -_STANDING_OUT], 1e-10))
    return result
