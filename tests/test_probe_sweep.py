"""Sweeps of several labels and classes, penalties, estimators, stores and numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, log_loss, r2_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from test_probes import POST, activations, noise, planted

import probes
import workbench as wb
from probes.columns import LogisticColumns, RidgeColumns, Train, make_columns
from probes.estimators import MassMeanProbe, WhitenedMassMeanProbe
from probes.folds import shared_folds
from probes.regress import regress
from workbench.errors import DataError

N = 240


def several() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Rows with two planted labels and one that is noise."""
    random = np.random.default_rng(5)
    rows = noise(N)
    one, other, nothing = (random.permutation(np.arange(N) % 2) for _ in range(3))
    rows[:, 2] += rows[:, 2].std() * 2 * one
    rows[:, 5] += rows[:, 5].std() * 1 * other
    return rows, {"one": one, "other": other, "nothing": nothing}


def test_several_labels_share_a_sweep_and_each_is_what_it_is_alone():
    rows, labels = several()
    acts = activations({POST.format(0): rows, POST.format(1): noise(N, seed=3)})
    sweep = probes.sweep(
        acts, labels, kinds=["logistic", "ridge", "mass_mean", "mass_mean_whitened"], n_bootstrap=50
    )
    assert sweep.data["auc"].dims == ("layer", "label", "probe")
    auc = sweep.data["auc"].isel(layer=0).sel(probe=["logistic", "ridge", "mass_mean_whitened"])
    assert (auc.sel(label="one") > 0.85).all() and (auc.sel(label="other") > 0.65).all()
    assert (np.abs(auc.sel(label="nothing") - 0.5) < 0.12).all()
    assert sweep.summary["best"]["label"] == "one" and sweep.summary["best_by_label"]["other"]["layer"] == 0
    fold = shared_folds(list(labels.values()), None, n=5, seed=0, names=[["a", "b"]] * 3)
    data = probes.sweep(
        acts, labels, kinds="logistic", penalty=0.1, controls=False, keep_scores=True, tolerance=1e-7
    ).data.isel(layer=0, probe=0)
    assert np.array_equal(data["fold"].values, fold)
    for name, y in labels.items():
        for f in range(5):
            model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-9, max_iter=5000))
            expected = model.fit(rows[fold != f], y[fold != f]).decision_function(rows[fold == f])
            assert np.allclose(data["scores"].sel(label=name).values[fold == f], expected, atol=2e-3)
    direction = sweep.direction(layer=0, label="one", kind="mass_mean")
    assert int(direction.vector.abs().argmax()) == 2 or direction.vector[2] > 0.5
    with pytest.raises(DataError, match="no label None"):
        sweep.direction(layer=0)


def test_the_penalty_of_a_fold_is_chosen_without_it():
    rows, labels = several()
    acts = activations({POST.format(0): rows})
    path = [1e-4, 1e-2, 1.0]
    every = [
        probes.sweep(
            acts,
            labels["other"],
            kinds="logistic",
            penalty=c,
            controls=False,
            keep_scores=True,
            tolerance=1e-7,
        )
        for c in path
    ]
    scores = np.stack([s.data["scores"].values[0, 0] for s in every])
    fold, y = every[0].data["fold"].values, labels["other"]
    loss = np.logaddexp(0, np.where(y == 1, -scores, scores))
    expected = np.zeros(N)
    for f in range(5):
        best = int(loss[:, fold != f].sum(1).argmin())
        expected[fold == f] = scores[best, fold == f]
    found = probes.sweep(
        acts,
        labels["other"],
        kinds="logistic",
        penalty=path,
        controls=False,
        keep_scores=True,
        tolerance=1e-7,
    )
    assert np.allclose(found.data["scores"].values[0, 0], expected, atol=1e-2)
    assert float(found.data["penalty"].item()) == path[int(loss.sum(1).argmin())]
    curve = found.data["log_loss_by_penalty"].values[0, 0]
    assert np.allclose(curve, loss.mean(1), atol=1e-3)
    assert found.data["auc_by_penalty"].sizes["penalty_C"] == 3


@pytest.mark.parametrize("n", [200, 30], ids=["more rows", "fewer rows than dimensions"])
@pytest.mark.parametrize(
    ("kind", "estimator"), [("mass_mean", MassMeanProbe()), ("mass_mean_whitened", WhitenedMassMeanProbe())]
)
def test_columns_are_the_estimators_column_by_column(n, kind, estimator):
    x = noise(n, d=40 if n < 100 else 20)
    random = np.random.default_rng(2)
    code = np.stack([random.permutation(np.arange(n) % 3 == 0) for _ in range(3)]).astype(np.int64)
    other = noise(11, d=x.shape[1], seed=4)
    columns = make_columns(kind, [1.0])[kind]
    fitted = columns.fit(Train(torch.from_numpy(x)), torch.from_numpy(code), 2)
    for t in range(3):
        expected = estimator.fit(x, code[t])
        assert np.allclose(
            fitted.scores(torch.from_numpy(other))[0, t, :, 0].numpy(), expected.decision_function(other)
        )
        weights = fitted.weights(0, t, 0)
        assert weights is not None and np.allclose(weights.coef, expected.coef_[0])
        assert weights.intercept == pytest.approx(expected.intercept_[0])


def test_ridge_columns_point_where_ridge_regression_points():
    rows, labels = planted(150, d=10, size=1.5)
    fitted = RidgeColumns((0.01,)).fit(Train(torch.from_numpy(rows)), torch.from_numpy(labels)[None], 2)
    scaler = StandardScaler().fit(rows)
    oracle = Ridge(alpha=100).fit(scaler.transform(rows), labels * 2 - 1).coef_ / scaler.scale_
    weights = fitted.weights(0, 0, 0)
    assert weights is not None
    assert weights.coef @ oracle / np.linalg.norm(weights.coef) / np.linalg.norm(oracle) == pytest.approx(1)
    assert (
        log_loss(labels, 1 / (1 + np.exp(-fitted.scores(torch.from_numpy(rows))[0, 0, :, 0].numpy()))) < 0.6
    )


def test_more_than_two_classes():
    random = np.random.default_rng(0)
    y = random.permutation(np.arange(240) % 3)
    rows = noise(240)
    rows[:, :3] += 4 * rows[:, :3].std(0) * np.eye(3)[y]
    acts = activations({POST.format(0): rows, POST.format(1): noise(240, seed=1)})
    names = np.array(["ant", "bee", "cat"])[y]
    sweep = probes.sweep(
        acts, names, kinds="logistic", penalty=0.1, keep_scores=True, n_bootstrap=100, tolerance=1e-7
    )
    data = sweep.data.isel(probe=0)
    assert data["weight"].dims == ("layer", "class", "d_model") and data["class"].values.tolist() == [
        "ant",
        "bee",
        "cat",
    ]
    fold = data["fold"].values
    expected = np.zeros((240, 3))
    for f in range(5):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-9, max_iter=5000))
        expected[fold == f] = model.fit(rows[fold != f], y[fold != f]).predict_proba(rows[fold == f])
    at = data.isel(layer=0)
    assert np.allclose(at["accuracy"], accuracy_score(y, expected.argmax(1)), atol=0.01)
    assert np.allclose(at["log_loss"], log_loss(y, expected), atol=1e-3)
    pairs = [roc_auc_score(y[fold == f] == c, expected[fold == f, c]) for c in range(3) for f in range(5)]
    assert float(at["auc"]) == pytest.approx(np.mean(pairs), abs=2e-3)
    assert 0.4 < float(data.isel(layer=1)["auc"]) < 0.6 and abs(float(at["control_auc"]) - 0.5) < 0.08
    assert int(sweep.direction(layer=0, cls="bee").vector.abs().argmax()) in (0, 1, 2)
    assert abs(sweep.summary["majority_accuracy"] - 1 / 3) < 1e-9


def test_estimators_of_ones_own_are_swept_too():
    rows, labels = several()
    acts = activations({POST.format(0): rows})
    own = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-9))
    kinds = {"own": own, "logistic": None, "lda": None, "mlp": None}
    sweep = probes.sweep(
        acts, labels["one"], kinds=kinds, penalty=0.1, n_bootstrap=20, n_control=1, tolerance=1e-7
    )
    data = sweep.data.isel(layer=0)
    assert np.allclose(data["auc"].sel(probe="own"), data["auc"].sel(probe="logistic"), atol=1e-3)
    assert float(data["auc"].sel(probe="mlp")) > 0.75
    assert np.isnan(data["weight"].sel(probe="mlp")).all()
    with pytest.raises(DataError, match="'mlp' is not linear"):
        sweep.direction(layer=0, kind="mlp")


def test_converged_says_whether_the_gradient_is_within_the_tolerance():
    rows, labels = several()
    columns = LogisticColumns((1.0,), tolerance=1e-6)
    out, fitted = columns.cross(
        torch.from_numpy(rows), torch.from_numpy(labels["one"])[None], 2, torch.arange(N) % 5, lambda: None
    )
    assert (
        out.shape == (1, 1, N, 1)
        and bool(fitted.converged.all())
        and float(fitted.gradient_norm.max()) <= 1e-6
    )


# -- stores and streams --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    import tiny

    model = tiny.language_model("llama") if hasattr(tiny, "language_model") else None
    model = model or wb.load_model((tiny.hf_model("llama"), tiny.tokenizer()))
    random = np.random.default_rng(0)
    ids = [random.integers(5, 60, size=6).tolist() for _ in range(150)]
    folder = tmp_path_factory.mktemp("stores") / "acts"
    sites = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    return wb.collect_to(folder, model, ids, sites), wb.collect(model, ids, sites, positions="all"), ids


def test_a_store_is_swept_like_activations_in_memory(store):
    stored, acts, ids = store
    labels = [row[2] > 30 for row in ids]
    one = probes.sweep(stored, labels, n_bootstrap=20, n_control=2)
    other = probes.sweep(acts, labels, n_bootstrap=20, n_control=2)
    assert one.data["auc"].dims == ("layer", "position", "probe")
    assert np.allclose(one.data["auc"], other.data["auc"], atol=1e-6)
    assert one.provenance.model["fingerprint"] == other.provenance.model["fingerprint"]
    with pytest.raises(DataError, match="in memory"):
        probes.sweep(acts, "truth")


def test_a_site_too_large_for_memory_is_streamed_to_the_same_probes(store, monkeypatch):
    stored, _, ids = store
    from probes import stream

    monkeypatch.setattr(stream, "CHUNK_BYTES", 8 * 64 * 17)
    labels = np.repeat([row[2] > 30 for row in ids], 6)
    asked = {
        "kinds": ["ridge", "mass_mean"],
        "n_bootstrap": 50,
        "n_control": 2,
        "keep_scores": True,
        "penalty": 0.01,
    }
    whole, pieces = (probes.sweep(stored, labels, memory=m, **asked).data for m in (8e9, 10_000))
    assert pieces.attrs["streamed_sites"] == list(stored.sites) and whole.attrs["streamed_sites"] == []
    assert np.allclose(pieces["auc"], whole["auc"], atol=1e-4)  # equal rows tie, or not, by rounding
    mean = {"probe": "mass_mean"}
    assert np.allclose(pieces["scores"].sel(mean), whole["scores"].sel(mean), atol=1e-6)
    assert np.allclose(pieces["weight"].sel(mean), whole["weight"].sel(mean), atol=1e-5)
    assert np.allclose(pieces["scale"], whole["scale"], rtol=1e-5)
    a, b = (d["weight"].sel(probe="ridge").values for d in (pieces, whole))
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    assert np.allclose(cosine, 1, atol=1e-6)
    assert np.allclose(pieces["log_loss"], whole["log_loss"], atol=0.06)
    with pytest.raises(DataError, match="'logistic' needs its rows at once: use kinds"):
        probes.sweep(stored, labels, memory=10_000)


# -- numbers -------------------------------------------------------------------------------------------


def test_regression_is_cross_validated_ridge_with_a_control():
    rows = noise(200)
    random = np.random.default_rng(0)
    z = (rows - rows.mean(0)) / rows.std(0)
    y = z[:, 3] * 2 + random.normal(size=200)
    acts = activations({POST.format(0): rows, POST.format(1): noise(200, seed=1)})
    found = regress(acts, {"y": y, "nothing": random.normal(size=200)}, penalties=[5.0], n_bootstrap=200)
    assert found.data["r2"].dims == ("layer", "target")
    at = found.data.sel(target="y", layer=0)
    fold = np.zeros(200)
    from sklearn.model_selection import KFold

    predicted, mean = np.zeros(200), np.zeros(200)
    for train, test in KFold(5, shuffle=True, random_state=0).split(rows):
        scaler = StandardScaler().fit(rows[train])
        model = Ridge(alpha=5.0).fit(scaler.transform(rows[train]), y[train])
        predicted[test], mean[test] = model.predict(scaler.transform(rows[test])), y[train].mean()
    assert float(at["r2"]) == pytest.approx(
        1 - ((y - predicted) ** 2).sum() / ((y - mean) ** 2).sum(), abs=1e-8
    )
    assert float(at["r2"]) > 0.7 > 0.1 > float(found.data["r2"].sel(target="y", layer=1))
    assert float(at["r2_low"]) < r2_score(y, predicted) < float(at["r2_high"])
    assert float(at["control_r2_high"]) < 0.1 and float(found.data["r2"].sel(target="nothing").max()) < 0.1
    assert found.summary["best"]["y"]["layer"] == 0 and fold.shape == (200,)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ({"y": ["a"] * 20}, "'y' is no list of numbers"),
        ({"y": [1.0] * 20}, "is 1 in every row"),
        ({"y": [float("nan"), *range(19)]}, "1 of 20 values .* NaN"),
        ({"y": list(range(7))}, "7 labels for 20 prompts"),
    ],
)
def test_bad_targets_are_one_clear_error(targets, message):
    with pytest.raises(DataError, match=message):
        regress(activations({POST.format(0): noise(20)}), targets)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": {"a": [0, 1] * 10, "b": [0] * 20}}, "found 1 in 20 labels of 'b'"),
        ({"labels": {"a": [0, 1] * 10, "b": [0, 1, 2, 3] * 5}}, "'b' has 4 classes"),
        ({"labels": {"a": [0, 1] * 10, "b": [0, 1]}}, "same rows, but there are: a 20, b 2"),
        ({"labels": {}}, "No labels"),
        ({"labels": list(np.arange(400) / 7)}, "probes.regress"),
        ({"labels": [0, 1] * 10, "penalty": [1.0, -1.0]}, "number above 0"),
        ({"labels": [0, 1, 2, 0] * 5, "kinds": "ridge"}, "Two classes expected by kind 'ridge'"),
    ],
)
def test_bad_label_sets_are_one_clear_error(arguments, message):
    n = 400 if len(arguments["labels"]) == 400 else 20
    with pytest.raises(DataError, match=message):
        probes.sweep(activations({POST.format(0): noise(n)}), **arguments)
