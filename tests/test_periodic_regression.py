"""Reading numbers linearly: ridge against scikit-learn, controls at chance, groups whole; running sums of products."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

import workbench as wb
from probes.periodic import regression_probe, running_sum_probe, running_sums
from probes.periodic.regression import _held_out_rows
from workbench.errors import DataError, ModelError
from workbench.organisms.tasks import multiplication

N, WIDTH = 300, 12


def planted(noise=0.3, seed=0):
    """[problem, position, d] rows whose second position alone holds y."""
    rng = np.random.default_rng(seed)
    y = rng.normal(size=N)
    rows = rng.normal(size=(N, 2, WIDTH))
    rows[:, 1, 0] = y + noise * rng.normal(size=N)
    return rows, y


# -- running sums --------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(a=st.integers(0, 9999), b=st.integers(0, 99999))
def test_running_sums_give_the_digits_of_pythons_product(a, b):
    first, second = (np.array([[int(d) for d in reversed(f"{x:0{n}d}")]]) for x, n in ((a, 4), (b, 5)))
    sums = running_sums(first, second)[0]
    assert int("".join(str(s % 10) for s in reversed(sums))) == a * b
    for k in range(1, 9):
        products = sum(first[0, i] * second[0, k - i] for i in range(4) if 0 <= k - i < 5)
        assert sums[k] == products + sums[k - 1] // 10


def test_they_are_those_the_organism_writes():
    a, b = np.random.default_rng(0).integers(0, 10, (2, 50, 3))
    assert np.array_equal(running_sums(a, b), multiplication.running_sums(a, b)[1])


# -- the regression ------------------------------------------------------------------------------------


def test_the_fit_is_the_ridge_of_scikit_learn_at_the_chosen_penalty():
    rows, y = planted()
    data = regression_probe({4: rows}, {"y": y}, n_bootstrap=20).data.sel(layer=4, target="y")
    out = _held_out_rows(N, None, 0.3, 0)
    for p in (0, 1):
        x = (rows[:, p] - rows[~out, p].mean(0)) / rows[~out, p].std(0).max()
        penalty = float(data["penalty"][p]) * (~out).sum()
        said = Ridge(alpha=penalty).fit(x[~out], y[~out]).predict(x[out])
        r2 = 1 - ((y[out] - said) ** 2).sum() / ((y[out] - y[~out].mean()) ** 2).sum()
        assert float(data["r2"][p]) == pytest.approx(r2, abs=1e-9)
        assert float(data["mae"][p]) == pytest.approx(np.abs(y[out] - said).mean())
        assert float(data["baseline_mae"][p]) == pytest.approx(np.abs(y[out] - np.median(y[~out])).mean())


def test_a_planted_number_is_read_where_it_is_and_its_null_is_at_chance():
    rows, y = planted()
    data = regression_probe({0: rows}, {"y": y}).data.sel(layer=0, target="y")
    explained = 1 / (1 + 0.3**2)
    assert data["r2_low"][1] < explained < data["r2_high"][1]
    assert data["r2"][0] < 0.1 and np.abs(data["null_r2"]).max() < 0.1
    assert data["mae"][1] < 0.5 * data["baseline_mae"][1]


def test_what_the_text_shows_is_set_against_it():
    rng = np.random.default_rng(0)
    digits = rng.integers(0, 10, (2000, 2))
    product = digits[:, 0] * digits[:, 1]
    seen = np.eye(10)[digits].reshape(2000, 20)
    rows = np.stack([np.c_[seen, np.zeros(2000)], np.c_[seen, product]], axis=1)
    data = regression_probe({0: rows}, {"p": product}, visible=[seen, seen]).data.sel(layer=0, target="p")
    var, mean = 8.25, 4.5  # of one digit: the additive part of a·b is 2 var mean² of (var + mean²)² − mean⁴
    additive = 2 * var * mean**2 / ((var + mean**2) ** 2 - mean**4)
    assert float(data["visible_r2"][0]) == pytest.approx(additive, abs=0.03)
    assert float(data["beyond"][0]) == pytest.approx(0, abs=0.01)
    assert float(data["beyond"][1]) == pytest.approx(1, abs=0.01)


def test_groups_never_straddle_the_split_and_leak_when_they_are_not_given():
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(60), 5)
    rows = (rng.normal(size=(60, 80))[group] + 0.05 * rng.normal(size=(300, 80)))[:, None]
    y = rng.normal(size=60)[group]
    out = _held_out_rows(300, group.tolist(), 0.3, 0)
    assert not set(group[out]) & set(group[~out])
    leaking, honest = (
        float(regression_probe({0: rows}, {"y": y}, groups=g).data["r2"].item())
        for g in (None, group.tolist())
    )
    assert leaking > 0.9 and honest < 0.3


def test_a_target_may_be_there_at_some_positions_only():
    rows, y = planted()
    some = np.full((N, 2), np.nan)
    some[:, 1] = y
    data = regression_probe({0: rows}, {"y": some, "z": rows[:, 0, 3]}, positions=["p", "q"]).data
    assert np.isnan(data["r2"].sel(target="y").values[0, 0]) and data["r2"].sel(target="y").values[0, 1] > 0.8
    assert data["r2"].sel(target="z").values[0, 0] > 0.99 and data["at"].values.tolist() == ["p", "q"]


ROWS, Y = planted()
HALF = np.where(np.arange(N) < 3, np.nan, Y)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: regression_probe({}, {"y": Y}), "No activations"),
        (lambda: regression_probe({0: ROWS[:, 0]}, {"y": Y}), r"give \[problem, position, d\]"),
        (lambda: regression_probe({0: ROWS, 1: ROWS[:9]}, {"y": Y}), "different problems or positions"),
        (lambda: regression_probe({0: np.full_like(ROWS, np.nan)}, {"y": Y}), "Layer 0 has NaN"),
        (lambda: regression_probe({0: ROWS}, {}), "No targets"),
        (lambda: regression_probe({0: ROWS}, {"y": Y[:9]}), r"'y' has shape \(9,\)"),
        (lambda: regression_probe({0: ROWS}, {"y": np.ones(N)}), "'y' is constant"),
        (lambda: regression_probe({0: ROWS}, {"y": HALF}), "'y' is NaN or infinite for some"),
        (lambda: regression_probe({0: ROWS}, {"y": Y}, groups=["a"] * 5), "5 groups for 300 problems"),
        (lambda: regression_probe({0: ROWS}, {"y": Y}, groups=["a"] * N), "of 1 groups leaves nothing"),
        (lambda: regression_probe({0: ROWS}, {"y": Y}, visible=[Y[:, None]]), "visible has 1 tables for 2"),
        (lambda: regression_probe({0: ROWS}, {"y": Y}, positions=["p"]), "1 names for 2 positions"),
        (lambda: running_sums(np.array([[10]]), np.array([[1]])), "no digits 0 to 9"),
        (lambda: running_sums(np.array([[1], [2]]), np.array([[1]])), "2 first factors and 1 second"),
    ],
)
def test_bad_input_is_one_clear_error(call, message):
    with pytest.raises(DataError, match=message):
        call()


# -- the organisms -------------------------------------------------------------------------------------


@cache
def of_cot():
    return running_sum_probe(
        wb.load_model("multiplication-cot", device="cpu"), n=900, layers=[0, 1], n_shuffles=2
    )


def test_what_comes_next_is_read_beyond_the_visible_text_after_the_first_block():
    data = of_cot().data
    at = data["at"].values.tolist()
    assert at == [
        "=",
        "s0,00",
        "s1,01",
        "s1,10",
        "s2,02",
        "s2,11",
        "s2,20",
        "s3,12",
        "s3,21",
        "s4,22",
        "#",
    ] + [f"d{k}" for k in range(5)]
    steps = data.isel(position=slice(1, 9))  # a number is written after each of these tokens, but the last
    for target in ("product", "next"):
        assert steps["r2"].sel(target=target, layer=1).min() > 0.9
        assert steps["r2"].sel(target=target, layer=0).max() < 0.8
    assert steps["beyond"].sel(target="product", layer=1).min() > 0.6
    assert data["null_r2"].max() < 0.15
    assert data["visible_r2"].sel(target="c_1").values[3:].min() > 0.999  # it is written
    assert (
        data["r2"].sel(target="c_2").values[:, 0].max()
        < data["visible_r2"].sel(target="c_2").values[0] + 0.05
    )


def test_other_organisms_are_refused():
    model = wb.load_model("multiplication-cot", device="cpu")
    with pytest.raises(DataError, match="'addition' does not multiply"):
        running_sum_probe(model, "addition")
    with pytest.raises(ModelError, match="Did you mean"):
        running_sum_probe(model, "multiplication-dirct")
