"""Long recordings composed of clips, by chance, by speaker or by meaning: references into audio, never copies (ours).

A composition is a row whose `segments` each name their clip's audio, their start and end in the whole and their text;
what lies between two of them is a pause. Windows are cut every 30 s from the start of the whole, so a window, and with
it an encoder's features, changes if any piece, pause or order before its end does, and not with what follows. Features
of a piece that was encoded alone are of no use to it: pieces start anywhere in a window, not on its edge.

Lhotse cuts are composed in the same way (`compose_cuts`): by `cut.append`, with the pauses as padding.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastslm.audio import SAMPLE_RATE, WINDOW_SECONDS
from fastslm.data.conversion import clip_of_cut
from fastslm.data.cut_audio import Cut, CutSound, sounding
from fastslm.data.manifest import KNOWN, Clip
from fastslm.data.packing import refuse_long
from fastslm.errors import ManifestError, OptionError

GROUPINGS = ("random", "speaker", "semantic")
# Seconds of silence between sentences: half of them under 0.6 s, nine in ten between 0.25 and 1.5 s.
PAUSE_MEDIAN, PAUSE_SPREAD, PAUSE_RANGE = 0.6, 0.5, (0.2, 2.5)
# A composition falls short of its drawn length by less than the longest clip and its pause.
SHORTFALL_SECONDS = WINDOW_SECONDS + PAUSE_RANGE[1]
TRIES = 20
# Embeds texts as unit vectors: (texts, width).
Embed = Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class Composing:
    """How compositions are made, checked once.

    Attributes:
        by: one of `GROUPINGS`.
        minutes: the shortest and the longest composition.
        count: how many.
        seed: decides everything that is drawn.
    """

    by: str = "random"
    minutes: tuple[float, float] = (1.0, 15.0)
    count: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if self.by not in GROUPINGS:
            raise OptionError(f"There is no grouping {self.by!r}: choose one of {', '.join(GROUPINGS)}.")
        low, high = self.minutes
        if low <= 0 or not high * 60 >= low * 60 + SHORTFALL_SECONDS or not math.isfinite(high):
            raise OptionError(
                f"Compositions of {low:g} to {high:g} minutes are not possible: the shortest has more than 0, and the "
                f"longest is at least {SHORTFALL_SECONDS:g} s (a clip and a pause) longer."
            )
        if self.count < 1:
            raise OptionError(f"{self.count} compositions are not possible: ask for at least 1.")


def minutes_range(text: str) -> tuple[float, float]:
    """The shortest and longest from "1-15".

    Raises:
        OptionError: it is no such range.
    """
    low, separator, high = text.partition("-")
    try:
        if separator:
            return float(low), float(high)
    except ValueError:
        pass
    raise OptionError(f"{text!r} is no range of minutes: give the shortest and the longest, such as 1-15.")


def compose(
    clips: Sequence[Clip],
    composing: Composing,
    folder: Path,
    *,
    needles: Sequence[Clip] = (),
    embed: Embed | None = None,
) -> list[dict[str, Any]]:
    """Rows of a manifest in `folder`, one composition each.

    Clips come without replacement until all have been used, and none twice in a composition. `random` takes any;
    `speaker` takes one speaker's, in the manifest's order from a random one on; `semantic` takes, after a random one,
    always the one nearest in meaning to those that are there.

    Args:
        clips: with text, or with a `label` where nobody speaks; each at most a window long.
        needles: one of them is put at a random place of each composition, which takes over its `slots`: questions whose
            answer is in one window of many. If it has no text, the composition has none either.
        embed: sentence embeddings, for `semantic`.

    Raises:
        ManifestError: clips too long, without text, or too few for the shortest composition; missing audio.
        OptionError: `semantic` without `embed`.
    """
    return [_row(plan, composing.by, folder) for plan in plans(clips, composing, needles=needles, embed=embed)]


def compose_cuts(
    cuts: Sequence[CutSound],
    composing: Composing,
    *,
    needles: Sequence[CutSound] = (),
    embed: Embed | None = None,
) -> list[Cut]:
    """Cuts of several cuts, by reference. Arguments and errors as of `compose`; also:

    Raises:
        ManifestError: two cuts have one id, or a composition would have several sampling rates.
    """
    from lhotse.cut.set import deserialize_cut

    def known(sounds: Sequence[CutSound]) -> list[Clip]:
        return [clip_of_cut(own.cut, own.folder) for own in sounds]

    for own in cuts:
        if own.cut["type"] == "MixedCut":
            raise ManifestError(f"The cut {own.cut['id']} is a composition already; give the cuts that it is made of.")
    sounds = {own.cut["id"]: own for own in [*cuts, *needles]}
    if len(sounds) < len(cuts) + len(needles):
        raise ManifestError("Two cuts have the same id; give every cut its own.")
    found: list[Cut] = []
    for plan in plans(known(cuts), composing, needles=known(needles), embed=embed):
        whole: Any = None
        for piece, pause in zip(plan.pieces, [0.0, *plan.pauses], strict=True):
            cut: Any = deserialize_cut(sounds[piece.id].by_reference())
            # What is known of a piece does not hold for the whole.
            cut.custom = {key: value for key, value in (cut.custom or {}).items() if key not in KNOWN} or None
            if whole is None:
                whole = cut
                continue
            if cut.sampling_rate != whole.sampling_rate:
                raise ManifestError(
                    f"The cuts {plan.pieces[0].id} and {piece.id} are of {whole.sampling_rate} and {cut.sampling_rate} "
                    "Hz, which lhotse does not append; give cuts of one rate (CutSet.resample)."
                )
            if pause:
                whole = whole.pad(duration=whole.duration + pause, preserve_id=True)
            whole = whole.append(cut, preserve_id="left")
        raw: Cut = whole.to_dict() | {"id": plan.name}
        for number, track in enumerate(raw.get("tracks", ())):
            if track["type"] == "PaddingCut":
                track["cut"]["id"] = f"{plan.name}-pause-{number}"  # lhotse draws another one each time
        _, first = sounding(raw)[0]
        slots = plan.needle.slots if plan.needle is not None else None
        first["custom"] = (first.get("custom") or {}) | {"composed": composing.by} | ({"slots": slots} if slots else {})
        found.append(raw)
    return found


class Plan(NamedTuple):
    """A composition: its pieces, the pause before each but the first, and which of them is the needle."""

    name: str
    pieces: list[Clip]
    pauses: list[float]
    needle: Clip | None


def plans(
    clips: Sequence[Clip], composing: Composing, *, needles: Sequence[Clip] = (), embed: Embed | None = None
) -> Iterator[Plan]:
    """Which clips make which composition. Arguments and errors as of `compose`."""
    refuse_long([*clips, *needles])
    _refuse_unusable(clips)
    groups = _groups(clips, composing)
    if composing.by == "semantic" and embed is None:
        raise OptionError("Grouping by meaning needs sentence embeddings: give some.")
    vectors = embed([clip.text or "" for clip in clips]) if composing.by == "semantic" and embed else None
    names = sorted(groups)
    weights = np.array([sum(clips[i].duration for i in groups[name]) for name in names])
    unused: dict[str, list[int]] = {name: [] for name in names}
    for number in range(composing.count):
        rng = np.random.default_rng([composing.seed, number])
        name = names[int(rng.choice(len(names), p=weights / weights.sum()))]
        low, high = (minutes * 60 for minutes in composing.minutes)
        target = rng.uniform(low + SHORTFALL_SECONDS, high)
        needle = needles[int(rng.integers(len(needles)))] if needles else None
        order = _order(groups[name], unused[name], composing.by, vectors, rng)
        chosen, pauses = _fill(clips, order, needle, target, rng)
        taken = set(chosen)
        unused[name] = [i for i in unused[name] if i not in taken]
        pieces = [clips[i] for i in chosen]
        if needle is not None:
            pieces.insert(int(rng.integers(len(pieces) + 1)), needle)
        yield Plan(f"{composing.by}-{composing.seed}-{number:05d}", pieces, pauses, needle)


def _refuse_unusable(clips: Sequence[Clip]) -> None:
    for clip in clips:
        if clip.pieces:
            raise ManifestError(f"{clip.place} is a composition already; give the manifest of its clips.")
        if clip.text_alone:
            clip.check_audio()
        if clip.text is None and clip.label is None:
            raise ManifestError(
                f"{clip.place} has no text, so what is said in a composition with it is unknown; transcribe it first, "
                "leave it out, or give its manifest as the needles."
            )


def _groups(clips: Sequence[Clip], composing: Composing) -> dict[str, list[int]]:
    """Which clips may stand together: indices, by the group's name; groups too short for a composition are left out."""
    needed = composing.minutes[0] * 60
    groups: dict[str, list[int]] = {}
    for index, clip in enumerate(clips):
        if composing.by != "speaker":
            groups.setdefault("", []).append(index)
        elif clip.speaker is not None:
            groups.setdefault(clip.speaker, []).append(index)
    long = {name: group for name, group in groups.items() if sum(clips[i].duration for i in group) >= needed}
    if not long:
        longest = max((sum(clips[i].duration for i in group) for group in groups.values()), default=0.0)
        of = "any one speaker" if composing.by == "speaker" else "all of them"
        raise ManifestError(
            f"The clips of {of} last {longest / 60:.1f} minutes, and a composition is to last at least "
            f"{needed / 60:g}; give more clips, or allow shorter compositions by --minutes."
        )
    return long


def _order(
    group: list[int], unused: list[int], by: str, vectors: np.ndarray | None, rng: np.random.Generator
) -> Iterable[int]:
    """Clips in the order in which they are tried: first what no composition has had yet, then the others.

    `unused` is filled anew when none is left.
    """
    if not unused:
        unused[:] = group
    fresh = set(unused)
    used = [i for i in group if i not in fresh]
    if by == "random":
        return [*rng.permutation(unused).tolist(), *rng.permutation(used).tolist()]
    if by == "speaker":
        at = int(rng.integers(len(unused)))
        return [*unused[at:], *unused[:at], *used]
    assert vectors is not None
    return _nearest(vectors, unused, used, int(unused[int(rng.integers(len(unused)))]))


def _nearest(vectors: np.ndarray, unused: list[int], used: list[int], first: int) -> Iterator[int]:
    """Clips one after another, each the nearest in meaning to the mean of those before it."""
    yield first
    mean = vectors[first].copy()
    for pool in (unused, used):
        left = np.array([i for i in pool if i != first], dtype=int)
        while left.size:
            nearest = int(np.argmax(vectors[left] @ mean))
            chosen, left = int(left[nearest]), np.delete(left, nearest)
            mean = mean + vectors[chosen]
            yield chosen


def _fill(
    clips: Sequence[Clip], order: Iterable[int], needle: Clip | None, target: float, rng: np.random.Generator
) -> tuple[list[int], list[float]]:
    """Clips in their order as long as they fit `target` seconds, and the pause before each piece but the first."""
    total = 0.0 if needle is None else needle.duration
    chosen: list[int] = []
    pauses: list[float] = []
    refused = 0
    # Once a clip is refused, less is left than most clips last; a few more are tried, for the length's sake.
    for index in order:
        pause = _pause(rng) if chosen or needle is not None else 0.0
        if total + pause + clips[index].duration > target:
            refused += 1
            if refused == TRIES:
                break
            continue
        total += pause + clips[index].duration
        chosen.append(index)
        if pause:
            pauses.append(pause)
    return chosen, pauses


def _pause(rng: np.random.Generator) -> float:
    seconds = PAUSE_MEDIAN * math.exp(PAUSE_SPREAD * rng.standard_normal())
    return round(min(max(seconds, PAUSE_RANGE[0]), PAUSE_RANGE[1]), 2)


def _row(plan: Plan, by: str, folder: Path) -> dict[str, Any]:
    name, pieces, pauses, needle = plan
    segments: list[dict[str, Any]] = []
    at = 0
    for piece, pause in zip(pieces, [0.0, *pauses], strict=True):
        at += round(pause * SAMPLE_RATE)
        end = at + round(piece.duration * SAMPLE_RATE)
        own = piece.row(folder)
        segment = {"start": at / SAMPLE_RATE, "end": end / SAMPLE_RATE, "id": piece.id, "audio": own["audio"]}
        kept = ("text", "speaker", "label", "slots")
        segments.append(segment | {key: own[key] for key in kept if key in own})
        at = end
    row: dict[str, Any] = {
        "id": name,
        "audio": None,
        "duration": at / SAMPLE_RATE,
        "segments": segments,
        "composed": by,
    }
    if all(piece.text is not None or piece.label is not None for piece in pieces):
        row["text"] = " ".join(piece.text for piece in pieces if piece.text)
    for key in ("language", "speaker"):
        if len(found := {getattr(piece, key) for piece in pieces}) == 1 and (value := found.pop()) is not None:
            row[key] = value
    kinds = {piece.label_kind for piece in pieces} - {None}
    if kinds:
        # The whole is worth what its weakest part is.
        row["label_kind"] = next(kind for kind in ("synthetic", "pseudo", "human") if kind in kinds)
    if needle is not None and needle.slots is not None:
        row["slots"] = needle.slots
    return row
