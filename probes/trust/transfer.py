"""Transfer: train a probe on one data set, layer, template or language, and test it on another.

With sets A₁ … A_k of rows with the same two labels, cell (i, j) is

    auc[i, j] = AUC on A_j of a probe fitted to A_i

1. Every group gets one fold over *all* sets (stratified by set and label). So a group that occurs in two sets is
   never trained on in the one and tested in the other.
2. For each fold the probe is fitted to the rows of A_i outside it and scores the rows of A_j inside it. The diagonal is
   thus cross-validated as every other cell, and all cells of a column are measured on the same rows with training
   sets of the same share: they compare.
3. Control: the same with the labels of A_i permuted (as `control_tasks.shuffled_labels` does). Its AUC is one half but
   for chance; `control_auc_high` is the highest of so many.
4. `drop` = auc[j, j] − auc[i, j] with a paired interval; `cosine` is that of the two directions, each fitted to all
   rows.

AUC asks for the order alone, accuracy also for the threshold: where accuracy falls and AUC does not, the direction
carries over and its offset does not. An AUC far below one half is a direction that says the opposite there, as truth
learnt from affirmative statements may on negated ones (Levinstein and Herrmann 2023, arXiv:2307.00175; Marks and
Tegmark 2023, arXiv:2310.06824, whose §5 has such matrices).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float64, Int64

from probes.trust.control_tasks import shuffled_labels
from probes.trust.fitting import Scorer, fit_columns, interval, kinds_of, whole_settings
from probes.trust.sets import Joined, join
from probes.trust.text_baselines import MEANING, scored
from workbench.errors import DataError
from workbench.progress import Progress, Silent
from workbench.provenance import Provenance, provenance
from workbench.results import Result, array

NAMES = {
    **MEANING,
    "control_auc": "AUC with permuted training labels, mean",
    "control_auc_high": "AUC with permuted training labels, highest",
    "control_accuracy": "accuracy with permuted training labels, mean",
    "drop": "AUC of a probe trained on the test set (cross-validated) minus this AUC",
    "drop_low": "drop, lower end of the 95 % interval",
    "drop_high": "drop, upper end of the 95 % interval",
    "cosine": "cosine between the directions fitted to all rows of the two sets",
    "n": "test rows",
    "n_train": "training rows, mean over the folds",
    "shared_groups": "groups that stand in both sets (held out together)",
}


def transfer_matrix(
    sets: Mapping[Any, Any],
    *,
    site: str | None = None,
    kinds: str | Iterable[str] = ("mass_mean", "logistic"),
    positive: Any = None,
    shared: str = "held_out",
    folds: int = 5,
    penalty: float = 1.0,
    n_control: int = 5,
    n_bootstrap: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """Train on every set, test on every set.

    Args:
        sets: name -> (activations, labels, groups). Activations are an `Activations` (one position a prompt, or labels
            for every row) or a [row, d] array or tensor; groups may be None or left away, and then every row stands for
            itself (rows of collections of the *same* prompts, at another site say, are known to be the same). See
            `sets.split_by` and `sets.by_layer` for one collection cut by a field or by layer.
        site: which site of collections that hold several.
        kinds: kinds of probe, see `fitting.FIT_KINDS`.
        positive: the positive class; by default the one that sorts last. All sets have the same two labels.
        shared: what to do with groups that stand in two sets: `held_out` of both at once, or `refuse`.
        folds, penalty, n_bootstrap, seed: as in `probes.sweep`.
        n_control: permutations of the training labels.
        progress: stage "transfer", one item per training set and kind.

    Returns:
        A `Result` of kind `probe_transfer` with dims (train, test, probe); variables in `NAMES`. Summary: for each
        probe the mean AUC on and off the diagonal, and the worst cell.

    Raises:
        DataError: fewer than two sets, widths or labels that differ, a set with one class or fewer groups of a class
            than folds, NaN, or shared groups where they are refused.

    Example:
        >>> plain, negated = statements.filter(negated=False), statements.filter(negated=True)
        >>> sets = {name: (wb.collect(model, s.texts, "blocks.20.hook_resid_post"), s.labels, s.groups)
        ...         for name, s in {"plain": plain, "negated": negated}.items()}
        >>> transfer_matrix(sets).data["auc"].sel(train="plain", test="negated")
    """
    progress, started = progress or Silent(), time.perf_counter()
    names = kinds_of(kinds)
    folds, n_control, n_bootstrap, seed = whole_settings(
        penalty, folds=folds, n_control=n_control, n_bootstrap=n_bootstrap, seed=seed
    )
    if n_bootstrap < 1 or n_control < 1 or folds < 2:
        raise DataError(
            f"Give folds from 2 ({folds}), n_bootstrap and n_control from 1 ({n_bootstrap}, {n_control})."
        )
    if shared not in ("held_out", "refuse"):
        raise DataError(f"shared is {shared!r}; expected 'held_out' or 'refuse'.")
    joined = join(sets, site=site, positive=positive)
    common = joined.shared_groups()
    _refuse(joined, common, shared)
    fold = joined.folds(folds, seed=seed)
    progress.stage("transfer", len(joined.names) * len(names))
    scorers = [Scorer(fold[rows], joined.group[rows], n=n_bootstrap, seed=seed + 2) for rows in joined.rows]
    cells: dict[str, np.ndarray] = {}
    k = len(joined.names)
    for at_kind, kind in enumerate(names):
        every = []
        for i in range(k):
            every.append(_train(joined, i, fold, kind, penalty, n_control, seed))
            progress.advance()
        draws = [
            scorers[j].auc_draws(every[j].scores[j][0], joined.positive[joined.rows[j]]) for j in range(k)
        ]
        for i in range(k):
            for j in range(k):
                found = _cell(joined, every, scorers[j], draws[j], i, j)
                found |= {"n_train": every[i].n_train, "shared_groups": int(common[i, j])}
                for key, value in found.items():
                    values = cells.setdefault(key, np.full((k, k, len(names)), np.nan))
                    values[i, j, at_kind] = value
    dims = ("train", "test", "probe")
    variables = {key: array(dims, cells[key], long_name=text) for key, text in NAMES.items()}
    attrs = {
        "n": int(joined.positive.size),
        "positive": str(joined.classes[1]),
        "negative": str(joined.classes[0]),
        "folds": folds,
        "n_groups": int(joined.group.max()) + 1,
        "grouped": joined.grouped,
        "site": joined.site,
        "penalty": penalty,
        "n_bootstrap": n_bootstrap,
        "shared": "held out of both sets at once" if common[~np.eye(k, dtype=bool)].any() else "none",
        "control": f"labels of the training set permuted, {n_control} times",
    }
    coords = {"train": joined.names, "test": joined.names, "probe": names}
    data = xr.Dataset(variables, coords, attrs)
    made = _made(joined, seed, time.perf_counter() - started)
    return Result("probe_transfer", data, made, _summary(data))


class _Trained:
    """What one training set gave: held-out scores of every set's rows, and its direction."""

    def __init__(self, n_sets: int) -> None:
        self.scores: list[Float64[np.ndarray, "target row"]] = [np.empty((0, 0))] * n_sets
        self.coef: Float64[np.ndarray, " d"] = np.empty(0)
        self.n_train = 0.0


def _train(
    joined: Joined,
    i: int,
    fold: Int64[np.ndarray, " row"],
    kind: str,
    penalty: float,
    n_control: int,
    seed: int,
) -> _Trained:
    """Fit to set i without each fold, with the true and with permuted labels, and score the fold in every set."""
    rows = joined.rows[i]
    x, up = joined.x[rows], joined.positive[rows]
    groups = joined.group[rows] if joined.grouped else None
    permuted = shuffled_labels(up, fold[rows], groups, n=n_control, seed=seed + 10 + i)
    targets = np.concatenate([up[None], permuted])
    out, sizes = _Trained(len(joined.names)), []
    scores = np.zeros((len(targets), len(joined.positive)))
    for index in np.unique(fold):
        train, test = fold[rows] != index, fold == index
        found = fit_columns(x[train], targets[:, train], kind, penalty=penalty)
        scores[:, test] = found.scores(joined.x[test])
        sizes.append(int(train.sum()))
    out.scores = [scores[:, r] for r in joined.rows]
    out.coef = fit_columns(x, up[None], kind, penalty=penalty).coef[0]
    out.n_train = float(np.mean(sizes))
    return out


def _cell(
    joined: Joined, every: list[_Trained], scorer: Scorer, own: np.ndarray, i: int, j: int
) -> dict[str, float]:
    up = joined.positive[joined.rows[j]]
    scores = every[i].scores[j]
    draws = own if i == j else scorer.auc_draws(scores[0], up)
    found = scored(scores[0], up, scorer, draws)
    aucs = [scorer.auc(one, up) for one in scores[1:]]
    found |= {
        "control_auc": float(np.mean(aucs)),
        "control_auc_high": max(aucs),
        "control_accuracy": float(np.mean([scorer.accuracy(one, up) for one in scores[1:]])),
    }
    low, high = interval(own - draws)
    found |= {
        "drop": scorer.auc(every[j].scores[j][0], up) - found["auc"],
        "drop_low": low,
        "drop_high": high,
    }
    product = float(np.linalg.norm(every[i].coef) * np.linalg.norm(every[j].coef))
    found["cosine"] = float(every[i].coef @ every[j].coef) / product if product > 0 else float("nan")
    found["n"] = len(up)
    return found


def _refuse(joined: Joined, common: np.ndarray, shared: str) -> None:
    if shared != "refuse":
        return
    for i, j in zip(*np.nonzero(np.triu(common, 1)), strict=True):
        raise DataError(
            f"Sets {joined.names[i]!r} and {joined.names[j]!r} share {int(common[i, j])} groups, so that what is "
            "learnt of them in training is asked again in the test. Leave them out of one set, or take "
            "shared='held_out', which keeps each out of training whenever it is tested."
        )


def _summary(data: xr.Dataset) -> dict[str, Any]:
    auc = data["auc"].values
    k = len(auc)
    off = ~np.eye(k, dtype=bool)
    said: dict[str, Any] = {"n_sets": k, "n": data.attrs["n"]}
    for index, kind in enumerate(data["probe"].values.tolist()):
        values = auc[:, :, index]
        i, j = np.unravel_index(int(np.nanargmin(np.where(off, values, np.inf))), values.shape)
        said[str(kind)] = {
            "within": round(float(np.nanmean(np.diag(values))), 4),
            "across": round(float(np.nanmean(values[off])), 4),
            "worst": {
                "train": str(data["train"].values[i]),
                "test": str(data["test"].values[j]),
                "auc": round(float(values[i, j]), 4),
            },
        }
    return said


def _made(joined: Joined, seed: int, seconds: float) -> Provenance:
    sources = joined.provenances
    made = provenance(None, seed=seed, seconds={"transfer": seconds})
    models = {str(p.model.get("fingerprint", "")): p.model for p in sources if p.model}
    settings = {"inputs": {str(n): p.inputs for n, p in zip(joined.names, sources, strict=True)}}
    return replace(made, model=next(iter(models.values())) if len(models) == 1 else {}, settings=settings)
