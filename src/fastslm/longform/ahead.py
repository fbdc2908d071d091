"""Work that goes on in a thread while its results are used: decoding runs ahead of encoding, by so much and no more."""

import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from fastslm.model.threads import settle

Item = TypeVar("Item")
# How soon the thread notices that nobody waits for it, and how long it is waited for if it is stuck in a read.
NOTICE_SECONDS = 0.1
GOODBYE_SECONDS = 2.0


@dataclass(frozen=True)
class _Failed:
    error: BaseException


_END = object()


def ahead(items: Iterable[Item], depth: int) -> Iterator[Item]:
    """The same items in the same order, made in a thread, at most `depth` of them before they are taken.

    An error of theirs is raised where the item would have come. When the caller stops, by an error or an interrupt of
    its own, the thread ends and the items' generator is closed.
    """
    ready: queue.Queue[Any] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(item: object) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=NOTICE_SECONDS)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        settle()
        iterator = iter(items)
        try:
            for item in iterator:
                if not put(item):
                    return
                del item  # the queue alone holds it while the next one is made
            put(_END)
        except BaseException as error:
            put(_Failed(error))
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()

    # A daemon: a read that never returns must not keep the process alive.
    thread = threading.Thread(target=work, name="fastslm-ahead", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not _END:
            if isinstance(item, _Failed):
                raise item.error
            yield item
            del item
    finally:
        stopped.set()
        thread.join(GOODBYE_SECONDS)
