"""What a stage trains: the parts, how the phases hand them on, and what is saved at the end."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, WhisperConfig

from fastslm import weights
from fastslm.errors import CheckpointError, RecipeError
from fastslm.model.base_weights import check_decoder, load_decoder
from fastslm.model.configuration import FastSLMConfig, HFQFormerConfig
from fastslm.model.ctc_head import make_ctc_head
from fastslm.model.hfq_former import HFQFormer
from fastslm.model.lora import is_lora_key, lora_parameters
from fastslm.model.modeling import FastSLMForConditionalGeneration
from fastslm.model.processing import FastSLMProcessor
from fastslm.model.saving import read_trained
from fastslm.model.starts import start_hfq_former
from fastslm.model.whisper_decoder import UnfoldingDecoder
from fastslm.training.alignment import AlignedCharacters, require_aligner
from fastslm.training.disk import writing
from fastslm.training.instructions import InstructionTuning, check_instructions
from fastslm.training.objectives import CharacterAlignment, Objective, TiedCTC, TokenCTC
from fastslm.training.reading import FrameRecovery, ReaderTranscript
from fastslm.training.recipe import CTCRecipe, ModelRecipe, Phase, Recipe
from fastslm.training.tied_start import TiedLooks, check_tied, untie
from fastslm.training.transcript import LanguageModelTranscript

# Of the shipped file: half the size of float32. Everything that a card reports is measured on the rounded weights.
EXPORT_DTYPE = torch.float16
# Whose keys in a checkpoint are the decoder's that reads.
DECODER = "reader.decoder."


def own_config(model: ModelRecipe) -> dict[str, Any]:
    """What a recipe says of the model beside base weights and the HFQ-Former, as `FastSLMConfig` takes it."""
    ctc = model.ctc or CTCRecipe()
    return {
        "lora_rank": model.lora.rank,
        "lora_alpha": model.lora.alpha,
        "lora_dropout": model.lora.dropout,
        "lora_targets": list(model.lora.targets),
        "mel_mode": model.mel_mode,
        "prompt_layout": model.prompt_layout,
        "ctc_head": model.ctc is not None,
        "ctc_hidden_size": ctc.hidden_size,
        "ctc_layers": ctc.layers,
        "ctc_steps_per_token": ctc.steps_per_token,
        "ctc_reads": ctc.reads,
        "languages": list(model.languages),
        "reader_base": None if model.reader is None else model.reader.base,
        "reader_layers": 0 if model.reader is None else model.reader.layers,
        "reader_lora_rank": 0 if model.reader is None else model.reader.lora_rank,
        "reader_lora_alpha": 16 if model.reader is None else model.reader.lora_alpha,
        "heard_words": model.heard_words,
        "words_base": model.text_model if model.heard_words else None,
        "transcript_reader": model.transcript_reader,
        "llm_reads_speech": model.llm_reads_speech,
        "llm_tasks": None if model.llm_tasks is None else list(model.llm_tasks),
        "taught_with": model.taught_with,
        "taught_seconds": model.taught_seconds,
        "translates_into": None if model.translates_into is None else list(model.translates_into),
    }


def model_config(recipe: Recipe) -> FastSLMConfig:
    """The configuration of the model that a recipe trains.

    Raises:
        RecipeError: its sizes or switches do not fit together.
    """
    model = recipe.model
    try:
        return _model_config(model)
    except ValueError as error:
        raise RecipeError(f"model: {error}") from None


def _model_config(model: ModelRecipe) -> FastSLMConfig:
    audio = WhisperConfig.from_pretrained(weights.resolve(model.encoder))
    text = AutoConfig.from_pretrained(weights.resolve(model.text_model))
    hfq = HFQFormerConfig(hidden_size=audio.d_model, window_frames=audio.max_source_positions, **model.hfq.model_dump())
    return FastSLMConfig(
        audio_config=audio,
        hfq_config=hfq,
        text_config=text,
        base_encoder=model.encoder,
        base_text_model=model.text_model,
        **own_config(model),
    )


class Learner:
    """The parts that are trained, through all phases of a run.

    The language model is loaded when a phase first needs it: most of the training goes on without.
    """

    def __init__(self, recipe: Recipe, device: torch.device):
        self.recipe = recipe
        self.device = device
        self.config = model_config(recipe)
        torch.manual_seed(recipe.seed)
        self.hfq_former = HFQFormer(self.config.hfq_config)
        start_hfq_former(self.hfq_former)
        try:
            head = make_ctc_head(self.config)
        except ValueError as error:
            raise RecipeError(f"model.ctc: {error}") from None
        assert head is not None
        self.head = head
        self.reader: UnfoldingDecoder | None = None
        if recipe.model.reader is not None:
            decoder = load_decoder(recipe.model.reader.base, self.frozen_dtype)
            check_decoder(self.config, decoder)
            self.reader = UnfoldingDecoder(self.config, decoder)
            for parameter in lora_parameters(self.reader.decoder):
                parameter.data = parameter.data.float()
            self.reader.to(device)
        self._check_objectives()
        self.hfq_former.to(device)
        self.head.to(device)
        self.model: FastSLMForConditionalGeneration | None = None
        self.processor: FastSLMProcessor | None = None
        if recipe.start_from is not None:
            self.start_from(recipe.start_from)

    @property
    def frozen_dtype(self) -> torch.dtype:
        """Of weights that are not trained."""
        return torch.bfloat16 if self.recipe.precision == "bf16" else torch.float32

    @torch.no_grad()
    def start_from(self, folder: Path) -> None:
        """Take over the trained part of an earlier stage's model.

        Raises:
            CheckpointError: it cannot be read, or is of another size than the recipe's model.
        """
        state = read_trained(folder)
        parts: list[tuple[str, nn.Module]] = [("hfq_former.", self.hfq_former), ("ctc_head.", self.head)]
        if self.reader is not None and any(key.startswith("reader.unfold.") for key in state):
            # A stage may be the first that has a reader.
            parts.append(("reader.unfold.", self.reader.unfold))
        for prefix, module in parts:
            own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            expected = module.state_dict()
            other = sorted(
                prefix + key
                for key in expected.keys() | own.keys()
                if key not in own or key not in expected or own[key].shape != expected[key].shape
            )
            if other:
                raise CheckpointError(
                    f"start_from {folder} holds a model of another size than the recipe's ({other[0]} differs); "
                    "give the stage's own earlier model, or the sizes of that one."
                )
            module.load_state_dict(own)
        lora = {key for key in state if is_lora_key(key)}
        of_decoder = {key for key in lora if key.startswith(DECODER)}
        if of_decoder:
            expected = (
                {} if self.reader is None else {DECODER + k: v for k, v in self.reader.decoder.state_dict().items()}
            )
            for key in sorted(of_decoder):
                if key not in expected or expected[key].shape != state[key].shape:
                    raise CheckpointError(
                        f"start_from {folder} holds LoRA of another size for the decoder that reads ({key} differs); "
                        "set model.reader.lora_rank as it was."
                    )
                expected[key].copy_(state[key])
        if lora - of_decoder:
            model, _ = self.whole_model()
            expected = model.state_dict()
            for key, value in state.items():
                if key.startswith("projector.") or key in lora - of_decoder:
                    if key not in expected or expected[key].shape != value.shape:
                        raise CheckpointError(
                            f"start_from {folder} holds a language model part of another size ({key} differs); "
                            "set model.lora and model.text_model as they were."
                        )
                    expected[key].copy_(value)

    def _check_objectives(self) -> None:
        """Say now what a later phase would stop at."""
        objectives = {phase.objective for phase in self.recipe.phases}
        if "tied" in objectives:
            check_tied(self.config.hfq_config, self.config.ctc_steps_per_token)
        reader = self.recipe.model.reader
        if reader is not None and reader.start_windows:
            check_tied(self.config.hfq_config, needed_by="model.reader.start_windows")
        if "alignment" in objectives:
            require_aligner()
        check_instructions(self.recipe)

    def objective(self, phase: Phase, state: dict[str, Any] | None) -> Objective:
        """What the phase trains towards, with the weights of a checkpoint of that phase where there is one."""
        if state is not None:
            self.load_state_dict(state["learner"])
        # The recipe was checked: where an objective needs a head that reads tokens, it is one.
        head: Any = self.head
        if phase.objective == "tied":
            looks = TiedLooks(self.hfq_former).to(self.device)
            if state is not None:
                looks.value.load_state_dict(state["learner"]["value"])
            return TiedCTC(looks, head)
        if phase.objective == "ctc":
            return TokenCTC(self.hfq_former, head)
        if phase.objective == "alignment":
            return CharacterAlignment(self.hfq_former, head, AlignedCharacters(self.recipe))
        if phase.objective == "frames":
            assert self.reader is not None
            return FrameRecovery(self.hfq_former, self.head, self.reader)
        if phase.objective == "reader":
            assert self.reader is not None
            return ReaderTranscript(self.hfq_former, self.head, self.reader, phase)
        model, processor = self.whole_model()
        if phase.objective == "instructions":
            return InstructionTuning(model, processor, self.recipe, phase)
        return LanguageModelTranscript(model, processor, phase.ctc_weight)

    def finish(self, phase: Phase, objective: Objective) -> None:
        """What happens to the parts between this phase and the next."""
        if isinstance(objective, TiedCTC):
            untie(objective.looks)

    def whole_model(self) -> tuple[FastSLMForConditionalGeneration, FastSLMProcessor]:
        """The model around the trained parts. Frozen weights are in the compute dtype, trained ones in float32."""
        if self.model is None or self.processor is None:
            recipe = self.recipe.model
            processor = FastSLMProcessor.from_base(
                recipe.encoder,
                recipe.text_model,
                tokens_per_window=self.config.tokens_per_window,
                mel_mode=recipe.mel_mode,
                prompt_layout=recipe.prompt_layout,
            )
            torch.manual_seed(self.recipe.seed)
            model = FastSLMForConditionalGeneration.from_base(
                recipe.encoder,
                recipe.text_model,
                tokenizer=processor.tokenizer,
                dtype=self.frozen_dtype,
                hfq_config=recipe.hfq.model_dump(),
                **own_config(recipe),
            )
            model.hfq_former, model.ctc_head, model.reader = self.hfq_former, self.head, self.reader
            model.projector.float()
            for parameter in lora_parameters(model.language_model):
                parameter.data = parameter.data.float()
            # transformers' mixins hide `to` from type checkers.
            module: Any = model
            module.to(self.device)
            self.model, self.processor = model, processor
        return self.model, self.processor

    def train(self, phase: Phase) -> None:
        """Training mode, with the phase's dropout in the head."""
        self.hfq_former.train()
        self.head.train()
        if self.reader is not None:
            self.reader.unfold.train()
        if phase.objective in ("llm", "instructions") and self.model is not None:
            self.model.train()
        for module in self.head.modules():
            if isinstance(module, nn.Dropout):
                module.p = phase.dropout

    def eval(self) -> None:
        """Evaluation mode of all parts."""
        self.hfq_former.eval()
        self.head.eval()
        if self.reader is not None:
            self.reader.eval()
        if self.model is not None:
            self.model.eval()

    def state_dict(self, objective: Objective | None = None) -> dict[str, Any]:
        """Weights of all parts that are trained, for a checkpoint."""
        state: dict[str, Any] = {"hfq_former": self.hfq_former.state_dict(), "head": self.head.state_dict()}
        if self.reader is not None:
            state["unfold"] = self.reader.unfold.state_dict()
            state["decoder"] = [parameter.detach() for parameter in lora_parameters(self.reader.decoder)]
        if isinstance(objective, TiedCTC):
            state["value"] = objective.looks.value.state_dict()
        if self.model is not None:
            state["projector"] = self.model.projector.state_dict()
            state["lora"] = [parameter.detach() for parameter in lora_parameters(self.model.language_model)]
        return state

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the weights of `state_dict`."""
        self.hfq_former.load_state_dict(state["hfq_former"])
        self.head.load_state_dict(state["head"])
        if self.reader is not None:
            self.reader.unfold.load_state_dict(state["unfold"])
            # Checkpoints of before the decoder had LoRA lack it.
            kept = state.get("decoder", [])
            for parameter, value in zip(lora_parameters(self.reader.decoder), kept, strict=True):
                parameter.copy_(value)
        if "lora" in state:
            model, _ = self.whole_model()
            model.projector.load_state_dict(state["projector"])
            for parameter, value in zip(lora_parameters(model.language_model), state["lora"], strict=True):
                parameter.copy_(value)

    def export(self, folder: Path, summary: dict[str, Any]) -> Path:
        """The trained part, its processor and what the run was, as a folder that `fastslm.load` takes."""
        model, processor = self.whole_model()
        self.eval()
        with writing(folder, "the trained model"):
            model.save_trained(folder, dtype=EXPORT_DTYPE)
            processor.save_pretrained(folder)
            partial = folder / "training.json.partial"
            partial.write_text(json.dumps(summary, indent=1) + "\n")
            os.replace(partial, folder / "training.json")
        return folder
