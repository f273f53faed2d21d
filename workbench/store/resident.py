"""Rows that fit one window as a whole: read once, they stay in memory and are gathered for each batch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import numpy as np
import torch

from workbench.store.filling import STEP_BYTES
from workbench.store.order import ShuffleOrder
from workbench.store.pool import Slab
from workbench.store.raw import as_integers
from workbench.store.site_array import SiteArray


class FromMemory:
    """A `Source` for an order of one window. A part is one slab."""

    def __init__(
        self,
        array: SiteArray,
        order: ShuffleOrder,
        subset: np.ndarray | None,
        epoch_rows: int,
        slab_rows: int,
        stopped: Callable[[], bool],
    ) -> None:
        """
        Args:
            array, order, subset, epoch_rows, slab_rows: as for `FromFiles`.
            stopped: whether to give up reading.
        """
        self._array, self._order, self._subset, self._stopped = array, order, subset, stopped
        self._epoch_rows = epoch_rows
        self.n_parts, self.part_rows, self.ahead = -(-epoch_rows // slab_rows), slab_rows, 2
        self.step = min(max(STEP_BYTES // max(array.row_bytes, 1), 1), slab_rows)
        self._rows: np.ndarray | None = None
        self._permutation = (-1, np.empty(0, np.int64))
        self._lock = threading.Lock()

    def find(self, epoch: int, served: int) -> int:  # noqa: ARG002
        return min(served // self.part_rows, self.n_parts - 1)

    def plan(self, epoch: int, part: int, served: int) -> Gather:
        with self._lock:
            if self._rows is None:
                self._rows = self._read()
            if self._permutation[0] != epoch:
                self._permutation = epoch, self._order.permutation(epoch, 0, self._order.n_rows)
            order = self._permutation[1]
        start, last = part * self.part_rows, min((part + 1) * self.part_rows, self._epoch_rows)
        first = min(max(start, served), last)
        return Gather(self._rows, order[first:last], epoch, first, first - start, self.step)

    def _read(self) -> np.ndarray:
        """[row, value] all rows, as integers."""
        numbers = np.arange(self._order.n_rows) if self._subset is None else self._subset
        memory = torch.empty((len(numbers), *self._array.shape[1:]), dtype=self._array.dtype)
        for first in range(0, len(numbers), self.step):
            if self._stopped():
                raise InterruptedError("the loader was closed")
            here = slice(first, first + self.step)
            self._array.read_into(numbers[here], memory[here])
        return as_integers(memory).reshape(len(numbers), -1)


class Gather:
    """A `Part`: chosen rows go one after the other into one slab, from its row `at` on."""

    def __init__(
        self, rows: np.ndarray, chosen: np.ndarray, epoch: int, first: int, at: int, step: int
    ) -> None:
        self.epoch, self.first, self.last = epoch, first, first + len(chosen)
        self.n_steps = -(-len(chosen) // step)
        self._rows, self._chosen, self._at, self._step = rows, chosen, at, step

    def fill(self, step: int, slabs: Mapping[int, Slab]) -> None:
        (slab,) = slabs.values()
        chosen = self._chosen[step * self._step : (step + 1) * self._step]
        at = self._at + step * self._step
        # "clip" because "raise" would go through a copy of `out`; nothing is clipped.
        np.take(self._rows, chosen, axis=0, out=slab.rows[at : at + len(chosen)], mode="clip")
