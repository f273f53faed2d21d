"""What is left of a label for a probe once it has been erased.

Three ways to erase a label, each fitted to training rows and applied to held-out rows, beside no erasing at all:

    leace              the least change that leaves no linear score (`probes.leace`)
    mean_difference    (1 − Q)(x − μ) + μ, Q the orthogonal projector onto the differences of the class means
    random_direction   the same with as many random directions: the control

After either of the first two the class means of the rows it was fitted to agree. So a linear probe fitted to the
*same* rows can do no better than a constant, and has weight zero: its held-out score is that of the majority, whatever
the data. What erasing is worth on rows it has not seen shows where the probe is fitted to *other* rows than the eraser.
LEACE is the one that changes least.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float64, Int64
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from probes.folds import assign_folds
from probes.leace import Leace, as_numpy
from probes.mil.labels import encode, group_codes, interval, resamples
from probes.scores import Bootstrap, auc
from workbench.errors import DataError
from workbench.provenance import provenance
from workbench.results import Result, array

__all__ = ["ERASERS", "Leace", "erase_scores"]

ERASERS = ("none", "leace", "mean_difference", "random_direction")
TIE = 9
"""Decimals to which scores are rounded: a probe of weight zero gives ties, and rounding must not break them."""


def erase_scores(
    X: Any,
    y: Any,
    *,
    groups: Any = None,
    folds: int = 5,
    penalty: float = 1.0,
    seed: int = 0,
    n_bootstrap: int = 1000,
) -> Result:
    """How much of a label a logistic probe reads from held-out rows before and after erasing it.

    Each fold is scored by a probe on erased rows, both fitted to the rest: `same`, eraser and probe to all of it;
    `other`, the eraser to one half and the probe to the other half. Erasers: `none`; `leace`; `mean_difference`, the
    orthogonal projection that removes the differences of the class means; `random_direction`, the control: as many
    random orthogonal directions projected out as LEACE erases. Probes see features on the scale of the eraser's rows,
    so that one penalty means the same for all.

    Args:
        X: [row, d] activations, numpy or torch.
        y: [row] labels of two or more classes.
        groups: one per row; a group is never in both training and held-out rows.
        folds: of the cross-validation, stratified.
        penalty: scikit-learn's `C` of the probe.
        seed: for folds, random directions and resampling.
        n_bootstrap: draws of groups (rows) for the 95 % intervals.

    Returns:
        `Result` of kind `probe_erasure`, dims `rows` (same, other) and `eraser`: `accuracy`, `log_loss` (nats) with
        `_low` and `_high`; for two classes `auc` (pairs of one fold), too; `drop`, accuracy with `none`
        minus accuracy, with its ends; `train_log_loss` of the probe's rows; `squared_change`, mean ‖r(x) − x‖² of the
        eraser's rows as a share of their variance; `rank`. `attrs` has n, the majority accuracy and the log-losses of
        a constant.

    Raises:
        DataError: labels or groups that do not match, one class, NaN rows, a class with fewer rows than folds.

    Example:
        >>> erase_scores(acts.rows(site), labels, groups=groups).data["accuracy"].sel(eraser="leace")
    """
    started = time.perf_counter()
    x = np.asarray(as_numpy(X), dtype=np.float64)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise DataError(
            f"Activations are a finite [row, d] array; these have shape {x.shape}, or NaN in them."
        )
    if not (penalty > 0 and n_bootstrap >= 1):
        raise DataError(
            f"penalty must be above 0 and n_bootstrap at least 1, not {penalty} and {n_bootstrap}."
        )
    classes, codes = encode(y, n=len(x))
    units = group_codes(groups, len(x))
    fold = assign_folds(codes, units, n=folds, seed=seed, names=[str(c) for c in classes])
    random = np.random.default_rng(seed + 1)
    shape = (2, len(ERASERS))
    p = np.zeros((*shape, len(x), len(classes)))
    per_fold = {name: np.zeros((*shape, folds)) for name in ("train_log_loss", "squared_change", "rank")}
    constant = np.zeros((2, folds))
    with threadpool_limits(1 if x.size <= 4_000_000 else None, user_api="blas"):
        for f in range(folds):
            train, test = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
            share = np.bincount(codes[train], minlength=len(classes)) / len(train)
            if not share.all():
                raise DataError(
                    f"Without fold {f} a class is missing: groups are too uneven for {folds} folds."
                )
            constant[:, f] = [-np.log(share)[codes[rows]].mean() for rows in (train, test)]
            inner = None if units is None else np.unique(units[train], return_inverse=True)[1]
            half = assign_folds(codes[train], inner, n=2, seed=seed, names=[str(c) for c in classes])
            for i, (erased, probed) in enumerate(((train, train), (train[half == 0], train[half == 1]))):
                mean, sd = x[erased].mean(0), x[erased].std(0)
                sd = np.where((sd <= 1e-10 * np.abs(mean)) | (sd == 0), 1.0, sd)
                for e, (left, right) in enumerate(_erasers(x[erased], codes[erased], random)):
                    change = (x - mean) @ right.T @ left.T
                    rows = (x - mean - change) / sd
                    probe = LogisticRegression(C=penalty, max_iter=2000, tol=1e-5).fit(
                        rows[probed], codes[probed]
                    )
                    p[i, e, test] = probe.predict_proba(rows[test])
                    loss = -np.log(
                        probe.predict_proba(rows[probed])[np.arange(len(probed)), codes[probed]]
                    ).mean()
                    size = (change[erased] ** 2).sum() / ((x[erased] - mean) ** 2).sum()
                    for name, value in zip(per_fold, (loss, size, left.shape[1]), strict=True):
                        per_fold[name][i, e, f] = value
    right = (p.argmax(-1) == codes).astype(float)
    loss = -np.log(np.clip(p[:, :, np.arange(len(x)), codes], 1e-300, None))
    weights = resamples(units, len(x), n=n_bootstrap, seed=seed + 2)
    weights /= weights.sum(1, keepdims=True)
    measured = {
        "accuracy": (right, "accuracy, out of fold", ""),
        "log_loss": (loss, "log-loss, out of fold", "nats"),
    }
    measured["drop"] = (right[:, :1] - right, "accuracy without erasing minus accuracy", "")
    dims = ("rows", "eraser")
    variables: dict[str, Any] = {}
    for name, (values, text, units_of) in measured.items():
        ends = np.array([interval(weights @ row) for row in values.reshape(-1, len(x))]).reshape(*shape, 2)
        for end, found in (("", values.mean(-1)), ("_low", ends[..., 0]), ("_high", ends[..., 1])):
            variables[name + end] = array(dims, found, long_name=text, units=units_of)
    if len(classes) == 2:
        draws = Bootstrap(units, len(x), n=n_bootstrap, seed=seed + 2)
        decided = p[..., 1].round(TIE).reshape(-1, len(x))
        ends = [draws.auc_interval(row, codes == 1, fold) for row in decided]
        found = np.column_stack([[auc(row, codes == 1, fold) for row in decided], np.array(ends)])
        for i, (end, said) in enumerate((("", ""), ("_low", ", lower end"), ("_high", ", upper end"))):
            said = f"AUC, out of fold, pairs of one fold{said}{' of the 95 % interval' if end else ''}"
            variables["auc" + end] = array(dims, found[:, i].reshape(shape), long_name=said, units="")
    texts = ("log-loss on training rows (nats)", "mean squared change / variance", "dimensions erased")
    for (name, values), text in zip(per_fold.items(), texts, strict=True):
        variables[name] = array(dims, values.mean(-1), long_name=text, units="")
    attrs = {
        "n": len(x),
        "n_groups": len(x) if units is None else int(units.max()) + 1,
        "classes": [str(c) for c in classes],
        "majority_accuracy": float(np.bincount(codes).max() / len(x)),
        "constant_train_log_loss": float(constant[0].mean()),
        "constant_log_loss": float(constant[1] @ np.bincount(fold) / len(x)),
        "folds": folds,
        "penalty": penalty,
        "n_bootstrap": n_bootstrap,
        "control": "as many random orthogonal directions projected out as LEACE erases, new ones in each fold",
    }
    data = xr.Dataset(variables, {"rows": ["same", "other"], "eraser": list(ERASERS)}, attrs)
    found = data["accuracy"]
    summary: dict[str, Any] = {
        rows: {e: round(float(found.sel(rows=rows, eraser=e)), 4) for e in ERASERS}
        for rows in ("same", "other")
    }
    summary = {"accuracy": summary} | {k: attrs[k] for k in ("majority_accuracy", "n", "n_groups", "control")}
    summary["majority_accuracy"] = round(summary["majority_accuracy"], 4)
    made = provenance(None, seed=seed, seconds={"erase": time.perf_counter() - started})
    return Result("probe_erasure", data, made, summary)


def _erasers(
    x: Float64[np.ndarray, "row d"], codes: Int64[np.ndarray, " row"], random: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(left [d, rank], right [rank, d]) of each of `ERASERS`."""
    leace = Leace(target="classes").fit(x, codes)
    means = np.stack([x[codes == c].mean(0) for c in np.unique(codes)])
    _, size, axes = np.linalg.svd(means - means.mean(0), full_matrices=False)
    difference = axes[size > 1e-10 * max(size[0], 1e-300)].T
    drawn = np.linalg.qr(random.normal(size=(x.shape[1], leace.rank_)))[0]
    nothing = np.zeros((x.shape[1], 0))
    return [
        (nothing, nothing.T),
        (leace.proj_left_, leace.proj_right_),
        (difference, difference.T),
        (drawn, drawn.T),
    ]
