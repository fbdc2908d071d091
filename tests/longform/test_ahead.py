"""Work in a thread ahead of its use."""

import threading
import time
from collections.abc import Iterator

import pytest

from fastslm.longform.ahead import ahead


def test_items_come_in_order_and_are_made_in_another_thread() -> None:
    made_in: set[int] = set()

    def items() -> Iterator[int]:
        for item in range(100):
            made_in.add(threading.get_ident())
            yield item

    assert list(ahead(items(), 3)) == list(range(100))
    assert threading.get_ident() not in made_in


def test_no_more_than_the_depth_and_the_one_in_hand_is_made_ahead() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for item in range(50):
            made.append(item)
            yield item

    iterator = ahead(items(), 4)
    assert next(iterator) == 0
    time.sleep(0.3)
    assert made == list(range(6))  # one taken, four ready, one that waits for its place
    iterator.close()


def test_an_error_comes_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("in the thread")

    iterator = ahead(items(), 8)
    assert next(iterator) == 1
    with pytest.raises(ValueError, match="in the thread"):
        next(iterator)


def test_a_caller_that_stops_ends_the_thread_and_closes_the_items() -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            closed.set()

    iterator = ahead(items(), 2)
    next(iterator)
    iterator.close()
    assert closed.wait(5)
    assert not any(thread.name == "fastslm-ahead" for thread in threading.enumerate())
