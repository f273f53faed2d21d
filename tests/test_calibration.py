"""Calibration against scikit-learn, known temperatures, brute-force sums and labels drawn from the probabilities."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV, calibration_curve
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from probes.calibration import (
    METHODS,
    Calibration,
    calibrate,
    cross_calibrate,
    expected_calibration_error,
    reliability,
)
from probes.reliability import binomial_interval
from workbench.errors import DataError


class Given(ClassifierMixin, BaseEstimator):
    """A classifier whose scores are its features."""

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self

    def decision_function(self, X):
        return X[:, 0] if len(self.classes_) == 2 else X

    def predict(self, X):
        return self.classes_[(X[:, 0] > 0).astype(int) if len(self.classes_) == 2 else X.argmax(1)]


def scored(n=300, classes=2, seed=0, t=1.7):
    """Scores, and labels drawn from softmax(scores / t)."""
    rng = np.random.default_rng(seed)
    if classes == 2:
        scores = 2.5 * rng.normal(size=n) + 0.5
        return scores, (rng.random(n) < expit(scores / t)).astype(int)
    scores = 2.5 * rng.normal(size=(n, classes))
    return scores, np.array([rng.choice(classes, p=p) for p in softmax(scores / t, axis=1)])


# -- maps ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize(
    ("method", "theirs"), [("platt", "sigmoid"), ("isotonic", "isotonic"), ("temperature",) * 2]
)
def test_probabilities_are_those_of_scikit_learn(method, theirs, classes):
    scores, labels = scored(classes=classes)
    features = scores.reshape(len(scores), -1)
    new = scored(50, classes, seed=1)[0]
    oracle = CalibratedClassifierCV(
        FrozenEstimator(Given().fit(features, labels)), method=theirs, cv=2, ensemble=False
    )
    expected = oracle.fit(features, labels).predict_proba(new.reshape(50, -1))
    found = calibrate(torch.tensor(scores), labels, method=method).probabilities(new)
    assert np.allclose(found, expected[:, 1] if classes == 2 else expected, atol=2e-4)


def test_plain_targets_give_plain_logistic_regression():
    scores, labels = scored()
    oracle = LogisticRegression(C=np.inf, tol=1e-10).fit(scores[:, None], labels)
    found = calibrate(scores, labels, smoothed_targets=False).parameters
    assert np.isclose(found["slope"][0], oracle.coef_[0, 0], rtol=1e-4)
    assert np.isclose(found["intercept"][0], oracle.intercept_[0], rtol=1e-3)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("t", [0.4, 1.0, 3.0])
def test_a_known_temperature_is_recovered(classes, t):
    scores, labels = scored(6000, classes, t=t)
    assert abs(calibrate(scores, labels, method="temperature").parameters["temperature"] / t - 1) < 0.1


@pytest.mark.parametrize("classes", [2, 3])
def test_no_other_temperature_has_a_lower_log_loss(classes):
    scores, labels = scored(200, classes, seed=3)

    def loss(t):
        p = Calibration("temperature", tuple(range(classes)), 1 if classes == 2 else 3, {"temperature": t}, 1)
        return log_loss(labels, p.probabilities(scores))

    best = calibrate(scores, labels, method="temperature").parameters["temperature"]
    assert all(loss(best) < loss(best * factor) for factor in (0.9, 0.99, 1.01, 1.1))


def test_scores_that_fall_with_the_labels_get_an_infinite_temperature_and_a_coin():
    scores, labels = scored()
    found = calibrate(-scores, labels, method="temperature")
    assert found.parameters["temperature"] == np.inf
    assert np.allclose(found.probabilities(scores), 0.5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("classes", [2, 3])
def test_a_calibration_survives_json(method, classes):
    scores, labels = scored(classes=classes)
    one = calibrate(scores, labels, method=method)
    other = Calibration(**json.loads(json.dumps(vars(one))))
    assert np.array_equal(one.probabilities(scores), other.probabilities(scores))


@pytest.mark.parametrize("method", METHODS)
def test_a_fold_is_calibrated_without_its_own_labels(method):
    scores, labels = scored()
    fold = np.arange(300) % 3
    out = cross_calibrate(scores, labels, fold, method=method)
    rest = fold != 1
    alone = calibrate(scores[rest], labels[rest], method=method)
    assert np.array_equal(out[~rest], alone.probabilities(scores[~rest]))
    changed = cross_calibrate(scores, np.where(fold == 1, 1 - labels, labels), fold, method=method)
    assert np.array_equal(changed[~rest], out[~rest]) and not np.array_equal(changed[rest], out[rest])


@pytest.mark.parametrize("method", METHODS)
def test_calibrating_lowers_the_error_of_overconfident_scores_on_rows_not_seen(method):
    scores, labels = scored(4000, t=4.0)
    raw = expected_calibration_error(expit(scores), labels, n_bootstrap=100)
    out = cross_calibrate(scores, labels, np.arange(4000) % 5, method=method)
    done = expected_calibration_error(out, labels, n_bootstrap=100)
    assert raw.value > 0.1 and raw.low > raw.null_high
    assert done.value < 0.05 and done.rms < 0.04


# -- errors of probabilities -----------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 80), bins=st.integers(1, 20), seed=st.integers(0, 99), ties=st.booleans())
def test_the_error_is_the_sum_of_its_definition(n, bins, seed, ties):
    rng = np.random.default_rng(seed)
    p = rng.random(n).round(1) if ties else rng.random(n)
    labels = rng.random(n) < 0.5
    for binning in ("mass", "width"):
        of = {}
        for i in range(n):
            edge = (
                min(int(p[i] * bins), bins - 1) if binning == "width" else int((p < p[i]).sum()) * bins // n
            )
            of.setdefault(edge, []).append(i)
        expected = sum(abs(sum(p[i] - labels[i] for i in rows)) for rows in of.values()) / n
        found = expected_calibration_error(
            p, labels, bins=bins, binning=binning, classes=(False, True), n_bootstrap=5
        )
        assert np.isclose(found.value, expected) and found.bins == len(of) and found.n == n


def test_the_table_is_the_calibration_curve_of_scikit_learn():
    scores, labels = scored(1000)
    p = expit(scores)
    for binning, strategy in (("width", "uniform"), ("mass", "quantile")):
        table = reliability(p, labels, bins=10, binning=binning)
        share, mean = calibration_curve(labels, p, n_bins=10, strategy=strategy)
        assert np.allclose(table["share"], share) and np.allclose(table["probability"], mean)
    assert int(table["n"].sum()) == 1000 and (table["low"] < table["share"]).all()
    low, high = binomial_interval([0, 5, 10], [10, 10, 10])
    assert np.allclose(low, [0, 0.187, 0.692], atol=1e-3) and np.allclose(high, [0.308, 0.813, 1], atol=1e-3)


def test_perfect_probabilities_are_within_the_null_and_their_debiased_error_is_about_zero():
    found = []
    for seed in range(60):
        scores, labels = scored(400, seed=seed, t=1.0)
        found.append(expected_calibration_error(expit(scores), labels, bins=10, seed=seed, n_bootstrap=200))
    inside = np.mean([one.value <= one.null_high for one in found])
    assert inside > 0.85  # 0.95 expected; 60 draws
    assert abs(np.mean([one.value - one.null for one in found])) < 0.004
    assert np.mean([one.value for one in found]) > 0.03 > np.mean([one.rms for one in found])


def test_the_debiased_error_is_right_on_average_where_the_truth_is_known():
    rng = np.random.default_rng(0)
    p = np.repeat([0.2, 0.5, 0.8], 60)
    truth = np.repeat([0.3, 0.5, 0.65], 60)
    squares = []
    for _ in range(800):
        one = expected_calibration_error(
            p, rng.random(180) < truth, bins=3, classes=(False, True), n_bootstrap=1
        )
        squares.append(one.rms**2)
    assert abs(np.mean(squares) - ((p - truth) ** 2).mean()) < 0.001


def test_of_several_classes_it_is_about_the_top_class():
    scores, labels = scored(500, classes=3, t=1.0)
    p = softmax(scores, axis=1)
    found = expected_calibration_error(p, labels, n_bootstrap=20)
    top = expected_calibration_error(p.max(1), p.argmax(1) == labels, n_bootstrap=20)
    assert np.isclose(found.value, top.value)


def test_the_interval_is_wider_over_groups_whose_rows_agree():
    scores, labels = scored(60)
    p, labels = np.repeat(expit(scores), 10), np.repeat(labels, 10)
    rows = expected_calibration_error(p, labels, bins=5)
    groups = expected_calibration_error(p, labels, bins=5, groups=np.repeat(np.arange(60), 10))
    assert rows.value == groups.value and groups.high - groups.low > 1.5 * (rows.high - rows.low)


# -- bad input -------------------------------------------------------------------------------------------

S = np.array([0.1, -0.3, 0.8, 0.4])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: calibrate(S, [0, 1, 0]), "3 labels for 4 scores"),
        (lambda: calibrate(S, [1, 1, 1, 1]), "all 4 labels are 1"),
        (lambda: calibrate(S, [0, 1, 2, 0]), "One score per row tells two classes apart, there are 3"),
        (lambda: calibrate(np.eye(4), [0, 1, 0, 1]), "4 columns for 2 classes"),
        (lambda: calibrate(S, [0, 1, 0, None]), "1 of 4 labels are None"),
        (lambda: calibrate(S / 0.0, [0, 1, 0, 1]), "4 of 4 rows have scores that are NaN or infinite"),
        (lambda: calibrate(S, [0, 1, 0, 1], method="plat"), "no calibration 'plat'"),
        (lambda: calibrate(S, [0, 1, 0, 1], classes=(0, 2)), "label 1 is none of the classes"),
        (lambda: calibrate(np.eye(4)[:, :3], [0, 1, 0, 1], classes=(0, 1, 2)), "No row .* has the label 2"),
        (lambda: calibrate(S, S > 0.2, smoothed_targets=False), "separates the classes"),
        (lambda: calibrate(S, S > 0, method="temperature"), "no finite temperature is best"),
        (
            lambda: calibrate(S, [0, 1, 0, 1]).probabilities(np.eye(4)),
            r"\(4, 4\) do not fit .* expected \[row\]",
        ),
        (lambda: cross_calibrate(S, [0, 1, 0, 1], [0, 0, 0, 0]), "1 folds of 4 rows"),
        (lambda: expected_calibration_error(S, [0, 1, 0, 1]), "between 0 and 1"),
        (lambda: expected_calibration_error(S.clip(0), [0, 1, 0, 1], bins=0), "0 bins"),
        (lambda: reliability(np.full((4, 3), 0.5), [0, 1, 2, 0]), "add up to 1"),
    ],
)
def test_bad_input_is_one_clear_error(make, message):
    with np.errstate(all="ignore"), pytest.raises(DataError, match=message):
        make()
