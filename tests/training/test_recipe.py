"""Recipes: every fault is said at once, in words that name the remedy."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fastslm.errors import RecipeError
from fastslm.training import recipe as recipes
from fastslm.training.recipe import ModelRecipe, Recipe, check_recipe, load_recipe
from fastslm.training.stages import own_config

ROOT = Path(__file__).parents[2]


def set_in(content: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    content = copy.deepcopy(content)
    node: Any = content
    *parents, last = path.split(".")
    for part in parents:
        node = node[int(part)] if isinstance(node, list) else node[part]
    node[last] = value
    return content


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("sede", r"unknown key sede \(did you mean seed\?\)"),
        ("model.hfq.final_token", r"model\.hfq\.final_token \(did you mean final_tokens\?\)"),
        ("model.ctc.layer", r"model\.ctc\.layer \(did you mean layers\?\)"),
        ("data.train.0.shares", r"data\.train\.0\.shares \(did you mean share\?\)"),
        ("phases.1.rates.hfq_matrix", r"phases\.1\.rates\.hfq_matrix \(did you mean hfq_matrices\?\)"),
        ("data.zzz", r"data\.zzz \(known there: train, sounds"),
    ],
)
def test_an_unknown_key_is_named_beside_the_nearest_known_one(
    recipe_content: dict[str, Any], path: str, said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        check_recipe(set_in(recipe_content, path, 1), "r.yaml")


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("phases.0.rates.hfq_other", -0.1, r"phases\.0\.rates\.hfq_other is -0\.1: input should be greater"),
        ("phases.0.rates.hfq_other", float("inf"), r"phases\.0\.rates\.hfq_other is inf: input should be a finite"),
        ("phases.0.rates", {}, "every learning rate is 0"),
        ("phases.0.rates", {"hfq_other": 0.1, "lora": 0.1}, "objective tied does not train lora"),
        ("phases.0.ctc_weight", 0.2, "ctc_weight does nothing for objective tied"),
        ("phases.0.objective", "rnnt", "phases.0.objective is 'rnnt'"),
        ("phases", [], "phases is"),
        ("model.taught_seconds", {"ask": 10}, r"model\.taught_seconds\.ask is 10: input should be greater"),
        ("model.taught_seconds", {"sing": 60}, r"model\.taught_seconds\.sing"),
        ("phases.1.name", "tied", "two phases are called tied, .*; rename one of them"),
        ("seed", -1, "seed is -1"),
        ("seed", 10**20, "seed is 1.*: input should be less than or equal to"),
        ("out", "", "out is '': an empty path names nothing"),
        ("data.cache", "", r"data\.cache is '': an empty path names nothing"),
        ("start_from", "", "start_from is '': an empty path names nothing"),
        ("threads", 100_000, r"threads is 100000: input should be less than or equal to 1024"),
        ("data.packing", {"gap": [-1.0, 0.5]}, r"data\.packing: .*gap is \[-1\.0, 0\.5\]"),
        ("data.packing", {"gap": [0.0, float("inf")]}, r"data\.packing\.gap\.1 is inf: input should be a finite"),
        ("model.ctc", None, "model.ctc is null"),
        ("model.hfq", {"stage_tokens": [80, 80]}, r"model\.hfq\.stage_tokens\.2 is missing"),
    ],
)
def test_a_value_that_is_not_allowed_or_would_do_nothing_is_refused(
    recipe_content: dict[str, Any], path: str, value: Any, said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        check_recipe(set_in(recipe_content, path, value), "r.yaml")


def test_an_llm_phase_needs_a_ctc_weight_to_train_the_head(recipe_content: dict[str, Any]) -> None:
    phase = {"name": "llm", "objective": "llm", "steps": 1, "rates": {"lora": 0.1, "head_other": 0.1}}
    with pytest.raises(RecipeError, match="does not train head_other without a ctc_weight"):
        check_recipe({**recipe_content, "phases": [phase]}, "r.yaml")
    assert check_recipe({**recipe_content, "phases": [{**phase, "ctc_weight": 0.1}]}, "r.yaml")


def test_several_faults_come_in_one_message(recipe_content: dict[str, Any]) -> None:
    content = set_in(set_in(set_in(recipe_content, "sede", 1), "threads", 0), "model.encoder", 3)
    with pytest.raises(RecipeError) as caught:
        check_recipe(content, "r.yaml")
    assert all(part in str(caught.value) for part in ("sede", "threads is 0", "model.encoder is 3"))
    assert "\n" not in str(caught.value)


def test_a_fault_inside_a_list_is_the_only_one_that_is_told(recipe_content: dict[str, Any]) -> None:
    phase = set_in(set_in(recipe_content, "phases", recipe_content["phases"][:1]), "phases.0.rates.hfq_other", -1)
    source = set_in(recipe_content, "data.train.0.shares", 1)
    for content in (phase, source):
        with pytest.raises(RecipeError) as caught:
            check_recipe(content, "r.yaml")
        assert "at least 1 item" not in str(caught.value)
        assert len(str(caught.value)) < 150


def test_all_missing_manifests_are_named_at_once(recipe_content: dict[str, Any]) -> None:
    content = set_in(set_in(recipe_content, "data.validation", "no-v.jsonl"), "data.sounds", "no-s.jsonl")
    with pytest.raises(RecipeError, match=r"missing manifests: no-v\.jsonl, no-s\.jsonl"):
        check_recipe(content, "r.yaml")


def test_overrides_reach_into_sections_and_lists(recipe_content: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(recipe_content))
    recipe = load_recipe(
        path, ["seed=9", "phases.1.steps=77", "data.packing.speeds=[0.9, 1.1]", "phases.0.rates.head_other=0"]
    )
    assert (recipe.seed, recipe.phases[1].steps, recipe.data.packing.speeds) == (9, 77, (0.9, 1.1))
    assert recipe.phases[0].rates.head_other == 0
    assert load_recipe(path).seed == recipe_content["seed"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed", "write key.subkey=value"),
        ("=3", "write key.subkey=value"),
        ("phases.9.steps=3", "the recipe has no '9' there"),
        ("phases.first.steps=3", "the recipe has no 'first' there"),
        ("phases.9=3", "cannot be set there"),
        ("name.first=3", "cannot be set there"),
        ("name.first.second=3", "has no 'first' there"),
        ("seed=[1", "cannot be set there"),
        ("seed=two", "seed is 'two'"),
        ("model.hfq.detail_block=1", "did you mean detail_blocks"),
    ],
)
def test_a_bad_override_is_one_sentence(
    recipe_content: dict[str, Any], tmp_path: Path, override: str, said: str
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(recipe_content))
    with pytest.raises(RecipeError, match=said):
        load_recipe(path, [override])


@pytest.mark.parametrize("content", [b"a: [", b"- 1\n- 2\n", b"", b"\xff\xfe\x00bad"])
def test_a_file_that_is_no_recipe_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"r\.yaml"):
        load_recipe(path)


def test_every_training_recipe_that_is_shipped_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    checked = 0
    for path in sorted((ROOT / "recipes").rglob("*.yaml")):
        content = yaml.safe_load(path.read_text())
        if "phases" in content:
            # The corpus and an earlier stage's model need not be on this machine.
            monkeypatch.setattr(recipes.Path, "is_file", lambda _: True)
            monkeypatch.setattr(recipes.Path, "is_dir", lambda _: True)
            assert isinstance(check_recipe(content, str(path)), Recipe)
            monkeypatch.undo()
            checked += 1
    assert checked


def test_a_shipped_recipe_that_goes_on_from_a_shipped_model_has_its_sizes() -> None:
    checked = 0
    for path in sorted((ROOT / "recipes").rglob("*.yaml")):
        content = yaml.safe_load(path.read_text())
        if not str(content.get("start_from")).startswith("checkpoints/"):
            continue
        config = ROOT / content["start_from"] / "config.json"
        model, shipped = ModelRecipe.model_validate(content["model"]), json.loads(config.read_text())
        sized = {key: value for key, value in own_config(model).items() if key.startswith(("ctc_", "reader_", "lora_"))}
        del sized["lora_dropout"]
        assert sized == {key: shipped[key] for key in sized}
        hfq = model.hfq.model_dump(mode="json")
        assert hfq == {key: shipped["hfq_config"][key] for key in hfq}
        checked += 1
    assert checked


def test_a_mel_mode_that_training_would_not_follow_is_refused(recipe_content: dict[str, Any]) -> None:
    recipe_content["model"]["mel_mode"] = "authors"
    with pytest.raises(RecipeError, match="mel_mode is authors"):
        check_recipe(recipe_content, "recipe")


READER = {"base": "whisper-tiny.en"}
FRAMES = {"name": "f", "objective": "frames", "steps": 1, "rates": {"hfq_other": 0.1}}
TASKS = {"name": "t", "objective": "instructions", "steps": 1, "rates": {"lora": 0.1}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"phases": [FRAMES]}, r"objective frames needs model\.reader"),
        ({"phases": [FRAMES | {"objective": "reader"}]}, r"objective reader needs model\.reader"),
        ({"model.heard_words": True}, r"model\.heard_words needs model\.reader"),
        ({"model.transcript_reader": "whisper"}, r"transcript_reader is whisper, which model\.reader is"),
        ({"phases": [TASKS]}, r"instructions needs data\.instructions and model\.heard_words"),
        ({"data.instructions": [{"path": "x"}]}, r"data\.instructions does nothing without a phase of objective"),
        ({"data.instructions_validation": "x"}, r"data\.instructions does nothing without a phase of objective"),
        ({"model.ctc": {"reads": "frames"}}, r"reads is frames, which model\.reader unfolds"),
        ({"model.reader": READER, "model.ctc": {"reads": "frames"}}, r"objective tied reads tokens, not frames"),
        (
            {"model.reader": READER, "model.ctc": {"reads": "frames", "steps_per_token": 4}, "phases": [FRAMES]},
            "steps_per_token does nothing where the head reads frames",
        ),
        (
            {"model.reader": READER | {"start_windows": 9}, "start_from": "."},
            "start_windows does nothing after start_from",
        ),
        ({"phases": [FRAMES | {"frames_weight": 0.1}], "model.reader": READER}, "frames_weight does nothing"),
        ({"phases": [FRAMES | {"ctc_weight": 0.1}], "model.reader": READER}, "ctc_weight does nothing"),
        ({"phases": [FRAMES | {"dropout": 0.2}], "model.reader": READER}, "dropout is the CTC head's"),
        ({"phases": [TASKS | {"rates": {"lora": 0.1, "projector": 0.1}}]}, "does not train projector; set 0"),
        ({"phases": [TASKS | {"mask": 0.1}]}, "hears nothing, so mask and shift_frames must stay 0"),
        ({"phases": [TASKS | {"shift_frames": 5}]}, "hears nothing, so mask and shift_frames must stay 0"),
        ({"phases": [TASKS | {"batch_seconds": 600, "batch_windows": 8}]}, "batch_windows does nothing beside"),
        ({"phases.0.batch_seconds": 600}, "batch_seconds does nothing for objective tied"),
        ({"phases.0.max_minutes": 15}, "max_minutes does nothing for objective tied"),
        ({"phases.0.mean_over": "rows"}, "mean_over does nothing for objective tied"),
        ({"phases.0.gradient_checkpointing": True}, "gradient_checkpointing does nothing for objective tied"),
    ],
)
def test_a_reader_or_instructions_that_lack_what_they_need_are_one_sentence(
    recipe_content: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    for path, value in changes.items():
        recipe_content = set_in(recipe_content, path, value)
    with pytest.raises(RecipeError, match=said) as caught:
        check_recipe(recipe_content, "r.yaml")
    assert str(caught.value).count(". ") == 0
    assert "\n" not in str(caught.value)


def test_missing_instructions_are_named_with_the_other_manifests(recipe_content: dict[str, Any]) -> None:
    changes = {
        "model.reader": READER,
        "model.heard_words": True,
        "data.instructions": [{"path": "no-i.jsonl"}],
        "data.instructions_validation": "no-j.jsonl",
        "phases": [TASKS],
    }
    for path, value in changes.items():
        recipe_content = set_in(recipe_content, path, value)
    with pytest.raises(RecipeError, match=r"missing manifests: no-i\.jsonl, no-j\.jsonl"):
        check_recipe(recipe_content, "r.yaml")
