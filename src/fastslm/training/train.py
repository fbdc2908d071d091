"""The training loop, top to bottom: what is trained on, what is trained, step after step, what comes out.

    fastslm train recipes/paper/stage1.yaml
    accelerate launch --multi_gpu -m fastslm train recipes/paper/stage1.yaml          # DDP
    accelerate launch --use_fsdp --fsdp_version 2 -m fastslm train …                  # the language model shared out

Two runs of one recipe on one machine give the same bits, whether or not one of them was killed in between: what is
drawn depends on (seed, epoch, id) of a row, or on (seed, step) of a step, and a checkpoint holds the place in the data.
"""

import hashlib
import json
import math
import os
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from filelock import FileLock, Timeout
from transformers.utils.logging import disable_progress_bar

from fastslm.data.batches import RowBatches
from fastslm.data.feature_cache import FeatureCache
from fastslm.data.loading import RowLoader
from fastslm.errors import TrainingError
from fastslm.model.saving import is_trained_key
from fastslm.training.checkpoint import load_newest, save_checkpoint
from fastslm.training.disk import writing
from fastslm.training.interruption import Interruption, Stopped
from fastslm.training.log import RunLog, StepLine, draw_curves
from fastslm.training.losses import Loss, Prepared, loss_class
from fastslm.training.optimizer import Average, Optimizers, as_shared, whole
from fastslm.training.processes import is_sharded, join, shard, total
from fastslm.training.recipe import Recipe
from fastslm.training.sources import sample, sources_of, steps_of
from fastslm.training.starts import Start, parts_of
from fastslm.training.validation import Validation

# Rows that are looked at before a model is loaded, and those that a loss may start from.
CHECKED_ROWS, START_ROWS = 512, 50_000


def train(recipe: Recipe, quiet: bool = False) -> Path:
    """Train a recipe to its end, from wherever an earlier run of it was stopped.

    A signal to stop ends it after the step that is being made, which is saved; a run that has ended is exported again.

    Args:
        quiet: nothing on standard error.

    Returns:
        The folder of the trained model, which `fastslm.load` takes.

    Raises:
        FastSLMError: the recipe, its data or its checkpoint is at fault; said before a model is loaded.
        TrainingError: the run's folder belongs to another recipe or is in use, a loss that is not finite, a full disk.
        KeyboardInterrupt: it was asked to stop.
    """
    accelerator = join(recipe)
    torch.set_num_threads(recipe.threads)
    disable_progress_bar()  # of transformers, one for each model that is loaded
    line = StepLine(quiet or not accelerator.is_main_process)
    with writing(recipe.out, "the run's folder"):
        recipe.out.mkdir(parents=True, exist_ok=True)
    # The main process holds it for all.
    lock = FileLock(recipe.out / ".lock", timeout=0) if accelerator.is_main_process else nullcontext()
    interruption = Interruption(line.say, launched=accelerator.num_processes > 1)
    try:
        with lock, interruption:
            return _train(recipe, accelerator, line, interruption)
    except Timeout:
        raise TrainingError(
            f"{recipe.out}: another process trains there; wait for it, or choose another folder with --set out=…"
        ) from None


def _train(recipe: Recipe, accelerator: Accelerator, line: StepLine, interruption: Interruption) -> Path:
    device, main, world = accelerator.device, accelerator.is_main_process, accelerator.num_processes
    checkpoints = recipe.out / "checkpoints"
    digest = _digest(recipe)
    state = load_newest(checkpoints)
    if state is not None and state["recipe"] != digest:
        raise TrainingError(
            f"{recipe.out} holds a run of another recipe; remove that folder, or choose another with --set out=…"
        )

    # Data. Everything that can be wrong with it is said here, before a weight is read.
    start = Start(recipe)
    kind = loss_class(recipe.loss.name)
    sources = sources_of(recipe)
    data = recipe.data
    bounds = {"batch_seconds": data.batch_seconds, "batch_rows": data.batch_rows, "seed": recipe.seed}
    bounds["drop_longer_than"] = data.max_seconds
    batches = RowBatches(sources, rank=accelerator.process_index, world_size=world, **bounds)
    kind.check_rows(sample(sources, CHECKED_ROWS, data.max_seconds), start.processor, recipe)
    steps = recipe.steps or steps_of(RowBatches(sources, **bounds), recipe.epochs or 1.0, recipe.accumulate)
    cache = FeatureCache(data.cache, start.encoder_name, recipe.model.mel_mode) if data.cache_features else None
    reading = {"n_mels": start.audio_config.num_mel_bins, "mel_mode": recipe.model.mel_mode, "cache": cache}
    loader = RowLoader(batches, workers=data.workers, pin_memory=device.type == "cuda", **reading)
    dropped = f", {batches.dropped} longer than {data.max_seconds:g} s left out" if batches.dropped else ""
    line.say(
        f"{recipe.name}: {steps} steps of {batches.epoch_rows} rows{dropped}, {device}, {recipe.precision}, "
        f"{world} {'process' if world == 1 else 'processes'} of {recipe.threads} threads, into {recipe.out}"
    )

    # Model and loss.
    model = start.build(device)
    loss: Loss = kind(model, start.processor, recipe, cache)
    if recipe.gradient_checkpointing:
        with warnings.catch_warnings():
            # transformers 5.23 names its successor, which older ones lack.
            warnings.simplefilter("ignore", FutureWarning)
            model.gradient_checkpointing_enable()
    if state is None:
        own = RowLoader(RowBatches(sources, **bounds), **reading)
        if said := loss.start(sample(sources, START_ROWS, data.max_seconds), iter(own), start.fresh):
            line.say(said)
    validation = Validation(recipe, start, loss, accelerator, cache)
    sharded = is_sharded(accelerator)
    # Which parameters train is to be known before they are shared out; as which tensors, after that.
    Optimizers(parts_of(model), recipe.optimizer, steps)
    module: Any = loss
    if sharded:
        shard(accelerator, loss)
    elif world > 1:
        module = accelerator.prepare_model(loss, device_placement=False)
    optimizers = Optimizers(parts_of(model), recipe.optimizer, steps)
    average = Average(optimizers.parameters, recipe.average) if recipe.average else None

    done, seconds = 0, 0.0
    if state is not None:
        done, seconds = state["step"], state["seconds"]
        _take(model, state["model"])
        if done < steps:
            optimizers.load_state_dict(state["optimizers"])
            if average is not None:
                average.load_state_dict(state["average"])
            loader.load_state_dict(state["data"])
        line.say(f"going on after step {done}" if done < steps else f"this run ended at step {done}; exported again")
    log = RunLog(recipe.out, done) if main else None
    began, saved = time.monotonic() - seconds, time.monotonic()

    def save(last: bool) -> None:
        own = {key: value for key, value in model.state_dict().items() if is_trained_key(key)}
        content = {
            "recipe": digest,
            "step": done,
            "seconds": seconds,
            "model": own,
            "optimizers": [] if last else optimizers.state_dict(),
            "average": None if last or average is None else average.state_dict(),
            "data": loader.state_dict(),
        }
        if sharded:
            content = whole(content)
        if main:
            save_checkpoint(checkpoints, f"step-{done:07}", content)

    # Training.
    drawn = iter(loader)
    for step in range(done, steps):
        loss.train()
        started = time.monotonic()
        prepared = [loss.prepare(next(drawn)) for _ in range(recipe.accumulate)]
        waited = time.monotonic() - started
        # After the first batch of a run, for which torch's DataLoader draws a number.
        torch.manual_seed(_seed(recipe.seed, step, accelerator.process_index))

        # A step's loss is the mean over all that its micro-batches hold in all processes.
        counts = total(accelerator, _added(own.counts for own in prepared))
        sums: dict[str, float] = {}
        for index, micro in enumerate(prepared):
            last = index + 1 == len(prepared)
            with nullcontext() if last or world == 1 else accelerator.no_sync(module):
                with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                    found = module(micro.to(device))
                    value = sum(loss.weights[name] / max(counts[name], 1.0) * own for name, own in found.items())
                own_sums = total(accelerator, {name: float(own.detach()) for name, own in found.items()})
                if not all(map(math.isfinite, own_sums.values())):
                    _stop("loss", step, own_sums, [micro], recipe, main)
                sums = _added([sums, own_sums])
                # DDP and FSDP take the mean of the processes' gradients.
                accelerator.backward(value * world)  # type: ignore[arg-type]
        norm = optimizers.step(step)
        if not math.isfinite(norm):
            _stop("gradient", step, sums, prepared, recipe, main)
        if average is not None:
            average.update()

        done, seconds = step + 1, time.monotonic() - began
        means = {name: own / max(counts[name], 1.0) for name, own in sums.items()}
        if log is not None:
            numbers = {
                **{name: round(own, 5) for name, own in means.items()},
                "norm": round(norm, 4),
                "rate": round(optimizers.share(step), 5),
            }
            amounts = {
                "windows": sum(own.batch.windows for own in prepared),
                "tokens": sum(own.tokens for own in prepared),
                "epoch": round(batches.epochs, 4),
                "seconds": round(seconds, 2),
                "step_seconds": round(time.monotonic() - started, 3),
                "wait_seconds": round(waited, 4),
            }
            log.write({"kind": "step", "step": done, **numbers, **amounts})
            line.show(done, steps, numbers)

        if done % recipe.validate_every == 0 or done == steps:
            if average is not None:
                average.swap()
            row = validation.measure(sharded)
            if average is not None:
                average.swap()
            if row and log is not None:
                log.write({"kind": "validation", "step": done, **row})
                line.say(f"step {done}  validation: " + ", ".join(f"{name} {own:.3f}" for name, own in row.items()))
                draw_curves(log.rows(), recipe.out / "curves.png", recipe.name)

        # All leave after the same step, whichever of them was told to.
        due = main and time.monotonic() - saved > recipe.checkpoint_minutes * 60
        agreed = total(accelerator, {"asked": interruption.asked, "due": due})
        if done == steps:
            if average is not None:
                average.swap()
            save(last=True)
        elif agreed["asked"] or agreed["due"]:
            save(last=False)
            saved = time.monotonic()
        if agreed["asked"] and done < steps:
            line.say(f"stopped at step {done}; the same command goes on from there")
            raise Stopped

    # The model that comes out.
    folder = recipe.out / "model"
    trained = {key: value for key, value in model.state_dict().items() if is_trained_key(key)}
    if sharded:
        trained = whole(trained)
    if main:
        if sharded:
            model = start.build(torch.device("cpu"))
            _take(model, trained)
        assert log is not None
        draw_curves(log.rows(), recipe.out / "curves.png", recipe.name)
        _export(model, start, recipe, folder, {"steps": steps, "hours": round(seconds / 3600, 3), "processes": world})
    accelerator.wait_for_everyone()
    return folder


@torch.no_grad()
def _take(model: Any, trained: dict[str, torch.Tensor]) -> None:
    """Take over the trained part of a checkpoint of this run."""
    own = model.state_dict(keep_vars=True)
    for key, value in trained.items():
        own[key].copy_(as_shared(value, own[key].detach()))


def _export(model: Any, start: Start, recipe: Recipe, folder: Path, summary: dict[str, Any]) -> None:
    """The model and its processor, and what the run was."""
    model.eval()
    with writing(folder, "the trained model"):
        if start.config.base_encoder is not None:
            model.save_trained(folder, dtype=getattr(torch, recipe.export_dtype))
        else:
            model.save_pretrained(folder)
        start.processor.save_pretrained(folder)
        partial = folder / "training.json.partial"
        partial.write_text(json.dumps({"recipe": recipe.model_dump(mode="json"), **summary}, indent=1) + "\n")
        os.replace(partial, folder / "training.json")


def _added(parts: Any) -> dict[str, float]:
    """Sums by name."""
    found: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            found[name] = found.get(name, 0.0) + value
    return found


def _stop(
    what: str, step: int, sums: dict[str, float], prepared: Sequence[Prepared], recipe: Recipe, main: bool
) -> None:
    """Leave a report of what is not finite.

    Raises:
        TrainingError: always.
    """
    own = [[row for micro in prepared for row in micro.ids]]
    ids = [row for part in gather_object(own) for row in part]
    report = {"what": what, "step": step + 1, "losses": {name: str(own) for name, own in sums.items()}, "rows": ids}
    target = recipe.out / "non-finite.json"
    if main:
        with writing(target, "the report"):
            target.with_suffix(".partial").write_text(json.dumps(report, indent=1))
            target.with_suffix(".partial").replace(target)
    raise TrainingError(
        f"The {what} at step {step + 1} is not finite; its rows are {', '.join(ids[:4])} … (all in {target}): look at "
        "them, or lower optimizer.rates or raise warmup_steps and train anew into another folder (--set out=…)."
    )


def _seed(*parts: int) -> int:
    """A seed of its own for every step and process."""
    words = np.random.SeedSequence(parts).generate_state(2)
    return int(words[0]) << 31 ^ int(words[1])


def _digest(recipe: Recipe) -> str:
    """What a checkpoint depends on; keys may be added to recipes with defaults."""
    exclude: Any = {
        **dict.fromkeys(("out", "name", "checkpoint_minutes", "validate_every", "device", "export_dtype"), True),
        "data": {"workers", "validation", "validation_rows", "cache"},
    }
    content = recipe.model_dump(mode="json", exclude=exclude, exclude_defaults=True)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
