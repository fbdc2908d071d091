"""Groups of windows pass the model side by side: threads that work alone instead of threads that wait for each other.

A model of this size has hundreds of short operations for a group, and after each of them all of torch's threads wait
for the slowest: whatever else runs, such as the thread that decodes, holds up every one. Workers that each have a
group of their own do not wait.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier
from typing import Generic, TypeVar

import torch

from fastslm.model.threads import lent

Result = TypeVar("Result")
# Up to so many threads each is a worker. More workers would hold more windows than the few that a small machine has
# room for; beyond, each has several threads, as many as the others, and there are the fewest that leave none idle.
FEW_WORKERS, MOST_WORKERS = 4, 7


def worker_count(device: torch.device) -> int:
    """How many groups a device computes side by side: on a CPU one for each of torch's threads, up to a few."""
    if device.type != "cpu":
        return 1
    threads = torch.get_num_threads()
    if threads <= FEW_WORKERS:
        return threads
    return max(range(FEW_WORKERS, MOST_WORKERS + 1), key=lambda count: count * (threads // count))


@dataclass
class Task(Generic[Result]):
    """Something to be done: by a worker, or, as long as none has it, by who asks for its result."""

    work: Callable[[], Result]
    _future: "Future[Result] | None" = None
    _own: "tuple[Result] | None" = None

    def begin(self, pool: ThreadPoolExecutor) -> None:
        """Give it to a worker, unless it is done."""
        if self._own is None:
            self._future = pool.submit(self.work)

    @property
    def is_done(self) -> bool:
        """Whether its result is there without waiting."""
        return self._own is not None or (self._future is not None and self._future.done())

    def result(self) -> Result:
        """What it returns or raises; what it returned once it gives again, and is not done twice."""
        if self._future is not None:
            return self._future.result()
        if self._own is None:
            self._own = (self.work(),)
        return self._own[0]


class Workers:
    """Threads that share torch's threads among them. Use it as a context.

    They start with the second task: one alone has all of torch's threads, in the caller's own. Where the context is
    left by an error, what has not begun is dropped, and what has is waited for.
    """

    def __init__(self, count: int):
        self.count = count
        self._first: Task | None = None
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def submit(self, work: Callable[[], Result]) -> Task[Result]:
        """Have something done."""
        task = Task(work)
        if self.count == 1:
            return task
        if self._pool is not None:
            task.begin(self._pool)
        elif self._first is None:
            self._first = task
        else:
            self._pool = _threads(self.count)
            self._first.begin(self._pool)
            task.begin(self._pool)
        return task


def _threads(count: int) -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(count, "fastslm-worker")
    ready = Barrier(count + 1)

    def begin(threads: int) -> None:
        torch.get_num_threads()  # torch's number for new threads is taken over with the first call, not after the next
        torch.set_num_threads(max(1, threads // count))
        ready.wait()

    try:
        with lent() as threads:
            for _ in range(count):
                pool.submit(begin, threads)
            ready.wait()
    except BaseException:
        # Who waits there would keep the process alive.
        ready.abort()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    return pool
