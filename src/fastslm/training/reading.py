"""Whisper's own decoder reads the speech tokens: cross-entropy of its text, and its encoder's frames (ours)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from fastslm.model.ctc_head import CTCHead, FrameCTCHead, ctc_loss, ctc_text
from fastslm.model.hfq_former import HFQFormer
from fastslm.model.lora import lora_parameters
from fastslm.model.whisper_decoder import UnfoldingDecoder, frames_at_rate
from fastslm.training.objectives import Batch, combined
from fastslm.training.recipe import Phase

IGNORED = -100
# Of the reader's tokens a window; the longest window of speech has some 150.
NEW_TOKENS = 200


class FrameRecovery:
    """Tokens and unfolder find the encoder's frames again; the decoder, which could not read them yet, is not asked."""

    def __init__(self, hfq_former: HFQFormer, head: CTCHead | FrameCTCHead, reader: UnfoldingDecoder):
        self.hfq_former, self.head, self.reader = hfq_former, head, reader
        self.weights: dict[str, float] = {"loss": 1.0}
        self.parts: dict[str, nn.Module] = {"hfq": hfq_former, "reader": reader.unfold}

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        unfolded = self.reader.unfold(self.hfq_former(batch.frames))
        return {"loss": frame_distance(unfolded, batch.frames if batch.whole is None else batch.whole)}

    def amounts(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Of the distance: squares of the frames from their mean, which the whole step's distances are shares of."""
        return {"loss": self.squares(batches)}

    def squares(self, batches: Sequence[Batch]) -> float:
        """Windows times the variance of their frames, as the unfolder is to find them."""
        frames = torch.cat([batch.frames if batch.whole is None else batch.whole for batch in batches])
        return len(frames) * float(frames_at_rate(frames, len(self.reader.unfold.place)).var())

    def log_probs(self, frames: torch.Tensor) -> torch.Tensor:
        tokens = self.hfq_former(frames)
        return self.letters(tokens, self.reader.unfold(tokens))

    def letters(self, tokens: torch.Tensor, unfolded: torch.Tensor) -> torch.Tensor:
        """What the CTC head hears, whichever of the two it reads."""
        return self.head(unfolded if isinstance(self.head, FrameCTCHead) else tokens)


class ReaderTranscript(FrameRecovery):
    """The decoder knows English and its own frames; tokens and unfolder learn to please it, its LoRA to read them.

    Args:
        phase: the weights of the losses beside the transcript's: CTC, and the distance of the unfolded frames from the
            encoder's own, in units of their variance.
    """

    writer = "Whisper's decoder"
    validation_clips = 100

    def __init__(self, hfq_former: HFQFormer, head: CTCHead | FrameCTCHead, reader: UnfoldingDecoder, phase: Phase):
        super().__init__(hfq_former, head, reader)
        self.weights = {"transcript": 1.0}
        if phase.frames_weight:
            self.weights["frames"] = phase.frames_weight
        if phase.ctc_weight:
            self.weights["ctc"] = phase.ctc_weight
            self.parts["head"] = head
        if adapted := lora_parameters(reader.decoder):
            self.parts["decoder"] = nn.ParameterList(adapted)

    def sequences(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """What the decoder is shown and what it is to write next, padded on the right, (windows, length) each.

        Labels cover the text and its end, not what it begins with, nor the padding.
        """
        tokenizer, start = self.reader.tokenizer, self.reader.start
        end = tokenizer.eos_token_id
        limit = self.reader.decoder.config.max_target_positions - len(start)
        answers = [tokenizer.encode(f" {text}", add_special_tokens=False) if text else [] for text in texts]
        answers = [[*answer, end][:limit] for answer in answers]
        longest = max(map(len, answers))
        shown = [[*start, *answer[:-1], *[end] * (longest - len(answer))] for answer in answers]
        skipped = [IGNORED] * (len(start) - 1)
        labels = [[*skipped, *answer, *[IGNORED] * (longest - len(answer))] for answer in answers]
        return torch.tensor(shown), torch.tensor(labels)

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        tokens = self.hfq_former(batch.frames)
        unfolded = self.reader.unfold(tokens)
        shown, labels = (part.to(tokens.device) for part in self.sequences(batch.texts))
        scores = self.reader.scores(unfolded.to(self.reader.decoder.dtype), shown)
        transcript = F.cross_entropy(scores.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
        terms = {"transcript": transcript}
        if "frames" in self.weights:
            terms["frames"] = frame_distance(unfolded, batch.frames if batch.whole is None else batch.whole)
        if "ctc" in self.weights:
            terms["ctc"] = ctc_loss(self.letters(tokens, unfolded), batch.texts)
        return {"loss": combined(terms, self.weights), **terms}

    def amounts(self, batches: Sequence[Batch]) -> dict[str, float]:
        written = [self.sequences(batch.texts)[1] for batch in batches]
        found: dict[str, float] = {"transcript": sum(int((labels != IGNORED).sum()) for labels in written)}
        if "frames" in self.weights:
            found["frames"] = self.squares(batches)
        if "ctc" in self.weights:
            found["ctc"] = sum(map(len, batches))
        return found

    def transcripts(self, frames: torch.Tensor) -> list[str]:
        """Greedy text of each window, reduced as the CTC head writes it."""
        return [ctc_text(read.text) for read in self.reader.read(self.hfq_former(frames), NEW_TOKENS)]


def frame_distance(unfolded: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """Mean squared distance from the encoder's frames at the same times, in units of the frames' variance.

    Args:
        unfolded: (windows, frames, hidden). frames: (windows, 1500, hidden).
    """
    there = frames_at_rate(frames, unfolded.shape[1])
    return F.mse_loss(unfolded.float(), there) / there.var()
