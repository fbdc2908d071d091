"""What a user of PEFT does with a model: adapters on top of the trained LoRA, which stays as it is beneath."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tiny_fastslm import MakeCheckpoint, noise
from transformers import AutoModel

from fastslm.errors import CheckpointError
from fastslm.loading import load
from fastslm.longform.encoder import WindowEncoder
from fastslm.longform.recording_prefix import RecordingPrefixes
from fastslm.model.configuration import FastSLMConfig
from fastslm.model.lora import lora_parameters
from fastslm.model.modeling import FastSLMForConditionalGeneration as Model

pytestmark = pytest.mark.fault

# How users name what they adapt; in Whisper's encoder and the HFQ-Former there are layers of these names as well.
TARGETS: dict[str, Any] = {
    "where ours is": ["q_proj", "v_proj"],
    "in the feed-forward part": ["up_proj", "down_proj"],
    "in the language model": r"language_model.*\.(q|k|v|o)_proj",
    "everywhere": "all-linear",
}


@pytest.fixture(scope="module")
def folders(make_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model with an awake LoRA, in both forms of a checkpoint."""
    model, root = Model.from_pretrained(make_checkpoint()), tmp_path_factory.mktemp("awake")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in lora_parameters(model):
            parameter.normal_(0.0, 0.2, generator=generator)
    model.save_trained(root / "trained")
    model.save_pretrained(root / "whole")
    return {"trained": root / "trained", "whole": root / "whole"}


@pytest.fixture(scope="module")
def speech(folders: dict[str, Path]) -> dict[str, torch.Tensor]:
    """A prompt with one window of speech."""
    placeholder = FastSLMConfig.from_pretrained(folders["whole"]).audio_token_id
    ids = torch.tensor([[40, 41, *[placeholder] * 50, 42, 43]])
    return {"input_ids": ids, "speech_tokens": torch.randn(50, 32, generator=torch.Generator().manual_seed(2))}


@pytest.fixture(scope="module")
def prompts(speech: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A prompt with one window of speech, and one of text alone."""
    return speech, {"input_ids": torch.tensor([[44, 45, 46]])}


def answers(model: Any, prompts: Any) -> list[torch.Tensor]:
    model.eval()
    with torch.no_grad():
        return [model(**prompt).logits for prompt in prompts]


def assert_same(first: list[torch.Tensor], second: list[torch.Tensor]) -> None:
    assert [torch.equal(a, b) for a, b in zip(first, second, strict=True)] == [True] * len(first)


def assert_close(first: list[torch.Tensor], second: list[torch.Tensor]) -> None:
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def differ(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(float((a - b).abs().max()) > 1e-3 for a, b in zip(first, second, strict=True))


def train_steps(model: Any, prompt: dict[str, torch.Tensor], steps: int = 3) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    model.train()
    for _ in range(steps):
        model(**prompt, labels=prompt["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", ["default", "mine", "fastslm"])
@pytest.mark.parametrize("targets", TARGETS)
def test_an_adapter_that_has_learnt_nothing_changes_no_bit(targets, name, folders, prompts):
    model = Model.from_pretrained(folders["trained"])
    before, ours = answers(model, prompts), [p.clone() for p in lora_parameters(model)]
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=TARGETS[targets]), adapter_name=name)
    assert_same(answers(wrapped, prompts), before)
    assert all(torch.equal(a, b) for a, b in zip(ours, lora_parameters(model), strict=True))


@pytest.mark.parametrize(
    "method",
    [
        peft.IA3Config(target_modules=["v_proj", "down_proj"], feedforward_modules=["down_proj"]),
        peft.LoHaConfig(r=2, target_modules=["q_proj"]),
        peft.VeraConfig(r=2, target_modules=["q_proj"]),
        peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa"),
    ],
    ids=lambda method: method.peft_type.value,
)
def test_adapters_of_other_kinds_leave_ours_as_it_is(method, folders, prompts):
    model = Model.from_pretrained(folders["trained"])
    before = answers(model, prompts)
    wrapped = peft.get_peft_model(model, method)
    assert_close(answers(wrapped, prompts), before)
    assert_close(answers(wrapped.merge_and_unload(), prompts), before)


@pytest.mark.parametrize("task", [None, "CAUSAL_LM"])
@pytest.mark.parametrize("form", ["trained", "whole"])
def test_what_a_user_of_peft_does_works_from_the_first_step_to_the_merged_folder(
    form, task, folders, prompts, tmp_path
):
    model = Model.from_pretrained(folders[form])
    before, ours = answers(model, prompts), [p.clone() for p in lora_parameters(model)]
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], task_type=task)
    wrapped = peft.get_peft_model(model, config)
    trained = {name for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(".lora_" in name for name in trained)
    train_steps(wrapped, prompts[0])
    assert all(torch.equal(a, b) for a, b in zip(ours, lora_parameters(model), strict=True))
    after = answers(wrapped, prompts)
    assert differ(after, before)
    with wrapped.disable_adapter():
        assert_same(answers(wrapped, prompts), before)
    assert_same(answers(wrapped, prompts), after)

    wrapped.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(Model.from_pretrained(folders[form]), tmp_path / "adapter")
    assert_same(answers(again, prompts), after)

    merged = again.merge_and_unload()
    written = answers(merged, prompts)
    assert_close(written, after)
    merged.save_pretrained(tmp_path / "merged")
    loaded = Model.from_pretrained(tmp_path / "merged")
    assert_same(answers(loaded, prompts), written)
    # Ours is still one that a prompt of text alone switches off.
    assert len(lora_parameters(loaded)) == len(ours)


def test_layers_that_are_computed_again_for_their_gradients_have_lora_as_it_was(folders, prompts):
    gradients = []
    for again in (False, True):
        model = Model.from_pretrained(folders["trained"])
        torch.manual_seed(0)
        config = peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
        wrapped: Any = peft.get_peft_model(model, config).train()
        if again:
            model.gradient_checkpointing_enable()
        gradients.append([])
        for prompt in prompts:  # with LoRA, and without
            wrapped(**prompt, labels=prompt["input_ids"]).loss.backward()
            gradients[-1] += [p.grad.clone() for p in wrapped.parameters() if p.grad is not None]
            wrapped.zero_grad()
    assert gradients[0]
    assert_close(*gradients)


def test_two_adapters_take_turns_on_top_of_ours(folders, prompts, tmp_path):
    model = Model.from_pretrained(folders["trained"])
    before = answers(model, prompts)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]), adapter_name="first")
    train_steps(wrapped, prompts[0])
    first = answers(wrapped, prompts)
    wrapped.add_adapter("second", peft.LoraConfig(r=3, target_modules=["up_proj"]))
    wrapped.set_adapter("second")
    assert_same(answers(wrapped, prompts), before)
    train_steps(wrapped, prompts[0])
    second = answers(wrapped, prompts)
    assert differ(second, first)
    wrapped.set_adapter("first")
    assert_same(answers(wrapped, prompts), first)
    wrapped.delete_adapter("first")
    wrapped.set_adapter("second")
    assert_same(answers(wrapped, prompts), second)
    assert_same(answers(wrapped.unload(), prompts), before)


@pytest.mark.parametrize("part", ["projector", "hfq_former"])
def test_parts_that_are_trained_whole_come_back_too(part, folders, speech, tmp_path):
    frames = torch.randn(1, 1500, 48, generator=torch.Generator().manual_seed(3))
    prompts = ({"input_ids": speech["input_ids"], "encoder_frames": frames},)
    model = Model.from_pretrained(folders["trained"])
    before = answers(model, prompts)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=[part])
    wrapped = peft.get_peft_model(model, config)
    assert_same(answers(wrapped, prompts), before)
    train_steps(wrapped, prompts[0])
    after = answers(wrapped, prompts)
    with wrapped.disable_adapter():
        assert_same(answers(wrapped, prompts), before)
    wrapped.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(Model.from_pretrained(folders["trained"]), tmp_path / "adapter")
    assert_same(answers(again, prompts), after)
    merged = again.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    assert_same(answers(Model.from_pretrained(tmp_path / "merged"), prompts), answers(merged, prompts))
    assert_close(answers(merged, prompts), after)


@pytest.mark.parametrize("form", ["trained", "whole"])
@pytest.mark.parametrize("name", [None, "mine"])
def test_an_adapter_of_transformers_is_saved_and_loaded_by_its_folder(name, form, folders, prompts, tmp_path, caplog):
    model = Model.from_pretrained(folders[form])
    before = answers(model, prompts)
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"]), name)
    assert_same(answers(model, prompts), before)
    train_steps(model, prompts[0])
    after = answers(model, prompts)
    model.disable_adapters()
    assert_same(answers(model, prompts), before)
    model.enable_adapters()
    model.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    for loader in (Model, AutoModel):
        assert_same(answers(loader.from_pretrained(tmp_path / "adapter"), prompts), after)
    loaded = Model.from_pretrained(folders[form])
    loaded.load_adapter(str(tmp_path / "adapter"))
    assert_same(answers(loaded, prompts), after)
    loaded.delete_adapter("default")
    assert_same(answers(loaded, prompts), before)


def test_a_model_with_an_adapter_on_top_is_not_saved_as_if_it_had_none(folders, prompts, tmp_path):
    model = Model.from_pretrained(folders["trained"])
    before = answers(model, prompts)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    for save in (model.save_pretrained, model.save_trained):
        with pytest.raises(CheckpointError, match="merge_and_unload"):
            save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    assert_same(answers(Model.from_pretrained(saved(wrapped.unload(), tmp_path / "saved")), prompts), before)


def test_what_was_merged_into_the_base_is_not_lost_by_saving_the_trained_part_alone(folders, prompts, tmp_path):
    model = Model.from_pretrained(folders["trained"])
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    train_steps(wrapped, prompts[0])
    with pytest.raises(CheckpointError, match="save everything with save_pretrained"):
        saved(wrapped.merge_and_unload(), tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def saved(model: Model, folder: Path) -> Path:
    model.save_trained(folder)
    return folder


def test_a_recording_is_read_anew_by_a_model_with_another_adapter(folders, prompts, tmp_path):
    model = Model.from_pretrained(folders["trained"])
    recordings = RecordingPrefixes(model, load(folders["trained"], quiet=True).processor)
    tokens = torch.randn(1, 50, 48, generator=torch.Generator().manual_seed(6))
    prompt = recordings.processor.build_prompt("ask", question="Who?")

    def was_kept() -> bool:
        with recordings.of(prompt, [tokens]) as (_, kept):
            return kept

    assert (was_kept(), was_kept()) == (False, True)
    wrapped: Any = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    train_steps(wrapped, prompts[0])
    wrapped.eval()
    assert (was_kept(), was_kept()) == (False, True)
    with wrapped.disable_adapter():
        assert not was_kept()
    assert (was_kept(), was_kept()) == (False, True)
    wrapped.merge_and_unload()
    assert (was_kept(), was_kept()) == (False, True)


def test_a_checkpoint_keeps_the_names_that_lora_always_had(folders):
    from safetensors import safe_open

    layer = "language_model.model.layers.0.mlp.up_proj"
    with safe_open(folders["whole"] / "model.safetensors", "pt") as file:
        assert {key for key in file.keys() if key.startswith(layer)} == {  # noqa: SIM118
            f"{layer}.base_layer.weight",
            f"{layer}.lora_A.default.weight",
            f"{layer}.lora_B.default.weight",
        }
    with safe_open(folders["trained"] / "model.safetensors", "pt") as file:
        assert {key for key in file.keys() if key.startswith(layer)} == {  # noqa: SIM118
            f"{layer}.lora_A.default.weight",
            f"{layer}.lora_B.default.weight",
        }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_on_any_part_is_heard_by_the_loaded_object_and_gone_when_it_is_switched_off(
    dtype, make_checkpoint, tmp_path
):
    asr = load(make_checkpoint(reader=True), dtype="float32", quiet=True)
    if dtype == "bfloat16":  # as on processors that multiply it: copies of encoder, HFQ-Former and decoder
        asr.encoder = WindowEncoder(asr.model, dtype=torch.bfloat16)
        asr.model.reader.read_in(torch.bfloat16)
    tokens = asr.encode(noise(2.0)).tokens

    def heard() -> tuple[list[float], str, list[int]]:
        memory = asr.encode(noise(2.0))
        (read,) = asr.model.reader.read(tokens, 20)
        return memory.tokens.flatten().tolist(), memory.facts.token_fingerprint, list(read.ids)

    before = heard()
    for part, changes in (("encoder", [0, 1]), ("hfq_former", [0, 1]), ("reader.decoder", [2])):
        torch.manual_seed(1)
        config = peft.LoraConfig(r=4, lora_alpha=80, target_modules=rf"{part}\..*_proj", init_lora_weights=False)
        wrapped: Any = peft.get_peft_model(asr.model, config).eval()
        adapted = heard()
        assert [index for index in changes if adapted[index] == before[index]] == []
        with wrapped.disable_adapter():
            off = heard()
            assert (off[0], off[2]) == (before[0], before[2])
        wrapped.unload()
        assert heard() == before
