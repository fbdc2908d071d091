"""The authors' checkpoint, and the comparison with what their code computed. No case's size is known here."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import WhisperConfig

from fastslm.errors import CheckpointError
from fastslm.model.authors import (
    authors_state_dict,
    import_authors,
    infer_config,
    load_authors,
    our_key,
    read_state_dict,
    their_key,
)
from fastslm.model.lora import stored_state
from fastslm.model.modeling import FastSLMForConditionalGeneration
from fastslm.model.parity import ParityCase, authors_batch_forward, verify_case
from fastslm.prompts import build_content
from fastslm.training.dry_run import meta_config
from fastslm.training.recipe_file import load_recipe

ROOT = Path(__file__).parents[2]
SELECTIONS = ("mel.full", "mel.first50", "mel.last7", "mel.at10_20", "mel.stats", "mel_windows.stats")
STAGES = ("audio_features", "stage1_tokens", "stage2_feature", "compressed", "out_attn2", "speech_tokens")


@pytest.fixture(scope="module")
def model(build_model):
    """Two heads of 64, three detail blocks, stages of other sizes."""
    sizes = {"d_model": 128, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 256}
    return build_model(
        "qwen3",
        audio_config=WhisperConfig(num_mel_bins=80, **sizes),
        hfq={"hidden_size": 128, "head_size": 64, "stage_tokens": [9, 6, 4], "final_tokens": 7, "detail_blocks": 3},
    )


@pytest.fixture
def case(recorded_case, tmp_path) -> Path:
    """A copy to spoil."""
    shutil.copytree(recorded_case.parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / recorded_case.name


@pytest.fixture(scope="module")
def recorded_case(model, make_tokenizer, clips, tmp_path_factory) -> Path:
    """A case of clips with other names, three windows, a batch of three, recorded by ours: it tests the comparison."""
    tmp_path = tmp_path_factory.mktemp("parity")
    folder = tmp_path / "case"
    model.config.text_config.save_pretrained(folder / "llm")
    make_tokenizer().save_pretrained(folder / "llm")
    torch.save(authors_state_dict(model), folder / "checkpoint.pt")
    whole = (np.concatenate([clips["long"], clips["long"]]) * 32767).astype(np.int16)
    save_file({"voice": torch.from_numpy(whole)}, tmp_path / "waveforms.safetensors")
    lengths = {"word": 5000, "phrase": 200_000, "speech.whole": len(whole)}
    content = build_content("transcribe", layout="task_first")
    config = {
        "sizes": {"lora_alpha": model.config.lora_alpha},
        "clips": {name: {"source": "voice", "samples": samples} for name, samples in lengths.items()},
        "full": {
            "prompt": f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n",
            "single_clip": "speech.whole",
            "single_answers": ["yes"],
            "batch_clips": list(lengths),
            "batch_answers": ["one", "and two", "three"],
        },
        "facts": {"batch_grad_norms": {}, "loss": {}, "special_ids": {"<|SQQA|>": 267}, "tokenizer_length": 268},
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"nothing": torch.zeros(0)}, folder / "vectors.safetensors")
    recorded = ParityCase(folder, None)
    vectors = {}
    for clip in lengths:
        for name in (*SELECTIONS, *STAGES, *(f"{stage}.every3" for stage in STAGES), *(f"{s}.stats" for s in STAGES)):
            per_window = name == "mel_windows.stats" or name.split(".")[0] in STAGES
            vectors[f"{clip}.{name}"] = recorded.value(f"{clip}.{name}", torch.zeros((1, 4) if per_window else 4))
    for part, rows in (("single", 1), ("batch", 3)):
        for name in ("input_ids", "labels", "labels_out", "logits_last5", "loss", "speech_tokens", "speech_pad_mask"):
            vectors[f"{part}.{name}"] = recorded.value(f"{part}.{name}", torch.zeros(1))
        vectors[f"{part}.logits.stats"] = recorded.value(f"{part}.logits.stats", torch.zeros(rows, 4))
        vectors[f"generate.{part}.new_ids"] = recorded.generated(part, 6)[0]
        vectors[f"generate.{part}.step0_logits"] = recorded.generated(part, 6)[1]
    vectors["generate.input_ids"] = torch.tensor([recorded.prompt_ids])
    query = "encoder.compressor.query"
    vectors[f"batch.grad.{query}"] = recorded.batch[f"grad.{our_key(query)}"]
    save_file({name: value.contiguous() for name, value in vectors.items()}, folder / "vectors.safetensors")
    trained = [name.removeprefix("grad.") for name in recorded.batch if name.startswith("grad.")]
    norms = {their_key(name): recorded.batch[f"grad.{name}"].norm().item() for name in trained}
    config["facts"]["batch_grad_norms"] = norms
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def differing(case: Path, checkpoint: Path | None = None) -> dict[str, str]:
    return {c.name: c.note for c in verify_case(case, checkpoint) if not c.agrees}


@pytest.mark.parametrize("name", ["small", "wide"])
def test_every_recorded_tensor_of_the_authors_code_agrees(name, parity, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(parity), *sys.path])
    from expand_checkpoint import expand

    checkpoint = tmp_path / "checkpoint.pt"
    torch.save(expand(json.loads((parity / name / "checkpoint-recipe.json").read_text())), checkpoint)
    comparisons = list(verify_case(parity / name, checkpoint))
    assert [c for c in comparisons if not c.agrees] == []
    assert set(load_file(parity / name / "vectors.safetensors")) <= {c.name for c in comparisons}


def test_what_users_compute_in_float32_is_the_authors_up_to_rounding(parity):
    case = ParityCase(parity / "small", None, torch.float32)
    names = [name for name in case.vectors if name.endswith((".speech_tokens", ".step0_logits", "batch.loss"))]
    assert len(names) == 7  # three clips, the batch of two and its loss, and the first logits of one and of two rows
    for name in names:
        expected = case.vectors[name]
        value = case.value(name, expected)
        assert value is not None
        assert value.dtype is torch.float32
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)


def test_a_case_of_other_sizes_clips_and_windows_agrees(case):
    assert differing(case) == {}


CHANGES = {
    "speech.whole.compressed.every3": lambda x: x + 1e-3,
    "word.mel.first50": lambda x: x + 1e-4,
    "phrase.out_attn2.stats": lambda x: x * 1.001,
    "batch.loss": lambda x: x + 1e-3,
    "batch.labels_out": lambda x: x + 1,
    "batch.speech_pad_mask": lambda x: 1 - x,
    "generate.batch.new_ids": lambda x: x.flip(1) + 1,
    "single.logits_last5": lambda x: torch.full_like(x, float("nan")),
    "word.speech_tokens": lambda x: x[:, 1:],
}
# Within the log-mel's tolerance, and beyond that of all else, whatever the clip is called.
TOLERATED = {"speech.whole.mel.full": lambda x: x + 1.5e-5, "word.mel.last7": lambda x: x - 1.5e-5}
UNKNOWN = ("word.stage4_tokens", "word.compressed.odd", "other.mel.full", "batch.grad.encoder.more", "generate.m", "x")


def test_each_value_that_differs_is_found_and_no_other(case):
    file = case / "vectors.safetensors"
    vectors = load_file(file)
    changes = {**CHANGES, **TOLERATED}
    save_file({**vectors, **{name: change(vectors[name]).contiguous() for name, change in changes.items()}}, file)
    assert set(differing(case)) == set(CHANGES)


def test_a_tensor_of_an_unknown_name_is_a_failure(case):
    file = case / "vectors.safetensors"
    save_file({**load_file(file), **{name: torch.zeros(1) for name in UNKNOWN}}, file)
    assert differing(case) == dict.fromkeys(UNKNOWN, "nothing of this name is known")


def test_norms_of_gradients_and_the_trained_parameters_are_facts_too(case):
    file = case / "config.json"
    config = json.loads(file.read_text())
    norms = config["facts"]["batch_grad_norms"]
    norms["encoder.llm_proj.bias"] *= 1.001
    del norms["encoder.compressor1.query"]
    file.write_text(json.dumps(config))
    assert set(differing(case)) == {"facts.batch_grad_norms.encoder.llm_proj.bias", "facts.trained"}


def test_a_checkpoint_of_other_values_does_not_agree(case, tmp_path):
    state = torch.load(case / "checkpoint.pt", weights_only=True)
    state["encoder.out_attn.0.cross_attn.v.weight"] *= 1.1
    torch.save(state, tmp_path / "other.pt")
    found = differing(case, tmp_path / "other.pt")
    assert "word.out_attn2" in found
    assert "word.compressed" not in found


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("config.json", "holds no config.json"),
        ("vectors.safetensors", "vectors.safetensors cannot be read"),
        ("../waveforms.safetensors", "waveforms.safetensors cannot be read"),
        ("checkpoint.pt", "--checkpoint"),
        ("llm/config.json", "language model"),
    ],
)
def test_a_case_that_lacks_a_file_is_refused(file, said, case):
    (case / file).unlink()
    with pytest.raises(CheckpointError, match=said):
        list(verify_case(case))


def test_a_case_without_its_language_model_is_refused_without_a_look_at_the_network(case, monkeypatch):
    shutil.rmtree(case / "llm")
    monkeypatch.chdir(case.parent)
    with pytest.raises(CheckpointError, match="holds no folder llm"):
        list(verify_case(case.name))


def test_waveforms_may_lie_in_the_case_itself(case):
    (case.parent / "waveforms.safetensors").rename(case / "waveforms.safetensors")
    assert list(ParityCase(case, None).waveforms) == ["voice"]


def test_ours_gives_every_row_of_a_batch_the_loss_that_it_has_alone_and_theirs_does_not(case):
    recorded = ParityCase(case, None)
    input_ids, labels = recorded.text_batch("batch")
    model = recorded.model
    for row, clip in enumerate(recorded.clips_of("batch")):
        speech = [recorded.clip(clip)["speech_tokens"][0]]
        ids, row_labels = input_ids[row : row + 1], labels[row : row + 1]
        with torch.no_grad():
            alone = authors_batch_forward(model, ids, row_labels, speech, recorded.pad_token_id)["loss"]
        own = recorded.own_forward("batch", row)  # transformers' loss is float32
        torch.testing.assert_close(own, alone.float(), atol=1e-5, rtol=1e-5)
    speech = [recorded.clip(clip)["speech_tokens"][0] for clip in recorded.clips_of("batch")]
    with torch.no_grad():
        padded = authors_batch_forward(model, input_ids[[0, 2]], labels[[0, 2]], [speech[0], speech[2]], 256)
        alone = authors_batch_forward(model, input_ids[:1], labels[:1], speech[:1], 256)
    text = labels[0] != -100
    tail, single_tail = (x["logits"][0, -len(text) :][text] for x in (padded, alone))
    assert (tail - single_tail).abs().max() > 1e-2


def test_names_go_both_ways(model):
    theirs = authors_state_dict(model)
    ours = stored_state(model.state_dict())
    assert {our_key(key) for key in theirs if not key.endswith("_pos_embeds")} == set(ours)
    for key in ours:
        name = their_key(key)
        assert name is not None
        assert our_key(name) == key
        assert torch.equal(theirs[name], ours[key])
    assert our_key("encoder.compressor1.q_pos_embeds") is None
    assert our_key("encoder.stranger.weight") is None


def test_an_exported_model_imports_as_it_was(model, case):
    loaded, processor = load_authors(read_state_dict(case / "checkpoint.pt"), case / "llm", model.config.lora_alpha)
    left, right = model.state_dict(), loaded.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)
    config = loaded.config
    assert (config.mel_mode, config.prompt_layout, config.tokens_per_window) == ("authors", "task_first", 7)
    assert (config.hfq_config.stage_tokens, config.hfq_config.detail_blocks) == ([9, 6, 4], 3)
    assert (config.audio_config.encoder_layers, config.lora_rank, config.lora_alpha) == (2, 4, 8)
    assert (processor.mel_mode, processor.prompt_layout, processor.tokens_per_window) == ("authors", "task_first", 7)


def test_an_import_is_a_folder_that_loads_with_every_tensors_own_dtype(model, case, clips, tmp_path):
    state = torch.load(case / "checkpoint.pt", weights_only=True)
    for key in state:
        if key.startswith("llm.") and "lora_" not in key:
            state[key] = state[key].bfloat16()
    torch.save(state, tmp_path / "mixed.pt")
    import_authors(tmp_path / "mixed.pt", tmp_path / "made", case / "llm", 8)
    stored = load_file(tmp_path / "made" / "model.safetensors")
    assert stored["language_model.model.embed_tokens.weight"].dtype == torch.bfloat16
    assert stored["hfq_former.compressor1.query"].dtype == torch.float32
    from transformers import AutoModelForMultimodalLM, AutoProcessor

    made = AutoModelForMultimodalLM.from_pretrained(tmp_path / "made")
    processor = AutoProcessor.from_pretrained(tmp_path / "made")
    assert {p.dtype for p in made.parameters()} == {torch.float32}
    expected, _ = load_authors(read_state_dict(tmp_path / "mixed.pt"), case / "llm", 8)
    inputs = processor(processor.build_prompt("transcribe"), clips["long"])
    assert int((inputs["input_ids"] == made.config.audio_token_id).sum()) == 14
    with torch.no_grad():
        assert torch.equal(made(**inputs).logits, expected(**inputs).logits)


REFUSED = {
    "positional table differs": lambda s: s.update({"encoder.compressor2.kv_pos_embeds": torch.zeros(750, 128)}),
    "lacks encoder.llm_proj.weight": lambda s: s.pop("encoder.llm_proj.weight"),
    "lacks 1 tensors": lambda s: s.pop("encoder.stage1.conv1.bias"),
    "holds encoder.adapter.weight": lambda s: s.update({"encoder.adapter.weight": torch.zeros(1)}),
    "also holds 1 tensors": lambda s: s.update({"llm.base_model.model.model.more.weight": torch.zeros(1)}),
    "is 40 wide": lambda s: s.update({"encoder.llm_proj.weight": torch.zeros(40, 128)}),
    "by the language model's configuration": lambda s: s.update(
        {"llm.base_model.model.model.layers.0.mlp.up_proj.base_layer.weight": torch.zeros(3, 32)}
    ),
    "not its input embedding": lambda s: s.update({"llm.base_model.model.lm_head.weight": torch.zeros(384, 32)}),
    "LoRA has the ranks": lambda s: s.update(
        {"llm.base_model.model.model.layers.0.mlp.up_proj.lora_A.default.weight": torch.zeros(5, 32)}
    ),
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_is_not_such_a_checkpoint_is_refused_in_one_sentence(said, case, tmp_path):
    state = torch.load(case / "checkpoint.pt", weights_only=True)
    REFUSED[said](state)
    torch.save(state, tmp_path / "spoilt.pt")
    with pytest.raises(CheckpointError, match=said) as caught:
        import_authors(tmp_path / "spoilt.pt", tmp_path / "made", case / "llm", 8)
    assert ". " not in str(caught.value)
    assert not (tmp_path / "made").exists()


class Code:
    def __reduce__(self):
        return (print, ("this code must not run",))


def test_a_file_that_is_no_state_dict_is_refused_and_its_code_is_not_run(tmp_path, capsys):
    with pytest.raises(CheckpointError, match="no checkpoint file"):
        read_state_dict(tmp_path / "missing.pt")
    for name, value in (("code", {"x": Code()}), ("list", [torch.zeros(1)]), ("nested", {"model": {"x": 1}})):
        torch.save(value, tmp_path / f"{name}.pt")
        with pytest.raises(CheckpointError, match=f"{name}.pt"):
            read_state_dict(tmp_path / f"{name}.pt")
    (tmp_path / "text.pt").write_text("no checkpoint at all")
    (tmp_path / "words.pt").write_text("hello these are words\n" * 200)
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    for name in ("text.pt", "words.pt", "cut.safetensors"):
        with pytest.raises(CheckpointError, match="damaged"):
            read_state_dict(tmp_path / name)
    assert "must not run" not in capsys.readouterr().out


def test_a_tokenizer_with_more_tokens_than_rows_is_refused(case):
    file = case / "llm" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "vocab_size": 260}))
    with pytest.raises(CheckpointError, match="has 268 tokens"):
        load_authors(read_state_dict(case / "checkpoint.pt"), case / "llm")


@pytest.fixture(scope="module")
def paper() -> FastSLMForConditionalGeneration:
    recipe = load_recipe(ROOT / "recipes" / "paper" / "stage1.yaml", look_for_files=False)
    with torch.device("meta"):
        return FastSLMForConditionalGeneration(meta_config(recipe))


def parameters(module: torch.nn.Module, only: str = "") -> int:
    return sum(parameter.numel() for name, parameter in module.named_parameters() if only in name)


def test_the_papers_model_has_the_papers_number_of_parameters_part_by_part(paper):
    former = paper.hfq_former
    assert parameters(former) == 52_861_440
    for compressor in (former.compressor1, former.compressor2, former.compressor3):
        assert parameters(compressor) == 1_747_200
    assert parameters(former.distillation) == 1_708_800
    assert parameters(former.downsampler1) == parameters(former.downsampler2) == 9_835_520
    assert parameters(former.detail_recovery) == 26_240_000
    assert parameters(paper.projector) == 3_279_360
    assert parameters(paper.language_model, ".low_rank.") == 33_030_144
    trained = sum(parameter.numel() for parameter in paper.parameters() if parameter.requires_grad)
    assert trained == 89_170_944
    # The position table is a parameter in transformers' encoder, and is not counted as one by the authors.
    assert parameters(paper.encoder) - 1500 * 1280 == 635_048_960
    assert all(parameter.is_meta for parameter in paper.parameters())


def test_the_papers_model_has_the_authors_names_and_shapes(paper, parity):
    recorded = json.loads((parity / "paper-keys.json").read_text())
    theirs = authors_state_dict(paper)
    assert {key: list(value.shape) for key, value in theirs.items()} == {
        key: entry["shape"] for key, entry in recorded["keys"].items()
    }


def test_the_papers_sizes_are_read_off_its_tensors(paper, parity):
    entries = json.loads((parity / "paper-keys.json").read_text())["keys"]
    state = {key: torch.empty(entry["shape"], device="meta") for key, entry in entries.items()}
    read = infer_config(state, paper.config.text_config, 64)
    assert read.hfq_config.to_dict() == paper.config.hfq_config.to_dict()
    for name in ("d_model", "num_mel_bins", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim"):
        assert getattr(read.audio_config, name) == getattr(paper.config.audio_config, name)
    assert (read.lora_rank, sorted(read.lora_targets)) == (16, sorted(paper.config.lora_targets))
