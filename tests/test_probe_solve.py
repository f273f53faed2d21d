"""The shared linear algebra of probes against scikit-learn and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from probes.solve import cross as cross_module
from probes.solve import newton
from probes.solve.cross import cross_logistic
from probes.solve.links import Link
from probes.solve.problems import Metric, Problems
from probes.solve.ridge import platt, ridge
from probes.solve.spectrum import Spectrum, scale_of

PENALTIES = [1e-4, 1e-2, 1.0, 30.0]


def rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Correlated features of very different sizes, off the origin."""
    random = np.random.default_rng(seed)
    mixed = random.normal(size=(n, d)) @ (random.normal(size=(d, d)) / np.sqrt(d) + np.eye(d))
    return mixed * np.geomspace(0.01, 50, d) + random.normal(size=d) * 3


def labels(x: np.ndarray, seed: int = 0, noise: float = 1.0) -> np.ndarray:
    random = np.random.default_rng(seed + 100)
    z = (x - x.mean(0)) / x.std(0)
    score = z @ random.normal(size=x.shape[1]) / np.sqrt(x.shape[1])
    return score + noise * random.normal(size=len(x)) > 0.2


def reference(x: np.ndarray, y: np.ndarray, c: float) -> tuple[StandardScaler, LogisticRegression]:
    scaler = StandardScaler().fit(x)
    model = LogisticRegression(C=c, tol=1e-10, max_iter=20_000, solver="newton-cholesky")
    return scaler, model.fit(scaler.transform(x), y)


@pytest.mark.parametrize(("n", "d"), [(120, 20), (40, 60)], ids=["more rows", "fewer rows than dimensions"])
def test_the_spectrum_is_an_orthonormal_basis_of_the_standardised_rows(n, d):
    x = torch.from_numpy(rows(n, d))
    spectrum = Spectrum.of(x)
    z = (x - x.mean(0)) / x.std(0, correction=0)
    assert torch.allclose(spectrum.axes.T @ spectrum.axes, torch.eye(spectrum.rank, dtype=x.dtype), atol=1e-8)
    assert torch.allclose(spectrum.rows @ spectrum.axes.T, z, atol=1e-8)
    assert torch.allclose(spectrum.rows.T @ spectrum.rows, spectrum.eigenvalues.diag(), atol=1e-6)
    assert torch.allclose(spectrum.place(x), spectrum.rows, atol=1e-8)


def test_a_spectrum_of_moments_is_that_of_the_rows():
    x = torch.from_numpy(rows(80, 12))
    away = x - x.mean(0)
    one, other = Spectrum.of(x), Spectrum.from_moments(x.mean(0), away.T @ away, len(x))
    assert torch.allclose(one.eigenvalues, other.eigenvalues)
    assert torch.allclose((one.axes * other.axes).sum(0).abs(), torch.ones(12, dtype=x.dtype), atol=1e-6)


@pytest.mark.parametrize(("n", "d"), [(150, 24), (50, 80)], ids=["more rows", "fewer rows than dimensions"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_fold_and_penalty_is_scikit_learns_fit_of_its_training_rows(n, d, dtype):
    x = rows(n, d)
    y = np.stack([labels(x, seed) for seed in range(3)])
    fold = np.arange(n) % 4
    fits = cross_logistic(
        torch.from_numpy(x), torch.from_numpy(y.astype(np.int64)), 2, torch.from_numpy(fold), PENALTIES, dtype=dtype,
        tolerance=1e-6,
    )  # fmt: skip
    assert bool(fits.converged.all())
    for i, c in enumerate(PENALTIES):
        for t in range(3):
            scaler, model = reference(x, y[t], c)
            w = (fits.spectrum.axes @ fits.u[i, :, t, 0]).numpy()
            assert np.allclose(w, model.coef_[0], atol=2e-3 * np.abs(model.coef_).max()), (c, t)
            assert float(fits.intercept[i, t, 0]) == pytest.approx(model.intercept_[0], abs=5e-3)
            for f in range(4):
                here = fold == f
                scaler, model = reference(x[~here], y[t][~here], c)
                expected = model.decision_function(scaler.transform(x[here]))
                found = fits.out[i, t, here, 0].numpy()
                assert np.allclose(found, expected, atol=4e-3 * max(1, np.abs(expected).max())), (c, t, f)


def test_a_row_that_would_change_every_scale_is_kept_out_of_the_fits_that_do_not_see_it():
    x = rows(120, 10)
    x[7] *= 1000
    y, fold = labels(x), np.arange(120) % 3
    fits = cross_logistic(
        torch.from_numpy(x), torch.from_numpy(y.astype(np.int64))[None], 2, torch.from_numpy(fold), [0.1],
        tolerance=1e-7, dtype=torch.float64,
    )  # fmt: skip
    here = fold == 7 % 3
    scaler, model = reference(x[~here], y[~here], 0.1)
    expected = model.decision_function(scaler.transform(x[here]))
    assert np.allclose(fits.out[0, 0, here, 0].numpy(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("n", [180, 30], ids=["more rows", "fewer rows than dimensions"])
def test_softmax_fits_are_scikit_learns(n):
    x = rows(n, 40 if n < 100 else 15)
    y = np.random.default_rng(1).permutation(np.arange(n) % 3)
    x[:, :3] += 20 * np.eye(3)[y]
    fold = np.arange(n) % 3
    fits = cross_logistic(
        torch.from_numpy(x), torch.from_numpy(y)[None], 3, torch.from_numpy(fold), [0.01, 1.0],
        tolerance=1e-7, dtype=torch.float64,
    )  # fmt: skip
    for i, c in enumerate([0.01, 1.0]):
        for f in range(3):
            here = fold == f
            scaler = StandardScaler().fit(x[~here])
            model = LogisticRegression(C=c, tol=1e-10, max_iter=20_000).fit(
                scaler.transform(x[~here]), y[~here]
            )
            expected = model.predict_proba(scaler.transform(x[here]))
            assert np.allclose(fits.out[i, 0, here].softmax(1).numpy(), expected, atol=2e-4)


def test_separable_data_under_a_weak_penalty_converge_by_exact_steps(monkeypatch):
    x = rows(60, 8)
    y = (x[:, 0] > np.median(x[:, 0])).astype(np.int64)
    monkeypatch.setattr(newton, "MAX_STEPS", 2)
    fits = cross_logistic(
        torch.from_numpy(x), torch.from_numpy(y)[None], 2, torch.from_numpy(np.arange(60) % 3), [1e4],
        tolerance=1e-7, dtype=torch.float64,
    )  # fmt: skip
    assert int(fits.exact.sum()) > 0 and bool(fits.converged.all())
    _, model = reference(x, y, 1e4)
    w = (fits.spectrum.axes @ fits.u[0, :, 0, 0]).numpy()
    assert np.allclose(w, model.coef_[0], rtol=1e-3, atol=1e-3 * np.abs(model.coef_).max())


def test_how_problems_are_batched_changes_nothing(monkeypatch):
    x, fold = torch.from_numpy(rows(90, 12)), torch.arange(90) % 3
    y = torch.from_numpy(np.stack([labels(x.numpy(), seed) for seed in range(4)]).astype(np.int64))
    found = []
    for columns, elements in ((64, 8_000_000), (5, 8_000_000), (64, 90 * 3)):
        monkeypatch.setattr(cross_module, "COLUMNS", columns)
        monkeypatch.setattr(cross_module, "ELEMENTS", elements)
        fits = cross_logistic(x, y, 2, fold, PENALTIES[:3], tolerance=1e-9, dtype=torch.float64)
        found.append(fits.out)
    assert torch.allclose(found[0], found[1], atol=1e-5) and torch.allclose(found[0], found[2], atol=1e-5)


def test_hessian_products_are_the_derivative_of_the_gradient():
    torch.manual_seed(0)
    d, n, k = 5, 30, 4
    base = Problems.of(
        torch.randn(n, d, dtype=torch.float64), torch.full((d,), float(n), dtype=torch.float64),
        (torch.rand(n, k, 1) > 0.5).double(), torch.tensor([0.1, 1.0, 3.0, 0.5], dtype=torch.float64), Link(softmax=False),
    )  # fmt: skip
    axes = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64))[0]
    metric = Metric.of(axes, torch.rand(2, d, dtype=torch.float64) + 0.5)
    from dataclasses import replace

    problem = replace(
        base, mask=(torch.rand(n, k, 1) > 0.3).double(), metric=metric, fold=torch.tensor([0, 1, -1, 0])
    )
    u, v = torch.randn(d + 1, k, 1, dtype=torch.float64), torch.randn(d + 1, k, 1, dtype=torch.float64)

    def gradient(at):
        return problem.gradient(problem.link.probability(problem.scores(at)), problem.penalised(at))

    p = problem.link.probability(problem.scores(u))
    product = problem.curved(p, problem.curvature(p), v) + problem.penalised(v)
    step = 1e-6
    assert torch.allclose(product, (gradient(u + step * v) - gradient(u - step * v)) / (2 * step), atol=1e-6)

    def value(at):
        return problem.value(problem.scores(at), at, problem.penalised(at))

    slope = (value(u + step * v) - value(u - step * v)) / (2 * step)
    assert torch.allclose((gradient(u) * v).sum((0, 2)), slope, atol=1e-6)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(6, 30), st.integers(2, 40))
def test_leave_one_out_is_what_fitting_without_the_row_gives(seed, n, d):
    random = np.random.default_rng(seed)
    x, y = rows(n, d, seed), random.normal(size=(2, n))
    spectrum = Spectrum.of(torch.from_numpy(x))
    found = ridge(spectrum, torch.from_numpy(y), [0.5])
    z = (x - x.mean(0)) / np.where(x.std(0) > 0, x.std(0), 1)
    for i in range(n):
        kept = np.arange(n) != i
        model = Ridge(alpha=0.5).fit(z[kept], y[:, kept].T)
        assert np.allclose(found.left_out[:, i].numpy(), model.predict(z[i : i + 1])[0], atol=1e-6)


def test_ridge_takes_for_every_target_the_penalty_with_the_least_left_out_error():
    x = rows(60, 10)
    random = np.random.default_rng(0)
    y = np.stack([(x[:, -1] - x[:, -1].mean()) / x[:, -1].std(), random.normal(size=60)])
    found = ridge(Spectrum.of(torch.from_numpy(x)), torch.from_numpy(y), [1e-3, 1.0, 1e4])
    assert found.penalty.tolist() == [1e-3, 1e4]
    assert torch.equal(found.errors.argmin(0), torch.tensor([0, 2]))
    w, b = Spectrum.of(torch.from_numpy(x)).weights(found.u, found.intercept)
    scaler = StandardScaler().fit(x)
    model = Ridge(alpha=1e-3).fit(scaler.transform(x), y[0])
    assert np.allclose(w[:, 0].numpy() * scaler.scale_, model.coef_, atol=1e-8)
    assert np.allclose(x @ w.numpy() + b.numpy(), np.stack([model.predict(scaler.transform(x)), x @ w.numpy()[:, 1] + float(b[1])], 1))  # fmt: skip


def test_platt_is_logistic_regression_on_smoothed_targets():
    random = np.random.default_rng(0)
    scores = random.normal(size=(2, 80))
    positive = random.random((2, 80)) < 1 / (1 + np.exp(-2 * scores + 1))
    slope, shift = platt(torch.from_numpy(scores), torch.from_numpy(positive))
    for i in range(2):
        up, down = positive[i].sum(), (~positive[i]).sum()
        weights = np.r_[np.where(positive[i], (up + 1) / (up + 2), 1 / (down + 2))]
        x = np.r_[scores[i], scores[i]][:, None]
        y = np.r_[np.ones(80), np.zeros(80)]
        oracle = LogisticRegression(C=1e9, tol=1e-10, max_iter=1000).fit(x, y, np.r_[weights, 1 - weights])
        assert float(slope[i]) == pytest.approx(oracle.coef_[0, 0], rel=1e-4)
        assert float(shift[i]) == pytest.approx(oracle.intercept_[0], rel=1e-3, abs=1e-4)
    separable = platt(
        torch.tensor([[-2.0, -1.0, 1.0, 2.0]]).double(), torch.tensor([[False, False, True, True]])
    )
    assert torch.isfinite(separable[0]).all()


def test_standard_deviations_of_folds_come_from_sums():
    x = torch.from_numpy(rows(50, 6))
    x[:, 2] = 3.0
    x[:10, 4], x[10:, 4] = torch.arange(10).double(), 5.0  # constant outside fold 0
    fold = torch.arange(50) // 10
    spectrum = Spectrum.of(x, every_axis=torch.float64)
    found = cross_module._stds(x, spectrum, fold, 5)
    for f in range(5):
        assert torch.allclose(found[f], scale_of(x[fold != f])[1], rtol=1e-8)
