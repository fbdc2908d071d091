"""`fastslm.load`: what it finds, what it chooses, what it refuses."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_fastslm import MakeCheckpoint, make_checkpoint, noise, tiny, tiny_checkpoint

from fastslm import loading
from fastslm.errors import CheckpointError, FastSLMError, OptionError, WeightsError
from fastslm.loading import load
from fastslm.speech import FastSLM

__all__ = ["make_checkpoint", "tiny", "tiny_checkpoint"]


@pytest.fixture
def own_copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint that may be spoilt."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def _edit(folder: Path, **values: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_what_was_chosen_automatically_is_said_once_with_the_reason(tiny_checkpoint: Path, capsys) -> None:
    load(tiny_checkpoint)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    chosen = "cuda" if torch.cuda.is_available() else "cpu (no CUDA device was found), float32 ("
    assert f"runs on {chosen}" in err


@pytest.mark.parametrize("multiplies", [True, False])
def test_on_a_cpu_that_multiplies_bfloat16_the_encoder_computes_in_it_unless_a_dtype_is_named(
    tiny_checkpoint: Path, capsys, monkeypatch, multiplies: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: multiplies)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    model = load(tiny_checkpoint, device="cpu")
    assert model.encoder.dtype is (torch.bfloat16 if multiplies else None)
    assert ("the encoder in bfloat16 (" in capsys.readouterr().err) is multiplies
    assert {parameter.dtype for parameter in model.model.parameters()} == {torch.float32}
    assert load(tiny_checkpoint, device="cpu", dtype="float32").encoder.dtype is None


@pytest.mark.parametrize("multiplies", [True, False])
def test_whispers_decoder_multiplies_what_its_encoder_does_and_what_was_trained_stays_as_it_is(
    make_checkpoint: MakeCheckpoint, capsys, monkeypatch, multiplies: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: multiplies)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    model = load(make_checkpoint(reader=True), device="cpu").model
    assert ("Whisper's parts in bfloat16 (" in capsys.readouterr().err) is multiplies
    assert model.reader.reading.dtype is (torch.bfloat16 if multiplies else torch.float32)
    # Nothing that is saved, of the trained part or whole, was rounded.
    assert {weight.dtype for weight in model.state_dict().values()} == {torch.float32}


def test_what_was_asked_for_needs_no_saying(tiny_checkpoint: Path, capsys) -> None:
    model = load(str(tiny_checkpoint), device="cpu", dtype=torch.bfloat16)
    assert capsys.readouterr().err == ""
    assert {parameter.dtype for parameter in model.model.parameters()} == {torch.bfloat16}


def test_a_model_that_comes_with_fastslm_is_found_by_its_name(tiny_checkpoint: Path, monkeypatch) -> None:
    monkeypatch.setattr(loading, "bundled_models", lambda: {"fastslm-tiny": tiny_checkpoint})
    assert load(quiet=True).name == "fastslm-tiny"


def test_bundled_models_are_those_of_the_checkout() -> None:
    shelf = Path(__file__).parents[1] / "checkpoints"
    assert set(loading.bundled_models()) == {config.parent.name for config in shelf.glob("*/config.json")}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fastslm-tinny", "did you mean 'fastslm-tiny'"),
        ("", "There is no model '': give"),
        ("whisper", "There is no model 'whisper': give"),
        ("./nowhere", "There is no model './nowhere'"),
        (__file__, "is a file, where a model's folder is needed"),
    ],
)
def test_an_unknown_model_is_refused_with_what_would_do(name: str, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        load(name)


def test_without_a_network_a_hub_id_is_refused(monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="nobody/nothing is not in the cache"):
        load("nobody/nothing")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model_type": "whisper"}, "is a model of type 'whisper'"),
        ({"mel_mode": "file"}, "mel_mode is 'file'"),
        ({"base_encoder": "whisper-tinny.en"}, "did you mean whisper-tiny.en"),
        ({"ctc_hidden_size": 32}, "another shape"),
        ({"ctc_layers": 3}, "lacks"),
        ({"ctc_head": False}, "also holds"),
        ({"lora_rank": 8}, "another shape"),
        ({"prompt_layout": "task_first"}, "the processor has prompt_layout 'audio_first'"),
        ({"audio_token_id": 7}, "the processor has audio_token_id"),
    ],
)
def test_a_checkpoint_whose_configuration_does_not_fit_is_refused(own_copy: Path, values, words: str) -> None:
    _edit(own_copy, **values)
    with pytest.raises(FastSLMError, match=words):
        load(own_copy)


def test_a_checkpoint_of_another_width_is_refused(own_copy: Path) -> None:
    config = json.loads((own_copy / "config.json").read_text())
    _edit(
        own_copy,
        audio_config={**config["audio_config"], "d_model": 96},
        hfq_config={**config["hfq_config"], "hidden_size": 96},
    )
    with pytest.raises(CheckpointError, match="encoder width 96"):
        load(own_copy)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", None])
def test_a_damaged_or_missing_configuration_is_refused(own_copy: Path, content: bytes | None) -> None:
    if content is None:
        (own_copy / "config.json").unlink()
    else:
        (own_copy / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load(own_copy)


def test_truncated_or_missing_weights_are_refused(own_copy: Path) -> None:
    weights = own_copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="damaged"):
        load(own_copy)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        load(own_copy)


def test_a_whole_checkpoint_loads_and_hears_the_same(tiny: FastSLM, tmp_path: Path) -> None:
    tiny.model.save_pretrained(tmp_path / "whole")
    with pytest.raises(CheckpointError, match=r"holds no processor_config\.json"):
        load(tmp_path / "whole")
    tiny.processor.save_pretrained(tmp_path / "whole")
    assert (
        load(tmp_path / "whole", dtype="float32", quiet=True).transcribe(noise(3)).text
        == tiny.transcribe(noise(3)).text
    )


def test_a_trained_part_without_a_processor_takes_its_bases(tiny: FastSLM, tiny_checkpoint: Path, tmp_path) -> None:
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        shutil.copy(tiny_checkpoint / name, tmp_path / name)
    model = load(tmp_path, quiet=True)
    assert model.ask(noise(3), "Who?", max_new_tokens=5).text == tiny.ask(noise(3), "Who?", max_new_tokens=5).text


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "tpu"])
def test_a_device_that_is_not_there_is_refused(tiny_checkpoint: Path, device: str) -> None:
    with pytest.raises(OptionError, match=f"The device '{device}' cannot be used"):
        load(tiny_checkpoint, device=device)


def test_an_unknown_dtype_is_refused(tiny_checkpoint: Path) -> None:
    with pytest.raises(OptionError, match="no dtype 'int8'"):
        load(tiny_checkpoint, dtype="int8")


def test_the_home_of_nobody_is_no_model() -> None:
    with pytest.raises(CheckpointError, match="There is no model '~nobody-of-that-name/x'"):
        load("~nobody-of-that-name/x")
