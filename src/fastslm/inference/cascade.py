"""The cascade: the language model answers from what Whisper's decoder writes of the tokens. A baseline, by its name.

    tokens [50, d] ─┬─ projector ──────────────────────────────────────────── [50, e] ─┐
                    └─ Whisper's decoder ─ text ─ the LLM's token ids ─ folded [50, e] ─┴─ what the language model reads

It takes the place of the projector outside of the model's `forward`, where a checkpoint says that it was taught so
(`capabilities.via: transcript`). Results say so: "llm, words heard by whisper".
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fastslm.errors import OptionError
from fastslm.model.ctc_head import BLANK, SPACE
from fastslm.model.loops import RowsDone, repeated
from fastslm.model.modeling import SPEECH_INPUTS, WINDOWS_AT_ONCE, FastSLMForConditionalGeneration
from fastslm.model.processing import FastSLMProcessor
from fastslm.model.projectors import folded
from fastslm.prompts import CONTROL_TOKEN

# Windows that are written down together, and the decoder's tokens for each: more than anybody says in 30 s.
WRITTEN_TOGETHER = 32
MOST_TOKENS = 220


def is_cascade(model: FastSLMForConditionalGeneration) -> bool:
    """Whether a model's answers come by way of a transcript."""
    return model.config.capabilities.via == "transcript"


def speech_embeddings(
    model: FastSLMForConditionalGeneration, processor: FastSLMProcessor, tokens: torch.Tensor
) -> torch.Tensor:
    """What the language model answers from, by the way that the checkpoint was taught.

    Args:
        tokens: (…, 50, hidden), from the HFQ-Former.

    Returns:
        (…, 50, text hidden), for `speech_tokens` of `forward` and `generate`.
    """
    if is_cascade(model):
        return Cascade(model, processor).embeddings(tokens)
    return model.project(tokens)


def inputs_of(
    model: FastSLMForConditionalGeneration, processor: FastSLMProcessor, batch: Mapping[str, Any]
) -> dict[str, Any]:
    """A processor's batch as `generate` takes it, with the recordings heard by the way of the checkpoint.

    model.generate(**inputs_of(model, processor, batch), max_new_tokens=64)
    """
    speech = {name: batch[name].to(model.device) for name in SPEECH_INPUTS[:2] if batch.get(name) is not None}
    others = {name: value for name, value in batch.items() if name not in speech}
    if not speech:
        return others
    with torch.no_grad():
        tokens = model.get_speech_tokens(**speech)
        return {**others, "speech_tokens": speech_embeddings(model, processor, tokens).flatten(0, 1)}


class Cascade:
    """Speech tokens → the embeddings of the words in them. Holds no weight of its own.

    Raises:
        OptionError: the model has no decoder of Whisper's.
    """

    def __init__(self, model: FastSLMForConditionalGeneration, processor: FastSLMProcessor):
        if model.whisper_decoder is None:
            raise OptionError(
                "The cascade needs Whisper's decoder, which this model has not: answer by way of speech, or load a "
                "model with a whisper_decoder."
            )
        self.model, self.decoder = model, model.whisper_decoder
        self.tokenizer: Any = processor.tokenizer
        self.places = model.config.tokens_per_window

    def embeddings(self, tokens: torch.Tensor) -> torch.Tensor:
        """(…, 50, hidden) → (…, 50, text hidden): what the projector makes of the tokens, and the words added.

        A window in which the CTC head hears no letter gets no words: the decoder could only invent some.
        """
        projected = self.model.project(tokens)
        windows = tokens.reshape(-1, *tokens.shape[-2:])
        words = self.embed(self.texts(windows, self._with_letters(windows)))
        return projected + words.view(projected.shape).to(projected)

    def texts(self, tokens: torch.Tensor, spoken: Sequence[bool]) -> list[str]:
        """What is said in each window, (windows, 50, hidden), in which somebody speaks; else nothing.

        A text that falls into a loop ends there, without its copies.
        """
        rows = [row for row, speaks in enumerate(spoken) if speaks]
        groups = tokens[rows].split(WRITTEN_TOGETHER) if rows else ()
        written = [text for group in groups for text in self._write(group)]
        found = [""] * len(tokens)
        for row, text in zip(rows, written, strict=True):
            found[row] = text
        return found

    def embed(self, texts: Sequence[str]) -> torch.Tensor:
        """(len(texts), 50, text hidden) in the embedding's dtype; a place without words is zero."""
        ids = [self.tokenizer.encode(CONTROL_TOKEN.sub("", text), add_special_tokens=False) for text in texts]
        return folded(ids, self.model.get_input_embeddings(), self.places)

    def _with_letters(self, tokens: torch.Tensor) -> list[bool]:
        if self.model.ctc_head is None:
            return [True] * len(tokens)
        heard: list[bool] = []
        for group in tokens.split(WINDOWS_AT_ONCE):
            classes = self.model.letters(group).argmax(-1)
            heard += ((classes != BLANK) & (classes != SPACE)).any(1).tolist()
        return heard

    def _write(self, tokens: torch.Tensor) -> list[str]:
        done = RowsDone(len(self.decoder.start), [MOST_TOKENS] * len(tokens), stop_at_loop=True)
        texts = []
        for read, length in zip(self.decoder.read(tokens, MOST_TOKENS, done), done.lengths, strict=True):
            again = repeated(read.ids[:length])
            loops = bool(again.any())
            kept = [token for token, copy in zip(read.ids[:length], again, strict=True) if not copy]
            texts.append(self.decoder.text_of(kept) if loops else read.text)
        return texts
