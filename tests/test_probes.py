"""Probes against scikit-learn, closed forms, planted signals and pure noise."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import probes
import workbench as wb
from probes import scores as measure
from probes.estimators import KINDS, LogisticProbe, MassMeanProbe, WhitenedMassMeanProbe, make_probes
from workbench.activations import Activations
from workbench.errors import Cancelled, DataError, RunError, SiteError
from workbench.model.language_model import LanguageModel
from workbench.progress import Silent
from workbench.provenance import Provenance
from workbench.results import Result

POST = "blocks.{}.hook_resid_post"
WIDTH = 12


def activations(layers: dict[str, np.ndarray], *, positions: int = 1, fingerprint: str = "f") -> Activations:
    """Made-up activations, [prompt · position, d] per site."""
    n = len(next(iter(layers.values())))
    return Activations(
        values={site: torch.tensor(rows, dtype=torch.float32) for site, rows in layers.items()},
        prompt=np.repeat(np.arange(n // positions), positions),
        position=np.tile(np.arange(3, 3 + positions), n // positions),
        token_id=np.zeros(n, dtype=np.int64),
        token=("a",) * n,
        n_prompts=n // positions,
        provenance=Provenance(model={"fingerprint": fingerprint}),
    )


def noise(n: int, d: int = WIDTH, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(size=(n, d)) * random.lognormal(size=d) + random.normal(size=d)


def planted(n: int, d: int = WIDTH, size: float = 2.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit Gaussian rows, moved along the first axis by ±size/2 according to a balanced label."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(n) % 2)
    rows = random.normal(size=(n, d))
    rows[:, 0] += size * (labels - 0.5)
    return rows, labels


def standardised_logistic(C: float = 1.0):
    return make_pipeline(StandardScaler(), LogisticRegression(C=C, tol=1e-8, max_iter=5000))


# -- estimators ----------------------------------------------------------------------------------------


@parametrize_with_checks([LogisticProbe(), MassMeanProbe(), WhitenedMassMeanProbe()])
def test_every_probe_keeps_the_conventions_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.parametrize("n", [40, 400], ids=["fewer rows than dimensions", "more rows"])
@pytest.mark.parametrize("C", [0.01, 1.0])
def test_logistic_coefficients_are_those_of_scikit_learn_on_standardised_features(n, C):
    rows, labels = planted(n, d=100)
    rows = rows * np.geomspace(0.01, 100, 100) + 5
    scaler = StandardScaler().fit(rows)
    oracle = LogisticRegression(C=C, tol=1e-8, max_iter=5000).fit(scaler.transform(rows), labels)
    probe = LogisticProbe(C=C, tol=1e-8, max_iter=5000).fit(rows, labels)
    assert np.allclose(probe.coef_ * scaler.scale_, oracle.coef_, rtol=1e-4, atol=1e-6)
    assert np.allclose(probe.predict_proba(rows), oracle.predict_proba(scaler.transform(rows)), atol=1e-5)


def test_too_few_iterations_are_recorded_and_do_not_warn():
    rows, labels = planted(100, d=30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert LogisticProbe(C=100, max_iter=2).fit(rows, labels).converged_ is False
        assert LogisticProbe().fit(rows, labels).converged_ is True


def test_mass_mean_direction_is_the_difference_of_the_class_means():
    rows, labels = noise(30), np.arange(30) % 3 == 0
    theta = rows[labels].mean(0) - rows[~labels].mean(0)
    coef = MassMeanProbe().fit(rows, labels).coef_[0]
    assert np.allclose(coef / np.linalg.norm(coef), theta / np.linalg.norm(theta))


def test_mass_mean_log_odds_are_those_of_discriminant_analysis_along_its_direction():
    rows, labels = noise(60), np.arange(60) % 3 == 0
    along = (rows @ (rows[labels].mean(0) - rows[~labels].mean(0)))[:, None]
    oracle = LinearDiscriminantAnalysis(solver="lsqr").fit(along, labels)
    probe = MassMeanProbe().fit(rows, labels)
    assert np.allclose(probe.decision_function(rows), oracle.decision_function(along))


@pytest.mark.parametrize("n", [24, 300], ids=["fewer rows than dimensions", "more rows"])
def test_whitened_mass_mean_is_discriminant_analysis_with_ledoit_wolf_shrinkage(n):
    labels = np.arange(n) % 3 == 0
    rows = noise(n, d=40)
    scaler = StandardScaler().fit(rows)
    z = scaler.transform(rows)
    centred = np.where(labels[:, None], z - z[labels].mean(0), z - z[~labels].mean(0))
    shrinkage = ledoit_wolf_shrinkage(centred, assume_centered=True)
    # Shrunk class covariances, weighted by class size, add up to the shrunk pooled covariance.
    oracle = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(z, labels)
    probe = WhitenedMassMeanProbe().fit(rows, labels)
    assert np.allclose(probe.coef_ * scaler.scale_, oracle.coef_)
    assert np.allclose(probe.decision_function(rows), oracle.decision_function(z))


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_direction_is_found(kind):
    rows, labels = planted(2000, d=20, size=2.0)
    coef = make_probes(kind, penalty=0.1)[kind].fit(rows, labels).coef_[0]
    assert coef[0] / np.linalg.norm(coef) > 0.97


@pytest.mark.parametrize("kind", KINDS)
def test_features_without_any_variation_give_a_probe_that_knows_the_prior_only(kind):
    probe = make_probes(kind, penalty=1.0)[kind].fit(np.ones((10, 4)), [0, 0, 0, 0, 0, 0, 1, 1, 1, 1])
    assert np.allclose(probe.coef_, 0)
    assert np.allclose(probe.predict_proba(np.ones((1, 4)))[0], [0.6, 0.4], atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_classes_that_do_not_vary_at_all_are_told_apart_with_finite_numbers(kind):
    probe = make_probes(kind, penalty=1.0)[kind].fit(
        np.array([[0.0, 1], [0, 1], [2, 1], [2, 1]]), [0, 0, 1, 1]
    )
    assert probe.predict([[0.0, 1], [2, 1]]).tolist() == [0, 1]
    assert np.isfinite(probe.coef_).all()


# -- scores --------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(8, 60), st.booleans())
def test_auc_is_the_folds_own_auc_weighted_by_their_pairs(seed, n, ties):
    random = np.random.default_rng(seed)
    scores = random.normal(size=n).round(0 if ties else 8)
    positive, fold = np.arange(n) % 2 == 0, random.integers(0, 2, n)
    positive, fold = np.r_[positive, True, False, True, False], np.r_[fold, 0, 0, 1, 1]
    scores = np.r_[scores, 0.0, 0.0, 0.5, -0.5]
    aucs, pairs = [], []
    for index in (0, 1):
        here = fold == index
        aucs.append(roc_auc_score(positive[here], scores[here]))
        pairs.append((positive & here).sum() * (~positive & here).sum())
    assert np.isclose(measure.auc(scores, positive, fold), np.average(aucs, weights=pairs))


def test_weights_count_rows_as_often_as_if_they_were_repeated():
    random = np.random.default_rng(0)
    scores, positive = random.normal(size=20).round(1), np.arange(20) % 2 == 0
    fold, counts = np.arange(20) // 4 % 2, random.integers(0, 4, 20)
    repeated = np.repeat(np.arange(20), counts)
    won, total = measure.pairs_won(scores, positive, fold, counts[None].astype(float))
    expected = measure.auc(scores[repeated], positive[repeated], fold[repeated])
    assert np.isclose(won.sum() / total.sum(), expected)


def test_accuracy_and_log_loss_are_those_of_scikit_learn():
    scores, positive = np.random.default_rng(0).normal(size=50), np.arange(50) % 3 == 0
    assert np.isclose(measure.accuracy(scores, positive), accuracy_score(positive, scores > 0))
    assert np.isclose(measure.log_loss(scores, positive), log_loss(positive, 1 / (1 + np.exp(-scores))))
    assert np.isfinite(measure.log_loss(np.array([-1e9, 1e9]), np.array([True, False])))


def test_the_interval_covers_the_true_auc_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    truth, covered = 0.7602, 0  # P(a + 1 > b) for unit Gaussians
    for seed in range(60):
        positive = np.arange(120) % 2 == 0
        scores = random.normal(size=120) + positive
        bootstrap = measure.Bootstrap(None, 120, n=200, seed=seed)
        low, high = bootstrap.auc_interval(scores, positive, np.zeros(120, dtype=np.int64))
        covered += low <= truth <= high
    assert 50 <= covered <= 60


def test_the_interval_over_groups_is_wider_where_the_rows_of_a_group_repeat_each_other():
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 10)
    positive = groups % 2 == 0
    scores = np.repeat(random.normal(size=40), 10) + 0.5 * positive
    fold = np.zeros(400, dtype=np.int64)

    def width(of):
        low, high = measure.Bootstrap(of, 400, n=500, seed=0).auc_interval(scores, positive, fold)
        return high - low

    assert width(groups) > 2 * width(None)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(2, 5), st.booleans())
def test_no_group_is_in_two_folds_and_every_fold_has_its_share_of_positives(seed, n_folds, pure):
    random = np.random.default_rng(seed)
    groups = random.permutation(np.repeat(np.arange(30), 4))
    positive = groups % 2 == 0 if pure else random.permutation(np.arange(120) % 2 == 0)
    fold = measure.assign_folds(positive, groups, n=n_folds, seed=seed)
    assert set(fold) == set(range(n_folds))
    for group in range(30):
        assert len(set(fold[groups == group])) == 1
    for index in range(n_folds):
        assert 0.2 < positive[fold == index].mean() < 0.8


@pytest.mark.parametrize("pure", [True, False], ids=["groups of one label", "mixed groups"])
def test_permuted_labels_keep_every_folds_share_and_whole_groups_where_they_have_one_label(pure):
    groups = np.repeat(np.arange(20), 3)
    positive = groups % 2 == 0 if pure else np.arange(60) % 2 == 0
    fold = measure.assign_folds(positive, groups, n=4, seed=0)
    permuted, level = measure.permute_labels(positive, fold, groups, n=50, seed=0)
    assert level == ("groups" if pure else "rows within groups")
    for labels in permuted:
        assert [labels[fold == f].sum() for f in range(4)] == [positive[fold == f].sum() for f in range(4)]
        assert not pure or all(len(set(labels[groups == g])) == 1 for g in range(20))
        assert pure or all(labels[groups == g].sum() == positive[groups == g].sum() for g in range(20))
    assert 0.3 < (permuted == positive).mean() < 0.7


def test_nested_auc_does_not_let_a_fold_choose_the_cell_it_is_scored_on():
    positive, fold = np.tile([True, False], 4), np.repeat([0, 1], 4)
    right, wrong = np.tile([1.0, -1.0], 4), np.tile([-1.0, 1.0], 4)
    good_on_0, good_on_1 = np.where(fold == 0, right, wrong), np.where(fold == 1, right, wrong)
    assert measure.nested_auc([good_on_0, good_on_1], positive, fold) == 0.0
    assert measure.nested_auc([right, good_on_0], positive, fold) == 1.0


# -- sweep ---------------------------------------------------------------------------------------------


def test_scores_are_out_of_fold_with_scaling_from_the_training_rows_alone():
    rows, labels = planted(60, d=30, size=1.0)
    rows[7] *= 1000  # scaling with this row, where it is held out, would change every score
    fold = measure.assign_folds(labels == 1, None, n=5, seed=0)
    expected = np.zeros(60)
    for index in range(5):
        model = standardised_logistic().fit(rows[fold != index], labels[fold != index])
        expected[fold == index] = model.decision_function(rows[fold == index])
    acts = activations({POST.format(0): rows})
    sweep = probes.sweep(acts, labels, kinds="logistic", controls=False, penalty=1.0, tolerance=1e-7)
    data = sweep.data.isel(layer=0, probe=0)
    p = 1 / (1 + np.exp(-expected.clip(-500, 500)))
    folds = range(5)
    pairs = [labels[fold == f].sum() * (1 - labels[fold == f]).sum() for f in folds]
    aucs = [roc_auc_score(labels[fold == f], expected[fold == f]) for f in folds]
    assert np.isclose(float(data["auc"]), np.average(aucs, weights=pairs), atol=1e-6)
    assert np.isclose(float(data["log_loss"]), log_loss(labels, p), rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_pure_noise_gives_one_half_and_so_does_its_control(kind):
    acts = activations({POST.format(i): noise(300, seed=i) for i in range(4)})
    sweep = probes.sweep(acts, np.random.default_rng(9).permutation(np.arange(300) % 2), kinds=kind)
    auc, low, high = (sweep.data[v].values for v in ("auc", "auc_low", "auc_high"))
    assert ((low < 0.5) & (high > 0.5)).sum() >= 3
    assert np.abs(auc - 0.5).max() < 0.12
    assert np.abs(sweep.data["control_auc"].values - 0.5).max() < 0.07
    assert np.abs(sweep.data["selectivity"].values).max() < 0.12


@pytest.mark.parametrize("kind", KINDS)
def test_noise_in_many_dimensions_and_few_rows_is_not_below_one_half_on_average(kind):
    aucs = []
    for seed in range(12):
        acts = activations({POST.format(0): noise(40, d=200, seed=seed)})
        sweep = probes.sweep(acts, np.arange(40) % 2, kinds=kind, controls=False, n_bootstrap=1, seed=seed)
        aucs.append(float(sweep.data["auc"].item()))
    assert abs(np.mean(aucs) - 0.5) < 3 * np.std(aucs) / np.sqrt(12)


def test_the_layer_with_the_signal_is_best_and_its_direction_is_the_planted_one():
    rows, labels = planted(400, size=2.0)
    acts = activations(
        {POST.format(0): noise(400), POST.format(1): 3 * rows, POST.format(2): noise(400, seed=1)}
    )
    sweep = probes.sweep(acts, np.array(["false", "true"])[labels], kinds=["logistic", "mass_mean"])
    best = sweep.summary["best"]
    assert best["layer"] == 1
    assert abs(best["nested_auc"] - 0.921) < 0.04  # Φ(2 / √2)
    assert abs(best["auc"] - 0.921) < 0.04 and best["auc_low"] < 0.921 < best["auc_high"]
    assert best["control_best_auc"] < 0.65 and best["selectivity"] > 0.25
    for kind in ("logistic", "mass_mean"):
        direction = sweep.direction(layer=1, kind=kind)
        assert direction.vector[0] > 0.95
        assert (direction.site, direction.source) == (POST.format(1), f"probe:{kind}")
        assert direction.model_fingerprint == "f"
        unit = direction.vector.double().numpy()
        assert np.isclose(direction.scale, acts.values[POST.format(1)].double().numpy().dot(unit).std())
    assert sweep.direction().site == POST.format(1)


def test_the_weight_is_that_of_a_fit_to_all_rows_in_units_of_the_activations():
    rows, labels = planted(80, d=30)
    rows = rows * np.geomspace(0.1, 10, 30) + 2
    acts = activations({POST.format(5): rows})
    sweep = probes.sweep(acts, labels, kinds="logistic", controls=False, penalty=1.0, tolerance=1e-7)
    data = sweep.data.sel(layer=5, probe="logistic")
    oracle = standardised_logistic().fit(acts.values[POST.format(5)].double().numpy(), labels)
    ours = rows @ data["weight"].values + float(data["bias"])
    assert np.allclose(ours, oracle.decision_function(rows), atol=2e-2)


def test_groups_that_leak_make_a_difference_when_they_are_given():
    """Each group has its own mark in the activations and one label: without groups the mark gives it away."""
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 6)
    rows = random.normal(size=(30, 60))[groups] + 0.1 * random.normal(size=(180, 60))
    labels = random.permutation(np.arange(30) % 2)[groups]
    acts = activations({POST.format(0): rows})

    def run(given):
        return probes.sweep(acts, labels, groups=given, kinds="logistic", n_bootstrap=50)

    leaking, honest = run(None), run([f"g{g}" for g in groups])
    assert float(leaking.data["auc"].item()) > 0.95
    assert abs(float(honest.data["auc"].item()) - 0.5) < 0.25
    assert honest.data.attrs["grouped"] and "over groups" in honest.data.attrs["control"]
    assert not leaking.data.attrs["grouped"] and "over rows" in leaking.data.attrs["control"]


def test_each_position_is_its_own_cell_with_labels_per_prompt():
    random = np.random.default_rng(0)
    labels = np.arange(80) % 2
    rows = random.normal(size=(80, 3, WIDTH))
    rows[:, 1, 0] += 6 * (labels - 0.5)  # the signal is at the second position alone
    acts = activations({POST.format(i): rows.reshape(240, -1) for i in range(2)}, positions=3)
    sweep = probes.sweep(acts, labels, kinds="mass_mean", controls=False)
    assert sweep.data["auc"].dims == ("layer", "position", "probe")
    assert sweep.data["position"].values.tolist() == [3, 4, 5]
    assert sweep.data.attrs["n"] == 80 and sweep.summary["best"]["position"] == 4
    auc = sweep.data["auc"].isel(layer=0, probe=0).values
    assert auc[1] > 0.99 and max(auc[0], auc[2]) < 0.75
    assert sweep.direction(layer=1, position=4).vector[0] > 0.9
    with pytest.raises(DataError, match=r"no position None.*It has 3, 4, 5"):
        sweep.direction(layer=1)


def test_labels_per_row_keep_the_rows_of_a_prompt_together():
    acts = activations({POST.format(0): noise(120)}, positions=3)
    sweep = probes.sweep(acts, np.arange(120) % 2 == 0, kinds="mass_mean", controls=False, n_bootstrap=5)
    assert sweep.data["auc"].dims == ("layer", "probe")
    assert (sweep.data.attrs["n"], sweep.data.attrs["n_groups"]) == (120, 40)


def test_sites_that_are_not_one_per_block_are_named_instead_of_numbered():
    acts = activations({POST.format(0): noise(20), "blocks.0.hook_mlp_out": noise(20)})
    sweep = probes.sweep(acts, np.arange(20) % 2, kinds="mass_mean", controls=False, n_bootstrap=5)
    assert sweep.data["auc"].dims == ("site", "probe")
    assert sweep.direction(site="blocks.0.hook_mlp_out").site == "blocks.0.hook_mlp_out"
    with pytest.raises(DataError, match="no layer 0"):
        sweep.direction(layer=0)


def test_heads_are_flattened_to_one_vector():
    acts = activations({"blocks.0.attn.hook_z": noise(40).reshape(40, 3, 4)})
    sweep = probes.sweep(acts, np.arange(40) % 2, kinds="mass_mean", n_bootstrap=5)
    assert sweep.data.sizes["d_model"] == 12


def test_a_site_that_is_constant_but_for_rounding_scores_one_half_and_is_named():
    rows = np.ones((40, WIDTH)) * 100 + 1e-5 * noise(40)
    rows[::2] += 2e-5
    acts = activations({POST.format(0): rows, POST.format(1): noise(40)})
    sweep = probes.sweep(acts, np.arange(40) % 2, n_bootstrap=5)
    assert sweep.data["auc"].sel(layer=0).values.tolist() == [0.5, 0.5]
    assert sweep.data.attrs["constant_sites"] == [POST.format(0)]
    with pytest.raises(DataError, match=r"Nothing varies.*blocks.0"):
        sweep.direction(layer=0)


@pytest.mark.parametrize(
    ("labels", "positive", "expected"),
    [
        ([True, False], None, "True"),
        ([0, 1], None, "1"),
        (["positive", "negative"], None, "positive"),
        (["true", "false"], "false", "false"),
        ([1, 0], 0, "0"),
    ],
)
def test_the_positive_class_is_the_last_or_the_one_asked_for(labels, positive, expected):
    acts = activations({POST.format(0): noise(20)})
    sweep = probes.sweep(acts, labels * 10, positive=positive, kinds="mass_mean", n_bootstrap=5)
    assert sweep.data.attrs["positive"] == expected


def test_turning_the_positive_class_round_turns_the_direction_round():
    rows, labels = planted(60)
    acts = activations({POST.format(0): rows})
    one, other = (probes.sweep(acts, labels, positive=p, controls=False).direction(layer=0) for p in (1, 0))
    assert one.cosine(other) < -0.999


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others():
    rows, labels = planted(60, size=0.5)
    acts = activations({POST.format(0): rows})
    a, b, c = (probes.sweep(acts, torch.tensor(labels), seed=s, n_bootstrap=20).data for s in (3, 3, 4))
    assert a.identical(b)
    assert not a["auc"].identical(c["auc"])


def test_saved_and_loaded_it_is_the_same_and_still_gives_directions(tmp_path):
    rows, labels = planted(40)
    acts = activations({POST.format(i): rows for i in (3, 4)})
    sweep = probes.sweep(acts, labels, n_bootstrap=20)
    sweep.save(tmp_path / "sweep.zarr")
    assert Result.load(tmp_path / "sweep.zarr").data.identical(sweep.data)
    back = probes.ProbeSweep.load(tmp_path / "sweep.zarr")
    assert isinstance(back, probes.ProbeSweep) and back.summary == sweep.summary
    assert torch.equal(back.direction(layer=4).vector, sweep.direction(layer=4).vector)
    with pytest.raises(RunError):
        probes.ProbeSweep.load(tmp_path / "nothing.zarr")
    with pytest.raises(DataError, match="'lens' is no probe sweep"):
        probes.ProbeSweep.of(Result("lens", sweep.data, sweep.provenance))


def test_progress_is_one_item_per_site_and_kind_and_a_cancel_stops_it():
    acts = activations({POST.format(i): noise(20) for i in range(3)})
    seen: list[object] = []

    class Count(Silent):
        def stage(self, name, total):
            seen.append((name, total))

        def advance(self, n=1):
            seen.append(n)
            if sum(s for s in seen if isinstance(s, int)) == 4:
                raise Cancelled

    with pytest.raises(Cancelled):
        probes.sweep(acts, np.arange(20) % 2, n_bootstrap=5, progress=Count())
    assert seen[0] == ("probe", 6)


# -- bad input -----------------------------------------------------------------------------------------

LABELS = np.arange(20) % 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": np.ones(20)}, r"Two classes expected, found 1 in 20 labels: 1\.0"),
        (
            {"labels": np.arange(20) % 3},
            r"Two classes expected by kind 'mass_mean', found 3.*0, 1, 2.*'logistic'",
        ),
        ({"labels": LABELS[:19]}, "19 labels for 20 prompts"),
        ({"labels": [None, *LABELS[1:]]}, "1 of 20 labels are None or NaN, the first at 0"),
        ({"labels": [[0], [1]] * 10}, "flat list"),
        ({"positive": "true"}, r"positive class 'true' is not among the labels, which are 0, 1"),
        (
            {"labels": np.arange(20) < 3},
            r"positive \(True\) class has 3 rows, fewer than the 5 folds: use at most 3 folds, or",
        ),
        ({"groups": np.arange(20) % 3}, "class has 3 groups, fewer than the 5 folds"),
        ({"groups": ["a"] * 7}, "7 groups for 20 labels"),
        (
            {"kinds": "logistics"},
            r"'logistics'; the kinds are logistic, ridge, mass_mean.*Did you mean 'logistic'",
        ),
        ({"kinds": []}, "No kind of probe"),
        ({"folds": 1}, "at least 2 folds, not 1"),
        ({"penalty": 0.0}, "penalty is a number above 0"),
        ({"n_control": 0}, "n_control must be at least 1"),
    ],
)
def test_bad_input_is_one_clear_error(arguments, message):
    acts = activations({POST.format(0): noise(20)})
    with pytest.raises(DataError, match=message):
        probes.sweep(acts, **({"labels": LABELS} | arguments))


def test_nan_rows_are_counted_and_located():
    rows = noise(20)
    rows[[4, 9], 0] = np.nan
    with pytest.raises(DataError, match=r"2 of 20 rows at 'blocks.0.hook_resid_post' hold NaN.*row 4"):
        probes.sweep(activations({POST.format(0): rows}), LABELS)


def test_sites_of_different_widths_or_unknown_sites_are_refused():
    acts = activations({POST.format(0): noise(20), "blocks.0.mlp.hook_post": noise(20, d=30)})
    with pytest.raises(DataError, match="one width"):
        probes.sweep(acts, LABELS)
    assert probes.sweep(acts, LABELS, sites="blocks.0.mlp.*", n_bootstrap=5).data.sizes["d_model"] == 30
    with pytest.raises(SiteError, match="Did you mean"):
        probes.sweep(acts, LABELS, sites="blocks.0.hook_resid_pos")


def test_uneven_positions_ask_for_labels_per_row():
    acts = activations({POST.format(0): noise(20)})
    uneven = Activations(**{**vars(acts), "prompt": np.r_[0, np.arange(19)], "n_prompts": 19})
    with pytest.raises(DataError, match="between 1 and 2 positions"):
        probes.sweep(uneven, np.arange(19) % 2)


# -- spec and models -----------------------------------------------------------------------------------


def test_the_kinds_a_spec_takes_are_those_there_are():
    from typing import get_args

    from probes.columns import FURTHER, make_columns
    from probes.spec import Kind

    assert set(get_args(Kind)) == {*KINDS, "ridge", *FURTHER}
    assert list(make_columns(get_args(Kind), [1.0])) == list(get_args(Kind))


def test_a_spec_leaves_other_labels_out_says_so_and_runs_on_a_model(tmp_path):
    lines = ["text,label,group"]
    words = ["Mary", "John", "Anna", "Tom", "Paris", "Rome"]
    lines += [
        f"the {w} is {('red', 'blue')[i % 2]},{('true', 'false')[i % 2]},{w}" for w in words for i in (0, 1)
    ]
    lines += ["Mary was green,neither,Mary"]
    (tmp_path / "colours.csv").write_text("\n".join(lines))
    model = LanguageModel(tiny.hf_model("llama"), tiny.tokenizer(), name="tiny-llama")
    spec = probes.ProbeSpec(dataset=str(tmp_path / "colours.csv"), folds=3, n_bootstrap=20, position=-1)
    result = spec.run(model, Silent())
    assert result.data.attrs["n"] == 12 and result.data.attrs["prompts"].startswith("12 of 13 in colours.csv")
    assert result.data["layer"].values.tolist() == [0, 1, 2]
    assert result.data["auc"].sel(probe="logistic").values.min() > 0.9  # the colour is the last token
    assert result.provenance.settings["dataset"]["name"] == "colours.csv"
    probes.ProbeSweep.of(result).direction(layer=2).fits(model)
    result.save(tmp_path / "r.zarr")


def test_a_spec_on_prompts_without_labels_says_what_it_needs(tmp_path):
    (tmp_path / "t.txt").write_text("one\ntwo\n")
    with pytest.raises(DataError, match="holds texts: a probe needs statements"):
        probes.ProbeSpec(dataset=str(tmp_path / "t.txt")).run(None, Silent())  # type: ignore[arg-type]


@pytest.mark.real_model
def test_truth_of_capital_statements_is_readable_in_smollm2_and_shuffled_labels_are_not():
    model = wb.load_model("smollm2-135m")
    spec = probes.ProbeSpec(dataset="capitals", filter={"negated": False}, limit=300, kinds=["mass_mean"])
    result = spec.run(model, Silent())
    best = result.summary["best"]
    assert best["layer"] >= 10
    assert best["auc_low"] > 0.55 and best["nested_auc"] > 0.6
    assert best["auc"] > max(best["control_auc_high"], best["control_best_auc"]) + 0.05
    assert abs(best["control_auc"] - 0.5) < 0.1
    assert result.data["auc"].sel(layer=slice(0, 8)).max() < 0.65  # the city's name alone tells nothing
