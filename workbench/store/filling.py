"""Windows of the files, each row to the place where it is served.

A window is read front to back by several threads, a step at a time. A step's rows come into a little memory that stays
in the processor's cache, and go from there to their places in the slabs of the window's batches, in the order of the
permutation. So the large memory is gone through once, and nothing is left to do when a batch is asked for. Rows that
the page cache has come from the map of their file (`cached.py`), others are read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from workbench.store.cached import CachedRows
from workbench.store.order import ShuffleOrder
from workbench.store.pool import Slab, place
from workbench.store.raw import as_integers
from workbench.store.site_array import SiteArray
from workbench.store.values import BLOCK_ROWS

STEP_BYTES = 4 << 20
"""Moved by one thread between two looks at whether to stop."""


class Part(Protocol):
    """A stretch of an epoch that is filled as a whole, in steps.

    Attributes:
        epoch: which.
        first, last: it is served from the epoch's `first`-th row (from 0) to its `last`-th (exclusive).
        n_steps: 0 where there is nothing to serve.
    """

    epoch: int
    first: int
    last: int
    n_steps: int

    def fill(self, step: int, slabs: Mapping[int, Slab]) -> None:
        """Put the rows of a step into their places: row p of an epoch is row p % S of slab p // S, of S rows each.

        `slabs` are those of the part by increasing number. Steps may be filled in several threads at once.
        """
        ...


class Source(Protocol):
    """Gives the rows of an epoch in parts.

    Attributes:
        n_parts: parts of an epoch.
        part_rows: no part has more rows.
        ahead: how many parts are to be filled before they are served.
    """

    n_parts: int
    part_rows: int
    ahead: int

    def find(self, epoch: int, served: int) -> int:
        """The part with the row that comes after `served` rows of an epoch."""
        ...

    def plan(self, epoch: int, part: int, served: int) -> Part:
        """A part, without the rows before `served`. Several threads may ask at once."""
        ...


class FromFiles:
    """A `Source` for more rows than fit one window."""

    def __init__(
        self,
        array: SiteArray,
        cached: CachedRows,
        order: ShuffleOrder,
        subset: np.ndarray | None,
        epoch_rows: int,
        slab_rows: int,
    ) -> None:
        """
        Args:
            array: the rows.
            cached: the same rows, as far as the page cache has them.
            order: of `len(subset)` rows, or of all.
            subset: [row] int64 increasing: the row numbers the order is about; None: all rows.
            epoch_rows: rows of an epoch that are served.
            slab_rows: rows of a slab.
        """
        self.array, self.cached, self.order, self.subset = array, cached, order, subset
        self.epoch_rows, self.slab_rows = epoch_rows, slab_rows
        self.n_parts, self.part_rows, self.ahead = order.n_windows, order.largest_window, 1
        step = max(STEP_BYTES // max(array.row_bytes, 1), 1)
        self.step = min(step + -step % BLOCK_ROWS, order.largest_window)  # rows are checked in blocks
        self.scratch: deque[Tensor] = deque()

    def find(self, epoch: int, served: int) -> int:
        return self.order.find(epoch, served)[0]

    def plan(self, epoch: int, part: int, served: int) -> Window:
        return Window(self, epoch, part, served)


class Window:
    """A `Part`: one window of the order. Rows of it that are not to be served go nowhere."""

    def __init__(self, source: FromFiles, epoch: int, window: int, served: int) -> None:
        self._source, order = source, source.order
        rows, start = order.rows(epoch, window), order.start(epoch, window)
        self.epoch, self.last = epoch, min(start + len(rows), source.epoch_rows)
        self.first = min(max(start, served), self.last)
        self.n_steps = -(-len(rows) // source.step) if self.first < self.last else 0
        if not self.n_steps:
            return
        position = np.empty(len(rows), np.int64)
        position[order.permutation(epoch, window, len(rows))] = np.arange(start, start + len(rows))
        # Of each row, which of the part's slabs it goes to (-1: none), and which row of that it becomes.
        self._slab, self._row = np.divmod(position, source.slab_rows)
        self._slab -= self.first // source.slab_rows
        self._slab[(position < self.first) | (position >= self.last)] = -1
        self._rows = rows if source.subset is None else source.subset[rows]

    def fill(self, step: int, slabs: Mapping[int, Slab]) -> None:
        source, here = self._source, slice(step * self._source.step, (step + 1) * self._source.step)
        rows = self._rows[here]
        try:
            scratch = source.scratch.pop()
        except IndexError:
            scratch = torch.empty((source.step, *source.array.shape[1:]), dtype=source.array.dtype)
        found = scratch[: len(rows)]
        if not source.cached.take(rows, found):
            source.array.read_into(rows, found)
        place(
            as_integers(found).reshape(len(rows), -1), list(slabs.values()), self._slab[here], self._row[here]
        )
        source.scratch.append(scratch)
