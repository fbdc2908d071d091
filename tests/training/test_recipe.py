"""Recipes: every fault at once, in a sentence, before anything slow; overrides and includes."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from fastslm.errors import RecipeError
from fastslm.training.recipe_file import load_recipe, require_files, validate_recipe

RECIPES = Path(__file__).parents[2] / "recipes"


def set_in(content: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with `value` at a dotted path."""
    found = copy.deepcopy(content)
    node: Any = found
    *parents, last = path.split(".")
    for part in parents:
        node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
    node[int(last) if isinstance(node, list) else last] = value
    return found


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*/*stage*.yaml")) + sorted(RECIPES.glob("*/hear.yaml")), ids=str)
def test_every_recipe_of_this_repository_is_valid(path: Path) -> None:
    assert load_recipe(path, look_for_files=False).out


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("sede", r"unknown key sede \(did you mean seed\?\)"),
        ("model.hfq.final_token", r"model\.hfq\.final_token \(did you mean final_tokens\?\)"),
        ("model.lora.ranks", r"model\.lora\.ranks \(did you mean rank\?\)"),
        ("data.train.0.shares", r"data\.train\.0\.shares \(did you mean share\?\)"),
        ("optimizer.rates.projection", r"optimizer\.rates\.projection \(did you mean projector\?\)"),
        ("model.encoder.nam", r"model\.encoder\.nam \(did you mean name\?\)"),
        ("data.zzz", r"data\.zzz \(known there: train, validation"),
    ],
)
def test_an_unknown_key_is_named_beside_the_nearest_known_one(
    recipe_content: dict[str, Any], path: str, said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        validate_recipe(set_in(recipe_content, path, 1), "r.yaml")


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("optimizer.rates.hfq", -0.1, r"optimizer\.rates\.hfq is -0\.1: input should be greater"),
        ("optimizer.rates.hfq", float("inf"), r"optimizer\.rates\.hfq is inf: input should be a finite"),
        ("optimizer.rates", {}, "every learning rate is 0"),
        ("optimizer.rates", {"ctc": 0.1}, "loss speech_lm does not train ctc"),
        ("optimizer.rates.hfq", {"matrices": 0.1, "other": 0.1}, r"rates\.hfq is for muon"),
        ("optimizer.name", "muon", "no rate has any"),
        ("loss", {"name": "rnnt"}, "loss.name is 'rnnt'"),
        ("loss", {"beside": {"cct": 0.1}}, r"there is no loss 'cct' \(did you mean ctc\?\)"),
        ("loss", {"beside": {"ctc": 0.1}}, r"loss\.beside\.ctc needs model\.ctc"),
        ("loss", {"name": "token_ctc"}, "needs model.projector ctc_embeddings"),
        ("loss", {"name": "whisper_decoder"}, "loss whisper_decoder needs model.decoder"),
        ("model.projector", "ctc_embeddings", "projector_config.kinds is missing"),
        ("model.lora.rank", 0, "model.lora.rank is 0"),
        ("model.encoder", None, "model.encoder must be given where there is no start_from"),
        ("epochs", 2, "give either steps or epochs"),
        ("data.batch_rows", None, "a batch has no bound"),
        ("data.train", [], "data.train is"),
        ("data.train.0", {"share": 0.5}, "give either path"),
        ("data.sounds", "s.jsonl", "sounds does nothing without packing"),
        ("seed", -1, "seed is -1"),
        ("seed", 10**20, "seed is 1.*: input should be less than or equal to"),
        ("out", "", "out is '': an empty path names nothing"),
        ("start_from", "", "start_from is '': an empty path names nothing"),
        ("threads", 100_000, r"threads is 100000: input should be less than or equal to 1024"),
        ("data.packing", {"gap": [-1.0, 0.5]}, r"data\.packing: .*gap is \[-1\.0, 0\.5\]"),
        ("model.hfq", {"stage_tokens": [80, 80]}, r"model\.hfq\.stage_tokens\.2 is missing"),
    ],
)
def test_a_value_that_is_not_allowed_or_would_do_nothing_is_refused(
    recipe_content: dict[str, Any], path: str, value: Any, said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        validate_recipe(set_in(recipe_content, path, value), "r.yaml")


def test_several_faults_come_in_one_message(recipe_content: dict[str, Any]) -> None:
    content = set_in(set_in(set_in(recipe_content, "sede", 1), "threads", 0), "model.lora.rank", -3)
    with pytest.raises(RecipeError) as caught:
        validate_recipe(content, "r.yaml")
    assert all(part in str(caught.value) for part in ("sede", "threads is 0", "model.lora.rank is -3"))
    assert "\n" not in str(caught.value)


def test_all_missing_corpora_are_named_at_once(recipe_content: dict[str, Any]) -> None:
    content = set_in(recipe_content, "data.train", [{"cuts": "no-such-shar"}, {"path": "no.jsonl"}])
    content["start_from"] = "no-model"
    with pytest.raises(RecipeError, match=r"no-such-shar, no\.jsonl.*start_from no-model is no folder"):
        require_files(validate_recipe(content, "r.yaml"), "r.yaml")


def test_overrides_reach_into_sections_and_lists(recipe_content: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(recipe_content))
    recipe = load_recipe(path, ["seed=9", "data.train.0.share=0.25", "model.hfq.stage_tokens=[9, 9, 9]"])
    assert (recipe.seed, recipe.data.train[0].share, recipe.model.hfq.stage_tokens) == (9, 0.25, (9, 9, 9))
    assert load_recipe(path).seed == recipe_content["seed"]


def test_what_is_included_lies_beneath_section_by_section(recipe_content: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(recipe_content))
    (tmp_path / "r.yaml").write_text("include: base.yaml\nseed: 8\nmodel: {lora: {rank: 7}}\n")
    recipe = load_recipe(tmp_path / "r.yaml")
    assert (recipe.seed, recipe.model.lora.rank, recipe.model.hfq.detail_blocks) == (8, 7, 1)
    (tmp_path / "base.yaml").write_text("include: r.yaml\n")
    with pytest.raises(RecipeError, match="must not include this one"):
        load_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed", "write key.subkey=value"),
        ("=3", "write key.subkey=value"),
        ("data.train.9.share=3", "the recipe has no '9' there"),
        ("data.train.first.share=3", "the recipe has no 'first' there"),
        ("data.train.9=3", "cannot be set there"),
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
    with pytest.raises(RecipeError, match=said) as caught:
        load_recipe(path, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"- a\n- b\n", b"a: [1\n", b"\xff\xfe\x00", b""])
def test_what_is_no_recipe_is_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "r.yaml").write_bytes(content)
    with pytest.raises(RecipeError, match=r"r\.yaml: (this is not YAML|a recipe is a mapping)"):
        load_recipe(tmp_path / "r.yaml")
