"""`ShuffledLoader`: shuffled batches of one site, for training, with bounded memory and exact resume.

The order is that of `order.py`; background threads fill the next batches while one is used (`batches.py`). A batch is
its holder's: its memory is used again only when nobody holds it any more. Memory: the batches in use and a few ahead;
for rows that have to be read from a disk also two windows of at most `buffer_bytes`, or one where everything fits it.
Rows that the page cache has are mapped, which some tools count as memory of the process; the system may take it at any
time.

    loader = ShuffledLoader(store, "blocks.15.hook_resid_post", batch_size=4096)
    SAETrainer(cfg, sae, data_provider=loader).fit()            # sae-lens
    loader.save("loader.json")                                  # …
    loader = ShuffledLoader.resume("loader.json", store)        # goes on with the very next batch
"""

from __future__ import annotations

import hashlib
import json
import operator
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from workbench.errors import DataError
from workbench.files import publish_file
from workbench.store.batches import BatchReader
from workbench.store.cached import CachedRows
from workbench.store.device import DeviceFeed, Sent
from workbench.store.order import ShuffleOrder
from workbench.store.reader import Store

_FORMAT = "latent-workbench loader 1"
_DTYPES = {str(t).removeprefix("torch."): t for t in vars(torch).values() if isinstance(t, torch.dtype)}


class ShuffledLoader(Iterator[Tensor]):
    """An iterator of [batch, ...] tensors. Every row comes exactly once per epoch (but for `drop_last`).

    Attributes:
        n_rows: rows of an epoch.
        site: name of the site.

    Example:
        >>> loader = ShuffledLoader(store, "blocks.15.hook_resid_post", batch_size=4096, seed=1)
        >>> next(loader).shape
        torch.Size([4096, 576])
    """

    def __init__(
        self,
        store: Store,
        site: str,
        batch_size: int,
        *,
        seed: int = 0,
        buffer_bytes: int = 256 << 20,
        chunk_rows: int = 64,
        dtype: torch.dtype | None = torch.float32,
        device: torch.device | str = "cpu",
        epochs: int | None = None,
        drop_last: bool = True,
        rows: Sequence[int] | np.ndarray | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            store: one store, or several as one (`concatenate`).
            site: its name, or a pattern that stands for one.
            batch_size: rows of a batch.
            seed: of the order; 0 or more.
            buffer_bytes: rows that are shuffled with each other, in bytes. More mixes better.
            chunk_rows: neighbouring rows that are read at once. Fewer mix better, more read faster from a disk.
            dtype: of the batches; None: as stored.
            device: of the batches. On CUDA the next batch is copied while the current one is used.
            epochs: how often each row comes; None: without end.
            drop_last: leave out the rows of an epoch that do not fill a batch; otherwise they are a short one.
            rows: numbers of the rows to use (or a mask over all); None: all.
            state: what `state_dict` gave, to go on from there.

        Raises:
            DataError: no such site, rows or device, fewer rows than a batch, sizes below 1 or that are no whole
                numbers, or a state of another loader.
        """
        batch_size, chunk_rows = _whole("batch_size", batch_size, 1), _whole("chunk_rows", chunk_rows, 1)
        buffer_bytes, seed = _whole("buffer_bytes", buffer_bytes, 1), _whole("seed", seed, 0)
        epochs = None if epochs is None else _whole("epochs", epochs, 0)
        self.site = store.site_name(site)
        array = store[self.site]
        subset = None if rows is None else _subset(rows, len(store))
        self.n_rows = len(array) if subset is None else len(subset)
        if not self.n_rows or (drop_last and self.n_rows < batch_size):
            raise DataError(
                f"There are {self.n_rows} rows, fewer than a batch of {batch_size}: choose a smaller batch_size, or "
                "drop_last=False where there are any."
            )
        window_rows = max(buffer_bytes // max(array.row_bytes, 1), 1)
        self._epoch_rows = self.n_rows - (self.n_rows % batch_size if drop_last else 0)
        self._reader = BatchReader(
            array,
            CachedRows(store, self.site),
            ShuffleOrder(self.n_rows, chunk_rows, window_rows, seed),
            subset,
            batch_size,
            self._epoch_rows,
            epochs,
        )
        self._feed = DeviceFeed(device, dtype or array.dtype, array.dtype, (batch_size, *array.shape[1:]))
        self._close = weakref.finalize(self, _close, self._reader, self._feed)
        self._fixed = {
            "store": store.fingerprint,
            "rows": "all" if subset is None else hashlib.sha256(subset.tobytes()).hexdigest(),
            "site": self.site,
            "batch_size": batch_size,
            "seed": seed,
            "buffer_bytes": buffer_bytes,
            "chunk_rows": chunk_rows,
            "drop_last": drop_last,
        }
        self._free = {"epochs": epochs, "dtype": None if dtype is None else str(dtype).removeprefix("torch.")}
        self._batch_size = batch_size
        self._given = (0, 0)
        self._ahead: tuple[Sent, tuple[int, int]] | None = None
        if state is not None:
            self.load_state_dict(state)

    @property
    def batches_per_epoch(self) -> int:
        """Batches of an epoch."""
        return -(-self._epoch_rows // self._batch_size)

    def __iter__(self) -> ShuffledLoader:
        return self

    def __next__(self) -> Tensor:
        """The next batch.

        Raises:
            StopIteration: after `epochs` epochs.
            DataError: damaged rows, or the loader is closed.
        """
        if not self._close.alive:
            raise DataError("The loader is closed: make another, from its state_dict if it is to go on.")
        sent, self._ahead = self._ahead or self._send(), None
        if sent is None:
            raise StopIteration
        if self._feed.ahead:
            self._ahead = self._send()
        batch, self._given = self._feed.receive(sent[0]), sent[1]
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is: small, plain JSON values. A loader that goes on from it gives the same batches."""
        epoch, served = self._given
        return {"format": _FORMAT, "epoch": epoch, "rows_served": served, **self._fixed, **self._free}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where `state` was taken. `epochs` and `dtype` stay those of this loader.

        Raises:
            DataError: it was taken of another store, other rows or other settings (which are named), or it is
                damaged.
        """
        given = state.get("format") if isinstance(state, Mapping) else type(state).__name__
        if given != _FORMAT:
            raise DataError(f"This is no state of a loader: its format is {given!r}, not {_FORMAT!r}.")
        other = [
            f"{k} was {state.get(k)!r} and is {v!r}" for k, v in self._fixed.items() if state.get(k) != v
        ]
        if other:
            raise DataError(f"The state was taken of another loader: {'; '.join(other)}.")
        epoch, served = (_whole(name, state.get(name), 0) for name in ("epoch", "rows_served"))
        if served > self._epoch_rows or (served % self._batch_size and served != self._epoch_rows):
            raise DataError(
                f"The state is damaged: {served} rows of an epoch of {self._epoch_rows} are no whole batches of "
                f"{self._batch_size}. Give what state_dict gave."
            )
        self._given = epoch, served
        self._ahead = None
        self._reader.go_to(*self._given)

    def save(self, path: Path | str) -> Path:
        """Write `state_dict` to a JSON file, complete or not at all."""
        with publish_file(Path(path)) as temporary:
            temporary.write_text(json.dumps(self.state_dict(), indent=1) + "\n", encoding="utf-8")
        return Path(path)

    @classmethod
    def resume(
        cls,
        path: Path | str,
        store: Store,
        *,
        rows: Sequence[int] | np.ndarray | None = None,
        dtype: torch.dtype | Literal["saved"] | None = "saved",
        device: torch.device | str = "cpu",
        epochs: int | Literal["saved"] | None = "saved",
    ) -> ShuffledLoader:
        """A loader that goes on where the one that wrote `path` was. `rows` must be the same.

        `"saved"` is what that loader had; where the file is of a version that did not keep it, the default.

        Raises:
            DataError: the file is missing or damaged, or store or rows are others.
        """
        try:
            state = json.loads(Path(path).read_text(encoding="utf-8"))
            settings = {k: state[k] for k in ("seed", "buffer_bytes", "chunk_rows", "drop_last")}
            site, batch_size = state["site"], state["batch_size"]
            if isinstance(epochs, str):
                epochs = None if state.get("epochs") is None else int(state["epochs"])
            if isinstance(dtype, str):
                name = state.get("dtype", "float32")
                dtype = None if name is None else _DTYPES[name]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{str(path)!r} is no state of a loader ({error!r}).") from error
        return cls(
            store,
            site,
            batch_size,
            **settings,
            dtype=dtype,
            device=device,
            epochs=epochs,
            rows=rows,
            state=state,
        )

    def close(self) -> None:
        """Stop the background threads and free what is not in use. Also done when the loader is no longer used."""
        self._close()

    def __enter__(self) -> ShuffledLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self) -> tuple[Sent, tuple[int, int]] | None:
        """Send the next batch on its way, with where the loader is after it. None at the end."""
        found = self._reader.next()
        return None if found is None else (self._feed.send(found[0]), found[1])


def _close(reader: BatchReader, feed: DeviceFeed) -> None:
    reader.close()
    feed.close()


def _whole(name: str, value: Any, least: int) -> int:
    """A whole number of at least `least`, of Python's own kind."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise DataError(f"{name}={value!r}: give a whole number of at least {least}.")
    return number


def _subset(rows: Sequence[int] | np.ndarray, n: int) -> np.ndarray:
    """Row numbers, increasing. The order in which they were given does not matter: they are shuffled."""
    array = np.asarray(rows)
    if array.dtype == bool and array.shape == (n,):
        return np.flatnonzero(array)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise DataError(
            f"rows must be row numbers or a mask over all {n} rows; shape {array.shape}, {array.dtype}."
        )
    unique = np.unique(array).astype(np.int64)
    if len(unique) != len(array):
        raise DataError(
            f"rows holds {len(array) - len(unique)} numbers twice: each row comes once per epoch."
        )
    if len(unique) and not 0 <= unique[0] <= unique[-1] < n:
        raise DataError(f"rows holds {unique[0]} to {unique[-1]}, but there are rows 0 to {n - 1}.")
    return unique
