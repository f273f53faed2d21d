"""The fits and scores that every check in this folder shares: the only place that knows a solver.

`fit_columns` fits one kind of probe to many label vectors of the same rows, `held_out` cross-validates it; a faster
solver is put in there and nowhere else. `Scorer` gives AUC and accuracy with intervals.

    f(x) = w · x + b over raw activations,    predict positive: f > 0

| kind | w and b |
| --- | --- |
| `mass_mean` | `probes.estimators.MassMeanProbe`, all label vectors in one matrix product |
| `ridge` | w_z = (ZᵀZ + I / C)⁻¹ Zᵀ y, b_z = mean y, y = ±1, Z standardised; all label vectors in one solve |
| others | `probes.estimators.KINDS`, one by one over rows that are prepared once |

AUC counts pairs of rows of the same fold, ties one half (`probes.scores`). Intervals are 95 % percentile bootstraps
over groups of the given held-out scores. The draws are the same for all scores of one `Scorer`, so that the interval of
a *difference* between two probes on the same rows is paired.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Bool, Float64, Int64
from threadpoolctl import ThreadpoolController

from probes.estimators import KINDS, MIN_VARIANCE, Features, make_probes
from probes.folds import whole_number
from probes.scores import pairs_won
from probes.source import open_source
from workbench.errors import DataError, did_you_mean
from workbench.sites.names import expand

CHUNK = 2_000_000
"""Numbers held at once while drawing."""
FIT_KINDS = (*KINDS, "ridge")
"""Every kind that `fit_columns` takes: the linear ones."""
ONE_THREAD = 4_000_000
"""Up to so many numbers (rows times dimensions) one BLAS thread beats several that wait for each other."""


class Fits(NamedTuple):
    """Fitted decision functions over raw activations, one for each label vector."""

    coef: np.ndarray
    """[target, d]."""
    intercept: np.ndarray
    """[target]."""

    def scores(self, rows: Float64[np.ndarray, "row d"]) -> Float64[np.ndarray, "target row"]:
        """Decision of every function for every row: above 0 is positive."""
        return self.coef @ rows.T + self.intercept[:, None]


@cache
def _pools() -> ThreadpoolController:
    return ThreadpoolController()  # found once: looking through the process's libraries takes 15 ms


def threads_for(size: int) -> AbstractContextManager[Any]:
    """A context with one BLAS thread for products of up to `ONE_THREAD` numbers, and no limit for larger ones."""
    return _pools().limit(limits=1 if size <= ONE_THREAD else None, user_api="blas")


def check_kind(kind: str) -> None:
    """An unknown kind is a `DataError` that names the nearest."""
    if kind not in FIT_KINDS:
        hint = did_you_mean(str(kind), FIT_KINDS)
        raise DataError(f"There is no probe of kind {kind!r}; the kinds are {', '.join(FIT_KINDS)}.{hint}")


def kinds_of(kinds: str | Iterable[str]) -> list[str]:
    """One kind or several as a list; `DataError` for none, and for what is no kind."""
    found = [kinds] if isinstance(kinds, str) else list(kinds or ())
    if not found:
        raise DataError(f"Give at least one kind of probe; the kinds are {', '.join(FIT_KINDS)}.")
    for kind in found:
        check_kind(kind)
    return found


def whole_settings(penalty: Any, **given: Any) -> list[int]:
    """The settings of a check as integers from 0, in the order given; 5.0 counts as one.

    Raises:
        DataError: one is no such number, or the penalty is no number above 0.
    """
    if (
        isinstance(penalty, bool)
        or not isinstance(penalty, int | float | np.number)
        or not 0 < penalty < np.inf
    ):
        raise DataError(f"penalty above 0 is expected, a number (scikit-learn's C), not {penalty!r}.")
    return [whole_number(value, name, 0) for name, value in given.items()]


def fit_columns(
    rows: Float64[np.ndarray, "row d"],
    targets: Bool[np.ndarray, "target row"],
    kind: str = "logistic",
    *,
    penalty: float = 1.0,
) -> Fits:
    """Fit one kind of probe to every label vector.

    Args:
        rows: activations.
        targets: label vectors; each must hold both classes.
        kind: one of `FIT_KINDS`.
        penalty: C, the inverse strength of the L2 penalty, of `logistic` and `ridge`.

    Raises:
        DataError: an unknown kind, or a label vector with one class only.

    Example:
        >>> fit_columns(x, labels[None], "mass_mean").scores(x)[0] > 0
    """
    check_kind(kind)
    count = targets.sum(1)
    single = np.flatnonzero((count == 0) | (count == targets.shape[1]))
    if len(single):
        raise DataError(f"Label vector {single[0]} holds one class only in these {len(rows)} rows: no probe.")
    with threads_for(rows.size):
        if kind == "mass_mean":
            return _mass_mean(rows, targets)
        if kind == "ridge":
            return _ridge(rows, targets, penalty)
        features = Features.of(rows)
        probe = make_probes(kind, penalty=penalty)[kind]
        found = [probe.weights(features, target) for target in targets]
    return Fits(np.stack([one.coef for one in found]), np.array([one.intercept for one in found]))


def _mass_mean(rows: np.ndarray, targets: np.ndarray) -> Fits:
    up = targets.astype(np.float64)
    n_up = up.sum(1, keepdims=True)
    n_down = len(rows) - n_up
    centre = rows.mean(0)  # taken off for the rounding's sake; the difference of means does not feel it
    rows = rows - centre
    upper, lower = up @ rows / n_up, (1 - up) @ rows / n_down
    theta = upper - lower
    distance = (theta**2).sum(1)
    own = np.where(targets, (theta * upper).sum(1)[:, None], (theta * lower).sum(1)[:, None])
    variance = np.maximum(((theta @ rows.T - own) ** 2).mean(1), MIN_VARIANCE * distance**2)
    scale = np.divide(distance, variance, out=np.ones_like(distance), where=distance > 0)
    coef = theta * scale[:, None]
    bias = np.log(n_up / n_down)[:, 0] - (coef * (upper + lower)).sum(1) / 2 - coef @ centre
    return Fits(coef, bias)


def _ridge(rows: np.ndarray, targets: np.ndarray, penalty: float) -> Fits:
    mean, std = scale_of(rows)
    z, y = (rows - mean) / std, np.where(targets, 1.0, -1.0)
    coef = (ridge_weights(z, penalty) @ y.T).T / std  # z has mean 0: y may keep its own
    return Fits(coef, y.mean(1) - coef @ mean)


def scale_of(rows: Float64[np.ndarray, "row d"]) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations; that of a feature which is constant but for rounding counts as 1."""
    mean, std = rows.mean(0), rows.std(0)
    return mean, np.where(std <= 1e-10 * np.abs(mean), 1.0, std)


def ridge_weights(z: Float64[np.ndarray, "row d"], penalty: float) -> Float64[np.ndarray, "d row"]:
    """(ZᵀZ + I / C)⁻¹ Zᵀ, by Zᵀ (ZZᵀ + I / C)⁻¹ where there are fewer rows than dimensions."""
    wide = len(z) < z.shape[1]
    gram = z @ z.T if wide else z.T @ z
    gram[np.diag_indices_from(gram)] += 1 / penalty
    return (
        scipy.linalg.solve(gram, z, assume_a="pos", check_finite=False).T
        if wide
        else scipy.linalg.solve(gram, z.T, assume_a="pos", check_finite=False)
    )


def rows_at(acts: Any, site: str, index: np.ndarray | None = None) -> Float64[np.ndarray, "row d"]:
    """Rows of one site of a collection or store in float64, several dimensions flattened; `DataError` for NaN.

    Rows that are all the same but for rounding are zeros.
    """
    source = open_source(acts)
    index = np.arange(len(source.prompt)) if index is None else index
    return source.take(site, index)[0].numpy()


def sites_of(acts: Any, sites: str | Iterable[str] | None) -> list[str]:
    """Names or globs -> sites of a collection or store; all for None. `SiteError` where there is no such site."""
    known = open_source(acts).sites
    blocks = [int(s.split(".")[1]) for s in known if s.startswith("blocks.")]
    if sites is None:
        return list(known)
    return expand(sites, known, n_layers=max(blocks, default=-1) + 1, model_name="This collection")


def held_out(
    x: Float64[np.ndarray, "row d"],
    targets: Bool[np.ndarray, "target row"],
    fold: Int64[np.ndarray, " row"],
    kind: str = "logistic",
    *,
    penalty: float = 1.0,
) -> Float64[np.ndarray, "target row"]:
    """Scores of every row by the fits that did not see its fold, for each label vector."""
    out = np.zeros(targets.shape)
    for index in np.unique(fold):
        train, test = fold != index, fold == index
        out[:, test] = fit_columns(x[train], targets[:, train], kind, penalty=penalty).scores(x[test])
    return out


class Scorer:
    """AUC and accuracy of held-out scores, with bootstrap draws over groups that all scores share.

    Args:
        fold: [row] in which each row was held out.
        groups: [row] numbers from 0, or None: rows are drawn one by one.
        n, seed: of the draws.
    """

    def __init__(
        self,
        fold: Int64[np.ndarray, " row"],
        groups: Int64[np.ndarray, " row"] | None = None,
        *,
        n: int = 1000,
        seed: int = 0,
    ) -> None:
        self.fold = np.unique(fold, return_inverse=True)[1]
        unit = np.arange(len(fold)) if groups is None else np.unique(groups, return_inverse=True)[1]
        n_units = int(unit.max()) + 1
        counts = np.random.default_rng(seed).multinomial(n_units, np.full(n_units, 1 / n_units), size=n)
        self.unit, self.counts = unit, counts.astype(np.uint16)

    def auc(self, scores: Float64[np.ndarray, " row"], positive: Bool[np.ndarray, " row"]) -> float:
        """Share of the pairs of one fold that are in the right order; NaN where no fold holds both classes."""
        won, total = pairs_won(scores, positive, self.fold)
        return float(won.sum() / total.sum()) if total.sum() else float("nan")

    def accuracy(self, scores: Float64[np.ndarray, " row"], positive: Bool[np.ndarray, " row"]) -> float:
        """Share of rows whose score has the right sign; 0 counts as negative."""
        return float(np.mean((scores > 0) == positive))

    def auc_draws(
        self, scores: Float64[np.ndarray, " row"], positive: Bool[np.ndarray, " row"]
    ) -> Float64[np.ndarray, " draw"]:
        """The AUC of every draw; NaN where a draw holds no pair."""
        found = []
        for weights in self._weights():
            won, total = pairs_won(scores, positive, self.fold, weights)
            sums = total.sum(1)
            found.append(np.divide(won.sum(1), sums, out=np.full(len(sums), np.nan), where=sums > 0))
        return np.concatenate(found)

    def accuracy_draws(
        self, scores: Float64[np.ndarray, " row"], positive: Bool[np.ndarray, " row"]
    ) -> Float64[np.ndarray, " draw"]:
        """The accuracy of every draw."""
        right = ((scores > 0) == positive).astype(np.float64)
        n_units = self.counts.shape[1]
        hits = np.bincount(self.unit, weights=right, minlength=n_units)
        rows = np.bincount(self.unit, minlength=n_units)
        return (self.counts @ hits) / (self.counts @ rows.astype(np.float64))

    def _weights(self) -> Iterator[np.ndarray]:
        step = max(1, CHUNK // len(self.unit))
        for start in range(0, len(self.counts), step):
            yield self.counts[start : start + step, self.unit].astype(np.float64)


def interval(draws: Float64[np.ndarray, " draw"]) -> tuple[float, float]:
    """95 % percentile interval; NaN for both ends where no draw says anything."""
    known = draws[np.isfinite(draws)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)
