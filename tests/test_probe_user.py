"""Probes as a user meets them: intervals over what is independent, clear errors, tables that fit."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import tiny_model
from scipy.stats import binomtest
from test_probe_causal import METRIC, PROMPTS, a_direction
from test_probes import LABELS, POST, activations, noise

import probes
from probes.causal.move import causal_check
from probes.causal.outcome import _Draws
from probes.cli.sweep import _can_be_kept
from probes.erasure import erase_scores
from probes.folds import assign_folds
from probes.specs.apply import _interval
from probes.specs.causal import CausalSpec, _direction
from probes.specs.prompts import two_labels
from probes.trust.labels import two_classes
from workbench.errors import DataError
from workbench.progress import Silent


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama")


@pytest.fixture
def random():
    return np.random.default_rng(0)


# --- intervals over what is independent ---------------------------------------------------------------------------


def test_prompts_that_are_repeated_within_their_groups_do_not_narrow_the_interval_of_a_causal_check(llama):
    options = {"strengths": [-1, 1], "n_random": 3}
    once = causal_check(llama, PROMPTS, a_direction(), METRIC, **options)
    twice = causal_check(
        llama, PROMPTS * 2, a_direction(), METRIC, groups=[*range(len(PROMPTS))] * 2, **options
    )
    loose = causal_check(llama, PROMPTS * 2, a_direction(), METRIC, **options)
    for name in ("slope", "slope_low", "slope_high", "difference_low", "difference_high"):
        np.testing.assert_allclose(twice.data[name], once.data[name], atol=1e-5)
    assert twice.summary["n_groups"] == len(PROMPTS) and twice.data.attrs["grouped"]

    def width(result):
        return float((result.data["slope_high"] - result.data["slope_low"]).sel(direction="probe"))

    assert width(loose) < 0.9 * width(twice)  # what came out while copies counted as independent
    with pytest.raises(DataError, match="groups: 2 groups for"):
        causal_check(llama, PROMPTS, a_direction(), METRIC, groups=["a", "b"], **options)


def test_every_draw_of_groups_weighs_prompts_with_a_sum_of_one_and_keeps_groups_whole():
    units = np.array([0, 0, 0, 1, 2, 2])
    drawn = _Draws(units, 4, seed=0).prompts
    np.testing.assert_allclose(drawn.sum(1), 1)
    assert (drawn[:, 0] == drawn[:, 1]).all() and (drawn[:, 4] == drawn[:, 5]).all()
    assert _Draws(np.zeros(5, dtype=int), 4, seed=0).single and not _Draws(units, 4, seed=0).single


def test_the_interval_of_a_saved_probe_is_wilsons_for_as_many_texts_as_groups_leave(random):
    right = random.random(60) < 0.7
    plain = binomtest(int(right.sum()), 60).proportion_ci(method="wilson")
    np.testing.assert_allclose(_interval(right, None), [plain.low, plain.high], atol=6e-5)
    copied, whose = np.repeat(right, 5), np.repeat(np.arange(60), 5)
    low, high = _interval(copied, whose.tolist())  # copies are worth what one is, but for G / (G - 1)
    assert np.isclose(high - low, plain.high - plain.low, rtol=0.02)
    narrow = _interval(copied, None)
    assert narrow[1] - narrow[0] < 0.5 * (high - low)
    assert _interval(np.ones(50, dtype=bool), [0, 1] * 25) == _interval(np.ones(2, dtype=bool), None)
    assert _interval(np.zeros(3, dtype=bool), ["a"] * 3)[0] == 0


@pytest.mark.slow
def test_the_interval_over_groups_holds_the_share_as_often_as_it_says(random):
    hits = []
    for _ in range(800):
        share = random.beta(3.5, 1.5, size=40)  # mean 0.7, different from group to group
        right = random.random((40, 6)) < share[:, None]
        low, high = _interval(right.ravel(), np.repeat(np.arange(40), 6).tolist())
        hits.append(low <= 0.7 <= high)
    assert 0.92 < np.mean(hits) < 0.98


def test_erasing_gives_an_auc_with_an_interval_also_where_a_fold_holds_one_class(random):
    groups = np.repeat(np.arange(12), 4)
    labels = groups % 2 == 0
    x = random.normal(size=(48, 6)) + labels[:, None]
    found = erase_scores(x, labels, groups=groups, folds=4, n_bootstrap=200).data
    assert np.isfinite(found["auc"]).all()
    assert (found["auc_low"] <= found["auc"]).all() and (found["auc"] <= found["auc_high"]).all()
    assert float(found["auc"].sel(rows="same", eraser="leace")) == 0.5


def test_a_site_where_all_rows_are_the_same_is_chance_for_every_kind_and_stops_no_other_site():
    acts = activations({POST.format(0): np.ones((20, 12)), POST.format(1): noise(20)})
    kinds = ["pca", "kmeans", "lda", "mlp", "logistic"]
    found = probes.sweep(acts, LABELS, kinds=kinds, penalty=1.0, folds=2, n_bootstrap=50, n_control=1)
    assert found.data.attrs["constant_sites"] == [POST.format(0)]
    np.testing.assert_allclose(found.data["auc"].sel(layer=0), 0.5)
    np.testing.assert_allclose(found.data["log_loss"].sel(layer=0), np.log(2), atol=1e-6)
    assert (found.data["auc"].sel(layer=1) != 0.5).any()


def test_the_control_says_for_every_label_what_was_permuted():
    groups = np.repeat(np.arange(10), 2)
    labels = {"mixed": np.tile([0, 1], 10), "whole": groups % 2}
    options = {"kinds": "mass_mean", "folds": 2, "n_bootstrap": 20, "n_control": 2}
    found = probes.sweep(activations({POST.format(0): noise(20)}), labels, groups=groups, **options)
    said = "labels permuted over rows within groups (mixed) or groups (whole) within folds, 2 times"
    assert found.data.attrs["control"] == said
    alone = {"whole": labels["whole"]}
    found = probes.sweep(activations({POST.format(0): noise(20)}), alone, groups=groups, **options)
    assert found.data.attrs["control"] == "labels permuted over groups within folds, 2 times"


# --- errors -----------------------------------------------------------------------------------------------------


class _Set:
    name = "one"

    def __init__(self, labels):
        self.labels = labels


def test_errors_say_what_can_be_done():
    with pytest.raises(
        DataError, match="has 1 rows, fewer than the 3 folds: give more prompts of it"
    ) as error:
        assign_folds(np.array([0, 1, 0, 0]), None, n=3, seed=0)
    assert "at most 1" not in str(error.value)
    with pytest.raises(
        DataError, match="Every statement of 'one' has the label 'true': .* give statements of both"
    ):
        two_labels(_Set(["true", "true"]))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="found 1 in 2 labels: 'true'. Give rows of both"):
        two_classes(["true", "true"], 2, where="Set 'a': ")
    with pytest.raises(DataError, match="There is no file '/nowhere/d.safetensors'"):
        _direction("/nowhere/d.safetensors")
    with pytest.raises(ValueError, match="give two labels, not 3"):
        CausalSpec(dataset="capitals", labels=["true", "false", "neither"])


def test_a_causal_check_at_several_sites_is_refused_and_not_made_at_the_first(llama):
    spec = CausalSpec(dataset="capitals", site="blocks.*.hook_resid_post", limit=60)
    prompts, _ = spec.chosen()
    with pytest.raises(DataError, match=r"stands for \d+ sites: a direction belongs to one"):
        spec._fit(llama, prompts, Silent())
    with pytest.raises(DataError, match=r"stands in \d groups of them: 5 or more .* larger --limit"):
        spec._enough(prompts.sample(4, seed=0))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((["mlp", "logistic"], None, None, None), "--keep-kind logistic"),
        ((["logistic"], "ridge", None, None), "'ridge' is none of the kinds that are fitted: logistic"),
        ((["logistic"], None, "x", {"y": "y"}), "'x' is none of the labels: y"),
        ((["logistic"], None, "x", None), "no --label was given"),
    ],
)
def test_what_cannot_be_saved_is_said_before_anything_is_fitted(given, message):
    with pytest.raises(DataError, match=message):
        _can_be_kept(*given)
    _can_be_kept(["mlp", "logistic"], "logistic", None, None)
