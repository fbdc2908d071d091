"""Tasks taught from text alone: labels cover the answer only, and a row's loss is its own."""

import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from fastslm.data.manifest import Clip
from fastslm.data.spoken import window_texts
from fastslm.errors import ManifestError
from fastslm.training.instructions import InstructionBatch, InstructionTuning, read_instructions
from fastslm.training.recipe import check_recipe
from fastslm.training.stages import Learner
from fastslm.training.trainer import Trainer

ROWS = [
    ("ask", "What colour is it?", "Red.", "the house is red"),
    ("transcribe", "Write down what is said.", "a much longer answer than the others have", "a much longer answer"),
    ("summarize", "In short?", "", None),
]


def row_of(index: int, **changes: Any) -> dict[str, Any]:
    task, instruction, answer, text = ROWS[index % len(ROWS)]
    row = {"id": f"row-{index}", "audio": "x.wav", "duration": 4.0, "text": text}
    return {**row, "task": task, "instruction": instruction, "answer": answer, **changes}


def clips() -> list[Clip]:
    return [Clip.model_validate(row_of(index) | {"audio": {"path": "x.wav"}}) for index in range(3)]


def long_clip(**changes: Any) -> Clip:
    """Three windows: words in the first and the last, none in the second."""
    pieces = [(1.0, 4.0, "the house is red"), (62.0, 66.0, "it stands by the sea")]
    segments = [{"start": a, "end": b, "text": text, "audio": {"path": "x.wav"}} for a, b, text in pieces]
    text = " ".join(text for *_, text in pieces)
    return Clip.model_validate(row_of(0, id="long", audio=None, duration=70.0, text=text, segments=segments, **changes))


@pytest.fixture
def content(reader_content: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A recipe whose only phase teaches two manifests of tasks."""
    for name, first, count in (("few", 0, 3), ("many", 3, 30)):
        rows = [json.dumps(row_of(first + index)) for index in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    reader_content["model"]["reader"].pop("start_windows")
    reader_content["model"]["heard_words"] = True
    reader_content["data"] |= {
        "instructions": [
            {"path": str(tmp_path / "few.jsonl"), "share": 0.75},
            {"path": str(tmp_path / "many.jsonl"), "share": 0.25},
        ],
        "instructions_validation": str(tmp_path / "few.jsonl"),
    }
    phase = {"name": "tasks", "objective": "instructions", "steps": 4, "batch_windows": 3, "rates": {"lora": 0.01}}
    reader_content["phases"] = [{**phase, "average": 0.5}]
    return reader_content


@pytest.fixture
def tuning(content: dict[str, Any]) -> InstructionTuning:
    recipe = check_recipe(content, "recipe")
    learner = Learner(recipe, torch.device("cpu"))
    objective = learner.objective(recipe.phases[0], None)
    assert isinstance(objective, InstructionTuning)
    learner.eval()
    with torch.no_grad():
        for name, parameter in objective.model.named_parameters():
            if name.endswith("low_rank.B") or "embed_tokens" in name:
                # Weak enough that every token attends to many.
                parameter.normal_(0.0, 0.05, generator=torch.Generator().manual_seed(len(name)))
    return objective


def slow_loss(tuning: InstructionTuning, row: Clip) -> torch.Tensor:
    """Summed cross-entropy of a row's answer and its end, one token after another, without padding or labels."""
    model, tokenizer = tuning.model, tuning.tokenizer
    answer = [*tokenizer.encode(row.answer or "", add_special_tokens=False), tokenizer.eos_token_id]
    words = model.heard_words.embed(window_texts(row), model.get_input_embeddings())
    total = torch.zeros(())
    for index, token in enumerate(answer):
        ids = torch.tensor([[*tuning.prompt(row), *answer[:index]]])
        scores = model(input_ids=ids, speech_tokens=words, use_cache=False).logits[0, -1]
        total = total + F.cross_entropy(scores, torch.tensor(token))
    return total


@torch.no_grad()
def test_the_loss_is_that_of_every_answer_written_token_after_token(tuning: InstructionTuning) -> None:
    rows = [*clips(), long_clip()]
    found = tuning.losses(InstructionBatch(rows))["loss"]
    tokens = sum(len(row.answer or "") + 1 for row in rows)  # a token a character, and the end
    by_hand = sum(slow_loss(tuning, row) for row in rows) / tokens
    torch.testing.assert_close(found, by_hand, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_over_rows_a_long_answer_weighs_as_much_as_a_short_one(
    tuning: InstructionTuning, content: dict[str, Any]
) -> None:
    content["phases"][0] |= {"mean_over": "rows", "max_minutes": 2}
    recipe = check_recipe(content, "recipe")
    objective = InstructionTuning(tuning.model, tuning.processor, recipe, recipe.phases[0])
    rows = [*clips(), long_clip()]
    by_hand = sum(slow_loss(tuning, row) / (len(row.answer or "") + 1) for row in rows) / len(rows)
    torch.testing.assert_close(objective.losses(InstructionBatch(rows))["loss"], by_hand, rtol=1e-4, atol=1e-5)
    # So are parts of a step, each weighed by its own rows.
    parts = [InstructionBatch(rows[:1]), InstructionBatch(rows[1:])]
    amounts = [objective.amounts([part])["loss"] for part in parts]
    sums = [amount * objective.losses(part)["loss"] for amount, part in zip(amounts, parts, strict=True)]
    torch.testing.assert_close(sum(sums) / objective.amounts(parts)["loss"], by_hand, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_rows_loss_does_not_depend_on_the_rows_beside_it(tuning: InstructionTuning) -> None:
    for row in [*clips(), long_clip()]:
        alone = tuning.losses(InstructionBatch([row]))["loss"]
        tripled = tuning.losses(InstructionBatch([row] * 3))["loss"]
        torch.testing.assert_close(alone, tripled, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_words_decide_the_loss_and_the_projection_adds_nothing_to_them(tuning: InstructionTuning) -> None:
    row = clips()[0]
    other = row.model_copy(update={"text": "it was blue all over"})
    losses = [float(tuning.losses(InstructionBatch([one]))["loss"]) for one in (row, other)]
    assert losses[0] != losses[1]
    # What is taught is what a recording with these words gives, whatever its tokens are.
    tokens = torch.randn(1, 50, 64)
    heard = tuning.model.heard_words
    heard.texts = lambda windows, spoken: [row.text] * len(windows)
    assert torch.equal(tuning.model.project(tokens), tuning.words([row]))


@torch.no_grad()
def test_a_long_rows_words_lie_in_the_places_of_their_own_windows_as_where_a_recording_is_heard(
    tuning: InstructionTuning,
) -> None:
    row = long_clip()
    assert window_texts(row) == ["the house is red", "", "it stands by the sea"]
    found = tuning.words([clips()[0], row])
    assert found.shape[:2] == (4, 50)
    assert torch.equal(found[0], tuning.words([clips()[0]])[0])
    assert not found[2].any()
    heard = tuning.model.heard_words
    heard.texts = lambda windows, spoken: window_texts(row)[: len(windows)]
    assert torch.equal(tuning.model.project(torch.randn(3, 50, 64)), found[1:])
    places = tuning.prompt(row).count(tuning.model.config.audio_token_id)
    assert places == 3 * 50


@pytest.mark.parametrize("window", [0, 2])
@torch.no_grad()
def test_what_is_said_in_any_window_decides_the_loss(tuning: InstructionTuning, window: int) -> None:
    row = long_clip()
    assert row.segments is not None
    which = 0 if window == 0 else 1
    segments = list(row.segments)
    segments[which] = segments[which].model_copy(update={"text": "quite another thing"})
    losses = [float(tuning.answer_loss([one])[0]) for one in (row, row.model_copy(update={"segments": segments}))]
    assert losses[0] != losses[1]


def test_gradient_checkpointing_changes_neither_loss_nor_gradients(
    tuning: InstructionTuning, content: dict[str, Any]
) -> None:
    content["phases"][0] |= {"gradient_checkpointing": True, "max_minutes": 2}
    recipe = check_recipe(content, "recipe")
    rows = InstructionBatch([*clips(), long_clip()])
    found = []
    for phase in (tuning.phase, recipe.phases[0]):
        objective = InstructionTuning(tuning.model, tuning.processor, recipe, phase)
        objective.model.train()
        assert objective.model.language_model.is_activation_checkpointing == phase.gradient_checkpointing
        objective.model.zero_grad(set_to_none=True)
        torch.manual_seed(0)  # of LoRA's dropout, which is drawn again for the gradient
        loss = objective.losses(rows)["loss"]
        loss.backward()
        found.append((loss.detach(), [p.grad for p in objective.parts["lora"].parameters()]))
    (plain, gradients), (other, others) = found
    assert torch.equal(plain, other)
    for one, two in zip(gradients, others, strict=True):
        assert one is not None
        assert one is not two
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-8)


def test_only_lora_is_trained_and_every_matrix_of_it(tuning: InstructionTuning) -> None:
    assert set(tuning.parts) == {"lora"}
    tuning.losses(InstructionBatch(clips()))["loss"].backward()
    gradients = [parameter.grad for parameter in tuning.parts["lora"].parameters()]
    assert gradients
    assert all(gradient is not None and bool(gradient.abs().max() > 0) for gradient in gradients)
    base = tuning.model.get_input_embeddings().weight
    assert base.grad is None


def test_sources_take_part_by_their_shares_and_a_batch_is_drawn_from_its_index_alone(
    tuning: InstructionTuning,
) -> None:
    drawn = Counter(clip for index in range(400) for clip in tuning.batch(index).clips)
    few = sum(drawn[f"row-{index}"] for index in range(3))
    # 1200 draws at 0.75: five standard deviations are 75.
    assert few == pytest.approx(900, abs=75)
    assert len(drawn) == 33, "some rows are never drawn"
    assert tuning.batch(7).clips == tuning.batch(7).clips != tuning.batch(8).clips


@pytest.mark.parametrize("written", ["Red.", "red", " RED! "])
def test_case_and_marks_do_not_make_an_answer_wrong(tuning: InstructionTuning, written: str) -> None:
    seen: list[int] = []

    def generate(input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> torch.Tensor:
        seen.extend(attention_mask.sum(1).tolist())
        answer = torch.tensor([tuning.tokenizer.encode(written, add_special_tokens=False)] * len(input_ids))
        return torch.cat([input_ids, answer], 1)

    tuning.model.generate = generate
    tuning.judged = [
        *tuning.judged,
        clips()[0].model_copy(update={"answer": "No.", "instruction": "Is it red, or not?"}),
    ]
    # One of two questions; the other tasks have no one right answer. Prompts are masked where they are padded.
    judged = tuning.judge()
    assert judged["right_answers"] == 0.5
    assert seen == [len(tuning.prompt(row)) for row in tuning.judged if row.task == "ask"]
    assert set(judged) == {"ask_loss", "summarize_loss", "transcribe_loss", "right_answers"}
    with torch.no_grad():
        total, tokens = tuning.answer_loss([clips()[1]])
    assert judged["transcribe_loss"] == pytest.approx(float(total) / tokens, abs=1e-4)


@pytest.fixture
def by_length(content: dict[str, Any], tmp_path: Path) -> InstructionTuning:
    """Two manifests of long and short rows, in batches by their lengths."""
    for name, first, count in (("few", 0, 12), ("many", 12, 60)):
        rows = [row_of(first + i, duration=4.0 + (i * 7) % 170) for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    content["phases"] = [
        {"name": "tasks", "objective": "instructions", "steps": 4, "rates": {"lora": 0.01}}
        | {"batch_seconds": 600, "max_minutes": 3}
    ]
    recipe = check_recipe(content, "recipe")
    objective = Learner(recipe, torch.device("cpu")).objective(recipe.phases[0], None)
    assert isinstance(objective, InstructionTuning)
    return objective


def test_batches_by_length_keep_shares_and_are_no_longer_than_they_may_be(by_length: InstructionTuning) -> None:
    drawn: Counter[str] = Counter()
    spread = []
    for index in range(400):
        rows = by_length.batch(index).rows
        assert rows
        seconds = [by_length.seconds(row) for row in rows]
        assert len(rows) * max(seconds) <= 600
        spread.append(max(seconds) - min(seconds))
        drawn.update(row.id for row in rows)
    total = sum(drawn.values())
    few = sum(drawn[f"row-{index}"] for index in range(12)) / total
    # Exact in every 1000 rows; a begun thousand may hold a few batches too many of either.
    assert few == pytest.approx(0.75, abs=0.05)
    assert len(drawn) == 72, "some rows are never drawn"
    assert sum(spread) / len(spread) < 60, "long and short rows share batches"


def test_a_batch_by_length_is_drawn_from_its_index_alone(by_length: InstructionTuning, content: dict[str, Any]) -> None:
    recipe = check_recipe(content, "recipe")
    fresh = InstructionTuning(by_length.model, by_length.processor, recipe, recipe.phases[0])
    # Forward, back, and with nothing before: a run that was stopped goes on with the same rows.
    expected = {index: by_length.batch(index).clips for index in (0, 1, 700, 2)}
    assert {index: fresh.batch(index).clips for index in (2, 700, 1, 0)} == expected


def test_a_row_that_fits_no_batch_is_one_sentence(content: dict[str, Any], by_length: InstructionTuning) -> None:
    content["phases"][0]["batch_seconds"] = 100
    recipe = check_recipe(content, "recipe")
    with pytest.raises(
        ManifestError, match=r"row-\d+ takes \d+ s of a batch, its text included, and batch_seconds is 100"
    ):
        InstructionTuning(by_length.model, by_length.processor, recipe, recipe.phases[0])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": None, "instruction": None, "answer": None}, "row-0 has no task with its answer"),
        (
            {"duration": 31.0},
            r"row-0 lasts 31\.0 s, and this phase takes up to 30 s; leave .* or raise its max_minutes",
        ),
    ],
)
def test_rows_that_cannot_be_taught_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row_of(0, **changes)) + "\n")
    with pytest.raises(ManifestError, match=said):
        read_instructions(tmp_path / "rows.jsonl")


def test_rows_that_cannot_be_taught_are_said_before_anything_is_encoded(
    content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastslm.training import feature_cache

    monkeypatch.setattr(feature_cache, "_cached", None)
    (tmp_path / "many.jsonl").write_text(json.dumps(row_of(0, duration=31.0)) + "\n")
    with pytest.raises(ManifestError, match="leave such rows out"):
        Trainer(check_recipe(content, "recipe"), quiet=True).run()


def test_a_run_that_is_stopped_goes_on_with_the_same_bits(content: dict[str, Any], tmp_path: Path) -> None:
    other = {**content, "out": str(tmp_path / "undisturbed")}
    undisturbed = load_file(Trainer(check_recipe(other, "recipe"), quiet=True).run() / "model.safetensors")
    trainer = Trainer(check_recipe(content, "recipe"), quiet=True)
    one_step = trainer._one_step

    def interrupted(*arguments: Any) -> Any:
        if trainer.global_step + 1 == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return one_step(*arguments)

    trainer._one_step = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    folder = Trainer(check_recipe(content, "recipe"), quiet=True).run()
    resumed = load_file(folder / "model.safetensors")
    assert resumed.keys() == undisturbed.keys()
    assert all(torch.equal(resumed[key], undisturbed[key]) for key in undisturbed)
    assert not resumed["projector.weight"].any()
    rows = [json.loads(line) for line in (folder.parent / "metrics.jsonl").read_text().splitlines()]
    assert "right_answers" in rows[-1]
    assert [row["global_step"] for row in rows if row["kind"] == "step"] == [1, 2, 3, 4]
