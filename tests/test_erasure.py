"""LEACE against its definition: brute-force constrained least squares, and probes that find nothing."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import torch
from conftest import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.metrics import log_loss
from sklearn.utils.estimator_checks import parametrize_with_checks

import workbench as wb
from probes.erasure import ERASERS, Leace, erase_scores
from workbench.errors import DataError
from workbench.results import Result


def rows_and_labels(n=120, d=8, classes=2, seed=0, size=2.0):
    """Correlated rows whose class means differ."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % classes)
    mixing = rng.normal(size=(d, d)) * np.geomspace(0.3, 3, d)
    rows = (
        rng.normal(size=(n, d)) @ mixing + size * rng.normal(size=(classes, d))[labels] + rng.normal(size=d)
    )
    return rows, labels


def columns(labels):
    return np.eye(labels.max() + 1)[labels] if labels.dtype.kind == "i" else labels.reshape(len(labels), -1)


def covariance(x, z):
    return (x - x.mean(0)).T @ (z - z.mean(0)) / len(x)


def matrix(eraser):
    """The linear part of r."""
    return np.eye(len(eraser.mean_)) - eraser.proj_left_ @ eraser.proj_right_


# -- the definition --------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(5, 60),
    d=st.integers(1, 20),
    kind=st.sampled_from(["two", "four", "number", "numbers"]),
    seed=st.integers(0, 999),
)
def test_erased_rows_have_no_covariance_with_any_kind_of_label_for_any_shape(n, d, kind, seed):
    rng = np.random.default_rng(seed)
    rows, labels = rows_and_labels(n, d, 4 if kind == "four" else 2, seed)
    if kind.startswith("number"):
        labels = rng.normal(size=(n, 3)) + rows[:, :1]
        labels = labels[:, 0] if kind == "number" else labels
    eraser = Leace().fit(rows, labels)
    erased = eraser.transform(rows)
    assert np.abs(covariance(erased, columns(labels))).max() < 1e-10
    assert np.allclose(erased.mean(0), rows.mean(0))
    assert eraser.rank_ <= min(d, {"two": 1, "four": 3, "number": 1, "numbers": 3}[kind])
    assert np.allclose(eraser.transform(erased), erased, atol=1e-8)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("d", [1, 2, 3, 4])
@pytest.mark.parametrize("norm", ["plain", "other"])
def test_it_is_the_solution_of_the_constrained_least_squares_problem_in_every_norm(classes, d, norm):
    """min tr(M (A − 1) Σ (A − 1)ᵀ) over A with A Σ_xz = 0, by its KKT equations in the d² entries of A."""
    rows, labels = rows_and_labels(40, d, classes, seed=d)
    cov, cross = np.atleast_2d(np.cov(rows.T, bias=True)), covariance(rows, columns(labels))
    root = np.random.default_rng(1).normal(size=(d, d))
    m = np.eye(d) if norm == "plain" else root @ root.T + np.eye(d)
    hessian = np.kron(m, cov)  # of the entries of A, row by row
    constraint = np.kron(np.eye(d), cross.T)
    zero = np.zeros((len(constraint), len(constraint)))
    kkt = np.block([[hessian, constraint.T], [constraint, zero]])
    wanted = np.concatenate([hessian @ np.eye(d).ravel(), np.zeros(len(constraint))])
    best = np.linalg.lstsq(kkt, wanted, rcond=None)[0][: d * d].reshape(d, d)
    assert np.allclose(matrix(Leace().fit(rows, labels)), best, atol=1e-8)


def test_it_is_the_formula_of_the_paper_with_a_pseudo_inverse_root():
    rows, labels = rows_and_labels(8, d=12, classes=3)  # singular covariance
    cov, cross = np.cov(rows.T, bias=True), covariance(rows, columns(labels))
    value, vectors = np.linalg.eigh(cov)
    root = (vectors * np.sqrt(value.clip(0))) @ vectors.T
    w = np.linalg.pinv(root, rcond=1e-6)
    basis = scipy.linalg.orth(w @ cross, rcond=1e-6)
    expected = rows - (rows - rows.mean(0)) @ (root @ basis @ basis.T @ w).T
    assert np.allclose(Leace().fit_transform(rows, labels), expected, atol=1e-6)


def test_no_other_linear_map_that_erases_changes_less_by_numerical_search():
    rows, labels = rows_and_labels(60, d=3)
    centred, cross = rows - rows.mean(0), covariance(rows, columns(labels))[:, :1]

    def change(flat):
        return (((flat.reshape(3, 3) - np.eye(3)) @ centred.T) ** 2).sum() / 60

    ours = change(matrix(Leace().fit(rows, labels)).ravel())
    zero = {"type": "eq", "fun": lambda flat: (flat.reshape(3, 3) @ cross).ravel()}
    for seed in range(4):
        start = np.random.default_rng(seed).normal(size=9)
        found = scipy.optimize.minimize(
            change, start, constraints=zero, method="SLSQP", options={"ftol": 1e-12, "maxiter": 500}
        )
        assert found.success and np.isclose(found.fun, ours, rtol=1e-4) and found.fun >= ours * (1 - 1e-6)


@pytest.mark.parametrize("classes", [2, 5])
def test_it_changes_no_more_than_projecting_out_the_differences_of_the_means(classes):
    for seed in range(10):
        rows, labels = rows_and_labels(80, 6, classes, seed)
        means = np.stack([rows[labels == c].mean(0) for c in range(classes)])
        axes = scipy.linalg.orth((means - means.mean(0)).T)
        projected = (rows - rows.mean(0)) @ axes @ axes.T
        ours = ((Leace().fit_transform(rows, labels) - rows) ** 2).sum()
        assert ours <= (projected**2).sum() * (1 + 1e-12)


# -- what probes find ------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("n", [30, 400], ids=["fewer rows than dimensions", "more rows"])
def test_no_linear_probe_beats_a_constant_on_the_erased_rows(classes, n):
    rows, labels = rows_and_labels(n, 50, classes)
    labels = np.where(np.arange(n) < n // 5, 0, labels)  # class 0 is the largest
    erased = Leace().fit_transform(rows, labels)
    share = np.bincount(labels) / n
    constant = -(share * np.log(share)).sum()
    before = LogisticRegression(max_iter=5000).fit(rows, labels)
    after = LogisticRegression(C=1e4, max_iter=5000, tol=1e-9).fit(erased, labels)
    assert log_loss(labels, before.predict_proba(rows)) < constant / 2
    assert log_loss(labels, after.predict_proba(erased)) >= constant - 1e-9
    assert np.mean(after.predict(erased) == labels) == share.max()
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1).fit(erased, labels)
    assert np.mean(lda.predict(erased) == labels) == share.max()
    for model in (Ridge(alpha=1e-3), LinearRegression()):
        assert model.fit(erased, columns(labels)).score(erased, columns(labels)) < 1e-9


def test_a_regression_target_is_erased_and_the_rest_of_the_rows_is_still_there():
    rows, _ = rows_and_labels(300, 10)
    target = rows @ np.arange(10.0) + np.random.default_rng(0).normal(size=300)
    other, erased = rows[:, 0], Leace().fit_transform(rows, target)
    assert LinearRegression().fit(rows, target).score(rows, target) > 0.95
    assert LinearRegression().fit(erased, target).score(erased, target) < 1e-12
    correlation = np.corrcoef(other, target)[0, 1]
    assert np.isclose(LinearRegression().fit(erased, other).score(erased, other), 1 - correlation**2)


def test_moments_added_up_in_parts_give_the_same_eraser():
    rows, labels = rows_and_labels(200, 12, 3)
    z = columns(labels)
    total = {"x": 0, "xx": 0, "xz": 0}
    for part in np.array_split(np.arange(200), 7):
        total["x"] += rows[part].sum(0)
        total["xx"] += rows[part].T @ rows[part]
        total["xz"] += rows[part].T @ z[part]
    mean = total["x"] / 200
    cov, cross = total["xx"] / 200 - np.outer(mean, mean), total["xz"] / 200 - np.outer(mean, z.mean(0))
    fitted, streamed = Leace().fit(rows, labels), Leace.from_moments(mean, cov, cross)
    assert streamed.rank_ == fitted.rank_ == 2
    assert np.allclose(matrix(streamed), matrix(fitted), atol=1e-9)
    few, z = rows[:9], columns(labels)[:9]  # fewer rows than dimensions
    eraser = Leace.from_moments(few.mean(0), np.cov(few.T, bias=True), covariance(few, z))
    assert np.abs(covariance(eraser.transform(few), z)).max() < 1e-6
    assert np.allclose(
        matrix(Leace.from_moments(torch.tensor(mean), 200 * cov, 200 * cross)), matrix(fitted), atol=1e-9
    )


def test_torch_tensors_keep_their_type_and_heads_are_flattened():
    rows, labels = rows_and_labels(50, 12)
    eraser = Leace().fit(torch.tensor(rows), torch.tensor(labels))
    expected = eraser.transform(rows)
    assert eraser.transform(torch.tensor(rows)).dtype == torch.float64
    erase = eraser.edit()
    heads = erase(torch.tensor(rows, dtype=torch.float32).reshape(5, 10, 3, 4))
    assert heads.shape == (5, 10, 3, 4) and heads.dtype == torch.float32
    assert np.allclose(heads.reshape(50, 12).numpy(), expected, atol=1e-4)
    assert erase(torch.tensor(rows, dtype=torch.bfloat16)).dtype == torch.bfloat16
    with pytest.raises(DataError, match=r"shape \[2, 5\] do not fit this eraser.*12 dimensions"):
        erase(torch.zeros(2, 5))


def test_as_an_edit_it_erases_the_label_inside_a_model():
    model = tiny_model("llama")
    site = "blocks.1.hook_resid_post"
    words = ["Mary", "John", "Anna", "Tom", "Paris", "Rome"]
    prompts = [f"the {w} is {c}" for w in words for c in ("red", "blue")]
    labels = np.arange(12) % 2
    eraser = Leace().fit(wb.collect(model, prompts, site).rows(site), labels)
    with model.edit({site: eraser.edit()}):
        after = wb.collect(model, prompts, site).rows(site).double().numpy()
    before = wb.collect(model, prompts, site).rows(site).double().numpy()
    left, there = (np.abs(covariance(x, columns(labels))).max() / np.abs(x).max() for x in (after, before))
    assert left < 1e-6 and there > 1e-3


@parametrize_with_checks([Leace()])
def test_it_keeps_the_conventions_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Leace().fit(np.eye(4), [1, 1, 1, 1]),
            "all 4 labels are the same, so there is only one class",
        ),
        (
            lambda: Leace(target="class").fit(np.eye(4), [1, 0, 1, 0]),
            "target is 'auto', 'classes' or 'values'",
        ),
        (lambda: Leace().fit(np.full((4, 2), np.nan), [1, 0, 1, 0]), "NaN"),
        (lambda: Leace().fit(np.eye(4), [1, 0, 1]), "inconsistent numbers of samples"),
        (lambda: Leace().fit(np.eye(4), [1, 0, 1, 0]).transform(np.eye(3)), "3 features.*expecting 4"),
        (lambda: Leace.from_moments(np.zeros(3), np.eye(2), np.zeros(3)), r"shapes \(3,\), \(2, 2\)"),
        (lambda: Leace.from_moments(np.zeros(2), np.tri(2), np.zeros(2)), "not symmetric"),
        (lambda: Leace.from_moments(np.zeros(2), np.eye(2), np.array([np.nan, 0])), "NaN"),
    ],
)
def test_bad_rows_labels_or_moments_are_one_error(make, message):
    with pytest.raises((ValueError, DataError), match=message):
        make()


# -- scores ----------------------------------------------------------------------------------------------


def test_scores_fall_to_the_majority_with_leace_and_stay_with_a_random_direction(tmp_path):
    rows, labels = rows_and_labels(400, 20, size=1.5)
    kept = np.flatnonzero((labels == 0) | (np.arange(400) % 5 < 3))[:300]  # two thirds are of class 0
    rows, labels, groups = rows[kept], labels[kept], np.arange(300) // 3
    result = erase_scores(rows, labels, groups=groups)
    data, majority = result.data, result.data.attrs["majority_accuracy"]
    at = {name: data.sel(rows="same", eraser=name) for name in ERASERS}
    assert float(at["none"]["accuracy"]) > 0.9 and float(at["random_direction"]["accuracy"]) > 0.85
    assert (
        abs(float(at["leace"]["accuracy"]) - majority) < 1e-9 and abs(float(at["leace"]["auc"]) - 0.5) < 1e-9
    )
    assert abs(float(at["leace"]["train_log_loss"]) - data.attrs["constant_train_log_loss"]) < 1e-9
    assert abs(float(at["leace"]["log_loss"]) - data.attrs["constant_log_loss"]) < 1e-3
    assert float(at["leace"]["squared_change"]) <= float(at["mean_difference"]["squared_change"])
    assert float(at["leace"]["drop_low"]) > 0.2 and float(at["random_direction"]["drop_high"]) < 0.1
    assert (
        float(at["none"]["accuracy_low"]) < float(at["none"]["accuracy"]) < float(at["none"]["accuracy_high"])
    )
    assert (
        data.attrs["n"] == 300
        and data.attrs["n_groups"] == 100
        and data["rank"].values.tolist() == [[0, 1, 1, 1]] * 2
    )
    other = data.sel(rows="other", eraser="leace")  # the probe's rows were not erased exactly
    assert float(other["train_log_loss"]) < 0.99 * data.attrs["constant_train_log_loss"]
    assert abs(float(other["accuracy"]) - majority) < 0.1 and float(other["auc"]) != 0.5
    result.save(tmp_path / "e.zarr")
    assert Result.load(tmp_path / "e.zarr").data.identical(data)


def test_scores_of_several_classes_and_of_noise():
    rows, labels = rows_and_labels(200, 8, classes=4, size=3)
    result = erase_scores(torch.tensor(rows), [f"c{c}" for c in labels], n_bootstrap=50)
    data = result.data.sel(rows="same")
    assert float(data["accuracy"].sel(eraser="none")) > 0.7
    assert float(data["accuracy"].sel(eraser="leace")) <= 0.3 and "auc" not in data
    assert float(data["rank"].sel(eraser="leace")) == 3
    noise = erase_scores(
        np.random.default_rng(0).normal(size=(200, 8)), np.arange(200) % 2, n_bootstrap=200
    ).data
    assert np.abs(noise["accuracy"] - 0.5).max() < 0.1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"y": np.zeros(20)}, "all 20 labels are 0.0"),
        ({"y": np.arange(19) % 2}, "19 labels for 20 rows"),
        ({"groups": [1, 2]}, "2 groups for 20 labels"),
        ({"folds": 1}, "at least 2 folds"),
        ({"folds": 15}, "0 class has 10 rows, fewer than the 15 folds"),
        ({"X": np.full((20, 2), np.inf)}, "finite"),
        ({"penalty": 0.0}, "penalty must be above 0"),
    ],
)
def test_bad_input_to_the_scores_is_one_error(more, message):
    with pytest.raises(DataError, match=message):
        erase_scores(**({"X": np.random.default_rng(0).normal(size=(20, 2)), "y": np.arange(20) % 2} | more))
