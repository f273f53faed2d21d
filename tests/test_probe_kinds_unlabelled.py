"""Probes without labels: components, clusters and contrast pairs find what was planted, and say when they did not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError

from probes.kinds import CcsProbe, CrcProbe, InputError, KMeansProbe, PcaProbe
from probes.kinds.ccs import loss_terms


def axes(n: int = 200, d: int = 12, seed: int = 0) -> np.ndarray:
    """Rows whose dimensions have falling standard deviations, the first two by far the largest."""
    return np.random.default_rng(seed).normal(size=(n, d)) * np.r_[9, 5, np.ones(d - 2)] + 3


# -- components and clusters ---------------------------------------------------------------------------


@pytest.mark.parametrize("n", [8, 200], ids=["fewer rows than dimensions", "more rows"])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_direction_is_the_principal_component_of_scikit_learn(n, k):
    rows = axes(n)
    oracle = PCA(k).fit(rows)
    probe = PcaProbe(k=k).fit(rows)
    unit = probe.coef_[0] / np.linalg.norm(probe.coef_)
    assert np.isclose(abs(unit @ oracle.components_[-1]), 1)
    assert np.isclose(probe.explained_variance_ratio_, oracle.explained_variance_ratio_[-1])
    along = probe.decision_function(rows)
    assert np.isclose(along.mean(), 0, atol=1e-9) and np.isclose(along.std(), 1)
    standard = PcaProbe(k=k, standardise=True).fit(rows)
    oracle = PCA(k).fit((rows - rows.mean(0)) / rows.std(0))
    assert np.isclose(standard.explained_variance_ratio_, oracle.explained_variance_ratio_[-1])
    assert np.isclose(standard.decision_function(rows).std(), 1)


def test_without_labels_the_sign_is_undetermined_and_repeatable():
    rows = axes()
    probe = PcaProbe().fit(rows)
    assert not probe.sign_determined_ and probe.classes_.tolist() == [0, 1]
    assert probe.coef_[0, 0] > 0  # the largest component is positive
    assert np.allclose(PcaProbe().fit(rows[::-1]).coef_, probe.coef_)


@pytest.mark.parametrize("make", [PcaProbe, KMeansProbe])
def test_labels_decide_the_sign_and_nothing_else(make):
    rows = axes()
    up = np.where(rows[:, 0] > 3, "up", "down")
    right, wrong = make().fit(rows, up), make().fit(rows, np.where(up == "up", "down", "up"))
    assert right.sign_determined_ and right.score(rows, up) > 0.95
    assert np.allclose(right.coef_, -wrong.coef_) and np.allclose(right.intercept_, -wrong.intercept_)
    noise = np.random.default_rng(0).permutation(up)
    assert np.allclose(np.abs(make().fit(rows, noise).coef_), np.abs(right.coef_))
    assert np.allclose(np.abs(make().fit(rows).coef_), np.abs(right.coef_))


def test_k_means_predicts_the_nearer_centroid_and_its_direction_joins_them():
    random = np.random.default_rng(0)
    label = np.arange(300) % 3 == 0
    rows = random.normal(size=(300, 6)) + 4 * label[:, None] * np.array([1, -1, 0, 0, 0, 0])
    probe = KMeansProbe().fit(rows, label)
    oracle = KMeans(2, n_init=10, random_state=1).fit(rows)
    nearer = oracle.predict(rows) == oracle.predict([[4, -4, 0, 0, 0, 0]])[0]
    assert (probe.predict(rows) == nearer).all()
    difference = oracle.cluster_centers_[1] - oracle.cluster_centers_[0]
    cosine = probe.coef_[0] @ difference / np.linalg.norm(probe.coef_) / np.linalg.norm(difference)
    assert np.isclose(abs(cosine), 1) and probe.coef_[0, 0] > 0
    assert probe.cluster_sizes_.tolist() == [int((~nearer).sum()), int(nearer.sum())]


def test_components_that_do_not_exist_and_rows_that_do_not_vary_are_refused():
    rows = axes(5)
    for k in (0, 5):
        with pytest.raises(InputError, match=f"no principal component {k}: 5 rows in 12 dimensions.*1 to 4"):
            PcaProbe(k=k).fit(rows)
    with pytest.raises(InputError, match="Nothing varies along principal component 2"):
        PcaProbe(k=2).fit(np.outer(np.arange(9.0), np.ones(3)))
    for make in (PcaProbe, KMeansProbe):
        with pytest.raises(InputError, match="All 9 rows are the same"):
            make().fit(np.ones((9, 3)))


# -- contrast pairs ------------------------------------------------------------------------------------


def pairs(n: int, d: int = 10, seed: int = 0, size: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """[pair, 2, d]: the member that is true lies +size along axis 0, the other −size; which half is which, along 1."""
    random = np.random.default_rng(seed)
    truth = random.permutation(np.arange(n) % 2)
    made = 0.3 * random.normal(size=(n, 2, d)) + random.normal(size=(n, 1, d))  # the question, shared by both
    made[:, :, 0] = size * np.stack([2 * truth - 1, 1 - 2 * truth], 1) + 0.3 * random.normal(size=(n, 2))
    made[:, 0, 1] += 20
    return made, truth


@pytest.mark.parametrize("normalise", ["mean_std", "mean"])
@pytest.mark.parametrize("make", [CcsProbe, CrcProbe])
def test_truth_planted_in_pairs_is_found_without_labels(make, normalise):
    made, truth = pairs(150)
    test, answers = pairs(100, seed=1)
    settings = {"n_restarts": 4, "n_steps": 300} if make is CcsProbe else {}
    probe = make(normalise=normalise, **settings).fit(made)
    right = probe.score(test, answers)
    assert max(right, 1 - right) > 0.95 and not probe.sign_determined_
    signed = make(normalise=normalise, **settings).fit(
        (made[:, 0], made[:, 1]), truth
    )  # two halves instead of one array
    assert signed.sign_determined_ and signed.score((test[:, 0], test[:, 1]), answers) > 0.95
    unit = signed.coef_[0] / np.linalg.norm(signed.coef_)
    assert unit[0] > 0.9 and abs(unit[1]) < 0.2  # not the axis that says which half
    assert np.allclose(np.abs(signed.theta_), np.abs(probe.theta_))
    assert signed.predict_proba(test).shape == (100, 2)
    assert ((signed.predict_proba(test)[:, 1] > 0.5) == (signed.predict(test) == 1)).all()


def test_the_loss_is_the_papers_and_the_best_restart_is_kept():
    made, truth = pairs(60)
    probe = CcsProbe(n_restarts=4, n_steps=200).fit(made, truth)
    halves = (made - made.mean(0)) / made.std(0)
    p = 1 / (1 + np.exp(-(halves @ probe.theta_ + probe.bias_)))
    expected = ((p[:, 0] - (1 - p[:, 1])) ** 2 + np.minimum(p[:, 0], p[:, 1]) ** 2).mean()
    assert len(probe.losses_) == 4 and np.isclose(probe.loss_, probe.losses_.min())
    assert np.isclose(probe.consistency_ + probe.confidence_, probe.loss_)
    assert np.isclose(probe.consistency_, ((p[:, 0] + p[:, 1] - 1) ** 2).mean())
    turned = ((p[:, 0] + p[:, 1] - 1) ** 2 + np.minimum(1 - p[:, 0], 1 - p[:, 1]) ** 2).mean()
    assert min(abs(expected - probe.loss_), abs(turned - probe.loss_)) < 1e-12 and probe.degenerate_ == ""
    assert np.allclose(probe.predict_proba(made)[:, 1], (p[:, 0] + 1 - p[:, 1]) / 2)


def test_crc_is_the_first_component_of_the_normalised_differences():
    made, _ = pairs(60)
    halves = (made - made.mean(0)) / made.std(0)
    oracle = PCA(1).fit(halves[:, 0] - halves[:, 1])
    probe = CrcProbe().fit(made)
    assert np.isclose(abs(oracle.components_[0] @ probe.theta_), np.linalg.norm(probe.theta_))
    assert np.isclose(probe.explained_variance_ratio_, oracle.explained_variance_ratio_[0])


def test_only_finding_one_half_is_reported():
    random = np.random.default_rng(0)
    same = random.normal(size=(400, 1, 4)) + 1e-3 * random.normal(size=(400, 2, 4))
    probe = CcsProbe(n_restarts=3, n_steps=400).fit(same)
    assert probe.degenerate_ == "p = 1/2" and 0.19 < probe.loss_ < 0.25
    assert np.isclose(float(loss_terms(torch.zeros(5, 2, 1)).sum()), 0.25)


def test_the_half_a_row_is_in_is_normalised_away_where_it_is_linear_and_reported_where_it_is_not():
    """Pairs that always have the same answer under the probe: planted so that the halves differ in shape."""
    random = np.random.default_rng(0)
    made = 0.1 * random.normal(size=(300, 2, 3))
    made[:, 0, 0] += 50.0  # linear: gone after normalising
    assert CcsProbe(n_restarts=3, n_steps=300).fit(made).degenerate_ != "reads the half"
    rare = (np.arange(300) % 60 == 0) * 8.0  # five outliers: the other 295 pairs lie on one side of the mean
    made[:, 0, 0] = 1 - rare + 0.01 * random.normal(size=300)
    made[:, 1, 0] = rare - 1 + 0.01 * random.normal(size=300)
    assert CcsProbe(n_restarts=5, n_steps=600).fit(made).degenerate_ == "reads the half"


@pytest.mark.parametrize("make", [CcsProbe, CrcProbe])
def test_pair_probes_keep_the_conventions_that_apply_to_them(make):
    """scikit-learn's own checks give 2-D tables, which are no pairs."""
    made, truth = pairs(40)
    probe = make(n_restarts=2, n_steps=50) if make is CcsProbe else make()
    with pytest.raises(NotFittedError):
        probe.predict(made)
    before = probe.get_params()
    assert probe.fit(made, truth) is probe and probe.get_params() == before
    again = clone(probe).fit(torch.tensor(made), truth)
    assert (again.theta_ == probe.theta_).all() and again.bias_ == probe.bias_
    assert probe.set_params(normalise="mean").normalise == "mean"
    assert np.allclose(again.decision_function(made[:7]), again.decision_function(made)[:7])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x[:, :1], y), r"\[pair, 2, d\] or two arrays \[pair, d\], not \[40, 1, 10\]"),
        (lambda x, y: (x[:, 0], y), r"not \[40, 10\]"),
        (lambda x, y: ((x[:, 0], x[:9, 1]), y), r"shapes \[40, 10\] and \[9, 10\]"),
        (lambda x, y: ((x, x, x), y), "two arrays, not 3"),
        (lambda x, y: (x, y[:39]), "39 labels for 40 rows"),
        (lambda x, y: (x, np.zeros(40)), "of two classes, not 1"),
        (
            lambda x, y: (np.where(np.arange(40)[:, None, None] < 38, x, np.nan), y),
            "2 of 40 pairs.*first is pair 38",
        ),
        (lambda x, y: (x[:1], y[:1]), "at least 2, not 1"),
        (lambda x, y: (np.ones_like(x), y), "All 40 pairs are the same"),
    ],
)
@pytest.mark.parametrize("make", [CcsProbe, CrcProbe])
def test_what_is_no_set_of_pairs_is_refused(make, change, message):
    with pytest.raises(InputError, match=message):
        make().fit(*change(*pairs(40)))


def test_pair_probes_refuse_settings_and_widths_that_do_not_fit():
    made, truth = pairs(40)
    with pytest.raises(InputError, match="n_restarts, n_steps"):
        CcsProbe(n_restarts=0).fit(made)
    with pytest.raises(InputError, match="'mean_std' or 'mean', not 'std'"):
        CrcProbe(normalise="std").fit(made)
    with pytest.raises(InputError, match="do not contrast"):
        CrcProbe().fit(np.repeat(made[:, :1], 2, axis=1))
    with pytest.raises(InputError, match="X has 9 features, but CrcProbe is expecting 10"):
        CrcProbe().fit(made, truth).predict(made[..., :9])
