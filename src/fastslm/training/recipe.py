"""Recipes: everything that a stage of training depends on, checked before anything slow starts."""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from fastslm.data.augmentation import Augmentation
from fastslm.data.packing import Packing
from fastslm.model.configuration import LORA_TARGETS

# More than any machine has cores; where far more are asked for, OpenMP ends the process.
MOST_THREADS = 1024
# What torch takes as a seed.
LARGEST_SEED = 2**63 - 1


def _not_empty(path: Any) -> Any:
    """An empty path would be the folder that the command is started in."""
    if path == "":
        raise ValueError("an empty path names nothing; give a file or folder")
    return path


FilePath = Annotated[Path, pydantic.BeforeValidator(_not_empty)]
Positive = Annotated[int, pydantic.Field(gt=0)]
Share = Annotated[float, pydantic.Field(ge=0, le=1)]


class Section(pydantic.BaseModel):
    """A part of a recipe: no unknown keys, only finite numbers, nothing changes after the check."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class BaseRecipe(Section):
    """Frozen base weights with their sizes: read by `name`, or random ones of `config` where there is no name.

    `fastslm train --dry-run` reads sizes from `config`, so that nothing has to be fetched for it.
    """

    name: str | None = None
    # Of transformers: WhisperConfig's keys, or any causal language model's with its `model_type`.
    config: dict[str, Any] | None = None
    # Of a random language model: a name or folder; by default one token for each byte.
    tokenizer: str | None = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _as_mapping(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given

    @pydantic.model_validator(mode="after")
    def _says_something(self) -> "BaseRecipe":
        if self.name is None and self.config is None:
            raise ValueError("neither a name nor a config is given; give one")
        if self.name is not None and self.tokenizer is not None:
            raise ValueError("tokenizer does nothing beside name, which has its own; leave it out")
        return self


class HFQRecipe(Section):
    """Sizes and switches of the HFQ-Former, as in `HFQFormerConfig`; its width is the encoder's."""

    head_size: Positive = 64
    stage_tokens: tuple[int, int, int] = (80, 80, 80)
    final_tokens: Positive = 50
    detail_blocks: int = pydantic.Field(default=2, ge=0)
    query_start: Literal["random", "time"] = "random"
    detail_positions: bool = False
    detail_start: Literal["random", "positional"] = "random"
    attention_span: int | None = pydantic.Field(default=None, ge=0)


class LoRARecipe(Section):
    """LoRA of the language model; rank 0 is none."""

    rank: int = pydantic.Field(default=16, ge=0)
    alpha: Positive = 64
    dropout: float = pydantic.Field(default=0.01, ge=0, lt=1)
    targets: tuple[str, ...] = LORA_TARGETS


class CTCRecipe(Section):
    """The CTC head, which hears letters in the tokens (ours)."""

    hidden_size: Positive = 256
    layers: Positive = 4
    steps_per_token: Positive = 24
    # `frames`: the head reads what the unfolder makes of the tokens, in two steps a frame.
    reads: Literal["tokens", "frames"] = "tokens"


class DecoderRecipe(Section):
    """Whisper's own decoder, frozen, which reads the tokens through an unfolder (ours)."""

    base: str = "whisper-tiny.en"
    layers: int = pydantic.Field(default=3, ge=0)
    lora_rank: int = pydantic.Field(default=0, ge=0)
    lora_alpha: Positive = 16
    # Windows from which tokens and unfolder get their least-squares start, where training starts anew; 0 is none.
    start_windows: int = pydantic.Field(default=0, ge=0)


class ModelRecipe(Section):
    """Which base weights, and the sizes of what is trained on them.

    Encoder and language model may be left out after `start_from`: they are those of the checkpoint then.
    """

    encoder: BaseRecipe | None = None
    text_model: BaseRecipe | None = None
    hfq: HFQRecipe = HFQRecipe()
    projector: Literal["linear", "ctc_embeddings"] = "linear"
    projector_config: dict[str, Any] | None = None
    lora: LoRARecipe = LoRARecipe()
    ctc: CTCRecipe | None = None
    decoder: DecoderRecipe | None = None
    mel_mode: Literal["window", "authors"] = "window"
    prompt_layout: Literal["audio_first", "task_first"] = "audio_first"
    # What the checkpoint says of itself: see `fastslm.model.capabilities.Capabilities`.
    capabilities: dict[str, Any] | None = None


class SourceRecipe(Section):
    """Rows: a JSONL manifest, a file of Lhotse cuts or a Shar folder, and how much they weigh beside other sources."""

    path: FilePath | None = None
    cuts: FilePath | None = None
    share: float = pydantic.Field(default=1.0, gt=0)
    # What the rows are to be of, where they do not say themselves.
    task: Literal["transcribe", "translate", "summarize", "ask"] | None = None
    # What a dry run counts where the corpus is not there: all its hours, and how long a row is on average.
    hours: float | None = pydantic.Field(default=None, gt=0)
    row_seconds: float | None = pydantic.Field(default=None, gt=0)

    @pydantic.model_validator(mode="after")
    def _one_place(self) -> "SourceRecipe":
        if (self.path is None) == (self.cuts is None):
            raise ValueError("give either path (a manifest or cuts) or cuts")
        return self

    @property
    def place(self) -> Path:
        found = self.path or self.cuts
        assert found is not None
        return found


class MaskRecipe(Section):
    """Stretches of up to `frames` encoder frames are blanked, about `share` of each window."""

    share: float = pydantic.Field(gt=0, lt=1)
    frames: Positive = 15


class DataRecipe(Section):
    """What is trained on, and how rows become batches."""

    train: tuple[SourceRecipe, ...] = pydantic.Field(min_length=1)
    validation: SourceRecipe | None = None
    validation_rows: Positive = 100
    # A micro-batch of all processes together: its rows times the longest, in whole windows of 30 s; or its rows.
    batch_seconds: float | None = pydantic.Field(default=None, gt=0)
    batch_rows: int | None = pydantic.Field(default=None, gt=0)
    # Longer rows are left out.
    max_seconds: float | None = pydantic.Field(default=None, gt=0)
    workers: int = pydantic.Field(default=0, ge=0)
    # Keep the frozen encoder's frames on disk, in this folder.
    cache_features: bool = False
    cache: FilePath = Path("cache/frames")
    # Pack the clips of `train` into windows.
    packing: Packing | None = None
    # Change rows that are not packed: speed, noise, rooms, codecs.
    augmentation: Augmentation | None = None
    # Layouts of packed windows, or changes of a row, until the first comes again; 0: another one in every epoch.
    variants: int = pydantic.Field(default=0, ge=0)
    # Laid under windows, or under augmented rows.
    sounds: FilePath | None = None
    mask: MaskRecipe | None = None
    # Of rows without an instruction of their own: the task's default words, or one of several phrasings.
    phrasings: Literal["default", "varied"] = "default"

    @pydantic.model_validator(mode="after")
    def _has_a_bound(self) -> "DataRecipe":
        if self.batch_seconds is None and self.batch_rows is None:
            raise ValueError("a batch has no bound; give batch_seconds or batch_rows")
        if self.packing is None and self.augmentation is None and self.sounds is not None:
            raise ValueError("sounds does nothing without packing or augmentation; leave it out")
        if self.packing is None and self.augmentation is None and self.variants:
            raise ValueError("variants does nothing without packing or augmentation; leave it out")
        if self.packing is not None and self.augmentation is not None:
            raise ValueError("augmentation of packed clips is packing.augmentation; write it there")
        if not self.cache_features and "cache" in self.model_fields_set:
            raise ValueError("cache does nothing without cache_features; set it, or leave cache out")
        return self


LossName = Literal["speech_lm", "token_ctc", "whisper_decoder"]
# What each loss trains, what may stand beside it by weight, and which of its parts those train.
TRAINED: dict[str, tuple[str, ...]] = {
    "speech_lm": ("hfq", "projector", "lora"),
    "token_ctc": ("hfq", "projector", "front"),
    "whisper_decoder": ("hfq", "unfolder", "decoder_lora"),
}
BESIDE: dict[str, dict[str, tuple[str, ...]]] = {
    "speech_lm": {"ctc": ("ctc",), "distillation": ()},
    "token_ctc": {"intermediate": (), "letters": ()},
    "whisper_decoder": {"ctc": ("ctc",), "frames": ()},
}


class LossRecipe(Section):
    """The loss by its name, and others beside it, by theirs, each with its weight."""

    name: LossName = "speech_lm"
    mean_over: Literal["tokens", "rows"] = "tokens"
    beside: dict[str, Annotated[float, pydantic.Field(gt=0)]] = {}

    @pydantic.model_validator(mode="after")
    def _knows_them(self) -> "LossRecipe":
        known = BESIDE[self.name]
        for name in self.beside:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known there: {', '.join(known)}"
                raise ValueError(f"beside {self.name} there is no loss {name!r} ({hint})")
        if self.name != "speech_lm" and "mean_over" in self.model_fields_set:
            raise ValueError(f"mean_over does nothing for {self.name}; leave it out")
        return self

    @property
    def trains(self) -> tuple[str, ...]:
        """The parts that this loss and those beside it can train."""
        own = BESIDE[self.name]
        return (*TRAINED[self.name], *(part for name in self.beside for part in own[name]))


class MuonRates(Section):
    """Rates of a part that Muon trains: its 2-D weights, and by AdamW the rest."""

    matrices: float = pydantic.Field(gt=0)
    other: float = pydantic.Field(gt=0)


Rate = Annotated[float, pydantic.Field(ge=0)] | MuonRates


class Rates(Section):
    """Peak learning rates; a part whose rate is 0 or absent stays as it is.

    `front` is the unfolder and the head of letters inside the projector `ctc_embeddings`, `ctc` the CTC head,
    `unfolder` and `decoder_lora` belong to Whisper's decoder.
    """

    hfq: Rate = 0.0
    projector: Rate = 0.0
    lora: Rate = 0.0
    front: Rate = 0.0
    ctc: Rate = 0.0
    unfolder: Rate = 0.0
    decoder_lora: Rate = 0.0

    @property
    def given(self) -> dict[str, Any]:
        """Those that are not 0, by part."""
        return {part: rate for part in type(self).model_fields if (rate := getattr(self, part))}


class OptimizerRecipe(Section):
    """AdamW, or Muon for the 2-D weights of parts whose rate has `matrices` and AdamW for all others."""

    name: Literal["adamw", "muon"] = "adamw"
    rates: Rates
    warmup_steps: int = pydantic.Field(default=0, ge=0)
    # Of the rate, from the end of the warm-up to the last step.
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    # Share of the peak that it falls to.
    final_rate: Share = 0.0
    weight_decay: float = pydantic.Field(default=0.0, ge=0)
    betas: tuple[Annotated[float, pydantic.Field(ge=0, lt=1)], Annotated[float, pydantic.Field(ge=0, lt=1)]] = (
        0.9,
        0.999,
    )
    clip_norm: float = pydantic.Field(default=1.0, gt=0)

    @pydantic.model_validator(mode="after")
    def _rates_fit(self) -> "OptimizerRecipe":
        if not self.rates.given:
            raise ValueError("every learning rate is 0, so nothing would train")
        matrices = [part for part, rate in self.rates.given.items() if isinstance(rate, MuonRates)]
        if self.name == "adamw" and matrices:
            raise ValueError(f"rates.{matrices[0]} is for muon; give one number for adamw")
        if self.name == "muon" and not matrices:
            raise ValueError("muon trains matrices, and no rate has any; write for instance hfq: {matrices: 0.005, …}")
        if self.schedule == "constant" and "final_rate" in self.model_fields_set:
            raise ValueError("final_rate does nothing for a constant schedule; leave it out")
        return self


class Recipe(Section):
    """A stage of training: one model, one loss, one schedule."""

    name: str
    # Recognition, long recordings, all tasks: the paper's three. The model card says it; what is trained, `loss` says.
    stage: Literal[1, 2, 3]
    seed: int = pydantic.Field(default=1, ge=0, le=LARGEST_SEED)
    # The folder of a checkpoint: of ours, or what `fastslm import-authors` wrote.
    start_from: FilePath | None = None
    out: FilePath
    model: ModelRecipe
    data: DataRecipe
    loss: LossRecipe = LossRecipe()
    optimizer: OptimizerRecipe
    steps: int | None = pydantic.Field(default=None, gt=0)
    epochs: float | None = pydantic.Field(default=None, gt=0)
    # Micro-batches of a step.
    accumulate: Positive = 1
    # In bf16 frozen weights are kept in bfloat16 and products computed in it; what is trained stays float32.
    precision: Literal["bf16", "float32"] = "bf16"
    gradient_checkpointing: bool = False
    # Weights are averaged over the steps with this decay, and the average is what is saved; 0 is off.
    average: float = pydantic.Field(default=0.0, ge=0, lt=1)
    checkpoint_minutes: float = pydantic.Field(default=10.0, gt=0)
    validate_every: Positive = 500
    # Of the trained part in the folder that comes out.
    export_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    # torch's threads; a resumed run gives the same bits only with the same number.
    threads: int = pydantic.Field(default=2, gt=0, le=MOST_THREADS)

    @pydantic.model_validator(mode="after")
    def _can_be_run(self) -> "Recipe":
        faults = [*self._model_faults(), *self._loss_faults()]
        if (self.steps is None) == (self.epochs is None):
            faults.append("give either steps or epochs")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _model_faults(self) -> list[str]:
        model, found = self.model, []
        if self.start_from is None:
            missing = [f"model.{key}" for key in ("encoder", "text_model") if getattr(model, key) is None]
            if missing:
                found.append(f"{' and '.join(missing)} must be given where there is no start_from")
        if model.projector == "linear" and model.projector_config:
            found.append("model.projector_config does nothing for the projector linear; leave it out")
        if model.projector == "ctc_embeddings" and "kinds" not in (model.projector_config or {}):
            found.append("model.projector_config.kinds is missing: the number of tokens that ctc_embeddings can hear")
        if model.ctc is not None and model.ctc.reads == "frames" and model.decoder is None:
            found.append("model.ctc.reads is frames, which model.decoder unfolds; set model.decoder")
        if model.decoder is not None and model.decoder.start_windows and self.start_from is not None:
            found.append("model.decoder.start_windows does nothing after start_from; leave one of them out")
        if model.mel_mode == "authors" and self.data.packing is not None:
            found.append("data.packing makes windows with a log-mel of their own; set model.mel_mode to window")
        return found

    def _loss_faults(self) -> list[str]:
        loss, model, given, found = self.loss, self.model, self.optimizer.rates.given, []
        if idle := [part for part in given if part not in loss.trains]:
            found.append(f"loss {loss.name} does not train {', '.join(idle)}; leave the rate out")
        if loss.name == "speech_lm" and model.projector == "ctc_embeddings":
            idle = [part for part in ("hfq", "projector") if part in given]
            if "ctc" in loss.beside and "hfq" in idle:
                idle.remove("hfq")
            if idle:
                found.append(
                    f"the projector ctc_embeddings passes no gradient, so speech_lm cannot train {', '.join(idle)}; "
                    "train it with the loss token_ctc, and LoRA here"
                )
        if loss.name == "token_ctc" and model.projector != "ctc_embeddings":
            found.append("loss token_ctc needs model.projector ctc_embeddings, which hears tokens; set it")
        if loss.name == "whisper_decoder" and model.decoder is None:
            found.append("loss whisper_decoder needs model.decoder; set it")
        if "ctc" in loss.beside and model.ctc is None:
            found.append("loss.beside.ctc needs model.ctc, the head that it trains; set it")
        if "lora" in given and not model.lora.rank:
            found.append("optimizer.rates.lora trains LoRA, and model.lora.rank is 0; set one of them")
        if "decoder_lora" in given and not (model.decoder and model.decoder.lora_rank):
            found.append("optimizer.rates.decoder_lora needs model.decoder.lora_rank; set it")
        if self.gradient_checkpointing and loss.name != "speech_lm":
            found.append(f"gradient_checkpointing is of the language model, which {loss.name} does not use; set false")
        return found
