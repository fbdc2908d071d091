"""Whisper's own decoder reads the speech tokens: an unfolder makes of 50 tokens what its cross-attention knows (ours).

    tokens [50, d] ─ unfolder ─ frames [600, d] ─┬─ Whisper's decoder (frozen) ─ text
                                                 └─ CTC head ─ letters and their times

The decoder was trained by others on 680,000 hours and its weights stay frozen, so only how to fold and unfold has to be
learnt, and with LoRA how to read frames that are not quite the encoder's, for which hours of speech are enough where a
language model needs thousands. It sees 50 tokens a window and nothing else of the recording: what they have lost, it
cannot read.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache, LogitsProcessor, StoppingCriteria
from transformers.models.whisper.modeling_whisper import WhisperDecoder

from fastslm.model.configuration import FastSLMConfig
from fastslm.model.ctc_head import ContextBlock
from fastslm.model.fast_decoder import FastDecoder
from fastslm.model.lora import add_reader_lora, merge_lora
from fastslm.model.products import Kernels
from fastslm.weights import resolve

# 20 a second: the decoder reads them as well as the encoder's 50 (docs/training.md).
FRAMES_PER_TOKEN = 12
# Rows that have ended leave the batch once no more than this part of it goes on.
STAYING = 0.75


class Unfolder(nn.Module):
    """Speech tokens → frames as Whisper's encoder would have written them.

    Each token becomes 12 frames by one linear map; each place of a window has a frame of its own added, without which
    the decoder loses its way along the recording; blocks of context mend what the map could not know. The blocks start
    as the identity, so that the map can start as a least-squares fit (`fastslm.training.frame_start`).
    """

    def __init__(self, config: FastSLMConfig, dropout: float = 0.0):
        super().__init__()
        hfq = config.hfq_config
        self.spread = nn.Linear(hfq.hidden_size, FRAMES_PER_TOKEN * hfq.hidden_size)
        self.place = nn.Parameter(torch.zeros(hfq.final_tokens * FRAMES_PER_TOKEN, hfq.hidden_size))
        self.context = nn.ModuleList(ContextBlock(hfq.hidden_size, dropout) for _ in range(config.reader_layers))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(windows, tokens, hidden) → (windows, tokens · 12, hidden)"""
        frames = self.spread(tokens).unflatten(-1, (FRAMES_PER_TOKEN, -1)).flatten(1, 2) + self.place
        for block in self.context:
            frames = block(frames)
        return frames


def frames_at_rate(frames: torch.Tensor, count: int) -> torch.Tensor:
    """The encoder's frames, (windows, 1500, hidden), read off between them at `count` evenly spaced times, float32."""
    return F.interpolate(frames.float().transpose(1, 2), count, mode="linear").transpose(1, 2)


@dataclass(frozen=True)
class ReadText:
    """What the decoder wrote for one window.

    ids: its tokens, the end token not among them. complete: it came to its own end.
    """

    text: str
    ids: tuple[int, ...]
    complete: bool


class Writing(Protocol):
    """Texts in the making, one row for each window."""

    def scores(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits of the next token after these: (rows, tokens that it has not seen) → (rows, vocabulary)."""
        ...

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with some rows alone, (rows that stay,) of indices."""
        ...


class _PlainWriting:
    """With transformers' decoder and cache."""

    def __init__(self, reader: "WhisperReader", frames: torch.Tensor):
        self.reader = reader
        self.frames = frames.to(reader.reading.dtype)
        self.cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

    def scores(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.reader.reading(
            input_ids=ids, encoder_hidden_states=self.frames, past_key_values=self.cache, use_cache=True
        ).last_hidden_state
        return self.reader.next_scores(hidden[:, -1])

    def keep(self, rows: torch.Tensor) -> None:
        self.frames = self.frames[rows]
        self.cache.batch_select_indices(rows)  # type: ignore[arg-type]


class WhisperReader(nn.Module):
    """The unfolder, which is trained, and Whisper's decoder, which is frozen base weight with or without LoRA."""

    def __init__(self, config: FastSLMConfig, decoder: WhisperDecoder | None = None):
        super().__init__()
        self.unfold = Unfolder(config)
        self.decoder: Any = decoder if decoder is not None else WhisperDecoder._from_config(config.audio_config)
        self.decoder.requires_grad_(False)
        add_reader_lora(self.decoder, config, on_meta=self.unfold.place.is_meta)
        self.base, self.language = config.reader_base or "", config.languages[0]
        self.is_merged = False
        # Not a module of this one: it is neither saved nor counted.
        self._fast: list[Any] = []
        self._products: FastDecoder | None = None

    def read_in(self, dtype: torch.dtype, kernels: Kernels = "torch") -> None:
        """Read with a copy of the decoder in another dtype from now on; what is trained and saved stays as it is.

        Args:
            kernels: `products` computes in bfloat16, and the scores in int8 (`fastslm.model.fast_decoder`).
        """
        if kernels == "products":
            self._fast, self._products = [], FastDecoder(self.decoder)
        else:
            self._fast, self._products = [deepcopy(self.decoder).to(dtype)], None

    @property
    def computes_in(self) -> str:
        """What texts are read in: a dtype, and what is computed in another."""
        return "bfloat16, scores int8" if self._products else str(self.reading.dtype).removeprefix("torch.")

    @property
    def reading(self) -> Any:
        """The decoder that texts are read with, unless it is with the kernels `products`."""
        return self._fast[0] if self._fast else self.decoder

    def merge_lora(self) -> None:
        """Add LoRA into the decoder's weights, in place."""
        merge_lora(self.decoder)
        self.is_merged = True

    def scores(self, frames: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Logits of each next text token, teacher-forced.

        Args:
            frames: (windows, frames, hidden), from `unfold`. ids: (windows, length) of the decoder's own tokens.

        Returns:
            (windows, length, vocabulary)
        """
        hidden = self.decoder(input_ids=ids, encoder_hidden_states=frames, use_cache=False).last_hidden_state
        return F.linear(hidden, self.decoder.embed_tokens.weight)

    @torch.no_grad()
    def read(self, tokens: torch.Tensor, max_new_tokens: int, done: StoppingCriteria | None = None) -> list[ReadText]:
        """The greedy text of each window, (windows, 50, hidden) from the HFQ-Former; see `read_frames`."""
        return self.read_frames(self.unfolded(tokens), max_new_tokens, done)

    def unfolded(self, tokens: torch.Tensor) -> torch.Tensor:
        """What the decoder and the CTC head read: (windows, 50, hidden) → (windows, frames, hidden).

        The unfolder's weights are float32 in every model; where the decoder reads in bfloat16, they multiply in it.
        """
        place = self.unfold.place
        half = self._products is not None or self.reading.dtype is torch.bfloat16
        with torch.autocast(place.device.type, torch.bfloat16) if half else nullcontext():
            return self.unfold(tokens.to(place))

    @torch.no_grad()
    def read_frames(
        self,
        frames: torch.Tensor,
        max_new_tokens: int,
        done: StoppingCriteria | None = None,
        processors: Sequence[LogitsProcessor] = (),
    ) -> list[ReadText]:
        """The greedy text of each window; rows do not depend on each other. As `generate` of transformers, but faster.

        What it does anew for each token is done once here, and rows that have ended leave the batch.

        Args:
            frames: (windows, frames, hidden), from `unfold`.
            max_new_tokens: of the decoder's tokens, for one window.
            done: asked after each token which rows end; of all rows, those that have ended filled up with the end
                token.
            processors: change the scores of the next token.
        """
        device, begin = frames.device, len(self.start)
        length = begin + min(max_new_tokens, self.decoder.config.max_target_positions - begin)
        end = self.tokenizer.eos_token_id
        ids = torch.full((len(frames), length), end, device=device)
        ids[:, :begin] = torch.tensor(self.start, device=device)
        never, not_first = (torch.tensor(own, dtype=torch.long, device=device) for own in self._suppressed)
        writing: Writing = _PlainWriting(self, frames) if self._products is None else self._products.begin(frames)
        ended = torch.zeros(len(ids), dtype=torch.bool, device=device)
        rows = torch.arange(len(ids), device=device)  # those in the batch
        told = 0  # how many of the ids the decoder has seen
        for at in range(begin, length):
            scores = writing.scores(ids[rows, told:at])
            told = at
            for process in processors:
                scores = process(ids[rows, :at], scores.float())  # type: ignore[arg-type]
            scores[:, never] = float("-inf")
            if at == begin:
                scores[:, not_first] = float("-inf")
            # `max` finds it several times as fast as `argmax` does on a CPU.
            ids[rows, at] = torch.where(ended[rows], end, scores.max(-1).indices)
            ended |= ids[:, at] == end
            if done is not None:
                ended |= done(ids[:, : at + 1], scores)  # type: ignore[arg-type]
            going = (~ended[rows]).nonzero()[:, 0]
            if not len(going):
                break
            # Taking rows out copies what is kept of all others.
            if len(going) <= len(rows) * STAYING:
                rows = rows[going]
                writing.keep(going)
        return [self._read(row) for row in ids[:, : at + 1].tolist()]

    def next_scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of the next token: (rows, hidden) → (rows, vocabulary); the output projection is the embedding."""
        weight = self.reading.embed_tokens.weight
        if hidden.device.type == "cpu" and hidden.dtype is torch.bfloat16:
            # The same product, for which oneDNN takes half the time of `linear`.
            return (weight @ hidden.T).T.contiguous()
        return F.linear(hidden, weight)

    def _read(self, ids: list[int]) -> ReadText:
        end = self.tokenizer.eos_token_id
        own = ids[len(self.start) :]
        complete = end in own
        own = own[: own.index(end)] if complete else own
        return ReadText(self.text_of(own), tuple(own), complete)

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of tokens that it wrote."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    @cached_property
    def tokenizer(self) -> Any:
        """Whisper's own."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(resolve(self.base))

    @cached_property
    def start(self) -> list[int]:
        """What the decoder's text begins with: no timestamps, and of a multilingual one the language and the task."""
        told = [f"<|{self.language}|>", "<|transcribe|>"] if self._generation_config.is_multilingual else []
        return self.tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", *told, "<|notimestamps|>"])

    @cached_property
    def _suppressed(self) -> tuple[list[int], list[int]]:
        """Tokens that are never written, and those that no text begins with."""
        return (self._generation_config.suppress_tokens or []), (self._generation_config.begin_suppress_tokens or [])

    @cached_property
    def _generation_config(self) -> Any:
        from transformers import GenerationConfig

        config: Any = GenerationConfig.from_pretrained(resolve(self.base))
        config.is_multilingual = getattr(config, "is_multilingual", False)
        return config
