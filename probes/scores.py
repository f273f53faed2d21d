"""How good a probe is: its rows and folds, its out-of-fold scores with an interval, and the control.

Every row is scored once, by a probe that was fitted without its fold. From these scores:

    AUC             P(score of a positive row > score of a negative row), ties count one half, over pairs of
                    rows *of the same fold*: scores of different fits are not on one scale, and comparing them
                    across folds biases the AUC downwards on small data (Parker, Günter and Bedo 2007)
    accuracy        share of rows with the right sign, the threshold being the probe's own
    log-loss        −mean log p(label), in nats; ln 2 = 0.693 is a coin
    interval        95 % percentile bootstrap of the AUC over groups (over rows without groups), of the given
                    out-of-fold scores; how much another training set would change the probe is not in it
    control         the same folds and procedure with labels permuted within each fold (which keeps its share
                    of positives): over whole groups if each group has one label, else over rows
    selectivity     accuracy − control accuracy. After Hewitt and Liang 2019 (arXiv:1909.03368); their control
                    task gives every *word type* a random label, ours permutes the labels of the rows
    nested AUC      for each fold, the cell that is best on the other folds, scored on this one: what picking
                    the best of many cells is worth on rows that had no say in the picking

An AUC clearly below one half: rows that share a word have opposite labels, and stand in different groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from workbench.activations import Activations
from workbench.errors import DataError

CHUNK = 2_000_000  # bootstrap weights held at once


@dataclass(frozen=True, eq=False)
class Rows:
    """Which rows of the activations make a cell, and what is known of them.

    Attributes:
        index: [cell, row] rows of the activations; several cells where every position is its own.
        positive: [row] whether the label is the positive one.
        groups: [row] numbers from 0, or None.
        classes: the negative and the positive label.
        positions: coordinate of the cells, or None where there is one cell.
    """

    index: Int64[np.ndarray, "cell row"]
    positive: Bool[np.ndarray, " row"]
    groups: Int64[np.ndarray, " row"] | None
    classes: tuple[Any, Any]
    positions: np.ndarray | None = None


def arrange(acts: Activations, labels: Any, groups: Any = None, positive: Any = None) -> Rows:
    """Match labels and groups to the rows of `acts`; what may be given is in `probes.sweep`."""
    given = _values(labels, "labels")
    per_prompt = np.bincount(acts.prompt, minlength=acts.n_prompts)
    if len(given) not in (acts.n_prompts, len(acts)):
        raise DataError(
            f"{len(given)} labels for {acts.n_prompts} prompts ({len(acts)} rows): give one for each."
        )
    classes = _two_classes(given, positive)
    up = np.array([value == classes[1] for value in given])
    index, positions, codes = np.arange(len(acts))[None], None, None
    if len(given) == acts.n_prompts:
        if per_prompt.min() != per_prompt.max():
            raise DataError(
                f"Prompts have between {per_prompt.min()} and {per_prompt.max()} positions here: give one "
                "label per row, such as `np.array(labels)[acts.prompt]`, or collect equally many positions."
            )
        index = np.argsort(acts.prompt, kind="stable").reshape(acts.n_prompts, -1).T
        absolute = acts.position[index]
        if len(index) > 1:
            same = bool((absolute == absolute[:, :1]).all())
            positions = absolute[:, 0] if same else np.arange(len(index))
    elif groups is None:
        codes = acts.prompt  # rows of one prompt are no independent rows
    if groups is not None:
        names = _values(groups, "groups")
        if len(names) == acts.n_prompts < len(given):
            names = [names[i] for i in acts.prompt]
        if len(names) != len(given):
            raise DataError(f"{len(names)} groups for {len(given)} labels: give one for each.")
        codes = np.unique([str(name) for name in names], return_inverse=True)[1]
    return Rows(index, up, codes, classes, positions)


def _values(given: Any, what: str) -> list[Any]:
    values = list(given.tolist() if hasattr(given, "tolist") else given)
    if any(isinstance(v, (list, tuple, dict)) for v in values):
        raise DataError(f"The {what} must be a flat list with one value per prompt or row.")
    missing = [i for i, v in enumerate(values) if v is None or v != v]
    if missing:
        raise DataError(f"{len(missing)} of {len(values)} {what} are None or NaN, the first at {missing[0]}.")
    return values


def _two_classes(labels: list[Any], positive: Any) -> tuple[Any, Any]:
    try:
        found = sorted(set(labels))
    except TypeError:
        found = sorted(set(labels), key=str)
    shown = ", ".join(repr(c) for c in found[:8]) + (", …" if len(found) > 8 else "")
    if len(found) != 2:
        more = " Leave the other rows out (more classes: a later version)." if len(found) > 2 else ""
        raise DataError(f"Two classes expected, found {len(found)} in {len(labels)} labels: {shown}.{more}")
    if positive is None:
        return found[0], found[1]
    chosen = [c for c in found if c == positive or str(c) == str(positive)]
    if not chosen:
        raise DataError(f"The positive class {positive!r} is not among the labels, which are {shown}.")
    return next(c for c in found if c != chosen[0]), chosen[0]


def assign_folds(
    positive: Bool[np.ndarray, " row"], groups: Int64[np.ndarray, " row"] | None, *, n: int, seed: int
) -> Int64[np.ndarray, " row"]:
    """The fold in which each row is held out, 0 to n − 1: stratified by label, no group in two folds.

    Raises:
        DataError: a class has fewer rows (or occurs in fewer groups) than there are folds, or some training
            set would hold one class only.
    """
    if n < 2:
        raise DataError(f"Cross-validation needs at least 2 folds, not {n}.")
    of = "rows" if groups is None else "groups"
    for name, members in (("positive", positive), ("negative", ~positive)):
        count = int(members.sum()) if groups is None else len(np.unique(groups[members]))
        if count < n:
            raise DataError(
                f"The {name} class has {count} {of}, fewer than the {n} folds: use at most {count} folds "
                "(at least 2), or give more prompts."
            )
    empty = np.zeros((len(positive), 1))
    if groups is None:
        parts = StratifiedKFold(n, shuffle=True, random_state=seed).split(empty, positive)
    else:
        parts = StratifiedGroupKFold(n, shuffle=True, random_state=seed).split(empty, positive, groups)
    fold = np.full(len(positive), -1, dtype=np.int64)
    for index, (_, held_out) in enumerate(parts):
        fold[held_out] = index
    for index in range(n):
        kept = positive[fold != index]
        if kept.all() or not kept.any():
            raise DataError(f"Without fold {index} one class is left: groups are too uneven for {n} folds.")
    return fold


def permute_labels(
    positive: Bool[np.ndarray, " row"],
    fold: Int64[np.ndarray, " row"],
    groups: Int64[np.ndarray, " row"] | None,
    *,
    n: int,
    seed: int,
) -> tuple[Bool[np.ndarray, "n row"], str]:
    """`n` permutations of the labels within folds, and what was permuted: `"groups"` or `"rows"`."""
    random = np.random.default_rng(seed)
    units, level = np.arange(len(positive)), "rows"
    if groups is not None:
        share = np.bincount(groups, weights=positive) / np.bincount(groups)
        if np.isin(share, (0.0, 1.0)).all():
            units, level = groups, "groups"
    _, first, unit = np.unique(units, return_index=True, return_inverse=True)
    label, home = positive[first], fold[first]
    permuted = np.empty((n, len(positive)), dtype=bool)
    for row in permuted:
        new = label.copy()
        for index in range(int(fold.max()) + 1):
            members = np.flatnonzero(home == index)
            new[members] = label[random.permutation(members)]
        row[:] = new[unit]
    return permuted, level


def pairs_won(
    scores: Float64[np.ndarray, " row"],
    positive: Bool[np.ndarray, " row"],
    fold: Int64[np.ndarray, " row"],
    weights: np.ndarray | None = None,
) -> tuple[Float64[np.ndarray, "draw fold"], Float64[np.ndarray, "draw fold"]]:
    """Per fold, how many (positive, negative) pairs are in the right order, and how many there are.

    `weights` [draw, row] says how often each row counts, for a bootstrap (one draw of every row once by
    default). Cost is O(row log row + draw · row): sorting, then sums of weights below each score.
    """
    weights = np.ones((1, len(scores))) if weights is None else weights
    n_folds = int(fold.max()) + 1
    won, total = np.zeros((len(weights), n_folds)), np.zeros((len(weights), n_folds))
    for index in range(n_folds):
        here = fold == index
        up, down = scores[here & positive], scores[here & ~positive]
        w_up, w_down = weights[:, here & positive], weights[:, here & ~positive]
        order = np.argsort(down, kind="stable")
        below = np.concatenate([np.zeros((len(weights), 1)), np.cumsum(w_down[:, order], axis=1)], axis=1)
        lower = np.searchsorted(down[order], up, side="left")
        upper = np.searchsorted(down[order], up, side="right")
        won[:, index] = (w_up * (below[:, lower] + below[:, upper])).sum(1) / 2
        total[:, index] = w_up.sum(1) * w_down.sum(1)
    return won, total


def auc(
    scores: Float64[np.ndarray, " row"], positive: Bool[np.ndarray, " row"], fold: Int64[np.ndarray, " row"]
) -> float:
    """Area under the ROC curve over pairs of the same fold (the folds' own AUCs weighted by their pairs).

    Example:
        >>> auc(np.array([0.1, 0.9]), np.array([False, True]), np.array([0, 0]))
        1.0
    """
    won, total = pairs_won(scores, positive, fold)
    return float(won.sum() / total.sum())


def accuracy(scores: Float64[np.ndarray, " row"], positive: Bool[np.ndarray, " row"]) -> float:
    """Share of rows whose score has the right sign (0 counts as negative)."""
    return float(np.mean((scores > 0) == positive))


def log_loss(scores: Float64[np.ndarray, " row"], positive: Bool[np.ndarray, " row"]) -> float:
    """−mean log p(label) in nats, with p = σ(score)."""
    return float(np.mean(np.logaddexp(0, np.where(positive, -scores, scores))))


class Bootstrap:
    """`n` draws of groups (of rows without groups) with replacement, the same for every cell."""

    def __init__(self, groups: Int64[np.ndarray, " row"] | None, n_rows: int, *, n: int, seed: int) -> None:
        self.unit = np.arange(n_rows) if groups is None else groups
        n_units = int(self.unit.max()) + 1
        random = np.random.default_rng(seed)
        self.counts = random.multinomial(n_units, np.full(n_units, 1 / n_units), size=n).astype(np.uint16)

    def auc_interval(self, scores: np.ndarray, positive: np.ndarray, fold: np.ndarray) -> tuple[float, float]:
        """95 % percentile interval of the AUC; draws without a single pair are left out."""
        draws: list[np.ndarray] = []
        step = max(1, CHUNK // len(scores))
        for start in range(0, len(self.counts), step):
            weights = self.counts[start : start + step, self.unit].astype(np.float64)
            won, total = pairs_won(scores, positive, fold, weights)
            some = total.sum(1) > 0
            draws.append(won.sum(1)[some] / total.sum(1)[some])
        low, high = np.quantile(np.concatenate(draws), [0.025, 0.975])
        return float(low), float(high)


def score_cell(
    out: Float64[np.ndarray, "target row"],
    targets: Bool[np.ndarray, "target row"],
    fold: Int64[np.ndarray, " row"],
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """Every score of one cell; `targets[0]` holds the true labels, the others (if any) are permuted."""
    low, high = bootstrap.auc_interval(out[0], targets[0], fold)
    right = accuracy(out[0], targets[0])
    found = {
        "auc": auc(out[0], targets[0], fold),
        "auc_low": low,
        "auc_high": high,
        "accuracy": right,
        "log_loss": log_loss(out[0], targets[0]),
    }
    if len(targets) == 1:
        return found
    control = list(zip(out[1:], targets[1:], strict=True))
    aucs = [auc(scores, target, fold) for scores, target in control]
    chance = float(np.mean([accuracy(scores, target) for scores, target in control]))
    return found | {
        "control_auc": float(np.mean(aucs)),
        "control_auc_high": max(aucs),
        "control_accuracy": chance,
        "selectivity": right - chance,
        "control_aucs": aucs,
    }


def nested_auc(
    scores: Sequence[Float64[np.ndarray, " row"]],
    positive: Bool[np.ndarray, " row"],
    fold: Int64[np.ndarray, " row"],
) -> float:
    """AUC at the cell chosen without the fold it is scored on, from the scores of every cell.

    For each fold, the cell with the highest AUC over the *other* folds is taken and its pairs in this fold
    are counted. The choice does not see this fold's scores, but the probes that scored the other folds were
    fitted with this fold's rows among others: an inner cross-validation would be stricter and dearer.
    """
    counted = [pairs_won(cell, positive, fold) for cell in scores]
    won = np.stack([w[0] for w, _ in counted])
    total = counted[0][1][0]
    gained = 0.0
    for index in np.flatnonzero(total):
        others = won.sum(1) - won[:, index]
        gained += won[int(np.argmax(others)), index]
    return float(gained / total.sum())
