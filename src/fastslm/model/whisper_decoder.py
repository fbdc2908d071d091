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
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache, LogitsProcessor, StoppingCriteria
from transformers.models.whisper.modeling_whisper import WhisperDecoder

from fastslm.errors import CheckpointError, OptionError
from fastslm.model.adapters import adapted_parts, weights_seen
from fastslm.model.configuration import FastSLMConfig, HFQFormerConfig
from fastslm.model.ctc_head import ContextBlock
from fastslm.model.fast_decoder import FastDecoder
from fastslm.model.lora import add_decoder_lora, merge_lora
from fastslm.model.products import Kernels
from fastslm.weights import resolve

# 20 a second: the decoder reads them as well as the encoder's 50 (docs/LOG.md).
FRAMES_PER_TOKEN = 12
# Of a checkpoint that stands alone: its folder for the decoder's tokenizer and the tokens that it may write.
DECODER_FILES = "whisper_decoder"
# Rows that have ended leave the batch once no more than this part of it goes on.
STAYING = 0.75


class Unfolder(nn.Module):
    """Speech tokens → frames as Whisper's encoder would have written them.

    Each token becomes 12 frames by one linear map; each place of a window has a frame of its own added, without which
    the decoder loses its way along the recording; blocks of context mend what the map could not know. The blocks start
    as the identity, so that the map can start as a least-squares fit (`fastslm.training.frame_start`).
    """

    def __init__(self, hfq: HFQFormerConfig, layers: int, dropout: float = 0.0):
        super().__init__()
        self.spread = nn.Linear(hfq.hidden_size, FRAMES_PER_TOKEN * hfq.hidden_size)
        self.place = nn.Parameter(torch.zeros(hfq.final_tokens * FRAMES_PER_TOKEN, hfq.hidden_size))
        self.context = nn.ModuleList(ContextBlock(hfq.hidden_size, dropout) for _ in range(layers))

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


@dataclass(frozen=True)
class PreviousText:
    """What the decoder is told before a text begins.

    ids: its tokens, from `<|startofprev|>` on; empty where nothing is told. prompt, hotwords: how many tokens of each
    were given. prompt_left_out, hotwords_left_out: how many of those found no room.
    """

    ids: tuple[int, ...] = ()
    prompt: int = 0
    hotwords: int = 0
    prompt_left_out: int = 0
    hotwords_left_out: int = 0


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

    def __init__(self, decoder: "UnfoldingDecoder", frames: torch.Tensor):
        self.decoder = decoder
        self.frames = frames.to(decoder.reading.dtype)
        self.cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

    def scores(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.decoder.reading(
            input_ids=ids, encoder_hidden_states=self.frames, past_key_values=self.cache, use_cache=True
        ).last_hidden_state
        return self.decoder.next_scores(hidden[:, -1])

    def keep(self, rows: torch.Tensor) -> None:
        self.frames = self.frames[rows]
        self.cache.batch_select_indices(rows)  # type: ignore[arg-type]


class UnfoldingDecoder(nn.Module):
    """The unfolder, which is trained, and Whisper's decoder, which is frozen base weight with or without LoRA.

    Attributes:
        files: where the decoder's tokenizer and generation settings are, as arguments of transformers' loading; by
            default with the base weights.
    """

    def __init__(self, config: FastSLMConfig, decoder: WhisperDecoder | None = None):
        super().__init__()
        self.unfold = Unfolder(config.hfq_config, config.unfolder_layers)
        self.decoder: Any = decoder if decoder is not None else WhisperDecoder._from_config(config.audio_config)
        self.decoder.requires_grad_(False)
        add_decoder_lora(self.decoder, config)
        self.base, self.language = config.base_decoder, config.capabilities.languages[0]
        self.files: tuple[str, dict[str, Any]] | None = None
        self.is_merged = False
        # Not a module of this one: it is neither saved nor counted.
        self._fast: list[Any] = []
        self._products: FastDecoder | None = None
        self._copied: tuple[object, ...] = ()  # what was seen of the weights that it is a copy of

    def read_in(self, dtype: torch.dtype, kernels: Kernels = "torch") -> None:
        """Read with a copy of the decoder in another dtype from now on; what is trained and saved stays as it is.

        Args:
            kernels: `products` computes in bfloat16, and the scores in int8 (`fastslm.model.fast_decoder`).
        """
        self._copied = weights_seen(self.decoder)
        # An adapter on top computes in layers of its own.
        if kernels == "products" and not any(adapted_parts(self.decoder)):
            self._fast, self._products = [], FastDecoder(self.decoder)
        else:
            self._fast, self._products = [deepcopy(self.decoder).to(dtype)], None

    def _follow_weights(self) -> None:
        """Copy the decoder anew where it is another than before: trained, merged, or with an adapter."""
        if (self._fast or self._products) and self._copied != weights_seen(self.decoder):
            dtype = self._fast[0].dtype if self._fast else torch.bfloat16
            self.read_in(dtype, "products" if self._products else "torch")

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
        self._follow_weights()
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
        previous: Sequence[int] = (),
    ) -> list[ReadText]:
        """The greedy text of each window; rows do not depend on each other. As `generate` of transformers, but faster.

        What it does anew for each token is done once here, and rows that have ended leave the batch.

        Args:
            frames: (windows, frames, hidden), from `unfold`.
            max_new_tokens: of the decoder's tokens, for one window.
            done: asked after each token which rows end; of all rows, those that have ended filled up with the end
                token.
            processors: change the scores of the next token.
            previous: tokens before the start of each text, from `previous_text`. Neither `done` nor `processors` see
                them, and no text holds them.
        """
        skipped = len(previous)
        device, begin = frames.device, skipped + len(self.start)
        length = begin + min(max_new_tokens, self.decoder.config.max_target_positions - begin)
        end = self.tokenizer.eos_token_id
        ids = torch.full((len(frames), length), end, device=device)
        ids[:, :begin] = torch.tensor([*previous, *self.start], device=device)
        never, not_first = (torch.tensor(own, dtype=torch.long, device=device) for own in self._suppressed)
        writing: Writing = _PlainWriting(self, frames) if self._products is None else self._products.begin(frames)
        ended = torch.zeros(len(ids), dtype=torch.bool, device=device)
        rows = torch.arange(len(ids), device=device)  # those in the batch
        told = 0  # how many of the ids the decoder has seen
        for at in range(begin, length):
            scores = writing.scores(ids[rows, told:at])
            told = at
            for process in processors:
                scores = process(ids[rows, skipped:at], scores.float())  # type: ignore[arg-type]
            scores[:, never] = float("-inf")
            if at == begin:
                scores[:, not_first] = float("-inf")
            # `max` finds it several times as fast as `argmax` does on a CPU.
            ids[rows, at] = torch.where(ended[rows], end, scores.max(-1).indices)
            ended |= ids[:, at] == end
            if done is not None:
                ended |= done(ids[:, skipped : at + 1], scores)  # type: ignore[arg-type]
            going = (~ended[rows]).nonzero()[:, 0]
            if not len(going):
                break
            # Taking rows out copies what is kept of all others.
            if len(going) <= len(rows) * STAYING:
                rows = rows[going]
                writing.keep(going)
        return [self._read(row) for row in ids[:, skipped : at + 1].tolist()]

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

    def previous_text(self, prompt: str | None = None, hotwords: str | None = None) -> PreviousText:
        """What the decoder is told before a text: `<|startofprev|>`, the hotwords, then the prompt.

        The prompt is openai/whisper's `initial_prompt`, the hotwords are faster-whisper's. As there, each is encoded
        after a space, and half the positions but one have room for them: for the first of the hotwords and, in what
        these leave, for the last of the prompt.

        Raises:
            OptionError: the decoder's vocabulary has no `<|startofprev|>`.
        """
        begin = self.tokenizer.convert_tokens_to_ids("<|startofprev|>")
        if begin in (None, self.tokenizer.unk_token_id):
            raise OptionError(
                "This model's decoder has no token <|startofprev|>, which a prompt or hotwords need: leave them out."
            )
        words, text = self._told(hotwords), self._told(prompt)
        room = self.decoder.config.max_target_positions // 2 - 1
        kept_words = words[:room]
        kept_text = text[max(0, len(text) - (room - len(kept_words))) :]
        kept = [*kept_words, *kept_text]
        return PreviousText(
            (begin, *kept) if kept else (),
            len(text),
            len(words),
            len(text) - len(kept_text),
            len(words) - len(kept_words),
        )

    def _told(self, text: str | None) -> list[int]:
        bare = (text or "").strip()
        return self.tokenizer(f" {bare}", add_special_tokens=False)["input_ids"] if bare else []

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of tokens that it wrote."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    @cached_property
    def tokenizer(self) -> Any:
        """Whisper's own."""
        from transformers import AutoTokenizer

        return self._beside_weights(AutoTokenizer)

    def _beside_weights(self, kind: Any) -> Any:
        """A tokenizer, or whatever `kind` is, of the base weights or of a checkpoint that stands alone."""
        if self.files is None and self.base is not None:
            return kind.from_pretrained(resolve(self.base))
        name, where = self.files or (DECODER_FILES, {})
        try:
            return kind.from_pretrained(name, **where)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{name} has no tokenizer or settings of Whisper's decoder ({type(error).__name__}): use a folder that "
                "save_pretrained wrote, as a whole."
            ) from error

    def save_files(self, folder: Path) -> None:
        """Write what the decoder needs beside its weights; nothing where it has none itself."""
        if self.files is not None or self.base is not None:
            self.tokenizer.save_pretrained(folder / DECODER_FILES)
            self._generation_config.save_pretrained(folder / DECODER_FILES)

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

        config: Any = self._beside_weights(GenerationConfig)
        config.is_multilingual = getattr(config, "is_multilingual", False)
        return config
