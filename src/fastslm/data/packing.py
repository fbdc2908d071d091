"""Short clips packed into windows of 30 s: full ones, ones with a silent end, and ones without any speech (ours).

A window costs the same however little is said in it, so clips are packed. But a model that has only seen full windows
invents words in silence, so some windows keep a silent end and some hold no speech at all. `PackedRows` makes rows of
such windows, whose answer is all that is said in them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pydantic
import soxr

from fastslm.audio import SAMPLE_RATE, WINDOW_SAMPLES, WINDOW_SECONDS
from fastslm.data.augmentation import Augmentation, Effects, sample_generator, sound_level
from fastslm.data.manifest import Clip
from fastslm.data.reference import check_duration
from fastslm.data.rows import ClipSound, Row, digest_of
from fastslm.errors import ManifestError

SECONDS_FREE_AT_END = 0.1


class Packing(pydantic.BaseModel):
    """How windows are composed. Every share is of windows or clips, every range is drawn from evenly."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    # Seconds of silence between two clips of a window.
    gap: tuple[float, float] = (0.05, 0.6)
    # Share of windows that hold one to three clips and then nothing.
    silent_ends: float = pydantic.Field(default=0.25, ge=0, le=1)
    # Share of windows with environmental sound or silence only; their text is empty.
    without_speech: float = pydantic.Field(default=0.03, ge=0, le=1)
    # A clip is played at one of these speeds (pitch moves with it).
    speeds: tuple[float, ...] = (1.0,)
    # Share of windows under which environmental sound or noise is laid, and how far below the speech, in dB.
    noise: float = pydantic.Field(default=0.0, ge=0, le=1)
    noise_db: tuple[float, float] = (8.0, 30.0)
    # Each clip's level is moved by up to so many dB.
    gain_db: float = pydantic.Field(default=6.0, ge=0)
    # Done to each clip by itself, drawn from the packing's seed and the clip's id.
    augmentation: Augmentation | None = None

    @pydantic.model_validator(mode="after")
    def _ranges_rise(self) -> "Packing":
        if not 0 <= self.gap[0] <= self.gap[1]:
            raise ValueError(f"gap is {list(self.gap)}; it must rise from at least 0, or clips would overlap")
        if self.noise_db[0] > self.noise_db[1]:
            raise ValueError(f"noise_db is {list(self.noise_db)}; the lower end comes first")
        if not self.speeds or min(self.speeds) <= 0:
            raise ValueError(f"speeds is {list(self.speeds)}; it needs at least one speed, all above 0")
        if self.augmentation is not None and {1.0} not in (set(self.speeds), set(self.augmentation.speeds)):
            raise ValueError("speeds and augmentation.speeds would both be played at; leave one of them out")
        return self

    def described(self) -> dict[str, Any]:
        """What windows depend on. A packing without augmentation is described as it was before there was any."""
        found = self.model_dump(mode="json")
        if self.augmentation is None:
            del found["augmentation"]
        return found


@dataclass(frozen=True)
class Placement:
    """One clip in a window: at which sample it starts, how fast it plays, its gain in dB, and what is done to it.

    noise: the sound that `effects` lay under it; white noise where it is `None`.
    """

    clip: Clip
    start: int
    samples: int
    speed: float
    gain_db: float
    effects: Effects | None = None
    noise: Clip | None = None


@dataclass(frozen=True)
class PackedWindow:
    """The plan of one window; `render` makes the waveform. `seed` draws its noise."""

    placements: tuple[Placement, ...]
    noise: Clip | None
    noise_db: float | None
    seed: tuple[int, ...]

    @property
    def text(self) -> str:
        """What is said in the window, clip after clip."""
        return " ".join(p.clip.text or "" for p in self.placements).strip()


def pack(clips: Sequence[Clip], sounds: Sequence[Clip], packing: Packing, seed: Sequence[int]) -> list[PackedWindow]:
    """Lay every clip into exactly one window, in an order that only the seed decides.

    Args:
        clips: speech with text. sounds: environmental sound for windows without speech and for noise.
        seed: anything that makes this packing differ from another, such as (recipe seed, variant).

    Returns:
        The windows, in random order.

    Raises:
        ManifestError: clips that are longer than a window, whose end would be lost.
    """
    refuse_long(clips)
    order = np.random.default_rng([*seed, 0])
    queue = [clips[i] for i in order.permutation(len(clips))]
    treated = _effects(clips, sounds, packing.augmentation, seed)
    windows: list[PackedWindow] = []
    while queue:
        rng = np.random.default_rng([*seed, 1, len(windows)])
        limit = int(rng.integers(1, 4)) if rng.random() < packing.silent_ends else None
        placements = _fill(queue, packing, rng, limit, treated)
        noise, noise_db = None, None
        if rng.random() < packing.noise:
            noise = sounds[int(rng.integers(len(sounds)))] if len(sounds) and rng.random() < 0.7 else None
            noise_db = float(rng.uniform(*packing.noise_db))
        windows.append(PackedWindow(placements, noise, noise_db, (*seed, 2, len(windows))))
    for index in range(round(len(windows) * packing.without_speech)):
        rng = np.random.default_rng([*seed, 3, index])
        sound = sounds[int(rng.integers(len(sounds)))] if len(sounds) and rng.random() < 0.8 else None
        windows.append(PackedWindow((), sound, float(rng.uniform(0, 30)) if sound else None, (*seed, 4, index)))
    return [windows[i] for i in order.permutation(len(windows))]


def refuse_long(clips: Sequence[Clip]) -> None:
    """Make sure that every clip fits a window: cut, it would teach words that nobody hears.

    Raises:
        ManifestError: some do not.
    """
    long = [clip for clip in clips if round(clip.duration * SAMPLE_RATE) > WINDOW_SAMPLES]
    if long:
        raise ManifestError(
            f"{long[0].id} lasts {long[0].duration:.1f} s, and a window {WINDOW_SAMPLES // SAMPLE_RATE} s "
            f"({len(long)} of {len(clips)} clips are too long); cut such clips at pauses, or leave them out."
        )


# What becomes of a clip, by its id, and the sound that is laid under it.
_Effects = dict[str, tuple[Effects, Clip | None]]


def _effects(
    clips: Sequence[Clip], sounds: Sequence[Clip], augmentation: Augmentation | None, seed: Sequence[int]
) -> _Effects:
    """Each clip draws for itself: neither its place nor its neighbours change what becomes of it."""
    found: _Effects = {}
    if augmentation is None:
        return found
    for clip in clips:
        rng = sample_generator(seed, clip.id)
        effects = augmentation.draw(rng)
        found[clip.id] = effects, sounds[int(rng.integers(len(sounds)))] if len(sounds) else None
    return found


def _fill(
    queue: list[Clip], packing: Packing, rng: np.random.Generator, limit: int | None, treated: _Effects
) -> tuple[Placement, ...]:
    """Take clips from the queue until none of the next few fits any more, or `limit` are in."""
    room = WINDOW_SAMPLES - round(SECONDS_FREE_AT_END * SAMPLE_RATE)
    at = round(rng.uniform(*packing.gap) * SAMPLE_RATE)
    placed: list[Placement] = []
    look_ahead = 40
    while queue and (limit is None or len(placed) < limit):
        drawn = float(packing.speeds[int(rng.integers(len(packing.speeds)))])
        fits, speed = None, drawn
        for index, clip in enumerate(queue[:look_ahead]):
            speed = drawn * treated[clip.id][0].speed if clip.id in treated else drawn
            if at + clip.duration / speed * SAMPLE_RATE <= room:
                fits = index
                break
        if fits is None:
            if placed:
                break
            # A clip that fills the window by itself is played at its own speed from the very start.
            fits, speed, at = 0, 1.0, 0
        clip = queue.pop(fits)
        samples = min(round(clip.duration / speed * SAMPLE_RATE), WINDOW_SAMPLES - at)
        gain = float(rng.uniform(-packing.gain_db, packing.gain_db))
        effects, noise = treated.get(clip.id, (None, None))
        if effects is not None:
            effects = replace(effects, speed=1.0)  # which is the placement's
        placed.append(Placement(clip, at, samples, speed, gain, effects, noise))
        at += samples + round(rng.uniform(*packing.gap) * SAMPLE_RATE)
    return tuple(placed)


def render(window: PackedWindow) -> np.ndarray:
    """The window's waveform: (480000,) float32, 16 kHz mono.

    Raises:
        ManifestError: a recording does not last as long as its manifest says.
    """
    rng = np.random.default_rng(window.seed)
    wave = np.zeros(WINDOW_SAMPLES, dtype=np.float32)
    for placement in window.placements:
        sound = placement.clip.read()
        check_duration(sound, placement.clip.duration, placement.clip.place)
        if placement.speed != 1.0:
            sound = soxr.resample(sound, SAMPLE_RATE, SAMPLE_RATE / placement.speed).astype(np.float32)
        if placement.effects is not None:
            sound = placement.effects.apply(sound, placement.noise.read() if placement.noise is not None else None)
        sound = sound[: WINDOW_SAMPLES - placement.start] * 10 ** (placement.gain_db / 20)
        wave[placement.start : placement.start + len(sound)] += sound
    if window.noise_db is not None:
        level = sound_level(wave) if window.placements else 0.05
        noise = _noise(window.noise, rng)
        wave += noise * (level * 10 ** (-window.noise_db / 20) / max(sound_level(noise), 1e-6))
    peak = float(np.abs(wave).max())
    return wave / peak if peak > 1.0 else wave


def _noise(sound: Clip | None, rng: np.random.Generator) -> np.ndarray:
    """A window of a repeated sound from a random place on, or of white noise."""
    if sound is None:
        return rng.standard_normal(WINDOW_SAMPLES).astype(np.float32)
    wave = sound.read()
    start = int(rng.integers(len(wave)))
    return np.take(wave, np.arange(start, start + WINDOW_SAMPLES), mode="wrap")


@dataclass(frozen=True)
class PackedSound:
    """The sound of a packed window."""

    window: PackedWindow

    def windows(self) -> Iterator[np.ndarray]:
        """As `fastslm.data.rows.Sound`."""
        yield render(self.window)

    def digest(self) -> str:
        """As `fastslm.data.rows.Sound`."""
        window = self.window
        noise = ClipSound(window.noise).digest() if window.noise is not None else None
        placed = [
            (
                ClipSound(own.clip).digest(),
                (own.start, own.samples, own.speed, own.gain_db, own.effects),
                ClipSound(own.noise).digest() if own.noise is not None else None,
            )
            for own in window.placements
        ]
        return digest_of("packed", placed, noise, window.noise_db, window.seed)


class PackedRows:
    """Rows of packed windows, laid out anew every epoch.

    Args:
        name: what messages call them.
        clips: speech with text. sounds: environmental sound for windows without speech and for noise.
        variants: after how many epochs the first layout comes again, so that its frames may be cached; 0 is never.

    Raises:
        ManifestError: no clip has a text, one is longer than a window, or audio is missing.
    """

    def __init__(self, name: str, clips: Sequence[Clip], sounds: Sequence[Clip], packing: Packing, variants: int = 0):
        self.name, self.packing, self.variants = name, packing, variants
        self.clips, self.sounds = [clip for clip in clips if clip.text], sounds
        if not self.clips:
            raise ManifestError(f"{name}: no clip has a text to pack into windows; give some that have.")
        refuse_long(self.clips)
        for clip in [*self.clips, *sounds]:
            clip.check_audio()

    def durations(self) -> np.ndarray:
        """As `fastslm.data.rows.Rows`: windows are all of one length."""
        return np.array([float(WINDOW_SECONDS)])

    def epoch(self, seed: Sequence[int], number: int) -> Sequence[Row]:
        """As `fastslm.data.rows.Rows`."""
        variant = number % self.variants if self.variants else number
        languages = {clip.language for clip in self.clips}
        language = languages.pop() if len(languages) == 1 else None
        return [
            Row(
                id=f"window-{variant}-{index}",
                task="transcribe",
                instruction=None,
                answer=window.text,
                language=language,
                seconds=float(WINDOW_SECONDS),
                windows=1,
                source=self.name,
                sound=PackedSound(window),
                text=window.text,
                epoch=number,
            )
            for index, window in enumerate(pack(self.clips, self.sounds, self.packing, (*seed, variant)))
        ]
