"""What a phase has learnt: words and characters wrong of validation clips that stand alone in a window."""

import jiwer
import torch

from fastslm.model.ctc_head import ctc_loss, ctc_text, greedy_text
from fastslm.training.feature_cache import CachedWindows
from fastslm.training.objectives import Judge, Objective, Writer

VALIDATION_BATCH = 10


@torch.no_grad()
def validate(
    objective: Objective, windows: CachedWindows, device: torch.device, dtype: torch.dtype
) -> dict[str, float]:
    """Greedy characters of every window against its text, and what the objective measures of itself.

    Args:
        objective: its modules in evaluation mode.
        dtype: of the frames; bfloat16 computes under autocast.

    Returns:
        `loss`, `wer` and `cer` of the CTC head; `written_wer` of an objective that writes; figures of one that judges.
    """
    texts, losses, written = [], [], []
    references = [ctc_text(label.text) for label in windows.labels]
    for first in range(0, len(windows), VALIDATION_BATCH):
        chosen = range(first, min(first + VALIDATION_BATCH, len(windows)))
        frames = windows.frames(list(chosen)).to(device, dtype)
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            log_probs = objective.log_probs(frames)
            if isinstance(objective, Writer) and first < objective.validation_clips:
                written += objective.transcripts(frames)
        texts += greedy_text(log_probs.cpu())
        losses.append(float(ctc_loss(log_probs, [references[i] for i in chosen])) * len(chosen))
    judged = objective.judge() if isinstance(objective, Judge) else {}
    wer, cer = jiwer.wer(references, texts), jiwer.cer(references, texts)
    numbers = {"loss": round(sum(losses) / len(windows), 5), "wer": round(wer, 5), "cer": round(cer, 5)}
    if written:
        numbers["written_wer"] = round(jiwer.wer(references[: len(written)], written), 5)
    return numbers | judged


def sentences(objective: Objective, numbers: dict[str, float], clips: int) -> list[str]:
    """What a person is told of the figures of `validate`, a line each."""
    said = []
    if isinstance(objective, Writer) and "written_wer" in numbers:
        said.append(f"words wrong as {objective.writer} writes: {numbers['written_wer']:.1%}")
    judged = [name for name in numbers if name not in ("loss", "wer", "cer", "written_wer")]
    for name in judged:
        figure = f"{numbers[name]:.3f}" if name.endswith("loss") else f"{numbers[name]:.1%}"
        said.append(f"{name.replace('_', ' ')}: {figure}")
    return [
        *said,
        f"validation of {clips} clips: loss {numbers['loss']:.3f}, words wrong {numbers['wer']:.1%}, "
        f"characters wrong {numbers['cer']:.1%}",
    ]
