"""Ridge, softmax and discriminant probes against scikit-learn, brute force and each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV
from sklearn.preprocessing import StandardScaler

from probes.estimators import LogisticProbe, WhitenedMassMeanProbe
from probes.kinds import InputError, LdaProbe, MultinomialProbe, RidgeProbe


def skewed(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Correlated rows whose dimensions differ in size by four orders and are not centred."""
    random = np.random.default_rng(seed)
    mixed = random.normal(size=(n, d)) @ (np.eye(d) + 0.3 * random.normal(size=(d, d)))
    return mixed * np.geomspace(0.01, 100, d) + 5


def coloured(n: int, d: int, classes: int, seed: int = 0, size: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    """Skewed rows whose class means lie apart."""
    random = np.random.default_rng(seed)
    label = random.permutation(np.arange(n) % classes)
    rows = random.normal(size=(n, d)) + size * random.normal(size=(classes, d))[label]
    return rows * np.geomspace(0.01, 100, d) + 5, label


SHAPES = pytest.mark.parametrize("n", [30, 200], ids=["fewer rows than dimensions", "more rows"])


# -- ridge ---------------------------------------------------------------------------------------------


@SHAPES
def test_ridge_weights_are_those_of_scikit_learn_on_standardised_rows(n):
    rows = skewed(n, 60)
    target = rows @ np.random.default_rng(1).normal(size=(60, 2)) + 3
    scaler = StandardScaler().fit(rows)
    oracle = Ridge(alpha=7.0).fit(scaler.transform(rows), target)
    probe = RidgeProbe(alphas=7.0).fit(rows, target)
    assert probe.alpha_ == 7.0
    assert np.allclose(probe.coef_ * scaler.scale_, oracle.coef_, rtol=1e-8, atol=1e-9)
    assert np.allclose(probe.predict(rows), oracle.predict(scaler.transform(rows)), rtol=1e-9)


@SHAPES
def test_leave_one_out_residuals_are_those_of_leaving_each_row_out(n):
    rows = skewed(n, 60)
    target = np.random.default_rng(1).normal(size=(n, 2)) + rows[:, :2]
    z = StandardScaler().fit_transform(rows)
    probe = RidgeProbe(alphas=3.0).fit(rows, target)
    for i in range(0, n, 7):
        others = np.arange(n) != i
        fitted = Ridge(alpha=3.0).fit(z[others], target[others])
        assert np.allclose(probe.loo_residuals_[i], target[i] - fitted.predict(z[i : i + 1])[0], rtol=1e-7)


@SHAPES
def test_the_penalty_is_the_one_scikit_learns_leave_one_out_chooses(n):
    rows = skewed(n, 40)
    random = np.random.default_rng(2)
    target = np.stack(
        [0.1 * rows[:, 0] + random.normal(size=n), 1000 * random.normal(size=n), rows[:, 3]], axis=1
    )
    alphas = np.geomspace(0.01, 1e4, 13)
    z = StandardScaler().fit_transform(rows)
    oracle = RidgeCV(alphas, alpha_per_target=True, store_cv_results=True).fit(z, target)
    probe = RidgeProbe(alphas=alphas, per_output=True).fit(rows, target)
    assert np.allclose(probe.alpha_, oracle.alpha_) and len(set(probe.alpha_)) > 1
    errors = np.moveaxis(oracle.cv_results_, -1, 0).mean(1)  # [alpha, output]
    assert np.allclose(probe.loo_errors_, errors / target.var(0), rtol=1e-6)
    one = RidgeProbe(alphas=alphas).fit(rows, target[:, 0])
    assert one.alpha_ == probe.alpha_[0] and one.coef_.shape == (40,) and isinstance(one.intercept_, float)
    shared = RidgeProbe(alphas=alphas).fit(rows, target)
    assert shared.alpha_ == alphas[(errors / target.var(0)).mean(1).argmin()]


def test_with_one_hot_targets_the_largest_output_is_the_class():
    rows, label = coloured(200, 10, 3)
    probe = RidgeProbe().fit(rows, np.eye(3)[label])
    assert probe.coef_.shape == (3, 10)
    assert np.mean(probe.predict(rows).argmax(1) == label) > 0.9
    assert np.allclose(probe.coef_.sum(0), 0, atol=1e-12)  # the outputs add up to one


@pytest.mark.parametrize(
    ("targets", "arguments", "message"),
    [
        (np.ones(20), {}, r"target is the same number \(1\) in all 20 rows"),
        (np.stack([np.arange(20), np.full(20, 7.0)], 1), {}, "Output 1 of the targets is the same number"),
        (np.arange(20.0), {"alphas": [1.0, 0.0]}, "numbers above 0"),
        (np.arange(20.0), {"alphas": []}, "numbers above 0"),
        (np.arange(19.0), {}, "19 targets for 20 rows"),
        (np.arange(20.0), {"alphas": 1e-13}, "decides its own fit alone"),
    ],
)
def test_targets_that_a_regression_cannot_use_are_refused(targets, arguments, message):
    with pytest.raises(InputError, match=message):
        RidgeProbe(**arguments).fit(skewed(20, 60), targets)


# -- softmax -------------------------------------------------------------------------------------------


@SHAPES
@pytest.mark.parametrize("C", [0.01, 1.0, 100.0])
def test_softmax_weights_are_those_of_scikit_learn_and_the_gradient_is_what_is_said(n, C):
    rows, label = coloured(n, 60, 4)
    scaler = StandardScaler().fit(rows)
    z = scaler.transform(rows)
    oracle = LogisticRegression(C=C, tol=1e-10, max_iter=20_000).fit(z, label)
    probe = MultinomialProbe(C=C).fit(rows, label)
    weights, intercept = probe.coef_ * scaler.scale_, probe.intercept_ + probe.coef_ @ scaler.mean_
    assert np.allclose(weights, oracle.coef_, rtol=1e-3, atol=2e-5 * max(1, C))
    assert np.allclose(probe.predict_proba(rows), oracle.predict_proba(z), atol=1e-4)
    # the gradient, from its definition
    logits = z @ weights.T + intercept
    p = np.exp(logits - logits.max(1, keepdims=True))
    error = p / p.sum(1, keepdims=True) - np.eye(4)[label]
    gradient = np.concatenate([error.T @ z / n + weights / (C * n), error.mean(0)[:, None]], axis=1)
    assert probe.converged_ and probe.gradient_norm_ <= 1e-8
    assert np.linalg.norm(gradient) < 2e-8
    assert np.allclose(intercept.sum(), 0) and np.allclose(weights.sum(0), 0, atol=1e-6)


@given(st.integers(0, 10_000), st.sampled_from([1e-3, 1.0, 1e3]), st.integers(2, 5))
@settings(max_examples=25, deadline=None)
def test_softmax_converges_on_any_data_separable_or_not(seed, C, classes):
    random = np.random.default_rng(seed)
    n, d = int(random.integers(classes + 1, 40)), int(random.integers(1, 30))
    label = np.concatenate([np.arange(classes), random.integers(0, classes, n - classes)])
    probe = MultinomialProbe(C=C).fit(random.normal(size=(n, d)) * random.lognormal(0, 2, d), label)
    assert probe.converged_, probe.gradient_norm_


def test_with_two_classes_softmax_is_the_logistic_probe():
    rows, label = coloured(80, 20, 2, size=0.5)
    names = np.array(["no", "yes"])[label]
    probe = MultinomialProbe(C=0.3).fit(rows, names)
    other = LogisticProbe(C=0.3, tol=1e-10, max_iter=5000).fit(rows, names)
    assert probe.coef_.shape == (1, 20) and probe.classes_.tolist() == ["no", "yes"]
    assert np.allclose(probe.coef_ * rows.std(0), other.coef_ * rows.std(0), atol=1e-5)


def test_too_few_steps_are_recorded_with_the_gradient_that_is_left():
    rows, label = coloured(80, 20, 3)
    probe = MultinomialProbe(max_iter=1).fit(rows, label)
    assert not probe.converged_ and probe.n_iter_ == 1 and probe.gradient_norm_ > 1e-8


# -- discriminant analysis -----------------------------------------------------------------------------


@SHAPES
@pytest.mark.parametrize("solver", ["lsqr", "eigen"])
@pytest.mark.parametrize("classes", [2, 4])
def test_lda_is_that_of_scikit_learn_on_standardised_rows(n, solver, classes):
    rows, label = coloured(n, 40, classes)
    scaler = StandardScaler().fit(rows)
    z = scaler.transform(rows)
    oracle = LinearDiscriminantAnalysis(solver=solver, shrinkage=0.2).fit(z, label)
    probe = LdaProbe(shrinkage=0.2).fit(rows, label)
    assert np.allclose(probe.decision_function(rows), oracle.decision_function(z), rtol=1e-6, atol=1e-6)
    assert np.allclose(probe.predict_proba(rows), oracle.predict_proba(z), atol=1e-7)
    assert np.allclose(probe.priors_, oracle.priors_) and probe.shrinkage_ == 0.2


@SHAPES
def test_the_shrinkage_is_ledoits_and_wolfs_for_rows_about_their_class_means(n):
    rows, label = coloured(n, 40, 3)
    z = StandardScaler().fit_transform(rows)
    centred = z - np.stack([z[label == k].mean(0) for k in range(3)])[label]
    expected = ledoit_wolf_shrinkage(centred, assume_centered=True)
    assert np.isclose(LdaProbe().fit(rows, label).shrinkage_, expected)


@SHAPES
def test_lda_of_two_classes_is_the_whitened_mass_mean_probe(n):
    rows, label = coloured(n, 60, 2)
    ours, other = LdaProbe().fit(rows, label), WhitenedMassMeanProbe().fit(rows, label)
    assert np.allclose(ours.decision_function(rows), other.decision_function(rows), rtol=1e-9, atol=1e-9)
    assert np.allclose(ours.coef_, other.coef_, rtol=1e-7)


def test_lda_without_shrinkage_needs_more_rows_than_dimensions():
    rows, label = coloured(200, 20, 2)
    z = StandardScaler().fit_transform(rows)
    oracle = LinearDiscriminantAnalysis(solver="lsqr").fit(z, label)
    probe = LdaProbe(shrinkage=0).fit(rows, label)
    assert np.allclose(probe.decision_function(rows), oracle.decision_function(z))
    with pytest.raises(InputError, match="10 rows in 20 dimensions has no inverse"):
        LdaProbe(shrinkage=0).fit(rows[:10], label[:10])
    for wrong in (-0.1, 1.5, "oas", float("nan")):
        with pytest.raises(InputError, match="'auto' or a number from 0 to 1"):
            LdaProbe(shrinkage=wrong).fit(rows, label)
