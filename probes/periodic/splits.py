"""Numbers held out, and the share of variance that a prediction explains on them.

Splits are over *values* of the number: all rows of a held-out number are held out together.

    R² = 1 − Σ ‖h − ĥ‖² / Σ ‖h − mean of the training rows‖²          both sums over held-out rows and all dimensions

so 0 is what the mean alone gives, and a fit of noise is below 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from workbench.errors import DataError


def random_splits(
    numbers: Int64[np.ndarray, " row"], n_splits: int, share: float, seed: int
) -> list[Bool[np.ndarray, " row"]]:
    """For each split, which rows are held out: those of a random `share` of the different numbers.

    Raises:
        DataError: no splits, or a share that leaves nothing to fit to or to score.
    """
    different = np.unique(numbers)
    n_test = round(share * len(different))
    if n_splits < 1:
        raise DataError(f"n_splits is {n_splits}: give 1 or more.")
    if not 1 <= n_test < len(different):
        raise DataError(
            f"held_out={share:g} of {len(different)} different numbers leaves nothing to fit to or nothing to "
            "score: give a share between 0 and 1 that takes at least one number and leaves some."
        )
    rng = np.random.default_rng(seed)
    return [np.isin(numbers, rng.permutation(different)[:n_test]) for _ in range(n_splits)]


def number_folds(numbers: Int64[np.ndarray, " row"], n_folds: int, seed: int) -> Int64[np.ndarray, " row"]:
    """[row] fold of each row; every number is in one fold, and folds differ by at most one number in size.

    Raises:
        DataError: fewer than 2 folds, or fewer numbers than folds.
    """
    different = np.unique(numbers)
    if n_folds < 2 or n_folds > len(different):
        raise DataError(
            f"{n_folds} folds of {len(different)} different numbers: give 2 folds or more, and as many numbers."
        )
    order = np.random.default_rng(seed).permutation(len(different))
    fold = np.empty(len(different), dtype=np.int64)
    fold[order] = np.arange(len(different)) % n_folds
    return fold[np.searchsorted(different, numbers)]


def explained(
    rows: Float64[np.ndarray, "row ..."],
    predicted: Float64[np.ndarray, "row ..."],
    mean: Float64[np.ndarray, ...],
) -> Float64[np.ndarray, ...]:
    """R² of a prediction, over rows and the last dimension together; axes between them stay apart.

    Args:
        rows, predicted: [row, ..., d].
        mean: [..., d] of the training rows.

    Returns:
        [...] R²; NaN where nothing varies.
    """
    residual = ((rows - predicted) ** 2).sum((0, -1))
    total = ((rows - mean) ** 2).sum((0, -1))
    scale = (rows**2).sum((0, -1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(total > 1e-20 * scale, 1 - residual / total, np.nan)


def units_of(groups: Sequence[Any] | None, n: int) -> Int64[np.ndarray, " problem"]:
    """[problem] number of its group."""
    if groups is None:
        return np.arange(n)
    names: Any = getattr(groups, "tolist", lambda: list(groups))()
    if len(names) != n:
        raise DataError(f"{len(names)} groups for {n} problems: give one label for each.")
    plain = all(isinstance(name, (int, float)) for name in names)
    return np.unique(names if plain else [str(name) for name in names], return_inverse=True)[1]


def shuffled_groups(
    y: Float64[np.ndarray, "row target"], unit: Int64[np.ndarray, " row"], rng: np.random.Generator
) -> Float64[np.ndarray, "row target"]:
    """Targets shuffled over groups: one that is the same throughout every group stays so.

    Of other targets the groups' blocks come in random order, the rows of each block too, and take the places of the
    rows in the order of their own groups: blocks of one size change places, others overlap as little as they must.
    """
    _, first, unit = np.unique(unit, return_index=True, return_inverse=True)
    order = rng.permutation(len(first))
    whole = (y == y[first][unit]).all(0)
    if whole.all():
        return y[first][order][unit]
    blocks = np.empty_like(y)
    blocks[np.argsort(unit, kind="stable")] = y[np.lexsort((rng.random(len(y)), order[unit]))]
    return np.where(whole, y[first][order][unit], blocks)
