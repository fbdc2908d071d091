"""Whisper's own decoder reads the speech tokens: an unfolder makes of 50 tokens what its cross-attention knows (ours).

    tokens [50, d] ─ unfolder ─ frames [600, d] ─┬─ Whisper's decoder (frozen) ─ text
                                                 └─ CTC head ─ letters and their times

The decoder was trained by others on 680,000 hours and stays frozen, so only how to fold and unfold has to be learnt,
for which hours of speech are enough where a language model needs thousands. It sees 50 tokens a window and nothing else
of the recording: what they have lost, it cannot read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, WhisperConfig, WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.modeling_whisper import WhisperDecoder

from fastslm.model.configuration import FastSLMConfig
from fastslm.model.ctc_head import ContextBlock
from fastslm.weights import resolve

# 20 a second: the decoder reads them as well as the encoder's 50 (docs/training.md).
FRAMES_PER_TOKEN = 12


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


class WhisperReader(nn.Module):
    """The unfolder, which is trained, and Whisper's decoder, which is frozen base weight."""

    def __init__(self, config: FastSLMConfig, decoder: WhisperDecoder | None = None):
        super().__init__()
        self.unfold = Unfolder(config)
        self.decoder: Any = decoder if decoder is not None else WhisperDecoder._from_config(config.audio_config)
        self.decoder.requires_grad_(False)
        self.base, self.language = config.reader_base, config.languages[0]

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
    def read(self, tokens: torch.Tensor, max_new_tokens: int, **options: Any) -> list[ReadText]:
        """The greedy text of each window; rows do not depend on each other.

        Args:
            tokens: (windows, 50, hidden), from the HFQ-Former.
            max_new_tokens: of the decoder's tokens, for one window.
            options: for `generate` of transformers.
        """
        frames = self.unfold(tokens.to(self.unfold.place.dtype)).to(self.decoder.dtype)
        limit = min(max_new_tokens, self.decoder.config.max_target_positions - len(self.start))
        start = torch.tensor([self.start], device=frames.device).expand(len(frames), -1)
        # Not Whisper's own `generate`, which cuts recordings and falls back by itself: a window is a window here.
        written = GenerationMixin.generate(
            self._whisper,
            decoder_input_ids=start,
            encoder_outputs=BaseModelOutput(last_hidden_state=frames),  # type: ignore[arg-type]
            # Of the frames, and it changes nothing: transformers warns where there is none.
            attention_mask=torch.ones(frames.shape[:2], dtype=torch.long, device=frames.device),
            do_sample=False,
            num_beams=1,
            max_new_tokens=limit,
            **options,
        )
        return [self._read(row) for row in written.tolist()]

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
    def _generation_config(self) -> Any:
        from transformers import GenerationConfig

        config: Any = GenerationConfig.from_pretrained(resolve(self.base))
        config.is_multilingual = getattr(config, "is_multilingual", False)
        return config

    @cached_property
    def _whisper(self) -> Any:
        """transformers' Whisper around our decoder, for its `generate`; its encoder is never asked."""
        small = WhisperConfig(**{**self.decoder.config.to_dict(), "encoder_layers": 0, "decoder_layers": 0})
        whisper: Any = WhisperForConditionalGeneration(small)
        # One parameter says on which device and in which dtype it all is.
        whisper.model.encoder = nn.ParameterList([self.decoder.embed_tokens.weight])
        whisper.model.decoder = self.decoder
        whisper.proj_out = _Tied(self.decoder.embed_tokens)
        whisper.config = self.decoder.config
        whisper.generation_config = self._generation_config
        # `read` always says how much may be written; two limits would make transformers warn.
        whisper.generation_config.max_length = None
        return whisper.eval()


class _Tied(nn.Module):
    """The decoder's output projection is its embedding."""

    def __init__(self, embedding: nn.Embedding):
        super().__init__()
        self.embedding = embedding

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden, self.embedding.weight)
