"""How long work reports where it is and learns that it should stop.

An analysis takes `progress: Progress` and calls `stage` once per part and `advance` as items finish.
`advance` raises `Cancelled` when the user asked to stop, so cancelling costs at most one item. The
command line draws bars from it, the job worker of the dashboard keeps counts and an ETA.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np


@runtime_checkable
class Progress(Protocol):
    """Where an analysis says how far it is."""

    def stage(self, name: str, total: int) -> None:
        """Begin a named part of `total` items."""

    def advance(self, n: int = 1) -> None:
        """`n` more items are done. Raises `workbench.errors.Cancelled` if a cancel was asked for."""


class Silent:
    """Progress that goes nowhere: the default in scripts and notebooks."""

    def stage(self, name: str, total: int) -> None:
        """Nothing to show."""

    def advance(self, n: int = 1) -> None:
        """Nothing to show."""


@dataclass(frozen=True)
class Preview:
    """What an analysis knows so far."""

    title: str
    """Of what, and how much of it."""
    values: np.ndarray
    """[row, column], NaN where nothing is known yet."""
    rows: str
    columns: str


def preview(progress: Progress, seen: Preview) -> None:
    """Show what there is so far, where somebody looks on: progress with a method `preview` (that of the dashboard's
    jobs); all other kinds need none."""
    show = getattr(progress, "preview", None)
    if show is not None:
        show(seen)
