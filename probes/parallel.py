"""Cells side by side: one thread of Python and of linear algebra for each core.

A cell is many small matrix products with Python between them, which two threads do better as two cells at a time
than as two halves of each product. Results come in the order of the cells; no more cells are begun than there are
threads, and one more, so memory holds that many. An error or a cancel in one ends the others at their next step and
is raised here.

NumPy's linear algebra runs in one thread meanwhile: its own threads go on spinning after each product and would take
the cores from the cells (a sixth of the time of a sweep on two cores).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

A = TypeVar("A")
B = TypeVar("B")


def side_by_side(
    function: Callable[[A, Callable[[], None]], B],
    given: Sequence[A],
    between: Callable[[], None],
    workers: int,
) -> Iterator[B]:
    """`function(item, check)` of every item, in order, `workers` at a time; 1 runs them here, one after the other.

    `check` is to be called now and then: it runs `between` in one thread at a time, and raises where another failed.
    """
    if workers <= 1 or len(given) < 2:
        for item in given:
            yield function(item, between)
        return
    lock, stop = threading.Lock(), threading.Event()

    def check() -> None:
        if stop.is_set():
            raise _Stopped
        with lock:
            between()

    def work(item: A) -> B:
        try:
            return function(item, check)
        except BaseException:
            stop.set()
            raise

    before = torch.get_num_threads()
    each = max(1, before // workers)
    waiting: list[Future[B]] = []
    try:
        with (
            threadpool_limits(each, user_api="blas"),
            ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(each,)) as pool,
        ):
            try:
                for item in given:
                    waiting.append(pool.submit(work, item))
                    if len(waiting) > workers:
                        yield _result(waiting)
                while waiting:
                    yield _result(waiting)
            except BaseException:
                stop.set()
                raise
    finally:
        torch.set_num_threads(before)


class _Stopped(Exception):
    """Raised in the threads whose results nobody waits for any more."""


def _result(waiting: list[Future[B]]) -> B:
    first = waiting.pop(0)
    error = first.exception()
    if isinstance(error, _Stopped):  # the failure itself stands in a later one
        for other in waiting:
            found = other.exception()
            if found is not None and not isinstance(found, _Stopped):
                raise found
    return first.result()
