"""CTC over the language model's tokens, and Whisper's decoder: what they cover, and that training by them moves on."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_fastslm import write_bases
from tiny_reader import add_reader_tokenizer

from fastslm.data.loading import _Reading
from fastslm.data.rows import ManifestRows
from fastslm.errors import RecipeError
from fastslm.training.bases import byte_tokenizer
from fastslm.training.losses import loss_class
from fastslm.training.losses.loss import ctc_sum
from fastslm.training.losses.token_ctc import choose_kinds
from fastslm.training.recipe_file import validate_recipe
from fastslm.training.starts import Start
from fastslm.training.train import train

CTC_EMBEDDINGS = {
    "kinds": 80,
    "hidden_size": 16,
    "layers": 2,
    "heads": 2,
    "intermediate": 1,
    "unfolder_layers": 1,
    "front_size": 8,
    "front_layers": 1,
}


@pytest.fixture
def hearing(recipe_content: dict[str, Any]) -> dict[str, Any]:
    """A recipe of `token_ctc`."""
    recipe_content["model"] |= {"projector": "ctc_embeddings", "projector_config": CTC_EMBEDDINGS}
    recipe_content["loss"] = {"name": "token_ctc", "beside": {"intermediate": 0.3, "letters": 0.1}}
    rates = {"projector": {"matrices": 0.01, "other": 0.003}, "front": 0.003}
    recipe_content["optimizer"] = {"name": "muon", "rates": rates}
    return recipe_content


def rows_of(content: dict[str, Any]) -> list[Any]:
    return list(ManifestRows(Path(content["data"]["train"][0]["path"])).rows)


def made(content: dict[str, Any]) -> Any:
    recipe = validate_recipe(content, "r")
    start = Start(recipe)
    return loss_class(recipe.loss.name)(start.build(torch.device("cpu")), start.processor, recipe)


def test_kinds_are_all_letters_then_the_commonest_tokens() -> None:
    tokenizer = byte_tokenizer()
    kinds = choose_kinds(["ab ab"], tokenizer, 40)
    assert len(kinds) == 40
    assert kinds == sorted(kinds)
    heard = {tokenizer.decode([kind]) for kind in kinds}
    assert heard > set("abcdefghijklmnopqrstuvwxyz'")
    assert " " in heard
    with pytest.raises(RecipeError, match="single letters alone are"):
        choose_kinds([], tokenizer, 5)


def test_token_ctc_of_sampled_kinds_is_ctc_of_those_kinds_alone(hearing: dict[str, Any]) -> None:
    loss = made(hearing)
    rows = rows_of(hearing)[:2]
    loss.start(rows, [], {"projector."})
    loss.train()
    prepared = loss.prepare(_Reading(80, "window", None).read(rows, {}))
    assert prepared.counts == {"token_ctc": 2, "intermediate": 2, "letters": 2}
    loss.eval()
    with torch.no_grad():
        found = float(loss(prepared)["token_ctc"])
        tokens = loss.model.get_speech_tokens(prepared.batch.input_features)
        last, _ = loss.projector.hidden(tokens, prepared.inputs["keep"])
        scores = loss.projector.scores_of(last, loss.projector.norm)
        some = prepared.inputs["some"]
        chosen = torch.cat([scores[..., :1], scores[..., 1:][..., some]], -1).log_softmax(-1)
        targets = [[some.tolist().index(kind) + 1 for kind in own] for own in prepared.inputs["targets"]]
        assert found == pytest.approx(float(ctc_sum(list(zip(chosen, targets, strict=True)), chosen, 10)), rel=1e-4)


def test_the_front_starts_as_what_heard_letters_where_that_was_trained(hearing: dict[str, Any], tmp_path: Path) -> None:
    whisper, _ = write_bases(tmp_path)
    add_reader_tokenizer(whisper)
    hearing["model"] |= {"encoder": str(whisper), "decoder": {"base": str(whisper), "layers": 1}}
    hearing["model"]["ctc"] = {"hidden_size": 8, "layers": 1, "reads": "frames"}
    loss = made(hearing)
    with torch.no_grad():
        for own in (*loss.model.whisper_decoder.unfold.parameters(), *loss.model.ctc_head.parameters()):
            own.normal_()
    rows = rows_of(hearing)[:2]
    assert "front" not in loss.start(rows, [], {"projector.", "ctc_head."})
    assert not torch.equal(loss.projector.unfold.place, loss.model.whisper_decoder.unfold.place)
    assert "its front starts as unfolder and CTC head" in loss.start(rows, [], {"projector."})
    assert torch.equal(loss.projector.unfold.place, loss.model.whisper_decoder.unfold.place)
    assert torch.equal(loss.projector.head.out.weight, loss.model.ctc_head.out.weight)


def test_ctc_sums_rows_of_any_length_alone_or_together() -> None:
    torch.manual_seed(0)
    rows = [(torch.randn(9, 5).log_softmax(-1), [1, 2]), (torch.randn(4, 5).log_softmax(-1), [3])]
    together = float(ctc_sum(rows, rows[0][0], 1))
    expected = sum(
        float(F.ctc_loss(s[:, None], torch.tensor([t]), [len(s)], [len(t)], reduction="sum")) / len(t) for s, t in rows
    )
    assert together == pytest.approx(expected, rel=1e-5)
    assert float(ctc_sum([], rows[0][0], 1)) == 0


def test_a_projector_that_hears_is_trained_and_then_lora_by_what_it_hears(
    hearing: dict[str, Any], tmp_path: Path
) -> None:
    first = train(validate_recipe({**hearing, "steps": 4}, "r"), quiet=True)
    rows = [json.loads(line) for line in (first.parent / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["token_ctc"] < rows[0]["token_ctc"]
    after = {**hearing, "start_from": str(first), "out": str(tmp_path / "second"), "steps": 1}
    after |= {"loss": {"name": "speech_lm"}, "optimizer": {"rates": {"lora": 0.001}}}
    assert train(validate_recipe(after, "r"), quiet=True).is_dir()


@pytest.mark.parametrize("name", ["token_ctc", "whisper_decoder"])
def test_rows_of_other_tasks_or_of_several_windows_are_refused(hearing: dict[str, Any], name: str) -> None:
    recipe = validate_recipe(hearing, "r")
    row = rows_of(hearing)[0]
    for other in (replace(row, task="summarize"), replace(row, windows=2)):
        with pytest.raises(RecipeError, match="learns from transcripts of one"):
            loss_class(name).check_rows([row, other], None, recipe)


def test_whispers_decoder_teaches_unfolder_and_tokens(recipe_content: dict[str, Any], tmp_path: Path) -> None:
    whisper, llama = write_bases(tmp_path)
    add_reader_tokenizer(whisper)
    hfq = {"head_size": 16, "stage_tokens": [10, 10, 10], "detail_blocks": 1}
    hfq |= {"query_start": "time", "detail_positions": True, "detail_start": "positional", "attention_span": 1}
    recipe_content["model"] = {
        "encoder": str(whisper),
        "text_model": str(llama),
        "hfq": hfq,
        "ctc": {"hidden_size": 8, "layers": 1, "reads": "frames"},
        "decoder": {"base": str(whisper), "layers": 1, "lora_rank": 2, "start_windows": 4},
        "lora": {"rank": 2},
    }
    recipe_content["data"]["cache"] = str(tmp_path / "frames")
    recipe_content["loss"] = {"name": "whisper_decoder", "beside": {"frames": 1.0, "ctc": 0.3}}
    rates = {"hfq": 0.003, "unfolder": 0.003, "decoder_lora": 0.003, "ctc": 0.003}
    recipe_content |= {"optimizer": {"rates": rates}, "steps": 4}
    folder = train(validate_recipe(recipe_content, "r"), quiet=True)
    rows = [json.loads(line) for line in (folder.parent / "metrics.jsonl").read_text().splitlines()]
    for name in ("whisper_decoder", "ctc"):
        assert rows[-1][name] < rows[0][name], name
    # Where the least-squares start begins; a random one loses all of the variance and more.
    assert 0 <= rows[0]["frames"] < 0.1
