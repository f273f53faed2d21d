"""`CachedRows`: rows that the page cache holds already, to be taken from the map of their file.

From the cache, a copy by the processor out of the map takes half as long as `pread`, which looks up every page, and it
may go in any order. From a disk it is the other way round: a map is read page by page as it is touched, and what the
disk cannot read ends the process. So rows are taken from the map only where the cache has them; the caller reads the
others.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from workbench.store.contiguous import Stretch, Together
from workbench.store.manifest import shard_files
from workbench.store.raw import integer_type
from workbench.store.reader import Store
from workbench.store.values import places, values_size

_EVERY = 2048
"""One of so many rows of a file is looked for in the cache."""


@dataclass(frozen=True, eq=False)
class Mapped:
    """Rows in the map.

    Attributes:
        values: [row, value] read only, as integers of the dtype's width.
        numbers: [row] int64: of each row asked for, which of `values` it is (0 where it is not there).
        there: [row] whether it is.
        files: the files that hold them, and their lengths.
    """

    values: np.ndarray
    numbers: np.ndarray
    there: np.ndarray
    files: tuple[tuple[Path, int], ...]

    def whole(self) -> bool:
        """Whether the files are as long as they were: beyond the end of a file a map holds zeros.

        A file that was removed stays what it was while it is mapped.
        """
        return all(_size(path) in (size, None) for path, size in self.files)


def _size(path: Path) -> int | None:
    """Of a file; None where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


class CachedRows:
    """The rows of one site, as far as they are in the page cache."""

    def __init__(self, store: Store, site: str) -> None:
        """
        Args:
            store: the store.
            site: exact name of the site.
        """
        self._site = site
        self._shards = [shard for part in store.parts for shard in part.shards]
        self._starts = np.cumsum([0, *(shard.rows for shard in self._shards)], dtype=np.int64)
        self._stretches, self._sizes = [], []
        self._row_bytes = store[site].row_bytes
        self._integer = integer_type(store[site].dtype)
        for part in store.parts:
            for shard in part.shards:
                start = places(part.manifest.sites, shard.rows)[site].start
                path = shard.folder / shard_files(shard.record.number)["values"]
                self._stretches.append(Stretch(path, start, shard.rows * self._row_bytes))
                self._sizes.append(values_size(part.manifest.sites, shard.rows))

    def find(self, rows: np.ndarray) -> Mapped | None:
        """Where rows lie in the map, checked. None: half of them or more are not in the page cache.

        Args:
            rows: [row] int64, increasing.

        Raises:
            DataError: rows that are checked for the first time are damaged.
        """
        if not hasattr(os, "RWF_NOWAIT"):
            return None
        if self._together is None:
            return None
        numbers, there = np.zeros(len(rows), np.int64), np.zeros(len(rows), bool)
        files = []
        edges = np.searchsorted(rows, self._starts)
        for i in np.flatnonzero(np.diff(edges)).tolist():
            here, first = slice(edges[i], edges[i + 1]), self._together.first[i]
            local = rows[here] - self._starts[i]
            if first >= 0 and self._is_cached(i, local):
                self._shards[i].check(self._site, local)
                numbers[here], there[here] = local + first, True
                files.append((self._stretches[i].path, self._sizes[i]))
        if 2 * there.sum() <= len(rows):
            return None
        values = self._together.rows.view(self._integer)
        return Mapped(values, numbers, there, tuple(files))

    @cached_property
    def _together(self) -> Together | None:
        """Made when rows are first asked for."""
        return Together.of(self._stretches, self._row_bytes)

    def _is_cached(self, number: int, rows: np.ndarray) -> bool:
        """Whether some of the rows of a shard can be read without waiting for the disk (Linux can tell)."""
        stretch, byte = self._stretches[number], bytearray(1)
        try:
            descriptor = os.open(stretch.path, os.O_RDONLY)
        except OSError:
            return False  # whoever reads it says what is wrong
        try:
            if os.fstat(descriptor).st_size != self._sizes[number]:
                return False
            for offset in (stretch.start + rows[::_EVERY] * self._row_bytes).tolist():
                os.preadv(descriptor, [byte], offset, os.RWF_NOWAIT)
        except OSError:  # it would have to wait, or the file system cannot tell
            return False
        finally:
            os.close(descriptor)
        return True
