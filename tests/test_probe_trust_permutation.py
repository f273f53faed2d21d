"""Permutation p-values: uniform where nothing is there, bounded over many cells, small where something is."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from test_probes import POST, activations

import probes
from probes.estimators import MassMeanProbe
from probes.folds import assign_folds
from probes.trust import p_values, permutation_test, shuffled_labels
from probes.trust.fitting import Scorer, held_out
from probes.trust.permutation import aucs, permuted_aucs, smoother
from workbench.errors import DataError
from workbench.results import Result


def folds_of(y, groups=None, n=4):
    return assign_folds(y, groups, n=n, seed=0)


# -- p-values and their corrections --------------------------------------------------------------------


def brute_step_down(observed, null):
    """Westfall and Young, algorithm 2.8, as it is written."""
    order = np.argsort(-observed)
    p = np.empty(len(observed))
    for place, cell in enumerate(order):
        rest = order[place:]
        p[cell] = (1 + sum(row[rest].max() >= observed[cell] for row in null)) / (len(null) + 1)
    for before, after in pairwise(order):
        p[after] = max(p[after], p[before])
    return p


def brute_holm(p):
    """Reject the smallest while p ≤ α / (cells left); the corrected p is the least α that rejects."""
    order = np.argsort(p)
    return {c: min(1, max(p[order[j]] * (len(p) - j) for j in range(i + 1))) for i, c in enumerate(order)}


def brute_bh(p):
    order = np.argsort(p)
    return {c: min(p[order[j]] * len(p) / (j + 1) for j in range(i, len(p))) for i, c in enumerate(order)}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 8))
def test_corrections_are_those_of_the_papers_as_written(seed, k):
    random = np.random.default_rng(seed)
    observed, null = random.normal(size=k) + random.integers(0, 3), random.normal(size=(59, k)).round(1)
    found = p_values(observed, null)
    expected = np.array([(1 + sum(row[c] >= observed[c] for row in null)) / 60 for c in range(k)])
    assert np.allclose(found["p"], expected)
    for c in range(k):
        assert np.isclose(found["p_holm"][c], brute_holm(expected)[c])
        assert np.isclose(found["p_bh"][c], min(1, brute_bh(expected)[c]))
    assert np.allclose(found["p_max"], brute_step_down(observed, null))
    assert (found["p_max"] >= found["p"]).all() and found["p"].min() >= 1 / 60


def test_cells_that_say_the_same_cost_nothing_with_the_maximum_and_much_with_holm():
    null = np.repeat(np.random.default_rng(0).normal(size=(199, 1)), 30, axis=1)
    found = p_values(np.full(30, 2.0), null)
    assert np.allclose(found["p_max"], found["p"])
    assert found["p_holm"].max() == min(1, 30 * found["p"][0])


# -- fast path -----------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_rank_sums_are_the_auc_within_folds(seed, ties):
    random = np.random.default_rng(seed)
    scores = random.normal(size=(3, 40))
    scores = scores.round(0) if ties else scores
    targets, fold = random.random((3, 40)) < 0.5, np.arange(40) % 4
    expected = [Scorer(fold).auc(s, y) for s, y in zip(scores, targets, strict=True)]
    assert np.allclose(aucs(scores, targets, fold), expected)


@pytest.mark.parametrize("d", [5, 90], ids=["few dimensions", "more dimensions than rows"])
def test_one_matrix_product_gives_what_fitting_every_permutation_gives(d):
    random = np.random.default_rng(0)
    x, y = random.normal(size=(60, d)) * 4 + 7, np.arange(60) % 2 == 0
    fold = folds_of(y)
    targets = np.concatenate([y[None], shuffled_labels(y, fold, n=20, seed=1)])
    fast = permuted_aucs(x, targets, fold, "mass_mean")
    slow = [
        np.average([roc_auc_score(t[fold == f], MassMeanProbe().fit(x[fold != f], t[fold != f])
                                  .decision_function(x[fold == f])) for f in range(4)],
                   weights=[t[fold == f].sum() * (~t[fold == f]).sum() for f in range(4)])
        for t in targets
    ]  # fmt: skip
    assert np.allclose(fast, slow)
    assert np.allclose(fast, aucs(held_out(x, targets, fold, "mass_mean"), targets, fold))
    scaler = StandardScaler().fit(x[:40])
    model = Ridge(alpha=1 / 0.3).fit(scaler.transform(x[:40]), np.where(y[:40], 1.0, -1.0))
    ours = smoother(x[:40], x[40:], "ridge", 0.3) @ np.where(y[:40], 1.0, -1.0)
    assert np.allclose(ours + model.intercept_, model.predict(scaler.transform(x[40:])))


# -- the null hypothesis -------------------------------------------------------------------------------


def null_p(seed, kind, cells=1, n=59, structure="rows"):
    """p-values where labels were drawn without looking at the activations; all cells correlated."""
    random = np.random.default_rng(seed)
    groups, y = None, random.permutation(np.arange(48) % 2 == 0)
    if structure == "within groups":  # rows of a group share a mark, labels are balanced inside
        groups = np.repeat(np.arange(12), 4)
        y = np.concatenate([random.permutation(np.arange(4) % 2 == 0) for _ in range(12)])
    elif structure == "groups":
        groups = np.repeat(np.arange(24), 2)
        y = random.permutation(np.arange(24) % 2 == 0)[groups]
    marks = 0 if groups is None else 2 * random.normal(size=(groups.max() + 1, 10))[groups]
    common = random.normal(size=(48, 10)) + marks
    x = [common + 0.7 * random.normal(size=(48, 10)) for _ in range(cells)]
    fold = assign_folds(y, groups, n=3, seed=seed)
    targets = np.concatenate([y[None], shuffled_labels(y, fold, groups, n=n, seed=seed + 10**6)])
    every = np.stack([permuted_aucs(one, targets, fold, kind) for one in x])
    return p_values(every[:, 0], every[:, 1:].T)


@pytest.mark.parametrize(
    ("structure", "kind"),
    [("rows", "mass_mean"), ("rows", "ridge"), ("within groups", "mass_mean"), ("groups", "mass_mean")],
)
def test_p_is_uniform_where_there_is_nothing(structure, kind):
    p = np.array([null_p(seed, kind, structure=structure)["p"][0] for seed in range(1000, 1160)])
    spread = p - np.random.default_rng(0).random(160) / 60  # 60 values of p: uniform once they are spread out
    assert kstest(spread, "uniform", alternative="greater").pvalue > 0.01  # not too small anywhere
    assert (
        kstest(spread, "uniform").pvalue > 0.001
    )  # equal AUCs count against the cell, which makes p a little large
    assert (p <= 0.05).mean() < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 160)


def test_ignoring_groups_would_find_what_is_not_there():
    """Groups with one label and a mark each: permuting single rows breaks the marks up, and p is far too small."""
    honest, naive = [], []
    for seed in range(80):
        random = np.random.default_rng(seed)
        groups = np.repeat(np.arange(16), 6)
        y = random.permutation(np.arange(16) % 2 == 0)[groups]
        x = random.normal(size=(16, 4))[groups] + 0.3 * random.normal(size=(96, 4))
        fold = assign_folds(y, groups, n=4, seed=seed)
        for found, given_groups in ((honest, groups), (naive, None)):
            targets = np.concatenate([y[None], shuffled_labels(y, fold, given_groups, n=39, seed=seed)])
            every = permuted_aucs(x, targets, fold)
            found.append(p_values(every[:1], every[1:, None])["p"][0])
    assert np.mean(np.array(honest) <= 0.05) < 0.12 < np.mean(np.array(naive) <= 0.05)


def test_the_family_wise_error_is_held_over_many_cells_and_single_p_is_not():
    found = [null_p(seed, "mass_mean", cells=10, n=59) for seed in range(120)]
    limit = 0.05 + 3 * np.sqrt(0.05 * 0.95 / 120)
    for name in ("p_max", "p_holm"):
        assert np.mean([one[name].min() <= 0.05 for one in found]) < limit
    assert np.mean([one["p"].min() <= 0.05 for one in found]) > limit  # uncorrected, it is not


# -- the whole test ------------------------------------------------------------------------------------


def planted(size=1.2, n=120, layers=6, at=3):
    random = np.random.default_rng(0)
    y = np.arange(n) % 2
    acts = {POST.format(i): random.normal(size=(n, 12)) for i in range(layers)}
    acts[POST.format(at)][:, 0] += size * (y - 0.5)
    return activations(acts), y


def test_a_planted_layer_is_found_with_its_corrected_p_and_the_others_are_not():
    acts, y = planted()
    result = permutation_test(acts, y, kinds=["mass_mean", "ridge"], n=299)
    assert result.data["p"].dims == ("layer", "probe") and result.data.sizes["permutation"] == 299
    assert (result.data["p_max"].sel(layer=3) < 0.01).all()
    assert (result.data["p_max"].drop_sel(layer=3) > 0.05).all()
    assert result.summary["best"]["layer"] == 3 and result.summary["n_significant"] == 2
    assert float(result.data["p"].min()) == result.data.attrs["smallest_p"] == 1 / 300
    assert "one matrix product" in result.data.attrs["how"]
    assert np.isclose(result.data["null_max"].max(), result.data["null_max"].values.max())
    assert (result.data["null_max"].mean() > result.data["null_mean"].max()).item()


def test_the_observed_auc_is_that_of_the_sweep_and_other_kinds_are_fitted():
    acts, y = planted(n=60, layers=2, at=1)
    groups = [f"g{i // 2}" for i in range(60)]
    result = permutation_test(acts, y, kinds=["mass_mean", "logistic"], groups=groups, n=19)
    sweep = probes.sweep(acts, y, kinds="mass_mean", groups=groups, n_bootstrap=5)
    assert np.allclose(result.data["auc"].sel(probe="mass_mean"), sweep.data["auc"].sel(probe="mass_mean"))
    assert result.data.attrs["how"].endswith("logistic: 19 fits a fold")
    assert result.data.attrs["control"] == "labels permuted over rows within groups within folds, 19 times"


def test_positions_are_cells_and_the_result_survives_the_disk(tmp_path):
    random = np.random.default_rng(0)
    y = np.arange(40) % 2
    rows = random.normal(size=(40, 2, 12))
    rows[:, 1, 0] += 3 * y
    acts = activations({POST.format(i): rows.reshape(80, 12) for i in range(2)}, positions=2)
    one, two = (permutation_test(acts, y, n=59, seed=1) for _ in range(2))
    assert one.data["p_max"].dims == ("layer", "position", "probe") and one.data.identical(two.data)
    assert one.data["p_max"].isel(position=1).max() < 0.05 < one.data["p_max"].isel(position=0).min()
    one.save(tmp_path / "p.zarr")
    assert Result.load(tmp_path / "p.zarr").data.identical(one.data)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 18}, "at least 19"),
        ({"kinds": "mass_men"}, "Did you mean 'mass_mean'"),
        ({"labels": np.arange(60) % 3}, "one set of two classes"),
        ({"labels": np.arange(59) % 2}, "59 labels for 60 prompts"),
        ({"folds": 31}, "fewer than the 31 folds"),
        ({"groups": np.arange(60) // 30, "folds": 2, "labels": np.r_[np.arange(30) < 1, np.arange(30) < 29]},
         None),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_error(arguments, message):
    acts, y = planted(n=60, layers=1, at=0)
    given_labels = {"labels": y, **arguments}
    if message is None:  # 30 × 30 ways: enough
        permutation_test(acts, n=19, **given_labels)
        return
    with pytest.raises(DataError, match=message):
        permutation_test(acts, **given_labels)


def test_too_few_ways_to_permute_are_refused():
    acts, _ = planted(n=8, layers=1, at=0)
    y, groups = np.r_[0, 0, 1, 1, 0, 0, 1, 1], np.repeat(np.arange(4), 2)
    with pytest.raises(DataError, match="leave 4 ways to permute"):
        permutation_test(acts, y, groups=groups, folds=2, n=19)
