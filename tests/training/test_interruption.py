"""Signals to stop: remembered until it is safe, and what a second one does."""

import os
import signal

import pytest

from fastslm.training.interruption import Interruption, Stopped


def test_the_first_signal_waits_and_is_said_once() -> None:
    said: list[str] = []
    with Interruption(said.append) as interruption:
        interruption.check()
        os.kill(os.getpid(), signal.SIGTERM)
        assert len(said) == 1
        with pytest.raises(Stopped):
            interruption.check()


def test_a_second_signal_stops_at_once_unless_a_launcher_repeats_it() -> None:
    with Interruption(lambda sentence: None):
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    # Ctrl-C reaches a process from the terminal and, once more, from what launched it.
    with Interruption(lambda sentence: None, launched=True) as interruption:
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        with pytest.raises(Stopped):
            interruption.check()
