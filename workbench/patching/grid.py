"""Grids of patched runs, column by column.

All rows that are patched at one position begin there, whatever their layer and pair, so a column of the grids of
several pairs is one wave. Rows that are patched at all positions begin at the first that the patch changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.hooks.session import EditFunction
from workbench.patching import wave
from workbench.patching.cells import Cell, Cells, Index
from workbench.patching.metrics import MetricFunction
from workbench.patching.replay import Entry, Replay
from workbench.progress import Progress

Done = Callable[[np.ndarray, int], None]
"""Told of a grid as it is ([source, layer, ...]; NaN where nothing was computed yet) and of columns done."""


@dataclass
class Grid:
    """One pair's grid, and what it takes to fill it."""

    replay: Replay
    """The run that is patched."""
    sources: Sequence[Mapping[str, Tensor]]
    """What is put in: of each source, site -> activation."""
    own: Mapping[str, Tensor] | None
    """The base run's activations, to leave out patches that change nothing; None runs every cell."""
    cells: Cells
    """What is patched at each site."""
    metric: MetricFunction
    done: Done = lambda _grid, _columns: None
    """Told after each column."""
    begun: tuple[np.ndarray, int] | None = None
    """Grid and columns done, of an earlier run that was interrupted."""
    values: np.ndarray = field(init=False)
    """[source, layer, *axes of the cells] the metric of every patched run."""
    left_out: int = 0
    """Cells of the first source that were not run."""


Place = tuple[Grid, tuple[int, ...]]


@torch.inference_mode()
def fill(
    grids: Sequence[Grid], sites: Sequence[str], *, keep: int, tokens_per_call: int, progress: Progress
) -> None:
    """Compute the values of some grids of equal length and cells, together.

    Args:
        grids: one for each pair.
        sites: one for each layer of the grids.
        keep: positions at the end of the prompt whose logits the metric takes.
        tokens_per_call: tokens in one replayed batch.
        progress: one item a column and grid.
    """
    untouched = [float(g.metric(g.replay.end_logits(keep)[None])[0]) for g in grids]
    differs = [[_differs(source, g.own, sites) for source in g.sources] for g in grids]
    for g in grids:
        shape = (len(g.sources), len(sites), *g.cells.axes.values())
        g.values = np.full(shape, np.nan) if g.begun is None else g.begun[0].copy()
    tokens = _tokens(grids) if keep == 1 else None
    for batch in _batches(grids, sites, tokens_per_call):
        rows: dict[int, list[tuple[wave.Row, Place]]] = {}
        for g, base, changes in zip(grids, untouched, differs, strict=True):
            for number, position, place, site in _cells(g, sites, batch):
                every = changes[place[0]]
                changed = None if every is None else every[site]
                first = _first_change(changed, g.cells, place[2:], position)
                if first is None:
                    g.left_out += place[0] == 0
                    g.values[place] = base
                elif g.begun is None or number >= g.begun[1]:
                    start = g.replay.starts(first)
                    entry = entry_of(g.replay, site, g.sources[place[0]][site], g.cells, place[2:], start)
                    rows.setdefault(start, []).append(((g.replay, entry), (g, place)))
        for start, some in rows.items():
            for part, logits in wave.logits_in_parts(
                [row for row, _ in some], start, keep, tokens, tokens_per_call
            ):
                _judge([some[i][1] for i in part], logits, tokens)
        for number, _, _ in batch:
            for g in grids:
                if g.begun is None or number >= g.begun[1]:
                    g.done(g.values, number + 1)
                progress.advance()


Column = tuple[int, int | None, Sequence[Cell]]
"""Number, the position at which its rows begin (None: anywhere), cells."""


def _batches(grids: Sequence[Grid], sites: Sequence[str], tokens_per_call: int) -> Iterator[list[Column]]:
    """Columns that go up together: one where all its rows begin at one position, else as many as a call holds."""
    columns: list[Column] = [
        (i, position, cells) for i, (position, cells) in enumerate(grids[0].cells.columns)
    ]
    per_column = len(sites) * sum(len(g.sources) for g in grids) * grids[0].replay.length
    size = max(1, tokens_per_call // per_column) if columns[0][1] is None else 1
    for at in range(0, len(columns), size):
        yield columns[at : at + size]


def _first_change(changed: Tensor | None, cells: Cells, cell: Cell, position: int | None) -> int | None:
    """The first position that a patch changes (that it is made at, if that is one); None where it changes nothing."""
    if changed is None:
        return position or 0
    where = changed[cells.index(cell)]
    if position is not None:
        return position if bool(where.any()) else None
    found = where.flatten(1).any(-1).nonzero()
    return int(found[0]) if len(found) else None


def _cells(
    g: Grid, sites: Sequence[str], batch: Sequence[Column]
) -> Iterator[tuple[int, int | None, tuple[int, ...], str]]:
    """For each cell of some columns: the column's number and position, where in the grid it is, and at which site."""
    for number, position, column in batch:
        for s in range(len(g.sources)):
            for i, site in enumerate(sites):
                for cell in column:
                    yield number, position, (s, i, *cell), site


def _tokens(grids: Sequence[Grid]) -> list[int] | None:
    """The tokens that the metrics are made of, where each says so (`tokens`, `of_tokens`); None: any."""
    each = [getattr(g.metric, "tokens", None) for g in grids]
    return None if None in each else sorted({token for some in each for token in some or ()})


def _judge(places: Sequence[Place], logits: Tensor, tokens: Sequence[int] | None) -> None:
    """Each pair's metric on its own rows, of all logits or of those of `tokens`."""
    by_grid: dict[int, list[int]] = {}
    for row, (g, _) in enumerate(places):
        by_grid.setdefault(id(g), []).append(row)
    for some in by_grid.values():
        g = places[some[0]][0]
        metric: Any = g.metric
        if tokens is None:
            values = metric(logits[some])
        else:
            values = metric.of_tokens(logits[some][:, [tokens.index(token) for token in metric.tokens]])
        for row, value in zip(some, values.float().cpu().tolist(), strict=True):
            g.values[places[row][1]] = value


def entry_of(replay: Replay, site: str, source: Tensor, cells: Cells, cell: Cell, start: int) -> Entry:
    """The row in which one cell of a site is replaced by what a source has there, from position `start` on."""
    layer, new = wave.block_of(site), source[:, start:] if cells.kind == "pattern" else source[start:]
    if cells.kind in ("resid_pre", "resid_post"):
        first = layer + (cells.kind == "resid_post")
        return Entry(first, _put(new, cells.index(cell, start))(replay.inputs[first][start:].clone()))
    return Entry(layer, replay.inputs[layer][start:], {site: _put(new, cells.index(cell, start))})


def _put(new: Tensor, at: Index) -> EditFunction:
    def edit(activation: Tensor) -> Tensor:
        activation[at] = new[at].to(activation)
        return activation

    return edit


def _differs(
    source: Mapping[str, Tensor], own: Mapping[str, Tensor] | None, sites: Sequence[str]
) -> dict[str, Tensor] | None:
    """Where the patch differs, in any bit, from what it replaces; None: take all."""
    if own is None:
        return None
    return {site: (source[site].to(own[site].device) != own[site]).cpu() for site in sites}
