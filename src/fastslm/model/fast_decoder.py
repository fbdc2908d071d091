"""Whisper's decoder one token at a time, in bfloat16, with the kernels of `fastslm.model.products` (ours).

Keys and values lie as the products read them, by row and head: those of the frames in bfloat16, those of the tokens,
which are few, in float32.
"""

from typing import Any

import torch
import torch.nn.functional as F
from transformers.models.whisper.modeling_whisper import WhisperDecoder

from fastslm.model.lora import lora_layers
from fastslm.model.products import Int8Linear, Norm, centred, joined_linear, packed

# Tokens for which room is made at a time.
ROOM = 32


class _Layer:
    """One layer: attention to the tokens so far, attention to the frames, a perceptron."""

    def __init__(self, layer: Any):
        own, cross = layer.self_attn, layer.encoder_attn
        self.heads = own.num_heads
        self.norm1 = Norm(layer.self_attn_layer_norm, torch.float32)
        self.project = joined_linear([own.q_proj, own.k_proj, own.v_proj], [own.scaling, 1.0, 1.0])
        self.own_out = packed(own.out_proj)
        self.norm2 = Norm(layer.encoder_attn_layer_norm, torch.float32)
        self.ask = joined_linear([cross.q_proj], [cross.scaling])
        self.show = joined_linear([cross.k_proj, cross.v_proj], [1.0, 1.0])
        self.cross_out = packed(cross.out_proj)
        self.norm3 = Norm(layer.final_layer_norm, torch.float32)
        self.expand, self.contract = packed(layer.fc1, gelu=True), packed(layer.fc2)


class FastDecoder:
    """Computes what the decoder does, with a copy of its weights.

    The scores are computed in 8-bit integers: two thirds of a token's multiplications are those with the vocabulary.

    Raises:
        ValueError: the decoder has LoRA that is not merged.
    """

    def __init__(self, decoder: WhisperDecoder):
        if lora_layers(decoder):
            raise ValueError("The decoder's LoRA is not merged: call merge_decoder_lora before read_in.")
        self.source = decoder
        self.embeddings = decoder.embed_tokens.weight.detach()
        self.positions = decoder.embed_positions.weight.detach()
        self.layers = [_Layer(layer) for layer in decoder.layers]
        self.vocabulary = Int8Linear(decoder.layer_norm, decoder.embed_tokens.weight)

    def __reduce__(self) -> tuple[type, tuple[WhisperDecoder]]:
        """Copied and pickled as what it is made of: oneDNN's layouts cannot be."""
        return FastDecoder, (self.source,)

    def begin(self, frames: torch.Tensor) -> "FastWriting":
        """Texts of windows, none of them begun: (windows, frames, hidden), from the unfolder."""
        return FastWriting(self, frames)


class FastWriting:
    """Texts in the making, as `fastslm.model.whisper_decoder.Writing`."""

    def __init__(self, decoder: FastDecoder, frames: torch.Tensor):
        self.decoder, self.length = decoder, 0
        frames = frames.bfloat16()
        # Of each layer: (rows, heads, frames or tokens, head size).
        self.shown: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.said: list[tuple[torch.Tensor, torch.Tensor]] = []
        for layer in decoder.layers:
            both = layer.show(frames).unflatten(-1, (2, layer.heads, -1)).transpose(1, 3)
            key, value = (both[:, :, part].contiguous() for part in (0, 1))
            self.shown.append((centred(key, 2), value))
            empty = torch.empty(len(frames), layer.heads, 0, key.shape[-1])
            self.said.append((empty, empty))

    def scores(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits of the next token after these: (rows, tokens that it has not seen) → (rows, vocabulary), float32."""
        hidden = torch.empty(0)
        for own in ids.unbind(1):
            hidden = self._step(own)
        return self.decoder.vocabulary(hidden)

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with some rows alone."""
        self.shown = [(key[rows], value[rows]) for key, value in self.shown]
        self.said = [(key[rows], value[rows]) for key, value in self.said]

    def _step(self, ids: torch.Tensor) -> torch.Tensor:
        """Through all layers with the next token of each row, (rows,) → (rows, hidden)."""
        decoder, at = self.decoder, self.length
        hidden = decoder.embeddings[ids].float() + decoder.positions[at]
        if at == self.said[0][0].shape[2]:
            self.said = [(_longer(key), _longer(value)) for key, value in self.said]
        self.length += 1
        for layer, (key, value), shown in zip(decoder.layers, self.said, self.shown, strict=True):
            parts = layer.project(layer.norm1(hidden)).float().unflatten(1, (3, layer.heads, -1))
            query, key[:, :, at], value[:, :, at] = parts[:, 0, :, None], parts[:, 1], parts[:, 2]
            hidden = hidden + layer.own_out(_mixed(query, key, value, at + 1))
            query = layer.ask(layer.norm2(hidden)).unflatten(1, (layer.heads, 1, -1))
            hidden = hidden + layer.cross_out(_mixed(query, *shown))
            hidden = hidden + layer.contract(layer.expand(layer.norm3(hidden)))
        return hidden


def _longer(kept: torch.Tensor) -> torch.Tensor:
    """With room for more tokens, zeros."""
    return F.pad(kept, (0, 0, 0, ROOM))


def _mixed(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, known: int | None = None) -> torch.Tensor:
    """One query for each row and head, (rows, heads, 1, head size), over its keys → (rows, hidden).

    Args:
        known: how many of the keys there are; the rest is room. All are multiplied, because oneDNN prepares a product
            anew for each length, which takes longer than multiplying.
    """
    scores = torch.matmul(query, key.transpose(2, 3))
    if known is not None:
        scores[..., known:] = float("-inf")
    return (scores.softmax(-1) @ value).flatten(1)


def fast_decoder_bytes(decoder: WhisperDecoder) -> int:
    """Of the weights that a `FastDecoder` copies, to a hundredth, without making it: bfloat16, int8 for the scores."""
    layers = sum(parameter.numel() for parameter in decoder.layers.parameters())
    outputs, width = decoder.embed_tokens.weight.shape
    return 2 * layers + outputs * (width + 4 + 4 + 8)
