"""One cell of a sweep: probes of every kind and label on one set of rows, cross-validated, penalty chosen.

1. Rows are factorised once (for logistic probes), or once per fold; every kind fits all label columns (true and
   permuted) at all penalties without each fold in turn, and scores the rows of the fold.
2. The penalty of a fold is the one with the least log-loss on the *other* folds, so the rows it scores have no say in
   it. (The probes that scored the other folds were fitted with this fold's rows among others; an inner
   cross-validation would be stricter and as many times dearer as there are folds.) Every permuted label vector
   chooses its own: the control has the same freedom.
3. Each kind is fitted once more to all rows, at the penalty with the least log-loss over all folds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from probes import scores as measure
from probes.columns import Columns, Fitted, LogisticColumns, Train
from probes.estimators import Weights


@dataclass(frozen=True, eq=False)
class Task:
    """What every cell of a sweep shares.

    Attributes:
        code: [target, row] classes; per label set the true labels, then their permutations.
        n_labels: label sets; `len(code) / n_labels` targets each.
        n_classes: of every target.
        fold: [row] in which each row is held out.
        bootstrap: for the intervals.
        groups: [row] numbers, for kinds that split their training rows once more; None: every row by itself.
    """

    code: Int64[np.ndarray, "target row"]
    n_labels: int
    n_classes: int
    fold: Int64[np.ndarray, " row"]
    bootstrap: measure.Bootstrap
    groups: Int64[np.ndarray, " row"] | None = None

    @property
    def per_label(self) -> int:
        """Targets of one label set: itself and its permutations."""
        return len(self.code) // self.n_labels


@dataclass(frozen=True, eq=False)
class Found:
    """One kind of probe in one cell.

    Attributes:
        out: [target, row, class] out-of-fold log-odds at the chosen penalties.
        log_loss, auc: [penalty, label] held-out scores of the true labels at every penalty.
        weights: [label] per class, fitted to all rows at the chosen penalty; None where the kind has none.
        penalty: [label] C that was chosen for them.
        gradient_norm: [label] the largest of all their fits.
        converged: [label] all their fits.
    """

    out: Float64[np.ndarray, "target row cls"]
    log_loss: Float64[np.ndarray, "penalty label"]
    auc: Float64[np.ndarray, "penalty label"]
    weights: list[list[Weights] | None]
    penalty: Float64[np.ndarray, " label"]
    gradient_norm: Float64[np.ndarray, " label"]
    converged: np.ndarray


def cross_fit(
    x: Tensor, task: Task, kinds: dict[str, Columns], between: Callable[[], None] = lambda: None
) -> dict[str, Found]:
    """Cross-validate every kind on [row, d] float64 rows. `between` is called now and then (progress, cancel)."""
    code = torch.from_numpy(task.code).to(x.device)
    fold = torch.from_numpy(task.fold).to(x.device)
    done: dict[str, tuple[Tensor, Fitted]] = {}
    by_fold: dict[str, Columns] = {}
    for kind, columns in kinds.items():
        if isinstance(columns, LogisticColumns):
            done[kind] = columns.cross(x, code, task.n_classes, fold, between)
        else:
            by_fold[kind] = columns
    done |= _fold_by_fold(x, code, fold, task.n_classes, by_fold, between, task.groups)
    return {
        kind: _choose(task, out.cpu().numpy(), fitted)
        for kind, (out, fitted) in ((k, done[k]) for k in kinds)
    }


def _fold_by_fold(
    x: Tensor,
    code: Tensor,
    fold: Tensor,
    n_classes: int,
    kinds: dict[str, Columns],
    between: Callable[[], None],
    groups: Int64[np.ndarray, " row"] | None,
) -> dict[str, tuple[Tensor, Fitted]]:
    """Kinds that are fitted to one training set after the other, which share its factorisation."""
    if not kinds:
        return {}
    out: dict[str, Tensor] = {}
    for index in range(int(fold.max()) + 1):
        train, test = fold != index, fold == index
        rows = Train(x[train], None if groups is None else groups[train.cpu().numpy()])
        for kind, columns in kinds.items():
            scores = columns.fit(rows, code[:, train], n_classes).scores(x[test])
            if kind not in out:
                out[kind] = scores.new_zeros(*scores.shape[:2], len(x), scores.shape[3])
            out[kind][:, :, test] = scores
        between()
    whole = Train(x, groups)
    return {kind: (out[kind], columns.fit(whole, code, n_classes)) for kind, columns in kinds.items()}


def _choose(task: Task, every: np.ndarray, fitted: Fitted) -> Found:
    """Penalties, scores and weights from the out-of-fold scores [penalty, target, row, class] at all penalties."""
    n_columns = every.shape[3]
    out = np.zeros(every.shape[1:])
    loss = measure.losses(every, task.code[None])
    folds = [np.flatnonzero(task.fold == index) for index in range(int(task.fold.max()) + 1)]
    per_fold = np.stack([loss[:, :, rows].sum(2) for rows in folds])
    total = per_fold.sum(0)
    for rows, own in zip(folds, per_fold, strict=True):
        chosen = (total - own).argmin(0)
        out[:, rows] = np.take_along_axis(every[:, :, rows], chosen[None, :, None, None], 0)[0]
    true = slice(0, None, task.per_label)
    at = total[:, true].argmin(0)
    aucs = _aucs(every[:, true], task.code[true], task.fold)
    weights: list[list[Weights] | None] = []
    for label, p in enumerate(at.tolist()):
        found = [fitted.weights(p, label * task.per_label, c) for c in range(n_columns)]
        weights.append(None if any(w is None for w in found) else found)  # type: ignore[arg-type]
    group = (-1, task.n_labels, task.per_label)
    return Found(
        out,
        total[:, true] / task.code.shape[1],
        aucs,
        weights,
        fitted.penalty[:, true].numpy()[at, np.arange(task.n_labels)],
        fitted.gradient_norm.numpy().reshape(group).max((0, 2)),
        np.asarray(fitted.converged.numpy().reshape(group).all((0, 2))),
    )


def _aucs(every: np.ndarray, code: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """[penalty, label] AUC of [penalty, label, row, class] scores."""
    if every.shape[3] > 1:
        return np.array(
            [[measure.class_auc(s, c, fold) for s, c in zip(e, code, strict=True)] for e in every]
        )
    flat = every[..., 0].reshape(-1, every.shape[2])
    positive = np.broadcast_to(code == 1, every.shape[:3]).reshape(flat.shape)
    return measure.aucs(flat, positive, fold).reshape(every.shape[:2])


def spread_along(x: Tensor, coef: np.ndarray) -> np.ndarray:
    """[class] standard deviation of the rows along each unit weight; 0 for a weight of zero."""
    length = np.linalg.norm(coef, axis=1)
    along = (x @ torch.from_numpy(coef.T).to(x)).std(0, correction=0).cpu().numpy()
    return np.divide(along, length, out=np.zeros_like(along), where=length > 0)


def describe(
    d: int, spread: Callable[[np.ndarray], np.ndarray], found: Found, task: Task, label: int
) -> dict[str, Any]:
    """Everything of one label in one cell that goes into the result; `spread` is `spread_along` the rows."""
    span = slice(label * task.per_label, (label + 1) * task.per_label)
    scored = measure.score_cell(found.out[span], task.code[span], task.fold, task.bootstrap)
    weights = found.weights[label]
    if weights is None:
        missing = np.full((found.out.shape[2], d), np.nan, dtype=np.float32)
        coef, bias, scale = missing, np.full(len(missing), np.nan), np.full(len(missing), np.nan)
    else:
        coef = np.stack([w.coef for w in weights])
        scale = spread(coef)
        bias, coef = np.array([w.intercept for w in weights]), coef.astype(np.float32)
    one = len(coef) == 1
    return {
        **scored,
        "penalty": found.penalty[label],
        "auc_by_penalty": found.auc[:, label],
        "log_loss_by_penalty": found.log_loss[:, label],
        "gradient_norm": found.gradient_norm[label],
        "converged": bool(found.converged[label]),
        "weight": coef[0] if one else coef,
        "bias": bias[0] if one else bias,
        "scale": scale[0] if one else scale,
        "scores": found.out[span.start],
    }
