"""Computing in this thread, writing in a second one."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

_WAITING = 2


def write_behind(made: Iterable[T], write: Callable[[T], None]) -> Iterator[T]:
    """Each of `made`, after it was handed to a second thread that calls `write` with it, in order.

    Two may wait between the threads, so memory does not grow. Whatever ends this iterator, what was handed over is
    written before it ends.

    Raises:
        Whatever `write` raised; nothing is written after that.
    """
    waiting: queue.Queue[tuple[T] | None] = queue.Queue(maxsize=_WAITING)
    failure: list[BaseException] = []

    def run() -> None:
        while (given := waiting.get()) is not None:
            if failure:
                continue  # drain, so that the computing side is never stuck
            try:
                write(given[0])
            except BaseException as error:  # noqa: BLE001 - carried to the computing side
                failure.append(error)

    thread = threading.Thread(target=run, name="store-writer", daemon=True)
    thread.start()
    try:
        for one in made:
            waiting.put((one,))
            if failure:
                break
            yield one
    finally:
        waiting.put(None)
        thread.join()
    if failure:
        raise failure[0]
