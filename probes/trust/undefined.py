"""Where rows fall whose label is neither of the two a probe was trained on.

A probe of true and false must call a statement about an invented country something. With s(x) the held-out score of a
probe trained on the two classes (each row by the fit that saw neither its fold nor its group):

    share_positive   share of the other rows with s > 0: called the positive class
    auc_above        P(s(other) > s(negative)),    auc_below = P(s(positive) > s(other)),   pairs of one fold, ties ½
    confident        share of the other rows with p outside [0.1, 0.9]; beside it that of the rows with a label
                     (NaN for `ridge`, whose scores are no log-odds)

In the middle (`auc_above` and `auc_below` both above one half) would be a scale of truth; on one side means that the
direction also measures something else, such as how familiar the names are (Savcisens and Eliassi-Rad 2025,
arXiv:2506.23921, ask for "neither" as a third answer for that reason). Control: the same with permuted training labels.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from probes.folds import assign_folds
from probes.trust.control_tasks import shuffled_labels
from probes.trust.fitting import (
    Scorer,
    fit_columns,
    interval,
    kinds_of,
    rows_at,
    sites_of,
    whole_settings,
)
from probes.trust.labels import group_codes, site_axis, two_classes, values_of
from workbench.activations import Activations
from workbench.errors import DataError
from workbench.progress import Progress, Silent
from workbench.provenance import provenance
from workbench.results import Result, array

CONFIDENT = float(np.log(9))
"""|score| above which the probability is outside [0.1, 0.9]."""
NAMES = {
    "auc": "AUC of the two classes, out of fold",
    "share_positive": "share of the other rows called the positive class",
    "share_positive_low": "share, lower end of the 95 % interval",
    "share_positive_high": "share, upper end of the 95 % interval",
    "auc_above": "P(other row scores above a negative one)",
    "auc_above_low": "above, lower end of the 95 % interval",
    "auc_above_high": "above, upper end of the 95 % interval",
    "auc_below": "P(positive row scores above an other one)",
    "auc_below_low": "below, lower end of the 95 % interval",
    "auc_below_high": "below, upper end of the 95 % interval",
    "confident": "share of the other rows with a probability outside [0.1, 0.9]",
    "confident_labelled": "the same of the rows with one of the two labels",
    "control_share_positive": "share called positive with permuted training labels, mean",
    "control_auc_above": "above, with permuted training labels, mean",
    "control_auc_below": "below, with permuted training labels, mean",
}


def undefined_rows(
    acts: Activations,
    labels: Any,
    groups: Any = None,
    *,
    other: Any = "neither",
    positive: Any = None,
    sites: str | Iterable[str] | None = None,
    kinds: str | Iterable[str] = "mass_mean",
    folds: int = 5,
    penalty: float = 1.0,
    n_control: int = 5,
    n_bootstrap: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """Train on two labels, show where the rows of a third fall.

    Args:
        acts: one row a prompt (or labels and groups for every row).
        labels: three of them, one being `other`.
        groups: one per row; None: every prompt is one.
        other: the label of the rows that are neither.
        positive: the positive of the other two; by default the one that sorts last.
        sites: names or globs; by default all of `acts`.
        kinds, folds, penalty, n_control, n_bootstrap, seed: as in `transfer.transfer_matrix`.
        progress: stage "undefined", one item per site.

    Returns:
        A `Result` of kind `probe_undefined` with dims (layer | site, probe) and the variables in `NAMES`.

    Raises:
        DataError: no row with the label `other`, not two labels besides it, too few groups, NaN.

    Example:
        >>> undefined_rows(acts, statements.labels, statements.groups).data["share_positive"].sel(layer=20)
    """
    progress, started = progress or Silent(), time.perf_counter()
    names = kinds_of(kinds)
    folds, n_control, n_bootstrap, seed = whole_settings(
        penalty, folds=folds, n_control=n_control, n_bootstrap=n_bootstrap, seed=seed
    )
    if n_control < 1 or n_bootstrap < 1:
        raise DataError(f"n_control and n_bootstrap are at least 1; given {n_control} and {n_bootstrap}.")
    given = values_of(labels, "labels")
    if len(given) != len(acts):
        raise DataError(f"{len(given)} labels for {len(acts)} rows: give one for each.")
    out = np.array([value == other for value in given])
    if not out.any():
        raise DataError(
            f"No row has the label {other!r}: the labels are {', '.join(map(repr, sorted(set(given), key=str)))}."
        )
    kept, rest = np.flatnonzero(~out), np.flatnonzero(out)
    up, classes = two_classes([given[i] for i in kept], len(kept), positive)
    whose = acts.prompt.tolist() if groups is None else values_of(groups, "groups")
    codes = group_codes(whose, len(given))
    assert codes is not None
    fold = np.zeros(len(given), dtype=np.int64)
    fold[kept] = assign_folds(up, np.unique(codes[kept], return_inverse=True)[1], n=folds, seed=seed)
    fold[rest] = _folds_of_rest(codes, kept, rest, fold, folds, seed)
    permuted = shuffled_labels(up, fold[kept], codes[kept], n=n_control, seed=seed + 1)
    targets = np.concatenate([up[None], permuted])
    where = sites_of(acts, sites)
    progress.stage("undefined", len(where))
    label = np.zeros(len(given), dtype=np.int64)
    label[rest], label[kept[up]] = 1, 2
    judge = _Judge(label, fold, codes, n_bootstrap, seed + 2)
    found = []
    for site in where:
        x = rows_at(acts, site)
        for kind in names:
            scores = np.zeros((len(targets), len(given)))
            for index in range(folds):
                train = fold[kept] != index
                columns = fit_columns(x[kept[train]], targets[:, train], kind, penalty=penalty)
                scores[:, fold == index] = columns.scores(x[fold == index])
            numbers = judge.numbers(scores)
            if kind == "ridge":
                numbers["confident"] = numbers["confident_labelled"] = float("nan")
            found.append(numbers)
        progress.advance()
    attrs = {
        "n": len(kept),
        "n_other": len(rest),
        "other": str(other),
        "positive": str(classes[1]),
        "negative": str(classes[0]),
        "folds": folds,
        "penalty": penalty,
        "control": f"labels of the training rows permuted, {n_control} times",
    }
    data = _dataset(found, where, names, attrs)
    made = provenance(None, seed=seed, seconds={"undefined": time.perf_counter() - started})
    made = replace(made, model=acts.provenance.model, inputs=acts.provenance.inputs)
    best = data.isel(probe=0).isel({data["auc"].dims[0]: int(np.argmax(data["auc"].isel(probe=0).values))})
    summary: dict[str, Any] = {str(data["auc"].dims[0]): best[data["auc"].dims[0]].item()}
    summary |= {name: round(float(best[name]), 4) for name in NAMES if np.isfinite(float(best[name]))}
    return Result("probe_undefined", data, made, {**summary, "n": len(kept), "n_other": len(rest)})


def _folds_of_rest(
    codes: np.ndarray, kept: np.ndarray, rest: np.ndarray, fold: np.ndarray, n: int, seed: int
) -> np.ndarray:
    """The other rows' folds: that of their group where it has one, else dealt out evenly by group."""
    home = dict(zip(codes[kept].tolist(), fold[kept].tolist(), strict=True))
    fresh = np.random.default_rng(seed).permutation([c for c in np.unique(codes[rest]) if c not in home])
    home |= {int(code): i % n for i, code in enumerate(fresh)}
    return np.array([home[int(code)] for code in codes[rest]])


class _Judge:
    """Numbers of one cell from the scores of every row; `label` is 0 negative, 1 other, 2 positive."""

    def __init__(self, label: np.ndarray, fold: np.ndarray, codes: np.ndarray, n: int, seed: int) -> None:
        self.label = label
        pairs = {"auc": (0, 2), "auc_above": (0, 1), "auc_below": (1, 2)}
        self.parts = {}
        for name, (low, high) in pairs.items():
            rows = np.flatnonzero((label == low) | (label == high))
            self.parts[name] = rows, label[rows] == high, Scorer(fold[rows], codes[rows], n=n, seed=seed)
        rows = np.flatnonzero(label == 1)
        self.rest = rows, Scorer(fold[rows], codes[rows], n=n, seed=seed)

    def numbers(self, scores: np.ndarray) -> dict[str, float]:
        """`NAMES` of scores [target, row]; the first are those of the true labels."""
        out: dict[str, float] = {}
        for name, (rows, up, scorer) in self.parts.items():
            out[name] = scorer.auc(scores[0, rows], up)
            if name != "auc":
                out[f"{name}_low"], out[f"{name}_high"] = interval(scorer.auc_draws(scores[0, rows], up))
                out[f"control_{name}"] = float(np.mean([scorer.auc(one[rows], up) for one in scores[1:]]))
        rows, scorer = self.rest
        called = np.ones(len(rows), dtype=bool)
        out["share_positive"] = scorer.accuracy(scores[0, rows], called)
        low, high = interval(scorer.accuracy_draws(scores[0, rows], called))
        out["share_positive_low"], out["share_positive_high"] = low, high
        out["control_share_positive"] = float(
            np.mean([scorer.accuracy(one[rows], called) for one in scores[1:]])
        )
        out["confident"] = float((np.abs(scores[0, rows]) > CONFIDENT).mean())
        out["confident_labelled"] = float((np.abs(scores[0, self.label != 1]) > CONFIDENT).mean())
        return out


def _dataset(
    found: list[dict[str, float]], sites: list[str], kinds: list[str], attrs: dict[str, Any]
) -> xr.Dataset:
    first, coords = site_axis(sites)
    shape = (len(sites), len(kinds))
    variables = {
        name: array((first, "probe"), np.array([one[name] for one in found]).reshape(shape), long_name=text)
        for name, text in NAMES.items()
    }
    return xr.Dataset(variables, {**coords, "probe": kinds}, attrs)
