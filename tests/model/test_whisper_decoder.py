"""Whisper's decoder over unfolded tokens computes as Whisper does, row by row."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_reader import END, add_reader_tokenizer
from transformers import (
    GenerationMixin,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    WhisperForConditionalGeneration,
)
from transformers.modeling_outputs import BaseModelOutput

from fastslm.errors import CheckpointError
from fastslm.model import whisper_decoder
from fastslm.model.base_weights import load_decoder
from fastslm.model.configuration import HFQFormerConfig
from fastslm.model.ctc_head import CTCHead, FrameCTCHead
from fastslm.model.lora import is_lora_key, lora_parameters
from fastslm.model.modeling import FastSLMForConditionalGeneration as Model
from fastslm.model.processing import FastSLMProcessor
from fastslm.model.whisper_decoder import FRAMES_PER_TOKEN, Unfolder, frames_at_rate

FORMER = {"head_size": 32, "stage_tokens": [8, 8, 8], "final_tokens": 5}
WIDTH, PLACES = 64, 5


@pytest.fixture(scope="module")
def whisper_folder(base_folders: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Whisper with a tokenizer, and weights so large that what it hears decides what it writes."""
    folder = tmp_path_factory.mktemp("decoder") / "whisper"
    torch.manual_seed(1)
    whisper = WhisperForConditionalGeneration.from_pretrained(base_folders[0])
    with torch.no_grad():
        for name, parameter in whisper.named_parameters():
            if "decoder" in name and parameter.dim() == 2:
                parameter.normal_(0.0, 0.4)
    whisper.save_pretrained(folder)
    return add_reader_tokenizer(folder)


@pytest.fixture(scope="module")
def make(base_folders: tuple[Path, ...], whisper_folder: Path) -> Any:
    """`make(**config)`: a model with Whisper's decoder, woken where it starts as the identity, in evaluation mode."""

    def build(**config: Any) -> Any:
        encoder, text_model = base_folders[0], base_folders[1]
        processor = FastSLMProcessor.from_base(encoder, text_model, tokens_per_window=PLACES)
        torch.manual_seed(0)
        model = Model.from_base(
            encoder,
            text_model,
            tokenizer=processor.tokenizer,
            hfq_config=FORMER,
            **{"lora_rank": 2, "base_decoder": str(whisper_folder), "unfolder_layers": 1, **config},
        )
        assert model.whisper_decoder is not None
        with torch.no_grad():
            for name, parameter in model.whisper_decoder.unfold.named_parameters():
                if name == "place" or "contract" in name:
                    parameter.normal_(0.0, 0.3)
        return model.eval()

    return build


@pytest.fixture(scope="module")
def model(make: Any) -> Any:
    return make(
        ctc_head=True,
        ctc_reads="frames",
        ctc_hidden_size=16,
        ctc_layers=1,
    )


def some_tokens(windows: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(windows, PLACES, WIDTH, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_each_token_becomes_its_own_twelve_frames_in_order() -> None:
    unfold = Unfolder(HFQFormerConfig(hidden_size=WIDTH, **FORMER), 1)
    torch.nn.init.normal_(unfold.place)
    tokens = some_tokens(2)
    frames = unfold(tokens)
    assert frames.shape == (2, PLACES * FRAMES_PER_TOKEN, WIDTH)
    # The blocks start as the identity, so every frame is the map of its token and the frame of its place, by hand.
    for place in range(PLACES * FRAMES_PER_TOKEN):
        token, part = divmod(place, FRAMES_PER_TOKEN)
        rows = slice(part * WIDTH, (part + 1) * WIDTH)
        by_hand = tokens[:, token] @ unfold.spread.weight[rows].T + unfold.spread.bias[rows] + unfold.place[place]
        torch.testing.assert_close(frames[:, place], by_hand, rtol=1e-4, atol=1e-5)


@given(st.integers(1, 40), st.integers(1, 40))
def test_frames_at_another_rate_lie_on_the_line_between_their_neighbours(length: int, count: int) -> None:
    # On a ramp every reading is the frame's time; outside the first and last frame's middle it is theirs.
    ramp = torch.arange(length, dtype=torch.float32)[None, :, None]
    expected = ((torch.arange(count) + 0.5) * length / count - 0.5).clamp(0, length - 1)
    torch.testing.assert_close(frames_at_rate(ramp, count)[0, :, 0], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_teacher_forced_scores_are_those_of_whisper_over_the_same_frames(model: Any, whisper_folder: Path) -> None:
    whisper = WhisperForConditionalGeneration.from_pretrained(whisper_folder).eval()
    frames = model.whisper_decoder.unfold(some_tokens())
    ids = torch.randint(3, 99, (3, 9), generator=torch.Generator().manual_seed(1))
    theirs = whisper(encoder_outputs=(frames,), decoder_input_ids=ids).logits
    torch.testing.assert_close(model.whisper_decoder.scores(frames, ids), theirs, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_it_reads_what_whisper_writes_greedily_over_the_same_frames(model: Any, whisper_folder: Path) -> None:
    whisper: Any = WhisperForConditionalGeneration.from_pretrained(whisper_folder).eval()
    frames = model.whisper_decoder.unfold(some_tokens(8))
    start = torch.tensor([model.whisper_decoder.start]).expand(8, -1)
    assert model.whisper_decoder.start == [1, 3]
    theirs: Any = GenerationMixin.generate(
        whisper,
        decoder_input_ids=start,
        encoder_outputs=BaseModelOutput(last_hidden_state=frames),  # type: ignore[arg-type]
        max_new_tokens=40,
        do_sample=False,
        pad_token_id=END,
    )
    found = model.whisper_decoder.read(some_tokens(8), 40)
    for row, read in zip(theirs[:, 2:].tolist(), found, strict=True):
        assert list(read.ids) == (row[: row.index(END)] if END in row else row)
        assert read.complete == (END in row)
        assert read.text == model.whisper_decoder.tokenizer.decode(read.ids, skip_special_tokens=True).strip()
    assert {read.complete for read in found} == {True, False}, "the test shows one of the two ends only"


@torch.no_grad()
@pytest.mark.parametrize("staying", [0.0, 0.75, 1.0])
def test_it_reads_what_generate_writes_with_what_holds_against_loops(
    staying: float, model: Any, whisper_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whisper_decoder, "STAYING", staying)
    suppressed = ([40, 41, 42], [50, END])
    monkeypatch.setitem(vars(model.whisper_decoder), "_suppressed", suppressed)
    whisper: Any = WhisperForConditionalGeneration.from_pretrained(whisper_folder).eval()
    frames = model.whisper_decoder.unfold(some_tokens(8, seed=4))
    theirs: Any = GenerationMixin.generate(
        whisper,
        decoder_input_ids=torch.tensor([model.whisper_decoder.start]).expand(8, -1),
        encoder_outputs=BaseModelOutput(last_hidden_state=frames),  # type: ignore[arg-type]
        max_new_tokens=40,
        do_sample=False,
        pad_token_id=END,
        repetition_penalty=1.2,
        no_repeat_ngram_size=3,
        suppress_tokens=suppressed[0],
        begin_suppress_tokens=suppressed[1],
    )
    against = [RepetitionPenaltyLogitsProcessor(1.2), NoRepeatNGramLogitsProcessor(3)]
    found = model.whisper_decoder.read_frames(frames, 40, processors=against)
    rows = [row[: row.index(END)] if END in row else row for row in theirs[:, 2:].tolist()]
    assert [list(read.ids) for read in found] == rows
    assert len({len(row) for row in rows}) > 1, "all rows end together, so none leaves the batch before the others"


def test_a_multilingual_decoder_is_told_language_and_task(make: Any, whisper_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "whisper"
    shutil.copytree(whisper_folder, folder)
    decoder = make(base_decoder=str(add_reader_tokenizer(folder, is_multilingual=True))).whisper_decoder
    names = decoder.tokenizer.convert_ids_to_tokens(decoder.start)
    assert names == ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]


def test_rows_of_a_batch_read_as_they_read_alone(model: Any) -> None:
    tokens = some_tokens(6, seed=2)
    together = model.whisper_decoder.read(tokens, 25)
    assert [model.whisper_decoder.read(tokens[row : row + 1], 25)[0] for row in range(6)] == together
    assert len({read.text for read in together}) > 1, "all rows say the same, so the test says nothing"


def test_no_more_is_written_than_was_allowed_nor_than_the_decoder_has_positions(model: Any) -> None:
    assert all(len(read.ids) <= 3 for read in model.whisper_decoder.read(some_tokens(), 3))
    limit = model.whisper_decoder.decoder.config.max_target_positions - 2
    assert all(len(read.ids) <= limit for read in model.whisper_decoder.read(some_tokens(1), 10_000))


@torch.no_grad()
def test_letters_come_from_the_frames_or_from_the_tokens_as_the_configuration_says(model: Any, make: Any) -> None:
    assert isinstance(model.ctc_head, FrameCTCHead)
    tokens = some_tokens(2)
    steps = PLACES * FRAMES_PER_TOKEN * FrameCTCHead.STEPS_PER_FRAME
    assert model.letters(tokens).shape == (2, steps, 29)
    assert torch.equal(model.letters(tokens), model.ctc_head(model.whisper_decoder.unfold(tokens)))
    torch.testing.assert_close(model.letters(tokens).exp().sum(-1), torch.ones(2, steps))
    other = make(ctc_head=True, ctc_hidden_size=16, ctc_layers=1, ctc_steps_per_token=4)
    assert isinstance(other.ctc_head, CTCHead)
    assert torch.equal(other.letters(tokens), other.ctc_head(tokens))
    with pytest.raises(ValueError, match="no CTC head"):
        make().letters(tokens)


@torch.no_grad()
def test_the_frame_heads_two_steps_of_a_frame_follow_one_another() -> None:
    # With nothing in the head but the last map, of which each step of a frame has its own rows.
    head = FrameCTCHead(WIDTH, 16, 1).eval()
    for parameter in head.parameters():
        parameter.zero_()
    classes = head.out.out_features // 2
    head.out.bias[1], head.out.bias[classes + 2] = 9.0, 9.0
    best = head(torch.randn(1, 4, WIDTH)).argmax(-1)
    assert best.tolist() == [[1, 2] * 4]


@pytest.mark.parametrize("form", ["whole", "trained"])
def test_a_model_with_whispers_decoder_comes_back_bit_for_bit(form: str, model: Any, tmp_path: Path) -> None:
    (model.save_pretrained if form == "whole" else model.save_trained)(tmp_path / form)
    loaded = Model.from_pretrained(tmp_path / form)
    left, right = model.state_dict(), loaded.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)
    assert not any(x.is_meta for x in [*loaded.parameters(), *loaded.buffers()])
    names = [{n for n, p in m.named_parameters() if p.requires_grad} for m in (model, loaded)]
    assert names[0] == names[1]
    assert not any(name.startswith("reader.decoder") for name in names[1])
    assert any(name.startswith("reader.unfold") for name in names[1])
    tokens = some_tokens()
    assert loaded.whisper_decoder.read(tokens, 15) == model.whisper_decoder.read(tokens, 15)
    assert torch.equal(loaded.letters(tokens), model.letters(tokens))
    with torch.no_grad():
        assert torch.equal(loaded.project(tokens), model.project(tokens))


def test_the_trained_part_holds_the_unfolder_and_not_the_decoder(model: Any, tmp_path: Path) -> None:
    from safetensors import safe_open

    model.save_trained(tmp_path / "trained")
    with safe_open(tmp_path / "trained" / "model.safetensors", "pt") as file:
        keys = [key for key in file.keys() if key.startswith("reader.")]  # noqa: SIM118
    assert sorted(keys) == sorted(f"reader.unfold.{key}" for key in model.whisper_decoder.unfold.state_dict())


def test_the_decoder_is_that_of_its_folder_and_stays_in_evaluation_mode(model: Any, whisper_folder: Path) -> None:
    whisper = WhisperForConditionalGeneration.from_pretrained(whisper_folder)
    for key, value in whisper.model.decoder.state_dict().items():
        assert torch.equal(value, model.whisper_decoder.decoder.state_dict()[key])
    model.train()
    assert model.whisper_decoder.unfold.training
    assert not model.whisper_decoder.decoder.training
    model.eval()


def test_a_decoder_of_another_size_is_refused_in_one_sentence(make: Any, whisper_folder: Path, tmp_path: Path) -> None:
    from transformers import WhisperConfig

    config = WhisperConfig.from_pretrained(whisper_folder)
    config.decoder_layers = 2
    WhisperForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"has decoder_layers 2, but .* says 1: name the decoder") as caught:
        make(base_decoder=str(tmp_path))
    assert str(caught.value).count(". ") == 0


def test_a_whisper_without_a_decoder_is_refused(whisper_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(whisper_folder / "model.safetensors")
    kept = {key: value for key, value in state.items() if "decoder" not in key}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((whisper_folder / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"lacks \d+ tensors"):
        load_decoder(tmp_path)


@pytest.fixture
def adapted(make: Any) -> Any:
    """A model whose decoder has LoRA that changes what it writes."""
    model = make(decoder_lora_rank=3, decoder_lora_alpha=6)
    with torch.no_grad():
        for parameter in lora_parameters(model.whisper_decoder.decoder):
            parameter.normal_(0.0, 0.3)
    return model


@torch.no_grad()
def test_lora_of_the_decoder_starts_as_the_decoder_and_changes_it_once_it_is_trained(make: Any, adapted: Any) -> None:
    plain, started = make(), make(decoder_lora_rank=3)
    frames, ids = plain.whisper_decoder.unfold(some_tokens()), torch.tensor([[1, 3, 40, 41]]).expand(3, -1)
    assert torch.equal(started.whisper_decoder.scores(frames, ids), plain.whisper_decoder.scores(frames, ids))
    assert not torch.allclose(
        adapted.whisper_decoder.scores(frames, ids), plain.whisper_decoder.scores(frames, ids), atol=0.1
    )
    # Of the language model's LoRA nothing changes.
    assert len(lora_parameters(started.language_model)) == len(lora_parameters(plain.language_model))


def test_only_lora_of_the_decoder_takes_a_gradient(adapted: Any) -> None:
    trains = {name for name, parameter in adapted.whisper_decoder.decoder.named_parameters() if parameter.requires_grad}
    assert len(trains) == len(lora_parameters(adapted.whisper_decoder.decoder)) > 0
    assert all(is_lora_key(f".{name}") for name in trains)


@torch.no_grad()
def test_merged_it_reads_the_same_and_its_trained_part_is_no_longer_saved_alone(adapted: Any, tmp_path: Path) -> None:
    adapted.save_trained(tmp_path / "trained")
    loaded = Model.from_pretrained(tmp_path / "trained")
    frames, ids = adapted.whisper_decoder.unfold(some_tokens()), torch.tensor([[1, 3, 40, 41]]).expand(3, -1)
    before = adapted.whisper_decoder.scores(frames, ids)
    assert torch.equal(loaded.whisper_decoder.scores(frames, ids), before)
    loaded.merge_decoder_lora()
    assert not lora_parameters(loaded.whisper_decoder.decoder)
    torch.testing.assert_close(loaded.whisper_decoder.scores(frames, ids), before, rtol=1e-4, atol=1e-4)
    with pytest.raises(CheckpointError, match="was merged into it"):
        loaded.save_trained(tmp_path / "again")
    loaded.save_pretrained(tmp_path / "whole")
    whole = Model.from_pretrained(tmp_path / "whole")
    assert torch.equal(whole.whisper_decoder.scores(frames, ids), loaded.whisper_decoder.scores(frames, ids))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"decoder_lora_rank": 4}, "decoder_lora_rank needs Whisper's decoder"),
        ({"ctc_reads": "words"}, "ctc_reads is 'words'"),
        ({"capabilities": {"via": "transcript"}}, "via 'transcript' needs .* give base_decoder"),
        ({"ctc_head": True, "ctc_reads": "frames"}, "ctc_reads 'frames' needs"),
        ({"capabilities": {"decoder": "whisper"}}, "decoder 'whisper' needs"),
    ],
)
def test_switches_that_do_not_fit_together_are_refused(make_config: Any, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_config(**changes)


@torch.no_grad()
def test_in_half_precision_the_unfolder_stays_in_single_and_both_decoders_read_it(model: Any, tmp_path: Path) -> None:
    model.save_trained(tmp_path / "trained")
    model.save_pretrained(tmp_path / "whole")
    for folder in ("trained", "whole"):
        half = Model.from_pretrained(tmp_path / folder, dtype=torch.bfloat16)
        assert {p.dtype for p in half.whisper_decoder.unfold.parameters()} == {torch.float32}
        assert {p.dtype for p in half.whisper_decoder.decoder.parameters()} == {torch.bfloat16}
        tokens = some_tokens().bfloat16()
        assert len(half.whisper_decoder.read(tokens, 5)) == 3
        # Rounded are the head alone and what it reads: steps of 2⁻⁸ of numbers of this size.
        difference = (half.letters(tokens).float() - model.letters(tokens.float())).abs().max()
        assert difference < 0.1


@torch.no_grad()
def test_with_text_before_the_start_it_reads_what_whisper_writes(model: Any, whisper_folder: Path) -> None:
    whisper: Any = WhisperForConditionalGeneration.from_pretrained(whisper_folder).eval()
    frames = model.reader.unfold(some_tokens(4))
    previous = model.reader.previous_text("a prompt", "some words").ids
    begin = [*previous, *model.reader.start]
    theirs: Any = GenerationMixin.generate(
        whisper,
        decoder_input_ids=torch.tensor([begin]).expand(4, -1),
        encoder_outputs=BaseModelOutput(last_hidden_state=frames),  # type: ignore[arg-type]
        max_new_tokens=30,
        do_sample=False,
        num_beams=1,
    )
    found = model.reader.read_frames(frames, 30, previous=previous)
    for read, row in zip(found, theirs[:, len(begin) :].tolist(), strict=True):
        assert list(read.ids) == (row[: row.index(END)] if END in row else row)
    assert [read.ids for read in found] != [read.ids for read in model.reader.read_frames(frames, 30)]
