"""`SiteArray`: the rows of one site of a store, as an array over all its shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.errors import DataError
from workbench.store.manifest import SiteRecord
from workbench.store.raw import as_integers
from workbench.store.shard import Shard
from workbench.store.values import DTYPE

_SCATTERED = 8
"""Mean length of a run of rows below which rows are gathered from the map instead of read run by run."""


class SiteArray:
    """[row, ...] activations at one site. Indexing gives torch tensors of the stored dtype.

    A slice inside one shard is a view of the file: nothing is copied or read before it is used. Everything else is a
    copy. Writing into a view changes what this process sees, never the file: `clone()` first.

    Attributes:
        name: the site.
        shape: (row, ...).
        dtype: torch's.

    Example:
        >>> array = store["blocks.15.hook_resid_post"]
        >>> array[10:20]; array[[5, 3]]; array[mask]; array[-1]; array[:100, :64]
        >>> np.asarray(array)                       # all rows; bfloat16 becomes float32, which holds it exactly
    """

    def __init__(self, site: SiteRecord, shards: Sequence[Shard]) -> None:
        """Made by `Store`."""
        self.name = site.name
        self.dtype = DTYPE[site.dtype]
        self._shards = tuple(shards)
        self._ends = np.cumsum([shard.rows for shard in shards], dtype=np.int64)
        self._starts = self._ends - [shard.rows for shard in shards]
        self.shape = (int(self._ends[-1]) if shards else 0, *site.shape)

    @property
    def ndim(self) -> int:
        """Number of dimensions, rows included."""
        return len(self.shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"SiteArray({self.name!r}, shape={self.shape}, dtype={self.dtype})"

    def __getitem__(self, key: Any) -> Tensor:
        """Rows by number, slice, list or array of numbers, or boolean mask; further indices go to the other dims.

        Raises:
            DataError: a row that does not exist, a mask of another length, or damaged rows.
        """
        key, *rest = key if isinstance(key, tuple) else (key,)
        if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
            row = int(self._resolve(np.array([key]))[0])
            found = self._slice(row, row + 1)[0]
            return found[tuple(rest)] if rest else found
        if key is Ellipsis:
            key, rest = slice(None), [Ellipsis, *rest]
        if isinstance(key, slice):
            first, last, step = key.indices(len(self))
            if step == 1:
                found = self._slice(first, max(first, last))
            else:
                found = self._taken(np.arange(first, last, step))
        else:
            found = self._taken(self._resolve(_as_numbers(key, len(self))))
        return found[(slice(None), *rest)] if rest else found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("A store is not one numpy array: np.asarray copies it; take slices for views.")
        rows = self[:]
        if self.dtype == torch.bfloat16:
            rows = rows.float()
        array = rows.numpy().copy() if len(self._shards) == 1 else rows.numpy()  # of one shard it is a view
        return array if dtype is None else array.astype(dtype)

    def chunks(self) -> Iterator[Tensor]:
        """Views of all rows, shard by shard."""
        for shard in self._shards:
            yield shard.view(self.name, 0, shard.rows)

    def take(self, rows: Sequence[int] | np.ndarray | Tensor) -> Tensor:
        """[row, ...] the rows of these numbers, in their order; negative ones count from the end. Or those of a mask.

        Raises:
            DataError: a row that does not exist, a mask of another length, or damaged rows.
        """
        return self._taken(self._resolve(_as_numbers(rows, len(self))))

    def _taken(self, rows: np.ndarray) -> Tensor:
        """The rows of these numbers, from 0, all of which exist."""
        owner = np.searchsorted(self._ends, rows, side="right")
        out = torch.empty((len(rows), *self.shape[1:]), dtype=self.dtype)
        if len(rows) and (owner == owner[0]).all():
            self._shards[owner[0]].take(self.name, rows - self._starts[owner[0]], out)
            return out
        order = np.argsort(owner, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(owner[order])) + 1):
            if len(group):
                shard = owner[group[0]]
                found = torch.empty((len(group), *self.shape[1:]), dtype=self.dtype)
                self._shards[shard].take(self.name, rows[group] - self._starts[shard], found)
                as_integers(out)[group] = as_integers(found)
        return out

    def read_into(self, rows: np.ndarray, out: Tensor, *, never_mapped: bool = False) -> None:
        """Read rows of increasing number into `out`, front to back through the files, and check them.

        Stretches of neighbouring rows are read at once; nothing of them stays mapped into memory.

        Args:
            rows: [row] int64, strictly increasing.
            out: contiguous [row, ...] CPU tensor of the site's dtype.
            never_mapped: read also single rows from the file, which says so where it has become too short.
        """
        if not len(rows):
            return
        # A run ends where the next row is not the next number, or lies in the next shard.
        cuts = np.union1d(np.flatnonzero(np.diff(rows) != 1) + 1, np.searchsorted(rows, self._starts[1:]))
        firsts = np.concatenate([[0], cuts[(cuts > 0) & (cuts < len(rows))]])
        lasts = np.append(firsts[1:], len(rows))
        owner = np.searchsorted(self._ends, rows[firsts], side="right")
        bounds = np.flatnonzero(np.diff(owner, prepend=-1))
        for begin, end in zip(bounds, np.append(bounds[1:], len(owner)), strict=True):
            shard, start = self._shards[owner[begin]], self._starts[owner[begin]]
            first, last = firsts[begin], lasts[end - 1]
            if (last - first) < _SCATTERED * (end - begin) and not never_mapped:
                shard.take(self.name, rows[first:last] - start, out[first:last])
                continue
            begins, at = rows[firsts[begin:end]] - start, firsts[begin:end]
            lengths = lasts[begin:end] - at
            runs = zip(begins.tolist(), (begins + lengths).tolist(), at.tolist(), strict=True)
            shard.read_runs(self.name, list(runs), out)

    def _slice(self, first: int, last: int) -> Tensor:
        parts = []
        for i in range(int(np.searchsorted(self._ends, first, side="right")), len(self._shards)):
            start, shard = int(self._starts[i]), self._shards[i]
            if start >= last:
                break
            parts.append(shard.view(self.name, max(first - start, 0), min(last - start, shard.rows)))
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts) if parts else torch.empty((0, *self.shape[1:]), dtype=self.dtype)

    def _resolve(self, rows: np.ndarray) -> np.ndarray:
        """Non-negative row numbers, all of which exist."""
        wrong = rows[(rows < -len(self)) | (rows >= len(self))]
        if len(wrong):
            raise DataError(f"Row {wrong[0]} does not exist: {self.name!r} has {len(self)} rows here.")
        return np.where(rows < 0, rows + len(self), rows).astype(np.int64)


def _as_numbers(key: Any, n: int) -> np.ndarray:
    """Row numbers from a list, array or tensor of numbers, or from a boolean mask of `n` entries."""
    array = key.numpy() if isinstance(key, Tensor) else np.asarray(key)
    if array.dtype == bool:
        if array.shape != (n,):
            raise DataError(
                f"A mask over the rows has {n} entries here; given was one of shape {array.shape}."
            )
        return np.flatnonzero(array)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise DataError(
            f"Rows are chosen by number, slice, list of numbers or mask, not by {type(key).__name__} of shape "
            f"{array.shape} and dtype {array.dtype}."
        )
    return array.astype(np.int64)
