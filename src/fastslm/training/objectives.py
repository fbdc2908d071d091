"""What a phase trains towards: the tied looks, the CTC head over the tokens, characters in time, the transcript."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import nn

from fastslm.model.ctc_head import CTCHead, ctc_loss
from fastslm.model.hfq_former import HFQFormer
from fastslm.training.feature_cache import WindowLabel
from fastslm.training.tied_start import TiedLooks

if TYPE_CHECKING:
    from fastslm.training.alignment import AlignedCharacters


@dataclass(frozen=True)
class Batch:
    """Windows of one step: frames (windows, 1500, hidden), what is known of each, and how far each was rolled.

    whole: the frames before stretches of them were blanked, where some were.
    """

    frames: torch.Tensor
    labels: Sequence[WindowLabel]
    shifts: Sequence[int]
    whole: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, rows: range) -> "Batch":
        """Some of the windows, one after another."""
        own = slice(rows.start, rows.stop)
        whole = None if self.whole is None else self.whole[own]
        return Batch(self.frames[own], self.labels[own], self.shifts[own], whole)

    @property
    def texts(self) -> list[str]:
        return [label.text for label in self.labels]

    @property
    def clips(self) -> list[str]:
        """Ids of all clips in the windows."""
        return [clip for label in self.labels for clip in label.clips]


class Objective(Protocol):
    """A loss over batches, and the modules that it trains, by the names that a recipe's rates use."""

    parts: dict[str, nn.Module]

    @property
    def weights(self) -> Mapping[str, float]:
        """Of the named losses that are added up as `loss`, the one to descend; where that is the only one, it is 1."""
        ...

    def losses(self, batch: Any) -> dict[str, torch.Tensor]:
        """Named losses of a batch, a `Batch` or of the objective's own kind; `loss` is the one to descend."""
        ...

    def amounts(self, batches: Sequence[Any]) -> dict[str, float]:
        """How much of what each of `weights` is a mean over is in these batches, such as windows or answers' tokens.

        The loss of all together is the sum of each one's loss times its own amount, by the amount of all.
        """
        ...

    def log_probs(self, frames: torch.Tensor) -> torch.Tensor:
        """Characters, (windows, steps, classes), for validation."""
        ...


@runtime_checkable
class Writer(Protocol):
    """An objective whose transcript does not come from the CTC head.

    writer: what it comes from. validation_clips: so many are written at a validation.
    """

    writer: str
    validation_clips: int

    def transcripts(self, frames: torch.Tensor) -> list[str]:
        """The text of each window."""
        ...


@runtime_checkable
class Judge(Protocol):
    """An objective that measures itself at a validation, beside what the CTC head hears."""

    def judge(self) -> dict[str, float]:
        """Named figures."""
        ...


class ByWindow:
    """Objectives with one loss, a mean over the windows."""

    weights: Mapping[str, float] = {"loss": 1.0}

    def amounts(self, batches: Sequence[Batch]) -> dict[str, float]:
        return {"loss": sum(map(len, batches))}


def combined(losses: Mapping[str, torch.Tensor], weights: Mapping[str, float]) -> torch.Tensor:
    """The losses added up by their weights."""
    first, *others = weights
    total = losses[first] if weights[first] == 1.0 else weights[first] * losses[first]
    for name in others:
        total = total + weights[name] * losses[name]
    return total


class TiedCTC(ByWindow):
    """CTC over the tied looks; the head that reads them is the model's own."""

    def __init__(self, looks: TiedLooks, head: CTCHead):
        self.looks, self.head = looks, head
        self.parts: dict[str, nn.Module] = {"hfq": nn.ModuleList([*_downsamplers(looks), looks.value]), "head": head}

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {"loss": ctc_loss(self.log_probs(batch.frames), batch.texts)}

    def log_probs(self, frames: torch.Tensor) -> torch.Tensor:
        return self.head(self.looks(frames))


class TokenCTC(ByWindow):
    """CTC over the HFQ-Former's tokens."""

    def __init__(self, hfq_former: HFQFormer, head: CTCHead):
        self.hfq_former, self.head = hfq_former, head
        self.parts: dict[str, nn.Module] = {"hfq": hfq_former, "head": head}

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {"loss": ctc_loss(self.log_probs(batch.frames), batch.texts)}

    def log_probs(self, frames: torch.Tensor) -> torch.Tensor:
        return self.head(self.hfq_former(frames))


class CharacterAlignment(ByWindow):
    """Which character is being said, at 40 Hz, against a forced alignment; a warm-up before CTC.

    Args:
        aligned: gives the classes of a window's 1200 steps.
    """

    def __init__(self, hfq_former: HFQFormer, head: CTCHead, aligned: "AlignedCharacters"):
        self.hfq_former, self.head, self.aligned = hfq_former, head, aligned
        self.parts: dict[str, nn.Module] = {"hfq": hfq_former, "head": head}

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        scores = self.log_probs(batch.frames)
        classes = self.aligned.classes(batch, scores.shape[1]).to(scores.device)
        return {"loss": F.nll_loss(scores.flatten(0, 1), classes.flatten())}

    def log_probs(self, frames: torch.Tensor) -> torch.Tensor:
        return self.head(self.hfq_former(frames))


def _downsamplers(looks: TiedLooks) -> list[nn.Module]:
    return [looks.hfq_former.downsampler1, looks.hfq_former.downsampler2]


def shifted(frames: torch.Tensor, by: Sequence[int]) -> torch.Tensor:
    """Roll each window by some frames, so that its words meet other slots. (windows, frames, hidden)"""
    return torch.stack([window.roll(shift, 0) for window, shift in zip(frames, by, strict=True)])


def masked(frames: torch.Tensor, share: float, longest: int, generator: torch.Generator) -> torch.Tensor:
    """Blank stretches of up to `longest` frames, about `share` of each window, with the window's mean frame."""
    windows, length, _ = frames.shape
    stretches = round(length * share / ((longest + 1) / 2))
    keep = torch.ones(windows, length, dtype=torch.bool)
    for window in range(windows):
        starts = torch.randint(0, length, (stretches,), generator=generator)
        lengths = torch.randint(1, longest + 1, (stretches,), generator=generator)
        for start, size in zip(starts.tolist(), lengths.tolist(), strict=True):
            keep[window, start : start + size] = False
    return torch.where(keep[..., None], frames, frames.mean(1, keepdim=True))
