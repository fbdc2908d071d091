"""Ctrl-C during a run: the step that is being made is finished and saved first."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any


class Stopped(KeyboardInterrupt):
    """A run that was asked to stop, at a moment when its state is whole and can be saved."""


class Interruption:
    """While entered, SIGINT and SIGTERM are remembered until `check`; a second one does not wait.

    In a thread that is not the main one, where Python allows no handlers, nothing changes.

    Args:
        say: tells the person what happens.
        launched: by a program that hands signals on to all its processes, so that they come more than once; it does not
            wait for ever, and a second signal says nothing.
    """

    def __init__(self, say: Callable[[str], None], launched: bool = False):
        self.say, self.launched = say, launched
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Call where everything is between two steps.

        Raises:
            Stopped: a signal came.
        """
        if self.asked:
            raise Stopped

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked and not self.launched:
            raise KeyboardInterrupt
        if self.asked:
            return
        self.asked = True
        self.say("stopping after this step; press Ctrl-C again to stop at once, back to the last checkpoint")
