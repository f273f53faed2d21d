"""`Windows`: the windows of an order, made ready one ahead, so that any part of one can be gathered at once.

A window's rows lie in the map of the files where the page cache has them (`cached.py`); nothing is copied then. Others
are read into memory, front to back. An order of one window is read once and stays in memory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import torch

from workbench.store.cached import CachedRows, Mapped
from workbench.store.order import ShuffleOrder
from workbench.store.raw import as_integers, take_rows
from workbench.store.site_array import SiteArray

STEP_BYTES = 4 << 20
"""Read between two looks at whether to stop."""


@dataclass(frozen=True, eq=False)
class Window:
    """Rows of a window, in the order in which they are served.

    Attributes:
        first, last: it is served from the epoch's `first`-th row (from 0) to its `last`-th (exclusive).
        values: [any, value] what holds most of the rows.
        chosen: [row] int64: which of `values` each row is, in the order served.
        others: [any, value] what holds the others.
        places: [other] int64, increasing: which rows those are, in the order served.
        which: [other] int64: which of `others` each is.
        own: memory of the window's own, to be used again after it.
        rows: [row] the same rows' numbers in the store, in the order served.
        mapped: what of it lies in the map of the files.
    """

    first: int
    last: int
    values: np.ndarray
    chosen: np.ndarray
    others: np.ndarray
    places: np.ndarray
    which: np.ndarray
    own: tuple[np.ndarray, ...] = ()
    rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    mapped: Mapped | None = None

    def gather(self, first: int, out: np.ndarray) -> None:
        """Fill `out` with the window's rows from its `first`-th on (from 0)."""
        last = first + len(out)
        take_rows(self.values, self.chosen[first:last], out)
        a, b = np.searchsorted(self.places, [first, last])
        if a < b:
            out[self.places[a:b] - first] = self.others[self.which[a:b]]


class Windows:
    """The windows of all epochs. `at` may be called by several threads at once."""

    def __init__(
        self,
        array: SiteArray,
        cached: CachedRows,
        order: ShuffleOrder,
        subset: np.ndarray | None,
        epoch_rows: int,
        epochs: int | None,
        stopped: Callable[[], bool],
    ) -> None:
        """
        Args:
            array: the rows.
            cached: the same rows, as far as the page cache has them.
            order: of `len(subset)` rows, or of all.
            subset: [row] int64 increasing: the row numbers the order is about; None: all rows.
            epoch_rows: rows of an epoch that are served.
            epochs: after how many to end; None: never.
            stopped: whether to give up reading.
        """
        self._array, self._cached, self._order, self._subset = array, cached, order, subset
        self._epoch_rows, self._epochs, self._stopped = epoch_rows, epochs, stopped
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="shuffled-loader-windows")
        self._lock = threading.Lock()
        self._ready: dict[tuple[int, int], Future[Window]] = {}
        self._spare: list[np.ndarray] = []
        self._all: np.ndarray | None = None

    def at(self, epoch: int, served: int) -> Window:
        """The window with the row that comes after `served` rows of an epoch; the one after it is begun with.

        Raises:
            DataError: damaged rows.
        """
        key = epoch, self._order.find(epoch, served)[0]
        following = self._following(*key)
        with self._lock:
            for wanted in (key, following):
                if wanted is not None and wanted not in self._ready:
                    self._ready[wanted] = self._thread.submit(self._prepare, *wanted)
            found = self._ready[key]
        return found.result()

    def fill(self, window: Window, first: int, out: np.ndarray) -> None:
        """Fill `out` with a window's rows from its `first`-th on.

        A file may be cut off while it is mapped. So its length is looked at *after* the rows were copied, and where it
        is another one they are read anew.

        Raises:
            DataError: a file has become too short.
        """
        window.gather(first, out)
        if window.mapped is None or window.mapped.whole():
            return
        rows = window.rows[first : first + len(out)]
        order = np.argsort(rows)
        found = torch.empty((len(rows), *self._array.shape[1:]), dtype=self._array.dtype)
        self._array.read_into(rows[order], found, never_mapped=True)
        out[order] = as_integers(found).reshape(len(rows), -1)

    def forget(self, epoch: int, served: int) -> None:
        """Let go of the windows that end before `served` rows of an epoch, whose memory is used again."""
        with self._lock:
            for key, future in list(self._ready.items()):
                if future.done() and (
                    future.exception() or (key[0], future.result().last) <= (epoch, served)
                ):
                    del self._ready[key]
                    self._spare += () if future.exception() else future.result().own

    def drain(self) -> None:
        """Wait until nothing is being read, and forget all windows. `stopped` should be true meanwhile."""
        for future in self._ready.values():
            if not future.cancel():
                with suppress(BaseException):
                    self._spare += future.result().own
        self._ready.clear()

    def close(self) -> None:
        """End the thread and free the memory."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._ready.clear()
        self._spare.clear()
        self._all = None

    def _following(self, epoch: int, window: int) -> tuple[int, int] | None:
        """The window after one; None after the last."""
        if window + 1 < self._order.n_windows and self._order.start(epoch, window + 1) < self._epoch_rows:
            return epoch, window + 1
        return None if self._epochs is not None and epoch + 1 >= self._epochs else (epoch + 1, 0)

    def _prepare(self, epoch: int, window: int) -> Window:
        rows, first = self._order.rows(epoch, window), self._order.start(epoch, window)
        order = self._order.permutation(epoch, window, len(rows))
        rows = rows if self._subset is None else self._subset[rows]
        none, last = np.empty(0, np.int64), first + len(rows)
        if self._order.n_windows == 1:
            if self._all is None:
                self._all = self._read(rows)
            return Window(
                first=first,
                last=last,
                values=self._all,
                chosen=order,
                others=self._all,
                places=none,
                which=none,
            )
        mapped = self._cached.find(rows)
        if mapped is None:
            memory = self._read(rows)
            return Window(
                first=first, last=last, values=memory, chosen=order, others=memory, places=none, which=none,
                own=(memory,),
            )  # fmt: skip
        missing = ~mapped.there
        own = (self._read(rows[missing]),) if missing.any() else ()
        places = np.flatnonzero(missing[order])
        return Window(
            first=first, last=last, values=mapped.values, chosen=mapped.numbers[order],
            others=own[0] if own else mapped.values, places=places,
            which=(np.cumsum(missing) - 1)[order[places]], own=own, rows=rows[order], mapped=mapped,
        )  # fmt: skip

    def _read(self, rows: np.ndarray) -> np.ndarray:
        """[row, value] rows as integers, in memory that was used before where there is any."""
        with self._lock:
            spare = [memory for memory in self._spare if len(memory) >= len(rows)]
            memory = min(spare, key=len, default=None)
            self._spare = [other for other in self._spare if other is not memory] if spare else []
        if memory is None:
            memory = as_integers(torch.empty((len(rows), self._width), dtype=self._array.dtype))
        out = torch.from_numpy(memory).view(self._array.dtype).view(len(memory), *self._array.shape[1:])
        step = max(STEP_BYTES // max(self._array.row_bytes, 1), 1)
        for first in range(0, len(rows), step):
            if self._stopped():
                raise InterruptedError("the loader was closed")
            here = rows[first : first + step]
            self._array.read_into(here, out[first : first + len(here)])
        return memory

    @property
    def _width(self) -> int:
        return self._array.row_bytes // self._array.dtype.itemsize
