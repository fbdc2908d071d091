"""Sounds made on the spot: something that moves as speech does, noises that do not, and what a recorder makes of it."""

from functools import lru_cache

import numpy as np

RATE = 16_000
VOWELS = ((700, 1200, 2600), (300, 2200, 3000), (350, 800, 2400), (500, 1800, 2500))  # Hz, of their formants


def speech_like(seconds: float, seed: int = 0, rate: int = RATE) -> np.ndarray:
    """Syllables of harmonics under formants, four a second with pauses: float32 (samples,), at -20 dBFS."""
    return _speech_like(seconds, seed, rate).copy()


@lru_cache
def _speech_like(seconds: float, seed: int, rate: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    sound = np.zeros(round(seconds * rate))
    pitch = generator.uniform(100, 220)
    position = round(0.1 * rate)
    while position < len(sound) - rate // 10:
        length = min(round(generator.uniform(0.12, 0.25) * rate), len(sound) - position)
        time = np.arange(length) / rate
        formants = VOWELS[generator.integers(len(VOWELS))]
        own = pitch * generator.uniform(0.9, 1.1)
        syllable = np.zeros(length)
        for harmonic in range(1, int(min(4_000, rate / 2) // own)):
            frequency = harmonic * own
            level = sum(1 / (1 + ((frequency - formant) / 120) ** 2) for formant in formants) / harmonic**0.5
            syllable += level * np.sin(2 * np.pi * frequency * time + generator.uniform(0, 2 * np.pi))
        sound[position : position + length] = syllable * np.hanning(length) * generator.uniform(0.5, 1)
        position += length + round(generator.choice([0.02, 0.05, 0.3], p=[0.5, 0.3, 0.2]) * rate)
    return at_level(sound, -20)


def at_level(sound: np.ndarray, dbfs: float) -> np.ndarray:
    """The same with this root mean square, float32."""
    return (sound * (10 ** (dbfs / 20) / np.sqrt(np.mean(np.square(sound, dtype=np.float64))))).astype(np.float32)


def decibels(gain: float) -> np.float32:
    """-20 → 0.1"""
    return np.float32(10 ** (gain / 20))


def coloured(samples: int, slope: float, seed: int = 0) -> np.ndarray:
    """Noise whose power falls with the frequency to the power of `slope`: 0 white, 1 pink, 2 brown. At 0 dBFS."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(samples))
    frequency = np.fft.rfftfreq(samples, 1 / RATE)
    frequency[0] = frequency[1]
    return at_level(np.fft.irfft(spectrum / frequency ** (slope / 2), samples), 0)


def hum(samples: int, hertz: float = 50) -> np.ndarray:
    """Mains hum with its odd harmonics, at 0 dBFS."""
    time = np.arange(samples) / RATE
    return at_level(sum(np.sin(2 * np.pi * hertz * odd * time) / odd for odd in (1, 3, 5, 7)), 0)


def recorded(sound: np.ndarray, bits: int = 16, dither: bool = True, seed: int = 0) -> np.ndarray:
    """As a recorder of so many bits keeps it, float32: rounded, and dithered by a triangle of two steps."""
    generator = np.random.default_rng(seed)
    step = 2.0 ** (1 - bits)
    noise = generator.random(sound.shape) - generator.random(sound.shape) if dither else 0
    return (np.round(sound / step + noise) * step).astype(np.float32)
