"""In which order a loader gives the rows: a function of seed, epoch and window, and of nothing else.

1. The n rows are cut into chunks of `chunk_rows` neighbours.
2. Each epoch the chunks are permuted and dealt into as few windows as hold `window_rows` rows each, of equal size.
3. A window's chunks are read in the order of the file; its rows are then permuted.

Where everything fits one window, every permutation of the rows is as likely as any other. Otherwise two rows of a
chunk fall into the same window, so a batch of B rows from windows of W rows holds on average about
(B - 1) · chunk_rows / W neighbours of each of its rows from the same chunk.

A permutation is the order of 64-bit numbers from PCG64, whose raw stream numpy keeps the same between versions.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class ShuffleOrder:
    """The order of `n_rows` rows.

    Example:
        >>> order = ShuffleOrder(n_rows=10, chunk_rows=2, window_rows=6, seed=0)
        >>> sorted(np.concatenate([order.rows(0, w) for w in range(order.n_windows)]).tolist())
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """

    n_rows: int
    chunk_rows: int
    window_rows: int
    seed: int
    _epochs: dict[int, tuple[list[np.ndarray], np.ndarray]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @property
    def n_chunks(self) -> int:
        """Chunks; the last may be short."""
        return -(-self.n_rows // self.chunk_rows)

    @property
    def n_windows(self) -> int:
        """Windows of an epoch."""
        return -(-self.n_chunks // max(self.window_rows // self.chunk_rows, 1))

    @property
    def largest_window(self) -> int:
        """No window has more rows than this."""
        return min(-(-self.n_chunks // self.n_windows) * self.chunk_rows, self.n_rows)

    def rows(self, epoch: int, window: int) -> np.ndarray:
        """[row] int64 the rows of a window, increasing: as they are read."""
        chunks = self._dealt(epoch)[0][window]
        rows = (chunks[:, None] * self.chunk_rows + np.arange(self.chunk_rows)).reshape(-1)
        return rows[: np.searchsorted(rows, self.n_rows)]

    def permutation(self, epoch: int, window: int, n: int) -> np.ndarray:
        """[row] int64 the order in which the `n` rows of a window are served."""
        return _permutation((self.seed, epoch, 1 + window), n)

    def start(self, epoch: int, window: int) -> int:
        """How many rows of an epoch are served before those of a window."""
        return int(self._dealt(epoch)[1][window])

    def find(self, epoch: int, served: int) -> tuple[int, int]:
        """Window and row in it that come after `served` rows of an epoch (the last window's end at its end)."""
        starts = self._dealt(epoch)[1]
        window = int(np.searchsorted(starts, served, side="right")) - 1
        return window, served - int(starts[window])

    def _dealt(self, epoch: int) -> tuple[list[np.ndarray], np.ndarray]:
        """Of each window, the numbers of its chunks, increasing, and how many rows come before it."""
        found = self._epochs.get(epoch)
        if found is None:
            order = np.arange(self.n_chunks)
            if self.n_windows > 1:
                order = _permutation((self.seed, epoch, 0), self.n_chunks)
            windows = [np.sort(part) for part in np.array_split(order, self.n_windows)]
            rows = np.array([len(chunks) for chunks in windows]) * self.chunk_rows
            short = [chunks[-1] == self.n_chunks - 1 for chunks in windows]  # this one has the last chunk
            rows[short] -= self.n_chunks * self.chunk_rows - self.n_rows
            found = windows, np.cumsum(rows) - rows
            for old in [e for e in list(self._epochs) if e < epoch - 1]:
                self._epochs.pop(old, None)
            self._epochs[epoch] = found
        return found


def _permutation(key: tuple[int, ...], n: int) -> np.ndarray:
    numbers = np.random.PCG64(np.random.SeedSequence(key)).random_raw(n)
    order = np.argsort(numbers)  # several times as fast as the stable one, and the same unless two are equal
    ordered = numbers[order]
    return np.argsort(numbers, kind="stable") if (ordered[1:] == ordered[:-1]).any() else order
