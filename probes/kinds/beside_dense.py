"""Sparse probes on latents beside the dense probe on the activations they came from.

For each k: a `SparseProbe` on k latents (chosen anew in every fold, from its training rows) and one `LogisticProbe` on
all dimensions of the activations, both on the same folds, groups, penalty and permuted labels. A dictionary that "has
the concept" needs few latents to come near the dense probe; that it falls short even with many is the usual finding
(Kantamneni et al. 2025, arXiv:2502.16681), so the dense score is always shown.

    auc_gap[k] = AUC of the dense probe − AUC of the sparse one        with a paired bootstrap interval

Scores, intervals and controls are those of `probes.scores`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int64

from probes import scores as measure
from probes.estimators import Features, LogisticProbe
from probes.folds import assign_folds, permute_labels
from probes.kinds.inputs import finite, no_gaps, plain, same_number
from probes.kinds.sparse import NothingDiffers, fit_on, rank_features
from workbench.errors import DataError
from workbench.progress import Progress, Silent
from workbench.provenance import provenance
from workbench.results import Result, array

SCORES = {
    "auc": "AUC, out of fold",
    "auc_low": "AUC, lower end of the 95 % interval",
    "auc_high": "AUC, upper end of the 95 % interval",
    "accuracy": "accuracy, out of fold",
    "accuracy_low": "accuracy, lower end of the 95 % interval",
    "accuracy_high": "accuracy, upper end of the 95 % interval",
    "log_loss": "log-loss, out of fold",
    "control_auc": "AUC on permuted labels, mean",
    "control_auc_high": "AUC on permuted labels, highest",
    "control_accuracy": "accuracy on permuted labels, mean",
    "selectivity": "accuracy minus accuracy on permuted labels",
}


def sparse_beside_dense(
    latents: Any,
    dense: Any,
    labels: Any,
    *,
    groups: Any = None,
    ks: Sequence[int] | None = None,
    selection: str = "mean_difference",
    positive: Any = None,
    C: float = 1.0,
    folds: int = 5,
    n_control: int = 5,
    n_bootstrap: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """Held-out scores of probes on k latents, beside the dense probe on the same rows and folds.

    Args:
        latents: [row, feature] array or tensor, or a function that makes it from a float32 tensor [row, d] (such as
            `sae.encode`), called once.
        dense: [row, d] activations, array or tensor.
        labels: [row] of two classes.
        groups: [row]; a group is never in both training and test rows.
        ks: numbers of latents, rising. By default the powers of two up to 64 (or to the number of latents): what
            matters is the first few, then the trend.
        selection: `"mean_difference"` or `"l1"`; see `probes.kinds.sparse`.
        positive: the positive class; by default the one that sorts last.
        C: inverse strength of the L2 penalty of both logistic regressions (standardised features).
        folds: of the cross-validation.
        n_control: label permutations of the control, the same for both.
        n_bootstrap: draws for the intervals.
        seed: of folds, permutations and bootstrap.
        progress: stage "probe", one item per fold.

    Returns:
        A `Result` of kind `probe_sparse`. Along `k`: every score of `SCORES`, `auc_gap` with `auc_gap_low` and
        `auc_gap_high`, `n_features` (fewest used in a fold) and `overlap` (share of them chosen in every fold). Without
        dims: the dense scores as `dense_auc`, …. `feature` [rank]: the latents a fit to all rows takes, best first.
        Summary: `n`, `n_positive`, `classes`, `dense`, `sparse` (by k), `enough` (the least k whose gap's interval
        holds 0, or None), `control`.

    Raises:
        DataError: rows that do not match in number, not two classes, NaN, too few rows for the folds, a k that is not
            between 1 and the number of features.

    Example:
        >>> result = sparse_beside_dense(sae.encode, acts.rows(site), labels, groups=groups)
        >>> result.data["auc"].sel(k=4).item(), result.data["dense_auc"].item(), result.data["feature"].values[:4]
    """
    progress, started = progress or Silent(), time.perf_counter()
    made = latents(torch.as_tensor(plain(dense)).float()) if callable(latents) else latents
    sparse, x = _table(made, "latents"), _table(dense, "dense activations").astype(np.float64)
    for given, what in ((x, "rows of dense activations"), (labels, "labels"), (groups, "groups")):
        same_number(sparse, plain(given), what)
    up, classes = _two(plain(labels), positive)
    ks = _sizes(ks, sparse.shape[1])
    if not (C > 0 and n_control >= 1 and n_bootstrap >= 1):
        raise DataError(
            f"C must be above 0, n_control and n_bootstrap at least 1, but are {C}, {n_control}, {n_bootstrap}."
        )
    codes = None
    if groups is not None:
        codes = np.unique([str(g) for g in plain(groups)], return_inverse=True)[1].astype(np.int64)
    fold = assign_folds(up, codes, n=folds, seed=seed)
    permuted, level = permute_labels(up, fold, codes, n=n_control, seed=seed + 1)
    targets = np.concatenate([up[None], permuted])
    bootstrap = measure.Bootstrap(codes, len(up), n=n_bootstrap, seed=seed + 2)

    progress.stage("probe", folds)
    out, chosen = _cross_fit(sparse, x, targets, fold, ks, selection, C, progress.advance)
    code = targets.astype(np.int64)
    scored = [measure.score_cell(part[..., None], code, fold, bootstrap) for part in out]
    dense_draws = bootstrap.auc_draws(out[-1][0], up, fold)
    gaps = [dense_draws - bootstrap.auc_draws(part[0], up, fold) for part in out[:-1]]
    feature = rank_features(sparse, up, max(ks), selection)
    data = _dataset(scored, gaps, chosen, feature, ks)
    data.attrs = {
        "n": len(up),
        "n_positive": int(up.sum()),
        "positive": str(classes[1]),
        "negative": str(classes[0]),
        "majority_accuracy": float(max(up.mean(), 1 - up.mean())),
        "folds": folds,
        "grouped": codes is not None,
        "n_groups": len(up) if codes is None else len(np.unique(codes)),
        "control": f"labels permuted over {level} within folds, {n_control} times",
        "selection": selection,
        "penalty": C,
        "n_latents": sparse.shape[1],
        "d_dense": x.shape[1],
        "n_bootstrap": n_bootstrap,
    }
    seconds = {"probe": time.perf_counter() - started}
    return Result("probe_sparse", data, provenance(None, seed=seed, seconds=seconds), _summary(data))


def _cross_fit(
    sparse: Float[np.ndarray, "row feature"],
    dense: Float[np.ndarray, "row d"],
    targets: Bool[np.ndarray, "target row"],
    fold: Int64[np.ndarray, " row"],
    ks: list[int],
    selection: str,
    C: float,
    done: Callable[[], None],
) -> tuple[np.ndarray, list[list[np.ndarray]]]:
    """[k and then dense, target, row] out-of-fold scores, and per fold the latents ranked by the true labels."""
    out = np.zeros((len(ks) + 1, *targets.shape))
    chosen: list[np.ndarray] = []
    model = LogisticProbe(C=C)
    for index in range(int(fold.max()) + 1):
        train, test = fold != index, fold == index
        rows, held_out = sparse[train], sparse[test]
        features = Features.of(dense[train])
        for number, target in enumerate(targets):
            try:
                order = rank_features(rows, target[train], max(ks), selection)
            except NothingDiffers:  # a few on-off latents and permuted labels: the probe is the constant
                order = np.zeros(0, dtype=np.int64)
            chosen += [order] if number == 0 else []
            for place, k in enumerate(ks):
                found = fit_on(rows, target[train], order[:k], C)
                few = held_out[:, order[:k]].astype(np.float64)
                out[place, number, test] = few @ found.coef[order[:k]] + found.intercept
            out[-1, number, test] = model.weights(features, target[train]).decision(dense[test])
        done()
    return out, [[order[:k] for order in chosen] for k in ks]


def _dataset(
    scored: list[dict[str, Any]],
    gaps: list[np.ndarray],
    chosen: list[list[np.ndarray]],
    feature: np.ndarray,
    ks: list[int],
) -> xr.Dataset:
    variables: dict[str, Any] = {}
    for key, text in SCORES.items():
        units = "nats" if key == "log_loss" else ""
        variables[key] = array(
            ("k",), [s[key] for s in scored[:-1]], long_name=f"{text}, k latents", units=units
        )
        variables[f"dense_{key}"] = array((), scored[-1][key], long_name=f"{text}, dense probe", units=units)
    behind = [scored[-1]["auc"] - s["auc"] for s in scored[:-1]]
    ends = np.nanquantile(np.stack(gaps), [0.025, 0.975], axis=1)
    variables["auc_gap"] = array(("k",), behind, long_name="AUC of the dense probe minus that of k latents")
    for name, values in zip(("low", "high"), ends, strict=True):
        variables[f"auc_gap_{name}"] = array(
            ("k",), values, long_name=f"AUC gap, {name} end of the 95 % interval"
        )
    used = [min(len(order) for order in orders) for orders in chosen]
    always = [len(set.intersection(*(set(o.tolist()) for o in orders))) for orders in chosen]
    shares = [a / max(1, *(len(o) for o in orders)) for a, orders in zip(always, chosen, strict=True)]
    variables["n_features"] = array(("k",), used, long_name="latents used, fewest of any fold")
    variables["overlap"] = array(("k",), shares, long_name="share of the latents that every fold chose")
    variables["feature"] = array(("rank",), feature, long_name="latent, chosen from all rows, best first")
    return xr.Dataset(variables, {"k": ks, "rank": np.arange(1, len(feature) + 1)})


def _summary(data: xr.Dataset) -> dict[str, Any]:
    shown = ("auc", "auc_low", "auc_high", "accuracy", "control_auc", "selectivity")
    by_k = {
        int(k): {key: round(float(data[key].sel(k=k)), 4) for key in (*shown, "auc_gap")}
        for k in data["k"].values
    }
    near = [int(k) for k in data["k"].values if float(data["auc_gap_low"].sel(k=k)) <= 0]
    return {
        "n": data.attrs["n"],
        "n_positive": data.attrs["n_positive"],
        "classes": [data.attrs["negative"], data.attrs["positive"]],
        "dense": {key: round(float(data[f"dense_{key}"]), 4) for key in shown},
        "sparse": {str(k): values for k, values in by_k.items()},
        "enough": min(near, default=None),
        "control": data.attrs["control"],
    }


def _table(values: Any, what: str) -> np.ndarray:
    table = np.asarray(plain(values))
    if table.ndim != 2 or 0 in table.shape:
        raise DataError(f"The {what} are a table [row, feature], not of shape {list(table.shape)}.")
    if table.dtype not in (np.float32, np.float64):
        table = table.astype(np.float64)
    finite(table, what)
    return table


def _two(labels: Any, positive: Any) -> tuple[Bool[np.ndarray, " row"], list[Any]]:
    values = np.asarray(labels)
    if values.ndim != 1:
        raise DataError(f"The labels are one per row, not of shape {list(values.shape)}.")
    no_gaps(values)
    classes = list(np.unique(values).tolist())
    if len(classes) != 2:
        shown = ", ".join(repr(c) for c in classes[:8])
        raise DataError(f"Two classes expected, found {len(classes)} in {len(values)} labels: {shown}.")
    if positive is not None:
        if positive not in classes:
            raise DataError(f"The positive class {positive!r} is not among the labels, which are {classes}.")
        classes.sort(key=lambda c: c == positive)
    return values == classes[1], classes


def _sizes(ks: Sequence[int] | None, n_features: int) -> list[int]:
    sizes = [2**i for i in range(7) if 2**i <= n_features] if ks is None else [int(k) for k in ks]
    if not sizes or sizes != sorted(set(sizes)) or sizes[0] < 1 or sizes[-1] > n_features:
        raise DataError(
            f"ks are rising numbers of latents from 1 to {n_features} (all there are), not {sizes}."
        )
    return sizes
