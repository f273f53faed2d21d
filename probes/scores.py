"""How good a probe is: its out-of-fold scores with an interval, and the control.

Every row is scored once, by a probe that was fitted without its fold. From these scores:

    AUC             P(score of a positive row > score of a negative row), ties count one half, over pairs of
                    rows *of the same fold*: scores of different fits are not on one scale, and comparing them
                    across folds biases the AUC downwards on small data (Parker, Günter and Bedo 2007). With more
                    than two classes: the mean over classes of that of each against the rest, ordered by its log-odds
    accuracy        share of rows with the right sign (the highest class score), the threshold the probe's own
    log-loss        -mean log p(label), in nats; ln 2 = 0.693 is a coin
    calibration     Σ_bin |rows| / n · |mean p - share right|, p the probability of the class that is answered, over
    error           ten bins of equally many rows (Naeini et al. 2015; equal mass, as Nixon et al. 2019); rows of
                    equal p stay in one bin, so that the order of the rows has no say
    intervals       95 % percentile bootstrap over groups (over rows without groups) of the given out-of-fold
                    scores; how much another training set would change the probe is not in it
    control         the same folds and procedure with labels permuted within each fold (which keeps its share
                    of positives): over whole groups if each group has one label, else over rows
    selectivity     accuracy - control accuracy. After Hewitt and Liang 2019 (arXiv:1909.03368); their control
                    task gives every *word type* a random label (`probes.trust`), ours permutes those of the rows
    nested AUC      for each fold, the cell that is best on the other folds, scored on this one: what picking
                    the best of many cells is worth on rows that had no say in the picking

An AUC clearly below one half: rows that share a word have opposite labels, and stand in different groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.special import logsumexp, softmax
from scipy.stats import rankdata

from probes.folds import assign_folds, permute_labels  # noqa: F401
from probes.labels import arrange  # noqa: F401

CHUNK = 2_000_000  # bootstrap weights held at once


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


def aucs(
    scores: Float64[np.ndarray, "column row"],
    positive: Bool[np.ndarray, "column row"],
    fold: Int64[np.ndarray, " row"],
) -> Float64[np.ndarray, " column"]:
    """`auc` of many score columns at once, from ranks: pairs won = Σ ranks of the positives - n₁(n₁+1)/2."""
    won, total = np.zeros(len(scores)), np.zeros(len(scores))
    for index in range(int(fold.max()) + 1):
        here = fold == index
        up = positive[:, here]
        n_up = up.sum(1)
        ranks = rankdata(scores[:, here], axis=1)
        won += (ranks * up).sum(1) - n_up * (n_up + 1) / 2
        total += n_up * (up.shape[1] - n_up)
    return won / total


def class_auc(
    scores: Float64[np.ndarray, "row cls"],
    code: Int64[np.ndarray, " row"],
    fold: Int64[np.ndarray, " row"],
) -> float:
    """AUC of one cell: of the only column, or the mean over classes of each against the rest."""
    columns, positive = one_against_rest(scores, code)
    return float(aucs(columns, positive, fold).mean())


def one_against_rest(
    scores: Float64[np.ndarray, "row cls"], code: Int64[np.ndarray, " row"]
) -> tuple[Float64[np.ndarray, "column row"], Bool[np.ndarray, "column row"]]:
    """Score columns and which rows are positive in each: one for two classes, else one per class (log-odds)."""
    if scores.shape[1] == 1:
        return scores.T, code[None] == 1
    return log_odds(scores).T, code[None] == np.arange(scores.shape[1])[:, None]


def log_odds(scores: Float64[np.ndarray, "row cls"]) -> Float64[np.ndarray, "row cls"]:
    """log p / (1 - p) of each class against the others, p their softmax: s_c - log Σ_others exp s.

    The order is that of p, but p of a sure probe rounds to 1, where rows that differ would become ties.
    """
    rows, top = np.arange(len(scores)), scores.argmax(1)
    highest = scores[rows, top][:, None]
    e = np.exp(scores - highest)
    rest = e.sum(1, keepdims=True) - e  # at least 1 beside the highest score, where nothing cancels
    rest[rows, top] = 1.0
    odds = scores - highest - np.log(rest)
    others = scores.copy()
    others[rows, top] = -np.inf
    odds[rows, top] = highest[:, 0] - logsumexp(others, axis=1)
    return odds


def right(scores: Float64[np.ndarray, "*cell row cls"], code: Int64[np.ndarray, " row"]) -> np.ndarray:
    """[..., row] whether the answered class is the right one (a score of 0 counts as negative)."""
    if scores.shape[-1] == 1:
        return (scores[..., 0] > 0) == (code == 1)
    return scores.argmax(-1) == code


def losses(
    scores: Float64[np.ndarray, "*cell row cls"], code: Int64[np.ndarray, "*#cell row"]
) -> Float64[np.ndarray, "*cell row"]:
    """[..., row] -log p(label) in nats, p = σ(score) or softmax."""
    if scores.shape[-1] == 1:
        return np.logaddexp(0, np.where(code == 1, -scores[..., 0], scores[..., 0]))
    code = np.broadcast_to(code, scores.shape[:-1])
    return logsumexp(scores, axis=-1) - np.take_along_axis(scores, code[..., None], -1)[..., 0]


def accuracy(scores: Float64[np.ndarray, " row"], positive: Bool[np.ndarray, " row"]) -> float:
    """Share of rows whose score has the right sign (0 counts as negative)."""
    return float(right(scores[:, None], positive.astype(np.int64)).mean())


def log_loss(scores: Float64[np.ndarray, " row"], positive: Bool[np.ndarray, " row"]) -> float:
    """-mean log p(label) in nats, with p = σ(score)."""
    return float(losses(scores[:, None], positive.astype(np.int64)).mean())


def confidence(scores: Float64[np.ndarray, "row cls"]) -> Float64[np.ndarray, " row"]:
    """[row] probability that the probe gives to the class it answers."""
    if scores.shape[1] == 1:
        return np.exp(-np.logaddexp(0, -np.abs(scores[:, 0])))
    return softmax(scores, axis=1).max(1)


def calibration_error(
    scores: Float64[np.ndarray, "row cls"], code: Int64[np.ndarray, " row"], n_bins: int = 10
) -> float:
    """Expected calibration error of the answered class, over bins of equally many rows (equal ones together)."""
    sure, hit = confidence(scores), right(scores, code)
    place = np.searchsorted(np.sort(sure), sure, side="left") * n_bins // len(sure)
    return float(np.abs(np.bincount(place, sure - hit)).sum() / len(sure))


class Bootstrap:
    """`n` draws of groups (of rows without groups) with replacement, the same for every cell."""

    def __init__(self, groups: Int64[np.ndarray, " row"] | None, n_rows: int, *, n: int, seed: int) -> None:
        self.unit = np.arange(n_rows) if groups is None else groups
        n_units = int(self.unit.max()) + 1
        random = np.random.default_rng(seed)
        self.counts = random.multinomial(n_units, np.full(n_units, 1 / n_units), size=n).astype(np.uint16)

    def auc_draws(
        self,
        scores: Float64[np.ndarray, " row"],
        positive: Bool[np.ndarray, " row"],
        fold: Int64[np.ndarray, " row"],
    ) -> Float64[np.ndarray, " draw"]:
        """AUC of every draw; NaN for a draw without a single pair.

        Which of a fold's positive rows beat which of its negative rows is one small matrix ψ, and a draw that counts
        the rows w wins w₁ᵀ ψ w₀ pairs: all draws are one matrix product per fold.
        """
        won, total = np.zeros(len(self.counts)), np.zeros(len(self.counts))
        for index in range(int(fold.max()) + 1):
            up, down = np.flatnonzero((fold == index) & positive), np.flatnonzero((fold == index) & ~positive)
            w_up = self.counts[:, self.unit[up]].astype(np.float32)
            w_down = self.counts[:, self.unit[down]].astype(np.float32)
            step = max(1, CHUNK // max(len(down), 1))
            for start in range(0, len(up), step):
                gap = scores[up[start : start + step], None] - scores[None, down]
                beats = ((np.sign(gap) + 1) / 2).astype(np.float32)
                won += np.einsum("dj,dj->d", w_up[:, start : start + step] @ beats, w_down, dtype=np.float64)
            total += w_up.sum(1, dtype=np.float64) * w_down.sum(1, dtype=np.float64)
        return np.divide(won, total, out=np.full(len(won), np.nan), where=total > 0)

    def auc_interval(self, scores: np.ndarray, positive: np.ndarray, fold: np.ndarray) -> tuple[float, float]:
        """95 % percentile interval of the AUC; draws without a single pair are left out."""
        return _interval(self.auc_draws(scores, positive, fold))

    def class_auc_interval(
        self, scores: Float64[np.ndarray, "row cls"], code: np.ndarray, fold: np.ndarray
    ) -> tuple[float, float]:
        """The same for `class_auc`."""
        columns, positive = one_against_rest(scores, code)
        draws = [self.auc_draws(c, p, fold) for c, p in zip(columns, positive, strict=True)]
        return _interval(np.mean(draws, axis=0))

    def mean_interval(self, values: Float64[np.ndarray, " row"]) -> tuple[float, float]:
        """95 % percentile interval of the mean of one number per row."""
        per_unit = np.bincount(self.unit, weights=values, minlength=self.counts.shape[1])
        size = np.bincount(self.unit, minlength=self.counts.shape[1])
        total = self.counts @ size.astype(np.float64)
        return _interval((self.counts @ per_unit) / np.maximum(total, 1))


def _interval(draws: np.ndarray) -> tuple[float, float]:
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return float(low), float(high)


def score_cell(
    out: Float64[np.ndarray, "target row cls"],
    targets: Int64[np.ndarray, "target row"],
    fold: Int64[np.ndarray, " row"],
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """Every score of one cell; `targets[0]` holds the true labels, the others (if any) are permuted."""
    low, high = bootstrap.class_auc_interval(out[0], targets[0], fold)
    hits = right(out[0], targets[0])
    hit_low, hit_high = bootstrap.mean_interval(hits.astype(np.float64))
    found = {
        "auc": class_auc(out[0], targets[0], fold),
        "auc_low": low,
        "auc_high": high,
        "accuracy": float(hits.mean()),
        "accuracy_low": hit_low,
        "accuracy_high": hit_high,
        "log_loss": float(losses(out[0], targets[0]).mean()),
        "calibration_error": calibration_error(out[0], targets[0]),
    }
    if len(targets) == 1:
        return found
    control = list(zip(out[1:], targets[1:], strict=True))
    if out.shape[2] == 1:
        every = aucs(out[1:, :, 0], targets[1:] == 1, fold).tolist()
    else:
        every = [class_auc(scores, target, fold) for scores, target in control]
    chance = float(np.mean([right(scores, target).mean() for scores, target in control]))
    return found | {
        "control_auc": float(np.mean(every)),
        "control_auc_high": max(every),
        "control_accuracy": chance,
        "selectivity": found["accuracy"] - chance,
        "control_aucs": every,
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
