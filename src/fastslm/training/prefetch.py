"""The batches of a step, drawn by a thread while the step before it is computed.

On a CPU drawing is hardly half a hundredth of a step; on a GPU it may take as long as one.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class StepBatches:
    """A phase's batches, step after step, the next step's made ahead.

    What is in a step follows from its number alone, so the thread changes when batches are made, not what they are.

    Args:
        draw: the batches of a step.
        ready: whether a step's batches can be made in a thread. Where windows are yet to be encoded they cannot:
            several processes do that together, and a signal may stop it; they are made when they are taken.
        steps: of the phase.

    Attributes:
        waited: seconds that the last `take` took.
    """

    def __init__(self, draw: Callable[[int], list[Any]], ready: Callable[[int], bool], steps: int):
        self.draw, self.ready, self.steps = draw, ready, steps
        self.waited = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fastslm-batches")
        self._ahead: tuple[int, Future[list[Any]]] | None = None

    def take(self, step: int) -> list[Any]:
        """The batches of a step; from here on the next one's are made.

        Raises:
            FastSLMError: as `draw`.
        """
        started = time.monotonic()
        made = self._ahead
        batches = made[1].result() if made is not None and made[0] == step else self.draw(step)
        self.waited = time.monotonic() - started
        following = step + 1
        wanted = following < self.steps and self.ready(following)
        self._ahead = (following, self._thread.submit(self.draw, following)) if wanted else None
        return batches

    def close(self) -> None:
        """End the thread. What it made ahead is forgotten."""
        self._thread.shutdown(cancel_futures=True)
