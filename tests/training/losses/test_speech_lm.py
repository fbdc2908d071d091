"""The paper's loss: what it covers, what it does not depend on, and that a model learns to hear by it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastslm.data.loading import RowBatch, _Reading
from fastslm.data.rows import ManifestRows, Row
from fastslm.errors import RecipeError, TrainingError
from fastslm.training.losses.speech_lm import IGNORED, SpeechLM, prompt_of
from fastslm.training.optimizer import Optimizers
from fastslm.training.recipe import Recipe
from fastslm.training.recipe_file import validate_recipe
from fastslm.training.starts import Start, parts_of

REAL = Path(__file__).parents[4] / "shared" / "data" / "commonvoice" / "validation.jsonl"
KOREAN = "안녕하세요, 저는 서울에서 왔어요!"


def loss_of(content: dict[str, Any], **changes: Any) -> SpeechLM:
    """A loss on a new model; `changes` are of `loss`."""
    recipe = validate_recipe({**content, "loss": {"name": "speech_lm", **changes}}, "r")
    start = Start(recipe)
    return SpeechLM(start.build(torch.device("cpu")), start.processor, recipe)


def rows_of(recipe: Recipe) -> list[Row]:
    rows = ManifestRows(recipe.data.train[0].place).rows
    return [replace(row, text=row.text) for row in rows]


def batch_of(loss: SpeechLM, rows: list[Row]) -> RowBatch:
    return _Reading(80, "window", None).read(rows, {})


def four_tasks(row: Row) -> list[Row]:
    return [
        replace(row, id="said", task="transcribe", instruction=None, answer="A long Answer, as it is written — 12 %."),
        replace(row, id="ko", task="translate", instruction=None, answer=KOREAN, language="ko"),
        replace(row, id="sum", task="summarize", instruction="Sum up.", answer="Tones."),
        replace(row, id="ask", task="ask", instruction="Which tone is the third?", answer="h"),
    ]


def test_labels_are_the_answer_as_it_is_written_and_the_end_token(recipe_content: dict[str, Any]) -> None:
    loss = loss_of(recipe_content)
    rows = four_tasks(rows_of(loss.recipe)[0])
    prepared = loss.prepare(batch_of(loss, rows))
    ids, labels = prepared.inputs["input_ids"], prepared.inputs["labels"]
    for row, own, kept in zip(rows, ids.tolist(), labels.tolist(), strict=True):
        learnt = [label for label in kept if label != IGNORED]
        assert loss.tokenizer.decode(learnt[:-1]) == row.answer
        assert learnt[-1] == loss.tokenizer.eos_token_id
        assert own[-len(learnt) :] == learnt
        prompt = loss.tokenizer.decode(own[: -len(learnt)])
        assert prompt.count("<|AUDIO|>") == 50
        assert prompt.endswith("<|im_start|>assistant\n")
    assert "into Korean." in loss.tokenizer.decode(ids[1])
    assert prepared.counts["speech_lm"] == sum(len(row.answer.encode()) + 1 for row in rows)


def test_a_rows_loss_is_that_of_itself_alone_whatever_rows_are_beside_it(recipe_content: dict[str, Any]) -> None:
    loss = loss_of(recipe_content)
    rows = rows_of(loss.recipe)
    long = replace(rows[1], sound=_Twice(rows[1].sound), windows=2, seconds=32.0, id="two windows")
    texts = replace(rows[2], sound=None, windows=0, seconds=0.0, text="l l l", id="text alone")
    mixed = [*four_tasks(rows[0]), long, texts]
    with torch.no_grad():
        alone = [float(loss(loss.prepare(batch_of(loss, [row])))["speech_lm"]) for row in mixed]
        together = float(loss(loss.prepare(batch_of(loss, mixed)))["speech_lm"])
        pair = float(loss(loss.prepare(batch_of(loss, [mixed[4], mixed[0]])))["speech_lm"])
    assert together == pytest.approx(sum(alone), rel=1e-5)
    assert pair == pytest.approx(alone[4] + alone[0], rel=1e-5)


def test_fifteen_minutes_are_thirty_windows_of_fifty_places(recipe_content: dict[str, Any]) -> None:
    loss = loss_of(recipe_content)
    row = replace(rows_of(loss.recipe)[0], windows=30, seconds=900.0)
    prepared = loss.prepare(RowBatch([row], [30], None, None, {}))
    assert int((prepared.inputs["input_ids"] == loss.model.config.audio_token_id).sum()) == 1500
    assert prepared.tokens < 1500 + 150


class _Twice:
    """A recording after 28 s of silence, so that it lies in two windows."""

    def __init__(self, sound: Any):
        self.sound = sound

    def windows(self) -> Any:
        found = np.concatenate([np.zeros(30 * 16_000, np.float32), *self.sound.windows()])
        yield found[:480_000]
        yield found[480_000:]


def test_the_mean_over_rows_weighs_each_row_alike_and_that_over_tokens_each_token(
    recipe_content: dict[str, Any],
) -> None:
    by_tokens, by_rows = loss_of(recipe_content), loss_of(recipe_content, mean_over="rows")
    rows = four_tasks(rows_of(by_rows.recipe)[0])
    with torch.no_grad():
        singles = [by_tokens.prepare(batch_of(by_tokens, [row])) for row in rows]
        means = [float(by_tokens(own)["speech_lm"]) / own.counts["speech_lm"] for own in singles]
        prepared = by_rows.prepare(batch_of(by_rows, rows))
        assert prepared.counts["speech_lm"] == 4
        assert float(by_rows(prepared)["speech_lm"]) == pytest.approx(sum(means), rel=1e-5)


def test_gradients_reach_all_three_parts_and_nothing_that_is_frozen(recipe_content: dict[str, Any]) -> None:
    loss = loss_of(recipe_content)
    model: Any = loss.model
    Optimizers(parts_of(model), loss.recipe.optimizer, 3)
    prepared = loss.prepare(batch_of(loss, rows_of(loss.recipe)[:2]))
    loss(prepared)["speech_lm"].backward()
    for part in ("hfq", "projector", "lora"):
        # LoRA's second matrix is zero at the start, so its first has no gradient yet.
        assert any(own.grad is not None and own.grad.abs().max() > 0 for own in parts_of(model)[part]), part
    assert all(own.grad is None for own in model.encoder.parameters())
    assert model.get_input_embeddings().weight.grad is None


def test_gradient_checkpointing_changes_no_gradient(recipe_content: dict[str, Any]) -> None:
    found = []
    for checkpointing in (False, True):
        loss = loss_of(recipe_content)
        model: Any = loss.model
        Optimizers(parts_of(model), loss.recipe.optimizer, 3)
        if checkpointing:
            model.gradient_checkpointing_enable()
        loss.train()
        loss(loss.prepare(batch_of(loss, rows_of(loss.recipe)[:2])))["speech_lm"].backward()
        found.append([own.grad.clone() for own in model.hfq_former.parameters() if own.grad is not None])
    assert found[0]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_phrasings_vary_with_the_epoch_and_the_row_and_are_the_same_again(recipe_content: dict[str, Any]) -> None:
    recipe_content["data"]["phrasings"] = "varied"
    loss = loss_of(recipe_content)
    row = rows_of(loss.recipe)[0]
    said = [prompt_of(replace(row, epoch=epoch), loss.processor, loss.recipe) for epoch in range(12)]
    assert len(set(said)) > 2
    assert said == [prompt_of(replace(row, epoch=epoch), loss.processor, loss.recipe) for epoch in range(12)]
    french = replace(row, task="translate", language="fr", answer="l")
    assert "French" in prompt_of(french, loss.processor, loss.recipe)


def test_distillation_is_the_divergence_from_what_is_written_after_the_words(recipe_content: dict[str, Any]) -> None:
    loss = loss_of(recipe_content, beside={"distillation": 1.0})
    rows = rows_of(loss.recipe)[:2]
    prepared = loss.prepare(batch_of(loss, rows))
    with torch.no_grad():
        found = float(loss(prepared)["distillation"])
        total = 0.0
        for row in rows:
            one = loss.prepare(batch_of(loss, [row])).inputs
            count = one["labels"].shape[1]
            heard = loss(loss.prepare(batch_of(loss, [row])))
            assert torch.isfinite(heard["distillation"])
            told = loss.model(input_ids=one["told_ids"], attention_mask=one["told_mask"], adapter=False).logits
            wanted = told[0, -count - 1 : -1].float().log_softmax(-1)
            frames = loss.model.encode(batch_of(loss, [row]).input_features)
            tokens = loss.model.get_speech_tokens(encoder_frames=frames)
            speech = loss.model.project(tokens).flatten(0, 1)
            own = loss.model(input_ids=one["input_ids"], attention_mask=one["attention_mask"], speech_tokens=speech)
            written = own.logits[0, -count - 1 : -1].float().log_softmax(-1)
            total += float(F.kl_div(written, wanted, log_target=True, reduction="sum"))
    assert found == pytest.approx(total, rel=1e-4)
    assert prepared.counts["distillation"] == prepared.counts["speech_lm"]


def test_ctc_beside_counts_rows_whose_words_have_letters(recipe_content: dict[str, Any]) -> None:
    recipe_content["model"]["ctc"] = {"hidden_size": 16, "layers": 1, "steps_per_token": 4}
    loss = loss_of(recipe_content, beside={"ctc": 0.3})
    row = rows_of(loss.recipe)[0]
    rows = [row, replace(row, id="ko", text=KOREAN, answer=KOREAN)]
    prepared = loss.prepare(batch_of(loss, rows))
    assert prepared.counts["ctc"] == 1
    with torch.no_grad():
        alone = loss.prepare(batch_of(loss, rows[:1]))
        assert float(loss(prepared)["ctc"]) == pytest.approx(float(loss(alone)["ctc"]), rel=1e-5)


def test_an_answer_that_the_tokenizer_cannot_write_is_refused_before_a_model_is_loaded(
    recipe_content: dict[str, Any], tmp_path: Path
) -> None:
    from tiny_fastslm import write_bases

    recipe_content["model"]["text_model"] = str(write_bases(tmp_path)[1])
    recipe = validate_recipe(recipe_content, "r")
    row = four_tasks(rows_of(recipe)[0])[1]
    with pytest.raises(RecipeError, match=r"cannot write '안' in the answer of ko"):
        SpeechLM.check_rows([row], Start(recipe).processor, recipe)


def test_a_row_that_the_language_model_has_no_positions_for_is_named(recipe_content: dict[str, Any]) -> None:
    recipe_content["model"]["text_model"]["config"]["max_position_embeddings"] = 128
    loss = loss_of(recipe_content)
    row = replace(rows_of(loss.recipe)[0], id="too-much", answer="x" * 200)
    with pytest.raises(TrainingError, match=r"too-much takes \d+ tokens, and the language model has positions for 128"):
        loss.prepare(batch_of(loss, [row]))


def eight_windows(tmp_path: Path, encode: Any) -> list[Row]:
    """Eight short clips of real speech where they are there, else of made sounds, with different texts."""
    if REAL.is_file():
        rows = sorted(ManifestRows(REAL).rows, key=lambda row: len(row.answer))
        return [row for row in rows if row.windows == 1][:8]
    from toy_training import write_tones

    words = [["l", "m"], ["m", "l"], ["h"], ["h", "h", "l"], ["m"], ["l", "l", "l"], ["m", "h"], ["h", "m", "l"]]
    lines = [write_tones(tmp_path / f"w{index}.wav", own, encode) for index, own in enumerate(words)]
    (tmp_path / "w.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return list(ManifestRows(tmp_path / "w.jsonl").rows)


def test_eight_windows_are_learnt_until_they_are_written_back_and_another_clips_sound_is_worse(
    recipe_content: dict[str, Any], tmp_path: Path, encode: Any
) -> None:
    recipe_content["model"]["lora"]["rank"] = 16
    recipe_content["model"]["text_model"]["config"] |= {"hidden_size": 64, "intermediate_size": 128}
    loss = loss_of(recipe_content)
    rows = eight_windows(tmp_path, encode)
    with torch.no_grad():
        read = batch_of(loss, rows)
        frames = loss.model.encode(read.input_features)
    batch = replace(read, input_features=None, encoder_frames=frames)
    prepared = loss.prepare(batch)
    optimizer = validate_recipe(
        {
            **recipe_content,
            "optimizer": {"rates": {"hfq": 5e-3, "projector": 5e-3, "lora": 1.5e-2}, "warmup_steps": 10},
        },
        "r",
    ).optimizer
    steps = 200
    optimizers = Optimizers(parts_of(loss.model), optimizer, steps)
    loss.train()
    for step in range(steps):
        mean = loss(prepared)["speech_lm"] / prepared.counts["speech_lm"]
        mean.backward()
        optimizers.step(step)
        if float(mean.detach()) < 0.01:
            break
    loss.eval()
    assert loss.write(batch) == [row.answer for row in rows]
    with torch.no_grad():
        own = float(loss(prepared)["speech_lm"])
        swapped = replace(prepared, batch=replace(batch, encoder_frames=frames.roll(1, 0)))
        assert float(loss(swapped)["speech_lm"]) > 5 * own
