"""Kinds, controls, intervals and refusals of the rooms around a sweep: each test fails without one mend."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from test_probes import POST, activations

import probes
import workbench as wb
from probes import trust
from probes.boards import othello_boards
from probes.causal import causal_check
from probes.causal.board_sweep import board_sweep, split_groups
from probes.kinds import MlpProbe, sparse
from probes.mil.stacking import task_auc
from probes.periodic import number_spectrum, regression_probe
from probes.periodic.splits import shuffled_groups
from probes.reliability import expected_calibration_error
from probes.trust.control_tasks import last_varying_tokens, random_token_labels, type_folds
from probes.trust.untrained import untrained_model
from workbench.collection.to_store import collect_to
from workbench.errors import DataError, SiteError

SITE = POST.format(0)
WORDS = ["the", "a", "Mary", "John", "went", "to", "store", "and"]


def uneven(n_groups: int = 24, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    sizes = np.random.default_rng(seed).integers(1, 40, n_groups)
    return np.repeat(np.arange(n_groups), sizes), np.concatenate([np.arange(size) for size in sizes])


def test_intervals_of_shares_are_those_of_sums_over_counts():
    groups, position = uneven()
    test, _ = split_groups(groups, seed=0)
    x = torch.randn(len(groups), 4, generator=torch.Generator().manual_seed(0))
    y = test.astype(int)[:, None]
    y[np.flatnonzero(~test)[0]] = 1
    y[np.flatnonzero(~test)[0]] = 0
    data = board_sweep({"s": x}, {"l": y}, groups, position, n_classes=2, controls=False)[0].data
    for name in ("mean_error", "mean_error_low", "mean_error_high"):
        assert data[name].item() == pytest.approx(1.0)  # every test row is wrong, whichever groups are drawn


def test_a_board_sweep_wants_the_untrained_rows_of_every_site():
    groups, position = uneven()
    x, y = torch.randn(len(groups), 4), np.zeros((len(groups), 1), dtype=int)
    run: Any = {"n_classes": 2, "controls": False}
    with pytest.raises(DataError, match="lack the site 'b'"):
        board_sweep({"a": x, "b": x}, {"l": y}, groups, position, untrained={"a": x}, **run)
    with pytest.raises(DataError, match=r"a \(untrained\)"):
        board_sweep({"a": x}, {"l": y}, groups, position, untrained={"a": x[1:]}, **run)


def width(result) -> float:
    return float((result.data["r2_high"] - result.data["r2_low"]).squeeze())


def test_regression_intervals_and_null_keep_groups_together():
    random = np.random.default_rng(0)
    h = random.normal(size=(60, 5))
    y = h[:, 0] + random.normal(size=60)
    one = regression_probe({0: h[:, None]}, {"t": y}, n_bootstrap=400)
    copies = np.repeat(np.arange(60), 20)
    many = regression_probe(
        {0: h[copies][:, None]}, {"t": y[copies]}, groups=copies.tolist(), n_bootstrap=400
    )
    assert 0.5 < width(many) / width(one) < 2  # 20 copies of a row tell no more than one
    # Constant targets of groups: shuffled rows of 200 would give a null near 0, that of 14 groups is far below.
    g = np.repeat(np.arange(20), 10)
    wide, t = random.normal(size=(20, 40))[g], random.normal(size=20)[g]
    null = (
        regression_probe({0: wide[:, None]}, {"t": t}, groups=g.tolist(), n_shuffles=5).data["null_r2"].item()
    )
    assert null < -0.1


def test_shuffled_targets_stay_in_groups():
    random = np.random.default_rng(0)
    g, _ = uneven(12)
    y = np.stack([random.normal(size=12)[g], random.normal(size=len(g))], axis=1)
    found = shuffled_groups(y, g, random)
    assert all(len(set(found[g == k, 0])) == 1 for k in range(12)) and not np.allclose(found[:, 0], y[:, 0])
    assert sorted(found[:, 1]) == sorted(y[:, 1])
    even = np.repeat(np.arange(12), 5)[random.permutation(60)]
    y = np.stack([even.astype(float), even + 0.1 * random.random(60)], axis=1)
    found = shuffled_groups(y, even, random)
    for k in range(12):  # blocks of one size change places as wholes
        assert len(set(np.floor(found[even == k, 1]))) == 1


def test_regression_takes_tuples_half_precision_and_refuses_no_draws():
    random = np.random.default_rng(0)
    h, groups = random.normal(size=(60, 1, 4)), [(i % 5, i % 3) for i in range(60)]
    y = h[:, 0, 0]
    data = regression_probe({0: torch.tensor(h).bfloat16()}, {"t": torch.tensor(y)}, groups=groups).data
    assert data.attrs["n_groups"] == 15 and data["r2"].item() > 0.9
    none: list[Any] = [{"n_shuffles": 0}, {"n_bootstrap": 0}]
    for bad in none:
        with pytest.raises(DataError, match="must be at least 1"):
            regression_probe({0: h}, {"t": y}, **bad)


def test_an_order_that_gives_the_same_share_counts_as_one():
    # All orders of one spike have one spectrum, up to rounding: every permutation reaches the share.
    spike = np.zeros((7, 3))
    spike[2] = 0.1, 0.7, 0.3
    found = number_spectrum({"spike": spike}, n_permutations=50).data["p_value"]
    assert (found.sel(removed="mean") == 1).all()


def colours(n: int = 60, last=lambda i: ".") -> tuple[list[str], list[bool]]:
    random = np.random.default_rng(0)
    texts = [" ".join([*random.choice(WORDS, 4), "red" if i % 2 else "blue", last(i)]) for i in range(n)]
    return texts, [bool(i % 2) for i in range(n)]


TRUST: Any = {"sites": SITE, "kind": "mass_mean", "n_bootstrap": 20, "n_control": 3}


@pytest.mark.parametrize("types", [None, ["a"] * 50 + ["b"] * 6 + ["c", "d"] * 2])
def test_a_trust_report_does_not_fail_by_a_rare_type(types):
    texts, labels = colours(last=lambda i: "and" if i == 7 else ".")
    found = trust.trust_report(tiny_model("llama"), texts, labels, types=types, **TRUST)
    assert np.isfinite(found.data["auc"]).all() and found.data.attrs["n_types"] == (2 if types is None else 4)


def test_types_that_cannot_be_scored_are_one_clear_error():
    texts, labels = colours(20)
    with pytest.raises(DataError, match="Of 2 token types all but the most frequent"):
        trust.trust_report(tiny_model("llama"), texts, labels, types=["a"] * 19 + ["b"], **TRUST)


def test_every_draw_of_random_labels_has_both_in_every_training_set():
    types = ["a"] * 8 + ["b", "c", "d", "e", "f", "g"]
    fold = type_folds(types, n=5)
    assert np.bincount(fold).max() - np.bincount(fold).min() <= 1
    assert np.ptp(np.bincount(fold[:8], minlength=5)) <= 1
    for seed in range(40):
        task = random_token_labels(types, n=20, seed=seed, fold=fold)
        assert all(len(set(row[fold != k])) == 2 for row in task.labels for k in range(5))
    rare = [
        random_token_labels(["a", "a", "b", "b"], n=5, seed=s, fold=np.array([0, 1, 0, 1])) for s in (0, 1)
    ]
    assert all(len(set(row[:2])) == 1 for task in rare for row in task.labels)


def test_the_column_of_types_has_enough_rows_besides_its_most_frequent_token():
    ids = [[i % 2, 9] for i in range(10)]
    ids[3][1] = 8
    assert last_varying_tokens(ids).tolist() == [row[1] for row in ids]
    assert last_varying_tokens(ids, least=3).tolist() == [i % 2 for i in range(10)]
    assert last_varying_tokens([row[1:] for row in ids], least=3).tolist() == [row[1] for row in ids]


def test_the_twin_leaves_every_random_state_alone(monkeypatch):
    seeded = []
    model, before = tiny_model("llama"), torch.get_rng_state()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    one, other = untrained_model(model, seed=3), untrained_model(model, seed=3)
    assert one.fingerprint == other.fingerprint != untrained_model(model, seed=4).fingerprint
    assert not seeded and torch.equal(torch.get_rng_state(), before)


def test_the_task_auc_is_that_of_the_folds_with_both():
    random = np.random.default_rng(0)
    scores, fold = random.normal(size=30), np.repeat([0, 1, 2], 10)
    up = random.random(30) < 0.5
    up[fold == 1] = True
    expected = np.mean([roc_auc_score(up[fold == k], scores[fold == k]) for k in (0, 2)])
    assert task_auc(scores, up, fold) == pytest.approx(expected)
    assert np.isnan(task_auc(scores, np.ones(30, dtype=bool), fold))


def test_the_l1_penalty_is_asked_for_as_this_scikit_learn_takes_it():
    def old(penalty="l2", l1_ratio=None):
        """`LogisticRegression` up to scikit-learn 1.7."""

    def later(l1_ratio=0.0):
        """As announced for 1.10."""

    assert sparse.l1_penalty(old) == {"penalty": "l1"}
    assert sparse.l1_penalty(later) == {"l1_ratio": 1.0}
    random = np.random.default_rng(0)
    x = random.normal(size=(80, 20))
    fit = LogisticRegression(**sparse.l1_penalty(), C=0.05, solver="liblinear").fit(x, x[:, 0] > 0)
    assert 0 < (fit.coef_ != 0).sum() < 10


def test_an_mlp_that_diverges_says_so():
    x = np.random.default_rng(0).normal(size=(60, 4))
    y = x[:, 0] > 0
    for held in ({}, {"groups": np.where(y, "a", "b")}):  # the second leaves nothing to stop by
        probe = MlpProbe(max_epochs=5).fit(x, y)
        with pytest.raises(DataError, match="diverged.*learning_rate below 1e\\+300"):
            probe.set_params(learning_rate=1e300).fit(x, y, **held)


def test_othello_games_as_arrays():
    texts = ["d5 e5", "d5"]
    expected = othello_boards(texts).side
    assert np.array_equal(othello_boards(np.array(texts)).side, expected)
    for bad in (np.array([1, 2, 3]), np.array([[1.0, 2.0]]), np.array(5)):
        with pytest.raises(DataError, match=r"whole numbers \[game, move\]"):
            othello_boards(bad)
    with pytest.raises(DataError, match="one of these is 3"):
        othello_boards(np.array(["d5", 3], dtype=object))


def test_one_baseline_by_name_and_none():
    texts, labels = ["a b", "c"] * 20, [0, 1] * 20
    assert trust.text_only(texts, labels, baselines="length", n_bootstrap=20).data["baseline"].values == [
        "length"
    ]
    with pytest.raises(DataError, match="No baseline was asked for"):
        trust.text_only(texts, labels, baselines=[])


def test_undefined_rows_take_names_and_globs():
    random = np.random.default_rng(0)
    acts = activations({POST.format(i): random.normal(size=(90, 5)) for i in range(2)})
    labels = ["t", "f", "neither"] * 30
    few: Any = {"n_bootstrap": 10, "n_control": 1}
    for sites, expected in ((POST.format(1), [1]), (["blocks.*.hook_resid_post"], [0, 1])):
        data = trust.undefined_rows(acts, labels, sites=sites, **few).data
        assert data["layer"].values.tolist() == expected
    with pytest.raises(SiteError):
        trust.undefined_rows(acts, labels, sites="blocks.7.hook_resid_post", **few)


def test_a_calibration_error_needs_draws():
    with pytest.raises(DataError, match="n_bootstrap must be at least 1"):
        expected_calibration_error([0.2, 0.8], [0, 1], n_bootstrap=0)


def test_a_permutation_test_of_a_store_is_that_of_its_activations(tmp_path):
    model = tiny_model("llama")
    texts, labels = colours(40)
    rows = [{"text": text, "colour": label} for text, label in zip(texts, labels, strict=True)]
    store = collect_to(tmp_path / "store", model, rows, SITE, "last")
    acts = wb.collect(model, texts, SITE)
    expected = trust.permutation_test(acts, labels, n=19).data
    for found in (trust.permutation_test(store, labels, n=19), trust.permutation_test(store, "colour", n=19)):
        assert found.data["auc"].values == pytest.approx(expected["auc"].values, abs=1e-6)
        assert found.provenance.model["fingerprint"] == model.fingerprint


@pytest.fixture(scope="module")
def fitted() -> tuple:
    model, texts = tiny_model("llama"), colours(12)[0]
    acts = wb.collect(model, texts, SITE)
    labels = np.array(["no", "yes", "no"] * 4)
    fit = probes.LogisticProbe().fit(acts.rows(SITE), labels)
    return model, texts[:4], probes.FittedProbe.of(fit, acts, classes=["false", "true"])


def test_a_causal_check_takes_a_fitted_probe_and_one_strength(fitted):
    model, texts, probe = fitted
    metric: Any = wb.LogitDifference("red", "blue")
    few: Any = {"n_random": 2}

    def slope(of, **more) -> float:
        return float(causal_check(model, texts, of, metric, **few, **more).data["slope"][0])

    assert slope(probe, strengths=2) == pytest.approx(slope(probe.direction(), strengths=[2]), rel=1e-4)
    back = slope(probe, strengths=2, classes=("true", "false"))
    assert back == pytest.approx(-slope(probe, strengths=[-2]), rel=1e-3)
    found = causal_check(model, texts, probe, metric, **few)
    assert "true" in str(found.summary) and np.isfinite(found.data["slope"]).all()
    with pytest.raises(DataError, match="belongs|is for"):
        causal_check(model, texts, probe, metric, site=POST.format(1), **few)
