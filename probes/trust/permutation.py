"""Permutation p-values for every cell of a sweep, corrected for how many cells there are.

For cell c (site, position, kind) let T_c be the held-out AUC and T_c^(1) … T_c^(m) the same after permuting the
labels, folds and groups kept (`control_tasks.exchange`). One permutation is used for all cells: their dependence stays.

    p         (b + 1) / (m + 1),  b = #{r : T_c^(r) ≥ T_c}          (Phipson and Smyth 2010, arXiv:1603.05766)
    p_max     step-down max-statistic (Westfall and Young 1993, algorithm 2.8 on statistics of one scale): cells ordered
              T_(1) ≥ T_(2) ≥ …, p_(k) = max_{l ≤ k} (1 + #{r : max_{j ≥ l} T_(j)^(r) ≥ T_(l)}) / (m + 1)
    p_holm    Holm 1979: max_{l ≤ k} (K − l + 1) p_(l), at most 1                       both bound the family-wise error
    p_bh      Benjamini and Hochberg 1995: min_{l ≥ k} K p_(l) / l                      bounds the false discovery rate

p is never 0, and exact for any number of rows where the folds depend on the labels through nothing but what permuting
keeps: rows without groups, groups with rows of both labels, groups of one label and equal size. Holm and BH of
permutation p-values need K / (m + 1) to be small, p_max does not.

Many permutations for the price of one: a `mass_mean` or `ridge` score is linear in the labels,

    S = H c(Y)        H = X_test X_trainᵀ,                  c = 1/n₁ or −1/n₀     (mass_mean)
                      H = Z_test (ZᵀZ + I/C)⁻¹ Zᵀ,          c = ±1                (ridge)

so all m label vectors are one product of [test, train] and [train, m] for each fold. AUC sees neither scale nor offset
(a sweep rescales ridge scores to log-odds, which turns them round where they are worse than chance in training).
Other kinds are fitted m times; `attrs["how"]` says which.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float64, Int64
from scipy.stats import false_discovery_control, rankdata

from probes.folds import assign_folds
from probes.labels import arrange
from probes.source import open_source
from probes.trust.control_tasks import exchange, shuffled_labels
from probes.trust.fitting import (
    check_kind,
    held_out,
    kinds_of,
    ridge_weights,
    scale_of,
    sites_of,
    threads_for,
    whole_settings,
)
from probes.trust.labels import site_axis
from workbench.activations import Activations
from workbench.errors import DataError
from workbench.progress import Progress, Silent
from workbench.provenance import provenance
from workbench.results import Result, array

if TYPE_CHECKING:
    from workbench.store import Store

ROUNDING = 1e-12
"""Scores closer than this share of the largest of their fold are one."""
LINEAR = ("mass_mean", "ridge")
"""Kinds whose scores are linear in the labels: the fast path."""
NAMES = {
    "auc": "AUC, out of fold",
    "p": "p-value of the cell alone",
    "p_max": "p-value corrected over all cells by the step-down max-statistic (Westfall and Young)",
    "p_holm": "p-value corrected over all cells (Holm)",
    "p_bh": "p-value corrected over all cells (Benjamini and Hochberg)",
    "null_mean": "AUC on permuted labels, mean",
    "null_high": "AUC on permuted labels, 95 % quantile",
}


def smoother(
    train: Float64[np.ndarray, "train d"],
    test: Float64[np.ndarray, "test d"],
    kind: str,
    penalty: float = 1.0,
) -> Float64[np.ndarray, "test train"]:
    """H of the module docstring: held-out scores, up to scale and offset, are H times a function of the labels."""
    if kind == "mass_mean":
        centre = train.mean(0)
        return (test - centre) @ (train - centre).T
    mean, std = scale_of(train)
    return ((test - mean) / std) @ ridge_weights((train - mean) / std, penalty)


def permuted_aucs(
    x: Float64[np.ndarray, "row d"],
    targets: Bool[np.ndarray, "target row"],
    fold: Int64[np.ndarray, " row"],
    kind: str = "mass_mean",
    *,
    penalty: float = 1.0,
) -> Float64[np.ndarray, " target"]:
    """Held-out AUC of one kind of probe for each label vector, through one matrix product a fold where it is linear.

    Example:
        >>> permuted_aucs(x, np.concatenate([y[None], shuffled_labels(y, fold, n=999)]), fold)[0]
    """
    check_kind(kind)
    if kind not in LINEAR:
        return aucs(held_out(x, targets, fold, kind, penalty=penalty), targets, fold)
    scores = np.zeros(targets.shape)
    with threads_for(x.size):
        for index in np.unique(fold):
            train, test = fold != index, fold == index
            seen = targets[:, train]
            columns = _per_class(seen) if kind == "mass_mean" else np.where(seen, 1.0, -1.0)
            scores[:, test] = columns @ smoother(x[train], x[test], kind, penalty).T
    return aucs(scores, targets, fold)


def _per_class(targets: np.ndarray) -> np.ndarray:
    """1 / n₁ for positive rows, −1 / n₀ for the others: times the rows it is μ₁ − μ₀."""
    up = targets.astype(np.float64)
    return up / up.sum(1, keepdims=True) - (1 - up) / (1 - up).sum(1, keepdims=True)


def aucs(
    scores: Float64[np.ndarray, "target row"],
    targets: Bool[np.ndarray, "target row"],
    fold: Int64[np.ndarray, " row"],
) -> Float64[np.ndarray, " target"]:
    """AUC over pairs of one fold for many label vectors at once, by rank sums; ties count one half.

    Scores that differ by rounding alone are ties: equal rows need not come out of a matrix product equal to the last
    bit.
    """
    won, total = np.zeros(len(scores)), np.zeros(len(scores))
    for index in np.unique(fold):
        here = fold == index
        some, up = scores[:, here], targets[:, here]
        n_up = up.sum(1).astype(np.float64)
        order = np.argsort(some, axis=1)
        ordered = np.take_along_axis(some, order, axis=1)
        same = np.diff(ordered, axis=1) <= ROUNDING * np.abs(ordered).max(1, keepdims=True)
        if same.any():
            level = np.zeros_like(ordered)
            np.cumsum(~same, axis=1, out=level[:, 1:])
            np.put_along_axis(level, order, level.copy(), axis=1)
            ranks = (rankdata(level, axis=1) * up).sum(1)
        else:
            ranks = np.take_along_axis(up, order, axis=1) @ np.arange(1.0, some.shape[1] + 1)
        won += ranks - n_up * (n_up + 1) / 2
        total += n_up * (some.shape[1] - n_up)
    return won / total


def p_values(
    observed: Float64[np.ndarray, " cell"], null: Float64[np.ndarray, "draw cell"]
) -> dict[str, Float64[np.ndarray, " cell"]]:
    """`p`, `p_max`, `p_holm`, `p_bh` of each cell; large statistics speak against the null hypothesis.

    Args:
        observed: statistics.
        null: the same under each permutation (all cells under the same one).

    Raises:
        DataError: shapes that do not match, no cell, or NaN (which would count as the strongest of statistics).

    Example:
        >>> p_values(np.array([0.9]), np.zeros((99, 1)))["p"]
        array([0.01])
    """
    observed, null = np.asarray(observed, dtype=np.float64), np.asarray(null, dtype=np.float64)
    if observed.ndim != 1 or null.ndim != 2 or not len(observed) or null.shape[1] != len(observed):
        raise DataError(
            f"Expected statistics [cell] and [draw, cell], got shapes {list(observed.shape)} and {list(null.shape)}."
        )
    bad = np.flatnonzero(np.isnan(observed) | np.isnan(null).any(0))
    if len(bad):
        raise DataError(
            f"{len(bad)} of {len(observed)} cells have a statistic that is NaN, the first is cell {bad[0]}: leave them "
            "out, they have no p-value."
        )
    m, k = null.shape
    reach = observed - 1e-12  # a permutation that is the identity gives the same up to rounding
    p = ((null >= reach).sum(0) + 1) / (m + 1)
    order = np.argsort(-observed, kind="stable")
    later = np.maximum.accumulate(null[:, order[::-1]], axis=1)[:, ::-1]  # max over cells from the l-th on
    stepped = ((later >= reach[order]).sum(0) + 1) / (m + 1)
    p_max, p_holm = np.empty(k), np.empty(k)
    p_max[order] = np.maximum.accumulate(stepped)
    by_p = np.argsort(p, kind="stable")
    p_holm[by_p] = np.minimum(np.maximum.accumulate(p[by_p] * np.arange(k, 0, -1)), 1.0)
    return {"p": p, "p_max": p_max, "p_holm": p_holm, "p_bh": false_discovery_control(p, method="bh")}


def permutation_test(
    acts: Activations | Store | str | Path,
    labels: Any,
    *,
    kinds: str | Iterable[str] = "mass_mean",
    groups: Any = None,
    sites: str | Iterable[str] | None = None,
    positive: Any = None,
    folds: int = 5,
    penalty: float = 1.0,
    n: int = 999,
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """p-values for every site, position and kind of a sweep, alone and corrected over all of them.

    Args:
        acts, labels, groups, sites, positive, folds, penalty: as in `probes.sweep` (so also a store, or its folder, and
            the name of a label in it), with its folds at equal `seed`.
        kinds: `mass_mean` and `ridge` take one matrix product a fold; any other is fitted `n` times.
        n: permutations. The least p-value is 1 / (n + 1).
        seed: of folds and permutations.
        progress: stage "permute", one item per cell.

    Returns:
        A `Result` of kind `probe_permutation` with dims (layer | site, [position], probe) and the variables in `NAMES`,
        and `null_max` [permutation], the largest AUC of all cells under each permutation. Summary: the cells with
        p_max ≤ 0.05, the best cell.

    Raises:
        DataError: as `probes.sweep`; n below 19; groups that leave so few ways to permute the labels that no p-value
            could be below 0.05.

    Example:
        >>> found = permutation_test(acts, statements.labels, groups=statements.groups)
        >>> found.data["p_max"].sel(layer=20)
    """
    progress, started = progress or Silent(), time.perf_counter()
    names = kinds_of(kinds)
    folds, n, seed = whole_settings(penalty, folds=folds, n=n, seed=seed)
    if n < 19:
        raise DataError(f"n must be at least 19 (else no p is below 0.05), but is {n}.")
    source = open_source(acts)
    rows = arrange(source, labels, groups, positive)
    if len(rows.labels) > 1 or len(rows.classes) != 2:
        raise DataError(
            f"A permutation test needs one set of two classes, these are {list(rows.classes)[:8]}."
        )
    where = sites_of(acts, sites)
    fold = assign_folds(rows.positive, rows.groups, n=folds, seed=seed)
    ways = exchange(rows.positive, fold, rows.groups)
    if ways.log_count < np.log(20):
        raise DataError(
            f"Folds and groups leave {np.exp(ways.log_count):.0f} ways to permute the labels: no p-value could be "
            "below 0.05. Give more prompts, smaller groups, or fewer folds."
        )
    permuted = shuffled_labels(rows.positive, fold, rows.groups, n=n, seed=seed + 1)
    targets = np.concatenate([rows.positive[None], permuted])
    progress.stage("permute", len(where) * len(rows.index) * len(names))
    found = []
    for site in where:
        for index in rows.index:
            x = source.take(site, index)[0].numpy()
            for kind in names:
                found.append(permuted_aucs(x, targets, fold, kind, penalty=penalty))
                progress.advance()
    every = np.stack(found)  # [cell, 1 + n]
    attrs = {
        "n": len(rows.positive),
        "n_positive": int(rows.positive.sum()),
        "positive": str(rows.classes[1]),
        "negative": str(rows.classes[0]),
        "folds": folds,
        "grouped": rows.groups is not None,
        "n_groups": len(np.unique(rows.groups)) if rows.groups is not None else len(rows.positive),
        "n_permutations": n,
        "smallest_p": 1 / (n + 1),
        "how": "; ".join(
            f"{k}: {'one matrix product' if k in LINEAR else f'{n} fits'} a fold" for k in names
        ),
        "control": f"labels permuted over {ways.level} within folds, {n} times",
        "penalty": penalty,
    }
    data = _dataset(every, where, names, rows.positions, attrs)
    seconds = {**source.provenance.seconds, "permute": round(time.perf_counter() - started, 4)}
    made = provenance(None, seed=seed, seconds=seconds, settings={"collect": source.provenance.settings})
    made = replace(made, model=source.provenance.model, inputs=source.provenance.inputs)
    return Result("probe_permutation", data, made, _summary(data))


def _dataset(
    every: np.ndarray, sites: list[str], kinds: list[str], positions: np.ndarray | None, attrs: dict[str, Any]
) -> xr.Dataset:
    first, coords = site_axis(sites)
    coords["probe"] = kinds
    dims, shape = (first, "probe"), [len(sites), len(kinds)]
    if positions is not None:
        dims, shape = (first, "position", "probe"), [len(sites), len(positions), len(kinds)]
        coords["position"] = positions
    observed, null = every[:, 0], every[:, 1:].T
    values = {"auc": observed, "null_mean": null.mean(0), "null_high": np.quantile(null, 0.95, axis=0)}
    values |= p_values(observed, null)
    variables = {key: array(dims, values[key].reshape(shape), long_name=text) for key, text in NAMES.items()}
    variables["null_max"] = array(("permutation",), null.max(1), long_name="largest AUC of all cells")
    return xr.Dataset(variables, coords, attrs)


def _summary(data: xr.Dataset) -> dict[str, Any]:
    values = data["auc"].values
    place = np.unravel_index(int(np.argmax(values)), values.shape)
    best = data.isel(dict(zip(data["auc"].dims, place, strict=True)))
    said = {str(name): best[name].item() for name in (*data["auc"].dims, "site")}
    said |= {key: round(float(best[key]), 5) for key in ("auc", "p", "p_max", "p_holm", "p_bh")}
    return {
        "best": said,
        "n_cells": int(values.size),
        "n_significant": int((data["p_max"].values <= 0.05).sum()),
        "n": data.attrs["n"],
        "control": data.attrs["control"],
    }
