"""What a stage starts from: an imported authors' checkpoint goes on as it is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fastslm.model.authors import authors_state_dict, import_authors
from fastslm.model.modeling import FastSLMForConditionalGeneration
from fastslm.training.bases import byte_tokenizer
from fastslm.training.recipe_file import validate_recipe
from fastslm.training.starts import Start, parts_of
from fastslm.training.train import train


@pytest.fixture
def authors(recipe_content: dict[str, Any], tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A folder that was imported from a checkpoint in the authors' layout, and a recipe that fine-tunes it."""
    content = recipe_content
    # Heads are 64 wide in the authors' code.
    content["model"]["encoder"]["config"] |= {"d_model": 64, "encoder_attention_heads": 1}
    content["model"] |= {"hfq": {"stage_tokens": [10, 10, 10], "detail_blocks": 1}, "lora": {"rank": 2, "dropout": 0.0}}
    content["model"] |= {"mel_mode": "authors", "prompt_layout": "task_first"}
    model = Start(validate_recipe(content, "r")).build(torch.device("cpu"))
    with torch.no_grad():
        for own in parts_of(model)["lora"]:
            own.normal_(std=0.05)
    torch.save(authors_state_dict(model), tmp_path / "authors.pt")
    language: Any = model.language_model
    language.config.save_pretrained(tmp_path / "llm")
    byte_tokenizer().save_pretrained(tmp_path / "llm")
    folder = tmp_path / "imported"
    import_authors(tmp_path / "authors.pt", folder, tmp_path / "llm", lora_alpha=64)
    del content["model"]["encoder"], content["model"]["text_model"]
    content |= {"start_from": str(folder), "steps": 1, "optimizer": {"rates": {"hfq": 1e-9, "lora": 1e-9}}}
    return folder, content


def test_an_imported_authors_checkpoint_is_fine_tuned_with_its_lora_and_hfq_former(
    authors: tuple[Path, dict[str, Any]],
) -> None:
    folder, content = authors
    imported: Any = FastSLMForConditionalGeneration.from_pretrained(folder)
    started: Any = Start(validate_recipe(content, "r")).build(torch.device("cpu"))
    before, now = imported.state_dict(), started.state_dict()
    assert before.keys() == now.keys()
    assert all(torch.equal(before[key], now[key]) for key in before)
    assert any("low_rank.B" in key and value.abs().max() > 0 for key, value in now.items())
    out = train(validate_recipe(content, "r"), quiet=True)
    after = FastSLMForConditionalGeneration.from_pretrained(out).state_dict()
    assert all(torch.allclose(before[key], after[key], atol=1e-7) for key in before)
    config = json.loads((out / "config.json").read_text())
    assert (config["mel_mode"], config["prompt_layout"]) == ("authors", "task_first")
