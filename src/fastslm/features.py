"""Waveforms at 16 kHz → log-mel windows (windows, n_mels, 3000), in the two ways that FastSLM checkpoints expect.

The log-mel itself is Whisper's: by transformers' `WhisperFeatureExtractor` of a window, in float64 of a whole file.
Quiet speech is raised before it (`fastslm.audio.loudness`), for a log-mel is not the same at every level.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import torch
from transformers import WhisperFeatureExtractor

from fastslm.audio import PAD_TO_SAMPLES, SAMPLE_RATE, WINDOW_SAMPLES, WINDOW_SECONDS
from fastslm.audio.loudness import levelled, levelled_file
from fastslm.errors import AudioError, OptionError

HOP_SAMPLES = 160
FFT_SAMPLES = 400
CONTEXT_FRAMES = -(-FFT_SAMPLES // (2 * HOP_SAMPLES))  # a frame sees half an FFT on either side of its middle
CLAMP = 8 / 4  # log-mels reach 8 (decades) below their maximum, and Whisper then divides by 4
FLOOR = 1e-10  # of the power in a mel bin, before its logarithm
WINDOW_FRAMES = WINDOW_SAMPLES // HOP_SAMPLES

MelMode = Literal["window", "authors"]


def extract_features(waveform: np.ndarray, n_mels: int, mode: MelMode = "window") -> torch.Tensor:
    """The log-mel windows of one recording.

    Args:
        waveform: float32 (samples,), 16 kHz mono, of any length; under 1 s it is padded with zeros to 1 s.
        n_mels: mel bins of the encoder: 80, or 128 for Whisper large-v3.
        mode: `window` (default of our checkpoints): each 30 s on its own, `ceil(samples / 480000)` windows;
            `authors`: one log-mel over the whole file, `ceil((samples // 160) / 3000)` windows, so 30.005 s give one
            and 30.01 s give two. The two differ wherever the loudest moment of the file lies in another window.

    Returns:
        float32 (windows, n_mels, 3000).

    Raises:
        OptionError: another mode.
        AudioError: a waveform that is empty or not (samples,).
    """
    if mode == "window":
        starts = range(0, len(_padded(waveform)), WINDOW_SAMPLES)
        return window_mel([waveform[start : start + WINDOW_SAMPLES] for start in starts], n_mels)
    if mode == "authors":
        return file_mel(waveform, n_mels)
    raise OptionError(
        f"The mel mode {mode!r} is unknown, allowed are {', '.join(get_args(MelMode))}: name one of them."
    )


def window_mel(windows: Sequence[np.ndarray], n_mels: int) -> torch.Tensor:
    """Each window's own log-mel, as Whisper's feature extractor computes it by default, its quiet speech raised.

    A window's log-mel does not depend, to the last bit, on what else is in the file or in the call.

    Args:
        windows: float32 (samples,) each, at most 30 s at 16 kHz; a shorter one is padded with silence to 30 s.
        n_mels: mel bins.

    Returns:
        float32 (windows, n_mels, 3000); (0, n_mels, 3000) for no windows.

    Raises:
        AudioError: a window that is longer than 30 s (it is never cut), empty, or not (samples,).
    """
    features = torch.empty(len(windows), n_mels, WINDOW_FRAMES)
    extractor = _extractor(n_mels)
    for row, window in zip(features, windows, strict=True):
        if len(_padded(window)) > WINDOW_SAMPLES:
            raise AudioError(
                f"A window holds {len(window) / SAMPLE_RATE:.2f} s of sound, at most {WINDOW_SECONDS} s is allowed: "
                "cut it with stream_audio."
            )
        # One by one: a batch is copied several times on its way and takes about twice the time a window.
        row.copy_(extractor(levelled(window), sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features[0])
    return features


def file_mel(waveform: np.ndarray, n_mels: int) -> torch.Tensor:
    """One log-mel over the whole file, cut into windows: what the authors' checkpoint was trained on.

    The clamp at `max - 8` is taken over the whole file, and the last window is padded with 0.0 in the mel domain, which
    is not what silence gives. The waveform must therefore be held whole; `window` mode streams. A file that is quiet
    from beginning to end is raised by one factor, which the authors' code does not do; a part of a loud one is not.

    Args:
        waveform: float32 (samples,), 16 kHz mono; under 1 s it is padded with zeros to 1 s.
        n_mels: mel bins.

    Returns:
        float32 (windows, n_mels, 3000), `windows = ceil((samples // 160) / 3000)`.

    Raises:
        AudioError: a waveform that is empty or not (samples,).
    """
    _padded(waveform)  # refuses what is no recording
    samples = _padded(levelled_file(waveform))
    frames = len(samples) // HOP_SAMPLES
    features = torch.zeros(-(-frames // WINDOW_FRAMES), n_mels, WINDOW_FRAMES)
    # Window by window with what its outermost frames see of its neighbours: an hour at once would take 4 GB.
    for index, first in enumerate(range(0, frames, WINDOW_FRAMES)):
        stop = min(first + WINDOW_FRAMES, frames)
        before = min(first, CONTEXT_FRAMES)
        end = len(samples) if stop == frames else (stop + CONTEXT_FRAMES) * HOP_SAMPLES
        piece = _log_mel(samples[(first - before) * HOP_SAMPLES : end], n_mels)
        features[index, :, : stop - first] = piece[:, before : before + stop - first]
    real = _real_frames(features, frames)
    lowest = max(window.max().item() for window in real) - CLAMP
    for window in real:
        window.clamp_(min=lowest)
    return features


def whole_mel(waveform: np.ndarray, n_mels: int) -> torch.Tensor:
    """The log-mel of a whole file before it is cut: float32 (n_mels, samples // 160). Else as `file_mel`."""
    frames = len(_padded(waveform)) // HOP_SAMPLES
    return torch.cat(_real_frames(file_mel(waveform, n_mels), frames), dim=1)


def _real_frames(features: torch.Tensor, frames: int) -> list[torch.Tensor]:
    """Views of the windows without the padding of the last: (n_mels, up to WINDOW_FRAMES) each."""
    return [window[:, : frames - index * WINDOW_FRAMES] for index, window in enumerate(features)]


def _log_mel(samples: np.ndarray, n_mels: int) -> torch.Tensor:
    """Whisper's log-mel before it is clamped below its maximum, of samples of any length: (n_mels, samples // 160).

    In float64: what float32 gives in a bin near the floor depends on the processor's own FFT, by up to 3e-5.
    """
    window = torch.hann_window(FFT_SAMPLES, dtype=torch.float64)
    wave = torch.from_numpy(samples).double()
    spectrum = torch.stft(wave, FFT_SAMPLES, HOP_SAMPLES, window=window, return_complex=True)[:, :-1]
    filters = torch.from_numpy(_extractor(n_mels).mel_filters).double()
    return (((filters.T @ spectrum.abs() ** 2).clamp(min=FLOOR).log10() + 4) / 4).float()


@lru_cache
def _extractor(n_mels: int) -> WhisperFeatureExtractor:
    return WhisperFeatureExtractor(
        feature_size=n_mels, sampling_rate=SAMPLE_RATE, hop_length=HOP_SAMPLES, n_fft=FFT_SAMPLES
    )


def _padded(waveform: np.ndarray) -> np.ndarray:
    """At least 1 s, as both modes have it; refuses what is not one channel of samples."""
    if waveform.ndim != 1 or not len(waveform):
        raise AudioError(
            f"A waveform has shape {tuple(waveform.shape)}, (samples,) with at least one is allowed: "
            "read the recording with load_audio."
        )
    return np.pad(waveform, (0, max(0, PAD_TO_SAMPLES - len(waveform))))
