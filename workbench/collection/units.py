"""Units: runs of whole shards that workers compute on their own, side by side.

How many rows a prompt gives is known from its tokens alone, so which tasks fill which shard is known before anything
is computed. Where a shard border falls into a batch, that batch belongs to two units and both compute it: with four
shards of 32,768 rows to a unit and 2,048 tokens to a batch that is less than one part in fifty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from workbench.collection.engine import Batch, Engine, refuse_not_finite
from workbench.collection.items import Context
from workbench.collection.tasks import Task
from workbench.collection.write_behind import write_behind
from workbench.store.manifest import Cursor, Manifest
from workbench.store.parts import Part, PartWriter

RowsOf = Callable[[Sequence[Context]], Sequence[int]]
"""How many rows each prompt gives."""


@dataclass(frozen=True)
class Unit:
    """What one worker does at a time."""

    first: int
    """Number of its first shard."""
    first_row: int
    start: Cursor
    """Where the shard before it ends."""
    end: Cursor
    """Where its last whole shard ends: the same two cursors and settings mean the same data and the same bytes."""
    shards: int
    last: bool
    """The data ends with it, so its last shard may be short."""
    tasks: tuple[Task, ...]
    """The first one's `skip` are the rows that belong to the shard before."""
    prompts: int
    """Prompts that begin in it."""


def units(
    tasks: Iterable[Task],
    rows_of: RowsOf,
    *,
    start: Cursor,
    first: int,
    rows_per_shard: int,
    shards_per_unit: int,
) -> Iterator[Unit]:
    """Group tasks into units. Borders are at multiples of `shards_per_unit`, wherever a run begins.

    Args:
        tasks: from `start` on.
        rows_of: rows of each prompt.
        start: where the store ends.
        first: number of shards in the store.
        rows_per_shard: rows in each shard but the last.
        shards_per_unit: shards in each unit but the first and the last.
    """
    held: list[Task] = []
    begun, shard, fill, prompts, begin, end = first, first, 0, start.prompts, start, start

    def made(*, last: bool) -> Unit:
        n = shard - begun + (fill > 0)
        row = begun * rows_per_shard
        return Unit(begun, row, begin, end, n, last, tuple(held), prompts - begin.prompts)

    for task in tasks:
        counts = np.asarray(rows_of(task.contexts), dtype=np.int64)
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])[counts > 0]
        done, n, fresh = task.skip, int(counts.sum()), True
        if done >= n and held:
            held.append(task)
        while done < n:
            if fresh:
                held.append(replace(task, skip=done))
                fresh = False
            until = done + min(rows_per_shard - fill, n - done)
            prompts += int(((starts >= done) & (starts < until)).sum())
            fill, done = fill + until - done, until
            if fill < rows_per_shard:
                continue
            shard, fill = shard + 1, 0
            end = Cursor(task.number, done, task.window, task.digest, prompts)
            if shard % shards_per_unit == 0:
                yield made(last=False)
                held, begun, begin, fresh = [], shard, end, True
    if held:
        yield made(last=True)


def work(engine: Engine, unit: Unit, folder: str, manifest: Manifest, *, strict: bool) -> Part:
    """Compute the tasks of a unit and write its shards beside the store."""
    from pathlib import Path

    start = unit.start
    writer = PartWriter(
        Path(folder), manifest, first=unit.first, first_row=unit.first_row, start=start, most=unit.shards
    )

    def write(batch: Batch) -> None:
        block, task = batch.block(), batch.task
        if strict:
            refuse_not_finite(engine.model, block)
        if not writer.full:
            writer.append(block, Cursor(task.number, task.skip, task.window, task.digest))

    with writer:
        computed = (Batch(task, engine.compute(task)) for task in unit.tasks)
        for _ in write_behind(computed, write):
            pass
        return writer.finish(last=unit.last)
