"""`Together`: the same rows of several files as one array, without a copy.

Rows that lie in many maps cannot be gathered in one call; sorting them out costs as much again as the gather. So the
files' pages are mapped side by side into one reserved stretch of addresses, at such distances that all rows lie on one
grid: row i of file f is row `first[f] + i` of the array. Between files lie addresses that are reserved and never
touched. Files whose rows begin at an offset that fits no common grid are left out (pages can only be put at multiples
of a page).

Linux only: it needs `mmap` with a fixed address, which Python's own module does not offer.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, lcm
from pathlib import Path

import numpy as np

_PAGE = mmap.PAGESIZE
_HUGE = 2 << 20
_LARGEST_GAP = 64 << 20
_NO_RESERVE = 0x4000  # MAP_NORESERVE
_FIXED = 0x10  # MAP_FIXED


@dataclass(frozen=True)
class Stretch:
    """Rows in a file, in bytes: `start` from its beginning, `size` of all of them."""

    path: Path
    start: int
    size: int


class Together:
    """Maps the stretches that share a grid.

    Attributes:
        rows: [row, byte] read only; rows between two files must not be touched.
        first: [stretch] int64: which of `rows` is a stretch's first; -1: it is left out.

    Example:
        >>> both = Together.of([Stretch(Path("a.safetensors"), 256, 4096), Stretch(Path("b"), 256, 4096)], 64)
        >>> both.rows[both.first[1] + 3]                                    # row 3 of the second
    """

    def __init__(self, stretches: Sequence[Stretch], row_bytes: int) -> None:
        """As `of`.

        Raises:
            OSError: a file cannot be mapped.
        """
        phase = [s.start % gcd(_PAGE, row_bytes) for s in stretches]
        common = Counter(dict.fromkeys(phase, 0))
        for p, stretch in zip(phase, stretches, strict=True):
            common[p] += stretch.size
        (chosen, _), *_ = common.most_common(1)
        used = [i for i, p in enumerate(phase) if p == chosen and stretches[i].size]
        # A file's pages lie as in the file within 2 MiB where gaps are small enough: such pages are looked up faster.
        # A place is `start` modulo `within` and `origin` modulo `row_bytes`. There is one if and only if `start` and
        # `origin` are the same modulo gcd(within, row_bytes), and then one among row_bytes / gcd places that follow
        # each other: so the loop below ends. With pages that is what `chosen` says; with 2 MiB it is asked for here.
        phases = {stretches[i].start % gcd(_HUGE, row_bytes) for i in used}
        within = _HUGE if len(phases) == 1 and lcm(_HUGE, row_bytes) <= _LARGEST_GAP else _PAGE
        origin = stretches[used[0]].start % within
        places: dict[int, int] = {}
        end = 0
        for i in used:
            place = end + (stretches[i].start - end) % within
            while (place - origin) % row_bytes:
                place += within
            places[i] = place
            end = -(-(place + stretches[i].size) // _PAGE) * _PAGE
        self._memory = mmap.mmap(
            -1, end + within, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE, prot=mmap.PROT_READ
        )
        raw = np.frombuffer(self._memory, np.uint8)
        raw = raw[-raw.ctypes.data % within :]
        self.first = np.full(len(stretches), -1, np.int64)
        for i, place in places.items():
            _map_at(raw.ctypes.data + place, stretches[i])
            self.first[i] = (place - origin) // row_bytes
        n = (end - origin) // row_bytes
        self.rows = raw[origin : origin + n * row_bytes].reshape(n, row_bytes)

    @classmethod
    def of(cls, stretches: Sequence[Stretch], row_bytes: int) -> Together | None:
        """Map them; None where the system does not let it, or there is nothing to map."""
        if sys.platform != "linux" or not any(s.size for s in stretches):
            return None
        try:
            return cls(stretches, row_bytes)
        except (OSError, ValueError):  # ValueError: Python's mmap, of more than there are addresses for
            return None


def _map_at(address: int, stretch: Stretch) -> None:
    """Map a stretch of a file so that its first byte is at an address that is reserved."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
    before = stretch.start % _PAGE
    descriptor = os.open(stretch.path, os.O_RDONLY)
    try:
        found = libc.mmap(
            address - before, before + stretch.size, mmap.PROT_READ, mmap.MAP_SHARED | _FIXED, descriptor,
            stretch.start - before,
        )  # fmt: skip
    finally:
        os.close(descriptor)
    if found != address - before:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(stretch.path))
