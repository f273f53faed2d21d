"""Which prompts make which forward pass: tasks that are a function of the data and two sizes, nothing else.

Whoever computes them, here or on another machine, gets the same rows; so a run that was interrupted goes on, and
several workers write the store that one would have written. No model is needed to make them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from workbench.collection.batching import WINDOW_BATCHES, batches, windows
from workbench.collection.items import Context
from workbench.errors import DataError
from workbench.progress import Progress
from workbench.store.manifest import Cursor


@dataclass(frozen=True)
class Task:
    """One batch before it is computed, and its place in the work."""

    number: int
    window: int
    """Windows of prompts that were drawn from the source up to this batch."""
    digest: str
    """SHA-256 over those windows' prompts."""
    skip: int
    """Rows at its front that a store has already."""
    contexts: tuple[Context, ...]
    numbers: tuple[int, ...]
    """Number of each prompt in the source."""
    longest: int
    """Tokens of the longest prompt of its window."""


@dataclass
class Drawn:
    """What was drawn from the source so far, for whoever watches and for the end of a run."""

    prompts: int = 0
    digest: str = ""
    windows: int = 0


def tasks(
    contexts: Iterable[Context],
    tokens_per_batch: int,
    start: Cursor | None = None,
    drawn: Drawn | None = None,
) -> Iterator[Task]:
    """The tasks from `start` on.

    Args:
        contexts: all prompts of the data, in order, from the first.
        tokens_per_batch: tokens in one forward pass, padding included.
        start: where a store ended; its batch is the first that is given.
        drawn: kept up to date.

    Raises:
        DataError: the prompts before `start` are not those the cursor was made with.
    """
    start, drawn = start or Cursor(), drawn or Drawn()
    number = 0
    for window in windows(contexts, tokens_per_batch * WINDOW_BATCHES):
        drawn.windows, drawn.digest = window.number + 1, window.digest
        if window.number + 1 == start.window and window.digest != start.digest:
            raise DataError(
                f"The data is not what the store was begun with: the first "
                f"{window.first + len(window.contexts)} prompts differ. Give the same data in the same "
                "order, or another folder."
            )
        longest = max(len(c.ids) for c in window.contexts)
        for places in batches([len(c.ids) for c in window.contexts], tokens_per_batch):
            if number >= start.batch:
                yield Task(
                    number=number,
                    window=window.number + 1,
                    digest=window.digest,
                    skip=start.row if number == start.batch else 0,
                    contexts=tuple(window.contexts[i] for i in places),
                    numbers=tuple(window.first + i for i in places),
                    longest=longest,
                )
            number += 1
        drawn.prompts = window.first + len(window.contexts)
    if start.window > drawn.windows:
        raise DataError(
            f"The data ends after {drawn.prompts} prompts, but the store was begun with more: give the same data."
        )


def draw_all(contexts: Iterable[Context], tokens_per_batch: int, progress: Progress | None = None) -> Drawn:
    """Number and fingerprint of all prompts of the data, without running the model.

    Args:
        contexts: of the request.
        tokens_per_batch: of the request.
        progress: where to report, one item a prompt.
    """
    drawn = Drawn()
    for task in tasks(contexts, tokens_per_batch, None, drawn):
        if progress is not None:
            progress.advance(len(task.contexts))
    return drawn
