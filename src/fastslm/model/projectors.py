"""What was heard, folded into the places of the speech tokens as embeddings of the language model's own words (ours).

    tokens [50, d] ─┬─ projection ─────────────────────────────── [50, e] ─┐
                    └─ reader ─ text ─ the LLM's token ids ─ folded [50, e] ─┴─ what the language model reads

A language model of 135 million parameters, trained for minutes, does not learn to read a new kind of vector; its own
embeddings it reads already. A window's ids are shared out over its 50 places in their order, and those that share a
place are added, each weaker than the one before. A window with up to 50 ids is thus plain text; there are never more
places.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from fastslm.model.loops import RowsDone, repeated
from fastslm.model.whisper_reader import WhisperReader
from fastslm.weights import resolve

# Of each further id that shares a place, relative to the one before it.
FADING = 0.7
# Windows that are read together, and the reader's tokens for each: more than anybody says in 30 s.
READ_TOGETHER = 32
MOST_TOKENS = 220


def fold(ids: Sequence[int], places: int) -> list[list[int]]:
    """Share out ids over places, in their order; the first places take one more where they cannot all be alike."""
    return [part.tolist() for part in np.array_split(np.asarray(ids, dtype=np.int64), places)]


class HeardWords:
    """Speech tokens → the embeddings of the words in them. Holds no weight of its own.

    Args:
        reader: what reads the tokens.
        tokenizer_base: the base text model whose tokenizer cuts the words.
        places: tokens of a window.
    """

    def __init__(self, reader: WhisperReader, tokenizer_base: str, places: int):
        self.reader, self.base, self.places = reader, tokenizer_base, places

    @cached_property
    def tokenizer(self) -> Any:
        """The language model's own."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(resolve(self.base))

    def texts(self, tokens: torch.Tensor, spoken: Sequence[bool]) -> list[str]:
        """What the reader hears in each window, (windows, places, hidden), in which somebody speaks; else nothing.

        A text that falls into a loop ends there, without its copies.
        """
        rows = [row for row, speaks in enumerate(spoken) if speaks]
        groups = tokens[rows].split(READ_TOGETHER) if rows else ()
        heard = [text for group in groups for text in self._read(group)]
        found = [""] * len(tokens)
        for row, text in zip(rows, heard, strict=True):
            found[row] = text
        return found

    def _read(self, tokens: torch.Tensor) -> list[str]:
        done = RowsDone(len(self.reader.start), [MOST_TOKENS] * len(tokens), stop_at_loop=True)
        texts = []
        for read, length in zip(self.reader.read(tokens, MOST_TOKENS, done), done.lengths, strict=True):
            again = repeated(read.ids[:length])
            loops = bool(again.any())
            kept = [token for token, copy in zip(read.ids[:length], again, strict=True) if not copy]
            texts.append(self.reader.text_of(kept) if loops else read.text)
        return texts

    @torch.no_grad()
    def embed(self, texts: Sequence[str], embedding: nn.Module) -> torch.Tensor:
        """(len(texts), places, text hidden) in the embedding's dtype; a place without words is zero."""
        weight: Any = embedding.weight
        found = torch.zeros(len(texts), self.places, weight.shape[1], dtype=weight.dtype, device=weight.device)
        for window, text in enumerate(texts):
            ids = self.tokenizer.encode(text, add_special_tokens=False)
            for place, own in enumerate(fold(ids, self.places)):
                for order, token in enumerate(own):
                    found[window, place] += FADING**order * weight[token]
        return found
