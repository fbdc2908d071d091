"""What a stage trains: the parts, how the phases hand them on, and what is saved at the end."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, WhisperConfig

from fastslm import weights
from fastslm.errors import RecipeError
from fastslm.model.configuration import FastSLMConfig, HFQFormerConfig
from fastslm.model.ctc_head import CTCHead
from fastslm.model.hfq_former import HFQFormer
from fastslm.model.starts import start_hfq_former
from fastslm.training.alignment import AlignedCharacters
from fastslm.training.objectives import CharacterAlignment, Objective, TiedCTC, TokenCTC
from fastslm.training.recipe import Phase, Recipe
from fastslm.training.tied_start import TiedLooks, untie


def model_config(recipe: Recipe) -> FastSLMConfig:
    """The configuration of the model that a recipe trains."""
    model = recipe.model
    audio = WhisperConfig.from_pretrained(weights.resolve(model.encoder))
    text = AutoConfig.from_pretrained(weights.resolve(model.text_model))
    hfq = HFQFormerConfig(hidden_size=audio.d_model, window_frames=audio.max_source_positions, **model.hfq.model_dump())
    ctc = model.ctc
    return FastSLMConfig(
        audio_config=audio,
        hfq_config=hfq,
        text_config=text,
        base_encoder=model.encoder,
        base_text_model=model.text_model,
        lora_rank=model.lora.rank,
        lora_alpha=model.lora.alpha,
        lora_dropout=model.lora.dropout,
        lora_targets=list(model.lora.targets),
        mel_mode=model.mel_mode,
        prompt_layout=model.prompt_layout,
        ctc_head=ctc is not None,
        ctc_hidden_size=ctc.hidden_size if ctc else 256,
        ctc_layers=ctc.layers if ctc else 4,
        ctc_steps_per_token=24,
    )


class Learner:
    """The parts that are trained, through all phases of a run."""

    def __init__(self, recipe: Recipe, device: torch.device):
        self.recipe = recipe
        self.device = device
        self.config = model_config(recipe)
        torch.manual_seed(recipe.seed)
        self.hfq_former = HFQFormer(self.config.hfq_config)
        start_hfq_former(self.hfq_former)
        self.head = CTCHead(self.config)
        self.hfq_former.to(device)
        self.head.to(device)

    def objective(self, phase: Phase, state: dict[str, Any] | None) -> Objective:
        """What the phase trains towards, with the weights of a checkpoint of that phase where there is one."""
        if state is not None:
            self.hfq_former.load_state_dict(state["learner"]["hfq_former"])
            self.head.load_state_dict(state["learner"]["head"])
        if phase.objective == "tied":
            looks = TiedLooks(self.hfq_former).to(self.device)
            if state is not None:
                looks.value.load_state_dict(state["learner"]["value"])
            return TiedCTC(looks, self.head)
        if phase.objective == "ctc":
            return TokenCTC(self.hfq_former, self.head)
        if phase.objective == "alignment":
            return CharacterAlignment(self.hfq_former, self.head, AlignedCharacters(self.recipe))
        raise RecipeError(f"phase {phase.name}: objective {phase.objective} is not known.")

    def finish(self, phase: Phase, objective: Objective) -> None:
        """What happens to the parts between this phase and the next."""
        if isinstance(objective, TiedCTC):
            untie(objective.looks)

    def train(self, phase: Phase) -> None:
        """Training mode, with the phase's dropout in the head."""
        self.hfq_former.train()
        self.head.train()
        for module in self.head.modules():
            if isinstance(module, nn.Dropout):
                module.p = phase.dropout

    def eval(self) -> None:
        """Evaluation mode of all parts."""
        self.hfq_former.eval()
        self.head.eval()

    def state_dict(self, objective: Objective) -> dict[str, Any]:
        """Weights of all parts, for a checkpoint."""
        state = {"hfq_former": self.hfq_former.state_dict(), "head": self.head.state_dict()}
        if isinstance(objective, TiedCTC):
            state["value"] = objective.looks.value.state_dict()
        return state

    def export(self, folder: Path, summary: dict[str, Any]) -> Path:
        """The trained model as a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        torch.save({"hfq_former": self.hfq_former.state_dict(), "head": self.head.state_dict()}, folder / "parts.pt")
        return folder
