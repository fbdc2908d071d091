"""The HFQ-Former against a slow one in float64 that is written from the specification, not from the code."""

import math

import pytest
import torch
from torch import nn

from fastslm.model.configuration import HFQFormerConfig
from fastslm.model.hfq_former import Attention, HFQFormer, attend
from fastslm.model.local_attention import SlotFrames, local_cross_attention
from fastslm.model.positions import key_slots, neighbourhoods, sinusoids, visible_keys
from fastslm.model.starts import start_hfq_former

SMALL = {"hidden_size": 32, "head_size": 8, "window_frames": 48, "stage_tokens": [6, 5, 4], "final_tokens": 4}


def make(seed: int = 0, **changes) -> HFQFormer:
    torch.manual_seed(seed)
    former = HFQFormer(HFQFormerConfig(**{**SMALL, **changes}))
    start_hfq_former(former)
    with torch.no_grad():
        # Larger than a start, so that attention is far from uniform and norms are not the identity.
        for parameter in former.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return former.eval()


class Reference:
    """One query, one head, one key at a time, softmax written out, in float64."""

    def __init__(self, former: HFQFormer):
        self.config = former.config
        self.weights = {name: value.double() for name, value in former.state_dict().items()}

    def table(self, positions: list[float]) -> torch.Tensor:
        half = self.config.hidden_size // 2
        speeds = [math.exp(-i * math.log(10_000) / (half - 1)) for i in range(half)]
        rows = [[math.sin(p * s) for s in speeds] + [math.cos(p * s) for s in speeds] for p in positions]
        return torch.tensor(rows, dtype=torch.float64)

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, correction=0, keepdim=True)
        normed = (x - mean) / (variance + 1e-5).sqrt()
        return normed * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        y = x @ self.weights[f"{name}.weight"].T
        return y + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else y

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))

    def attention(self, query, key, value, allowed) -> torch.Tensor:
        size = self.config.head_size
        out = torch.zeros_like(query)
        for token in range(len(query)):
            for start in range(0, self.config.hidden_size, size):
                head = slice(start, start + size)
                scores = [float(query[token, head] @ key[j, head]) / math.sqrt(size) for j in range(len(key))]
                top = max(score for score, seen in zip(scores, allowed[token], strict=True) if seen)
                weights = [math.exp(s - top) if seen else 0.0 for s, seen in zip(scores, allowed[token], strict=True)]
                out[token, head] = sum(w * value[j, head] for j, w in enumerate(weights)) / sum(weights)
        return out

    def allowed(self, queries: int, lengths: list[int]) -> list[list[bool]]:
        span = self.config.attention_span
        slots = [j * queries // length for length in lengths for j in range(length)]
        return [[span is None or abs(slot - i) <= span for slot in slots] for i in range(queries)]

    def compress(self, name: str, x: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        query = self.norm(f"{name}.query_norm", self.weights[f"{name}.query"][0])
        query = query + self.table(range(len(query)))
        value = self.norm(f"{name}.key_value_norm", x)
        key = value + self.table(range(len(value)))
        return self.linear(f"{name}.out_proj", self.attention(query, key, value, self.allowed(len(query), lengths)))

    def convolve(self, name: str, x: torch.Tensor, stride: int) -> torch.Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        padded = torch.cat([torch.zeros_like(x[:1]), x, torch.zeros_like(x[:1])])
        steps = range(0, len(x), stride)
        return torch.stack([bias + sum(weight[:, :, k] @ padded[t + k] for k in range(3)) for t in steps])

    def halve(self, name: str, x: torch.Tensor) -> torch.Tensor:
        x = self.gelu(self.convolve(f"{name}.conv1", x, 1))
        return self.norm(f"{name}.norm", self.gelu(self.convolve(f"{name}.conv2", x, 2)))

    def attend(self, name: str, query, key, value, allowed) -> torch.Tensor:
        parts = [self.linear(f"{name}.{p}_proj", x) for p, x in (("q", query), ("k", key), ("v", value))]
        return self.linear(f"{name}.out_proj", self.attention(*parts, allowed))

    def __call__(self, x1: torch.Tensor) -> torch.Tensor:
        x1, config = x1.double(), self.config
        x2 = self.halve("downsampler1", x1)
        x3 = self.halve("downsampler2", x2)
        scales = [x1, x2, x3]
        stages = [self.compress(f"compressor{n}", x, [len(x)]) for n, x in enumerate(scales, 1)]
        z = self.compress("distillation", torch.cat(stages), [len(stage) for stage in stages])
        frames = torch.cat(scales)
        tokens, lengths = len(z), [len(x) for x in scales]
        token_time, frame_time = torch.zeros_like(z), torch.zeros_like(frames)
        if config.detail_positions:
            slot = config.window_frames / tokens
            token_time = self.table([(i + 0.5) * slot - 0.5 for i in range(tokens)])
            frame_time = self.table([j * 2**s for s, length in enumerate(lengths) for j in range(length)])
        for block in range(config.detail_blocks):
            name = f"detail_recovery.{block}"
            normed = self.norm(f"{name}.norm1", z)
            z = z + self.attend(f"{name}.self_attention", normed, normed, normed, [[True] * tokens] * tokens)
            query = self.norm(f"{name}.norm2", z) + token_time
            allowed = self.allowed(tokens, lengths)
            z = z + self.attend(f"{name}.cross_attention", query, frames + frame_time, frames, allowed)
        return z


SWITCHES = [
    {},
    {"detail_blocks": 0},
    {"detail_blocks": 1, "detail_positions": True},
    {"attention_span": 1},
    {"attention_span": 0, "detail_positions": True, "final_tokens": 6},
    {"stage_tokens": [3, 9, 2], "final_tokens": 7, "detail_blocks": 3},
]


@pytest.mark.parametrize("changes", SWITCHES, ids=[str(x) for x in SWITCHES])
def test_the_former_computes_what_the_specification_says(changes):
    former = make(**changes)
    x1 = torch.randn(2, 48, 32)
    with torch.no_grad():
        ours = former(x1)
    reference = Reference(former)
    expected = torch.stack([reference(x) for x in x1])
    torch.testing.assert_close(ours.double(), expected, atol=1e-5, rtol=1e-5)


def test_switches_that_are_off_leave_the_papers_arithmetic_to_the_last_bit():
    plain = make()
    spelled = make(detail_positions=False, attention_span=None, query_start="random", detail_start="random")
    x1 = torch.randn(1, 48, 32)
    with torch.no_grad():
        q1 = plain.compressor1(x1)
        x2 = plain.downsampler1(x1)
        q2 = plain.compressor2(x2)
        x3 = plain.downsampler2(x2)
        z = plain.distillation(torch.cat([q1, q2, plain.compressor3(x3)], 1))
        frames = torch.cat([x1, x2, x3], 1)
        for block in plain.detail_recovery:
            normed = block.norm1(z)
            z = z + block.self_attention(normed, normed, normed)
            z = z + block.cross_attention(block.norm2(z), frames, frames)
        assert torch.equal(spelled(x1), z)
        assert torch.equal(plain(x1), z)


def test_a_window_does_not_depend_on_the_windows_beside_it():
    former = make()
    windows = torch.randn(3, 48, 32)
    with torch.no_grad():
        together = former(windows)
        for window, expected in zip(windows, together, strict=True):
            torch.testing.assert_close(former(window[None])[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tokens", [1, 4, 25, 200])
def test_any_number_of_tokens_leaves_a_window(tokens):
    assert make(final_tokens=tokens)(torch.randn(2, 48, 32)).shape == (2, tokens, 32)


@pytest.mark.parametrize(("width", "heads"), [(384, 6), (512, 8), (1280, 20)])
def test_every_whisper_width_has_heads_of_64(width, heads):
    former = HFQFormer(HFQFormerConfig(hidden_size=width, window_frames=8, stage_tokens=[2, 2, 2], final_tokens=2))
    assert former.distillation.heads == heads
    assert former(torch.randn(1, 8, width)).shape == (1, 2, width)


@pytest.mark.parametrize(("queries", "span", "with_time"), [(4, 0, False), (4, 1, True), (7, 2, True), (50, 1, True)])
def test_local_attention_equals_dense_attention_with_a_mask(queries, span, with_time):
    torch.manual_seed(1)
    config = HFQFormerConfig(**SMALL)
    attention = Attention(config)
    scales = [torch.randn(2, n, 32) for n in (48, 24, 12)]
    query = torch.randn(2, queries, 32)
    query_time = torch.randn(queries, 32) if with_time else None
    key_time = torch.randn(84, 32) if with_time else None
    frames = torch.cat(scales, 1)
    visible = visible_keys(queries, (48, 24, 12), span, query.device)
    dense = attention.out_proj(
        attend(
            attention.q_proj(query + (query_time if with_time else 0)),
            attention.k_proj(frames + (key_time if with_time else 0)),
            attention.v_proj(frames),
            attention.heads,
            visible,
        )
    )
    local = local_cross_attention(attention, query, SlotFrames(scales, queries, span, query_time, key_time))
    torch.testing.assert_close(local, dense, atol=1e-5, rtol=1e-5)


def test_scales_that_are_one_without_gradients_are_no_further_from_the_truth_than_scales_apart():
    torch.manual_seed(1)
    config = HFQFormerConfig(**SMALL)
    attention, query, key_time = Attention(config), torch.randn(2, 7, 32), torch.randn(84, 32)
    scales = [torch.randn(2, n, 32) for n in (48, 24, 12)]

    def local(dtype: torch.dtype) -> tuple[int, torch.Tensor]:
        frames = SlotFrames([x.to(dtype) for x in scales], 7, 1, None, key_time)
        with torch.no_grad():
            return len(frames.scales), local_cross_attention(attention.to(dtype), query.to(dtype), frames).float()

    # In float32 they stay apart: its sums keep their order.
    parts, exact = local(torch.float32)
    with torch.no_grad():
        assert local(torch.float32)[0] == parts == 3
        one, together = local(torch.bfloat16)
    three, apart = local(torch.bfloat16)
    assert (one, three) == (1, 3)
    # On average, and up to chance.
    assert (together - exact).abs().mean() <= 1.1 * (apart - exact).abs().mean()


@pytest.mark.parametrize("span", [0, 1, 3])
def test_neighbourhoods_hold_exactly_the_visible_keys(span):
    lengths = (48, 24, 12)
    indices, real = neighbourhoods(7, lengths, span, torch.device("cpu"))
    visible = visible_keys(7, lengths, span, torch.device("cpu"))
    assert visible is not None
    for query in range(7):
        found, start, column = set(), 0, 0
        for index, length in zip(indices, lengths, strict=True):
            used = real[query, column : column + index.shape[1]]
            found |= {start + int(i) for i, is_real in zip(index[query], used, strict=True) if is_real}
            start, column = start + length, column + index.shape[1]
        assert found == set(visible[query].nonzero().flatten().tolist())


def test_a_span_hides_everything_outside_it_from_the_compressors():
    former = make(attention_span=1, detail_blocks=0, stage_tokens=[6, 6, 6], final_tokens=6)
    x1 = torch.randn(1, 48, 32)
    changed = x1.clone()
    changed[:, 40:] += 5  # the last slots only
    with torch.no_grad():
        before, after = former(x1), former(changed)
    # Token 0 reads slots 0 and 1 of the stages, which read slots 0 to 2 of the frames.
    assert torch.equal(before[:, 0], after[:, 0])
    assert not torch.equal(before[:, -1], after[:, -1])


def test_slots_share_out_the_keys_evenly():
    slots = key_slots(50, 1500)
    assert torch.equal(slots.bincount(), torch.full((50,), 30))


def test_the_table_is_whispers():
    from transformers.models.whisper.modeling_whisper import sinusoids as whispers

    ours = sinusoids(1500, 384, torch.device("cpu"), torch.float32)
    torch.testing.assert_close(ours, whispers(1500, 384), atol=2e-4, rtol=0)


def test_nothing_but_parameters_is_stored():
    former = make()
    assert not list(former.buffers())
    assert all(isinstance(x, nn.Parameter) for x in former.state_dict(keep_vars=True).values())
