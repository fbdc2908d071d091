"""A model on a processor without AMX: what it chooses and says, and that its results keep their promises."""

from typing import Any

import pytest
import torch
from tiny_fastslm import MakeCheckpoint, noise

from fastslm.errors import OptionError
from fastslm.evaluation.systems import FastSLMSystem
from fastslm.loading import load
from fastslm.longform.encoder import WindowEncoder
from fastslm.longform.plan import plan
from fastslm.speech import FastSLM

pytestmark = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN does not multiply bfloat16 on this processor"
)


@pytest.fixture
def without_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)


@pytest.fixture(scope="module")
def folder(make_checkpoint: MakeCheckpoint) -> Any:
    return make_checkpoint(reader=True, transcript_reader="whisper")


@pytest.fixture
def speech(folder: Any, without_amx: None) -> FastSLM:
    return load(folder, device="cpu", quiet=True)


@pytest.mark.fault
def test_without_amx_whispers_parts_run_on_products_and_it_is_said_why(folder: Any, without_amx: None, capsys) -> None:
    speech = load(folder, device="cpu")
    assert speech.encoder.kernels == "products"
    assert "Whisper's parts in bfloat16 (" in (said := capsys.readouterr().err)
    assert "without AMX, attention by plain matrix products and the decoder's scores in int8" in said
    facts = FastSLMSystem(speech).facts("transcribe")
    told = {name: facts[name] for name in ("dtype", "encoder_dtype", "kernels", "reader_dtype")}
    assert told == {
        "dtype": "float32",
        "encoder_dtype": "bfloat16",
        "kernels": "products",
        "reader_dtype": "bfloat16, scores int8",
    }
    # Nothing that is saved was rounded.
    assert {weight.dtype for weight in speech.model.state_dict().values()} == {torch.float32}


@pytest.mark.fault
def test_a_model_in_bfloat16_runs_on_products_too_and_one_in_float32_does_not(folder: Any, without_amx: None) -> None:
    half = load(folder, device="cpu", dtype="bfloat16")
    assert (half.encoder.kernels, half.encoder.dtype) == ("products", None)
    assert half.encode(noise(31)).tokens.dtype is torch.bfloat16
    assert half.model.whisper_decoder is not None
    assert half.model.whisper_decoder.computes_in == "bfloat16, scores int8"
    exact = load(folder, device="cpu", dtype="float32")
    assert (exact.encoder.kernels, FastSLMSystem(exact).facts("transcribe")["reader_dtype"]) == ("torch", "float32")


def test_recordings_read_the_same_alone_and_among_others(speech: FastSLM) -> None:
    reader: Any = speech.model.whisper_decoder
    # Weights so large that what is heard decides what is written.
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in reader.named_parameters():
            if parameter.dim() == 2 and not name.startswith("unfold.context"):
                parameter.normal_(0.0, 0.4, generator=generator)
    reader.read_in(torch.bfloat16, "products")
    recordings = [noise(seconds, seed) for seed, seconds in enumerate((3, 31, 0.5))]
    together = list(speech.transcribe_many(recordings, no_speech="read", max_new_tokens=12))
    for recording, transcript in zip(recordings, together, strict=True):
        alone = speech.transcribe(recording, no_speech="read", max_new_tokens=12)
        assert alone.segments == transcript.segments
    assert len({transcript.text for transcript in together}) == len(recordings)


def test_a_memory_is_read_by_the_model_on_another_processor(speech: FastSLM, folder: Any) -> None:
    memory, exact = speech.encode(noise(31)), load(folder, device="cpu", dtype="float32", quiet=True)
    own = exact.encode(noise(31))
    assert memory.facts == own.facts
    assert exact.encode(memory) is memory
    assert (memory.tokens.float() - own.tokens).norm() < 0.03 * own.tokens.norm()


def test_an_encoding_that_was_stopped_does_not_go_on_with_other_kernels(speech: FastSLM) -> None:
    other = WindowEncoder(speech.model, dtype=torch.bfloat16)
    assert other._stamp("fixed") != speech.encoder._stamp("fixed")
    # What was begun before there were any kernels to choose from still goes on.
    assert "kernels" not in other._stamp("fixed")


def test_products_are_refused_where_nothing_computes_in_bfloat16(speech: FastSLM) -> None:
    with pytest.raises(OptionError, match="bfloat16: give that dtype"):
        WindowEncoder(speech.model, kernels="products")


def test_a_plan_counts_the_copies_of_the_kernels(speech: FastSLM) -> None:
    plain = plan(speech.model, 1, encoder_dtype=torch.bfloat16).weight_bytes
    own = plan(speech.model, 1, encoder_dtype=torch.bfloat16, kernels="products").weight_bytes
    assert speech.model.whisper_decoder is not None
    decoder = speech.model.whisper_decoder.decoder
    # The embeddings are kept in int8, and their positions not at all; each output has three numbers beside them.
    vocabulary, width = decoder.embed_tokens.weight.shape
    kept = sum(part.numel() for part in (decoder.embed_tokens.weight, decoder.embed_positions.weight))
    kept += sum(parameter.numel() for parameter in decoder.layer_norm.parameters())
    assert own == plain - 2 * kept + vocabulary * (width + 16)
