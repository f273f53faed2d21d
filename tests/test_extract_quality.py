"""Held-out quality: it sees a planted direction, sees nothing in noise, and its AUC is scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from workbench.steering.extract import mean_difference
from workbench.steering.extract.mean_difference import difference_of_means
from workbench.steering.extract.quality import _cross_fit, _half, held_out


def rows(n=60, m=50, d=30, gap=2.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(2, k, d, generator=g, dtype=torch.float64) for k in (n, m))
    a[0, :, 0] += gap  # site 0 has a planted direction, site 1 is noise
    return a, b


def test_a_planted_direction_is_seen_and_noise_is_not():
    planted, noise = held_out(difference_of_means, *rows(), paired=False, shuffles=40)
    assert planted["auc_low"] > 0.7
    assert planted["auc_low"] < planted["auc"] < planted["auc_high"] <= 1
    assert planted["accuracy_low"] > 0.6
    assert planted["auc"] > planted["control_auc_high"]
    assert planted["p_value"] == pytest.approx(1 / 41)
    assert noise["auc"] < planted["auc_low"]
    assert abs(noise["control_auc"] - 0.5) < 0.1
    assert (planted["n_positive"], planted["n_negative"]) == (60, 50)


def test_intervals_and_p_values_keep_their_word_on_noise():
    g = torch.Generator().manual_seed(7)
    a, b = (torch.randn(60, k, 20, generator=g, dtype=torch.float64) for k in (40, 30))
    found = [
        held_out(
            difference_of_means,
            a[s : s + 1],
            b[s : s + 1],
            paired=False,
            seed=s,
            shuffles=19,
            n_bootstrap=200,
        )[0]
        for s in range(60)
    ]
    assert np.mean([f["auc_low"] <= 0.5 <= f["auc_high"] for f in found]) >= 0.85
    assert np.mean([f["p_value"] <= 0.05 for f in found]) <= 0.15


def test_training_rows_would_look_better_than_held_out_ones():
    """Where there is nothing to find, scoring the rows it was made from gives an AUC far above 0.5."""
    a, b = rows(n=10, m=10, d=200, gap=0)
    (first, _) = held_out(difference_of_means, a, b, paired=False, shuffles=20)
    vector = difference_of_means(a, b)[0]
    own = roc_auc_score([1] * 10 + [0] * 10, torch.cat([a[0] @ vector, b[0] @ vector]).numpy())
    assert own > 0.95
    assert first["auc"] < 0.85


@pytest.mark.parametrize("paired", [True, False])
def test_auc_and_accuracy_are_those_of_each_half_by_the_other(paired):
    a, b = rows(n=13, m=13 if paired else 9, gap=1.0)
    first = _half(13, np.random.default_rng(3))
    second = first if paired else _half(9, np.random.default_rng(4))
    auc, accuracy, _ = _cross_fit(difference_of_means, a, b, first, second)
    for s in range(2):
        aucs, right = [], []
        for half in (False, True):
            train = a[s][first != half], b[s][second != half]
            test = a[s][first == half], b[s][second == half]
            w = train[0].mean(0) - train[1].mean(0)
            middle = float((train[0].mean(0) + train[1].mean(0)) @ w / 2)
            scores = torch.cat([t @ w for t in test]).numpy()
            labels = np.r_[np.ones(len(test[0])), np.zeros(len(test[1]))]
            aucs.append(roc_auc_score(labels, scores))
            right.append(np.mean((scores > middle) == labels))
        assert auc[s] == pytest.approx(np.mean(aucs))
        assert accuracy[s] == pytest.approx(np.mean(right))


def test_the_same_seed_gives_the_same_numbers_and_another_does_not():
    a, b = rows(n=20, m=20, gap=0.5)
    one = held_out(difference_of_means, a, b, paired=True, seed=1, shuffles=5)
    assert one == held_out(difference_of_means, a, b, paired=True, seed=1, shuffles=5)
    assert one != held_out(difference_of_means, a, b, paired=True, seed=2, shuffles=5)


def test_pairs_stay_together_when_labels_are_shuffled():
    """With pairs that share all but a shift, swapping within pairs leaves nothing to find, and the shift is found."""
    g = torch.Generator().manual_seed(0)
    shared = 5 * torch.randn(1, 40, 12, generator=g, dtype=torch.float64)
    shift = torch.zeros(12, dtype=torch.float64)
    shift[3] = 8.0
    (found,) = held_out(difference_of_means, shared + shift, shared, paired=True, shuffles=30)
    assert found["auc"] > 0.8
    assert found["auc"] > found["control_auc_high"]


def test_too_few_prompts_for_halves_are_said_and_not_scored(llama):
    d = mean_difference(llama, [[5, 6]], [[7, 8]], "blocks.1.hook_resid_post")
    assert d.settings["held_out"]["measured"] is False
    assert "4 prompts" in d.settings["held_out"]["why"]


def test_a_word_that_is_there_or_not_is_read_in_a_model(llama):
    """End to end: prompts that end in one of two words are told apart, with labels shuffled they are not."""
    draw = np.random.default_rng(0)
    positive = [[*draw.integers(10, 100, 4).tolist(), 5] for _ in range(24)]
    negative = [[*draw.integers(10, 100, 4).tolist(), 6] for _ in range(24)]
    found = mean_difference(llama, positive, negative, "blocks.0.hook_resid_post").settings["held_out"]
    assert found["auc"] > 0.95
    assert found["control_auc_high"] < found["auc_low"]
    mixed = [[*p[:-1], 5 + i % 2] for i, p in enumerate(positive + negative)]
    nothing = mean_difference(llama, mixed[:24], mixed[24:], "blocks.0.hook_resid_post").settings["held_out"]
    assert nothing["p_value"] > 0.05
