"""Labels of any number of classes: numbers for them, folds that keep groups together, shuffled labels, resamples.

fold         each row is held out once; folds have about the same share of every class, and no group (country,
             template, game) has rows in two of them
permutation  labels permuted within each fold: over whole groups where each group has one label, else over rows
resample     groups (rows without groups) drawn with replacement: how often each row counts in each draw
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from workbench.errors import DataError


def encode(
    labels: Any, classes: Sequence[Any] | None = None, *, n: int | None = None, of: str = "rows"
) -> tuple[tuple[Any, ...], Int64[np.ndarray, " row"]]:
    """The classes, and the number of each label's class.

    Args:
        labels: [row] flat list, array or tensor.
        classes: in the order wanted; sorted by default. Every label must be one of them.
        n: how many labels there must be.
        of: what they are labels of, for the message.

    Raises:
        DataError: another number of labels, missing or unknown labels, or fewer than two classes.

    Example:
        >>> encode(["no", "yes", "no"])[1]
        array([0, 1, 0])
    """
    values = list(labels.tolist() if hasattr(labels, "tolist") else labels)
    values = [v.item() if hasattr(v, "item") and not getattr(v, "ndim", 0) else v for v in values]
    if n is not None and len(values) != n:
        raise DataError(f"{len(values)} labels for {n} {of}: give one for each.")
    if any(isinstance(v, (list, tuple, dict)) for v in values):
        raise DataError(f"The labels must be a flat list with one value for each of the {of}.")
    missing = [i for i, v in enumerate(values) if v is None or v != v]
    if missing:
        raise DataError(f"{len(missing)} of {len(values)} labels are None or NaN, the first at {missing[0]}.")
    found = set(values)
    try:
        known = tuple(sorted(found)) if classes is None else tuple(classes)
    except TypeError:
        known = tuple(sorted(found, key=str))
    unknown = sorted(found - set(known), key=str)
    if unknown:
        shown = ", ".join(repr(c) for c in known)
        raise DataError(f"The label {unknown[0]!r} is none of the classes, which are {shown}.")
    if len(known) < 2:
        raise DataError(
            f"Two classes or more are needed; all {len(values)} labels are {known[0]!r}."
            if known
            else "There are no labels at all."
        )
    number = {c: i for i, c in enumerate(known)}
    return known, np.array([number[v] for v in values], dtype=np.int64)


def group_codes(groups: Any, n: int) -> Int64[np.ndarray, " row"] | None:
    """Numbers from 0 for groups given as any values; None stays None."""
    if groups is None:
        return None
    names = list(groups.tolist() if hasattr(groups, "tolist") else groups)
    if len(names) != n:
        raise DataError(f"{len(names)} groups for {n} labels: give one for each.")
    return np.unique([str(name) for name in names], return_inverse=True)[1].astype(np.int64)


def resamples(
    groups: Int64[np.ndarray, " row"] | None, n_rows: int, *, n: int, seed: int
) -> Float64[np.ndarray, "draw row"]:
    """How often each row counts in each of `n` draws of groups (of rows without groups) with replacement."""
    unit = np.arange(n_rows) if groups is None else groups
    n_units = int(unit.max()) + 1
    random = np.random.default_rng(seed)
    counts = random.multinomial(n_units, np.full(n_units, 1 / n_units), size=n)
    return counts[:, unit].astype(np.float64)


def interval(draws: Float64[np.ndarray, " draw"]) -> tuple[float, float]:
    """95 % percentile interval; draws that are NaN (nothing to divide by) are left out."""
    some = draws[np.isfinite(draws)]
    if len(some) == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(some, [0.025, 0.975])
    return float(low), float(high)
