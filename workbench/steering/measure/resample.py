"""Means and intervals over prompts where some prompts have no value.

A scorer has nothing to say of an empty text, and a text of two tokens has no 3-grams: such values are NaN, means are
over the others, and a bootstrap resamples prompts, with and without values alike.
"""

from __future__ import annotations

import numpy as np

from workbench.statistics import bootstrap_interval


def nan_mean(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean over the values that are there; NaN where there are none (and no warning)."""
    there = np.isfinite(values)
    n = there.sum(axis)
    total = np.where(there, values, 0.0).sum(axis)
    return np.where(n > 0, total / np.maximum(n, 1), np.nan)


def resampled_means(values: np.ndarray, seed: int, n: int = 1000) -> np.ndarray:
    """[n, ...] means over the first axis of `values` under resampling of its items; NaN where none was drawn."""
    items = len(values)
    counts = np.random.default_rng(seed).multinomial(items, np.full(items, 1 / items), size=n).astype(float)
    there = np.isfinite(values)
    total = np.tensordot(counts, np.where(there, values, 0.0), axes=1)
    weight = np.tensordot(counts, there.astype(float), axes=1)
    return np.where(weight > 0, total / np.maximum(weight, 1), np.nan)


def interval(values: np.ndarray, seed: int, n: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """95 % bootstrap interval of the mean over the last axis, items without a value left out of each mean.

    Args:
        values: [..., prompt].
        seed: of the resampling.
        n: resamples.

    Returns:
        Lower and upper end, [...]; NaN where fewer than two prompts have a value.
    """
    first = np.moveaxis(np.asarray(values, dtype=float), -1, 0)
    if np.isfinite(first).all():
        return bootstrap_interval(first, seed, n)
    enough = np.isfinite(first).sum(0) >= 2
    means = resampled_means(first, seed, n)
    filled = np.where(np.isfinite(means).any(0), means, 0.0)
    low, high = np.nanquantile(filled, [0.025, 0.975], axis=0)
    return np.where(enough, low, np.nan), np.where(enough, high, np.nan)
