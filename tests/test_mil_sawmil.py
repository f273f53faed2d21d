"""The sparse multiple-instance probe on planted bags: one token of a positive bag carries the label."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from probes.folds import assign_folds
from probes.mil import Bags, SawmilProbe
from probes.mil.labels import group_codes
from probes.mil.sawmil import label_instances, two_stages
from workbench.errors import DataError


def planted(n=300, d=20, size=4.0, seed=0, tail=2, scale=None):
    """Bags of 4 to 10 Gaussian instances; in positive ones one of the last `tail` is moved along a direction."""
    rng = np.random.default_rng(seed)
    direction = np.random.default_rng(99).normal(size=d)
    direction /= np.linalg.norm(direction)
    labels = rng.permutation(np.arange(n) % 2)
    arrays, known, which = [], [], np.zeros(n, dtype=int)
    for i in range(n):
        k = int(rng.integers(4, 11))
        rows = rng.normal(size=(k, d))
        which[i] = k - 1 - rng.integers(tail)
        rows[which[i]] += labels[i] * size * direction
        arrays.append(rows if scale is None else rows * scale + 3)
        known.append(np.arange(k) >= k - 2)
    return Bags.of(arrays, known), labels, direction, which


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_the_planted_direction_and_the_token_that_carries_it_are_recovered():
    bags, labels, direction, _ = planted()
    test, truth, _, which = planted(seed=1)
    probe = SawmilProbe().fit(bags, labels)
    scores = probe.decision_function(test)
    assert cosine(probe.coef_[0], direction) > 0.95
    assert roc_auc_score(truth, scores) > 0.95 and probe.score(test, truth) > 0.8
    carrier = probe.carrier(test) - test.offsets[:-1]
    assert np.mean(carrier[truth == 1] == which[truth == 1]) > 0.95
    assert np.mean(carrier[truth == 0] == which[truth == 0]) < 0.3
    assert (
        probe.converged_ and probe.mask_used_ and abs(probe.auc_.max() - roc_auc_score(truth, scores)) < 0.05
    )
    assert set(probe.predict(test)) == {0, 1} and np.allclose(
        scores, [probe.instances(test.select([i])).max() for i in range(300)]
    )


def test_a_probe_of_bag_means_does_worse_where_one_token_carries_the_label():
    bags, labels, _, _ = planted()
    test, truth, _, _ = planted(seed=1)
    ours = roc_auc_score(truth, SawmilProbe().fit(bags, labels).decision_function(test))
    means = max(
        roc_auc_score(
            truth, LogisticRegression(C=c).fit(bags.means(), labels).decision_function(test.means())
        )
        for c in (0.01, 0.1, 1, 10)
    )
    assert means < 0.88 and ours > means + 0.08


def test_shuffled_labels_are_at_chance():
    """Against the shuffled labels of other bags. (Against the *true* ones it is not: see the next test.)"""
    aucs, inner = [], []
    for seed in range(8):
        bags, labels, _, _ = planted(160, seed=seed)
        shuffled = np.random.default_rng(seed).permutation(labels)
        probe = SawmilProbe(penalties=(0.1, 1.0)).fit(bags.select(np.arange(80)), shuffled[:80])
        aucs.append(roc_auc_score(shuffled[80:], probe.decision_function(bags.select(np.arange(80, 160)))))
        inner.append(probe.auc_.mean())
    assert abs(np.mean(aucs) - 0.5) < 0.08 and abs(np.mean(inner) - 0.5) < 0.08


def test_fitted_to_shuffled_labels_it_still_finds_what_sets_the_assumed_tokens_apart():
    """Why a control must be scored against its own labels: the mask alone tells a probe where to look."""
    aucs = []
    for seed in range(6):
        bags, labels, _, _ = planted(120, seed=seed)
        test, truth, _, _ = planted(200, seed=seed + 50)
        shuffled = np.random.default_rng(seed).permutation(labels)
        probe = SawmilProbe(penalties=0.1).fit(bags, shuffled)
        aucs.append(roc_auc_score(truth, probe.decision_function(test)))
    assert np.mean(aucs) > 0.6


def test_the_mask_keeps_a_louder_token_elsewhere_from_being_learnt():
    """All positive bags also have a far stronger mark on their first token; only the last two may carry the label."""
    bags, labels, direction, _ = planted(200)
    loud = np.eye(20)[3]
    values = bags.values.copy()
    values[bags.offsets[:-1][labels == 1]] += 8 * loud
    marked = Bags(values, bags.sizes, bags.known, bags.prompt, bags.position)
    unmasked = Bags(values, bags.sizes, np.ones(len(values), dtype=bool), bags.prompt, bags.position)
    masked = SawmilProbe(penalties=0.1, eta=0.3).fit(marked, labels)
    free = SawmilProbe(penalties=0.1, eta=0.3).fit(unmasked, labels)
    assert masked.mask_used_ and not masked.positive_instances_[~marked.known].any()
    assert cosine(masked.coef_[0], direction) > 0.95 and abs(cosine(masked.coef_[0], loud)) < 0.1
    assert cosine(free.coef_[0], loud) > 0.3
    carriers = [p.carrier(marked)[labels == 1] - marked.offsets[:-1][labels == 1] for p in (masked, free)]
    assert np.mean(carriers[0] == 0) < 0.1 and np.mean(carriers[1] == 0) > 0.3


def test_instances_are_labelled_by_rank_and_mask_and_the_mask_goes_where_it_leaves_too_few():
    arrays = [np.zeros((10, 1)) for _ in range(4)]
    known = [np.arange(10) >= 8] * 4
    bags, positive = Bags.of(arrays, known), np.array([True, True, False, False])
    scores = np.tile(np.arange(10.0), 4) + np.repeat([0, 0.5, 100, 100], 10)  # negative bags score far higher
    chosen, used = label_instances(scores, bags, positive)  # a fifth is assumed positive: the 4 best of 20
    assert used and np.flatnonzero(chosen).tolist() == [8, 9, 18, 19]
    chosen, used = label_instances(scores, bags, positive, eta=0.3)  # the 6 best, of which 4 are in the mask
    assert used and np.flatnonzero(chosen).tolist() == [8, 9, 18, 19]
    chosen, used = label_instances(scores, bags, positive, eta=0.0)  # one a bag at least
    assert used and np.flatnonzero(chosen).tolist() == [9, 19]
    chosen, used = label_instances(-scores, bags, positive)  # the best are outside the mask: it is ignored
    assert not used and np.flatnonzero(chosen).tolist() == [0, 1, 10, 11]


def test_the_first_stage_is_smil_by_a_general_optimiser():
    bags, labels, _, _ = planted(30, d=3)
    x, up = bags.values, labels == 1
    rows = [(x[i], -1.0, 1.0, 0.7 / (~up[bags.bag]).sum()) for i in np.flatnonzero(~up[bags.bag])]
    for b in np.flatnonzero(up):
        mine = x[bags.offsets[b] : bags.offsets[b + 1]]
        rows.append((mine.mean(0), 1.0, (2 - len(mine)) / len(mine), 0.7 / up.sum()))

    def loss(theta):
        return 0.5 * theta[:3] @ theta[:3] + sum(
            c * max(0, m - y * (r @ theta[:3] + theta[3])) ** 2 for r, y, m, c in rows
        )

    oracle = scipy.optimize.minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-9})
    found = two_stages(x, bags, up, C=0.7).first
    assert np.allclose([*found.coef, found.intercept], oracle.x, atol=1e-5)


@pytest.mark.parametrize("n", [16, 120], ids=["fewer rows than dimensions", "more rows"])
def test_the_scale_of_features_does_not_matter_and_weights_are_over_raw_activations(n):
    scale = np.geomspace(0.01, 100, 200)
    bags, labels, _, _ = planted(n, d=200)
    other, _, _, _ = planted(n, d=200, scale=scale)
    one, two = (SawmilProbe(penalties=0.1).fit(b, labels) for b in (bags, other))
    assert np.allclose(one.decision_function(bags), two.decision_function(other), atol=1e-6)
    assert np.allclose(one.coef_[0], two.coef_[0] * scale, atol=1e-6)


def test_out_of_fold_scores_are_of_probes_that_did_not_see_the_bag():
    bags, labels, _, _ = planted(90)
    groups = np.arange(90) // 2
    fold = assign_folds(labels, group_codes(groups, 90), n=3, seed=0, names=["0", "1"])
    probe = SawmilProbe(penalties=(0.1, 1.0)).fit(bags, labels, groups=groups)
    for k in range(3):
        alone = SawmilProbe(penalties=probe.C_).fit(bags.select(fold != k), labels[fold != k])
        assert np.allclose(
            probe.out_of_fold_[fold == k], alone.decision_function(bags.select(fold == k)), atol=1e-5
        )
    assert SawmilProbe(penalties=0.1).fit(bags, labels).out_of_fold_ is None
    copied = clone(probe).set_params(seed=3)
    assert copied.get_params()["penalties"] == (0.1, 1.0) and not hasattr(copied, "coef_")


@pytest.mark.parametrize(
    ("settings", "labels", "message"),
    [
        ({}, np.arange(19) % 2, "19 labels for 20 bags"),
        ({}, np.ones(20), "all 20 labels are 1.0"),
        ({}, np.arange(20) % 3, "two classes apart, there are 3: see three_way"),
        ({"eta": 1.5}, np.arange(20) % 2, "eta is a share"),
        ({"penalties": (0.0, 1.0)}, np.arange(20) % 2, "above 0"),
        ({}, np.arange(20) < 2, "True class has 2 rows, fewer than the 3 folds"),
    ],
)
def test_bad_input_is_one_clear_error(settings, labels, message):
    bags = Bags.of([np.random.default_rng(i).normal(size=(3, 4)) for i in range(20)])
    with pytest.raises(DataError, match=message):
        SawmilProbe(**settings).fit(bags, labels)


def test_a_probe_of_another_width_is_refused():
    bags, labels, _, _ = planted(40)
    with pytest.raises(DataError, match="width 7 do not fit a probe of width 20"):
        SawmilProbe(penalties=1.0).fit(bags, labels).decision_function(Bags.of([np.ones((2, 7))]))
