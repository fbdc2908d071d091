"""Our starts put attention where architecture.md says they do, and leave shapes alone."""

import math

import torch

from fastslm.model.configuration import HFQFormerConfig
from fastslm.model.hfq_former import Compressor, HFQFormer
from fastslm.model.local_attention import detail_times
from fastslm.model.positions import key_slots, sinusoids
from fastslm.model.starts import QUERY_STD, look_offsets, start_hfq_former

TINY = {"hidden_size": 384}


def started(seed: int = 0, **changes) -> HFQFormer:
    torch.manual_seed(seed)
    former = HFQFormer(HFQFormerConfig(**{**TINY, **changes}))
    start_hfq_former(former)
    return former


@torch.no_grad()
def mass_nearby(compressor: Compressor, frames: torch.Tensor) -> float:
    """The share of attention within each query's own slot and one on each side, averaged over heads and queries."""
    queries, width = compressor.query.shape[1:]
    query = compressor.query_norm(compressor.query)[0] + sinusoids(queries, width, frames.device, frames.dtype)
    key = compressor.key_value_norm(frames) + sinusoids(len(frames), width, frames.device, frames.dtype)
    query, key = (x.unflatten(-1, (compressor.heads, -1)).transpose(0, 1) for x in (query, key))
    weights = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1)
    near = (key_slots(queries, len(frames))[None, :] - torch.arange(queries)[:, None]).abs() <= 1
    return (weights * near).sum(-1).mean().item()


def test_the_papers_start_looks_nowhere_in_particular():
    compressor = started().compressor1
    chance = 3 / 80
    assert abs(mass_nearby(compressor, torch.randn(1500, 384)) - chance) < 0.01


def test_the_time_start_looks_into_its_own_slot():
    former = started(query_start="time")
    frames = torch.randn(1500, 384)
    for compressor, length in ((former.compressor1, 1500), (former.compressor2, 750), (former.compressor3, 375)):
        assert mass_nearby(compressor, frames[:length]) > 0.4


def test_the_distillation_starts_at_its_slot_in_each_of_the_three_scales():
    distillation = started(query_start="time").distillation
    queries, width = distillation.query.shape[1:]
    query = distillation.query_norm(distillation.query)[0] + sinusoids(
        queries, width, torch.device("cpu"), torch.float32
    )
    key = sinusoids(240, width, torch.device("cpu"), torch.float32)
    scores = (query @ key.T).detach()
    for scale in range(3):
        best = scores[5:45, scale * 80 : (scale + 1) * 80].argmax(1)
        expected = (torch.arange(5, 45) + 0.5) * (80 / 50) - 0.5
        assert (best - expected).abs().median() <= 2


def test_the_papers_queries_start_small_and_random():
    former = started(seed=1)
    for compressor in (former.compressor1, former.compressor2, former.compressor3, former.distillation):
        assert abs(compressor.query.std().item() - QUERY_STD) < 0.002
        assert torch.equal(compressor.query_norm.weight, torch.ones(384))


def test_the_looks_of_all_heads_share_out_the_slot():
    offsets = look_offsets(started(detail_positions=True, detail_start="positional")).flatten()
    assert len(offsets) == 12
    slot = 1500 / 50
    torch.testing.assert_close(offsets.diff(), torch.full((11,), slot / 12))
    assert abs(offsets.mean()) < 1e-4
    assert offsets.abs().max() < slot / 2


def test_a_head_of_a_positional_start_looks_at_its_offset_from_the_tokens_time():
    former = started(detail_positions=True, detail_start="positional")
    query_time, key_time = detail_times(former.config, torch.device("cpu"))
    frames_time = key_time[:1500]
    for block, offsets in zip(former.detail_recovery, look_offsets(former), strict=True):
        attention = block.cross_attention
        with torch.no_grad():
            query = attention.q_proj(query_time).unflatten(-1, (6, -1))
            key = attention.k_proj(frames_time).unflatten(-1, (6, -1))
        for head, offset in enumerate(offsets.tolist()):
            best = (query[:, head] @ key[:, head].T).argmax(1)
            expected = (torch.arange(50) + 0.5) * 30 - 0.5 + offset
            inside = (expected >= 0) & (expected < 1500)
            assert (best - expected)[inside].abs().max() <= 1.5


def test_a_start_changes_no_name_and_no_shape():
    paper = started().state_dict()
    ours = started(query_start="time", detail_positions=True, detail_start="positional", attention_span=1).state_dict()
    assert {name: value.shape for name, value in paper.items()} == {name: value.shape for name, value in ours.items()}


def test_the_same_seed_starts_the_same_and_another_does_not():
    first, again, other = (started(seed=seed).state_dict() for seed in (4, 4, 5))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["compressor1.query"], other["compressor1.query"])
