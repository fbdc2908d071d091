"""Whisper's decoder as the teacher: what labels cover, whose gradients move, and runs that end with the same bits."""

import copy
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from fastslm.errors import CheckpointError, RecipeError
from fastslm.model.ctc_head import ctc_loss
from fastslm.model.lora import key_in_memory
from fastslm.model.modeling import FastSLMForConditionalGeneration
from fastslm.training.feature_cache import WindowLabel
from fastslm.training.objectives import Batch
from fastslm.training.reading import IGNORED, FrameRecovery, ReaderTranscript, frame_distance
from fastslm.training.recipe import Phase, check_recipe
from fastslm.training.stages import Learner
from fastslm.training.trainer import Trainer

TEXTS = ["l m h", "A much longer text, that is said.", ""]


@pytest.fixture
def learner(reader_content: dict[str, Any]) -> Learner:
    return Learner(check_recipe(reader_content, "recipe"), torch.device("cpu"))


def phase_of(objective: str, **settings: Any) -> Phase:
    return Phase.model_validate(
        {"name": objective, "objective": objective, "steps": 1, "rates": {"hfq_other": 0.1}, **settings}
    )


def transcript(learner: Learner, **settings: Any) -> ReaderTranscript:
    objective = learner.objective(phase_of("reader", **settings), None)
    assert isinstance(objective, ReaderTranscript)
    learner.eval()
    return objective


def batch(texts: list[str], windows: list[int], whole: bool = False) -> Batch:
    frames = torch.randn(6, 1500, 64, generator=torch.Generator().manual_seed(0))
    labels = [WindowLabel(text, 10, ()) for text in texts]
    return Batch(frames[windows], labels, [0] * len(texts), frames[[i + 3 for i in windows]] if whole else None)


def test_labels_cover_the_text_and_its_end_only(learner: Learner) -> None:
    objective = transcript(learner)
    tokenizer, start = objective.reader.tokenizer, objective.reader.start
    shown, labels = objective.sequences(TEXTS)
    assert shown.shape == labels.shape
    for ids, taught, text in zip(shown.tolist(), labels.tolist(), TEXTS, strict=True):
        answer = [one for one in taught if one != IGNORED]
        assert answer[-1] == tokenizer.eos_token_id
        # As Whisper writes: a space before the first word, and nothing at all of silence.
        assert tokenizer.decode(answer[:-1]) == (f" {text}" if text else "")
        assert ids[: len(start)] == start
        first = len(start) - 1
        assert taught[:first] == [IGNORED] * first
        assert taught[first : first + len(answer)] == answer
        assert set(taught[first + len(answer) :]) <= {IGNORED}
        # Every label is the token that is shown next.
        assert ids[first + 1 : first + len(answer)] == answer[:-1]


def test_a_text_longer_than_the_decoders_positions_is_cut_to_them(learner: Learner) -> None:
    shown, labels = transcript(learner).sequences(["x" * 1000])
    assert shown.shape == labels.shape == (1, 448 - 1)


@torch.no_grad()
def test_a_batchs_loss_is_the_mean_over_the_tokens_of_each_row_alone(learner: Learner) -> None:
    objective = transcript(learner)
    together = objective.losses(batch(TEXTS, [0, 1, 2]))["loss"]
    alone = [objective.losses(batch([text], [row]))["loss"] for row, text in enumerate(TEXTS)]
    tokens = [len(text) + 2 if text else 1 for text in TEXTS]
    by_hand = sum(loss * count for loss, count in zip(alone, tokens, strict=True)) / sum(tokens)
    torch.testing.assert_close(together, by_hand, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_loss_is_the_cross_entropy_of_each_token_after_those_before_it(learner: Learner) -> None:
    objective = transcript(learner)
    reader, one = objective.reader, batch(TEXTS[:1], [0])
    answer = [*reader.tokenizer.encode(" l m h", add_special_tokens=False), reader.tokenizer.eos_token_id]
    frames = reader.unfold(objective.hfq_former(one.frames))
    by_hand = []
    for index, token in enumerate(answer):
        before = torch.tensor([[*reader.start, *answer[:index]]])
        by_hand.append(F.cross_entropy(reader.scores(frames, before)[0, -1], torch.tensor(token)))
    torch.testing.assert_close(objective.losses(one)["loss"], torch.stack(by_hand).mean(), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_further_losses_are_added_by_their_weights_and_of_the_frames_that_were_not_blanked(learner: Learner) -> None:
    objective = transcript(learner, ctc_weight=0.3, frames_weight=0.7)
    masked = batch(TEXTS, [0, 1, 2], whole=True)
    losses = objective.losses(masked)
    expected = losses["transcript"] + 0.7 * losses["frames"] + 0.3 * losses["ctc"]
    torch.testing.assert_close(losses["loss"], expected)
    assert masked.whole is not None
    tokens = objective.hfq_former(masked.frames)
    unfolded = objective.reader.unfold(tokens)
    torch.testing.assert_close(losses["frames"], frame_distance(unfolded, masked.whole))
    torch.testing.assert_close(losses["ctc"], ctc_loss(objective.head(unfolded), TEXTS))
    assert set(transcript(learner).losses(masked)) == {"loss", "transcript"}


@torch.no_grad()
def test_recovery_measures_against_the_frames_that_were_not_blanked(learner: Learner) -> None:
    objective = learner.objective(phase_of("frames"), None)
    assert isinstance(objective, FrameRecovery)
    plain, masked = batch(TEXTS, [0, 1, 2]), batch(TEXTS, [0, 1, 2], whole=True)
    unfolded = objective.reader.unfold(objective.hfq_former(plain.frames))
    torch.testing.assert_close(objective.losses(plain)["loss"], frame_distance(unfolded, plain.frames))
    assert masked.whole is not None
    torch.testing.assert_close(objective.losses(masked)["loss"], frame_distance(unfolded, masked.whole))
    assert "head" not in objective.parts


def test_the_distance_is_in_units_of_the_frames_variance() -> None:
    frames = torch.randn(4, 1500, 8, generator=torch.Generator().manual_seed(0)).cumsum(1)
    there = torch.nn.functional.interpolate(frames.transpose(1, 2), 600, mode="linear").transpose(1, 2)
    assert float(frame_distance(there, frames)) == 0
    assert float(frame_distance(there.mean().expand_as(there), frames)) == pytest.approx(1, rel=1e-3)
    assert float(frame_distance(5 * there, 5 * frames + 3)) == pytest.approx(9 / float((5 * there).var()), rel=1e-3)


def test_every_trained_part_gets_a_gradient_and_the_decoder_none(learner: Learner) -> None:
    objective = transcript(learner, ctc_weight=0.3, rates={"hfq_other": 0.1, "head_other": 0.1, "reader_other": 0.1})
    assert set(objective.parts) == {"hfq", "head", "reader"}
    # As after a first step: blocks that start as the identity pass nothing on to what is inside them.
    for part in (objective.head, objective.reader.unfold):
        for name, parameter in part.named_parameters():
            if "contract.weight" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    objective.losses(batch(TEXTS, [0, 1, 2]))["loss"].backward()
    for name, part in objective.parts.items():
        for key, parameter in part.named_parameters():
            assert parameter.grad is not None, (name, key)
            assert bool(parameter.grad.abs().max() > 0), (name, key)
    assert all(parameter.grad is None for parameter in objective.reader.decoder.parameters())


def test_lora_of_the_decoder_trains_where_the_recipe_gives_it_a_rank(reader_content: dict[str, Any]) -> None:
    reader_content["model"]["reader"] |= {"lora_rank": 2, "lora_alpha": 4}
    objective = transcript(Learner(check_recipe(reader_content, "recipe"), torch.device("cpu")))
    assert set(objective.parts) == {"hfq", "reader", "decoder"}
    objective.losses(batch(TEXTS, [0, 1, 2]))["loss"].backward()
    # B starts at zero, so A waits for it; the decoder's own weights stay.
    moved = [name for name, parameter in objective.reader.decoder.named_parameters() if parameter.grad is not None]
    assert moved
    assert all(".low_rank." in name for name in moved)
    assert all(parameter.dtype == torch.float32 for parameter in objective.parts["decoder"].parameters())


def test_lora_of_the_decoder_goes_from_stage_to_stage(reader_content: dict[str, Any], tmp_path: Path) -> None:
    reader_content["model"]["reader"] |= {"lora_rank": 2}
    reader_content["phases"][1]["rates"]["decoder"] = 0.01
    folder = Trainer(check_recipe(reader_content, "recipe"), quiet=True).run()
    saved = {key: value for key, value in weights_of(folder).items() if key.startswith("reader.decoder.")}
    assert any(value.abs().max() > 0 for key, value in saved.items() if ".lora_B." in key)
    reader_content["model"]["reader"].pop("start_windows")
    content = {**reader_content, "start_from": str(folder), "out": str(tmp_path / "next")}
    learner = Learner(check_recipe(content, "recipe"), torch.device("cpu"))
    assert learner.reader is not None
    taken = learner.reader.decoder.state_dict()
    taken = {f"reader.decoder.{key}": value for key, value in taken.items()}
    assert all(torch.equal(taken[key_in_memory(key)].half(), value) for key, value in saved.items())
    content["model"]["reader"]["lora_rank"] = 3
    with pytest.raises(CheckpointError, match=r"LoRA of another size for the decoder that reads \(reader\.decoder\."):
        Learner(check_recipe(content, "recipe"), torch.device("cpu"))


def test_a_rate_for_a_decoder_without_lora_is_refused(reader_content: dict[str, Any]) -> None:
    reader_content["phases"][1]["rates"]["decoder"] = 0.01
    with pytest.raises(RecipeError, match=r"phase reader trains the decoder, which model\.reader\.lora_rank"):
        check_recipe(reader_content, "recipe")


@torch.no_grad()
def test_transcripts_are_what_the_reader_reads_reduced_to_letters(learner: Learner) -> None:
    objective = transcript(learner)
    frames = batch(TEXTS, [0, 1, 2]).frames
    found = objective.transcripts(frames)
    assert len(found) == 3
    assert all(set(text) <= set("abcdefghijklmnopqrstuvwxyz' ") for text in found)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def undisturbed_of() -> dict[str, Any]:
    return {}


@pytest.fixture
def undisturbed(reader_content: dict[str, Any], tmp_path: Path, undisturbed_of: dict[str, Any]) -> dict[str, Any]:
    """The folder of what the recipe with a reader ends with, and what it said. Trained once."""
    if not undisturbed_of:
        content = {**reader_content, "out": str(tmp_path / "undisturbed")}
        folder = Trainer(check_recipe(content, "recipe"), quiet=True).run()
        rows = [json.loads(line) for line in (folder.parent / "metrics.jsonl").read_text().splitlines()]
        undisturbed_of.update(folder=folder, rows=rows)
    return undisturbed_of


def test_a_run_with_a_reader_ends_in_a_model_that_reads(undisturbed: dict[str, Any]) -> None:
    validations = [row for row in undisturbed["rows"] if row["kind"] == "validation"]
    assert [row["phase"] for row in validations] == ["frames", "reader"]
    assert ["written_wer" in row for row in validations] == [False, True]
    steps = [row for row in undisturbed["rows"] if row["kind"] == "step"]
    assert all({"transcript", "frames", "ctc"} <= set(row) for row in steps if row["phase"] == "reader")
    # The least-squares start was made: a random one loses about all of the variance.
    assert steps[0]["loss"] < 0.8
    model = FastSLMForConditionalGeneration.from_pretrained(undisturbed["folder"])
    assert model.config.ctc_reads == "frames"
    assert len(model.reader.read(torch.randn(2, 50, 64), 5)) == 2
    saved = weights_of(undisturbed["folder"])
    assert torch.equal(model.state_dict()["reader.unfold.place"].half(), saved["reader.unfold.place"])


@pytest.mark.parametrize("at", [1, 4])
def test_ctrl_c_saves_the_step_it_meets_and_the_run_goes_on_with_the_same_bits(
    reader_content: dict[str, Any], undisturbed: dict[str, Any], at: int
) -> None:
    trainer = Trainer(check_recipe(reader_content, "recipe"), quiet=True)
    one_step = trainer._one_step

    def interrupted(*arguments: Any) -> Any:
        if trainer.global_step + 1 == at:
            os.kill(os.getpid(), signal.SIGINT)
        return one_step(*arguments)

    trainer._one_step = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    resumed = weights_of(Trainer(check_recipe(reader_content, "recipe"), quiet=True).run())
    expected = weights_of(undisturbed["folder"])
    assert resumed.keys() == expected.keys()
    assert all(torch.equal(resumed[key], expected[key]) for key in expected)


def test_a_stage_takes_over_the_unfolder_of_the_one_before(
    reader_content: dict[str, Any], undisturbed: dict[str, Any]
) -> None:
    reader_content["model"]["reader"].pop("start_windows")
    recipe = check_recipe({**reader_content, "start_from": str(undisturbed["folder"])}, "recipe")
    learner = Learner(recipe, torch.device("cpu"))
    saved = weights_of(undisturbed["folder"])
    assert learner.reader is not None
    for key, value in learner.reader.unfold.state_dict().items():
        assert torch.equal(value.half(), saved[f"reader.unfold.{key}"])
    reader_content["model"]["reader"]["layers"] = 2
    recipe = check_recipe({**reader_content, "start_from": str(undisturbed["folder"])}, "recipe")
    with pytest.raises(CheckpointError, match=r"reader\.unfold\.context\.1\..* differs"):
        Learner(recipe, torch.device("cpu"))


def test_the_language_model_trains_beside_a_head_that_reads_frames(reader_content: dict[str, Any]) -> None:
    rates = {"lora": 0.001, "head_other": 0.001}
    phase = {"name": "llm", "objective": "llm", "steps": 1, "batch_windows": 2, "rates": rates, "ctc_weight": 0.2}
    reader_content["model"]["reader"].pop("start_windows")
    folder = Trainer(check_recipe({**reader_content, "phases": [phase]}, "recipe"), quiet=True).run()
    rows = [json.loads(line) for line in (folder.parent / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["ctc"] > 0
    assert "written_wer" in rows[-1]


@pytest.mark.parametrize("switch", [{"detail_start": "random"}, {"attention_span": None}])
def test_a_start_that_cannot_be_made_is_said_before_anything_is_encoded(
    reader_content: dict[str, Any], switch: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastslm.training import feature_cache

    monkeypatch.setattr(feature_cache, "_cached", None)
    reader_content["model"]["hfq"] |= switch
    with pytest.raises(RecipeError, match=r"model\.reader\.start_windows needs model\.hfq\.detail_start positional"):
        Trainer(check_recipe(reader_content, "recipe"), quiet=True).run()


def test_a_decoder_of_another_width_is_refused(reader_content: dict[str, Any], tmp_path: Path) -> None:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = copy.deepcopy(WhisperConfig.from_pretrained(reader_content["model"]["encoder"]))
    config.d_model = 32
    WhisperForConditionalGeneration(config).save_pretrained(tmp_path / "other")
    reader_content["model"]["reader"]["base"] = str(tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"has d_model 32, but .* says 64"):
        Learner(check_recipe(reader_content, "recipe"), torch.device("cpu"))
