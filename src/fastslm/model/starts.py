"""How the HFQ-Former's parameters start: the paper's random values, and our starts in time (architecture.md, "Ours").

A start changes no shape and no arithmetic. It only puts the first gradient where it can teach something.
"""

import math

import torch
from torch import nn

from fastslm.model.hfq_former import Compressor, HFQFormer
from fastslm.model.positions import sinusoids_at, slot_middles

QUERY_STD = 0.02
TIME_QUERY_GAIN = 2.0
# Of each position code, the fastest pairs of sine and cosine decide where a head looks: one pair a head channel pair.
LOOK_GAIN = 2.5
# A look depends on time, hardly on what the token already holds, until training says otherwise.
LOOK_CONTENT_SCALE = 0.1


@torch.no_grad()
def start_hfq_former(model: HFQFormer) -> None:
    """Initialise all parameters as the configuration says. Draws from torch's global generator."""
    for module in model.modules():
        if isinstance(module, nn.LayerNorm | nn.Linear | nn.Conv1d):
            module.reset_parameters()
        elif isinstance(module, Compressor):
            module.query.normal_(0.0, QUERY_STD)
    if model.config.query_start == "time":
        for compressor in (model.compressor1, model.compressor2, model.compressor3, model.distillation):
            start_queries_in_time(compressor)
    if model.config.detail_start == "positional":
        start_looks(model)


def mark_started(*parts: nn.Module) -> None:
    """Tell transformers that these parts hold what they start with, so that it does not initialise them again."""
    for part in parts:
        for module in part.modules():
            module._is_hf_initialized = True  # type: ignore[assignment]
        for parameter in part.parameters():
            parameter._is_hf_initialized = True  # type: ignore[attr-defined]


@torch.no_grad()
def start_queries_in_time(compressor: Compressor) -> None:
    """Each query starts as the position code of its slot's middle, summed over the sequences that it reads."""
    queries, width = compressor.query.shape[1:]
    code = torch.zeros(queries, width)
    start = 0
    for length in compressor.scales:
        code += sinusoids_at(slot_middles(queries, length) + start, width)
        start += length
    compressor.query.copy_(code[None])
    compressor.query_norm.weight.fill_(TIME_QUERY_GAIN)


def look_offsets(model: HFQFormer) -> torch.Tensor:
    """Where the heads look, in encoder frames from the middle of the slot: (blocks, heads), in order of time."""
    config = model.config
    looks = config.detail_blocks * config.num_heads
    slot = config.window_frames / config.final_tokens
    offsets = (torch.arange(looks) + 0.5) * (slot / looks) - slot / 2
    return offsets.view(config.detail_blocks, config.num_heads)


@torch.no_grad()
def start_looks(model: HFQFormer) -> None:
    """Every head of detail recovery starts by looking at a fixed offset from its token's time.

    Its query and key projections pick the fastest pairs of the position code; the query's are rotated by the offset, so
    that their product is Σ cos(ω · (token + offset − key)), largest where the key is at the offset.
    """
    config = model.config
    width, head_size = config.hidden_size, config.head_size
    pairs = head_size // 2
    step = math.log(10_000) / (width // 2 - 1)
    speeds = torch.exp(-step * torch.arange(pairs, dtype=torch.float32))
    sines, cosines = torch.arange(pairs), torch.arange(pairs) + width // 2
    rows = torch.arange(pairs)
    for block, offsets in zip(model.blocks, look_offsets(model), strict=True):
        attention = block.cross_attention
        for projection in (attention.q_proj, attention.k_proj):
            projection.weight.mul_(LOOK_CONTENT_SCALE)
        attention.q_proj.bias.zero_()
        block.norm2.weight.fill_(LOOK_CONTENT_SCALE)
        for head, offset in enumerate(offsets.tolist()):
            query = attention.q_proj.weight[head * head_size : (head + 1) * head_size]
            key = attention.k_proj.weight[head * head_size : (head + 1) * head_size]
            turn = speeds * offset
            query[rows, sines] += LOOK_GAIN * turn.cos()
            query[rows, cosines] += LOOK_GAIN * turn.sin()
            query[rows + pairs, sines] -= LOOK_GAIN * turn.sin()
            query[rows + pairs, cosines] += LOOK_GAIN * turn.cos()
            key[rows, sines] += 1.0
            key[rows + pairs, cosines] += 1.0
