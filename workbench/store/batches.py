"""`BatchReader`: the batches of a shuffled order, filled by background threads while earlier ones are served.

1. An epoch comes in parts (`filling.py`, `resident.py`). While one is served, the next one is filled by two threads,
   and the one after that is planned, so that nobody waits for its permutation.
2. Parts and slabs need not fit each other: where a part ends within a slab, the next part goes on filling it.
3. A slab that has been served is forgotten here; its memory comes back when its batches are gone (`pool.py`).

Two threads move as much as the memory of most machines gives; one does not (a third more on the 2-core machine).
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from workbench.store.cached import CachedRows
from workbench.store.filling import FromFiles, Part, Source
from workbench.store.order import ShuffleOrder
from workbench.store.pool import Slab, SlabPool
from workbench.store.resident import FromMemory
from workbench.store.site_array import SiteArray

_THREADS = 2
_SLAB_BYTES = 16 << 20
"""Small batches share a slab of about this size."""


@dataclass
class _Filling:
    """A part that is being filled."""

    plan: Future[Part]
    steps: Iterator[int] = field(default_factory=itertools.count)  # each number goes to one of the threads
    work: list[Future[None]] = field(default_factory=list)


class BatchReader:
    """Batches in the stored dtype, one after the other, from any place of an order on."""

    def __init__(
        self,
        array: SiteArray,
        cached: CachedRows,
        order: ShuffleOrder,
        subset: np.ndarray | None,
        batch_size: int,
        epoch_rows: int,
        epochs: int | None,
    ) -> None:
        """
        Args:
            array: the rows.
            cached: the same rows, as far as the page cache has them.
            order: of `len(subset)` rows, or of all.
            subset: [row] int64 increasing: the row numbers the order is about; None: all rows.
            batch_size: rows of a batch.
            epoch_rows: rows of an epoch that are served; the last batch may be short.
            epochs: after how many to end; None: never.
        """
        self._batch_size, self._epoch_rows, self._epochs = batch_size, epoch_rows, epochs
        room = min(_SLAB_BYTES, order.largest_window * max(array.row_bytes, 1))
        slab_rows = batch_size * max(room // (batch_size * max(array.row_bytes, 1)), 1)
        self._stop = threading.Event()
        self._source: Source
        if order.n_windows == 1:
            self._source = FromMemory(array, order, subset, epoch_rows, slab_rows, self._stop.is_set)
        else:
            self._source = FromFiles(array, cached, order, subset, epoch_rows, slab_rows)
        # A part may begin and end within a slab; as many parts as are ahead are filled while one is served.
        n_slabs = (self._source.ahead + 1) * (-(-self._source.part_rows // slab_rows) + 1)
        self._pool = SlabPool(slab_rows, array.shape[1:], array.dtype, n_slabs)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="shuffled-loader")
        self._lock = threading.Lock()
        self._reset(0, 0)

    def go_to(self, epoch: int, served: int) -> None:
        """Go on after `served` rows of an epoch."""
        self._drain()
        self._reset(epoch, served)

    def next(self) -> tuple[Tensor, tuple[int, int]] | None:
        """The next batch, and the epoch and the rows of it that have been served then; None after the last epoch.

        Raises:
            DataError: damaged rows, also where a background thread came upon them. Asking again tries again.
        """
        epoch, served = self._at
        if served >= self._epoch_rows:
            epoch, served = epoch + 1, 0
        if self._epochs is not None and epoch >= self._epochs:
            return None
        n = min(self._batch_size, self._epoch_rows - served)
        while self._filled < (epoch, served + n):
            self._advance()
        slab, first = divmod(served, self._pool.rows)
        batch = self._slabs[epoch, slab].batch(first, n)
        self._at = epoch, served + n
        if first + n == self._pool.rows or served + n == self._epoch_rows:
            del self._slabs[epoch, slab]
        return batch, self._at

    def close(self) -> None:
        """Stop reading and end the threads."""
        self._stop.set()
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._filling.clear()
        self._slabs.clear()
        self._pool.close()

    def _reset(self, epoch: int, served: int) -> None:
        self._at = self._filled = (epoch, served)
        if served >= self._epoch_rows:
            epoch, served = epoch + 1, 0
        self._begun = (epoch, served)
        self._part: tuple[int, int] | None = (epoch, self._source.find(epoch, served))
        self._planned: Future[Part] | None = None
        self._filling: deque[_Filling] = deque()
        self._slabs: dict[tuple[int, int], Slab] = {}

    def _advance(self) -> None:
        """Wait for the oldest part that is being filled, and begin with another."""
        self._launch()
        filling = self._filling[0]
        try:
            for done in filling.work:
                done.result()
        except BaseException:
            self.go_to(*self._at)
            raise
        part = filling.plan.result()
        self._filled = max(self._filled, (part.epoch, part.last))
        self._filling.popleft()
        self._launch()

    def _launch(self) -> None:
        """Begin to fill as many parts as are to be ahead, and to plan the one after them.

        A thread that fills waits for the plan; so a plan is always asked for before the work on it.
        """
        while self._part is not None and len(self._filling) < self._source.ahead:
            filling = _Filling(self._planned or self._threads.submit(self._plan, *self._part))
            epoch, part = self._part
            following = (epoch, part + 1) if part + 1 < self._source.n_parts else (epoch + 1, 0)
            end = self._epochs is not None and following[0] >= self._epochs
            self._part = None if end else following
            self._planned = None if end else self._threads.submit(self._plan, *following)
            filling.work = [self._threads.submit(self._fill, filling) for _ in range(_THREADS)]
            self._filling.append(filling)

    def _plan(self, epoch: int, part: int) -> Part:
        return self._source.plan(epoch, part, self._begun[1] if epoch == self._begun[0] else 0)

    def _fill(self, filling: _Filling) -> None:
        part = filling.plan.result()
        if not part.n_steps:
            return
        slabs = self._slabs_of(part)
        for step in filling.steps:
            if step >= part.n_steps:
                return
            if self._stop.is_set():
                raise InterruptedError("the loader was closed")
            part.fill(step, slabs)

    def _slabs_of(self, part: Part) -> dict[int, Slab]:
        """The slabs of a part by number, the first of which the part before it may have begun."""
        found = {}
        with self._lock:
            for number in range(part.first // self._pool.rows, -(-part.last // self._pool.rows)):
                key = (part.epoch, number)
                if key not in self._slabs:
                    self._slabs[key] = self._pool.take()
                found[number] = self._slabs[key]
        return found

    def _drain(self) -> None:
        """Let what is planned and filled for nothing end."""
        running: list[Future] = [self._planned] if self._planned else []
        running += [future for filling in self._filling for future in (filling.plan, *filling.work)]
        self._stop.set()
        for future in running:
            if not future.cancel():
                future.exception()
        self._stop.clear()
