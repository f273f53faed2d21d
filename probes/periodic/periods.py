"""Which periods? Chosen by what they predict on held-out numbers, with a null that chooses, too.

    1. start with the linear term alone
    2. add the candidate period with which the squared error on inner folds of numbers, summed over folds, is lowest
    3. until there are `n_periods`

All candidates are tried at once. With Q the functions that are in, M = I − QQ⁺ on a fold's training numbers and z
= (cos, sin) of a candidate, least squares on [Q, z] has the coefficients β = (zᵀMz)⁺ zᵀMY for z (Frisch, Waugh and
Lovell), so that the error on the fold follows from 2 × 2 systems.

The choice is scored on outer folds of numbers that it has not seen, and so is the choice made on permuted numbers
(`n_null` permutations): the best of many candidates explains something by chance.

p = (1 + how many permutations reach the score) / (1 + permutations).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64
from threadpoolctl import threadpool_limits

from probes.periodic.basis import check_periods, helix, whole_numbers
from probes.periodic.helix import activation_rows
from probes.periodic.splits import explained, number_folds
from workbench.errors import DataError

CANDIDATES = tuple(800 / j for j in range(4, 401))
"""Frequencies of 4 to 400 in 800, eight to each that a hundred numbers tell apart. Among the periods are 2, 2.5,
4, 5, 10, 20, 25, 50, 100 and 200."""


@dataclass(frozen=True)
class PeriodChoice:
    """Chosen periods and what they are worth.

    Attributes:
        periods: in the order they were added, chosen with all numbers.
        path: inner R² after each of them.
        fold_periods: what each outer fold chose without its own numbers.
        r2: [fold] R² on the outer folds' numbers.
        null_r2: [permutation] mean over outer folds of the R² of choices on permuted numbers.
        p_value: of the mean of `r2` among them.
        n_numbers: different numbers.
        n_candidates: periods to choose from.
    """

    periods: tuple[float, ...]
    path: tuple[float, ...]
    fold_periods: tuple[tuple[float, ...], ...]
    r2: Float64[np.ndarray, " fold"]
    null_r2: Float64[np.ndarray, " permutation"]
    p_value: float
    n_numbers: int
    n_candidates: int


@threadpool_limits.wrap(1, user_api="blas")  # many small systems: threads would wait for each other
def choose_periods(
    rows: Any,
    numbers: Any,
    *,
    candidates: Sequence[float | int] = CANDIDATES,
    n_periods: int = 4,
    n_folds: int = 4,
    n_inner: int = 4,
    n_null: int = 10,
    seed: int = 0,
) -> PeriodChoice:
    """Choose the periods of a helix for one layer.

    Args:
        rows: [row, d] activations.
        numbers: [row] the number of each row. Rows of one number are averaged first.
        candidates: periods to choose from, each 2 or more.
        n_periods: how many are chosen.
        n_folds, n_inner: outer folds to score and inner ones to choose, both of numbers.
        n_null: permutations of the numbers; each chooses anew in every fold.
        seed: of folds and permutations.

    Raises:
        DataError: input as in `helix_sweep`, fewer candidates than periods, too few numbers for the inner folds, or no
            permutations (a p-value needs one or more).

    Example:
        >>> choose_periods(embeddings, range(100), n_periods=2).periods
        (10.0, 100.0)
    """
    a = whole_numbers(numbers)
    values, means = number_means(activation_rows(rows, a), a)
    found = [float(T) for T in candidates]
    check_periods(found)
    if not 1 <= n_periods <= len(found):
        raise DataError(f"n_periods is {n_periods} of {len(found)} candidates: give 1 to {len(found)}.")
    if n_null < 1:
        raise DataError(f"n_null is {n_null}: a choice among many needs its null, give 1 or more.")
    folds = number_folds(values, n_folds, seed)
    inner = [number_folds(values[folds != f], n_inner, seed + 1 + f) for f in range(n_folds)]
    fewest = min(int((part != f).sum()) for part in inner for f in range(n_inner))
    if fewest < 2 * n_periods + 2:
        raise DataError(
            f"The inner folds have {fewest} different numbers for {2 * n_periods + 2} parameters: give more "
            "numbers, or fewer periods or more folds."
        )

    def nested(
        order: Int64[np.ndarray, " number"],
    ) -> tuple[list[tuple[float, ...]], Float64[np.ndarray, " fold"]]:
        chosen, scores = [], np.zeros(n_folds)
        for f in range(n_folds):
            train, test = folds != f, folds == f
            periods, _ = greedy(means[train], order[train], found, n_periods, inner[f])
            chosen.append(periods)
            scores[f] = _held_out(means, order, train, test, periods)
        return chosen, scores

    periods, path = greedy(means, values, found, n_periods, number_folds(values, n_inner, seed))
    fold_periods, r2 = nested(values)
    rng = np.random.default_rng([seed, 7])
    null = np.array([nested(rng.permutation(values))[1].mean() for _ in range(n_null)])
    p_value = float((1 + (null >= r2.mean()).sum()) / (1 + n_null))
    return PeriodChoice(periods, path, tuple(fold_periods), r2, null, p_value, len(values), len(found))


def number_means(
    rows: Float64[np.ndarray, "row d"], numbers: Int64[np.ndarray, " row"]
) -> tuple[Int64[np.ndarray, " number"], Float64[np.ndarray, "number rank"]]:
    """The different numbers, and the mean row of each, turned into as few dimensions as there are (R² stays)."""
    values, index, count = np.unique(numbers, return_inverse=True, return_counts=True)
    means = np.zeros((len(values), rows.shape[1]))
    np.add.at(means, index, rows)
    means /= count[:, None]
    if means.shape[1] <= len(means):
        return values, means
    left, size, _ = np.linalg.svd(means, full_matrices=False)
    return values, left * size


def greedy(
    rows: Float64[np.ndarray, "number d"],
    numbers: Int64[np.ndarray, " number"],
    candidates: Sequence[float | int],
    n_periods: int,
    fold: Int64[np.ndarray, " number"],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Periods in the order they are added, and R² over the folds after each.

    Args:
        rows, numbers: one row for each of some different numbers.
        candidates: periods, checked.
        n_periods: how many to add.
        fold: [number] fold of each.

    Raises:
        DataError: fewer candidates than periods.
    """
    if n_periods > len(candidates):
        raise DataError(
            f"{n_periods} periods cannot be chosen from {len(candidates)} candidates: give more, or choose fewer."
        )
    angle = 2 * np.pi * numbers[:, None] / np.asarray(candidates)
    waves = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    line = np.stack([numbers / max(1, np.abs(numbers).max()), np.ones(len(numbers))], axis=1)
    total = sum(
        float(((rows[fold == f] - rows[fold != f].mean(0)) ** 2).sum()) for f in range(int(fold.max()) + 1)
    )
    chosen: list[int] = []
    path: list[float] = []
    for _ in range(n_periods):
        inside = np.concatenate([line, *(waves[:, c] for c in chosen)], axis=1)
        error = np.sum([_errors(rows, inside, waves, fold == f) for f in range(int(fold.max()) + 1)], axis=0)
        error[chosen] = np.inf
        best = int(np.argmin(error))
        chosen.append(best)
        path.append(1 - float(error[best]) / total if total > 0 else float("nan"))
    return tuple(float(candidates[c]) for c in chosen), tuple(path)


def _errors(
    rows: Float64[np.ndarray, "number d"],
    inside: Float64[np.ndarray, "number column"],
    waves: Float64[np.ndarray, "number candidate two"],
    test: Bool[np.ndarray, " number"],
) -> Float64[np.ndarray, " candidate"]:
    """Squared error on the test numbers of least squares on [inside, one candidate's waves] on the others."""
    n_candidates = waves.shape[1]
    both = np.concatenate([rows, waves.reshape(len(rows), -1)], axis=1)
    left = both - inside @ (np.linalg.pinv(inside[~test]) @ both[~test])
    y, z = left[:, : rows.shape[1]], left[:, rows.shape[1] :]
    with_train, with_test = ((z[some].T @ y[some]).reshape(n_candidates, 2, -1) for some in (~test, test))
    pairs = z.reshape(len(z), n_candidates, 2)
    gram, gram_test = (np.einsum("ncx,ncy->cxy", pairs[some], pairs[some]) for some in (~test, test))
    beta = np.linalg.pinv(gram, rcond=1e-10, hermitian=True) @ with_train
    error = (gram_test @ beta - 2 * with_test) * beta
    return (y[test] ** 2).sum() + error.sum((1, 2))


def _held_out(rows: Any, numbers: Any, train: Any, test: Any, periods: Sequence[float | int]) -> float:
    basis = helix(periods, int(numbers.min()), int(numbers.max()))
    solution = np.linalg.lstsq(basis.design(numbers[train]), rows[train], rcond=None)[0]
    return float(explained(rows[test], basis.design(numbers[test]) @ solution, rows[train].mean(0)))
