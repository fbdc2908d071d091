"""Which windows a step trains on: a function of the recipe's seed, the phase and the step alone."""

from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
import torch

from fastslm.errors import RecipeError
from fastslm.model.ctc_head import FrameCTCHead, ctc_steps_needed, unwritten
from fastslm.model.whisper_decoder import FRAMES_PER_TOKEN
from fastslm.training.feature_cache import CachedWindows, Progress, cache_training_windows
from fastslm.training.objectives import Batch, masked, shifted
from fastslm.training.processes import Processes
from fastslm.training.recipe import Recipe

if TYPE_CHECKING:
    from fastslm.training.packed import Packed


class TrainingWindows:
    """The packings of a recipe's training data, and the batches drawn from them.

    Args:
        processes: which of them encodes, where batches are put.
        dtype: of batches' frames.
        say: tells the person what a packing loses.
        encoding: given what is encoded, makes what shows its progress.
        packed: what the windows are read from, where the run was packed.
    """

    def __init__(
        self,
        recipe: Recipe,
        processes: Processes,
        dtype: torch.dtype,
        say: Callable[[str], None],
        encoding: Callable[[str], Progress],
        packed: "Packed | None" = None,
    ):
        self.recipe, self.processes, self.device, self.dtype = recipe, processes, processes.device, dtype
        self.say, self.encoding, self.packed = say, encoding, packed
        self._variants: dict[int, CachedWindows] = {}

    def variant(self, epoch: int) -> CachedWindows:
        """The packing that an epoch goes through, encoded when it is first reached."""
        variant = epoch % self.recipe.data.variants
        if variant not in self._variants:
            what = f"training windows, packing {variant + 1} of {self.recipe.data.variants}"
            if self.packed is not None:
                windows = self.packed.training_windows(variant)
            else:
                with self.processes.main_first():
                    windows = cache_training_windows(self.recipe, variant, self.encoding(what), self.device)
            self.say_what_is_lost(what, windows)
            self._variants[variant] = windows
        return self._variants[variant]

    def ready(self, phase_index: int, index: int) -> bool:
        """Whether `batch` only reads: the packing that it draws from has been reached before."""
        size = self.recipe.phases[phase_index].batch_windows
        for epoch in count():
            windows = self._variants.get(epoch % self.recipe.data.variants)
            batches = 0 if windows is None else len(windows) // size
            if index < batches:
                return True
            if not batches:
                return False
            index -= batches
        raise AssertionError("epochs have no end")

    def batch(self, phase_index: int, index: int, generator: torch.Generator) -> Batch:
        """The `index`-th micro-batch of a phase: each epoch is one packing in an order of its own.

        Args:
            generator: of the step, from which rolling and blanking are drawn.

        Raises:
            RecipeError: the data make fewer windows than one batch.
        """
        phase = self.recipe.phases[phase_index]
        size = phase.batch_windows
        epoch, place = 0, index
        while place >= (batches := len(self.variant(epoch)) // size):
            if not batches:
                raise RecipeError(
                    f"phase {phase.name}: batch_windows is {size}, but the training data make only "
                    f"{len(self.variant(epoch))} windows; lower it, or give more data."
                )
            place -= batches
            epoch += 1
        windows = self.variant(epoch)
        order = np.random.default_rng([self.recipe.seed, phase_index, epoch, 7]).permutation(len(windows))
        chosen = order[place * size : (place + 1) * size].tolist()
        frames = windows.frames(chosen)
        shifts = [0] * size
        if phase.shift_frames:
            limit = phase.shift_frames
            shifts = torch.randint(-limit, limit + 1, (size,), generator=generator).tolist()
            frames = shifted(frames, shifts)
        whole = self._placed(frames)
        labels = [windows.labels[i] for i in chosen]
        if not phase.mask:
            return Batch(whole, labels, shifts)
        seen = masked(frames, phase.mask, phase.mask_frames, generator)
        return Batch(self._placed(seen), labels, shifts, whole)

    def _placed(self, frames: torch.Tensor) -> torch.Tensor:
        """Where and in which dtype a step reads them."""
        if self.device.type != "cuda":
            return frames.to(self.device, self.dtype)
        # From pinned memory, so that the thread that draws ahead does not wait for the step that is being computed; in
        # bfloat16, half of what float32 would be. It is the stream of the steps, so none reads before it is there.
        with torch.cuda.device(self.device):
            return frames.pin_memory().to(self.device, non_blocking=True).to(self.dtype)

    def is_too_long(self, text: str) -> bool:
        """Whether a window's text needs more steps than the CTC head has: it then teaches nothing."""
        model = self.recipe.model
        assert model.ctc is not None
        steps = FRAMES_PER_TOKEN * FrameCTCHead.STEPS_PER_FRAME
        if model.ctc.reads == "tokens":
            steps = model.ctc.steps_per_token
        return ctc_steps_needed(text) > model.hfq.final_tokens * steps

    def say_what_is_lost(self, what: str, windows: CachedWindows) -> None:
        """Tell of windows whose texts the CTC head cannot write."""
        texts = [label.text for label in windows.labels]
        if long := sum(self.is_too_long(text) for text in texts):
            self.say(f"{what}: {long} of {len(texts)} windows hold more text than CTC can write, and teach nothing")
        if left_out := sorted(set("".join(map(unwritten, texts)))):
            windows_of_it = sum(bool(unwritten(text)) for text in texts)
            self.say(
                f"{what}: {windows_of_it} of {len(texts)} windows hold letters or digits that are not taught, though "
                f"they are said ({''.join(left_out[:20])}); spell them out"
            )
