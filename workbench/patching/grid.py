"""Grids of patched runs, column by column.

All rows that are patched at one position begin there, whatever their layer and pair, so a column of the grids of
several pairs is one wave.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from workbench.hooks.session import EditFunction
from workbench.patching import wave
from workbench.patching.cells import Cell, Cells
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
    for number, (position, column) in enumerate(grids[0].cells.columns):
        start = 0 if position is None else grids[0].replay.starts(position)
        rows: list[wave.Row] = []
        places: list[Place] = []
        for g, base, changes in zip(grids, untouched, differs, strict=True):
            for place, site in _cells(g, sites, column):
                changed = changes[place[0]]
                if changed is not None and not bool(changed[site][g.cells.index(place[2:])].any()):
                    g.left_out += place[0] == 0
                    g.values[place] = base
                elif g.begun is None or number >= g.begun[1]:
                    source = g.sources[place[0]][site]
                    rows.append((g.replay, _entry(g.replay, site, source, g.cells, place[2:], start)))
                    places.append((g, place))
        for chunk in wave.chunks([entry for _, entry in rows], tokens_per_call):
            logits = wave.logits_of([rows[i] for i in chunk], start, keep)
            _judge([places[i] for i in chunk], logits)
        for g in grids:
            if g.begun is None or number >= g.begun[1]:
                g.done(g.values, number + 1)
            progress.advance()


def _cells(g: Grid, sites: Sequence[str], column: Sequence[Cell]) -> list[tuple[tuple[int, ...], str]]:
    """Where in the grid, and at which site, the cells of a column are."""
    return [
        ((s, i, *cell), site)
        for s in range(len(g.sources))
        for i, site in enumerate(sites)
        for cell in column
    ]


def _judge(places: Sequence[Place], logits: Tensor) -> None:
    """Each pair's metric on its own rows."""
    by_grid: dict[int, list[int]] = {}
    for row, (g, _) in enumerate(places):
        by_grid.setdefault(id(g), []).append(row)
    for some in by_grid.values():
        g = places[some[0]][0]
        for row, value in zip(some, g.metric(logits[some]).float().cpu().tolist(), strict=True):
            g.values[places[row][1]] = value


def _entry(replay: Replay, site: str, source: Tensor, cells: Cells, cell: Cell, start: int) -> Entry:
    layer = wave.block_of(site)
    if cells.kind in ("resid_pre", "resid_post"):
        first = layer + (cells.kind == "resid_post")
        stream = replay.inputs[first][start:].clone()
        stream[cells.index(cell, start)] = source[cells.index(cell)].to(stream)
        return Entry(first, stream)
    return Entry(layer, replay.inputs[layer][start:], {site: _put(source, cells, cell, start)})


def _put(source: Tensor, cells: Cells, cell: Cell, start: int) -> EditFunction:
    def edit(activation: Tensor) -> Tensor:
        activation[cells.index(cell, start)] = source[cells.index(cell)].to(activation)
        return activation

    return edit


def _differs(
    source: Mapping[str, Tensor], own: Mapping[str, Tensor] | None, sites: Sequence[str]
) -> dict[str, Tensor] | None:
    """Where the patch differs, in any bit, from what it replaces; None: take all."""
    if own is None:
        return None
    return {site: (source[site].to(own[site].device) != own[site]).cpu() for site in sites}
