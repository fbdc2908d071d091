"""Tasks side by side: each result is its own, and torch's threads are what they were."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from fastslm.longform.workers import MOST_WORKERS, Workers, worker_count


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def _where() -> tuple[str, int]:
    return threading.current_thread().name, torch.get_num_threads()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_task_has_its_own_result(count: int) -> None:
    with Workers(count) as workers:
        tasks = [workers.submit(lambda index=index: index**2) for index in range(20)]
        assert [task.result() for task in tasks] == [index**2 for index in range(20)]


@pytest.mark.parametrize("count", [1, 2])
def test_a_task_is_done_once_however_often_its_result_is_asked_for(count: int) -> None:
    done: list[int] = []
    with Workers(count) as workers:
        for index in range(4):
            task = workers.submit(lambda index=index: done.append(index) or index)
            assert (task.result(), task.result(), task.is_done) == (index, index, True)
    assert done == [0, 1, 2, 3]


@pytest.mark.usefixtures("four_threads")
def test_workers_share_out_torchs_threads_and_leave_the_callers_alone() -> None:
    with Workers(2) as workers:
        # Both at once, so that neither worker does both.
        together = threading.Barrier(2)
        tasks = [workers.submit(lambda: (together.wait(), _where())[1]) for _ in range(2)]
        found = [task.result() for task in tasks]
        assert torch.get_num_threads() == 4
    assert [threads for _, threads in found] == [2, 2]
    assert len({name for name, _ in found}) == 2
    later: list[tuple[str, int]] = []
    thread = threading.Thread(target=lambda: later.append(_where()))
    thread.start()
    thread.join()
    assert later[0][1] == torch.get_num_threads() == 4


@pytest.mark.usefixtures("four_threads")
def test_a_single_task_has_all_threads_of_the_caller() -> None:
    with Workers(2) as workers:
        assert workers.submit(_where).result() == (threading.current_thread().name, 4)


@pytest.mark.parametrize("count", [1, 2])
def test_an_error_comes_from_the_task_that_failed(count: int) -> None:
    with Workers(count) as workers:
        tasks = [workers.submit(lambda index=index: 1 / (index - 1)) for index in range(3)]
        assert (tasks[0].result(), tasks[2].result()) == (-1, 1)
        with pytest.raises(ZeroDivisionError):
            tasks[1].result()


def test_what_has_not_begun_when_the_context_is_left_is_dropped() -> None:
    begun: list[int] = []
    running, go_on = threading.Event(), threading.Event()

    def work(index: int) -> None:
        begun.append(index)
        running.set()
        go_on.wait(10)

    def interrupted() -> None:
        with Workers(2) as workers:
            for index in range(10):
                workers.submit(lambda index=index: work(index))
            running.wait(10)
            threading.Timer(0.05, go_on.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(begun) <= 3
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fastslm-worker")]


def test_a_cpu_has_as_many_workers_as_threads_up_to_a_few_and_others_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for threads in range(1, 65):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        count = worker_count(torch.device("cpu"))
        assert count <= MOST_WORKERS
        if threads <= MOST_WORKERS:
            assert count == threads
        else:
            # At most one thread in eight is idle.
            assert threads - count * (threads // count) <= threads / 8
    assert worker_count(torch.device("cuda")) == 1


@pytest.mark.usefixtures("four_threads")
def test_an_interrupt_while_workers_begin_leaves_none_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    submit, calls = ThreadPoolExecutor.submit, 0

    def interrupted(pool: ThreadPoolExecutor, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return submit(pool, *arguments)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", interrupted)

    def both() -> None:
        with Workers(2) as workers:
            workers.submit(_where)
            workers.submit(_where)

    with pytest.raises(KeyboardInterrupt):
        both()
    for thread in threading.enumerate():
        if thread.name.startswith("fastslm-worker"):
            thread.join(10)
            assert not thread.is_alive()
    assert torch.get_num_threads() == 4
