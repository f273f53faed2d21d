"""Intervals that several analyses share."""

from __future__ import annotations

import numpy as np


def bootstrap_interval(values: np.ndarray, seed: int, n: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """95 % percentile interval of the mean over the first axis, by resampling its items `n` times.

    Args:
        values: [item, ...] one array per item (pair, prompt).
        seed: of the resampling.
        n: resamples.

    Returns:
        Lower and upper end, each [...]; NaN where there is only one item, which has no interval.
    """
    n_items = values.shape[0]
    if n_items < 2:
        nothing = np.full(values.shape[1:], np.nan)
        return nothing, nothing
    counts = np.random.default_rng(seed).multinomial(n_items, np.full(n_items, 1 / n_items), size=n)
    means = np.tensordot(counts / n_items, values, axes=1)
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    return low, high


def standard_error(values: np.ndarray) -> np.ndarray:
    """Standard error of the mean over the first axis (n - 1 in the variance); NaN where there is only one item."""
    n_items = len(values)
    if n_items < 2:
        return np.full(values.shape[1:], np.nan)
    return values.std(0, ddof=1) / np.sqrt(n_items)


def paired_permutation(values: np.ndarray, null: np.ndarray, seed: int, n: int = 4096) -> np.ndarray:
    """Two-sided p-value of the mean difference between two paired measurements, by swapping them within items.

    Under the null hypothesis it does not matter which of an item's two values is called which. With up to 12 items
    all 2**items swaps are taken (the smallest p-value is then 2 / 2**items), with more `n` random ones besides the
    observed one.

    Args:
        values, null: [item, ...] each.
        seed: of the swaps.
        n: random swaps.

    Returns:
        [...] p-values; NaN where there is only one item.
    """
    n_items = len(values)
    difference = values - null
    if n_items < 2:
        return np.full(values.shape[1:], np.nan)
    if n_items <= 12:
        signs = 1 - 2 * ((np.arange(2**n_items)[:, None] >> np.arange(n_items)) & 1)
    else:
        signs = np.random.default_rng(seed).choice([-1, 1], size=(n, n_items))
        signs = np.concatenate([np.ones((1, n_items), int), signs])
    flat = difference.reshape(n_items, -1)
    observed = np.abs(flat.mean(0))
    at_least = np.zeros(flat.shape[1])
    for part in np.array_split(signs, max(1, len(signs) // 256)):
        at_least += (np.abs(part @ flat) / n_items >= observed - 1e-12).sum(0)
    return (at_least / len(signs)).reshape(difference.shape[1:])
