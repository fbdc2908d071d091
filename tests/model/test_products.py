"""What a processor without AMX multiplies with gives what torch's modules give, and each row what it gives alone."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperDecoder, WhisperEncoder

from fastslm.model import products
from fastslm.model.configuration import FastSLMConfig
from fastslm.model.fast_decoder import ROOM, FastDecoder, fast_decoder_bytes
from fastslm.model.fast_encoder import FastEncoder
from fastslm.model.lora import add_decoder_lora
from fastslm.model.products import Int8Linear, PackedLinear, attend, best_kernels

pytestmark = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN does not multiply bfloat16 on this processor"
)
WIDTH, HEADS, FRAMES = 64, 4, 40
SIZES = {"d_model": WIDTH, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}


def config() -> WhisperConfig:
    heads = {"encoder_attention_heads": HEADS, "decoder_attention_heads": HEADS}
    return WhisperConfig(**SIZES, **heads, max_source_positions=FRAMES, vocab_size=300, num_mel_bins=16, **TOKENS)


def woken(module: Any) -> Any:
    """With weights and biases so large that every part of it matters."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
            elif "embed" not in name:
                parameter.normal_(0.0, 0.15, generator=generator)
    return module.eval()


@pytest.fixture(scope="module")
def encoder() -> WhisperEncoder:
    return woken(WhisperEncoder._from_config(config()))


@pytest.fixture(scope="module")
def decoder() -> WhisperDecoder:
    return woken(WhisperDecoder._from_config(config()))


def some(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.fault
@pytest.mark.parametrize(
    ("amx", "avx", "device", "dtype", "expected"),
    [
        (False, True, "cpu", torch.bfloat16, "products"),
        (True, True, "cpu", torch.bfloat16, "torch"),
        (False, False, "cpu", torch.bfloat16, "torch"),
        (False, True, "cpu", torch.float32, "torch"),
        (False, True, "cuda", torch.bfloat16, "torch"),
    ],
)
def test_products_are_for_bfloat16_on_processors_without_amx(
    monkeypatch: pytest.MonkeyPatch, amx: bool, avx: bool, device: str, dtype: torch.dtype, expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    assert best_kernels(torch.device(device), dtype) == expected


def test_a_torch_without_the_operations_has_no_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(products.torch.ops, "onednn", object())
    assert best_kernels(torch.device("cpu"), torch.bfloat16) == "torch"


@pytest.mark.parametrize("together", [7, 500])
def test_attention_is_that_of_torch_however_many_queries_are_together(
    together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "QUERIES_TOGETHER", together)
    # Keys with something in common, as Whisper's have.
    query, key, value = some(30, HEADS, 16), some(30, HEADS, 16, seed=1) + 3, some(30, HEADS, 16, seed=2)
    query, key, value = ((x * scale).bfloat16() for x, scale in ((query, 0.25), (key, 1.0), (value, 1.0)))
    found = attend(query, key, value).unflatten(1, (HEADS, -1))
    by_head = (x.transpose(0, 1).float() for x in (query, key, value))
    expected = F.scaled_dot_product_attention(*by_head, scale=1.0).transpose(0, 1)
    torch.testing.assert_close(found.float(), expected, atol=2e-2, rtol=0)


@pytest.mark.parametrize("gelu", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_linear_layer_is_the_layer(gelu: bool, bias: bool) -> None:
    weight, own = some(96, WIDTH) / 8, some(96, seed=1) if bias else None
    inputs = some(2, 5, WIDTH, seed=2)
    expected = F.linear(inputs, weight, own)
    found = PackedLinear(weight, own, gelu)(inputs)
    assert found.dtype is torch.bfloat16
    torch.testing.assert_close(found.float(), F.gelu(expected) if gelu else expected, atol=3e-2, rtol=2e-2)


def test_int8_loses_little_though_a_norms_weights_differ_by_much() -> None:
    norm = nn.LayerNorm(WIDTH)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-1.0, 16.0, WIDTH))
        norm.bias.copy_(some(WIDTH, seed=3))
    weight, inputs = some(300, WIDTH), some(6, WIDTH, seed=2) * torch.tensor([1e-3, 1.0, 30.0, 1e3, 2.0, 0.0])[:, None]
    found, expected = Int8Linear(norm, weight)(inputs), F.linear(norm(inputs), weight)
    assert (found - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("make", [PackedLinear, lambda weight, bias: Int8Linear(nn.LayerNorm(weight.shape[1]), weight)])
def test_a_row_gives_alone_what_it_gives_among_others(make: Callable[..., Any]) -> None:
    for width in (WIDTH, 1536):
        layer, rows = make(some(70, width), some(70)), some(33, width, seed=1)
        together = layer(rows)
        for count in (1, 2, 3, 8, 32):
            assert torch.equal(layer(rows[:count]), together[:count]), (width, count)


@torch.no_grad()
def test_the_encoder_computes_as_whispers_does_and_each_window_as_alone(encoder: WhisperEncoder) -> None:
    features = some(3, 16, 2 * FRAMES)
    found, expected = FastEncoder(encoder)(features), encoder(features).last_hidden_state
    assert found.dtype is torch.bfloat16
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    assert (found.float() - expected).norm() < 0.02 * expected.norm()
    assert torch.equal(FastEncoder(encoder)(features[1:2])[0], found[1])


@torch.no_grad()
def test_the_decoder_scores_each_token_as_whispers_does(decoder: WhisperDecoder) -> None:
    frames, ids = some(3, 24, WIDTH), torch.randint(0, 300, (3, ROOM + 3), generator=torch.Generator().manual_seed(1))
    hidden = decoder(input_ids=ids, encoder_hidden_states=frames, use_cache=False).last_hidden_state
    expected = F.linear(hidden, decoder.embed_tokens.weight)
    writing = FastDecoder(decoder).begin(frames)
    # The first two at once, as a text begins; and beyond the room that is made at first.
    found = [writing.scores(ids[:, :2]), *(writing.scores(ids[:, at : at + 1]) for at in range(2, ids.shape[1]))]
    scores = torch.stack(found, 1)
    assert (scores - expected[:, 1:]).norm() < 0.03 * expected[:, 1:].norm()


@torch.no_grad()
def test_a_text_goes_on_alone_as_it_went_on_among_others(decoder: WhisperDecoder) -> None:
    fast, frames = FastDecoder(decoder), some(5, 24, WIDTH)
    ids = torch.randint(0, 300, (5, 6), generator=torch.Generator().manual_seed(1))
    together, alone, fewer = fast.begin(frames), fast.begin(frames[3:4]), fast.begin(frames)
    for at in range(6):
        if at == 3:
            fewer.keep(torch.tensor([1, 3]))
        rows = slice(None) if at < 3 else torch.tensor([1, 3])
        all_scores = together.scores(ids[:, at : at + 1])
        assert torch.equal(alone.scores(ids[3:4, at : at + 1])[0], all_scores[3])
        assert torch.equal(fewer.scores(ids[rows, at : at + 1]), all_scores[rows])


def test_a_decoder_whose_lora_is_not_merged_is_refused(decoder: WhisperDecoder) -> None:
    own = copy.deepcopy(decoder)
    add_decoder_lora(own, FastSLMConfig(audio_config=config(), base_decoder="whisper", decoder_lora_rank=2))
    with pytest.raises(ValueError, match="is not merged"):
        FastDecoder(own)


@torch.no_grad()
@pytest.mark.parametrize("again", [copy.deepcopy, lambda own: pickle.loads(pickle.dumps(own))])
def test_copies_and_pickles_compute_the_same(
    again: Callable[[Any], Any], encoder: WhisperEncoder, decoder: WhisperDecoder
) -> None:
    features, frames, ids = some(1, 16, 2 * FRAMES), some(1, 24, WIDTH), torch.tensor([[5]])
    fast_encoder, fast_decoder = FastEncoder(encoder), FastDecoder(decoder)
    assert torch.equal(again(fast_encoder)(features), fast_encoder(features))
    assert torch.equal(again(fast_decoder).begin(frames).scores(ids), fast_decoder.begin(frames).scores(ids))


def test_the_bytes_of_a_fast_decoder_are_counted_without_making_it(decoder: WhisperDecoder) -> None:
    fast = FastDecoder(decoder)
    own = [value for layer in fast.layers for value in vars(layer).values() if not isinstance(value, int)]
    tensors = [getattr(part, name) for part in (*own, fast.vocabulary) for name in vars(part)]
    held = sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))
    assert fast_decoder_bytes(decoder) == pytest.approx(held, rel=0.05)
