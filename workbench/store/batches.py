"""`BatchReader`: the batches of a shuffled order, gathered by background threads while earlier ones are served.

1. Batches come in slabs: memory for one batch, or for a few small ones. Some slabs are filled ahead, each by one of two
   threads, which gather its rows from the windows of the order (`prepared.py`).
2. A slab that has been served is forgotten here; its memory comes back when its batches are gone (`pool.py`), so the
   same few slabs are used again and again and stay in the processor's cache.

Two threads move as much as the memory of most machines gives; one does not (half as much on the 2-core machine).
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from torch import Tensor

from workbench.store.cached import CachedRows
from workbench.store.order import ShuffleOrder
from workbench.store.pool import Slab, SlabPool
from workbench.store.prepared import Windows
from workbench.store.site_array import SiteArray

_THREADS = 2
_AHEAD = 2
"""Slabs that are filled before they are asked for."""
_SLAB_BYTES = 4 << 20
"""Small batches share a slab of about this size, but no more than a quarter of a window."""


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
        row_bytes = max(array.row_bytes, 1)
        room = min(_SLAB_BYTES, order.largest_window * row_bytes // 4)
        slab_rows = batch_size * max(room // (batch_size * row_bytes), 1)
        self._stop = threading.Event()
        self._windows = Windows(array, cached, order, subset, epoch_rows, epochs, self._stop.is_set)
        self._pool = SlabPool(slab_rows, array.shape[1:], array.dtype, n_kept=_AHEAD + 2)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="shuffled-loader")
        self._reset(0, 0)

    def go_to(self, epoch: int, served: int) -> None:
        """Go on after `served` rows of an epoch."""
        self._stop.set()
        for future in self._filling:
            if not future.cancel():
                future.exception()
        self._windows.drain()
        self._stop.clear()
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
        if self._slab is None:
            self._launch()
            try:
                self._slab = self._filling[0].result()
            except BaseException:
                self.go_to(*self._at)
                raise
            self._filling.popleft()
            self._launch()
        n = min(self._batch_size, self._epoch_rows - served)
        first = served % self._pool.rows
        batch = self._slab.batch(first, n)
        self._at = epoch, served + n
        if first + n == self._pool.rows or served + n == self._epoch_rows:
            self._slab = None
            self._windows.forget(*self._at)
        return batch, self._at

    def close(self) -> None:
        """Stop reading and end the threads."""
        self._stop.set()
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._windows.close()
        self._filling.clear()
        self._slab = None
        self._pool.close()

    def _reset(self, epoch: int, served: int) -> None:
        self._at = (epoch, served)
        self._following = (epoch, served) if served < self._epoch_rows else (epoch + 1, 0)
        self._filling: deque[Future[Slab]] = deque()
        self._slab: Slab | None = None

    def _launch(self) -> None:
        """Begin to fill as many slabs as are to be ahead."""
        while len(self._filling) < _AHEAD:
            epoch, first = self._following
            if self._epochs is not None and epoch >= self._epochs:
                return
            last = min((first // self._pool.rows + 1) * self._pool.rows, self._epoch_rows)
            self._filling.append(self._threads.submit(self._fill, self._pool.take(), epoch, first, last))
            self._following = (epoch, last) if last < self._epoch_rows else (epoch + 1, 0)

    def _fill(self, slab: Slab, epoch: int, first: int, last: int) -> Slab:
        """Gather an epoch's rows `first` to `last` (exclusive), each to its place in the slab."""
        start = first // self._pool.rows * self._pool.rows
        while first < last:
            if self._stop.is_set():
                raise InterruptedError("the loader was closed")
            window = self._windows.at(epoch, first)
            end = min(last, window.last)
            self._windows.fill(window, first - window.first, slab.rows[first - start : end - start])
            first = end
        return slab
