"""A probe at every site: is a property linearly readable, more than shuffled labels are?

1. Labels become classes; rows get folds (`probes.folds`), groups staying together.
2. Per site, position and fold the training rows are factorised once (`probes.solve`), and every kind of probe is
   fitted to all label columns: every label set and, of each, several permutations, at every penalty of a path. Each
   row is scored by the one fit that did not see its fold. Means, scales and covariances come from the training rows
   alone.
3. Per cell (site, position, label, kind) the penalty is chosen (`probes.cells`) and the scores are taken
   (`probes.scores`): AUC and accuracy with intervals, log-loss, calibration error, control, selectivity.
4. Each kind is fitted once more to all rows: the weight that becomes a `Direction`.

The best of many cells looks better than it is. So `summary["best"]` gives, beside its AUC, the nested AUC and
`control_best_auc`, the AUC of the best cell on permuted labels.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr

from probes import scores as measure
from probes.cells import Task, cross_fit, describe
from probes.columns import Columns, make_columns
from probes.folds import permute_labels, shared_folds
from probes.labels import Rows, arrange
from probes.solve.newton import TOLERANCE
from probes.source import open_source
from probes.sweep_result import ProbeSweep
from workbench.errors import DataError
from workbench.progress import Progress, Silent
from workbench.provenance import provenance
from workbench.results import array

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Default path of `penalty`: from probes that hardly leave the prior to ones that fit the training rows."""

MEANING = {
    "auc": ("AUC, out of fold", ""),
    "auc_low": ("AUC, lower end of the 95 % interval", ""),
    "auc_high": ("AUC, upper end of the 95 % interval", ""),
    "accuracy": ("accuracy, out of fold", ""),
    "accuracy_low": ("accuracy, lower end of the 95 % interval", ""),
    "accuracy_high": ("accuracy, upper end of the 95 % interval", ""),
    "log_loss": ("log-loss, out of fold", "nats"),
    "calibration_error": ("expected calibration error, out of fold", ""),
    "control_auc": ("AUC on permuted labels, mean", ""),
    "control_auc_high": ("AUC on permuted labels, highest", ""),
    "control_accuracy": ("accuracy on permuted labels, mean", ""),
    "selectivity": ("accuracy minus accuracy on permuted labels", ""),
    "penalty": ("C (inverse strength of the L2 penalty) of the probe fitted to all rows", ""),
    "auc_by_penalty": ("AUC, out of fold, at each C", ""),
    "log_loss_by_penalty": ("log-loss, out of fold, at each C", "nats"),
    "gradient_norm": ("largest gradient norm of all fits (mean objective)", "nats"),
    "weight": ("weight of the probe fitted to all rows", "log-odds / activation"),
    "bias": ("intercept of the probe fitted to all rows", "log-odds"),
    "scale": ("standard deviation of the activations along the weight", "activation"),
    "converged": ("all fits converged", ""),
    "scores": ("out-of-fold score of every row", "log-odds"),
}


def sweep(
    acts: Any,
    labels: Any,
    *,
    kinds: Any = ("logistic", "mass_mean"),
    controls: bool = True,
    groups: Any = None,
    sites: str | Iterable[str] | None = None,
    positive: Any = None,
    folds: int = 5,
    penalty: float | Sequence[float] = PENALTIES,
    seed: int = 0,
    n_bootstrap: int = 1000,
    n_control: int = 5,
    keep_scores: bool = False,
    tolerance: float = TOLERANCE,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> ProbeSweep:
    """Fit and cross-validate probes at every site of some activations.

    Args:
        acts: activations, usually of one position per prompt (`positions=-1`), or a store (or its folder), of which
            one site at a time is read.
        labels: booleans, numbers or texts of two classes (of more for `logistic` and estimators); or a dict of
            such lists by name, each of two classes, which share all factorisations. One per prompt: where prompts
            have several positions, each is its own cell (dimension `position`, absolute if the same in every
            prompt, else counted from 0). One per row: all rows make one cell; those of a prompt stay in one fold.
            With a store also the name of one of its labels.
        kinds: `logistic`, `ridge`, `mass_mean`, `mass_mean_whitened`, fitted for all labels at once (see
            `probes.estimators`, `probes.columns`; all but the plain mass-mean probe standardise), `lda`, `mlp`,
            `pca`, `kmeans`; or a dict of estimators by name (None for one of these kinds), fitted one by one.
        controls: also fit permuted labels. Without them a score says little.
        groups: one per prompt or per row; a group (a country) is never in both training and test rows.
        sites: names or globs; by default all of `acts`. Of one width; `hook_z` and its like are flattened.
        positive: the positive class; by default the one that sorts last (`True`, 1, "true", "positive").
        folds: of the cross-validation, stratified by label.
        penalty: scikit-learn's `C`, the *inverse* strength of the L2 penalty, of `logistic` and `ridge`; of several
            the one with the least held-out log-loss is taken, without the fold that is scored.
        seed: for folds, permutations and bootstrap; the same for every cell, so that cells compare.
        n_bootstrap: draws for the intervals.
        n_control: permutations for the control. `control_auc_high` is the highest of so many.
        keep_scores: keep the out-of-fold score of every row (variable `scores`), for calibration, conformal sets or
            tests of your own.
        tolerance: gradient norm of the mean objective at which a logistic fit counts as converged.
        device: where the linear algebra runs (float64: `cpu` or `cuda`).
        progress: stage "probe", one item per cell.

    Returns:
        A `ProbeSweep` (`Result` of kind `probe_sweep`) with dims (layer, probe), with `position` and `label` before
        `probe` where there are several; `layer` is `site` where the sites are not one per block. Variables: those in
        `MEANING`; `weight` [..., d_model] (with more than two classes [..., class, d_model]) is over raw
        activations; the `..._by_penalty` have dim `penalty_C`. A site that is constant is in
        `attrs["constant_sites"]`.

    Raises:
        DataError, SiteError: labels or groups that do not match, one class only, too few rows for the folds,
            NaN, an unknown kind, sites of different widths, no such site in `acts`.

    Example:
        >>> statements = wb.datasets.load("capitals").filter(label=["true", "false"], negated=False)
        >>> acts = wb.collect(model, statements.texts)
        >>> sweep = probes.sweep(acts, statements.labels, groups=statements.groups)
        >>> sweep.summary["best"]["layer"], sweep.direction(layer=14)
    """
    progress = progress or Silent()
    started = time.perf_counter()
    if not (n_bootstrap >= 1 and n_control >= 1):
        raise DataError(
            f"n_bootstrap and n_control must be at least 1, but are {n_bootstrap} and {n_control}."
        )
    path = [float(penalty)] if isinstance(penalty, (int, float)) else list(penalty)
    columns = make_columns(kinds, path, tolerance)
    source = open_source(acts)
    if isinstance(labels, str):
        labels = source.labels(labels)
    rows = arrange(source, labels, groups, positive)
    names = source.select(sites)
    task, level = _task(rows, columns, folds, n_control if controls else 0, n_bootstrap, seed)

    progress.stage("probe", len(names) * len(rows.index) * len(rows.labels) * len(columns))
    cells: list[dict[str, Any]] = []
    constant: list[str] = []
    for name in names:
        for index in rows.index:
            x, is_constant = source.take(name, index, device)
            constant += [name] if is_constant and name not in constant else []
            found = cross_fit(x, task, columns, lambda: progress.advance(0))
            for label in range(len(rows.labels)):
                for one in found.values():
                    cells.append(describe(x, one, task, label))
                    progress.advance()

    settings = {
        "n": len(task.fold),
        **_classes(rows),
        "folds": folds,
        "grouped": rows.groups is not None,
        "n_groups": len(task.fold if rows.groups is None else np.unique(rows.groups)),
        "control": f"labels permuted over {level} within folds, {n_control} times" if controls else "none",
        "penalty": path,
        "n_bootstrap": n_bootstrap,
        "constant_sites": constant,
    }
    data = _dataset(cells, names, list(columns), rows, task, settings, keep_scores=keep_scores)
    summary = _summary(data, cells, rows, task, len(columns))
    seconds = {**source.provenance.seconds, "probe": round(time.perf_counter() - started, 4)}
    made = provenance(None, seed=seed, seconds=seconds, settings={"collect": source.provenance.settings})
    made = replace(made, model=source.provenance.model, inputs=source.provenance.inputs)
    return ProbeSweep("probe_sweep", data, made, summary)


def _task(
    rows: Rows, columns: dict[str, Columns], folds: int, n_control: int, n_bootstrap: int, seed: int
) -> tuple[Task, str]:
    codes = [label.code for label in rows.labels]
    n_classes = len(rows.labels[0].classes)
    few = [kind for kind, c in columns.items() if c.max_classes is not None and n_classes > c.max_classes]
    if few:
        shown = ", ".join(map(repr, rows.labels[0].classes[:8]))
        raise DataError(
            f"Two classes expected by kind {few[0]!r}, found {n_classes}: {shown}. Leave the other rows out, or use "
            "kind 'logistic', which knows several classes."
        )
    names = [[_named(c, i, len(label.classes)) for i, c in enumerate(label.classes)] for label in rows.labels]
    fold = shared_folds(codes, rows.groups, n=folds, seed=seed, names=names)
    level = "rows"
    targets = []
    for code in codes:
        permuted, level = permute_labels(code, fold, rows.groups, n=n_control, seed=seed + 1)
        targets += [code[None], permuted]
    bootstrap = measure.Bootstrap(rows.groups, len(fold), n=n_bootstrap, seed=seed + 2)
    return Task(np.concatenate(targets), len(codes), n_classes, fold, bootstrap), level


def _named(value: Any, index: int, n: int) -> str:
    return ("negative", "positive")[index] if n == 2 else repr(value)


def _classes(rows: Rows) -> dict[str, Any]:
    """What the labels are, for the attributes of the result."""
    one = rows.labels[0]
    if len(rows.labels) > 1:
        return {"labels": [label.name for label in rows.labels]}
    if len(one.classes) > 2:
        counts = np.bincount(one.code).tolist()
        return {
            "classes": [str(c) for c in one.classes],
            "n_of_class": counts,
            "majority_accuracy": one.majority,
        }
    return {
        "n_positive": int(one.positive.sum()),
        "positive": str(one.classes[1]),
        "negative": str(one.classes[0]),
        "majority_accuracy": one.majority,
    }


def _dataset(
    cells: list[dict[str, Any]],
    names: list[str],
    kinds: list[str],
    rows: Rows,
    task: Task,
    settings: dict[str, Any],
    *,
    keep_scores: bool,
) -> xr.Dataset:
    blocks = [_block_of(name) for name in names]
    per_block = len({part for _, part in blocks}) == 1 and None not in {layer for layer, _ in blocks}
    first = "layer" if per_block else "site"
    sizes = {first: len(names), "position": len(rows.index), "label": len(rows.labels), "probe": len(kinds)}
    coords: dict[str, Any] = {"probe": kinds, "site": (first, np.array(names, dtype=str))}
    if per_block:
        coords["layer"] = [layer for layer, _ in blocks]
    if rows.positions is None:
        del sizes["position"]
    else:
        coords["position"] = rows.positions
    if len(rows.labels) == 1:
        del sizes["label"]
    else:
        coords["label"] = [label.name for label in rows.labels]
        for i, key in enumerate(("negative", "positive")):
            coords[key] = ("label", [str(label.classes[i]) for label in rows.labels])
        coords["majority_accuracy"] = ("label", [label.majority for label in rows.labels])
    if "classes" in settings:
        coords["class"] = settings["classes"]
    coords["penalty_C"] = settings["penalty"]
    if keep_scores:
        coords["fold"] = ("row", task.fold)
        coords["label_code"] = ("row", task.code[0]) if len(rows.labels) == 1 else (
            ("label", "row"), task.code[:: task.per_label])  # fmt: skip
    variables = {}
    for key, (text, units) in MEANING.items():
        if key not in cells[0] or (key == "scores" and not keep_scores):
            continue  # no controls or scores were asked for
        values = _stacked([c[key] for c in cells], len(settings["penalty"]), key)
        tail = _tail(key, values.ndim - 1)
        variables[key] = array(
            (*sizes, *tail), values.reshape(*sizes.values(), *values.shape[1:]), long_name=text, units=units
        )
    return xr.Dataset(variables, coords, attrs=settings)


def _stacked(values: list[Any], n_penalties: int, key: str) -> np.ndarray:
    if key.endswith("_by_penalty"):  # kinds without a path have one number
        missing = np.full(n_penalties, np.nan)
        values = [
            v if len(v) == n_penalties and n_penalties > 1 else np.r_[v, missing][:n_penalties]
            for v in values
        ]
    if key == "scores":
        values = [v[:, 0] if v.shape[1] == 1 else v for v in values]
    return np.stack(values)


def _tail(key: str, n: int) -> tuple[str, ...]:
    if key.endswith("_by_penalty"):
        return ("penalty_C",)
    if key == "scores":
        return ("row", "class")[:n]
    return {"weight": ("class", "d_model")[-n:] if n else ()}.get(key, ("class",)[:n])


def _block_of(site: str) -> tuple[int | None, str]:
    """Block number and part of a site name; no number outside the blocks."""
    pieces = site.split(".", 2)
    inside = len(pieces) == 3 and pieces[0] == "blocks"
    return (int(pieces[1]), pieces[2]) if inside else (None, site)


def _summary(
    data: xr.Dataset, cells: list[dict[str, Any]], rows: Rows, task: Task, n_kinds: int
) -> dict[str, Any]:
    n_labels = len(rows.labels)
    best = []
    for number in range(n_labels):
        part = data.isel(label=number) if n_labels > 1 else data
        mine = [c for i, c in enumerate(cells) if i // n_kinds % n_labels == number]
        best.append(_best(part, mine, task.code[number * task.per_label], task.fold))
    said = ("n", "n_positive", "positive", "classes", "majority_accuracy", "control")
    found = {key: data.attrs[key] for key in said if key in data.attrs}
    if n_labels == 1:
        return {"best": best[0], "n_cells": len(cells), **found}
    by_label = dict(zip(data["label"].values.tolist(), best, strict=True))
    top = max(by_label, key=lambda name: by_label[name]["auc"])
    return {"best": by_label[top] | {"label": top}, "best_by_label": by_label, "n_cells": len(cells), **found}


def _best(
    data: xr.Dataset, cells: list[dict[str, Any]], code: np.ndarray, fold: np.ndarray
) -> dict[str, Any]:
    values = data["auc"].values
    place = np.unravel_index(int(np.argmax(values)), values.shape)
    chosen = data.isel(dict(zip(data["auc"].dims, place, strict=True)))
    best = {str(name): chosen[name].item() for name in (*data["auc"].dims, "site")}
    keys = ("auc", "auc_low", "auc_high", "control_auc", "control_auc_high", "accuracy", "selectivity")
    keys = (*keys, "calibration_error")
    best |= {key: round(float(chosen[key]), 4) for key in keys if key in chosen}
    if not np.isnan(chosen["penalty"]):
        best["penalty"] = float(chosen["penalty"])
    columns = [measure.one_against_rest(c["scores"], code) for c in cells]
    nested = [
        measure.nested_auc([scores[k] for scores, _ in columns], columns[0][1][k], fold)
        for k in range(len(columns[0][1]))
    ]
    best["nested_auc"] = round(float(np.mean(nested)), 4)
    if "control_auc" in data:
        highest = np.max([c["control_aucs"] for c in cells], axis=0)
        best["control_best_auc"] = round(float(highest.mean()), 4)
    return best
