"""Spectra over numbers and the digit basis: Parseval, scipy's periodogram, planted frequencies, nulls at chance."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.periodic import digit_fit, number_spectrum
from probes.periodic.basis import digit_fourier
from probes.periodic.spectrum import power_share
from workbench.errors import DataError
from workbench.organisms.tasks.modular_addition import spectral_power
from workbench.results import Result


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(4, 60),
    d=st.integers(1, 5),
    removed=st.sampled_from(["mean", "trend"]),
    seed=st.integers(0, 99),
)
def test_power_adds_up_to_the_sum_of_squares_and_is_scipys_periodogram(n, d, removed, seed):
    rows = np.random.default_rng(seed).normal(size=(n, d)) + np.arange(n)[:, None]
    left = scipy.signal.detrend(rows, axis=0, type="constant" if removed == "mean" else "linear")
    _, power = scipy.signal.periodogram(rows, axis=0, detrend="constant" if removed == "mean" else "linear")
    power = power.sum(1)[1:]
    assert np.allclose(power_share(rows, removed), power / power.sum(), atol=1e-9)
    assert np.isclose(power.sum() / 1, (left**2).sum())  # Parseval: one-sided power density of unit sampling


def test_odd_lengths_give_what_the_organism_reports():
    import torch

    rows = torch.randn(113, 8, generator=torch.Generator().manual_seed(0))
    ours = np.sort(power_share(rows.double().numpy()))[::-1]
    assert np.allclose(ours, spectral_power(rows).numpy())


def test_planted_frequencies_hold_all_power_and_a_line_leaks_until_it_is_removed(tmp_path):
    a = np.arange(100)
    rng = np.random.default_rng(0)
    waves = np.cos(2 * np.pi * np.outer(a, [10, 50]) / 100) @ rng.normal(size=(2, 6))
    tilted = waves + np.outer(a, rng.normal(size=6))
    result = number_spectrum({"waves": waves, "tilted": tilted}, numbers=a + 7, top=(1, 2))
    data = result.data
    assert float(data["share"].sel(table="waves", removed="mean", top=2)) == pytest.approx(1)
    assert set(result.summary["tables"]["waves"]["periods"][:2]) == {10, 2}
    assert data["power"].sel(table="tilted", removed="mean", frequency=1) > 0.5
    assert data["share"].sel(table="tilted", removed="trend", top=2) > 0.99
    assert data["line"].sel(table="tilted") > 0.95 > 0.05 > data["line"].sel(table="waves")
    assert data["null_share_high"].sel(table="waves").max() < 0.3
    assert float(data["p_value"].sel(table="waves", removed="mean", top=2)) == pytest.approx(1 / 201)
    result.save(tmp_path / "r.zarr")
    assert Result.load(tmp_path / "r.zarr").data.identical(data)


def test_on_noise_the_strongest_frequencies_hold_what_those_of_permuted_rows_hold():
    p_values = []
    for seed in range(20):
        rows = np.random.default_rng(seed).normal(size=(50, 4))
        data = number_spectrum({"noise": rows}, top=(3,), n_permutations=39, seed=seed).data
        p_values.append(float(data["p_value"].sel(removed="mean").item()))
    assert 0.3 < np.mean(p_values) < 0.7 and np.mean(np.array(p_values) <= 0.05) <= 0.2


def test_the_digit_basis_fits_itself_and_five_ninths_of_noise():
    rng = np.random.default_rng(0)
    made = digit_fourier().columns(range(10)) @ rng.normal(size=(5, 7)) + rng.normal(size=7)
    found = digit_fit(made)
    assert found["r2"] == pytest.approx(1) and found["r2_median"] == pytest.approx(1)
    assert found["p_value"] < 0.02 and found["null_r2_high"] < 0.95
    noise = digit_fit(rng.normal(size=(10, 4000)), n_permutations=20)
    assert noise["r2"] == pytest.approx(noise["chance"], abs=0.02)
    assert noise["null_r2"] == pytest.approx(5 / 9, abs=0.02)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: number_spectrum({}), "No tables"),
        (lambda: number_spectrum({"x": np.ones((9, 2))}), "'x' is constant over the numbers"),
        (lambda: number_spectrum({"x": np.arange(9.0)[:, None]}), "'x' is a straight line"),
        (
            lambda: number_spectrum({"x": np.eye(9)}, numbers=[0, 1, 2, 3, 5, 6, 7, 8, 9]),
            "3 is followed by 5",
        ),
        (lambda: number_spectrum({"x": np.eye(9)}, numbers=range(8)), "8 numbers for 9 rows"),
        (lambda: number_spectrum({"x": np.full((9, 2), np.nan)}), "'x': 9 of 9 rows"),
        (lambda: number_spectrum({"x": np.eye(9)}, top=(5,)), "have 4 frequencies"),
        (lambda: number_spectrum({"x": np.eye(3)}), "3 numbers have no spectrum"),
        (lambda: number_spectrum({"x": np.eye(9)}, top=(1,), n_permutations=0), "n_permutations is 0"),
        (lambda: digit_fit(np.eye(9)), "10 numbers for 9 rows"),
        (lambda: digit_fit(np.ones((10, 3))), "constant over the digits"),
    ],
)
def test_bad_input_is_one_clear_error(call, message):
    with pytest.raises(DataError, match=message):
        call()
