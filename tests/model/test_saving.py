"""Both forms of checkpoint come back bit for bit, or are refused in one sentence."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMultimodalLM, AutoModelForSpeechSeq2Seq, AutoProcessor

from fastslm.errors import CheckpointError, WeightsError
from fastslm.model.modeling import FastSLMForConditionalGeneration as Model
from fastslm.model.processing import FastSLMProcessor
from fastslm.model.saving import ADDED_INPUT_ROWS, ADDED_OUTPUT_ROWS, written_beside

FORMER = {"head_size": 32, "stage_tokens": [8, 8, 8], "final_tokens": 5}


@pytest.fixture
def make_from_base(base_folders):
    """A model and a processor on base weights, with LoRA that does something."""

    def make(text: int = 1, seed: int = 0, **options):
        encoder, text_model = base_folders[0], base_folders[text]
        processor = FastSLMProcessor.from_base(encoder, text_model, tokens_per_window=5)
        torch.manual_seed(seed)
        model = Model.from_base(
            encoder, text_model, tokenizer=processor.tokenizer, hfq_config=FORMER, lora_rank=4, **options
        )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("low_rank.B"):
                    parameter.normal_(0.0, 0.1)
        return model, processor

    return make


def same(first: Model, second: Model) -> bool:
    left, right = first.state_dict(), second.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_everything_saved_is_everything_loaded_bit_for_bit(kind, make_model, processor, clips, tmp_path):
    model = make_model(kind, ctc_head=True, ctc_hidden_size=16, ctc_layers=1, ctc_steps_per_token=4)
    model.save_pretrained(tmp_path / "saved")
    loaded = Model.from_pretrained(tmp_path / "saved")
    inputs = processor(processor.build_prompt("transcribe"), clips["middle"])
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    assert same(model, loaded)
    assert not loaded.training
    names = [{n for n, p in m.named_parameters() if p.requires_grad} for m in (model, loaded)]
    assert names[0] == names[1]


NEW_PROCESS = """
import sys, numpy as np, torch
from safetensors.torch import save_file
from transformers import AutoModelForMultimodalLM, AutoProcessor
import fastslm.model.modeling, fastslm.model.processing
torch.set_num_threads(1)
for form in ("whole", "trained"):
    folder = f"{sys.argv[1]}/{form}"
    model, processor = AutoModelForMultimodalLM.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    inputs = processor(processor.build_prompt("transcribe"), np.load(f"{sys.argv[1]}/clip.npy"))
    with torch.no_grad():
        logits = model(**inputs).logits
    save_file({"logits": logits, "ids": model.generate(**inputs, max_new_tokens=5, do_sample=False)}, f"{folder}.out")
"""


def test_a_new_process_computes_the_same_bits_from_either_form(make_from_base, clips, tmp_path):
    import numpy as np

    model, processor = make_from_base()
    np.save(tmp_path / "clip.npy", clips["middle"])
    model.save_pretrained(tmp_path / "whole")
    model.save_trained(tmp_path / "trained")
    for form in ("whole", "trained"):
        processor.save_pretrained(tmp_path / form)
    subprocess.run([sys.executable, "-c", NEW_PROCESS, str(tmp_path)], check=True, capture_output=True, text=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    inputs = processor(processor.build_prompt("transcribe"), clips["middle"])
    with torch.no_grad():
        logits = model(**inputs).logits
    torch.set_num_threads(threads)
    ids = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    for form in ("whole", "trained"):
        made = load_file(tmp_path / f"{form}.out")
        assert torch.equal(made["logits"], logits)
        assert torch.equal(made["ids"], ids)


@pytest.mark.parametrize("text", [1, 2], ids=["tied", "untied"])
def test_the_trained_part_holds_what_the_base_lacks_and_comes_back_bit_for_bit(text, make_from_base, tmp_path):
    model, _ = make_from_base(text, ctc_head=True, ctc_hidden_size=16, ctc_layers=1, ctc_steps_per_token=4)
    assert model.config.added_embeddings == 9
    model.save_trained(tmp_path / "trained")
    with safe_open(tmp_path / "trained" / "model.safetensors", "pt") as file:
        keys = set(file.keys())
        assert file.get_slice(ADDED_INPUT_ROWS).get_shape() == [9, 32]
    heads = {key.split(".")[0] for key in keys}
    assert heads == {"hfq_former", "projector", "ctc_head", "language_model", "added_embeddings"}
    assert all("lora_" in key for key in keys if key.startswith("language_model"))
    assert (ADDED_OUTPUT_ROWS in keys) is (text == 2)
    loaded = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "trained")
    assert same(model, loaded)
    assert loaded.config.base_text_model == model.config.base_text_model
    assert not loaded.training
    names = [{n for n, p in m.named_parameters() if p.requires_grad} for m in (model, loaded)]
    assert names[0] == names[1]
    assert not any(x.is_meta for x in [*loaded.parameters(), *loaded.buffers()])


def test_added_rows_start_as_the_mean_of_the_others(make_from_base):
    model, processor = make_from_base()
    rows = model.get_input_embeddings().weight
    assert len(rows) == len(processor.tokenizer)
    torch.testing.assert_close(rows[-9:], rows[:-9].mean(0).expand(9, -1))


def test_the_trained_part_stored_in_half_precision_loads_in_the_models_own(make_from_base, tmp_path):
    model, _ = make_from_base()
    model.save_trained(tmp_path / "half", dtype=torch.float16)
    assert {x.dtype for x in load_file(tmp_path / "half" / "model.safetensors").values()} == {torch.float16}
    loaded = Model.from_pretrained(tmp_path / "half")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    query = model.hfq_former.compressor1.query
    assert torch.equal(loaded.hfq_former.compressor1.query, query.half().float())
    assert {p.dtype for p in Model.from_pretrained(tmp_path / "half", dtype=torch.bfloat16).parameters()} == {
        torch.bfloat16
    }


def test_the_same_seed_builds_the_same_model(make_from_base):
    (first, _), (again, _), (other, _) = (make_from_base(seed=seed) for seed in (1, 1, 2))
    assert same(first, again)
    assert not torch.equal(first.projector.weight, other.projector.weight)


def test_base_weights_are_those_of_their_folders(make_from_base, base_folders):
    model, _ = make_from_base()
    whisper = load_file(base_folders[0] / "model.safetensors")
    for key, value in model.encoder.state_dict().items():
        assert torch.equal(value, whisper[f"model.encoder.{key}"])
    llama = load_file(base_folders[1] / "model.safetensors")
    assert torch.equal(model.get_input_embeddings().weight[:-9], llama["model.embed_tokens.weight"])


def test_a_loaded_trained_part_saved_whole_stands_alone(make_from_base, tmp_path):
    model, _ = make_from_base()
    model.save_trained(tmp_path / "trained")
    loaded = Model.from_pretrained(tmp_path / "trained")
    loaded.save_pretrained(tmp_path / "whole")
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["base_encoder"] is None
    assert loaded.config.base_encoder is not None
    assert same(Model.from_pretrained(tmp_path / "whole"), model)


def test_a_merged_model_saves_whole_and_refuses_to_save_its_trained_part(make_from_base, clips, tmp_path):
    model, _ = make_from_base()
    model.merge_lora()
    model.save_pretrained(tmp_path / "merged")
    loaded = Model.from_pretrained(tmp_path / "merged")
    assert same(model, loaded)
    with pytest.raises(CheckpointError, match="names no base weights"):
        model.save_trained(tmp_path / "trained")
    assert not (tmp_path / "trained").exists()


def test_shards_are_loaded_and_old_ones_removed(make_model, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "saved", max_shard_size="500KB")
    assert len(list((tmp_path / "saved").glob("model-*.safetensors"))) > 1
    assert same(Model.from_pretrained(tmp_path / "saved"), model)
    (tmp_path / "saved" / "notes.txt").write_text("mine")
    model.save_pretrained(tmp_path / "saved")
    assert [file.name for file in (tmp_path / "saved").glob("model*")] == ["model.safetensors"]
    assert (tmp_path / "saved" / "notes.txt").read_text() == "mine"
    assert same(Model.from_pretrained(tmp_path / "saved"), model)


def changed_weights(folder: Path, change) -> None:
    file = folder / "model.safetensors"
    state = load_file(file)
    change(state)
    save_file(state, file, metadata={"format": "pt"})


QUERY = "hfq_former.compressor1.query"
LORA = "language_model.model.layers.1.mlp.up_proj.lora_B.default.weight"
SPOILT = {
    "lacks .*compressor1.query": lambda state: state.pop(QUERY),
    "lacks .*lora_B": lambda state: state.pop(LORA),
    "also holds": lambda state: state.update({"hfq_former.more": torch.zeros(1)}),
    "shape|sizes": lambda state: state.update({QUERY: torch.zeros(1, 9, 64)}),
}


@pytest.mark.parametrize("form", ["whole", "trained"])
@pytest.mark.parametrize("what", SPOILT)
def test_a_checkpoint_of_another_size_is_refused_in_one_sentence(what, form, make_from_base, tmp_path):
    model, _ = make_from_base()
    (model.save_pretrained if form == "whole" else model.save_trained)(tmp_path / form)
    changed_weights(tmp_path / form, SPOILT[what])
    with pytest.raises(CheckpointError, match=what) as caught:
        Model.from_pretrained(tmp_path / form)
    assert str(caught.value).count(". ") == 0


def test_base_weights_of_another_size_are_refused(make_from_base, base_folders, tmp_path):
    model, _ = make_from_base()
    model.save_trained(tmp_path / "trained")
    file = tmp_path / "trained" / "config.json"
    config = json.loads(file.read_text())
    for change, named in (
        ({"audio_config": {**config["audio_config"], "encoder_layers": 2}}, "encoder layers 2"),
        ({"text_config": {**config["text_config"], "model_type": "qwen3"}}, "text model qwen3"),
        ({"text_config": {**config["text_config"], "vocab_size": 300}}, "vocabulary 300"),
    ):
        file.write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError, match=named):
            Model.from_pretrained(tmp_path / "trained")
    file.write_text(json.dumps({**config, "base_text_model": "no-such-weights"}))
    with pytest.raises(WeightsError):
        Model.from_pretrained(tmp_path / "trained")
    file.write_text(json.dumps({**config, "base_text_model": None}))
    with pytest.raises(CheckpointError, match="only one"):
        Model.from_pretrained(tmp_path / "trained")


def test_damaged_or_missing_weights_of_the_trained_part_are_refused(make_from_base, tmp_path):
    model, _ = make_from_base()
    model.save_trained(tmp_path / "trained")
    file = tmp_path / "trained" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged"):
        Model.from_pretrained(tmp_path / "trained")
    file.unlink()
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        Model.from_pretrained(tmp_path / "trained")


def test_an_option_that_the_trained_part_cannot_follow_is_refused(make_from_base, tmp_path):
    model, _ = make_from_base()
    model.save_trained(tmp_path / "trained")
    with pytest.raises(TypeError, match="max_memory"):
        AutoModelForMultimodalLM.from_pretrained(tmp_path / "trained", max_memory={0: "1GB"})
    with pytest.raises(ValueError, match="one device"):
        Model.from_pretrained(tmp_path / "trained", device_map={"encoder": "cpu", "language_model": "meta"})
    assert Model.from_pretrained(tmp_path / "trained", device_map="cpu").device.type == "cpu"


def test_a_model_without_base_names_saves_no_trained_part(make_model, tmp_path):
    with pytest.raises(CheckpointError, match="save everything"):
        make_model().save_trained(tmp_path / "trained")
    assert not list(tmp_path.iterdir())


def test_a_save_that_fails_leaves_what_was_there(make_model, monkeypatch, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "saved")
    before = {file.name: file.read_bytes() for file in (tmp_path / "saved").iterdir()}
    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", lambda *args, **kwargs: 1 / 0)
    with torch.no_grad():
        model.projector.weight.zero_()
    for name in ("saved", "new"):
        with pytest.raises(ZeroDivisionError):
            model.save_pretrained(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    assert {file.name: file.read_bytes() for file in (tmp_path / "saved").iterdir()} == before


def test_what_is_written_beside_can_be_read_by_whom_the_umask_allows(tmp_path):
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "file").write_text("")
    with written_beside(tmp_path / "made") as folder:
        save_file({"x": torch.zeros(1)}, folder / "model.safetensors")
    assert (tmp_path / "made").stat().st_mode == plain.stat().st_mode
    assert (tmp_path / "made" / "model.safetensors").stat().st_mode == (plain / "file").stat().st_mode


def test_the_processor_comes_back_with_its_modes(make_from_base, clips, tmp_path):
    _, processor = make_from_base()
    processor.mel_mode, processor.prompt_layout = "authors", "task_first"
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded, FastSLMProcessor)
    assert (loaded.mel_mode, loaded.prompt_layout, loaded.tokens_per_window) == ("authors", "task_first", 5)
    prompt = processor.build_prompt("ask", question="Who?")
    assert loaded.build_prompt("ask", question="Who?") == prompt
    first, second = processor(prompt, clips["long"]), loaded(prompt, clips["long"])
    assert torch.equal(first["input_ids"], second["input_ids"])
    assert torch.equal(first["input_features"], second["input_features"])
