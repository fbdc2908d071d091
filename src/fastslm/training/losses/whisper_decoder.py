"""Teach tokens and unfolder so that Whisper's own decoder reads them: the decoder knows its language already (ours).

    tokens ─ unfolder ─ frames ─ Whisper's decoder (frozen, or with LoRA) ─ cross-entropy of the transcript

Rows are transcripts of single windows.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F

from fastslm.data.loading import RowBatch
from fastslm.data.rows import Row
from fastslm.errors import RecipeError
from fastslm.model.ctc_head import ctc_text
from fastslm.model.processing import FastSLMProcessor
from fastslm.model.whisper_decoder import frames_at_rate
from fastslm.training.losses.loss import IGNORED, Loss, Prepared, letters_sum, spelt
from fastslm.training.recipe import Recipe

# Of Whisper's tokens a window; the longest window of speech has some 150.
NEW_TOKENS = 200


class WhisperDecoderLoss(Loss):
    """Cross-entropy of the transcript in Whisper's own tokens.

    Beside it, by weight: `frames`, how far the unfolded frames are from the encoder's own, in units of each window's
    variance; `ctc`, of the head of letters.
    """

    name = "whisper_decoder"

    @classmethod
    def check_rows(cls, rows: Iterable[Row], processor: FastSLMProcessor, recipe: Recipe) -> None:
        for row in rows:
            if row.task != "transcribe" or row.windows != 1:
                raise RecipeError(
                    f"{row.source}: {row.id} is a row of {row.task} with {row.windows} windows, and whisper_decoder "
                    "learns from transcripts of one; set task: transcribe and data.max_seconds: 30."
                )

    def start(self, rows: Sequence[Row], batches: Iterable[RowBatch], fresh: set[str]) -> str | None:
        wanted = self.recipe.model.decoder
        assert wanted is not None
        if not wanted.start_windows or "reader.unfold." not in fresh:
            return None
        from fastslm.training.frame_start import start_from_frames

        frames: list[torch.Tensor] = []
        for batch in batches:
            frames.append(self.frames(Prepared(batch.to(self.model.device), {}, {}), masked=False))
            if sum(map(len, frames)) >= wanted.start_windows:
                break
        lost = start_from_frames(self.model.hfq_former, self.model.whisper_decoder.unfold, frames)
        return f"tokens and unfolder start by losing {lost:.1%} of the frames' variance"

    def prepare(self, batch: RowBatch) -> Prepared:
        """What the decoder is shown and what it is to write next, padded on the right.

        Labels cover the text and its end, not what it begins with, nor the padding.
        """
        decoder = self.model.whisper_decoder
        start, end = decoder.start, decoder.tokenizer.eos_token_id
        limit = decoder.decoder.config.max_target_positions - len(start)
        texts = [row.answer for row in batch.rows]
        answers = [decoder.tokenizer.encode(f" {text}", add_special_tokens=False) if text else [] for text in texts]
        answers = [[*answer, end][:limit] for answer in answers]
        longest = max(map(len, answers))
        shown = [[*start, *answer[:-1], *[end] * (longest - len(answer))] for answer in answers]
        skipped = [IGNORED] * (len(start) - 1)
        labels = [[*skipped, *answer, *[IGNORED] * (longest - len(answer))] for answer in answers]
        counts: dict[str, float] = {self.name: sum(map(len, answers))}
        if "frames" in self.weights:
            counts["frames"] = batch.windows
        if "ctc" in self.weights:
            counts["ctc"] = sum(spelt(row) is not None for row in batch.rows)
        return Prepared(batch, {"shown": torch.tensor(shown), "labels": torch.tensor(labels)}, counts)

    def forward(self, prepared: Prepared) -> dict[str, torch.Tensor]:
        inputs, batch, decoder = prepared.inputs, prepared.batch, self.model.whisper_decoder
        tokens = self.model.get_speech_tokens(encoder_frames=self.frames(prepared))
        unfolded = decoder.unfold(tokens)
        scores = decoder.scores(unfolded.to(decoder.decoder.dtype), inputs["shown"]).float()
        found = {
            self.name: F.cross_entropy(
                scores.flatten(0, 1), inputs["labels"].flatten(), ignore_index=IGNORED, reduction="sum"
            )
        }
        if "frames" in self.weights:
            there = frames_at_rate(self.frames(prepared, masked=False), unfolded.shape[1])
            off = (unfolded.float() - there).square().mean((1, 2))
            found["frames"] = (off / there.var((1, 2))).sum()
        if "ctc" in self.weights:
            reads_frames = self.model.config.ctc_reads == "frames"
            heard = self.model.letters_of(unfolded if reads_frames else tokens)
            found["ctc"] = letters_sum(heard, batch.rows, batch.windows_per_row)
        return found

    @torch.no_grad()
    def write(self, batch: RowBatch) -> list[str]:
        frames = batch.frames(self.model.encode)
        tokens = self.model.get_speech_tokens(encoder_frames=frames)
        return [ctc_text(read.text) for read in self.model.whisper_decoder.read(tokens, NEW_TOKENS)]
