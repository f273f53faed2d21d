"""Conformal sets: their p-values by brute force, their coverage against its exact distribution."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax
from scipy.stats import binomtest, chi2, kstest

from probes.conformal import (
    ABSTAINED,
    ConformalSets,
    binary_nonconformity,
    coverage_law,
    margin_nonconformity,
    smallest_calibration,
)
from workbench.errors import DataError


def drawn(n, classes=2, seed=0, signal=1.5):
    """Scores without ties and labels that they say something about."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    if classes == 2:
        return signal * (2 * labels - 1) + rng.normal(size=n), labels
    return softmax(signal * np.eye(classes)[labels] + rng.normal(size=(n, classes)), axis=1), labels


# -- definitions -----------------------------------------------------------------------------------------


@given(st.floats(-50, 50), st.sampled_from([0, 1]))
def test_binary_nonconformity_is_low_where_the_sign_agrees(f, y):
    found = binary_nonconformity(np.array([f]))[0, y]
    agrees = (f > 0) == (y == 1)
    assert np.isclose(found, 1 / (1 + abs(f)) if agrees else 1 + abs(f))


@given(st.lists(st.integers(-200, 200), min_size=2, max_size=20, unique=True))
def test_binary_nonconformity_orders_rows_as_minus_the_margin_does(f):
    f = np.array(f) / 8
    assert np.array_equal(np.argsort(binary_nonconformity(f)[:, 1]), np.argsort(-f))


@given(st.integers(2, 6), st.integers(0, 999), st.booleans())
def test_margin_nonconformity_is_its_definition_also_where_classes_tie(classes, seed, ties):
    p = softmax(np.random.default_rng(seed).normal(size=(8, classes)).round(0 if ties else 6), axis=1)
    expected = [[(1 - (row[y] - max(np.delete(row, y)))) / 2 for y in range(classes)] for row in p]
    assert np.allclose(margin_nonconformity(p), expected)


@settings(max_examples=30, deadline=None)
@given(
    classes=st.sampled_from([2, 3, 5]),
    per_class=st.booleans(),
    seed=st.integers(0, 99),
    alpha=st.floats(0.1, 0.9),
)
def test_p_values_and_sets_are_those_of_counting(classes, per_class, seed, alpha):
    scores, labels = drawn(60 * classes, classes, seed)
    new = drawn(10, classes, seed + 1)[0]
    sets = ConformalSets(alpha, per_class=per_class).fit(scores, labels, classes=range(classes))
    nonconformity = binary_nonconformity if classes == 2 else margin_nonconformity
    known = nonconformity(scores)[np.arange(len(labels)), labels]
    for row, own in zip(sets.p_values(new), nonconformity(new), strict=True):
        for y in range(classes):
            among = known[labels == y] if per_class else known
            assert np.isclose(row[y], (sum(a >= own[y] for a in among) + 1) / (len(among) + 1))
    assert np.array_equal(sets.contains(new), sets.p_values(new) > alpha)


@pytest.mark.parametrize(("abstain", "silent"), [("not_one", (0, 2)), ("empty", (0,))])
def test_it_answers_or_abstains_by_the_rule_asked_for(abstain, silent):
    seen = set()
    for alpha, signal in ((0.05, 0.3), (0.6, 3.0)):
        scores, labels = drawn(200, signal=signal)
        sets = ConformalSets(alpha, abstain=abstain).fit(scores, np.array(["no", "yes"])[labels])
        size = sets.contains(scores).sum(1)
        for n, answer, p in zip(size, sets.predict(scores), sets.p_values(scores), strict=True):
            seen.add(int(n))
            assert (answer is None) == (n in silent)
            assert answer is None or p[("no", "yes").index(answer)] == p.max()
    assert seen == {0, 1, 2}


# -- coverage --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(("n", "alpha"), [(39, 0.1), (50, 0.2)])
def test_coverage_over_many_draws_is_beta_binomial(classes, n, alpha):
    """A new calibration set and new test rows each time: numbers covered against the exact distribution."""
    m, draws = 60, 600
    law = coverage_law(n, m, alpha)
    covered = np.empty(draws, dtype=int)
    for i in range(draws):
        scores, labels = drawn(n + m, classes, seed=1000 + i)
        sets = ConformalSets(alpha).fit(scores[:n], labels[:n], classes=range(classes))
        covered[i] = sets.contains(scores[n:])[np.arange(m), labels[n:]].sum()
    error = law.std() / np.sqrt(draws)
    assert law.mean() / m >= 1 - alpha - 1e-12
    assert abs(covered.mean() - law.mean()) < 4 * error
    assert abs(covered.std() / law.std() - 1) < 0.12  # a binomial would be narrower by more than that
    assert law.std() > 1.2 * np.sqrt(m * alpha * (1 - alpha))
    edges = law.ppf([0.2, 0.4, 0.6, 0.8])
    expected = np.diff([0, *law.cdf(edges), 1]) * draws
    counted = np.bincount(np.searchsorted(edges, covered, side="left"), minlength=5)
    assert chi2.sf(((counted - expected) ** 2 / expected).sum(), 4) > 1e-4


def test_p_values_of_right_classes_are_uniform_and_one_row_is_covered_exactly_as_often_as_stated():
    p, inside = [], 0
    for i in range(1500):
        scores, labels = drawn(20, seed=i)
        sets = ConformalSets(0.1).fit(scores[:19], labels[:19], classes=(0, 1))
        p.append(sets.p_values(scores[19:])[0, labels[19]])
        inside += int(sets.contains(scores[19:])[0, labels[19]])
    assert binomtest(inside, 1500, 0.9).pvalue > 1e-3  # alpha (n + 1) is whole: exactly 0.9
    jittered = np.array(p) - np.random.default_rng(0).random(1500) / 20
    assert kstest(jittered, "uniform").pvalue > 1e-3


def test_ties_only_make_sets_larger():
    covered = []
    for i in range(300):
        scores, labels = drawn(100, seed=i)
        sets = ConformalSets(0.2).fit(scores[:50].round(0), labels[:50], classes=(0, 1))
        covered.append(sets.contains(scores[50:].round(0))[np.arange(50), labels[50:]].mean())
    assert np.mean(covered) > 0.8


def test_coverage_breaks_where_rows_are_not_exchangeable():
    scores, labels = drawn(400)
    sets = ConformalSets(0.1).fit(scores, labels)
    other, truth = drawn(400, seed=1)
    good = sets.table(other, truth)
    low, high = good.attrs["coverage_expected"]
    assert low <= float(good["coverage"][0]) <= high
    for broken in (-other, other - 3, 0.2 * other):
        bad = sets.table(broken, truth)
        assert float(bad["coverage"][0]) < low - 0.02
    fitted_on = ConformalSets(0.1).fit(10 * scores, labels)
    assert float(fitted_on.table(other, truth)["coverage"][0]) < 0.9


def test_per_class_sets_cover_each_class_where_the_common_ones_do_not():
    """The rare class is much harder: common sets cover all rows, but not its rows."""
    rng = np.random.default_rng(0)
    labels = (rng.random(6000) < 0.15).astype(int)
    scores = np.where(labels == 1, rng.normal(-0.5, 1.0, 6000), rng.normal(-2, 1, 6000))
    tables = {}
    for per_class in (False, True):
        sets = ConformalSets(0.1, per_class=per_class).fit(scores[:3000], labels[:3000])
        tables[per_class] = sets.table(scores[3000:], labels[3000:])
    common, own = (tables[k]["coverage"].values for k in (False, True))
    assert abs(common[0] - 0.9) < 0.03 and common[2] < 0.5
    assert np.abs(own - 0.9).max() < 0.04


# -- tables ----------------------------------------------------------------------------------------------


def test_the_table_counts_what_it_says():
    scores, labels = drawn(300, classes=3)
    sets = ConformalSets(0.2).fit(scores[:150], labels[:150])
    table = sets.table(scores[150:], labels[150:])
    held, answers, truth = sets.contains(scores[150:]), sets.answers(scores[150:]), labels[150:]
    assert table["class"].values.tolist() == ["all", "0", "1", "2"]
    for i, mask in enumerate([truth >= 0, truth == 0, truth == 1, truth == 2]):
        at = table.isel({"class": i})
        said = answers[mask] != ABSTAINED
        assert int(at["n"]) == mask.sum() and int(at["answered"]) == said.sum()
        covered = held[mask, truth[mask]]
        exact = binomtest(int(covered.sum()), int(mask.sum())).proportion_ci()
        assert np.allclose(
            [at["coverage"], at["coverage_low"], at["coverage_high"]], [covered.mean(), exact.low, exact.high]
        )
        assert np.isclose(float(at["set_size"]), held[mask].sum(1).mean())
        assert np.isclose(float(at["abstention"]), float(at["empty"]) + float(at["several"]))
        assert np.isclose(float(at["accuracy"]), (answers[mask][said] == truth[mask][said]).mean())
    assert table.attrs["interval"] == "exact binomial" and table.attrs["n_calibration"] == 150


def test_intervals_over_groups_are_wider_where_groups_agree():
    scores, labels = drawn(200)
    sets = ConformalSets(0.2).fit(scores[:100], labels[:100])
    many, truth = np.repeat(scores[100:], 8), np.repeat(labels[100:], 8)
    rows = sets.table(many, truth)
    groups = sets.table(many, truth, groups=np.repeat(np.arange(100), 8))
    width = [float((t["coverage_high"] - t["coverage_low"])[0]) for t in (rows, groups)]
    assert width[1] > 2 * width[0] and groups.attrs["interval"] == "bootstrap over groups"


@pytest.mark.parametrize(("alpha", "n"), [(0.1, 9), (0.05, 19), (0.5, 1), (0.29, 3), (0.9, 1), (0.01, 99)])
def test_the_smallest_calibration_set_is_the_smallest_that_can_reject(alpha, n):
    assert smallest_calibration(alpha) == n
    assert 1 / (n + 1) <= alpha and (n == 1 or 1 / n > alpha)


S, P = np.linspace(-2, 2, 12), np.full((12, 3), 1 / 3)
Y = (S > 0.1).astype(int)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConformalSets(0.0), "between 0 and 1, not 0.0"),
        (lambda: ConformalSets(1.0), "between 0 and 1, not 1.0"),
        (lambda: ConformalSets(abstain="never"), "'not_one' or 'empty', not 'never'"),
        (
            lambda: ConformalSets(0.05).fit(S, Y),
            "12 calibration rows are too few for alpha = 0.05.*At least 19",
        ),
        (
            lambda: ConformalSets(per_class=True).fit(S, Y),
            "6 calibration rows of the class 0.*At least 9 .* of each class",
        ),
        (lambda: ConformalSets().fit(S, Y[:-1]), "11 labels for 12 scores"),
        (lambda: ConformalSets().fit(S, np.ones(12)), "all 12 labels are 1.0"),
        (
            lambda: ConformalSets().fit(expit(P) * 4, np.arange(12) % 3),
            "must be probabilities that add up to 1",
        ),
        (lambda: ConformalSets().fit(P, Y), "3 columns for 2 classes"),
        (lambda: ConformalSets().fit(S, Y).contains(np.stack([1 - Y, Y], axis=1)), "not of the kind"),
        (lambda: ConformalSets().fit(S, Y).table(S, Y + 1), "label 2 is none of the classes"),
        (lambda: ConformalSets().p_values(S), "no calibration rows yet"),
        (lambda: ConformalSets().fit(S * np.nan, Y), "12 of 12 rows have scores that are NaN"),
    ],
)
def test_bad_input_is_one_clear_error(make, message):
    with pytest.raises(DataError, match=message):
        make()
