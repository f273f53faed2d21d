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
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from probes import scores as measure
from probes.cells import Task, cross_fit, describe, spread_along
from probes.columns import Columns, EstimatorColumns, make_columns
from probes.folds import permute_labels, shared_folds, whole_number
from probes.labels import Rows, arrange
from probes.parallel import side_by_side
from probes.solve.newton import TOLERANCE
from probes.source import Source, open_source
from probes.stream import KINDS as STREAMED_KINDS
from probes.stream import stream_fit
from probes.sweep_data import classes, dataset, summary
from probes.sweep_result import ProbeSweep
from workbench.errors import DataError
from workbench.progress import Progress, Silent
from workbench.provenance import provenance

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Default path of `penalty`: from probes that hardly leave the prior to ones that fit the training rows."""

MOST_WORKERS = 8
"""Cells at a time, at most: Python itself runs one thread."""


def sweep(
    acts: Any,
    labels: Any,
    *,
    kinds: Any = ("logistic", "mass_mean"),
    controls: bool = True,
    groups: Any = None,
    sites: str | Iterable[str] | None = None,
    positive: Any = None,
    folds: int | float = 5,
    penalty: Any = PENALTIES,
    seed: int = 0,
    n_bootstrap: int = 1000,
    n_control: int = 5,
    keep_scores: bool = False,
    tolerance: float = TOLERANCE,
    device: str | torch.device = "cpu",
    memory: float | int = 8e9,
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
            Where every prompt has one row, a list is one per prompt, *in the order of prompt numbers*; a store's
            rows stand in another order (of its batches), so of a store give the name of one of its labels (also in
            the dict). A list that repeats such a label row by row is refused; one worked out from several cannot be
            told apart.
        kinds: `logistic`, `ridge`, `mass_mean`, `mass_mean_whitened`, fitted for all labels at once (see
            `probes.estimators`, `probes.columns`; all but the plain mass-mean probe standardise), `lda`, `mlp`,
            `pca`, `kmeans`; or a dict of estimators by name (None for one of these kinds), fitted one by one.
        controls: also fit permuted labels. Without them a score says little.
        groups: one per prompt or per row, or the name of a store's label; a group (a country) is never in both
            training and test rows. Groups per row are joined where a prompt connects them.
        sites: names or globs; by default all of `acts`. Of one width; `hook_z` and its like are flattened.
        positive: the positive class; by default the one that sorts last (`True`, 1, "true", "positive").
        folds: of the cross-validation, stratified by label.
        penalty: scikit-learn's `C`, the *inverse* strength of the L2 penalty, of `logistic` and `ridge`; of several
            the one with the least held-out log-loss is taken, without the fold that is scored. (`ridge` in memory
            takes it by leave-one-out: its `..._by_penalty` have one number, at the C of the fit to all rows.)
        seed: for folds, permutations and bootstrap; the same for every cell, so that cells compare.
        n_bootstrap: draws for the intervals.
        n_control: permutations for the control. `control_auc_high` is the highest of so many.
        keep_scores: keep the out-of-fold score of every row (variable `scores`), for calibration, conformal sets or
            tests of your own.
        tolerance: gradient norm of the mean objective at which a logistic fit counts as converged.
        device: where the linear algebra runs (float64: `cpu` or `cuda`).
        memory: bytes that one site's rows may take (float64 and a working copy); a site of a store that is larger is
            read twice in pieces instead, which `ridge` and `mass_mean` can do (`probes.stream`).
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
    n_bootstrap, n_control = (
        whole_number(n_bootstrap, "n_bootstrap", 1),
        whole_number(n_control, "n_control", 1),
    )
    folds, seed = whole_number(folds, "folds", 0), whole_number(seed, "seed", 0)
    path = numbers(penalty, "penalty")
    if kinds is None:
        raise DataError(
            "kinds must name one kind of probe or several, such as ['logistic', 'mass_mean'], not None."
        )
    columns = make_columns(kinds, path, tolerance)
    source = open_source(acts)
    rows = arrange(source, labels, groups, positive)
    names = source.select(sites)
    task, level = _task(rows, columns, folds, n_control if controls else 0, n_bootstrap, seed)

    progress.stage("probe", len(names) * len(rows.index) * len(rows.labels) * len(columns))
    cells: list[dict[str, Any]] = []
    constant: list[str] = []
    streamed = {name for name in names if source.bytes(name, rows.index.shape[1]) > memory}
    _check_streamed(streamed, list(columns), task)

    def cell(place: tuple[str, np.ndarray], check: Callable[[], None]) -> tuple[list[dict[str, Any]], bool]:
        name, index = place
        if name in streamed:
            return _stream(source, name, index, task, list(columns), tuple(path), check)
        return _in_memory(source, name, index, task, columns, device, check)

    places = [(name, index) for name in names for index in rows.index]
    workers = _workers(device, source, places, columns, memory)
    done = side_by_side(cell, places, lambda: progress.advance(0), workers)
    for (name, _), (more, is_constant) in zip(places, done, strict=True):
        cells += more
        constant += [name] if is_constant and name not in constant else []
        progress.advance(len(more))

    settings = {
        "n": len(task.fold),
        **classes(rows),
        "folds": folds,
        "grouped": rows.groups is not None,
        "n_groups": len(task.fold if rows.groups is None else np.unique(rows.groups)),
        "control": f"labels permuted over {level} within folds, {n_control} times" if controls else "none",
        "penalty": path,
        "n_bootstrap": n_bootstrap,
        "constant_sites": constant,
        "streamed_sites": sorted(streamed),
    }
    data = dataset(cells, names, list(columns), rows, task, settings, keep_scores=keep_scores)
    found = summary(data, cells, rows, task, len(columns))
    seconds = {**source.provenance.seconds, "probe": round(time.perf_counter() - started, 4)}
    made = provenance(None, seed=seed, seconds=seconds, settings={"collect": source.provenance.settings})
    made = replace(made, model=source.provenance.model, inputs=source.provenance.inputs)
    return ProbeSweep("probe_sweep", data, made, found)


def numbers(given: Any, what: str) -> list[float]:
    """One number, or several, as a list; `DataError` for what is no number (text, too)."""
    listed: Any = list(given) if isinstance(given, Iterable) and not hasattr(given, "tolist") else given
    found = np.atleast_1d(np.asarray(listed.tolist() if hasattr(listed, "tolist") else listed))
    if found.dtype.kind not in "fiu" or found.ndim > 1 or not found.size:
        raise DataError(f"{what} must be a number, or a flat list of numbers, not {given!r}.")
    return found.astype(np.float64).tolist()


def _in_memory(
    source: Source,
    name: str,
    index: np.ndarray,
    task: Task,
    columns: dict[str, Columns],
    device: str | torch.device,
    check: Callable[[], None],
) -> tuple[list[dict[str, Any]], bool]:
    x, constant = source.take(name, index, device)
    found = cross_fit(x, task, columns, check)
    cells = []
    for label in range(task.n_labels):
        for one in found.values():
            cells.append(describe(x.shape[1], lambda coef: spread_along(x, coef), one, task, label))
            check()
    return cells, constant


def _workers(
    device: str | torch.device,
    source: Source,
    places: list[tuple[str, np.ndarray]],
    columns: dict[str, Columns],
    memory: float | int,
) -> int:
    """Cells at a time: one per thread on the CPU where they fit in memory, one where an estimator has threads."""
    if torch.device(device).type != "cpu" or any(isinstance(c, EstimatorColumns) for c in columns.values()):
        return 1
    size = max(source.bytes(name, len(index)) for name, index in places)
    return max(1, min(torch.get_num_threads(), int(memory // max(size, 1)), MOST_WORKERS))


def _stream(
    source: Source,
    name: str,
    index: np.ndarray,
    task: Task,
    kinds: list[str],
    path: tuple[float, ...],
    check: Callable[[], None],
) -> tuple[list[dict[str, Any]], bool]:
    found, along, constant = stream_fit(source, name, index, task, kinds, path, check)
    cells = []
    for label in range(task.n_labels):
        for kind, one in found.items():
            spread = 0.0 if constant else along[f"{kind}:{label}"]

            def scale(coef: np.ndarray, spread: float = spread) -> np.ndarray:
                length = np.linalg.norm(coef, axis=1)
                return np.divide(spread, length, out=np.zeros_like(length), where=length > 0)

            cells.append(describe(source.width(name), scale, one, task, label))
    return cells, constant


def _check_streamed(streamed: set[str], kinds: list[str], task: Task) -> None:
    rest = [kind for kind in kinds if kind not in STREAMED_KINDS]
    if streamed and (rest or task.n_classes > 2):
        what = (
            f"kind {rest[0]!r} needs its rows at once"
            if rest
            else "more than two classes need the rows at once"
        )
        raise DataError(
            f"Site {min(streamed)!r} is larger than memory= allows, and {what}: use kinds "
            f"{list(STREAMED_KINDS)}, which are fitted from sums, give a larger memory=, or take fewer rows."
        )


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
    levels: dict[str, list[str]] = {}
    targets = []
    for label, code in zip(rows.labels, codes, strict=True):
        permuted, level = permute_labels(code, fold, rows.groups, n=n_control, seed=seed + 1)
        levels.setdefault(level, []).append(label.name)
        targets += [code[None], permuted]
    level = " or ".join(
        level + (f" ({', '.join(names)})" if len(levels) > 1 else "") for level, names in levels.items()
    )
    bootstrap = measure.Bootstrap(rows.groups, len(fold), n=n_bootstrap, seed=seed + 2)
    return Task(np.concatenate(targets), len(codes), n_classes, fold, bootstrap, rows.groups), level


def _named(value: Any, index: int, n: int) -> str:
    """A class for a message: its label, and of two which one it is."""
    return f"{('negative', 'positive')[index]} ({value!r})" if n == 2 else repr(value)
