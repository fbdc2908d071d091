"""The projector: 50 tokens of a window → 50 embeddings that the language model reads.

    linear           Linear(d, e), as published
    ctc_embeddings   tokens ─ front ─ blocks ─ CTC over the language model's own tokens ─ their embeddings (ours)

A small language model that was trained for hours does not learn to read a new kind of vector; its own embeddings it
reads already. So `ctc_embeddings` learns to hear, in one parallel pass, and gives the language model words as its own
embeddings, in the order that they are said in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fastslm.model.configuration import FastSLMConfig
from fastslm.model.ctc_head import BLANK, FrameCTCHead
from fastslm.model.whisper_decoder import Unfolder

# Of each further embedding that shares a place, relative to the one before it.
FADING = 0.7


def build_projector(config: FastSLMConfig) -> "nn.Linear | CTCEmbeddings":
    """The projector of a configuration.

    Raises:
        ValueError: a `projector_config` that does not describe it.
    """
    if config.projector == "linear":
        return nn.Linear(config.hfq_config.hidden_size, config.text_hidden_size)
    return CTCEmbeddings(config)


@dataclass(frozen=True)
class CTCEmbeddingsSizes:
    """`projector_config` of `ctc_embeddings`.

    Attributes:
        kinds: tokens of the language model that can be heard; the checkpoint holds which they are.
        hidden_size, layers, heads, kernel, expansion, dropout: of the blocks.
        intermediate: blocks after which training hears a first time (intermediate CTC).
        unfolder_layers, front_size, front_layers: of the front, an unfolder and what hears in its frames; a front that
            was trained on letters has the sizes of `unfolder_layers`, `ctc_hidden_size` and `ctc_layers`.
    """

    kinds: int
    hidden_size: int = 384
    layers: int = 4
    heads: int = 6
    kernel: int = 9
    expansion: int = 3
    dropout: float = 0.1
    intermediate: int = 2
    unfolder_layers: int = 3
    front_size: int = 256
    front_layers: int = 2

    @classmethod
    def of(cls, given: Mapping[str, Any] | None) -> "CTCEmbeddingsSizes":
        """From the mapping of a configuration.

        Raises:
            ValueError: a key is unknown or missing, or a size cannot be.
        """
        given, known = given or {}, [field.name for field in fields(cls)]
        for key in (key for key in given if key not in known):
            near = get_close_matches(key, known, n=1)
            hint = f", did you mean {near[0]!r}" if near else ""
            raise ValueError(f"projector_config has {key!r}{hint}; {', '.join(known)} are allowed.")
        if "kinds" not in given:
            raise ValueError("projector_config lacks kinds: give the number of tokens that can be heard.")
        sizes = cls(**given)
        if sizes.hidden_size % sizes.heads or sizes.kernel % 2 == 0 or not 0 < sizes.intermediate <= sizes.layers:
            raise ValueError(
                f"projector_config: hidden_size {sizes.hidden_size} must be a multiple of heads {sizes.heads}, kernel "
                f"{sizes.kernel} odd, and intermediate {sizes.intermediate} one of the {sizes.layers} layers."
            )
        return sizes


class ConformerBlock(nn.Module):
    """Self-attention, a gated depthwise convolution, a perceptron; pre-norm, residual. It starts as the identity."""

    def __init__(self, sizes: CTCEmbeddingsSizes):
        super().__init__()
        width, kernel = sizes.hidden_size, sizes.kernel
        self.heads, self.dropout = sizes.heads, sizes.dropout
        self.norm1, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2, self.glu = nn.LayerNorm(width), nn.Linear(width, 2 * width)
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.point = nn.Linear(width, width)
        self.norm3 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, sizes.expansion * width)
        self.contract = nn.Linear(sizes.expansion * width, width)
        for last in (self.out, self.point, self.contract):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(windows, steps, width) → the same shape"""
        query, key, value = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + self._dropped(self.out(attended))
        gated = F.glu(self.glu(self.norm2(x)), -1)
        nearby = self.depthwise(gated.transpose(1, 2)).transpose(1, 2)
        x = x + self._dropped(self.point(F.silu(nearby)))
        return x + self._dropped(self.contract(F.gelu(self.expand(self.norm3(x)))))

    def _dropped(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, self.dropout, self.training)


class CTCEmbeddings(nn.Module):
    """Tokens → what CTC hears in them, as embeddings of the language model, folded into the places of the tokens.

    A window has 300 steps of 0.1 s. Each scores the blank and some of the language model's own tokens, the latter
    against their frozen embeddings. The weights stay float32 in every model, as those of the unfolder do.

    Attributes:
        kinds: (kinds,), ids of the language model's tokens that can be heard, increasing.
        embedding: the language model's input embedding, given by `read_with`; not a part of this module.
    """

    kinds: torch.Tensor

    def __init__(self, config: FastSLMConfig):
        super().__init__()
        self.sizes = sizes = CTCEmbeddingsSizes.of(config.projector_config)
        frames, width, text = config.hfq_config.hidden_size, sizes.hidden_size, config.text_hidden_size
        self.places = config.tokens_per_window
        self.unfold = Unfolder(config.hfq_config, sizes.unfolder_layers)
        self.head = FrameCTCHead(frames, sizes.front_size, sizes.front_layers)
        self.norm_in = nn.LayerNorm(frames)
        self.down = nn.Conv1d(frames + sizes.front_size, width, 5, stride=2, padding=2)
        self.blocks = nn.ModuleList(ConformerBlock(sizes) for _ in range(sizes.layers))
        self.norm, self.inter_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.out, self.blank = nn.Linear(width, text), nn.Linear(width, 1)
        self.bias = nn.Parameter(torch.zeros(sizes.kinds + 1))
        self.register_buffer("kinds", torch.arange(sizes.kinds))
        # In a list it is no submodule: it is neither saved nor trained here.
        self._embedding: list[nn.Module] = []

    def read_with(self, embedding: nn.Module) -> None:
        """Score and write with this embedding, the language model's."""
        self._embedding = [embedding]

    @property
    def embeddings(self) -> torch.Tensor:
        """(kinds, text hidden): the embedding of every token that can be heard.

        Raises:
            ValueError: one of them is none of the language model's tokens.
        """
        weight: Any = self._embedding[0].weight
        if int(self.kinds.max()) >= len(weight):
            raise ValueError(
                f"The projector hears token {int(self.kinds.max())}, and the language model has {len(weight)}: use the "
                "language model that it was trained with."
            )
        return weight.detach()[self.kinds]

    def hidden(self, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """What the last block and the intermediate one make of tokens.

        Args:
            tokens: (windows, 50, hidden). mask: (windows, frames) of 0 and 1, what training blanks of the frames.

        Returns:
            both (windows, steps, width), one step for two frames.
        """
        frames = self.unfold(tokens.to(self.bias.dtype))
        x = torch.cat([self.norm_in(frames), self.head.heard(frames)], -1)
        if mask is not None:
            x = x * mask[..., None]
        x = F.gelu(self.down(x.transpose(1, 2))).transpose(1, 2)
        middle = x
        for index, block in enumerate(self.blocks, 1):
            x = block(x)
            if index == self.sizes.intermediate:
                middle = x
        return x, middle

    def scores_of(self, x: torch.Tensor, norm: nn.Module, some: torch.Tensor | None = None) -> torch.Tensor:
        """Log-probabilities of the blank and of each kind: (windows, steps, 1 + kinds), float32.

        Args:
            x: (windows, steps, width), from `hidden`. norm: `norm` of the last block, `inter_norm` of the intermediate.
            some: indices of kinds; only these are scored, which is what training can afford.
        """
        x, embeddings, bias = norm(x), self.embeddings, self.bias
        if some is not None:
            embeddings, bias = embeddings[some], torch.cat([bias[:1], bias[1:][some]])
        scores = torch.cat([self.blank(x), F.linear(self.out(x), embeddings.to(x.dtype))], -1)
        return F.log_softmax(scores.float() + bias, -1)

    def scores(self, tokens: torch.Tensor) -> torch.Tensor:
        """(windows, 50, hidden) → log-probabilities (windows, steps, 1 + kinds); class 0 is the blank."""
        return self.scores_of(self.hidden(tokens)[0], self.norm)

    @torch.no_grad()
    def heard(self, tokens: torch.Tensor) -> list[list[int]]:
        """The language model's tokens that are heard in each window, greedily, in order; (windows, 50, hidden)."""
        best = (torch.unique_consecutive(path) for path in self.scores(tokens).argmax(-1))
        return [self.kinds[path[path != BLANK] - 1].tolist() for path in best]

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(…, 50, hidden) → (…, 50, text hidden), in the embedding's dtype; a place without a word is zero."""
        windows = tokens.reshape(-1, *tokens.shape[-2:])
        embedded = folded(self.heard(windows), self._embedding[0], self.places)
        return embedded.view(*tokens.shape[:-1], -1)


def fold(ids: Sequence[int], places: int) -> list[list[int]]:
    """Share out ids over places, in their order; the first places take one more where they cannot all be alike."""
    return [part.tolist() for part in np.array_split(np.asarray(ids, dtype=np.int64), places)]


@torch.no_grad()
def folded(windows: Sequence[Sequence[int]], embedding: nn.Module, places: int) -> torch.Tensor:
    """The embeddings of each window's ids in the places of its tokens: (windows, places, text hidden).

    Those that share a place are added, each weaker than the one before: a window with up to 50 ids is plain text, and
    there are never more places. A place without an id is zero.
    """
    weight: Any = embedding.weight
    found = torch.zeros(len(windows), places, weight.shape[1], dtype=weight.dtype, device=weight.device)
    for window, ids in enumerate(windows):
        for place, own in enumerate(fold(ids, places)):
            for order, token in enumerate(own):
                found[window, place] += FADING**order * weight[token]
    return found
