"""Scores, kinds given as estimators, files: each test fails without one mend."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from test_probes import POST, activations

import probes
from probes import scores as measure
from probes.causal.direction import _weights
from probes.estimator_fits import log_odds
from probes.estimators import KINDS
from probes.kinds import LdaProbe, MlpProbe
from workbench.errors import DataError

SITE = POST.format(0)
FEW: Any = {"n_bootstrap": 10, "n_control": 1}


def three_classes(n: int = 90, d: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    y = random.integers(0, 3, n)
    x = random.normal(size=(n, d))
    x[np.arange(n), y] += 2
    return x, y


def two_classes(n: int = 80, d: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, d))
    return x, x[:, 0] + 0.3 * random.normal(size=n) > 0


def swept(x: np.ndarray, y: np.ndarray, kinds, **more):
    return probes.sweep(activations({SITE: x}), y.tolist(), kinds=kinds, **{**FEW, **more})


def test_the_calibration_error_does_not_depend_on_the_order_of_the_rows():
    random = np.random.default_rng(0)
    tied, half = np.zeros((100, 1)), np.repeat([1, 0], 50)
    assert measure.calibration_error(tied, half) == pytest.approx(0, abs=1e-12)
    scores = random.choice([-2.0, -0.5, 0.3, 1.0], size=(200, 1))
    code = random.integers(0, 2, 200)
    order = random.permutation(200)
    found = measure.calibration_error(scores, code), measure.calibration_error(scores[order], code[order])
    assert found[0] == pytest.approx(found[1], abs=1e-12)
    p = 1 / (1 + np.exp(-np.abs(scores[:, 0])))
    hit = (scores[:, 0] > 0) == (code == 1)
    each = [abs((p - hit)[p == value].sum()) for value in np.unique(p)]
    assert measure.calibration_error(scores, code, n_bins=200) == pytest.approx(sum(each) / 200)


def by_definition(scores: np.ndarray) -> np.ndarray:
    others: list[Any] = [logsumexp(np.delete(scores, c, 1), axis=1) for c in range(scores.shape[1])]
    return scores - np.stack(others, axis=1)


@pytest.mark.parametrize("size", [1, 30, 300, 3000])
def test_the_auc_of_several_classes_does_not_saturate(size):
    x, y = three_classes(300, 3)
    scores = x * size
    odds = by_definition(scores)
    assert np.allclose(measure.log_odds(scores), odds, rtol=1e-9, atol=1e-9)
    expected = np.mean([roc_auc_score(y == c, odds[:, c]) for c in range(3)])
    assert measure.class_auc(scores, y, np.zeros(300, dtype=int)) == pytest.approx(expected, abs=1e-12)


def test_log_odds_of_few_values_are_those_of_the_definition():
    for scores in (np.zeros((4, 3)), np.array([[0.0, 0, -1e4], [5, 5, 5], [-1e4, 3, 3]])):
        assert np.allclose(measure.log_odds(scores), by_definition(scores), rtol=1e-9, atol=1e-9)


def test_log_probabilities_are_not_clipped_where_the_estimator_has_them():
    x, y = three_classes(120, 3)
    x = np.repeat(x, 30, axis=1)  # features that agree: naive Bayes is far too sure
    fit = GaussianNB().fit(x, y)
    assert np.min(fit.predict_proba(x)) < 1e-12
    assert np.allclose(log_odds(fit, x, 3), fit.predict_log_proba(x))
    two = GaussianNB().fit(x, y == 0)
    log_p = np.asarray(two.predict_log_proba(x))
    assert np.allclose(log_odds(two, x, 2)[:, 0], log_p[:, 1] - log_p[:, 0])


def test_probabilities_of_zero_stay_below_all_others_and_finite():
    x, y = three_classes()
    fit = RandomForestClassifier(10, random_state=0).fit(x, y)
    p, found = np.asarray(fit.predict_proba(x)), log_odds(fit, x, 3)
    assert (p == 0).any() and np.isfinite(found).all()
    assert np.allclose(found[p > 0], np.log(p[p > 0])) and (found[p == 0] < found[p > 0].min()).all()


def test_weights_that_belong_to_pairs_of_classes_are_no_weights():
    x, y = three_classes()
    data = swept(x, y, {"pairs": SVC(kernel="linear"), "each": LinearSVC()}).data.isel(layer=0)
    assert (
        np.isnan(data["weight"].sel(probe="pairs")).all() and np.isnan(data["bias"].sel(probe="pairs")).all()
    )
    scores = x @ data["weight"].sel(probe="each").values.T + data["bias"].sel(probe="each").values
    assert (scores.argmax(1) == y).mean() > 0.8
    four = np.arange(90) % 4
    assert np.isnan(swept(x, four, {"s": SVC(kernel="linear")}).data["weight"]).all()
    assert np.isfinite(
        swept(*two_classes(), {"s": SVC(kernel="linear")}).data["weight"]
    ).all()  # two: one pair


def test_a_direction_of_pairs_of_classes_is_refused():
    x, y = three_classes()
    for shape in ("ovr", "ovo"):
        fit = SVC(kernel="linear", decision_function_shape=shape).fit(x, y)
        with pytest.raises(DataError, match="pairs of classes"):
            probes.FittedProbe.of(fit, site=SITE).direction(of=1)
        with pytest.raises(DataError, match="pairs of classes"):
            _weights(fit, (0, 1))
    assert _weights(LdaProbe().fit(x, y), (0, 1))[0].shape == (6,)


@pytest.mark.parametrize("wrap", [lambda e: e, lambda e: make_pipeline(StandardScaler(), e)])
@pytest.mark.parametrize("n_classes", [3, 4])
def test_scores_of_pairs_are_refused(wrap, n_classes):
    x, _ = three_classes(120)
    y = np.arange(120) % n_classes
    with pytest.raises(DataError, match="scores pairs of classes"):
        swept(x, y, {"s": wrap(SVC(kernel="linear", decision_function_shape="ovo"))})


def test_a_wrong_number_of_score_columns_is_refused():
    class Two(GaussianNB):
        def decision_function(self, rows):
            return self.predict_log_proba(rows)[:, :2]

    with pytest.raises(DataError, match=r"scores of shape \[\d+, 2\] .* of 3 classes: expected 3 a row"):
        swept(*three_classes(), {"two": Two()})


class Plain:
    """An estimator that gives classes and no scores."""

    def get_params(self, deep=True):
        return {}

    def fit(self, rows, labels):
        return self


@pytest.mark.parametrize(
    ("estimator", "said"),
    [
        (Ridge(), "Ridge predicts numbers"),
        (LogisticRegression, "LogisticRegression is a class"),
        (3, "3 has no fit"),
        (Plain(), "gives no scores of classes"),
        (LogisticRegression(class_weight={"true": 2.0, "false": 1.0}), "numbers 0 to 1, in the order"),
    ],
)
def test_an_estimator_that_is_no_kind_is_one_clear_error(estimator, said):
    x, y = two_classes()
    with pytest.raises(DataError, match=said):
        swept(x, np.where(y, "true", "false"), {"kind": estimator})


def test_groups_reach_a_fit_that_takes_them(monkeypatch):
    random, seen = np.random.default_rng(0), []
    groups = np.repeat(np.arange(24), 4)
    x, y = random.normal(size=(24, 5))[groups], (random.permutation(24) % 2)[groups]
    whole = MlpProbe.fit

    def spy(self, X, y, groups=None):
        seen.append((len(X), groups))
        return whole(self, X, y, groups)

    monkeypatch.setattr(MlpProbe, "fit", spy)
    kinds = {"mlp": MlpProbe(width=4, max_epochs=2), "lda": LdaProbe()}
    swept(x, y, kinds, groups=groups.tolist(), folds=4)
    assert len(seen) == 10 and all(given is not None and len(given) == n for n, given in seen)
    assert all((np.bincount(given)[np.unique(given)] == 4).all() for _, given in seen)
    seen.clear()
    swept(x, y, kinds, folds=4)
    assert all(given is None for _, given in seen)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_rows_and_rows_with_gradients_are_taken(kind):
    x, y = two_classes()
    half = torch.tensor(x).bfloat16()
    plain = KINDS[kind]().fit(half.double().numpy(), y)
    for rows in (half, half.float().requires_grad_()):
        probe = KINDS[kind]().fit(rows, torch.tensor(y))
        assert np.allclose(probe.decision_function(rows), plain.decision_function(half.double().numpy()))


def test_number_keys_are_saved_as_text(tmp_path):
    x, y = two_classes()

    def saved(**more):
        fitted = probes.FittedProbe.of(probes.LogisticProbe().fit(x, y), site=SITE, **more)
        return probes.load_probe(fitted.save(tmp_path / "probe.safetensors"))

    assert saved(training={"counts": {2: 40, 10: 50}}).training == {"counts": {"2": 40, "10": 50}}
    assert saved(scores={"by": {2: 0.5, "rest": (1, 2)}}).scores == {"by": {"2": 0.5, "rest": [1, 2]}}
    with pytest.raises(DataError, match="Two keys of one dict in this probe are '2'"):
        saved(training={"counts": {2: 1, "2": 3}})


def test_a_file_with_text_keys_is_as_it_was(tmp_path, monkeypatch):
    x, y = two_classes()
    fitted = probes.FittedProbe.of(
        probes.LogisticProbe().fit(x, y), site=SITE, training={"n": {"b": 2, "a": 0.1}}
    )
    from probes import saving

    new = fitted.save(tmp_path / "new.safetensors").read_bytes()
    monkeypatch.setattr(saving, "_as_json", lambda header: header)
    old = fitted.save(tmp_path / "old.safetensors")
    assert old.read_bytes() == new
    monkeypatch.undo()
    assert json.dumps(probes.load_probe(old).training) == json.dumps(fitted.training)
