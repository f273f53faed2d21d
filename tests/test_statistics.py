"""Bootstrap intervals against the normal approximation and scipy."""

from __future__ import annotations

import numpy as np
import scipy.stats

from workbench.statistics import bootstrap_interval


def test_the_interval_is_that_of_the_mean():
    values = np.random.default_rng(0).normal(3, 2, size=(400, 2))
    low, high = bootstrap_interval(values, seed=1, n=4000)
    half = 1.96 * values.std(0) / 20
    assert np.allclose(low, values.mean(0) - half, atol=0.05)
    assert np.allclose(high, values.mean(0) + half, atol=0.05)


def test_it_agrees_with_scipy_on_a_skewed_sample():
    values = np.random.default_rng(2).exponential(size=60)
    low, high = bootstrap_interval(values, seed=3, n=5000)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=5000, rng=np.random.default_rng(4)
    ).confidence_interval
    assert abs(low - theirs.low) < 0.03 and abs(high - theirs.high) < 0.03


def test_one_item_has_no_interval_and_a_seed_repeats_it():
    assert np.isnan(bootstrap_interval(np.ones((1, 3)), seed=0)).all()
    values = np.random.default_rng(0).normal(size=(9, 4))
    assert np.array_equal(bootstrap_interval(values, seed=5), bootstrap_interval(values, seed=5))
