"""Reading on Ray Data: one read task goes through the data and gives units as it goes.

One, because where a batch ends depends on all prompts before it. It is stopped and started by Ray Data's own
back-pressure, so that only a few units wait in the object store.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from workbench.collection.items import Context
from workbench.collection.request import Request
from workbench.collection.sources import Source
from workbench.collection.tasks import Drawn, draw_all, tasks
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
    done: Mapping[tuple[int, int], Cursor],
) -> Any:
    """A Ray dataset of one row a unit (column `unit`) and a last one that says how the data ended.

    Args:
        start, first: where the store ends: cursor and number of shards.
        done: (first shard, shards) of parts that were written before -> where they end. A unit that ends there, with
            this data, is not computed: its row is `{"kept": first shard, "prompts": number}`.
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


def drawn_from(source: Source, request: Request, text_side: TextSide) -> Drawn:
    """Number and fingerprint of all prompts of the data."""
    return draw_all(request.contexts(text_side, source), request.tokens_per_batch)


def _units(
    source: Source,
    request: Request,
    text_side: TextSide,
    start: Cursor,
    first: int,
    shards_per_unit: int,
    done: Mapping[tuple[int, int], Cursor],
) -> Iterator[Unit | dict[str, Any]]:
    drawn, selection = Drawn(), request.selection
    begun: list[Any] = []

    def rows_of(contexts: Sequence[Context]) -> list[int]:
        return [len(selection.select(context)[0]) for context in contexts]

    def noted() -> Iterator[Any]:
        seen = _contexts(source, request, text_side, start, drawn)
        for task in tasks(seen, request.tokens_per_batch, start, drawn):
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
        if unit.last or done.get((unit.first, unit.shards)) != unit.end:
            yield unit
        else:
            yield {"kept": unit.first, "prompts": unit.prompts}
    selection.check_used()
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
    seen = _contexts(source, request, text_side, start, drawn)
    for task in tasks(seen, request.tokens_per_batch, start, drawn):
        if request.selects_prompts:
            for context in task.contexts:
                request.selection.select(context)
        yield Unit(0, 0, start, start, 0, False, (task,), 0)
    if request.selects_prompts:
        request.selection.check_used()
    yield {"end": True, "prompts": drawn.prompts, "digest": drawn.digest, "first": None}


def _contexts(
    source: Source, request: Request, text_side: TextSide, start: Cursor, drawn: Drawn
) -> Iterator[Context]:
    """All prompts. Those of the windows up to `start`, of which some make no task, are counted as selected from here,
    so that `check_used` speaks of all of the data also where the store has a part of it.
    """
    for context in request.contexts(text_side, source):
        if drawn.windows < start.window and request.selects_prompts:
            request.selection.select(context)
        yield context
