"""Recipes: everything that a training run depends on, checked before anything slow starts."""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml

from fastslm.data.packing import Packing
from fastslm.errors import RecipeError
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


class Section(pydantic.BaseModel):
    """A part of a recipe: no unknown keys, only finite numbers, nothing changes after the check."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class HFQRecipe(Section):
    """Sizes and switches of the HFQ-Former, as in `HFQFormerConfig`; its width is the encoder's."""

    stage_tokens: tuple[int, int, int] = (80, 80, 80)
    final_tokens: int = pydantic.Field(default=50, gt=0)
    detail_blocks: int = pydantic.Field(default=2, ge=0)
    query_start: Literal["random", "time"] = "random"
    detail_positions: bool = False
    detail_start: Literal["random", "positional"] = "random"
    attention_span: int | None = pydantic.Field(default=None, ge=0)


class CTCRecipe(Section):
    """The CTC head that reads the tokens (ours)."""

    hidden_size: int = pydantic.Field(default=256, gt=0)
    layers: int = pydantic.Field(default=4, gt=0)
    # Steps that a token is read in; the tied start needs its looks, heads × detail blocks.
    steps_per_token: int = pydantic.Field(default=24, gt=0)
    # `frames`: the head reads what the unfolder makes of the tokens, in two steps a frame.
    reads: Literal["tokens", "frames"] = "tokens"


class ReaderRecipe(Section):
    """Whisper's own decoder, frozen, that reads the tokens through an unfolder (ours)."""

    base: str = "whisper-tiny.en"
    # Windows from which tokens and unfolder take the least-squares start, where training starts anew; 0 is none.
    start_windows: int = pydantic.Field(default=0, ge=0)
    # Blocks of the unfolder.
    layers: int = pydantic.Field(default=3, ge=0)
    # LoRA of the decoder; 0 leaves it as it was published.
    lora_rank: int = pydantic.Field(default=0, ge=0)
    lora_alpha: int = pydantic.Field(default=16, gt=0)


class LoRARecipe(Section):
    """LoRA of the language model."""

    rank: int = pydantic.Field(default=16, ge=0)
    alpha: int = pydantic.Field(default=64, gt=0)
    dropout: float = pydantic.Field(default=0.01, ge=0, lt=1)
    targets: tuple[str, ...] = LORA_TARGETS


class ModelRecipe(Section):
    """Which base weights, and the sizes of what is trained on them."""

    encoder: str
    text_model: str
    hfq: HFQRecipe = HFQRecipe()
    ctc: CTCRecipe | None = CTCRecipe()
    reader: ReaderRecipe | None = None
    lora: LoRARecipe = LoRARecipe()
    mel_mode: Literal["window", "authors"] = "window"
    prompt_layout: Literal["audio_first", "task_first"] = "audio_first"
    # The language model reads the words that the reader hears, folded into the places of the tokens.
    heard_words: bool = False
    # What the model says of itself: see FastSLMConfig.
    languages: tuple[str, ...] = ("en",)
    transcript_reader: Literal["ctc", "whisper", "llm"] | None = None
    llm_reads_speech: bool = False
    llm_tasks: tuple[Literal["transcribe", "translate", "summarize", "ask"], ...] | None = None
    translates_into: tuple[str, ...] | None = None
    taught_with: dict[Literal["transcribe", "translate", "summarize", "ask"], str] | None = None
    taught_seconds: dict[Literal["translate", "summarize", "ask"], Annotated[float, pydantic.Field(ge=30)]] | None = (
        None
    )


class ManifestShare(Section):
    """A manifest and the share of its clips that takes part, drawn anew for each variant."""

    path: FilePath
    share: float = pydantic.Field(default=1.0, gt=0, le=1)


class DataRecipe(Section):
    """Training windows are packed `variants` times, each time otherwise, and their features cached."""

    train: tuple[ManifestShare, ...] = pydantic.Field(min_length=1)
    sounds: FilePath | None = None
    validation: FilePath
    validation_clips: int = pydantic.Field(default=100, gt=0)
    variants: int = pydantic.Field(default=1, gt=0)
    packing: Packing = Packing()
    cache: FilePath = Path("cache")
    # Rows of tasks with their answers; a share is of the rows of a batch here.
    instructions: tuple[ManifestShare, ...] = ()
    instructions_validation: FilePath | None = None


class Rates(Section):
    """Peak learning rates: HFQ-Former, CTC head, unfolder, LoRA of the decoder that reads, projection, the LLM's LoRA.

    Where a part has a rate for `matrices`, Muon trains its 2-D weights and AdamW the rest; where that is 0, AdamW
    trains all of it at the other rate. A part whose rates are all 0 stays as it is.
    """

    hfq_matrices: float = pydantic.Field(default=0.0, ge=0)
    hfq_other: float = pydantic.Field(default=0.0, ge=0)
    head_matrices: float = pydantic.Field(default=0.0, ge=0)
    head_other: float = pydantic.Field(default=0.0, ge=0)
    reader_matrices: float = pydantic.Field(default=0.0, ge=0)
    reader_other: float = pydantic.Field(default=0.0, ge=0)
    decoder: float = pydantic.Field(default=0.0, ge=0)
    projector: float = pydantic.Field(default=0.0, ge=0)
    lora: float = pydantic.Field(default=0.0, ge=0)


# What each objective trains, and which of them may have the CTC loss beside their own.
TRAINED = {
    "tied": ("hfq", "head"),
    "alignment": ("hfq", "head"),
    "ctc": ("hfq", "head"),
    "frames": ("hfq", "reader"),
    "reader": ("hfq", "reader", "decoder"),
    "llm": ("hfq", "projector", "lora"),
    "instructions": ("lora",),
}
BESIDE_CTC = ("reader", "llm")


class Phase(Section):
    """A part of the stage with one objective, one set of learning rates and one schedule.

    objective: `tied` is the tied start (looks share one value map), `alignment` classifies characters in time against
    forced alignments, `ctc` reads the tokens with the CTC head, `frames` unfolds them to the encoder's frames,
    `reader` has Whisper's own decoder read those, `llm` is the paper's loss on the transcript's tokens,
    `instructions` the loss of answers from the words of `data.instructions`, without any sound.
    """

    name: str
    objective: Literal["tied", "alignment", "ctc", "frames", "reader", "llm", "instructions"]
    steps: int = pydantic.Field(gt=0)
    batch_windows: int = pydantic.Field(default=8, gt=0)
    # Of instructions, instead of `batch_windows`: rows of about the same length, together at most so many seconds as
    # they are padded. Text counts as if it was spoken at the rate of the tokens, 0.6 s each.
    batch_seconds: float | None = pydantic.Field(default=None, gt=0)
    # The longest recording of an instruction's row; longer ones are refused before the first step.
    max_minutes: float = pydantic.Field(default=0.5, gt=0)
    # What the loss of instructions is a mean over. Over tokens, one summary weighs as much as twenty short answers.
    mean_over: Literal["tokens", "rows"] = "tokens"
    # Forget what the language model's layers hold for the gradient and compute it again: less memory, more time.
    gradient_checkpointing: bool = False
    accumulate: int = pydantic.Field(default=1, gt=0)
    rates: Rates
    warmup_steps: int = pydantic.Field(default=30, ge=0)
    # The learning rate falls on a half cosine to this share of its peak.
    final_rate: float = pydantic.Field(default=0.0, ge=0, le=1)
    weight_decay: float = pydantic.Field(default=0.0, ge=0)
    clip_norm: float = pydantic.Field(default=1.0, gt=0)
    # Frames by which a window's features are rolled at random, so that words meet other slots.
    shift_frames: int = pydantic.Field(default=0, ge=0)
    # Share of a window's frames that is blanked, in stretches of up to `mask_frames`.
    mask: float = pydantic.Field(default=0.0, ge=0, lt=1)
    mask_frames: int = pydantic.Field(default=15, gt=0)
    dropout: float = pydantic.Field(default=0.1, ge=0, lt=1)
    # Weight of the CTC loss beside the language model's or the reader's.
    ctc_weight: float = pydantic.Field(default=0.0, ge=0)
    # Weight, beside the reader's loss, of how far the unfolded frames are from the encoder's own.
    frames_weight: float = pydantic.Field(default=0.0, ge=0)
    # Weights are averaged over the steps with this decay, and the average is what leaves the phase; 0 is off.
    average: float = pydantic.Field(default=0.0, ge=0, lt=1)
    validate_every: int = pydantic.Field(default=200, gt=0)

    @pydantic.model_validator(mode="after")
    def _every_setting_does_something(self) -> "Phase":
        given = [key for key, rate in self.rates.model_dump().items() if rate]
        if not given:
            raise ValueError("every learning rate is 0, so nothing would train")
        trained = TRAINED[self.objective]
        if self.ctc_weight:
            trained = (*trained, "head")
        if idle := [key for key in given if not key.startswith(trained)]:
            why = " without a ctc_weight" if self.objective in BESIDE_CTC else ""
            raise ValueError(f"objective {self.objective} does not train {', '.join(idle)}{why}; set 0 there")
        if self.ctc_weight and self.objective not in BESIDE_CTC:
            raise ValueError(f"ctc_weight does nothing for objective {self.objective}; leave it out")
        if self.frames_weight and self.objective != "reader":
            raise ValueError(f"frames_weight does nothing for objective {self.objective}; leave it out")
        reads = self.objective in ("tied", "alignment", "ctc") or self.ctc_weight
        if "dropout" in self.model_fields_set and self.dropout and not reads:
            raise ValueError("dropout is the CTC head's, which this phase does not train; leave it out")
        if "mask_frames" in self.model_fields_set and not self.mask:
            raise ValueError("mask_frames does nothing without mask; set mask, or leave it out")
        if self.objective == "instructions" and (self.mask or self.shift_frames):
            raise ValueError("objective instructions hears nothing, so mask and shift_frames must stay 0")
        own = ("batch_seconds", "max_minutes", "mean_over", "gradient_checkpointing")
        if self.objective != "instructions" and (idle := [key for key in own if key in self.model_fields_set]):
            raise ValueError(f"{idle[0]} does nothing for objective {self.objective}; leave it out")
        if self.batch_seconds is not None and "batch_windows" in self.model_fields_set:
            raise ValueError("batch_windows does nothing beside batch_seconds; leave one of them out")
        if self.mask and self.objective == "alignment":
            raise ValueError("objective alignment aligns the frames that it reads, so mask must stay 0")
        return self


class Recipe(Section):
    """A training run."""

    name: str
    # Recognition, long recordings, instructions: the paper's three; what is trained is in the phases.
    stage: Literal[1, 2, 3]
    seed: int = pydantic.Field(ge=0, le=LARGEST_SEED)
    model: ModelRecipe
    data: DataRecipe
    phases: tuple[Phase, ...] = pydantic.Field(min_length=1)
    out: FilePath
    start_from: FilePath | None = None
    device: str = "auto"
    precision: Literal["bf16", "float32"] = "bf16"
    # torch's threads; a resumed run gives the same bits only with the same number.
    threads: int = pydantic.Field(default=2, gt=0, le=MOST_THREADS)
    checkpoint_minutes: float = pydantic.Field(default=3.0, gt=0)

    @pydantic.model_validator(mode="after")
    def _can_be_run(self) -> "Recipe":
        if self.model.ctc is None:
            raise ValueError("model.ctc is null, but validation reads the tokens with the CTC head; leave the key out")
        names = [phase.name for phase in self.phases]
        if repeated := [name for index, name in enumerate(names) if name in names[:index]]:
            raise ValueError(
                f"two phases are called {repeated[0]}, which tells apart what they draw; rename one of them"
            )
        needs = [phase.objective for phase in self.phases if phase.objective in ("frames", "reader")]
        if self.model.reader is None and needs:
            raise ValueError(f"objective {needs[0]} needs model.reader, the decoder that reads; set it")
        adapted = [phase.name for phase in self.phases if phase.rates.decoder]
        if adapted and not (self.model.reader and self.model.reader.lora_rank):
            raise ValueError(f"phase {adapted[0]} trains the decoder, which model.reader.lora_rank is to allow; set it")
        if self.model.heard_words and self.model.reader is None:
            raise ValueError("model.heard_words needs model.reader, which hears the words; set it")
        tasks = any(phase.objective == "instructions" for phase in self.phases)
        if tasks and not (self.data.instructions and self.model.heard_words):
            raise ValueError("objective instructions needs data.instructions and model.heard_words; set both")
        if self.model.ctc.reads == "frames":
            if self.model.reader is None:
                raise ValueError("model.ctc.reads is frames, which model.reader unfolds; set model.reader")
            of_tokens = [phase.objective for phase in self.phases if phase.objective in ("tied", "alignment", "ctc")]
            if of_tokens:
                raise ValueError(f"objective {of_tokens[0]} reads tokens, not frames; set model.ctc.reads to tokens")
            if "steps_per_token" in self.model.ctc.model_fields_set:
                raise ValueError("model.ctc.steps_per_token does nothing where the head reads frames; leave it out")
        if self.model.transcript_reader == "whisper" and self.model.reader is None:
            raise ValueError("model.transcript_reader is whisper, which model.reader is; set model.reader")
        if not tasks and (self.data.instructions or self.data.instructions_validation):
            raise ValueError("data.instructions does nothing without a phase of objective instructions; leave it out")
        if self.model.reader is not None and self.model.reader.start_windows and self.start_from is not None:
            raise ValueError("model.reader.start_windows does nothing after start_from; leave one of them out")
        if self.model.mel_mode != "window":
            raise ValueError("model.mel_mode is authors, but packed windows have a log-mel of their own; set window")
        return self


def load_recipe(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read a YAML recipe, apply `--set a.b=c` overrides, and check everything at once.

    Args:
        overrides: each `dotted.key=value`, the value in YAML; `phases.0.steps=10` reaches into lists.

    Raises:
        RecipeError: with every fault that was found; an unknown key is named beside the nearest known one.
    """
    return check_recipe(recipe_content(path, overrides), str(path))


def recipe_content(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> dict[str, Any]:
    """What a recipe says with its overrides, before any of it is checked.

    Raises:
        RecipeError: there is no such file, it is no mapping, or an override has no place in it.
    """
    path = Path(path)
    if not path.is_file():
        raise RecipeError(f"{path}: there is no such recipe; give a YAML file such as recipes/tiny/stage1.yaml.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: this is not YAML ({str(error).splitlines()[0]}); correct the file.") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys to values; see recipes/tiny/stage1.yaml.")
    for override in overrides:
        _override(content, override)
    return content


def check_recipe(content: dict[str, Any], where: str) -> Recipe:
    """Validate a recipe's content, and make sure that the files it names are there.

    Raises:
        RecipeError: with every fault that was found, in one sentence each.
    """
    recipe = validate_recipe(content, where)
    missing = [str(m) for m in (*(t.path for t in recipe.data.train), recipe.data.validation) if not m.is_file()]
    tasks = [t.path for t in recipe.data.instructions]
    tasks += [recipe.data.instructions_validation] if recipe.data.instructions_validation else []
    missing += [str(path) for path in tasks if not path.is_file()]
    if recipe.data.sounds is not None and not recipe.data.sounds.is_file():
        missing.append(str(recipe.data.sounds))
    if missing:
        raise RecipeError(f"{where}: missing manifests: {', '.join(missing)}; correct the paths or make the files.")
    if recipe.start_from is not None and not recipe.start_from.is_dir():
        raise RecipeError(f"{where}: start_from {recipe.start_from} is no folder; train the stage before it first.")
    return recipe


def validate_recipe(content: dict[str, Any], where: str) -> Recipe:
    """Validate a recipe's content alone: nothing on the disk is looked for.

    Raises:
        RecipeError: with every fault that was found, in one sentence each.
    """
    try:
        return Recipe.model_validate(content)
    except pydantic.ValidationError as error:
        raise RecipeError(f"{where}: " + "; ".join(map(_sentence, _own_faults(error))) + ".") from None


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {override!r}: write key.subkey=value, for instance --set seed=2.")
    node: Any = content
    *parents, last = key.split(".")
    for part in parents:
        try:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        except (ValueError, IndexError, AttributeError):
            raise RecipeError(f"--set {override!r}: the recipe has no {part!r} there to set a value in.") from None
    try:
        if isinstance(node, list):
            node[int(last)] = yaml.safe_load(value)
        else:
            node[last] = yaml.safe_load(value)
    except (ValueError, IndexError, TypeError, yaml.YAMLError):
        raise RecipeError(f"--set {override!r}: this value cannot be set there; see the recipe's layout.") from None


def _own_faults(error: pydantic.ValidationError) -> list[Any]:
    """Pydantic's faults, but for one that it adds: a list whose items are at fault is not too short beside that."""
    faults = error.errors()
    inside = {fault["loc"][:end] for fault in faults for end in range(len(fault["loc"]))}
    return [fault for fault in faults if fault["type"] != "too_short" or fault["loc"] not in inside]


def _sentence(fault: Any) -> str:
    """One fault of pydantic's, in our words; an unknown key with the nearest known one."""
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        known = _known_keys(fault["loc"][:-1])
        near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known there: {', '.join(known)}"
        return f"unknown key {where} ({hint})"
    if fault["type"] == "missing":
        return f"the key {where} is missing"
    message = fault["msg"].removeprefix("Value error, ")
    if isinstance(fault["input"], dict):
        return f"{where}: {message}" if where else message
    return f"{where} is {fault['input']!r}: {message[0].lower() + message[1:]}"


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    """The keys that a place in a recipe knows."""
    model: Any = Recipe
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        candidates += [inner for c in candidates for inner in getattr(c, "__args__", ())]
        model = next(c for c in candidates if isinstance(c, type) and issubclass(c, pydantic.BaseModel))
    return list(model.model_fields)
