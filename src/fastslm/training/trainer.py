"""The training loop: phases one after another, resumable to the step, stopped by anything that is not a number."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from fastslm import weights
from fastslm.errors import TrainingError
from fastslm.training.batches import TrainingWindows
from fastslm.training.checkpoint import load_newest, save_checkpoint
from fastslm.training.disk import writing
from fastslm.training.feature_cache import ENCODE_BATCH, CachedWindows, cache_validation_windows, check_recordings
from fastslm.training.frame_start import start_from_frames
from fastslm.training.instructions import InstructionTuning
from fastslm.training.interruption import Interruption, Stopped
from fastslm.training.objectives import Objective
from fastslm.training.optimizer import Average, Optimizers
from fastslm.training.packed import Packed
from fastslm.training.prefetch import StepBatches
from fastslm.training.processes import Processes, Shared
from fastslm.training.progress import RunLog, StepLine, draw_curves
from fastslm.training.recipe import Phase, Recipe
from fastslm.training.stages import Learner
from fastslm.training.validation import sentences, validate

START_BATCH = 10


class Trainer:
    """Runs a recipe to its end, from wherever an earlier run of the same recipe was stopped.

    Two runs of one recipe on one machine give the same bits, whether or not one of them was killed in between: every
    step draws from a generator of its own, made of the recipe's seed, the phase and the step.

    Started several times by a launcher (`torchrun`, `accelerate launch`), it trains as one: the same steps, up to how
    floating-point sums are rounded.

    Args:
        recipe: the checked recipe, or a run that was packed.
        quiet: nothing on standard error.
        started: when the command started, as `time.time` has it; by default now.

    Raises:
        RecipeError: a device that is not there, phases that the model cannot be trained in or processes not share.
        TrainingError: the run's folder belongs to another recipe or is in use, a loss that is not finite, a full disk.
    """

    def __init__(self, recipe: Recipe | Packed, quiet: bool = False, started: float | None = None):
        self.started = time.time() if started is None else started
        self.packed = recipe if isinstance(recipe, Packed) else None
        # What checkpoints and model cards say was trained: a packed run is the run that it was at home.
        self.named = recipe.home if isinstance(recipe, Packed) else recipe
        recipe = recipe.recipe if isinstance(recipe, Packed) else recipe
        self.recipe = recipe
        self.processes = Processes(recipe.device)
        self.processes.check(recipe)
        self.device = self.processes.device
        self.line = StepLine(quiet or not self.processes.main)
        torch.set_num_threads(recipe.threads)
        self._interruption = Interruption(self.line.say, launched=self.processes.count > 1)
        self._stopping = False
        self.dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
        self.phase = 0
        self.step = 0
        self.global_step = 0
        self.seconds = 0.0
        self.windows = TrainingWindows(recipe, self.processes, self.dtype, self.line.say, self._encoding, self.packed)
        self._starting = True
        self._seconds_to_first_step: float | None = None

    def run(self) -> Path:
        """Train, and return the folder of the trained model.

        A signal to stop ends it after the step that is being made, which is saved; a run that has ended is exported
        again.

        Raises:
            TrainingError: as above.
            KeyboardInterrupt: it was asked to stop.
        """
        out = self.recipe.out
        with writing(out, "the run's folder"):
            out.mkdir(parents=True, exist_ok=True)
        try:
            # The main process holds it for all.
            lock = FileLock(out / ".lock", timeout=0) if self.processes.main else nullcontext()
            with lock, self._interruption, weights.found_in(self.packed.weights if self.packed else {}):
                return self._run()
        except Timeout:
            raise TrainingError(
                f"{out}: another process trains there; wait for it, or choose another folder with --set out=…"
            ) from None

    def _run(self) -> Path:
        recipe = self.recipe
        state = self._resume_state()
        count = f"{self.processes.count} processes of " if self.processes.count > 1 else ""
        self.line.say(
            f"{recipe.name}: {self.device}, {recipe.precision}, {count}{recipe.threads} threads, into {recipe.out}"
        )
        self._check_recordings(state)
        with self.processes.main_first():
            learner = Learner(recipe, self.device)
        if state is not None:
            self.phase, self.step = state["phase"], state["step"]
            self.global_step, self.seconds = state["global_step"], state["seconds"]
            if self.step == recipe.phases[self.phase].steps:
                learner.load_state_dict(state["learner"])
                self.phase, self.step, state = self.phase + 1, 0, None
        self.log = RunLog(recipe.out, self.global_step) if self.processes.main else None
        if self.phase == len(recipe.phases):
            self.line.say(f"this run ended at step {self.global_step}; its model is exported again")
        else:
            validation = self._validation_windows()
            self.windows.say_what_is_lost("validation", validation)
            if self.global_step:
                self.line.say(f"going on at phase {recipe.phases[self.phase].name}, step {self.step}")
            if state is None and not self.global_step:
                self._start_from_frames(learner)
            self._clock = time.monotonic() - self.seconds
            self._saved = time.monotonic()
            while self.phase < len(recipe.phases):
                learner = self._run_phase(learner, validation, state)
                state = None
                self.phase, self.step = self.phase + 1, 0
                self._check_stop()
        if self.log is not None:
            draw_curves(self.log.rows(), recipe.out / "curves.png", recipe.name)
            learner.export(recipe.out / "model", self.summary())
        return recipe.out / "model"

    def _check_recordings(self, state: dict[str, Any] | None) -> None:
        """Before a model is loaded: are all recordings there that the phases to come need, and short enough?"""
        phases = self.recipe.phases
        if state is not None:
            phases = phases[state["phase"] + (state["step"] == phases[state["phase"]].steps) :]
        hears = any(phase.objective != "instructions" for phase in phases)
        if self.packed is None and self.processes.main and hears:
            check_recordings(self.recipe)

    def _validation_windows(self) -> CachedWindows:
        """What phases are judged by."""
        if self.packed is not None:
            return self.packed.validation_windows()
        with self.processes.main_first():
            return cache_validation_windows(self.recipe, self._encoding("validation"), self.device)

    def _start_from_frames(self, learner: Learner) -> None:
        """The least-squares start of tokens and unfolder, where the recipe asks for it."""
        reader = self.recipe.model.reader
        if learner.reader is None or reader is None or not reader.start_windows:
            return
        windows = self.windows.variant(0)
        count = min(reader.start_windows, len(windows))
        self.line.say(f"least-squares start from {count} windows")
        chosen = [range(first, min(first + START_BATCH, count)) for first in range(0, count, START_BATCH)]
        if self.processes.main:
            batches = [windows.frames(list(part)) for part in chosen]
            lost = start_from_frames(learner.hfq_former, learner.reader.unfold, batches)
            self.line.say(f"tokens and unfolder start by losing {lost:.1%} of the frames' variance")
        self.processes.take_over([learner.hfq_former, learner.reader.unfold])

    def summary(self) -> dict[str, Any]:
        """What a model card says of the run."""
        return {
            "recipe": self.named.model_dump(mode="json"),
            "steps": self.global_step,
            "hours": round(self.seconds / 3600, 3),
            "seed": self.recipe.seed,
            "threads": self.recipe.threads,
            "processes": self.processes.count,
        }

    def _run_phase(
        self,
        learner: Learner,
        validation: CachedWindows,
        state: dict[str, Any] | None,
    ) -> Learner:
        """Returns what the next phase goes on with."""
        phase = self.recipe.phases[self.phase]
        torch.manual_seed(_seed(self.recipe.seed, self.phase, -1))
        objective = learner.objective(phase, state)
        shared = self.processes.prepare(objective)
        optimizers = Optimizers(objective.parts, phase)
        average = Average(optimizers.parameters, phase.average) if phase.average else None
        if state is not None:
            optimizers.load_state_dict(state["optimizers"])
            if average is not None:
                average.load_state_dict(state["average"])
        shared.start()
        with closing(self._step_batches(phase, objective)) as self._batches:
            for step in range(self.step, phase.steps):
                started = time.monotonic()
                learner.train(phase)
                try:
                    numbers = self._one_step(phase, step, shared, optimizers)
                except Stopped:
                    # While windows were encoded, before any weight moved.
                    if self.step and not self.processes.sharded:
                        self._save(learner, objective, optimizers, average)
                    self.line.say(f"stopped at step {self.global_step}; the same command goes on from there")
                    raise
                if average is not None:
                    average.update()
                self.step, self.global_step = step + 1, self.global_step + 1
                self.seconds = time.monotonic() - self._clock
                self._log_step(phase, time.monotonic() - started, numbers)
                last = step + 1 == phase.steps
                if last or (step + 1) % phase.validate_every == 0:
                    self._validate(phase, learner, shared, validation, average)
                due = self.processes.main and time.monotonic() - self._saved > self.recipe.checkpoint_minutes * 60
                # All leave after the same step, whichever of them was told to.
                agreed = self.processes.total({"asked": self._interruption.asked, "due": due})
                self._stopping = agreed["asked"] > 0
                if last:
                    if average is not None:
                        average.swap()
                    shared.close()
                    learner = self._with_whole_weights(learner)
                    learner.finish(phase, objective)
                    self._save(learner, None, None, None)
                elif self._stopping or agreed["due"]:
                    self._save(learner, objective, optimizers, average)
                    self._check_stop()
        return learner

    def _step_batches(self, phase: Phase, objective: Objective) -> StepBatches:
        """The batches of a phase's steps, each from a generator of its own."""
        index, every = self.phase, phase.accumulate

        def draw(step: int) -> list[Any]:
            numbers = range(step * every, (step + 1) * every)
            if isinstance(objective, InstructionTuning):
                return [objective.batch(number) for number in numbers]
            generator = torch.Generator().manual_seed(_seed(self.recipe.seed, index, step))
            return [self.windows.batch(index, number, generator) for number in numbers]

        def ready(step: int) -> bool:
            heard = not isinstance(objective, InstructionTuning)
            return not heard or self.windows.ready(index, (step + 1) * every - 1)

        return StepBatches(draw, ready, phase.steps)

    def _with_whole_weights(self, learner: Learner) -> Learner:
        """What was trained, in modules that FSDP has not changed; torch has no way back."""
        if not self.processes.sharded:
            return learner
        state = self.processes.whole(learner.state_dict())
        learner = Learner(self.recipe, self.device)
        learner.load_state_dict(state)
        return learner

    def _log_step(self, phase: Phase, took: float, numbers: dict[str, float]) -> None:
        """A line for programs and one for people."""
        if self.log is None:
            return
        row = {"kind": "step", "phase": phase.name, "global_step": self.global_step}
        waited = round(self._batches.waited, 4)
        times = {"seconds": round(self.seconds, 2), "step_seconds": round(took, 3), "wait_seconds": waited}
        if self._seconds_to_first_step is not None:
            times["seconds_to_first_step"] = self._seconds_to_first_step
            self._seconds_to_first_step = None
        self.log.write({**row, **times, **numbers})
        left = phase.steps - self.step + sum(p.steps for p in self.recipe.phases[self.phase + 1 :])
        self.line.show(phase.name, self.step, phase.steps, left, numbers)

    def _check_stop(self) -> None:
        """Leave where everything is saved."""
        if self._stopping:
            self.line.say(f"stopped at step {self.global_step}; the same command goes on from there")
            raise Stopped

    def _one_step(
        self,
        phase: Phase,
        step: int,
        shared: Shared,
        optimizers: Optimizers,
    ) -> dict[str, float]:
        torch.manual_seed(_seed(self.recipe.seed, self.phase, step))
        batches = self._batches.take(step)
        if self._starting:
            self._starting = False
            self._seconds_to_first_step = round(time.time() - self.started, 2)
            self.line.say(f"the first step begins {self._seconds_to_first_step:.1f} s after the start")
        lost = 0
        if not isinstance(shared.objective, InstructionTuning):
            lost = sum(self.windows.is_too_long(text) for batch in batches for text in batch.texts)
        totals: dict[str, float] = {}
        amounts = shared.amounts(batches)
        for batch in batches:
            with shared.reducing(batch is batches[-1]):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
                    losses = shared.contribution(batch, amounts)
                values = self.processes.total({name: float(value.detach()) for name, value in losses.items()})
                for name, value in values.items():
                    totals[name] = totals.get(name, 0.0) + value
                if not math.isfinite(values["loss"]):
                    self._stop_on_non_finite("loss", batch.clips, totals)
                shared.backward(losses["loss"])
        norm = optimizers.clip()
        if not math.isfinite(norm):
            self._stop_on_non_finite("gradient", [clip for batch in batches for clip in batch.clips], totals)
        optimizers.step(step)
        numbers = {k: round(v, 5) for k, v in totals.items()} | {"norm": round(norm, 4), "rate": optimizers.rate(step)}
        if phase.objective in ("tied", "ctc") or phase.ctc_weight:
            numbers |= {"too_long": lost} if lost else {}
        return numbers

    def _validate(
        self,
        phase: Phase,
        learner: Learner,
        shared: Shared,
        validation: CachedWindows,
        average: Average | None,
    ) -> None:
        """Measure what would leave the phase now, log and draw it."""
        # The main process does it for all, if it has the weights.
        if not (self.processes.main or self.processes.sharded):
            return
        if average is not None:
            average.swap()
        learner.eval()
        with shared.gathered():
            numbers = validate(shared.objective, validation, self.device, self.dtype)
        if average is not None:
            average.swap()
        self.seconds = time.monotonic() - self._clock
        if self.log is None:
            return
        row = {"kind": "validation", "phase": phase.name, "global_step": self.global_step}
        self.log.write({**row, "seconds": round(self.seconds, 2), **numbers})
        for sentence in sentences(shared.objective, numbers, len(validation)):
            self.line.say(f"{phase.name}  step {self.step}  {sentence}")
        draw_curves(self.log.rows(), self.recipe.out / "curves.png", self.recipe.name)

    def _save(
        self, learner: Learner, objective: Objective | None, optimizers: Optimizers | None, average: Average | None
    ) -> None:
        """Without objective and optimizers, it is the end of the phase: the next one starts from the parts alone."""
        if not (self.processes.main or self.processes.sharded):
            return
        state = {
            "recipe": _digest(self.named, self.phase),
            "phase": self.phase,
            "step": self.step,
            "global_step": self.global_step,
            "seconds": self.seconds,
            "learner": learner.state_dict(objective),
            "optimizers": optimizers.state_dict() if optimizers is not None else [],
            "average": average.state_dict() if average is not None else None,
        }
        state = self.processes.whole(state)
        if self.processes.main:
            save_checkpoint(self.recipe.out / "checkpoints", f"step-{self.global_step:07}", state)
        self._saved = time.monotonic()

    def _resume_state(self) -> dict[str, Any] | None:
        state = load_newest(self.recipe.out / "checkpoints")
        if state is not None and state["recipe"] != _digest(self.named, state["phase"]):
            raise TrainingError(
                f"{self.recipe.out} holds a run of another recipe; remove that folder, or choose another with "
                "--set out=…"
            )
        return state

    def _stop_on_non_finite(self, what: str, ids: Sequence[str], totals: dict[str, float]) -> None:
        report: dict[str, Any] = {
            "what": what,
            "global_step": self.global_step + 1,
            "losses": {k: str(v) for k, v in totals.items()},
            "clips": ids,
        }
        target = self.recipe.out / "non-finite.json"
        if self.processes.main:
            with writing(target, "the report"):
                target.with_suffix(".partial").write_text(json.dumps(report, indent=1))
                target.with_suffix(".partial").replace(target)
        raise TrainingError(
            f"The {what} at step {self.global_step + 1} is not finite; its clips are {', '.join(ids[:4])} … "
            f"(all in {target}): look at them, or lower the phase's rates or raise warmup_steps and train anew into "
            "another folder (--set out=…)."
        )

    def _encoding(self, what: str) -> Callable[[int, int], None]:
        line = StepLine(self.line.quiet)

        def show(done: int, total: int) -> None:
            line.show(f"encoding {what}", done, total, (total - done) // ENCODE_BATCH, {})
            self._interruption.check()

        return show


def _seed(seed: int, phase: int, step: int) -> int:
    """A seed of its own for every step."""
    words = np.random.SeedSequence([seed, phase, step + 1]).generate_state(2)
    return int(words[0]) << 31 ^ int(words[1])


def _digest(recipe: Recipe, phase: int) -> str:
    """What a checkpoint of a phase depends on: later phases may still change, and keys may be added with defaults."""
    content = recipe.model_dump(
        mode="json", exclude={"out", "checkpoint_minutes", "phases", "name"}, exclude_defaults=True
    )
    content["phases"] = [p.model_dump(mode="json", exclude_defaults=True) for p in recipe.phases[: phase + 1]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
