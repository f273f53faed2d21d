"""A sweep that was stopped goes on where it was: its finished columns lie in a small file meanwhile."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import DataError
from workbench.files import publish_file

_EVERY_SECONDS = 30.0


class Checkpoint:
    """Grids of a sweep so far. Used as a context manager: it is written when the block ends by an exception (a cancel,
    an interrupt) and removed when it ends well; in between every half minute.

    Args:
        path: of the file; None keeps nothing.
        about: plain JSON values that decide the numbers; a file of another sweep is refused.

    Raises:
        DataError: the file there is of another sweep, or damaged.
    """

    def __init__(self, path: Path | str | None, about: Any) -> None:
        self._path = Path(path) if path is not None else None
        self._key = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()
        self._grids: dict[int, tuple[np.ndarray, int]] = {}
        self._ends: dict[int, tuple[float, float]] = {}
        self._written, self._changed = time.monotonic(), False
        if self._path is not None and self._path.exists():
            self._read(self._path)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and self._path is not None:
            self._path.unlink(missing_ok=True)
        elif self._changed:
            self._write()

    def same_metric(self, pair: int, ends: tuple[float, float]) -> None:
        """Note the metric of a pair's unpatched runs. A function has no name that tells it from others; its values do.

        Raises:
            DataError: the file holds other values for that pair.
        """
        known = self._ends.setdefault(pair, ends)
        if not np.allclose(known, ends, rtol=1e-3, atol=1e-5, equal_nan=True):
            raise DataError(
                f"{self._path} is the checkpoint of a sweep with another metric: of pair {pair} it was {known[0]:.4g} "
                f"and {known[1]:.4g}, here {ends[0]:.4g} and {ends[1]:.4g}. Remove it to begin anew, or choose another "
                "file."
            )

    def begun(self, pair: int) -> tuple[np.ndarray, int] | None:
        """The grid of a pair and how many of its columns are done; None where it was not begun."""
        return self._grids.get(pair)

    def keep(self, pair: int, grid: np.ndarray, columns: int) -> None:
        """Note how far a pair is."""
        self._grids[pair], self._changed = (grid, columns), True
        if self._path is not None and time.monotonic() - self._written > _EVERY_SECONDS:
            self._write()

    def _write(self) -> None:
        from safetensors.numpy import save_file

        if self._path is None:
            return
        columns = json.dumps({str(pair): n for pair, (_, n) in self._grids.items()})
        arrays = {str(pair): np.ascontiguousarray(grid) for pair, (grid, _) in self._grids.items()}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with publish_file(self._path) as temporary:
            save_file(
                arrays, temporary,
                metadata={"sweep": self._key, "columns": columns, "ends": json.dumps(self._ends)},
            )  # fmt: skip
        self._written = time.monotonic()

    def _read(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                about = file.metadata() or {}
                columns, ends = json.loads(about["columns"]), json.loads(about["ends"])
                grids = {int(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise DataError(
                f"{path} is no checkpoint of a sweep ({error}): remove it to begin anew."
            ) from error
        if about.get("sweep") != self._key:
            raise DataError(
                f"{path} is the checkpoint of another sweep (other model, prompts or settings): remove it to begin "
                "anew, or choose another file."
            )
        self._grids = {pair: (grid, int(columns[str(pair)])) for pair, grid in grids.items()}
        self._ends = {int(pair): (float(a), float(b)) for pair, (a, b) in ends.items()}
