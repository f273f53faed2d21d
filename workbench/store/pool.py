"""`SlabPool`: memory for batches that is used again as soon as nobody holds a batch in it.

A slab is memory for a few neighbouring batches. A batch is a tensor over a stretch of its slab and keeps the slab
alive, as does every view of the batch, every numpy array made from it and whatever autograd saved of it. When the
last of them is gone the memory goes back to the pool; until then nothing is written into it.

Slabs are stretches of one arena. Where more slabs are held than the arena has, the others have memory of their own.
"""

from __future__ import annotations

import mmap
import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from math import prod

import numpy as np
import torch
from torch import Tensor

from workbench.store.raw import integer_type


class Slab:
    """Memory for some rows.

    Attributes:
        rows: [row, value] the memory as integers of the dtype's width (numpy knows no bfloat16).
    """

    def __init__(self, rows: np.ndarray, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Made by `SlabPool`."""
        self.rows, self._shape, self._dtype = rows, shape, dtype

    def batch(self, first: int, n: int) -> Tensor:
        """[n, ...] rows `first` to `first + n` (exclusive), without a copy, in a torch storage of just their size."""
        return torch.from_numpy(self.rows[first : first + n]).view(self._dtype).view(n, *self._shape)


class SlabPool:
    """Slabs of one size.

    Example:
        >>> pool = SlabPool(4, (2,), torch.bfloat16, n_kept=1)
        >>> pool.take().batch(0, 3).shape
        torch.Size([3, 2])
    """

    def __init__(self, rows: int, shape: Sequence[int], dtype: torch.dtype, n_kept: int) -> None:
        """
        Args:
            rows: of a slab.
            shape: of a row.
            dtype: of the values.
            n_kept: slabs of the arena. Where more are held at once, the others are freed when they come back.
        """
        self.rows, self._shape, self._dtype, self._n_kept = rows, tuple(shape), dtype, n_kept
        self._arena: _Arena | None = None

    def take(self) -> Slab:
        """A slab with anything in it. It comes back by itself when it and all its batches are gone.

        Not to be called by two threads at once. It may be let go by any.
        """
        width, integer = prod(self._shape), integer_type(self._dtype)
        slab_bytes = self.rows * width * self._dtype.itemsize
        if self._arena is None:
            self._arena = _Arena(self._n_kept, slab_bytes)
        number = self._arena.take()
        memory = np.empty(slab_bytes, np.uint8) if number is None else self._arena.memory
        arena = np.frombuffer(memory, integer).reshape(-1, width)
        start = (number or 0) * self.rows
        # numpy lets a view of a view hold the array at the root. A memoryview ends that chain, so that every view
        # holds `root`, whose end is the sign that nobody uses the memory.
        root = np.frombuffer(arena[start : start + self.rows].data.cast("B"), integer)
        if number is not None:
            weakref.finalize(root, self._arena.take_back, number).atexit = False
        return Slab(root.reshape(-1, width), self._shape, self._dtype)

    def close(self) -> None:
        """Free the memory, that of slabs in use when nobody holds them any more."""
        if self._arena is not None:
            self._arena.close()
            self._arena = None


class _Arena:
    """Memory for slabs, none of which is used before it is taken."""

    def __init__(self, n: int, slab_bytes: int) -> None:
        self.memory = mmap.mmap(-1, max(n * slab_bytes, 1), flags=mmap.MAP_PRIVATE)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a kernel without: more page faults when it is filled first
                self.memory.madvise(mmap.MADV_HUGEPAGE)
        self._slab_bytes = slab_bytes
        self._free = deque(range(n))
        self._closed = False

    def take(self) -> int | None:
        """Number of a slab that nobody uses; None: all are used."""
        try:
            return self._free.pop()
        except IndexError:
            return None

    def take_back(self, number: int) -> None:
        """Runs in whichever thread drops the last batch, at any point of it: it may not wait for a lock."""
        self._free.append(number)
        if self._closed:
            self._release(number)

    def close(self) -> None:
        """Give the system the memory of free slabs, now and later: a batch in use would keep all of the arena."""
        self._closed = True
        for number in list(self._free):
            self._release(number)

    def _release(self, number: int) -> None:
        first = -(-number * self._slab_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (number + 1) * self._slab_bytes // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first and hasattr(mmap, "MADV_DONTNEED"):
            self.memory.madvise(mmap.MADV_DONTNEED, first, last - first)
