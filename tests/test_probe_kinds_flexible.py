"""MLP and sparse probes: what a linear probe misses, which features were planted, and the comparison with dense."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from probes.estimators import LogisticProbe
from probes.kinds import InputError, MlpProbe, SparseProbe, sparse_beside_dense
from probes.kinds import mlp as mlp_module
from workbench.errors import DataError
from workbench.results import Result


def xor(n: int, d: int = 10, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows labelled by whether their first two components have the same sign."""
    rows = np.random.default_rng(seed).normal(size=(n, d)) * np.geomspace(0.1, 10, d) + 2
    return rows, ((rows[:, 0] > 2) == (rows[:, 1] > 2)).astype(int)


# -- MLP -----------------------------------------------------------------------------------------------


def test_exclusive_or_is_learnt_where_a_linear_probe_is_at_chance():
    (rows, label), (test, answers) = xor(800), xor(400, seed=1)
    linear = LogisticProbe().fit(rows, label).score(test, answers)
    probe = MlpProbe(width=32).fit(rows, label)
    assert abs(linear - 0.5) < 0.08
    assert probe.score(test, answers) > 0.9
    assert probe.n_held_out_ == 160 and probe.best_epoch_ <= probe.n_iter_ <= 200


def test_more_classes_than_two_are_learnt_and_probabilities_add_up():
    random = np.random.default_rng(0)
    label = np.arange(300) % 3
    rows = random.normal(size=(300, 5)) + 3 * random.normal(size=(3, 5))[label]
    names = np.array(["a", "b", "c"])[label]
    probe = MlpProbe(width=16, max_epochs=60).fit(rows, names)
    assert probe.score(rows, names) > 0.95 and probe.decision_function(rows).shape == (300, 3)
    assert np.allclose(probe.predict_proba(rows).sum(1), 1)
    assert probe.state_["out.weight"].shape == (3, 16)


def test_the_forward_pass_is_that_of_torchs_own_layers():
    rows, label = xor(60)
    probe = MlpProbe(width=8, max_epochs=5).fit(rows, label)
    hidden, out = torch.nn.Linear(10, 8).double(), torch.nn.Linear(8, 2).double()
    for layer, name in ((hidden, "hidden"), (out, "out")):
        layer.load_state_dict({k: probe.state_[f"{name}.{k}"] for k in ("weight", "bias")})
    z = torch.tensor(StandardScaler().fit_transform(rows))
    with torch.no_grad():
        scores = out(torch.relu(hidden(z))).numpy()
    assert np.allclose(probe.decision_function(rows), scores[:, 1] - scores[:, 0])


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    rows, label = xor(80)
    a, b, c = (MlpProbe(width=4, max_epochs=3, random_state=s).fit(rows, label) for s in (1, 1, 2))
    assert all(torch.equal(a.state_[k], b.state_[k]) for k in a.state_)
    assert not torch.equal(a.state_["hidden.weight"], c.state_["hidden.weight"])


def test_early_stopping_keeps_the_best_epoch_and_groups_stay_on_one_side(monkeypatch):
    rows, _ = xor(200)
    noise = np.random.default_rng(5).permutation(np.arange(200) % 2)
    groups = np.repeat(np.arange(40), 5)
    seen = {}
    split = mlp_module._held_out

    def record(label, codes, share, seed):
        seen["held"], seen["codes"] = split(label, codes, share, seed), codes
        return seen["held"]

    monkeypatch.setattr(mlp_module, "_held_out", record)
    probe = MlpProbe(width=64, patience=5, max_epochs=100).fit(rows, noise, groups=groups)
    held = seen["held"]
    assert not set(seen["codes"][held]) & set(seen["codes"][~held]) and held.sum() == probe.n_held_out_ > 0
    assert probe.n_iter_ == probe.best_epoch_ + 5 < 100  # noise: the held-out loss soon rises
    p = probe.predict_proba(rows[held])[np.arange(held.sum()), noise[held]]
    assert np.isclose(-np.log(p).mean(), probe.loss_)  # the weights kept are those of that epoch


def test_a_class_with_one_row_leaves_none_to_hold_out_and_says_so():
    rows, _ = xor(10)
    probe = MlpProbe(width=4, max_epochs=7).fit(rows, np.arange(10) == 3)
    assert probe.n_held_out_ == 0 and probe.n_iter_ == probe.best_epoch_ == 7


@pytest.mark.parametrize("setting", [{"width": 0}, {"patience": 0}, {"held_out": 0.7}, {"learning_rate": 0}])
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(InputError, match=next(iter(setting))):
        MlpProbe(**setting).fit(*xor(20))


def test_groups_that_do_not_match_the_rows_are_refused():
    rows, label = xor(20)
    with pytest.raises(InputError, match="7 groups for 20 rows"):
        MlpProbe().fit(rows, label, groups=np.arange(7))


# -- sparse --------------------------------------------------------------------------------------------


def latents(n: int, n_features: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Mostly zero features; 7 fires on positive rows, 21 on negative ones, 33 weakly; 50 is large but tells nothing."""
    random = np.random.default_rng(seed)
    label = random.permutation(np.arange(n) % 2)
    rows = random.exponential(size=(n, n_features)) * (random.random((n, n_features)) < 0.1)
    rows[:, 7] += 3 * label * (random.random(n) < 0.9)
    rows[:, 21] += 2 * (1 - label) * (random.random(n) < 0.8)
    rows[:, 33] += 0.7 * label * (random.random(n) < 0.6)
    rows[:, 50] += 5 + 0.1 * random.normal(size=n)
    rows[:, 3] = 0.0
    return rows, label


@pytest.mark.parametrize("selection", ["mean_difference", "l1"])
def test_the_planted_features_are_chosen_best_first_and_the_rest_have_no_weight(selection):
    rows, label = latents(400)
    probe = SparseProbe(k=3, selection=selection).fit(rows, label)
    assert probe.support_.tolist() == [7, 21, 33]
    assert set(np.flatnonzero(probe.coef_[0])) == {7, 21, 33}
    assert (np.sign(probe.coef_[0, [7, 21, 33]]) == [1, -1, 1]).all()
    scaler = StandardScaler().fit(rows[:, [7, 21, 33]])
    oracle = LogisticRegression(tol=1e-8).fit(scaler.transform(rows[:, [7, 21, 33]]), label)
    assert np.allclose(probe.coef_[0, [7, 21, 33]] * scaler.scale_, oracle.coef_[0], rtol=1e-2)
    held_out, answers = latents(400, seed=1)
    assert probe.score(held_out, answers) > 0.9


def test_mean_differences_rank_as_their_definition_says_and_never_more_than_there_are():
    rows, label = latents(100)
    gap = np.abs(rows[label == 1].mean(0) - rows[label == 0].mean(0))
    probe = SparseProbe(k=1000).fit(rows, label)
    assert probe.support_.tolist() == [i for i in np.argsort(-gap, kind="stable") if gap[i] > 0]
    assert 3 not in probe.support_
    single = SparseProbe(k=5).fit(torch.tensor(rows, dtype=torch.float32), label)  # float32 is kept as it is
    assert single.support_.tolist() == probe.support_[:5].tolist()


def test_features_that_cannot_be_chosen_are_refused():
    rows, label = latents(40)
    for setting, message in [
        ({"k": 0}, "at least 1"),
        ({"selection": "l2"}, "no selection 'l2'"),
        ({"C": 0}, "C must"),
    ]:
        with pytest.raises(InputError, match=message):
            SparseProbe(**setting).fit(rows, label)
    with pytest.raises(InputError, match="None of 60 features differs"):
        SparseProbe().fit(np.ones((40, 60)), label)


# -- sparse beside dense -------------------------------------------------------------------------------


def test_sparse_and_dense_are_scored_on_the_same_folds_with_their_controls(tmp_path):
    rows, label = latents(200)
    mixing = np.random.default_rng(1).normal(size=(60, 40)) / 8
    dense = torch.tensor(rows @ mixing, dtype=torch.bfloat16)
    seen = []

    def encode(given: torch.Tensor) -> torch.Tensor:
        seen.append((given.dtype, tuple(given.shape)))
        return torch.tensor(rows, dtype=torch.float32)

    result = sparse_beside_dense(encode, dense, label, ks=(1, 2, 8), n_control=3, n_bootstrap=100)
    assert seen == [(torch.float32, (200, 40))]
    assert result.kind == "probe_sparse" and result.data.sizes == {"k": 3, "rank": 8}
    data = result.data
    assert data["feature"].values[:2].tolist() == [7, 21]
    assert data["auc"].values[2] > data["auc"].values[0] > 0.85
    assert (data["auc_low"] <= data["auc"]).all() and (data["auc"] <= data["auc_high"]).all()
    assert (
        abs(float(data["control_auc"].mean()) - 0.5) < 0.1
        and abs(float(data["dense_control_auc"]) - 0.5) < 0.1
    )
    assert np.allclose(data["auc_gap"], float(data["dense_auc"]) - data["auc"])
    assert (data["auc_gap_low"] <= data["auc_gap"]).all() and (data["auc_gap"] <= data["auc_gap_high"]).all()
    assert data["overlap"].values[0] == 1.0 and data["n_features"].values.tolist() == [1, 2, 8]
    assert result.summary["n"] == 200 and set(result.summary["sparse"]) == {"1", "2", "8"}
    assert result.summary["enough"] in (1, 2, 8, None)
    result.save(tmp_path / "r.zarr")
    assert Result.load(tmp_path / "r.zarr").data.identical(data)


def test_its_scores_are_those_of_a_plain_loop_over_the_folds():
    from probes.folds import assign_folds

    rows, label = latents(120)
    dense = rows @ np.random.default_rng(1).normal(size=(60, 20))
    rows, dense, label = (part[np.argsort(label, kind="stable")] for part in (rows, dense, label))
    groups = np.repeat(np.arange(40), 3) + 100  # three rows of one label each
    result = sparse_beside_dense(
        rows, dense, label, groups=groups, ks=[2], n_control=1, n_bootstrap=10, seed=4
    )
    fold = assign_folds(label == 1, groups - 100, n=5, seed=4)
    won, pairs, right = np.zeros(2), 0, 0
    for index in range(5):
        train, test = fold != index, fold == index
        assert not set(groups[train]) & set(groups[test])
        probe = SparseProbe(k=2).fit(rows[train], label[train])
        other = LogisticProbe().fit(dense[train], label[train])
        here = label[test].sum() * (1 - label[test]).sum()
        scores = [probe.decision_function(rows[test]), other.decision_function(dense[test])]
        won += here * np.array([roc_auc_score(label[test], s) for s in scores])
        pairs += here
        right += (probe.predict(rows[test]) == label[test]).sum()
    expected = won / pairs
    assert np.isclose(result.data["auc"].item(), expected[0]) and np.isclose(
        result.data["dense_auc"], expected[1]
    )
    assert np.isclose(result.data["accuracy"].item(), right / 120)
    assert result.data.attrs["grouped"] and "over groups" in result.data.attrs["control"]


def test_choosing_features_on_noise_gains_nothing_out_of_fold():
    """The best of 2,000 noise features looks good on the rows it was chosen on; held out it is at chance."""
    random = np.random.default_rng(0)
    rows, label = random.normal(size=(100, 2000)), np.arange(100) % 2
    assert SparseProbe(k=8).fit(rows, label).score(rows, label) > 0.75
    result = sparse_beside_dense(rows, rows[:, :30], label, ks=[8], n_control=2, n_bootstrap=50)
    assert 0.25 < result.data["auc"].item() < 0.7 and result.data["overlap"].item() < 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ks": (2, 1)}, "rising numbers of latents from 1 to 60"),
        ({"ks": (1, 61)}, "from 1 to 60"),
        ({"labels": np.arange(40) % 3}, "found 3 in 40 labels"),
        ({"labels": np.zeros(40)}, "found 1 in 40 labels"),
        ({"labels": np.arange(39) % 2}, "39 labels for 40 rows"),
        ({"groups": np.arange(5)}, "5 groups for 40 rows"),
        ({"dense": np.ones((39, 3))}, "39 rows of dense activations for 40 rows"),
        (
            {"dense": np.where(np.arange(120).reshape(40, 3) < 6, np.nan, 1.0)},
            "2 of 40 rows of the dense activations",
        ),
        ({"dense": np.ones(40)}, r"table \[row, feature\], not of shape \[40\]"),
        (
            {"labels": np.arange(40) < 3},
            r"positive class has 3 rows, fewer than the 5 folds: use at most 3 folds, or",
        ),
        ({"positive": "yes"}, "positive class 'yes' is not among"),
        ({"C": -1.0}, "C must be above 0"),
    ],
)
def test_bad_input_is_one_clear_error(change, message):
    rows, label = latents(40)
    arguments = {"latents": rows, "dense": rows[:, :5], "labels": label, "n_bootstrap": 5} | change
    with pytest.raises(DataError, match=message):
        sparse_beside_dense(**arguments)
