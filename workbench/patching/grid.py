"""Grids of one pair of runs, column by column.

All rows that are patched at one position begin there, whatever their layer, so a column of the grid is one wave.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from workbench.hooks.session import EditFunction
from workbench.patching.cells import Cell, Cells
from workbench.patching.metrics import MetricFunction
from workbench.patching.replay import Entry, Replay
from workbench.progress import Progress

Done = Callable[[np.ndarray, int], None]
"""Told of the grid as it is ([source, layer, ...]; NaN where nothing was computed yet) and of columns done."""


@torch.inference_mode()
def fill_grid(
    replay: Replay,
    sources: Sequence[Mapping[str, Tensor]],
    own: Mapping[str, Tensor] | None,
    sites: Sequence[str],
    cells: Cells,
    metric: MetricFunction,
    *,
    keep: int,
    tokens_per_call: int,
    progress: Progress,
    begun: tuple[np.ndarray, int] | None = None,
    done: Done = lambda _grid, _columns: None,
) -> tuple[np.ndarray, int]:
    """The metric of every patched run.

    Args:
        replay: the run that is patched.
        sources: what is put in: of each source, site -> activation.
        own: the base run's activations, to leave out patches that change nothing; None runs every cell.
        sites: one for each layer of the grid.
        cells: what is patched in each of them.
        metric: logits -> number.
        keep: positions at the end of the prompt whose logits the metric takes.
        tokens_per_call: tokens in one replayed batch.
        progress: one item a column.
        begun: grid and columns done, of an earlier run that was interrupted.
        done: told after each column.

    Returns:
        [source, layer, *axes of the cells], and how many cells of the first source were left out.
    """
    layers = [int(site.split(".")[1]) for site in sites]
    grid = np.full((len(sources), len(sites), *cells.axes.values()), np.nan)
    finished = 0
    if begun is not None:
        grid, finished = begun[0].copy(), begun[1]
    untouched = float(metric(replay.end_logits(keep)[None])[0])
    differs = [_differs(source, own, sites) for source in sources]
    left_out = 0
    for number, (position, column) in enumerate(cells.columns):
        start = 0 if position is None else replay.starts(position)
        entries, places = [], []
        for s, source in enumerate(sources):
            for i, (layer, site) in enumerate(zip(layers, sites, strict=True)):
                for cell in column:
                    place = (s, i, *cell)
                    changes = differs[s]
                    if changes is not None and not bool(changes[site][cells.index(cell)].any()):
                        left_out += s == 0
                        grid[place] = untouched
                    elif number >= finished:
                        entries.append(_entry(replay, layer, site, source[site], cells, cell, start))
                        places.append(place)
        for chunk in replay.chunks(entries, tokens_per_call):
            logits = replay.logits_of([entries[i] for i in chunk], start, keep)
            for i, value in zip(chunk, metric(logits).float().cpu().tolist(), strict=True):
                grid[places[i]] = value
        if number >= finished:
            done(grid, number + 1)
        progress.advance()
    return grid, left_out


def _entry(
    replay: Replay, layer: int, site: str, source: Tensor, cells: Cells, cell: Cell, start: int
) -> Entry:
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
