"""What a run would need, before anything is fetched: the model is built on the meta device, and one step made there.

Parameters, weights, gradients and the optimizer's state are counted; activations and FLOPs are those of a forward and
backward pass on tensors without values. Left out: the CUDA context, fragmentation, and the workspace of kernels.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import WhisperConfig

from fastslm.audio import WINDOW_SECONDS
from fastslm.data.batches import RowBatches
from fastslm.data.loading import RowBatch
from fastslm.errors import RecipeError
from fastslm.model.configuration import FastSLMConfig
from fastslm.model.modeling import FastSLMForConditionalGeneration
from fastslm.training.bases import text_config_of
from fastslm.training.losses.loss import IGNORED
from fastslm.training.recipe import MuonRates, Recipe
from fastslm.training.sources import sources_of
from fastslm.training.starts import own_config, parts_of

# Where the data is not there: what people say in a second, in tokens of a language model, and the words of a prompt.
TOKENS_A_SECOND, PROMPT_TOKENS, SHORT_ANSWER = 3.4, 25, 60
# Micro-batches whose mean is taken where the data is there.
LOOKED_AT = 8
GIB = 2**30
# A backward pass of attention makes five products for the forward pass's two.
BACKWARD_PRODUCTS = 2.5


@dataclass(frozen=True)
class Shape:
    """A micro-batch of one process, on average: rows, windows of each, and tokens of prompt, speech and answer."""

    rows: int
    windows: int
    length: int
    answer: int


@dataclass(frozen=True)
class DryRun:
    """Figures of a run. Bytes are those of one process, FLOPs those of a step of all of them together.

    Attributes:
        parameters: by part, all and those that are trained.
        weights, gradients, optimizer, average: bytes.
        activations, activations_checkpointed: bytes that wait for the backward pass, as they are and with gradient
            checkpointing of the language model's layers.
    """

    name: str
    processes: int
    sharded: bool
    tflops: float
    parameters: dict[str, tuple[int, int]]
    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    activations_checkpointed: int
    gradient_checkpointing: bool
    rows: int
    windows: int
    tokens: int
    steps: int | None
    flops: float
    assumed: str

    @property
    def hours(self) -> float | None:
        """At `tflops` on each of the processes; `None` where the number of steps is not known."""
        if self.steps is None:
            return None
        return self.steps * self.flops / (self.tflops * 1e12 * self.processes) / 3600

    @property
    def memory(self) -> int:
        """Bytes of one process, together."""
        waiting = self.activations_checkpointed if self.gradient_checkpointing else self.activations
        return self.weights + self.gradients + self.optimizer + self.average + waiting

    def as_json(self) -> str:
        return json.dumps({**asdict(self), "memory": self.memory, "hours": self.hours}, indent=1)

    def as_text(self) -> str:
        """A table for people."""
        lines = [f"{self.name}: a dry run; nothing was fetched or trained. {self.assumed}", ""]
        lines += [f"{'part':<16}{'parameters':>16}{'trained':>16}"]
        lines += [f"{part:<16}{every:>16,}{own:>16,}" for part, (every, own) in self.parameters.items()]
        every, own = (sum(found[index] for found in self.parameters.values()) for index in (0, 1))
        shared = ", weights shared out (FSDP)" if self.sharded else ""
        lines += [f"{'all':<16}{every:>16,}{own:>16,}", "", f"GiB of each of {self.processes} processes{shared}"]
        for name in ("weights", "gradients", "optimizer", "average", "activations", "activations_checkpointed"):
            label = {"activations_checkpointed": "… with gradient checkpointing"}.get(name, name)
            lines.append(f"  {label:<30}{getattr(self, name) / GIB:>10.2f}")
        chosen = "with" if self.gradient_checkpointing else "without"
        lines.append(f"  {f'together, {chosen} checkpointing':<30}{self.memory / GIB:>10.2f}")
        steps = "not stated" if self.steps is None else f"{self.steps:,}"
        hours = "not known" if self.hours is None else f"{self.hours:,.2f}"
        lines += [
            "",
            f"a step: {self.rows:,} rows, {self.windows:,} windows, {self.tokens:,} tokens, {self.flops:.3g} FLOPs",
            f"steps: {steps}; hours at {self.tflops:g} TFLOP/s on each of {self.processes}: {hours}",
        ]
        return "\n".join(lines)


def dry_run(recipe: Recipe, processes: int = 1, sharded: bool = False, tflops: float = 200.0) -> DryRun:
    """What `recipe` would need.

    Args:
        processes: GPUs. sharded: whether weights are shared out among them. tflops: what each reaches.

    Raises:
        RecipeError: the sizes of a base model are not in the recipe and its configuration is not on this machine.
    """
    config = meta_config(recipe)
    with torch.device("meta"):
        model = FastSLMForConditionalGeneration(config)
    parameters, trained = _parameters(model, recipe)
    shape, steps, assumed = _shape(recipe, config, processes)
    in_layers, outside, flops = measure(model, recipe, shape)
    layers, width = config.text_config.get_text_config().num_hidden_layers, config.text_hidden_size
    half = 2 if recipe.precision == "bf16" else 4
    inputs = layers * shape.rows * shape.length * width * half
    frozen = sum(every for every, _ in parameters.values()) - trained
    share = processes if sharded else 1
    return DryRun(
        name=recipe.name,
        processes=processes,
        sharded=sharded,
        tflops=tflops,
        parameters=parameters,
        weights=math.ceil((frozen * half + trained * 4) / share),
        gradients=math.ceil(trained * 4 / share),
        optimizer=math.ceil(_optimizer_bytes(model, recipe) / share),
        average=math.ceil(trained * 4 / share) if recipe.average else 0,
        activations=in_layers + outside,
        activations_checkpointed=outside + inputs + in_layers // layers,
        gradient_checkpointing=recipe.gradient_checkpointing,
        rows=shape.rows * recipe.accumulate * processes,
        windows=shape.windows * recipe.accumulate * processes,
        tokens=shape.rows * shape.length * recipe.accumulate * processes,
        steps=steps,
        flops=flops * recipe.accumulate * processes,
        assumed=assumed,
    )


def meta_config(recipe: Recipe) -> FastSLMConfig:
    """The configuration of a recipe's model from the recipe alone, or from what `start_from` has, if it is there."""
    model, earlier = recipe.model, None
    if recipe.start_from is not None and (recipe.start_from / "config.json").is_file():
        earlier = FastSLMConfig.from_pretrained(recipe.start_from)
    found: list[Any] = []
    for key, given in (("encoder", model.encoder), ("text_model", model.text_model)):
        if given is not None and given.config is not None:
            found.append(WhisperConfig(**given.config) if key == "encoder" else text_config_of(given))
        elif given is not None and given.name is not None and (Path(given.name) / "config.json").is_file():
            place = Path(given.name)
            found.append(WhisperConfig.from_pretrained(place) if key == "encoder" else text_config_of(given))
        elif given is None and earlier is not None:
            found.append(earlier.audio_config if key == "encoder" else earlier.text_config)
        else:
            raise RecipeError(
                f"model.{key} has no sizes here, and a dry run fetches none: write them as model.{key}.config beside "
                "its name."
            )
    try:
        return own_config(recipe, *found)
    except ValueError as error:
        raise RecipeError(f"model: {error}") from None


def _parameters(model: FastSLMForConditionalGeneration, recipe: Recipe) -> tuple[dict[str, tuple[int, int]], int]:
    """By part, all and trained ones; and all trained ones."""
    rates = recipe.optimizer.rates.given
    found = {"encoder": (_count(model.encoder.parameters()), 0)}
    own = parts_of(model)
    of_lora = {id(parameter) for parameter in (*own["lora"], *own["decoder_lora"])}
    found["language model"] = (_count(p for p in model.language_model.parameters() if id(p) not in of_lora), 0)
    decoder = model.whisper_decoder
    if decoder is not None:
        found["decoder"] = (_count(p for p in decoder.decoder.parameters() if id(p) not in of_lora), 0)
    for part, parameters in own.items():
        if parameters:
            found[part] = (_count(parameters), _count(parameters) if part in rates else 0)
    return found, sum(trained for _, trained in found.values())


def _count(parameters: Any) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _optimizer_bytes(model: FastSLMForConditionalGeneration, recipe: Recipe) -> int:
    """AdamW keeps two numbers for each, Muon one; all float32."""
    total = 0
    for part, rate in recipe.optimizer.rates.given.items():
        for own in parts_of(model)[part]:
            by_muon = isinstance(rate, MuonRates) and own.ndim == 2 and min(own.shape) > 1
            total += own.numel() * (4 if by_muon else 8)
    return total


def _shape(recipe: Recipe, config: FastSLMConfig, processes: int) -> tuple[Shape, int | None, str]:
    """A micro-batch of one process, the number of steps, and where both are from."""
    data, text = recipe.data, recipe.model.text_model
    there = all(own.place.exists() for own in data.train)
    local = text is not None and (text.name is None or Path(text.name).is_dir())
    if there and local and recipe.loss.name == "speech_lm":
        return (*_shape_of_rows(recipe, processes), "Rows are those of the recipe's data.")
    seconds = [(own.row_seconds or 15.0, own.share, own.task) for own in data.train]
    weight = sum(share for _, share, _ in seconds)
    mean = sum(own * share for own, share, _ in seconds) / weight
    windows = sum(math.ceil(own / WINDOW_SECONDS) * share for own, share, _ in seconds) / weight
    answers = [
        (own * TOKENS_A_SECOND if task in (None, "transcribe", "translate") else SHORT_ANSWER) * share
        for own, share, task in seconds
    ]
    answer = math.ceil(sum(answers) / weight) + 1
    longest = math.ceil(max(own for own, _, _ in seconds) / WINDOW_SECONDS) * WINDOW_SECONDS
    in_time = data.batch_seconds / longest if data.batch_seconds else math.inf
    rows = max(1, math.ceil(min(in_time, data.batch_rows or math.inf) / processes))
    length = math.ceil(windows * config.tokens_per_window) + PROMPT_TOKENS + answer
    hours = None if any(own.hours is None for own in data.train) else sum(own.hours or 0 for own in data.train)
    steps = recipe.steps
    if steps is None and hours is not None:
        steps = math.ceil((recipe.epochs or 1) * hours * 3600 / mean / (rows * recipe.accumulate * processes))
    assumed = (
        f"Rows are taken to last {mean:.0f} s on average, with {answer} tokens to write; the data was not looked at."
    )
    return Shape(rows, math.ceil(rows * windows), length, answer), steps, assumed


def _shape_of_rows(recipe: Recipe, processes: int) -> tuple[Shape, int | None]:
    from fastslm.training.bases import processor_of
    from fastslm.training.losses import loss_class
    from fastslm.training.sources import steps_of

    data = recipe.data
    bounds = {"batch_seconds": data.batch_seconds, "batch_rows": data.batch_rows, "seed": recipe.seed}
    batches = RowBatches(sources_of(recipe), world_size=processes, drop_longer_than=data.max_seconds, **bounds)
    loss: Any = loss_class("speech_lm").__new__(loss_class("speech_lm"))
    nn.Module.__init__(loss)
    loss.processor = processor_of(recipe, meta_config(recipe).audio_config.num_mel_bins)
    loss.tokenizer, loss.recipe, loss.weights, loss.limit = loss.processor.tokenizer, recipe, {"speech_lm": 1.0}, None
    rows, windows, length, answer = 0, 0, 0, 0
    for own in islice(batches, LOOKED_AT):
        counts = [row.windows for row in own]
        prepared = loss.prepare(RowBatch(own, counts, None, None, {}))
        rows, windows = rows + len(own), windows + sum(counts)
        length += prepared.inputs["input_ids"].shape[1]
        answer += prepared.inputs["labels"].shape[1]
    found = Shape(*(max(1, round(own / LOOKED_AT)) for own in (rows, windows, length, answer)))
    steps = recipe.steps
    if steps is None:
        fresh = RowBatches(sources_of(recipe), drop_longer_than=data.max_seconds, **bounds)
        steps = steps_of(fresh, recipe.epochs or 1.0, recipe.accumulate)
    return found, steps


def measure(model: Any, recipe: Recipe, shape: Shape) -> tuple[int, int, float]:
    """Bytes of activations in the language model's layers and outside of them, and FLOPs, of one micro-batch."""
    dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
    model.to(dtype).train()
    given = recipe.optimizer.rates.given
    for part, parameters in parts_of(model).items():
        for own in parameters:
            own.requires_grad_(part in given)
    config = model.config
    saved = _Saved(model)
    counter = FlopCounterMode(display=False)
    with torch.device("meta"), _attention_without_scores() as attention, counter:
        mel = torch.empty(shape.windows, config.audio_config.num_mel_bins, 2 * config.audio_config.max_source_positions)
        with torch.no_grad():
            frames = model.encode(mel.to(dtype))
        with saved:
            tokens = model.get_speech_tokens(encoder_frames=frames)
            _loss(model, recipe, shape, tokens, saved).backward()
    return saved.in_layers, saved.outside, counter.get_total_flops() + attention[0]


def _loss(model: Any, recipe: Recipe, shape: Shape, tokens: torch.Tensor, saved: "_Saved") -> torch.Tensor:
    """The loss of tensors without values; it computes what `recipe.loss` does."""
    if recipe.loss.name == "token_ctc":
        last, _ = model.projector.hidden(tokens)
        kinds = torch.empty(model.projector.sizes.kinds, model.config.text_hidden_size, dtype=tokens.dtype)
        return F.linear(model.projector.out(model.projector.norm(last)), kinds).float().log_softmax(-1).sum()
    if recipe.loss.name == "whisper_decoder":
        decoder = model.whisper_decoder
        ids = torch.zeros(shape.rows, shape.answer, dtype=torch.long)
        scores = decoder.scores(decoder.unfold(tokens), ids).float().flatten(0, 1)
        return F.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long))
    speech = model.project(tokens).flatten(0, 1)
    # Speech lies somewhere in the sequence; where does not change what it costs.
    places = shape.rows * shape.length
    embedded = torch.empty(places, speech.shape[1], dtype=speech.dtype)
    embeddings = torch.cat([speech, embedded[: places - len(speech)]])[:places].unflatten(0, (shape.rows, -1))
    # Of four dimensions, it is taken as it is.
    mask = torch.ones(shape.rows, 1, shape.length, shape.length, dtype=torch.bool)
    kept = torch.arange(shape.length - shape.answer - 1, shape.length)
    saved.watch(model.language_model)
    logits = model.language_model(
        inputs_embeds=embeddings, attention_mask=mask, use_cache=False, logits_to_keep=kept
    ).logits
    saved.unwatch()
    scores = logits[:, :-1].float().flatten(0, 1)
    return F.cross_entropy(scores, torch.full((len(scores),), 1), ignore_index=IGNORED)


class _Saved(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that autograd keeps for the backward pass, weights aside.

    Attributes:
        in_layers: those kept in layers of the language model. outside: all others.
    """

    def __init__(self, model: nn.Module):
        super().__init__(self._pack, lambda kept: kept)
        self.seen = {_storage(own) for own in (*model.parameters(), *model.buffers())}
        self.kept: list[torch.Tensor] = []  # so that no storage is made where another was
        self.in_layers = self.outside = 0
        self._inside = 0
        self._hooks: list[Any] = []

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        if (place := _storage(tensor)) not in self.seen:
            self.seen.add(place)
            self.kept.append(tensor.detach())
            size = tensor.untyped_storage().nbytes()
            if self._inside:
                self.in_layers += size
            else:
                self.outside += size
        return tensor

    def watch(self, language_model: Any) -> None:
        """Tell apart what is kept in the layers of this model from now on."""
        kinds = language_model._no_split_modules or ()
        for module in language_model.modules():
            if type(module).__name__ in kinds:
                self._hooks.append(module.register_forward_pre_hook(lambda *_: self._enter(1)))
                self._hooks.append(module.register_forward_hook(lambda *_: self._enter(-1)))

    def unwatch(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _enter(self, by: int) -> None:
        self._inside += by


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


class _Attention(torch.autograd.Function):
    """Attention as kernels on GPUs have it: it keeps query, key, value, result and a number a row, but no scores."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        found = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, found, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


@contextmanager
def _attention_without_scores() -> Iterator[list[float]]:
    """Attention in here is `_Attention`; its FLOPs are added up in the list's only item."""
    flops = [0.0]
    original = F.scaled_dot_product_attention

    def attend(query: Any, key: Any, value: Any, *arguments: Any, **options: Any) -> torch.Tensor:
        once = 2.0 * math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])
        needs = any(own.requires_grad for own in (query, key, value)) and torch.is_grad_enabled()
        flops[0] += once * (1 + BACKWARD_PRODUCTS if needs else 1)
        found: Any = _Attention.apply(query, key, value)
        return found

    F.scaled_dot_product_attention = attend  # type: ignore[assignment]
    try:
        yield flops
    finally:
        F.scaled_dot_product_attention = original
