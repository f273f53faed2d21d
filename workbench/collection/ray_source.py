"""Reading on Ray Data: one read task goes through the data and gives units as it goes.

One, because where a batch ends depends on all prompts before it. It is stopped and started by Ray Data's own
back-pressure, so that only a few units wait in the object store.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from workbench.collection.items import Context
from workbench.collection.request import Request
from workbench.collection.sources import Source
from workbench.collection.tasks import Drawn, tasks
from workbench.collection.units import Unit, units
from workbench.model.text_side import TextSide
from workbench.store.manifest import Cursor


def read_units(
    ray: Any,
    source: Source,
    request: Request,
    text_side: TextSide,
    *,
    start: Cursor,
    first: int,
    shards_per_unit: int,
    done: frozenset[tuple[int, int]],
) -> Any:
    """A Ray dataset of one row a unit (column `unit`) and a last one that says how the data ended.

    Args:
        start, first: where the store ends: cursor and number of shards.
        done: (first shard, shards) of units that need not be computed.
    """
    import pandas as pd
    from ray.data import DataContext, Datasource, ReadTask
    from ray.data.block import BlockMetadata

    def read() -> Iterator[pd.DataFrame]:
        made = _generated(source, request, text_side, start) if request.generate is not None else None
        for row in made or _units(source, request, text_side, start, first, shards_per_unit, done):
            yield pd.DataFrame({"unit": [row]})

    class Units(Datasource):
        """The read task as Ray Data wants it."""

        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(
            self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
        ) -> list[ReadTask]:
            del parallelism, per_task_row_limit, data_context
            about = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [ReadTask(read, about)]

    context = DataContext.get_current()
    before = (context.target_max_block_size, context.enable_progress_bars, context.execution_options)
    context.target_max_block_size = 1  # every unit a block of its own: blocks are what is spread over actors
    context.enable_progress_bars = False
    try:
        # No CPU of its own: on a small cluster the actors take them all. The actors' CPUs differ, so the two are not
        # fused into one step.
        return ray.data.read_datasource(Units(), override_num_blocks=1, num_cpus=0)
    finally:
        context.target_max_block_size, context.enable_progress_bars, context.execution_options = before


def _units(
    source: Source,
    request: Request,
    text_side: TextSide,
    start: Cursor,
    first: int,
    shards_per_unit: int,
    done: frozenset[tuple[int, int]],
) -> Iterator[Unit | dict[str, Any]]:
    drawn, selection = Drawn(), request.selection
    begun: list[Any] = []

    def rows_of(contexts: Sequence[Context]) -> list[int]:
        return [len(selection.select(context)[0]) for context in contexts]

    def noted() -> Iterator[Any]:
        for task in tasks(request.contexts(text_side, source), request.tokens_per_batch, start, drawn):
            if not begun and start != Cursor():
                begun.append((task.number, sum(rows_of(task.contexts)), task.window, task.digest))
            yield task

    for unit in units(
        noted(),
        rows_of,
        start=start,
        first=first,
        rows_per_shard=request.rows_per_shard,
        shards_per_unit=shards_per_unit,
    ):
        if (unit.first, unit.shards) not in done or unit.last:
            yield unit
    selection.check_used(resumed=first > 0)
    yield {
        "end": True,
        "prompts": drawn.prompts,
        "digest": drawn.digest,
        "first": begun[0] if begun else None,
    }


def _generated(
    source: Source, request: Request, text_side: TextSide, start: Cursor
) -> Iterator[Unit | dict[str, Any]]:
    drawn = Drawn()
    for task in tasks(request.contexts(text_side, source), request.tokens_per_batch, start, drawn):
        if request.selects_prompts:
            for context in task.contexts:
                request.selection.select(context)
        yield Unit(0, 0, start, 0, False, (task,), 0)
    if request.selects_prompts:
        request.selection.check_used(resumed=start != Cursor())
    yield {"end": True, "prompts": drawn.prompts, "digest": drawn.digest, "first": None}
