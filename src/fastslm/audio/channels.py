"""Several channels → one, without cancelling speech: their mean, unless they cancel, or one of them only makes noise.

Decided for each half second of the recording's own clock, so that neither memory nor result depends on how it comes:

- **Mean**: each channel counts alike. This is what ordinary recordings get, to the bit.
- **Cancelling**: of what is in a channel, the mean keeps what the others do not take away. Where that is less than 0.4
  of what it keeps of channels that have nothing in common, the loudest channel is taken alone. What moves (speech) is
  also judged without what stands (hum, hiss), lest a hum that all channels share hides it.
- **Noise**: a channel that only stands, at a level that would drown what moves in another, is left out until something
  moves in it: an unplugged input, a constant offset.

Where the weights change, they do so within 10 ms.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

BLOCK_SECONDS = 0.5
FADE_SECONDS = 0.01
KEPT = 0.4  # of what uncorrelated channels keep: a channel below that is cancelled
WARY_KEPT = 0.7  # the same for a while after a cancellation, lest channels that nearly cancel are taken on and off
WARY_BLOCKS = 20
CANCELLED_SHARE = 0.2  # of the energy, in channels that are cancelled
SWITCH = 2.0  # another channel is taken where it has this much more energy than the one that was
DROWNING = 0.1  # of the energy of what moves in another channel; left out, one stays so down to a quarter of it
STILL_DROWNING = DROWNING / 4
STILL_BLOCKS = 2
FORGETTING = 0.97  # a half second; how loud what moves was
CONSTANT = 1e-3  # of an offset's energy: a channel with less beside it is nothing but the offset
LEAST_OFFSET = 0.01  # of full scale
MOVES = 2.0  # times what stands in a band; that of noise reaches 1.9, in a hundredth of all blocks 1.6
STANDS = 1.5

_ANALYSED_RATE = 8_000  # Hz; about, for what is decided below 4 kHz
_FRAME_SECONDS = 0.032
_BANDS = (100, 400, 800, 1600, 3500)  # Hz
_LEAKAGE = 1e-6  # of all energy; what a band has less of may be a hum's from another
_QUIETEST = 4  # a quarter of the frames shows what stands


@dataclass
class _Tally:
    """Where something was done, in seconds."""

    first: float = 0.0
    seconds: float = 0.0

    def add(self, start: float, seconds: float) -> None:
        if not self.seconds:
            self.first = start
        self.seconds += seconds


class Mixer:
    """Mixes one recording to mono as it comes. What is held is half a second.

    Args:
        rate: Hz.
        start: second of the recording at which its first sample lies.
        told_from, told_until: seconds before and after which nothing is told, as it is not asked for.
    """

    def __init__(
        self, rate: float, start: float = 0.0, told_from: float = 0.0, told_until: float = float("inf")
    ) -> None:
        self.rate = rate
        self.cancelled = _Tally()
        self.taken: set[int] = set()  # channels, from 0
        self.left_out: dict[int, _Tally] = {}
        self._size = max(1, round(rate * BLOCK_SECONDS))
        self._fade = max(1, round(rate * FADE_SECONDS))
        self._held: list[tuple[np.ndarray, np.ndarray]] = []
        self._length = 0
        self._position = start
        self._told_from, self._told_until = told_from, told_until
        self._before: np.ndarray | None = None  # weights of the last block; None: the plain mean
        self._begun = False
        self._follows = False  # sound just before: at a beginning there is nothing to fade from
        self._chosen = 0
        self._noisy: set[int] = set()
        self._still: dict[int, int] = {}  # for how many blocks a channel only stood
        self._voice = 0.0  # energy of what moves, of late
        self._wary = 0  # blocks
        self._told_of_cancelling = False
        self._told_of: set[int] = set()  # channels that are left out

    def mix(self, samples: np.ndarray) -> Iterator[np.ndarray]:
        """Some more of it, float32 (channels, samples) → float32 (samples,), as soon as it is decided."""
        mean = samples.mean(axis=0)
        while samples.shape[1]:
            room = self._size - self._length
            self._held.append((samples[:, :room], mean[:room]))
            self._length += min(room, samples.shape[1])
            samples, mean = samples[:, room:], mean[room:]
            if self._length == self._size:
                yield self._block()

    def end(self) -> Iterator[np.ndarray]:
        """What is left."""
        if self._length:
            yield self._block()

    def rest(self, until: float) -> Iterator[np.ndarray]:
        """What is left before a silence up to a second of the recording. What is known of the channels still holds."""
        yield from self.end()
        self._position, self._follows = until, False

    def remarks(self, name: str) -> list[str]:
        """What was done but to take the mean, a sentence each."""
        said = []
        if self.cancelled.seconds:
            which = " and ".join(str(channel + 1) for channel in sorted(self.taken))
            plural = "s" if len(self.taken) > 1 else ""
            said.append(
                f"The channels of {_within(name)} cancel one another in {self.cancelled.seconds:.1f} s of it, first at "
                f"{self.cancelled.first:.1f} s: there, channel{plural} {which} was taken alone."
            )
        for channel, tally in sorted(self.left_out.items()):
            said.append(
                f"Channel {channel + 1} of {_within(name)} is only noise beside another's sound: it was left out in "
                f"{tally.seconds:.1f} s, first at {tally.first:.1f} s."
            )
        return said

    def news(self, name: str) -> list[str]:
        """What is not averaged for the first time since this was last asked, a sentence each."""
        said = []
        if self.cancelled.seconds and not self._told_of_cancelling:
            self._told_of_cancelling = True
            said.append(
                f"The channels of {_within(name)} cancel one another at {self.cancelled.first:.1f} s: where they do, "
                "one is taken alone."
            )
        for channel in sorted(self.left_out.keys() - self._told_of):
            self._told_of.add(channel)
            said.append(
                f"Channel {channel + 1} of {_within(name)} is only noise beside another's sound at "
                f"{self.left_out[channel].first:.1f} s: it is left out where it is."
            )
        return said

    def _block(self) -> np.ndarray:
        channels = np.concatenate([samples for samples, _ in self._held], axis=1)
        mean = np.concatenate([own for _, own in self._held])
        self._held, self._length = [], 0
        seconds = channels.shape[1] / self.rate
        weights = self._weights(channels, seconds)
        before, self._before = self._before, weights
        self._position += seconds
        mixed = _weighted(channels, mean, weights)
        follows, self._follows, self._begun = self._follows, True, True
        if follows and not _alike(before, weights):
            fade = min(self._fade, len(mixed))
            share = np.arange(1, fade + 1, dtype=np.float32) / fade
            old = _weighted(channels[:, :fade], mean[:fade], before)
            mixed[:fade] = old + share * (mixed[:fade] - old)
        return mixed

    def _weights(self, channels: np.ndarray, seconds: float) -> np.ndarray | None:
        """Those of a block, `None` for the plain mean."""
        frame = round(_ANALYSED_RATE * _FRAME_SECONDS) * self._decimation
        if channels.shape[1] < 2 * frame and self._begun:
            return self._before  # too short to tell: what holds, holds on
        if (channels == channels[0]).all():
            return self._before if self._noisy else None
        sound = _analyse(channels, self._decimation, self.rate)
        self._tell_noise(sound)
        inside = [channel for channel in range(len(channels)) if channel not in self._noisy]
        is_told = self._position < self._told_until and self._position + seconds > self._told_from
        for channel in self._noisy if is_told else ():
            self.left_out.setdefault(channel, _Tally()).add(self._position, seconds)
        weights = np.zeros(len(channels), np.float32)
        self._wary = max(0, self._wary - 1)
        if _cancels(sound, inside, KEPT):
            self._wary = WARY_BLOCKS
        if self._wary and _cancels(sound, inside, WARY_KEPT):
            loudness = sound.loudness
            best = max(inside, key=lambda channel: loudness[channel])
            if self._chosen not in inside or loudness[best] > SWITCH * loudness[self._chosen]:
                self._chosen = best
            if is_told:
                self.cancelled.add(self._position, seconds)
                self.taken.add(self._chosen)
            weights[self._chosen] = 1
            return weights
        if len(inside) == len(channels):
            return None
        weights[inside] = 1 / len(inside)
        return weights

    @property
    def _decimation(self) -> int:
        return max(1, int(self.rate // _ANALYSED_RATE))

    def _tell_noise(self, sound: "_Sound") -> None:
        """Which channels only stand and would drown another: they stay out until they move, or it is much louder."""
        moves = sound.moves
        moving = float(sound.moving.sum(axis=1)[moves].max(initial=0))
        self._voice = max(self._voice * FORGETTING, moving)
        whole = sound.whole.sum(axis=1)
        for channel in range(len(moves)):
            energy = whole[channel] + sound.offset[channel]
            constant = abs(sound.constant[channel]) > LEAST_OFFSET and whole[channel] < CONSTANT * sound.offset[channel]
            least = STILL_DROWNING if channel in self._noisy else DROWNING
            still = sound.stands[channel] and not moves[channel]
            self._still[channel] = self._still.get(channel, 0) + 1 if still else 0
            # Before anything moved, nothing is known of noise.
            loud = not moves[channel] and energy > least * self._voice and (constant or self._voice > 0)
            if loud and (constant or channel in self._noisy or self._still[channel] >= STILL_BLOCKS):
                self._noisy.add(channel)
            else:
                self._noisy.discard(channel)
        if len(self._noisy) == len(moves):
            self._noisy.clear()


@dataclass(frozen=True)
class _Sound:
    """A block by its bands.

    Attributes:
        total: (channels,), energy of each channel at all frequencies, but for the constant part.
        whole: (channels, bands), energy of each channel.
        moving: (channels, bands), what of it is beyond the quietest quarter of the frames.
        constant: (channels,), the mean.
        offset: (channels,), its energy.
        cross: (channels, channels, bands), energy that two channels share, negative where they are opposed.
        moving_cross: what of it is beyond the quietest quarter.
    """

    total: np.ndarray
    whole: np.ndarray
    moving: np.ndarray
    constant: np.ndarray
    offset: np.ndarray
    cross: np.ndarray
    moving_cross: np.ndarray

    @property
    def moving_bands(self) -> np.ndarray:
        """(channels, bands), where what moves is well above what stands."""
        return (self.moving > MOVES * (self.whole - self.moving)) & self._present

    @property
    def moves(self) -> np.ndarray:
        """(channels,), whether anything moves."""
        return np.any(self.moving_bands, axis=1)

    @property
    def stands(self) -> np.ndarray:
        """(channels,), whether nothing does."""
        return np.all((self.moving <= STANDS * (self.whole - self.moving)) | ~self._present, axis=1)

    @property
    def _present(self) -> np.ndarray:
        return self.whole > _LEAKAGE * self.total[:, None]

    @property
    def loudness(self) -> np.ndarray:
        """(channels,), of what moves, or where nothing does of everything."""
        moving = self.moving.sum(axis=1)
        return moving if self.moves.any() else self.whole.sum(axis=1)


def _analyse(channels: np.ndarray, decimation: int, rate: float) -> _Sound:
    length = channels.shape[1] // decimation
    wave = channels[:, : length * decimation].reshape(len(channels), length, decimation).mean(axis=2, dtype=np.float64)
    constant = wave.mean(axis=1, keepdims=True)
    wave = wave - constant
    rate = rate / decimation
    frame = max(2, round(rate * _FRAME_SECONDS))
    if length < frame:
        wave = np.pad(wave, ((0, 0), (0, frame - length)))
    frames = sliding_window_view(wave, frame, axis=1)[:, :: max(1, frame // 2)]
    spectra = np.fft.rfft(frames * np.hanning(frame + 1)[:-1])
    edges = np.searchsorted(np.fft.rfftfreq(frame, 1 / rate), _BANDS)
    bands = [spectra[..., low:high] for low, high in pairwise(edges)]
    # (channels, channels, frames, bands)
    cross = np.stack([np.einsum("atf,btf->abt", own, own.conj()).real for own in bands], axis=-1)
    energy = np.einsum("aatk->atk", cross)
    order = np.argsort(energy.sum(axis=0), axis=0)[: max(1, cross.shape[2] // _QUIETEST)]
    standing = np.take_along_axis(cross, order[None, None], axis=2).mean(axis=2)
    everything = cross.mean(axis=2)
    moving_cross = everything - standing
    # As a channel's own frames have it: another's pauses are not its own.
    own_order = np.argsort(energy, axis=1)[:, : max(1, cross.shape[2] // _QUIETEST)]
    whole = energy.mean(axis=1)
    moving = whole - np.take_along_axis(energy, own_order, axis=1).mean(axis=1)
    window = frame * np.square(np.hanning(frame + 1)).sum() / 2  # one-sided energy of a wave of power 1
    total = np.square(np.abs(spectra)).sum(axis=2).mean(axis=1)
    return _Sound(total, whole, moving, constant[:, 0], constant[:, 0] ** 2 * window, everything, moving_cross)


def _cancels(sound: _Sound, inside: list[int], least: float) -> bool:
    """Whether the mean of some channels loses what is in them, keeping less than `least`."""
    if len(inside) < 2:
        return False
    cross = sound.cross[np.ix_(inside, inside)]
    if _is_lost(cross.sum(axis=-1), least):
        return True
    bands = sound.moving_bands[inside].any(axis=0)
    moving = sound.moving_cross[np.ix_(inside, inside)][..., bands]
    return bool(bands.any()) and _is_lost(moving.sum(axis=-1), least)


def _is_lost(cross: np.ndarray, least: float) -> bool:
    """Whether much of the energy, (channels, channels), is in channels of which less than `least` is kept."""
    energy = np.maximum(np.diag(cross), 0)
    kept = cross.sum(axis=1)
    lost = (kept < least * energy) & (energy > 0)
    return bool(energy[lost].sum() > CANCELLED_SHARE * energy.sum())


def _weighted(channels: np.ndarray, mean: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    if weights is None:
        return mean
    if weights.max() == 1:
        return channels[int(weights.argmax())].astype(np.float32)
    return weights @ channels


def _alike(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    if one is None or other is None:
        return one is other
    return bool((one == other).all())


def _within(name: str) -> str:
    """A name as it stands inside a sentence."""
    return name[0].lower() + name[1:] if name.startswith("The ") else name
