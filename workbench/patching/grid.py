"""Layer × position and layer × head grids of one pair of runs, column by column.

All rows that are patched at one position begin there, whatever their layer, so a column of the grid is one wave.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from workbench.hooks.session import EditFunction
from workbench.patching.metrics import MetricFunction
from workbench.patching.replay import Entry, Replay
from workbench.progress import Progress


@torch.inference_mode()
def fill_grid(
    replay: Replay,
    sources: Sequence[Mapping[str, Tensor]],
    own: Mapping[str, Tensor] | None,
    sites: Sequence[str],
    kind: str,
    metric: MetricFunction,
    tokens_per_call: int,
    progress: Progress,
) -> tuple[np.ndarray, int]:
    """The metric of every patched run.

    Args:
        replay: the run that is patched.
        sources: what is put in: of each source, site -> [position, ...] activations.
        own: the base run's activations, to leave out patches that change nothing; None runs every cell.
        sites: one for each layer of the grid.
        kind: `z` patches a head over all positions, the others a position.
        metric: logits -> number.
        tokens_per_call: tokens in one replayed batch.
        progress: one item a column.

    Returns:
        [source, layer, position or head], and how many cells of the first source were left out.
    """
    layers = [int(site.split(".")[1]) for site in sites]
    n_columns = sources[0][sites[0]].shape[1] if kind == "z" else replay.length
    grid = np.full((len(sources), len(sites), n_columns), float(metric(replay.logits[None])[0]))
    changed = [[_changed(source[site], own, site, kind) for site in sites] for source in sources]
    for column in range(n_columns):
        start = 0 if kind == "z" else replay.starts(column)
        cells, entries = [], []
        for s, source in enumerate(sources):
            for i, (layer, site) in enumerate(zip(layers, sites, strict=True)):
                if changed[s][i] is None or column in changed[s][i]:  # type: ignore[operator]
                    cells.append((s, i, column))
                    entries.append(_entry(replay, layer, site, source[site], kind, column, start))
        for chunk in replay.chunks(entries, tokens_per_call):
            values = metric(replay.logits_of([entries[i] for i in chunk], start)).float().cpu().numpy()
            for i, value in zip(chunk, values, strict=True):
                grid[cells[i]] = value
        progress.advance()
    whole = len(sites) * n_columns
    run = sum(n_columns if some is None else len(some) for some in changed[0])
    return grid, whole - run


def _entry(
    replay: Replay, layer: int, site: str, source: Tensor, kind: str, column: int, start: int
) -> Entry:
    if kind in ("resid_pre", "resid_post"):
        first = layer + (kind == "resid_post")
        stream = replay.inputs[first][start:].clone()
        stream[column - start] = source[column].to(stream)
        return Entry(first, stream)
    return Entry(layer, replay.inputs[layer][start:], {site: _put(source, kind, column, start)})


def _put(source: Tensor, kind: str, column: int, start: int) -> EditFunction:
    def edit(activation: Tensor) -> Tensor:
        if kind == "z":
            activation[:, column] = source[start:, column].to(activation)
        else:
            activation[column - start] = source[column].to(activation)
        return activation

    return edit


def _changed(source: Tensor, own: Mapping[str, Tensor] | None, site: str, kind: str) -> set[int] | None:
    """Positions (or heads) at which the patch differs, in any bit, from what it replaces; None: take all."""
    if own is None:
        return None
    differs = source.to(own[site].device) != own[site]
    per_column = differs.any(-1).any(0) if kind == "z" else differs.flatten(1).any(-1)
    return set(per_column.nonzero().flatten().tolist())
