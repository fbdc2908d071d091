"""torch's number of threads: each thread's own, and yet taken from the process at a thread's first operation."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fastslm.errors import OptionError

_LENDING = threading.Lock()


def settle() -> None:
    """Give this thread its number now, the process's: never one that is lent to workers at this very moment.

    A thread's first operation with torch settles it as well, but may meet `lent`. Results depend on the number in their
    last bits.
    """
    with _LENDING:
        torch.get_num_threads()


@contextmanager
def lent() -> Iterator[int]:
    """Inside, `torch.set_num_threads` in other threads gives them a number; the process's is this thread's again after.

    torch keeps the last number that was set anywhere for threads still to come.
    """
    with _LENDING:
        threads = torch.get_num_threads()
        try:
            yield threads
        finally:
            torch.set_num_threads(threads)


def refuse_fork(made_in: int, device: torch.device) -> None:
    """Refuse to compute on a CPU in a fork of the process that a model was made in: torch would wait for ever.

    Raises:
        OptionError: it is one. With a single thread of torch's there is nothing to wait for.
    """
    if os.getpid() != made_in and device.type == "cpu" and torch.get_num_threads() > 1:
        raise OptionError(
            "The model was loaded before this process was forked, and torch's threads stayed behind: start workers by "
            'multiprocessing.get_context("spawn") and hand them the model, which pickles, or load it there.'
        )
