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
