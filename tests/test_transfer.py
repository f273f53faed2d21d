"""Transfer matrices: planted directions that agree, turn and oppose; nothing of a test group is ever trained on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from test_probes import POST, activations

import probes
from probes.estimators import MassMeanProbe
from probes.trust import by_layer, split_by, transfer_matrix, undefined_rows
from probes.trust.sets import join
from workbench.errors import DataError
from workbench.results import Result

WIDTH = 8
QUICK = {"kinds": "mass_mean", "n_bootstrap": 100, "n_control": 3}


def rows(direction, n=160, size=3.0, seed=0, per_group=2):
    """Unit Gaussian rows moved by ±size/2 along `direction` by label; groups of `per_group` rows."""
    random = np.random.default_rng(seed)
    y = np.arange(n) % 2
    x = random.normal(size=(n, WIDTH)) + size * (y - 0.5)[:, None] * np.asarray(direction)
    return x, y, [f"{seed}:{i // per_group}" for i in range(n)]


def axis(*at, signs=None):
    v = np.zeros(WIDTH)
    v[list(at)] = signs or [1] * len(at)
    return v / np.linalg.norm(v)


def planted():
    return {"a": rows(axis(0), seed=1), "same": rows(axis(0), seed=2), "other": rows(axis(1), seed=3),
            "opposite": rows(-axis(0), seed=4), "between": rows(axis(0, 1), seed=5)}  # fmt: skip


def test_planted_directions_transfer_as_their_angle_says():
    data = transfer_matrix(planted(), kinds=["mass_mean", "logistic"], n_bootstrap=100, n_control=40).data
    assert data["auc"].dims == ("train", "test", "probe")
    within, across = 0.983, 0.933  # Φ(3 / √2), and Φ(3 cos 45° / √2)
    for kind in ("mass_mean", "logistic"):
        at = data["auc"].sel(probe=kind)
        for name in planted():
            assert abs(float(at.sel(train=name, test=name)) - within) < 0.03
        assert abs(float(at.sel(train="a", test="same")) - within) < 0.03
        assert abs(float(at.sel(train="a", test="other")) - 0.5) < 0.13
        assert float(at.sel(train="a", test="opposite")) < 0.05
        assert across - 0.05 < float(at.sel(train="a", test="between")) < within
        cosine = data["cosine"].sel(probe=kind)
        assert cosine.sel(train="a", test="same") > 0.85 and cosine.sel(train="a", test="opposite") < -0.85
        assert abs(cosine.sel(train="a", test="other")) < 0.35
        assert np.allclose(np.diag(cosine), 1) and np.allclose(cosine, cosine.values.T)
    assert (data["auc_low"] <= data["auc"] + 1e-9).all() and (data["auc"] <= data["auc_high"] + 1e-9).all()
    assert abs(float(data["control_auc"].mean()) - 0.5) < 0.05
    assert (data["n"] == 160).all() and np.allclose(data["n_train"], 128, atol=3)
    drop = data.sel(train="a", test="other", probe="mass_mean")
    assert np.isclose(drop["drop"], within - 0.5, atol=0.15)
    assert drop["drop_low"] > 0.2 and float(data["drop"].sel(train="a", test="a", probe="mass_mean")) == 0


def test_each_cell_is_a_fit_to_the_other_folds_scored_on_one():
    """Brute force: the estimator itself, fold by fold."""
    sets = {"a": rows(axis(0), n=60, size=1, seed=1), "b": rows(axis(1), n=40, size=1, seed=2)}
    found = transfer_matrix(sets, folds=4, **QUICK).data.isel(probe=0)
    joined = join(sets)
    fold = joined.folds(4, seed=0)
    for i, train in enumerate("ab"):
        for j, test in enumerate("ab"):
            won, total = 0.0, 0
            for f in range(4):
                fit, here = (
                    joined.rows[i][fold[joined.rows[i]] != f],
                    joined.rows[j][fold[joined.rows[j]] == f],
                )
                probe = MassMeanProbe().fit(joined.x[fit], joined.positive[fit])
                y = joined.positive[here]
                pairs = int(y.sum() * (~y).sum())
                won += pairs * roc_auc_score(y, probe.decision_function(joined.x[here])) if pairs else 0
                total += pairs
            assert np.isclose(float(found["auc"].sel(train=train, test=test)), won / total)


def test_the_diagonal_is_held_out_and_never_the_training_score():
    random = np.random.default_rng(0)
    noise = {name: (random.normal(size=(60, 200)), np.arange(60) % 2) for name in ("a", "b")}
    data = transfer_matrix(noise, kinds=["mass_mean", "logistic"], n_bootstrap=20, n_control=2).data
    assert np.abs(np.diagonal(data["auc"].values[:, :, 0]) - 0.5).max() < 0.25
    assert np.abs(np.diagonal(data["auc"].values[:, :, 1]) - 0.5).max() < 0.25


def shared_marks():
    """Two sets about the same groups: the group's mark gives its label away, and nothing else does."""
    random = np.random.default_rng(0)
    marks, label = random.normal(size=(30, 60)), np.arange(30) % 2
    which = np.repeat(np.arange(30), 4)
    groups = [f"g{g}" for g in which]
    return {
        name: (marks[which] + 0.1 * random.normal(size=(120, 60)), label[which], groups)
        for name in ("a", "b")
    }


def test_groups_of_both_sets_are_held_out_of_both():
    sets = shared_marks()
    honest = transfer_matrix(sets, **QUICK).data
    assert honest["auc"].values.max() < 0.7
    assert (honest["shared_groups"] == 30).all() and honest.attrs["shared"].startswith("held out")
    leaking = transfer_matrix({name: (x, y) for name, (x, y, _) in sets.items()}, **QUICK).data
    assert leaking["auc"].values.min() > 0.8
    with pytest.raises(DataError, match=r"'a' and 'b' share 30 groups.*shared='held_out'"):
        transfer_matrix(sets, shared="refuse", **QUICK)


def test_layers_of_one_collection_are_known_to_be_the_same_prompts():
    random = np.random.default_rng(1)
    marks = random.normal(size=(80, 60))
    layers = {POST.format(i): marks + 0.05 * random.normal(size=(80, 60)) for i in range(2)}
    acts = activations(layers)
    y = random.permutation(np.arange(80) % 2)
    data = transfer_matrix(by_layer(acts, y), **QUICK).data
    assert data["train"].values.tolist() == ["0", "1"]
    assert np.abs(data["auc"].values - 0.5).max() < 0.25  # each row's mark is in both layers
    acts.provenance.inputs["sha256"] = "s"
    sets = dict.fromkeys(("x", "z"), (acts, y))
    assert np.abs(transfer_matrix(sets, site=POST.format(0), **QUICK).data["auc"].values - 0.5).max() < 0.25


def test_one_collection_is_cut_by_a_field_and_its_sweep_agrees_on_the_diagonal():
    x, y, groups = rows(axis(0), n=200, size=1.5, seed=7, per_group=1)
    flip = np.arange(200) // 2 % 2
    acts = activations({POST.format(4): np.where(flip[:, None], -x, x)})
    sets = split_by(acts, y, ["plain" if not f else "negated" for f in flip], groups)
    found = transfer_matrix(sets, **QUICK)
    assert list(sets) == ["plain", "negated"] and found.data["n"].values.min() == 100
    assert found.data["auc"].sel(train="plain", test="negated").item() < 0.3
    part = flip == 0
    sweep = probes.sweep(activations({POST.format(4): x[part]}), y[part], kinds="mass_mean", n_bootstrap=10)
    assert abs(sweep.data["auc"].item() - found.data["auc"].sel(train="plain", test="plain").item()) < 0.05
    said = found.summary["mass_mean"]
    assert (
        said["worst"]["auc"] == round(float(found.data["auc"].min()), 4)
        and said["across"] < 0.5 < said["within"]
    )


def test_a_seed_repeats_itself_and_the_result_survives_the_disk(tmp_path):
    sets = {"a": rows(axis(0), n=40, seed=1), "b": rows(axis(0), n=40, seed=2)}
    one, two, other = (transfer_matrix(sets, seed=s, **QUICK) for s in (1, 1, 2))
    assert one.data.identical(two.data) and not one.data["auc"].identical(other.data["auc"])
    one.save(tmp_path / "t.zarr")
    assert Result.load(tmp_path / "t.zarr").data.identical(one.data) and one.provenance.seed == 1


def test_rows_that_are_neither_fall_where_they_were_planted():
    random = np.random.default_rng(0)
    base = random.normal(size=(300, WIDTH))
    labels = np.repeat(["false", "true", "neither"], 100)
    groups = [f"g{i // 2}" for i in range(300)]
    for place, share, above, below in ((0.0, 0.5, 0.98, 0.98), (2.0, 0.97, 1.0, 0.5), (-2.0, 0.03, 0.5, 1.0)):
        x = base.copy()
        x[:, 0] += np.select([labels == "true", labels == "false"], [2, -2], place)
        acts = activations({POST.format(0): x, POST.format(1): base})
        data = undefined_rows(acts, labels, groups, n_bootstrap=50).data.isel(probe=0)
        at = data.sel(layer=0)
        assert abs(float(at["share_positive"]) - share) < 0.12
        assert abs(float(at["auc_above"]) - above) < 0.1 and abs(float(at["auc_below"]) - below) < 0.1
        assert at["share_positive_low"] <= at["share_positive"] <= at["share_positive_high"]
        assert float(at["auc"]) > 0.97 and abs(float(data["auc"].sel(layer=1)) - 0.5) < 0.15
    assert (data.attrs["n"], data.attrs["n_other"]) == (200, 100)


A = rows(axis(0), n=40, seed=1)


@pytest.mark.parametrize(
    ("sets", "more", "message"),
    [
        ({"a": A}, {}, "at least two sets"),
        ({"a": A, "b": A[0]}, {}, r"Set 'b': expected \(activations, labels\)"),
        ({"a": A, "b": (A[0], A[1][:-1])}, {}, "Set 'b': 39 labels for 40 rows"),
        ({"a": A, "b": (A[0], np.zeros(40))}, {}, "Set 'b': two classes expected, found 1"),
        ({"a": A, "b": (A[0], np.array(["x", "y"])[A[1]])}, {}, "Set 'b': its labels are 'x' and 'y'"),
        ({"a": A, "b": (A[0][:, :5], A[1])}, {}, "one width, but the sets have a 8, b 5"),
        ({"a": A, "b": (A[0], A[1], ["g"])}, {}, "Set 'b': 1 groups for 40 rows"),
        ({"a": A, "b": (np.where(A[0] > 2, np.nan, A[0]), A[1])}, {}, "Set 'b': .* of 40 rows hold NaN"),
        ({"a": A, "b": (A[0], A[1], np.arange(40) % 3)}, {}, "occurs in 3 groups, fewer than the 5 folds"),
        ({"a": A, "b": A}, {"kinds": "mass_men"}, "Did you mean 'mass_mean'"),
        ({"a": A, "b": A}, {"shared": "drop"}, "expected 'held_out' or 'refuse'"),
        ({"a": A, "b": A}, {"folds": 1}, "folds from 2"),
        ({"a": A, 1: A, "1": A}, {}, "differ as texts"),
        ({"a": A, "b": (torch.zeros(3), [0, 1, 0])}, {}, r"or a \[row, d\] array"),
    ],
)
def test_bad_input_is_one_clear_error(sets, more, message):
    with pytest.raises(DataError, match=message):
        transfer_matrix(sets, **{"kinds": "mass_mean", "n_bootstrap": 5, **more})


def test_collections_of_several_sites_and_missing_labels_are_refused():
    acts = activations({POST.format(i): A[0] for i in range(2)})
    with pytest.raises(DataError, match="holds 2 sites: say which one"):
        transfer_matrix({"a": (acts, A[1]), "b": (acts, A[1])})
    with pytest.raises(DataError, match="No row has the label 'neither'"):
        undefined_rows(acts, A[1].astype(str))
