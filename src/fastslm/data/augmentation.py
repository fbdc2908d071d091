"""Recordings made different on the fly: faster, in a room, over a noise, through a codec (ours).

Each sample has its own generator, from (seed, epoch, sample id), and everything is drawn before anything is done:
neither order, workers and restarts nor what another effect did change what becomes of a recording.
"""

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import av
import numpy as np
import pydantic
import soxr
from av.audio.stream import AudioStream

from fastslm.audio import SAMPLE_RATE, WINDOW_SAMPLES, load_audio, window_count
from fastslm.data.manifest import Clip
from fastslm.data.rows import ClipSound, Row, Rows, Sound, digest_of

Codec = Literal["opus", "mp3", "mu-law"]
TELEPHONE_RATE = 8_000
# How each codec is written: FFmpeg's encoder, container, sampling rate, bits a second where they can be chosen.
_ENCODERS: dict[str, tuple[str, str, int, tuple[int, ...]]] = {
    "opus": ("libopus", "ogg", 48_000, (8_000, 12_000, 16_000, 24_000)),
    "mp3": ("libmp3lame", "mp3", SAMPLE_RATE, (16_000, 24_000, 32_000, 64_000)),
    "mu-law": ("pcm_mulaw", "wav", TELEPHONE_RATE, ()),
}


class Augmentation(pydantic.BaseModel):
    """What may be done to a recording. Every share is of recordings, every range is drawn from evenly."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    # A recording is played at one of these speeds (pitch moves with it).
    speeds: tuple[float, ...] = (1.0,)
    # Share in a room, whose sound falls by 60 dB in so many seconds, so many dB below the direct sound.
    reverberation: float = pydantic.Field(default=0.0, ge=0, le=1)
    decay_seconds: tuple[float, float] = (0.15, 0.8)
    reverberation_db: tuple[float, float] = (0.0, 15.0)
    # Share over a noise, so many dB below the speech.
    noise: float = pydantic.Field(default=0.0, ge=0, le=1)
    noise_db: tuple[float, float] = (5.0, 30.0)
    # Share through one of these codecs and back.
    codec: float = pydantic.Field(default=0.0, ge=0, le=1)
    codecs: tuple[Codec, ...] = ("opus", "mp3", "mu-law")

    @pydantic.model_validator(mode="after")
    def _ranges_rise(self) -> "Augmentation":
        for name in ("decay_seconds", "reverberation_db", "noise_db"):
            low, high = getattr(self, name)
            if not low <= high:
                raise ValueError(f"{name} is {[low, high]}; the lower end comes first")
        if self.decay_seconds[0] <= 0:
            raise ValueError(f"decay_seconds is {list(self.decay_seconds)}; a room needs more than 0 s")
        if not self.speeds or min(self.speeds) <= 0:
            raise ValueError(f"speeds is {list(self.speeds)}; it needs at least one speed, all above 0")
        if self.codec and not self.codecs:
            raise ValueError("codecs is empty; name some, or set codec to 0")
        return self

    def draw(self, rng: np.random.Generator) -> "Effects":
        """What becomes of one recording. As many numbers are drawn whatever is switched on."""
        speed, room, noisy, coded, which, rate = rng.random(6)
        seed = int(rng.integers(2**63))
        decay, below, snr = (float(rng.uniform(*r)) for r in (self.decay_seconds, self.reverberation_db, self.noise_db))
        codec = self.codecs[int(which * len(self.codecs))] if coded < self.codec else None
        rates = _ENCODERS[codec][3] if codec else ()
        return Effects(
            speed=self.speeds[int(speed * len(self.speeds))],
            decay_seconds=decay if room < self.reverberation else None,
            reverberation_db=below,
            noise_db=snr if noisy < self.noise else None,
            codec=codec,
            bit_rate=rates[int(rate * len(rates))] if rates else None,
            seed=seed,
        )


@dataclass(frozen=True)
class Effects:
    """What becomes of one recording; `None` leaves it as it is. `seed` draws the room and the noise."""

    speed: float = 1.0
    decay_seconds: float | None = None
    reverberation_db: float = 0.0
    noise_db: float | None = None
    codec: Codec | None = None
    bit_rate: int | None = None
    seed: int = 0

    def apply(self, wave: np.ndarray, noise: np.ndarray | None = None) -> np.ndarray:
        """In the order of nature: speech, room, noise, line.

        Args:
            wave: (samples,) float32, 16 kHz mono.
            noise: a recording to lay under, repeated from a random place on; white noise if `None`.

        Returns:
            (samples / speed,) float32 within -1…1, nothing moved in time but by the speed.
        """
        if self.speed != 1.0:
            wave = soxr.resample(wave, SAMPLE_RATE, SAMPLE_RATE / self.speed).astype(np.float32)
        if self.decay_seconds is not None:
            room = np.random.default_rng([self.seed, 0])
            wave = reverberated(wave, self.decay_seconds, self.reverberation_db, room)
        if self.noise_db is not None:
            wave = with_noise(wave, noise, self.noise_db, np.random.default_rng([self.seed, 1]))
        wave = _within_one(wave)
        return wave if self.codec is None else _within_one(coded(wave, self.codec, self.bit_rate))


def sample_generator(key: Sequence[int], sample_id: str) -> np.random.Generator:
    """The generator of one sample, whatever came before it. `key` is a seed and an epoch, or a variant of a packing."""
    digest = hashlib.sha256(sample_id.encode("utf-8", "surrogatepass")).digest()
    return np.random.default_rng([*key, int.from_bytes(digest[:8], "little")])


def sound_level(wave: np.ndarray) -> float:
    """Root mean square of what is not silent."""
    loud = wave[np.abs(wave) > 1e-4]
    return float(np.sqrt(np.mean(loud**2))) if loud.size else 0.0


def room_response(decay_seconds: float, below_db: float, rng: np.random.Generator) -> np.ndarray:
    """A room by chance: the direct sound at sample 0, then noise that falls by 60 dB in `decay_seconds`.

    All of the noise together is `below_db` weaker than the direct sound, in energy.

    Returns:
        (decay_seconds · 16000,) float32.
    """
    length = max(2, round(decay_seconds * SAMPLE_RATE))
    tail = rng.standard_normal(length) * 10 ** (-3 * np.arange(length) / length)
    tail[0] = 0.0
    tail *= 10 ** (-below_db / 20) / np.linalg.norm(tail)
    tail[0] = 1.0
    return tail.astype(np.float32)


def reverberated(wave: np.ndarray, decay_seconds: float, below_db: float, rng: np.random.Generator) -> np.ndarray:
    """`wave` in a room, at the level that it had, and as long: what sounds after its end is not kept."""
    response = room_response(decay_seconds, below_db, rng)
    # A power of two: other lengths can take the transform ten times as long.
    size = 1 << (len(wave) + len(response) - 2).bit_length()
    wet = np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(response, size), size)[: len(wave)].astype(np.float32)
    return wet * (sound_level(wave) / max(sound_level(wet), 1e-9))


def with_noise(wave: np.ndarray, noise: np.ndarray | None, noise_db: float, rng: np.random.Generator) -> np.ndarray:
    """`wave` over a noise that is `noise_db` below it; silence stays silence, for it has no level."""
    if noise is None or not noise.size:
        noise = rng.standard_normal(len(wave)).astype(np.float32)
    else:
        start = int(rng.integers(len(noise)))
        noise = np.take(noise, np.arange(start, start + len(wave)), mode="wrap")
    level = sound_level(wave) * 10 ** (-noise_db / 20)
    return wave + noise * np.float32(level / max(sound_level(noise), 1e-9))


def coded(wave: np.ndarray, codec: Codec, bit_rate: int | None = None) -> np.ndarray:
    """`wave` through a codec and back, as long as before and not moved by the codec's delay."""
    encoder, container_format, rate, _ = _ENCODERS[codec]
    heard = load_audio(encode(wave, encoder, container_format, rate, bit_rate))
    return np.pad(heard[: len(wave)], (0, max(0, len(wave) - len(heard))))


def encode(
    wave: np.ndarray,
    encoder: str,
    container_format: str,
    rate: int,
    bit_rate: int | None,
    *,
    wave_rate: int = SAMPLE_RATE,
) -> bytes:
    """Encode (samples,) float32 mono at `wave_rate` Hz as a file's content, resampled to `rate`."""
    if rate != wave_rate:
        wave = soxr.resample(wave, wave_rate, rate)
    pcm = np.ascontiguousarray(np.clip(wave, -1.0, 1.0), dtype=np.float32)[None]
    file = io.BytesIO()
    with av.open(file, "w", format=container_format) as container:
        stream = container.add_stream(encoder, rate=rate, layout="mono")
        assert isinstance(stream, AudioStream)  # each of the encoders here is one of sound
        if bit_rate is not None:
            stream.bit_rate = bit_rate
        frame = av.AudioFrame.from_ndarray(pcm, "flt", "mono")
        frame.rate, frame.pts = rate, 0
        resampler = av.AudioResampler(stream.format, "mono", rate, stream.codec_context.frame_size or 1024)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return file.getvalue()


def _within_one(wave: np.ndarray) -> np.ndarray:
    peak = float(np.abs(wave).max()) if wave.size else 0.0
    return wave / np.float32(peak) if peak > 1.0 else wave


@dataclass(frozen=True)
class AugmentedSound:
    """A recording with effects; it is held whole, because a room and a codec do not know of windows."""

    sound: Sound
    effects: Effects
    noise: Clip | None

    def windows(self) -> Iterator[np.ndarray]:
        """As `fastslm.data.rows.Sound`."""
        whole = np.concatenate(list(self.sound.windows()))
        whole = self.effects.apply(whole, self.noise.read() if self.noise is not None else None)
        for first in range(0, len(whole), WINDOW_SAMPLES):
            yield whole[first : first + WINDOW_SAMPLES]

    def digest(self) -> str:
        """As `fastslm.data.rows.Sound`."""
        noise = ClipSound(self.noise).digest() if self.noise is not None else None
        return digest_of("augmented", self.sound.digest(), self.effects, noise)


class AugmentedRows:
    """Rows whose recordings are changed, in another way every epoch.

    Args:
        noises: recordings to lay under speech; white noise without them.
        variants: after how many epochs a row is changed as it was before, so that frames may be cached; 0 is never.
    """

    def __init__(self, rows: Rows, augmentation: Augmentation, noises: Sequence[Clip] = (), variants: int = 0):
        self.name, self.rows, self.augmentation, self.noises = rows.name, rows, augmentation, noises
        self.variants = variants

    def durations(self) -> np.ndarray:
        """As `fastslm.data.rows.Rows`: at the slowest speed."""
        return self.rows.durations() / min(self.augmentation.speeds)

    def epoch(self, seed: Sequence[int], number: int) -> "_Augmented":
        """As `fastslm.data.rows.Rows`."""
        variant = number % self.variants if self.variants else number
        return _Augmented(self, self.rows.epoch(seed, number), (*seed, variant))


class _Augmented(Sequence[Row]):
    def __init__(self, of: AugmentedRows, rows: Sequence[Row], key: Sequence[int]):
        self.of, self.rows, self.key = of, rows, key

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        row = self.rows[index]
        if row.sound is None:
            return row
        rng = sample_generator(self.key, row.id)
        effects = self.of.augmentation.draw(rng)
        noise = self.of.noises[int(rng.integers(len(self.of.noises)))] if self.of.noises else None
        seconds = row.seconds / effects.speed
        sound = AugmentedSound(row.sound, effects, noise)
        return replace(row, sound=sound, seconds=seconds, windows=window_count(round(seconds * SAMPLE_RATE)))
