"""How far a first-order estimate agrees with the patches themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from workbench.patching.cells import Cell, Cells
from workbench.patching.gradients import Activations
from workbench.patching.grid import entry_of
from workbench.patching.metrics import MetricFunction
from workbench.patching.replay import Replay

RESAMPLES = 1000


def patched_metric(
    replay: Replay,
    source: Activations,
    own: Activations,
    sites: Sequence[str],
    cells: Cells,
    which: Sequence[Cell],
    metric: MetricFunction,
    keep: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """The metric of some patched runs, by replay.

    Args:
        replay: the base run.
        source, own: site -> [position, ...] activations to put in, and those of the base run.
        sites: one for each layer of the grid.
        cells: how each site is cut into cells.
        which: index of the layer and of the cell in it, for each run.
        metric: logits -> number.
        keep: positions at the end whose logits the metric takes.

    Returns:
        [run] metric, and [run] whether the patch differs from what it replaces; where it does not, nothing is run.
    """
    values = np.full(len(which), float(metric(replay.end_logits(keep)[None])[0]))
    changed = np.zeros(len(which), bool)
    waves: dict[int, list[int]] = {}
    for number, (layer, *cell) in enumerate(which):
        site, at = sites[layer], cells.index(tuple(cell))
        if torch.equal(source[site][at], own[site][at]):
            continue
        changed[number] = True
        start = replay.starts(cell[-1]) if "position" in cells.axes else 0
        waves.setdefault(start, []).append(number)
    for start, numbers in waves.items():
        entries = []
        for number in numbers:
            layer, *cell = which[number]
            site = sites[layer]
            entries.append(entry_of(replay, site, source[site], cells, tuple(cell), start))
        for part, logits in replay.logits_in_parts(entries, start, keep):
            values[[numbers[i] for i in part]] = metric(logits).double().cpu().numpy()
    return values, changed


def agreement(estimate: np.ndarray, exact: np.ndarray, seed: int) -> dict[str, Any]:
    """Rank (Spearman) and linear (Pearson) correlation, over cells, of the means over pairs.

    Args:
        estimate, exact: [pair, cell] effects.
        seed: of the permutations and the bootstrap.

    Returns:
        `n` cells; for both correlations r its value, `r_p` (share of permutations of the cells with as large an |r|;
        neighbouring cells are alike, so it is a lower bound) and, with several pairs, `r_interval` (95 % bootstrap
        interval over pairs). None where a correlation does not exist: fewer than three cells, or all equal.
    """
    n_pairs, n = estimate.shape
    rng = np.random.default_rng(seed)
    found: dict[str, Any] = {"n": int(n)}
    for name, of in (("spearman", _ranks), ("pearson", np.asarray)):
        a, b = of(estimate.mean(0)[None]), of(exact.mean(0)[None])
        r = float(_correlation(a, b)[0]) if n > 2 else np.nan
        found[name] = _number(r)
        null = _correlation(rng.permuted(np.repeat(a, RESAMPLES, 0), axis=1), b) if np.isfinite(r) else None
        found[f"{name}_p"] = (
            None if null is None else _number((1 + (np.abs(null) >= abs(r) - 1e-12).sum()) / (1 + RESAMPLES))
        )
        if n_pairs > 1:
            found[f"{name}_interval"] = _interval(estimate, exact, of, rng) if np.isfinite(r) else None
    return found


def _interval(
    estimate: np.ndarray,
    exact: np.ndarray,
    of: Callable[[np.ndarray], np.ndarray],
    rng: np.random.Generator,
) -> list[float | None]:
    n_pairs = len(estimate)
    weights = rng.multinomial(n_pairs, np.full(n_pairs, 1 / n_pairs), size=RESAMPLES) / n_pairs
    r = _correlation(of(weights @ estimate), of(weights @ exact))
    ends = np.nanquantile(r, [0.025, 0.975]) if np.isfinite(r).any() else (np.nan, np.nan)
    return [_number(float(end)) for end in ends]


def _ranks(values: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    return rankdata(values, axis=-1)


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[row] Pearson correlation of the rows of [row, cell] arrays; NaN where one has no spread."""
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    scale = np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(scale > 0, (a * b).sum(-1) / scale, np.nan)


def _number(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None
