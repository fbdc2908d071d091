"""Characters in time: Whisper's own forced alignment of a window's known text, from the cached encoder features.

Only the alignment warm-up needs it, and only it needs CTranslate2 (the extra `align`).
"""

import importlib.util
import json
import os
from typing import TYPE_CHECKING

import numpy as np
import torch

from fastslm import weights
from fastslm.errors import TrainingError
from fastslm.model.ctc_head import BLANK, ctc_ids, ctc_text
from fastslm.training.disk import writing
from fastslm.training.recipe import Recipe

if TYPE_CHECKING:
    from fastslm.training.feature_cache import WindowLabel
    from fastslm.training.objectives import Batch


class AlignedCharacters:
    """Forced alignments of windows, made when a window is first met and kept in the run's folder.

    They are kept by the window's name: the same text lies elsewhere in another packing.

    Raises:
        TrainingError: CTranslate2 is not installed.
    """

    def __init__(self, recipe: Recipe):
        self.file = recipe.out / "alignments.jsonl"
        self.words: dict[str, list[tuple[str, int, int]]] = {}
        if self.file.exists():
            # A kill may have torn the last line; that window is aligned again.
            whole = self.file.read_bytes().rpartition(b"\n")[0]
            rows = [json.loads(line) for line in whole.splitlines()]
            self.words = {row["window"]: row["words"] for row in rows if "window" in row}
            partial = self.file.with_suffix(".partial")
            with writing(self.file, "the alignments"):
                partial.write_text("".join(_line(window, words) for window, words in self.words.items()))
                os.replace(partial, self.file)
        self._encoder_name = recipe.model.encoder
        self._aligner: _Aligner | None = None

    def classes(self, batch: "Batch", steps: int) -> torch.Tensor:
        """The character of every step of every window, blank where nothing is said. (windows, steps) of int64"""
        rows = []
        for frames, label, shift in zip(batch.frames, batch.labels, batch.shifts, strict=True):
            if label.name not in self.words:
                self.words[label.name] = self._align(frames.roll(-shift, 0), label)
            row = np.full(steps, BLANK)
            scale = steps / len(frames)
            for word, start, end in self.words[label.name]:
                ids = np.array(ctc_ids(word))
                first, last = round(start * scale), max(round(end * scale), round(start * scale) + len(ids))
                places = np.minimum(np.arange(first, last), steps - 1)
                row[places] = ids[np.arange(len(places)) * len(ids) // len(places)]
            rows.append(torch.from_numpy(row).roll(round(shift * scale)))
        return torch.stack(rows)

    def _align(self, frames: torch.Tensor, label: "WindowLabel") -> list[tuple[str, int, int]]:
        text = ctc_text(label.text)
        if not text:
            return []
        if self._aligner is None:
            self._aligner = _Aligner(self._encoder_name)
        words = self._aligner.words(frames, text)
        with writing(self.file, "the alignments"):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as out:
                out.write(_line(label.name, words))
        return words


def _line(window: str, words: list[tuple[str, int, int]]) -> str:
    return json.dumps({"window": window, "words": words}) + "\n"


def require_aligner() -> None:
    """Make sure that CTranslate2 is installed.

    Raises:
        TrainingError: it is not.
    """
    if importlib.util.find_spec("ctranslate2") is None:
        raise TrainingError(
            "The alignment objective needs CTranslate2; install the extra: pip install 'fastslm[align]'."
        )


class _Aligner:
    """CTranslate2's Whisper, used for its alignment alone."""

    def __init__(self, name: str):
        require_aligner()
        import ctranslate2
        from transformers import AutoTokenizer

        self._storage = ctranslate2.StorageView
        folder = weights.original(name)
        self._whisper = ctranslate2.models.Whisper(str(folder), compute_type="float32", intra_threads=1)
        self._tokenizer = AutoTokenizer.from_pretrained(weights.resolve(name))
        self._start = self._tokenizer.convert_tokens_to_ids(["<|startoftranscript|>"])

    def words(self, frames: torch.Tensor, text: str) -> list[tuple[str, int, int]]:
        """Each word with its first and last encoder frame. frames (1500, hidden)"""
        spelled = [" " + word for word in text.split()]
        pieces = [self._tokenizer.encode(word, add_special_tokens=False) for word in spelled]
        tokens = [token for piece in pieces for token in piece]
        features = self._storage.from_array(frames.float().cpu().numpy()[None])
        aligned = self._whisper.align(features, self._start, [tokens], [len(frames) * 2])[0]
        first: dict[int, int] = {}
        for token, frame in aligned.alignments:
            first.setdefault(token, frame)
        found: list[tuple[str, int, int]] = []
        at = 0
        for word, piece in zip(spelled, pieces, strict=True):
            start = first.get(at, found[-1][2] if found else 0)
            at += len(piece)
            end = first.get(at, min(start + 6 * len(word), len(frames)))
            # A word's last token reaches to the next word's first; a long pause is not part of it.
            found.append((word.strip(), start, min(end, start + 8 * len(word))))
        return found
