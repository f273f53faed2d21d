"""Bases over numbers, the probe fitted with them, chosen periods, and R² on held-out numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression

from probes.periodic import BasisProbe, HelixProbe, choose_periods, helix_sweep
from probes.periodic.basis import (
    circle,
    circle_of_size,
    digit_fourier,
    helix,
    helix_of_size,
    permuted,
    polynomial,
)
from probes.periodic.periods import _errors
from probes.periodic.splits import number_folds, random_splits
from workbench.errors import DataError
from workbench.results import Result

A = np.arange(100)
WIDTH = 24
FEW = tuple(100 / j for j in range(1, 51))


def planted(basis, numbers=A, noise=0.0, seed=0):
    """Activations that are the basis, mapped by random numbers, and what they were mapped by."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(basis.n_columns, WIDTH))
    rows = basis.columns(numbers) @ weight + rng.normal(size=WIDTH)
    return rows + noise * rng.normal(size=rows.shape), weight


def by_hand(numbers, periods, scale):
    """The helix as the paper writes it, with all its columns and the constant."""
    columns = []
    for period in periods:
        columns += [
            [np.cos(2 * np.pi * a / period) for a in numbers],
            [np.sin(2 * np.pi * a / period) for a in numbers],
        ]
    return np.array([*columns, [a / scale for a in numbers], [1.0] * len(numbers)]).T


# -- bases ---------------------------------------------------------------------------------------------


def test_columns_are_those_of_the_paper_without_the_sine_that_is_zero_on_whole_numbers():
    paper = by_hand(range(100), (2, 5, 10, 100), 99)
    assert np.abs(paper[:, 1]).max() < 1e-10  # sin(πa)
    assert np.allclose(helix().design(A), np.delete(paper, 1, axis=1))
    assert helix().names == ("cos 2", "cos 5", "sin 5", "cos 10", "sin 10", "cos 100", "sin 100", "linear")
    assert helix().n_columns == 8 and np.linalg.matrix_rank(paper) == 9  # with the constant, not 10
    assert np.allclose(circle().columns(A), helix().columns(A)[:, :-1])


def test_the_digit_basis_is_orthogonal_and_misses_four_of_nine_functions():
    phi = digit_fourier().design(np.arange(10))
    assert phi.shape == (10, 6)
    gram = phi.T @ phi
    assert np.allclose(gram, np.diag(np.diag(gram)))
    assert sorted(np.diag(gram).round(6)) == [5, 5, 5, 5, 10, 10]


@settings(max_examples=60, deadline=None)
@given(
    periods=st.lists(st.integers(4, 400).map(lambda j: 800 / j), min_size=1, max_size=4, unique=True),
    k=st.integers(3, 11),
)
def test_a_basis_of_a_size_never_has_more_columns_and_a_circle_has_exactly_as_many(periods, k):
    found = helix_of_size(periods, k)
    assert found.n_columns <= k and set(found.periods) <= set(periods)
    assert found.columns(A).shape == (100, found.n_columns)
    try:
        ring = circle_of_size(periods, k)
    except DataError:
        assert max(periods) / k < 4  # not enough harmonics above 2
        return
    assert ring.n_columns == k and "linear" not in ring.names


@given(period=st.floats(1.05, 1.95))
def test_a_period_below_two_is_an_alias_and_the_message_names_the_other(period):
    other = period / (period - 1)
    if other >= 2:
        assert np.allclose(np.cos(2 * np.pi * A / period), np.cos(2 * np.pi * A / other), atol=1e-9)
    with pytest.raises(DataError, match=f"cannot be told from the period {other:g}"):
        helix((period,))


def test_a_permuted_basis_has_the_same_rows_in_another_order():
    basis, null = helix(), permuted(helix(), A, seed=3)
    order = np.lexsort(basis.columns(A).T), np.lexsort(null.columns(A).T)
    assert np.allclose(basis.columns(A)[order[0]], null.columns(A)[order[1]])
    assert not np.allclose(basis.columns(A), null.columns(A))
    assert np.allclose(null.columns(A[7:9]), null.columns(A)[7:9])  # a function of the number alone
    with pytest.raises(DataError, match="not made for the number 100"):
        null.columns([100])


# -- the probe -----------------------------------------------------------------------------------------


def test_a_planted_helix_is_recovered_on_numbers_that_were_not_seen():
    rows, weight = planted(helix((7, 30), 0, 99))
    train = np.random.default_rng(0).permutation(100)[:60]
    test = np.setdiff1d(A, train)
    probe = HelixProbe((7, 30)).fit(train, rows[train])
    assert np.allclose(probe.predict(test), rows[test])
    assert probe.score(test, rows[test]) == pytest.approx(1)
    assert np.allclose(probe.coef_[:-1], weight[:-1])
    assert np.allclose(probe.read(probe.predict(test)), probe.basis_.columns(test))
    assert (probe.decode(rows[test], range(100)) == test).all()
    assert HelixProbe((7, 30), linear=False).fit(train, rows[train]).score(test, rows[test]) < 0.999


def test_a_planted_polynomial_is_better_fitted_by_the_polynomial_and_the_other_way_round():
    for truth, best in ((polynomial(5), "polynomial"), (helix((10, 100)), "helix")):
        rows, _ = planted(truth, noise=0.1)
        scores = {
            name: BasisProbe(basis).fit(A[::2], rows[::2]).score(A[1::2], rows[1::2])
            for name, basis in (("polynomial", polynomial(5)), ("helix", helix((10, 100))))
        }
        assert max(scores, key=lambda n: scores[n]) == best and scores[best] > 0.95


@pytest.mark.parametrize("n_components", [None, 6, 100])
def test_the_fit_is_least_squares_through_principal_components(n_components):
    numbers = np.repeat(A, 2)
    rows, _ = planted(helix((10, 37)), numbers, noise=1.0)
    probe = BasisProbe(helix(), n_components=n_components).fit(numbers, rows)
    design = np.delete(by_hand(numbers, (2, 5, 10, 100), 99), 1, axis=1)
    if n_components == 6:
        pca = PCA(6, svd_solver="full").fit(rows)
        line = LinearRegression(fit_intercept=False).fit(design, pca.transform(rows))
        expected = pca.inverse_transform(line.predict(design))
    else:
        expected = design @ np.linalg.lstsq(design, rows, rcond=None)[0]
    assert np.allclose(probe.predict(numbers), expected)
    residual = ((rows - expected) ** 2).sum() / ((rows - rows.mean(0)) ** 2).sum()
    assert probe.score(numbers, rows) == pytest.approx(1 - residual)


def test_it_follows_the_conventions_of_scikit_learn():
    probe = HelixProbe((3, 9), n_components=5)
    assert clone(probe).get_params() == {"periods": (3, 9), "linear": True, "n_components": 5}
    rows, _ = planted(helix((3, 9)))
    assert np.array_equal(
        clone(probe).fit(A[:, None], rows).predict([[4.0]]), probe.fit(A, rows).predict([4])
    )


# -- choosing periods ----------------------------------------------------------------------------------


def test_the_error_of_each_candidate_is_that_of_its_own_least_squares_fit():
    rows, _ = planted(helix((17, 40)), noise=0.5)
    periods = (2.0, 5.0, 17.0, 40.0, 41.0)
    angle = 2 * np.pi * A[:, None] / np.array(periods)
    waves = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    inside, test = helix((25,)).design(A), np.arange(100) % 4 == 1
    found = _errors(rows, inside, waves, test)
    for period, error in zip(periods, found, strict=True):
        design = helix((25, period)).design(A)
        solution = np.linalg.lstsq(design[~test], rows[~test], rcond=None)[0]
        assert error == pytest.approx(((rows[test] - design[test] @ solution) ** 2).sum(), rel=1e-8)


def test_planted_periods_are_chosen_and_permuted_numbers_do_not_reach_them():
    rows, _ = planted(helix((8, 20, 50)), np.repeat(A, 3), noise=0.3)
    choice = choose_periods(rows, np.repeat(A, 3), n_periods=3)
    assert sorted(choice.periods) == [8, 20, 50]
    assert all(sorted(one) == [8, 20, 50] for one in choice.fold_periods)
    assert choice.r2.mean() > 0.9 and choice.null_r2.max() < 0.1
    assert choice.p_value == pytest.approx(1 / 11)
    assert list(choice.path) == sorted(choice.path)


def test_on_noise_the_choice_is_worth_no_more_than_its_null():
    p_values = [
        choose_periods(
            np.random.default_rng(seed).normal(size=(60, 8)),
            range(60),
            n_periods=2,
            n_null=9,
            seed=seed,
            candidates=FEW,
        ).p_value
        for seed in range(8)
    ]
    assert np.mean(np.array(p_values) <= 0.1) <= 0.4 and np.mean(p_values) > 0.25


# -- held-out R² ---------------------------------------------------------------------------------------


def test_all_rows_of_a_held_out_number_are_held_out_together():
    numbers = np.random.default_rng(0).integers(0, 20, 200)
    for out in random_splits(numbers, 5, 0.25, seed=1):
        assert len(np.unique(numbers[out])) == 5
        assert not set(numbers[out]) & set(numbers[~out])
    fold = number_folds(numbers, 4, seed=0)
    assert all(len(set(fold[numbers == n])) == 1 for n in range(20))
    assert sorted(len(np.unique(numbers[fold == f])) for f in range(4)) == [5, 5, 5, 5]


def test_the_sweep_finds_a_planted_helix_in_its_layer_beside_nulls_and_equal_rivals(tmp_path):
    rows = {0: np.random.default_rng(1).normal(size=(100, WIDTH)), 1: planted(helix((10, 100)))[0]}
    rows[2] = planted(helix((13, 41)), noise=0.05)[0]
    result = helix_sweep(rows, A, n_splits=6)
    r2, null = (result.data[name].sel(k=5) for name in ("r2", "null_r2"))
    assert float(r2.sel(layer=1, basis="helix")) == pytest.approx(1)
    assert float(r2.sel(layer=2, basis="chosen")) > 0.95 > 0.2 > float(r2.sel(layer=2, basis="helix"))
    assert r2.sel(layer=0, basis=["helix", "chosen", "circle", "polynomial"]).max() < 0.05
    assert null.sel(basis=["helix", "chosen", "circle", "polynomial"]).max() < 0.05
    assert r2.sel(layer=1, basis="circle") < 0.99 and r2.sel(layer=1, basis="polynomial") < 0.99
    assert float(null.sel(layer=0, basis="pca")) == pytest.approx(5 / WIDTH, abs=0.1)
    chosen = result.data["chosen_period"].sel(layer=2).values
    assert np.abs(np.sort(chosen[:, :2], axis=1) - [13, 41]).max() < 1.5
    assert result.data["n_columns"].sel(k=9).values.tolist() == [8, 9, 9, 9, 9]
    assert result.data["between"].values.tolist() == [1, 1, 1]
    result.save(tmp_path / "r.zarr")
    assert Result.load(tmp_path / "r.zarr").data.identical(result.data)


def test_components_and_a_polynomial_are_those_of_scikit_learn_split_by_split():
    numbers = np.repeat(A, 2)
    rows = planted(helix((10, 33)), numbers, noise=0.7)[0]
    result = helix_sweep({3: rows}, numbers, sizes=(3, 5), n_splits=3, seed=5)
    expected: dict[str, list] = {"pca": [], "polynomial": [], "null": []}
    for out in random_splits(numbers, 3, 0.25, seed=5):
        total = ((rows[out] - rows[~out].mean(0)) ** 2).sum()
        pca = PCA(5, svd_solver="full").fit(rows[~out])
        powers = np.vander(numbers / 99, 6)
        line = LinearRegression(fit_intercept=False).fit(powers[~out], rows[~out])
        for name, said in (
            ("pca", pca.inverse_transform(pca.transform(rows[out]))),
            ("polynomial", line.predict(powers[out])),
        ):
            expected[name].append(1 - ((rows[out] - said) ** 2).sum() / total)
    for name in ("pca", "polynomial"):
        assert float(result.data["r2"].sel(layer=3, k=5, basis=name)) == pytest.approx(
            np.median(expected[name])
        )
    means = np.stack([rows[numbers == n].mean(0) for n in numbers])
    between = 1 - ((rows - means) ** 2).sum() / ((rows - rows.mean(0)) ** 2).sum()
    assert float(result.data["between"][0]) == pytest.approx(between)


# -- bad input -----------------------------------------------------------------------------------------

ROWS = planted(helix((10, 100)))[0]
NAN = ROWS.copy()
NAN[[4, 9], 0] = np.nan


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: HelixProbe().fit(A[:99], ROWS), "99 numbers for 100 rows"),
        (lambda: HelixProbe().fit(A, NAN), "2 of 100 rows of activations hold NaN.*row 4"),
        (lambda: HelixProbe().fit(A[:6], ROWS[:6]), "6 different numbers for 9 parameters"),
        (lambda: HelixProbe().fit(np.full(100, 3), ROWS), "numbers are constant"),
        (lambda: HelixProbe((2, 10)).fit(A[::5], ROWS[::5]), "rank .* cannot be told apart"),
        (lambda: HelixProbe().fit(A + 0.5, ROWS), "0.5 at row 0 is not whole"),
        (lambda: HelixProbe().fit(np.where(A == 2, np.nan, A), ROWS), "1 of 100 numbers are NaN.*row 2"),
        (lambda: HelixProbe().fit([], ROWS[:0]), "flat list of whole numbers"),
        (lambda: HelixProbe().fit(A, ROWS[:, 0]), "give \\[row, d\\]"),
        (lambda: HelixProbe((0,)).fit(A, ROWS), "Period 0 is no period"),
        (lambda: HelixProbe((-5,)).fit(A, ROWS), "Period -5 is no period"),
        (lambda: HelixProbe((1,)).fit(A, ROWS), "cannot be told from a constant"),
        (lambda: HelixProbe((5, 5)).fit(A, ROWS), "given twice"),
        (lambda: HelixProbe(n_components=0).fit(A, ROWS), "n_components is 0"),
        (lambda: polynomial(0), "degree 0"),
        (lambda: circle(()), "without periods"),
        (lambda: helix(low=3, high=3), "constant"),
        (lambda: HelixProbe().fit(A, ROWS).read(ROWS[:, :3]), r"reads \[row, 24\]"),
        (lambda: helix_sweep({}, A), "No activations"),
        (lambda: helix_sweep({0: ROWS, 1: NAN}, A), "Layer 1: 2 of 100 rows"),
        (lambda: helix_sweep({0: ROWS, 1: ROWS[:, :4]}, A), "different widths"),
        (lambda: helix_sweep({0: ROWS}, A, held_out=1.0), "held_out=1 of 100"),
        (lambda: helix_sweep({0: ROWS}, A, sizes=(2,)), "3 columns or more"),
        (lambda: helix_sweep({0: ROWS[:10]}, A[:10]), "different numbers for .* parameters"),
        (lambda: choose_periods(ROWS, A, n_periods=0), "n_periods is 0"),
        (lambda: choose_periods(ROWS[:12], A[:12]), "inner folds have"),
        (lambda: choose_periods(ROWS, A, n_folds=1), "1 folds of 100"),
    ],
)
def test_bad_input_is_one_clear_error(call, message):
    with pytest.raises(DataError, match=message):
        call()
