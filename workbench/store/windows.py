"""`WindowReader`: reads the next window of rows in a background thread while the current one is served."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from workbench.store.order import ShuffleOrder
from workbench.store.site_array import SiteArray

_STEP_BYTES = 16 << 20
"""Read between two looks at whether to stop."""


class WindowReader:
    """Windows of an order, each in a buffer that is taken once and used again.

    There are two buffers (one being served, one being filled), or one where a single window holds everything: that
    one is read once and stays.
    """

    def __init__(self, array: SiteArray, order: ShuffleOrder, subset: np.ndarray | None) -> None:
        """
        Args:
            array: the rows.
            order: of `len(subset)` rows, or of all.
            subset: [row] int64 increasing: the row numbers the order is about; None: all rows.
        """
        self._array, self._order, self._subset = array, order, subset
        self._buffers: list[Tensor] = []
        self._ahead: tuple[tuple[int, int], Future[tuple[Tensor, np.ndarray]]] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="shuffled-loader")
        self._stop = threading.Event()
        self._n_read = 0

    def get(self, epoch: int, window: int, following: tuple[int, int] | None) -> tuple[Tensor, np.ndarray]:
        """The rows of a window, and the order in which they are to be served.

        The rows stay until the next call. `following` (epoch, window) begins to be read meanwhile.

        Raises:
            DataError: damaged rows, also where the background thread came upon them.
        """
        if self._ahead is None or self._ahead[0] != (epoch, window):
            self._drain()
            self._ahead = ((epoch, window), self._thread.submit(self._read, epoch, window))
        ahead, self._ahead = self._ahead[1], None
        found = ahead.result()
        if following is not None:
            self._ahead = (following, self._thread.submit(self._read, *following))
        return found

    def close(self) -> None:
        """Stop reading and end the thread."""
        self._stop.set()
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._ahead = None
        self._buffers.clear()

    def _drain(self) -> None:
        """Let a window that is being read for nothing end, so that its buffer is free."""
        if self._ahead is not None:
            self._stop.set()
            self._ahead[1].exception()
            self._stop.clear()
            self._ahead = None

    def _read(self, epoch: int, window: int) -> tuple[Tensor, np.ndarray]:
        order = self._order
        rows = order.rows(epoch, window)
        resident = order.n_windows == 1
        if not self._buffers:
            shape = (order.largest_window, *self._array.shape[1:])
            self._buffers = [torch.empty(shape, dtype=self._array.dtype) for _ in range(1 if resident else 2)]
        if not (resident and self._n_read):
            buffer = self._buffers[self._n_read % len(self._buffers)]
            self._fill(rows if self._subset is None else self._subset[rows], buffer)
            self._n_read += 1
        buffer = self._buffers[(self._n_read - 1) % len(self._buffers)]
        return buffer[: len(rows)], order.permutation(epoch, window, len(rows))

    def _fill(self, rows: np.ndarray, buffer: Tensor) -> None:
        step = max(_STEP_BYTES // max(self._array.row_bytes, 1), 1)
        step += -step % self._order.chunk_rows
        for first in range(0, len(rows), step):
            if self._stop.is_set():
                raise InterruptedError("the loader was closed")
            self._array.read_into(rows[first : first + step], buffer[first : first + step])
