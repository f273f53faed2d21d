"""A ridge probe of numbers at every site: how much of a quantity is linearly readable, more than when shuffled?

    R² = 1 - Σ (y - ŷ)² / Σ (y - ȳ)²        MAE = mean |y - ŷ|

over out-of-fold predictions ŷ, ȳ the mean of the training rows of each fold (so that no skill is 0, and worse than the
mean is below 0). Per site, position and fold the training rows are factorised once; all targets and their permutations
are columns, and each takes the penalty with the least exact leave-one-out error on the training rows
(`probes.solve.ridge`). Intervals resample groups (rows without groups). The control permutes each target by itself:
groups in which it has one value as wholes, the rows of the others among themselves.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float64, Int64
from sklearn.model_selection import GroupKFold, KFold
from torch import Tensor

from probes.folds import whole_number
from probes.labels import Rows, arrange, read
from probes.scores import Bootstrap
from probes.solve.ridge import ridge
from probes.solve.spectrum import Spectrum
from probes.source import Source, open_source
from workbench.activations import Activations
from workbench.errors import DataError
from workbench.progress import Progress, Silent
from workbench.provenance import provenance
from workbench.results import Result, array

PENALTIES = tuple(10.0**k for k in range(-3, 8))
"""Ridge penalties (scikit-learn's alpha) on standardised rows."""
MEANING = {
    "r2": ("R², out of fold", ""),
    "r2_low": ("R², lower end of the 95 % interval", ""),
    "r2_high": ("R², upper end of the 95 % interval", ""),
    "mae": ("mean absolute error, out of fold", "target"),
    "control_r2": ("R² on permuted targets, mean", ""),
    "control_r2_high": ("R² on permuted targets, highest", ""),
    "penalty": ("ridge penalty of the probe fitted to all rows", ""),
    "weight": ("weight of the probe fitted to all rows", "target / activation"),
    "bias": ("intercept of the probe fitted to all rows", "target"),
}


def regress(
    acts: Any,
    targets: Any,
    *,
    groups: Any = None,
    sites: str | Iterable[str] | None = None,
    folds: int | float = 5,
    penalties: Any = PENALTIES,
    controls: bool = True,
    n_control: int = 5,
    n_bootstrap: int = 1000,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> Result:
    """Fit and cross-validate ridge probes of one or several quantities at every site.

    Args:
        acts: activations, a store or its folder, as in `probes.sweep`.
        targets: numbers, one per prompt or per row, or a dict of such lists by name; of a store also the name of one
            of its labels. Where every prompt has one row, lists are one per prompt, *in the order of prompt numbers*
            (which is not that of a store's rows; see `probes.sweep`).
        groups: one per prompt or row, or the name of a store's label; never in both training and test rows.
        sites: names or globs, of one width; all by default.
        folds: of the cross-validation.
        penalties: ridge penalties to choose from, one or several above 0.
        controls, n_control: permuted targets; `n_control=0` is the same as `controls=False`: no control.
        n_bootstrap, seed: draws for the intervals, 1 or more; of folds and permutations.
        device: where the linear algebra runs.
        progress: stage "probe", one item per site and position.

    Returns:
        A `Result` of kind `probe_numbers` with dims (layer or site, position if several, target) and the variables
        of `MEANING` (`weight` [..., d_model] over raw activations).

    Raises:
        DataError: targets that are no numbers, constant, NaN, or do not match the rows; fewer rows or groups than
            folds; a penalty that is no number above 0; NaN activations.

    Example:
        >>> found = probes.regress(acts, {"a": a, "b": b}, groups=problem)
        >>> found.data["r2"].sel(target="a").values
    """
    progress = progress or Silent()
    started = time.perf_counter()
    n_bootstrap, n_control = (
        whole_number(n_bootstrap, "n_bootstrap", 1),
        whole_number(n_control, "n_control", 0),
    )
    folds, seed, penalties = (
        whole_number(folds, "folds", 0),
        whole_number(seed, "seed", 0),
        _penalties(penalties),
    )
    controls = controls and n_control > 0
    source = open_source(acts)
    named = {str(k): v for k, v in targets.items()} if isinstance(targets, Mapping) else {"target": targets}
    if not named:
        raise DataError(
            "No targets were given: expected numbers, one per prompt or row, or a dict of such lists."
        )
    each = {name: _numbers(name, source, given) for name, given in named.items()}
    if len({len(one) for one in each.values()}) > 1:
        said = ", ".join(f"{name} {len(one)}" for name, one in each.items())
        raise DataError(f"All targets need one number for each of the same rows, but there are: {said}.")
    values = np.stack(list(each.values()))
    parity = np.arange(values.shape[1]) % 2  # rows and groups are matched as for labels; these are no labels
    rows = arrange(source, parity, groups)
    names = source.select(sites)
    fold = _folds(rows, values.shape[1], folds, seed)
    n_permuted = n_control if controls else 0
    columns, level = _with_permutations(values, list(named), rows.groups, n_permuted, seed + 1)
    bootstrap = Bootstrap(rows.groups, len(fold), n=n_bootstrap, seed=seed + 2)
    progress.stage("probe", len(names) * len(rows.index))
    cells = []
    for name in names:
        for index in rows.index:
            x, _ = source.take(name, index, device)
            cells.append(_cell(x, columns, 1 + n_permuted, fold, penalties, bootstrap))
            progress.advance()
    settings = {
        "n": len(fold),
        "folds": folds,
        "grouped": rows.groups is not None,
        "n_groups": len(fold if rows.groups is None else np.unique(rows.groups)),
        "control": f"targets permuted over {level}, {n_permuted} times" if controls else "none",
        "n_bootstrap": n_bootstrap,
    }
    data = _dataset(cells, names, rows, list(named), settings)
    best = {}
    for i, target in enumerate(named):
        some = data["r2"].isel(target=i)
        place = np.unravel_index(int(np.nanargmax(some.values)), some.shape)
        at = data.isel(dict(zip(some.dims, place, strict=True))).isel(target=i)
        best[target] = {str(d): at[d].item() for d in (*some.dims, "site")}
        keys = ("r2", "r2_low", "r2_high", "mae", "control_r2", "control_r2_high")
        best[target] |= {k: round(float(at[k]), 4) + 0.0 for k in keys if k in at}  # no -0.0
    seconds = {**source.provenance.seconds, "probe": round(time.perf_counter() - started, 4)}
    made = provenance(None, seed=seed, seconds=seconds, settings={"collect": source.provenance.settings})
    made = replace(made, model=source.provenance.model, inputs=source.provenance.inputs)
    return Result("probe_numbers", data, made, {"best": best, "n": len(fold), "control": settings["control"]})


def _penalties(given: Any) -> list[float]:
    from probes.sweep import numbers

    found = numbers(given, "penalties")
    if not all(0 < value < float("inf") for value in found):
        raise DataError(
            f"Ridge penalties are numbers above 0, one or several, not {given!r}: the smaller, the freer the probe."
        )
    return found


def _numbers(name: str, source: Source, given: Any) -> Float64[np.ndarray, " row"]:
    if isinstance(given, str) and isinstance(source.holder, Activations):
        raise DataError(
            f"Target {name!r} is no list of numbers but the text {given!r}, which would name a label of a store; these "
            "activations are in memory: give the numbers themselves."
        )
    try:
        values: Any = source.labels(given) if isinstance(given, str) else given
        found = np.asarray(values.tolist() if hasattr(values, "tolist") else list(values), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"Target {name!r} is no list of numbers ({error}): for labels use probes.sweep."
        ) from error
    if found.ndim != 1:
        raise DataError(f"Target {name!r} must be a flat list of numbers, not of shape {list(found.shape)}.")
    bad = np.flatnonzero(~np.isfinite(found))
    if len(bad):
        raise DataError(
            f"{len(bad)} of {len(found)} values of target {name!r} are NaN or infinite, the first at {bad[0]}."
        )
    if len(found) and np.ptp(found) == 0:
        raise DataError(f"Target {name!r} is {found[0]:g} in every row: there is nothing to read.")
    if not isinstance(given, str):
        read(source, found, f"values of target {name!r}")  # refuses the order of a store's rows
    return found


def _folds(rows: Rows, n_rows: int, n: int, seed: int) -> Int64[np.ndarray, " row"]:
    units = n_rows if rows.groups is None else len(np.unique(rows.groups))
    if not 2 <= n <= units:
        of = "rows" if rows.groups is None else "groups"
        raise DataError(f"{n} folds of {units} {of}: give at least 2, and no more than there are {of}.")
    empty = np.zeros((n_rows, 1))
    if rows.groups is None:
        parts = KFold(n, shuffle=True, random_state=seed).split(empty)
    else:
        parts = GroupKFold(n, shuffle=True, random_state=seed).split(empty, groups=rows.groups)
    fold = np.zeros(n_rows, dtype=np.int64)
    for index, (_, held) in enumerate(parts):
        fold[held] = index
    return fold


def _with_permutations(
    values: np.ndarray, names: Sequence[str], groups: np.ndarray | None, n: int, seed: int
) -> tuple[Float64[np.ndarray, "column row"], str]:
    """Each target followed by its permutations, which no other target changes, and over what they go."""
    columns: list[np.ndarray] = []
    levels: dict[str, list[str]] = {}
    for name, target in zip(names, values, strict=True):
        random = np.random.default_rng(seed)
        unit, pools, level = _exchangeable(target, groups)
        _, first = np.unique(unit, return_index=True)
        columns.append(target)
        for _ in range(n):
            drawn = target[first]
            for pool in pools:
                drawn[pool] = target[first][random.permutation(pool)]
            columns.append(drawn[unit])
        levels.setdefault(level, []).append(name)
    if len(levels) == 1:
        return np.stack(columns), next(iter(levels))
    return np.stack(columns), " or ".join(f"{level} ({', '.join(some)})" for level, some in levels.items())


def _exchangeable(target: np.ndarray, groups: np.ndarray | None) -> tuple[np.ndarray, list[np.ndarray], str]:
    """[row] units, the pools of them that are permuted, and what those are."""
    row = np.arange(len(target))
    if groups is None:
        return row, [row], "rows"
    member = np.unique(groups, return_inverse=True)[1]
    low, high = np.full(member.max() + 1, np.inf), np.full(member.max() + 1, -np.inf)
    np.minimum.at(low, member, target)
    np.maximum.at(high, member, target)
    whole = low == high
    unit = np.unique(np.where(whole[member], member, len(whole) + row), return_inverse=True)[1]
    n_whole = int(whole.sum())
    pools = [np.arange(n_whole), np.arange(n_whole, int(unit.max()) + 1)]
    if whole.all() or not whole.any():
        return unit, [pool for pool in pools if len(pool)], "groups" if whole.all() else "rows"
    return unit, pools, f"groups, the rows of {len(whole) - n_whole} mixed ones among themselves"


def _cell(
    x: Tensor,
    columns: np.ndarray,
    per_target: int,
    fold: np.ndarray,
    penalties: Sequence[float],
    bootstrap: Bootstrap,
) -> list[dict[str, Any]]:
    y = torch.from_numpy(columns).to(x)
    predicted, mean = np.zeros_like(columns), np.zeros_like(columns)
    for index in range(int(fold.max()) + 1):
        held = torch.from_numpy(fold == index).to(x.device)
        spectrum = Spectrum.of(x[~held])
        found = ridge(spectrum, y[:, ~held], penalties)
        predicted[:, fold == index] = (spectrum.place(x[held]) @ found.u + found.intercept).T.cpu().numpy()
        mean[:, fold == index] = found.intercept.cpu().numpy()[:, None]
    wrong, spread = (columns - predicted) ** 2, (columns - mean) ** 2
    r2 = 1 - wrong.sum(1) / spread.sum(1)
    spectrum = Spectrum.of(x)
    final = ridge(spectrum, y[::per_target], penalties)
    w, b = spectrum.weights(final.u, final.intercept)
    cells = []
    for i, at in enumerate(range(0, len(columns), per_target)):
        low, high = _interval(bootstrap, wrong[at], spread[at])
        cell = {
            "r2": r2[at],
            "r2_low": low,
            "r2_high": high,
            "mae": float(np.abs(columns[at] - predicted[at]).mean()),
            "penalty": float(final.penalty[i]),
            "weight": w[:, i].cpu().numpy().astype(np.float32),
            "bias": float(b[i]),
        }
        if per_target > 1:
            null = r2[at + 1 : at + per_target]
            cell |= {"control_r2": float(null.mean()), "control_r2_high": float(null.max())}
        cells.append(cell)
    return cells


def _interval(bootstrap: Bootstrap, wrong: np.ndarray, spread: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of R², resampling groups."""
    size = bootstrap.counts.shape[1]
    above = bootstrap.counts @ np.bincount(bootstrap.unit, weights=wrong, minlength=size)
    below = bootstrap.counts @ np.bincount(bootstrap.unit, weights=spread, minlength=size)
    low, high = np.quantile(1 - above[below > 0] / below[below > 0], [0.025, 0.975])
    return float(low), float(high)


def _dataset(
    cells: list[list[dict[str, Any]]],
    names: list[str],
    rows: Rows,
    targets: list[str],
    settings: dict[str, Any],
) -> xr.Dataset:
    from probes.sweep_data import axes

    sizes, coords = axes(names, rows)
    sizes["target"], coords["target"] = len(targets), targets
    flat = [cell for some in cells for cell in some]
    variables = {}
    for key, (text, units) in MEANING.items():
        if key not in flat[0]:
            continue
        values = np.stack([cell[key] for cell in flat])
        tail = ("d_model",) if key == "weight" else ()
        shaped = values.reshape(*sizes.values(), *values.shape[1:])
        variables[key] = array((*sizes, *tail), shaped, long_name=text, units=units)
    return xr.Dataset(variables, coords, attrs=settings)
