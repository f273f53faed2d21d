"""Fits, control tasks and text baselines: they are what they claim to be, and never read the answer."""

from __future__ import annotations

from collections import Counter
from math import comb, log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import workbench as wb
from probes.estimators import LogisticProbe, MassMeanProbe, WhitenedMassMeanProbe
from probes.folds import assign_folds
from probes.trust import (
    random_token_labels,
    selectivity,
    shuffled_labels,
    text_only,
)
from probes.trust.control_tasks import exchange, last_varying_tokens, random_positions
from probes.trust.fitting import Scorer, fit_columns, held_out
from probes.trust.text_baselines import BASELINES, text_scores
from workbench.errors import DataError

# -- fits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "estimator"),
    [
        ("logistic", LogisticProbe(C=0.1, tol=1e-8, max_iter=5000)),
        ("mass_mean", MassMeanProbe()),
        ("mass_mean_whitened", WhitenedMassMeanProbe()),
    ],
)
def test_every_column_is_the_estimator_fitted_to_it_alone(kind, estimator):
    random = np.random.default_rng(0)
    x, targets = random.normal(size=(60, 9)) * 3 + 1, random.random((4, 60)) < 0.4
    fits = fit_columns(x, targets, kind, penalty=0.1)
    for row, coef, target in zip(fits.scores(x[:7]), fits.coef, targets, strict=True):
        one = estimator.fit(x, target)
        assert np.allclose(row, one.decision_function(x[:7]), atol=2e-3)
        assert np.allclose(coef, one.coef_[0], atol=2e-3)


@pytest.mark.parametrize("d", [7, 90])
def test_ridge_is_scikit_learns_on_standardised_rows(d):
    random = np.random.default_rng(0)
    x, targets = random.normal(size=(60, d)) * 3 + 5, random.random((3, 60)) < 0.4
    x[:, 2] = 4.0  # a constant feature
    scaler = StandardScaler().fit(x)
    fits = fit_columns(x, targets, "ridge", penalty=0.2)
    for row, target in zip(fits.scores(x[:9]), targets, strict=True):
        oracle = Ridge(alpha=5.0).fit(scaler.transform(x), np.where(target, 1.0, -1.0))
        assert np.allclose(row, oracle.predict(scaler.transform(x[:9])))


def test_held_out_scores_come_from_fits_without_the_fold():
    random = np.random.default_rng(1)
    x, y, fold = random.normal(size=(50, 6)), np.arange(50) % 2 == 0, np.arange(50) % 5
    found = held_out(x, y[None], fold, "mass_mean")[0]
    x[fold == 3] *= 100  # what is held out has no say
    again = held_out(x, y[None], fold, "mass_mean")[0]
    oracle = MassMeanProbe().fit(x[fold != 3], y[fold != 3]).decision_function(x[fold == 3])
    assert np.allclose(again[fold == 3], oracle)
    assert not np.allclose(found[fold == 1], again[fold == 1])


def test_scores_are_those_of_scikit_learn_and_draws_take_whole_groups():
    random = np.random.default_rng(2)
    scores, y, groups = random.normal(size=80).round(1), random.random(80) < 0.5, np.arange(80) // 8
    scorer = Scorer(np.zeros(80, dtype=int), groups, n=300, seed=4)
    assert np.isclose(scorer.auc(scores, y), roc_auc_score(y, scores))
    draws = np.random.default_rng(4).multinomial(10, np.full(10, 0.1), size=300)
    rows = np.repeat(np.arange(80), draws[7][groups])
    assert np.isclose(scorer.auc_draws(scores, y)[7], roc_auc_score(y[rows], scores[rows]))
    assert np.isclose(scorer.accuracy_draws(scores, y)[7], ((scores > 0) == y)[rows].mean())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_columns(np.zeros((4, 2)), np.ones((1, 4), bool)), "holds one class only"),
        (
            lambda: fit_columns(np.zeros((4, 2)), np.eye(4, dtype=bool), "mass_men"),
            "no probe of kind.*mass_mean",
        ),
        (lambda: shuffled_labels(np.arange(4) < 2, np.array([0, 0, 1, 1])), "No label can be permuted"),
        (
            lambda: shuffled_labels(np.arange(4) < 2, np.arange(4) % 2, np.zeros(4, int)),
            "stand in more than one",
        ),
        (lambda: shuffled_labels(np.arange(4) < 2, n=0), "At least one permutation"),
        (lambda: random_token_labels(["."] * 5), r"all 5 rows have the same one \('\.'\)"),
        (lambda: last_varying_tokens([[1, 2], [1, 2]]), "do not differ"),
        (lambda: random_positions([3, 1]), "Prompt 1 has one token"),
        (lambda: text_only(["a", "b"] * 5, [0, 1] * 4), "8 labels for 10 rows"),
        (lambda: text_only(["a", "b", "c"] * 5, [0, 1, 2] * 5), "two classes expected, found 3"),
        (lambda: text_only(["a", "b"] * 5, [0, 1] * 5, groups=["g"]), "1 groups for 10 rows"),
        (lambda: text_only(["a", "b"] * 5, [0, 1] * 5, baselines=["majorty"]), "Did you mean 'majority'"),
        (lambda: text_only(["a", "b"] * 5, [0, 1] * 5, baselines=["token count"]), "needs the token ids"),
        (lambda: text_only(["a", "b"] * 5, [0, None] * 5), "5 of 10 labels are None"),
        (lambda: text_only(["a", " "] * 5, [0, 1] * 5), "5 of 10 texts are empty, the first at 1"),
        (lambda: text_only(["a", "b"] * 5, [0, 1] * 5, positive="yes"), "positive class 'yes'"),
    ],
)
def test_bad_input_is_one_clear_error(call, message):
    with pytest.raises(DataError, match=message):
        call()


# -- shuffled labels -----------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_shuffling_keeps_what_groups_and_folds_fix(seed, mixed):
    random = np.random.default_rng(seed)
    groups = np.sort(random.integers(0, 9, size=60))
    groups = np.unique(groups, return_inverse=True)[1]
    y = random.random(60) < 0.5 if mixed else (random.random(groups.max() + 1) < 0.5)[groups]
    fold = random.integers(0, 3, size=groups.max() + 1)[groups]
    if not exchange(y, fold, groups).pools:
        return
    for new in shuffled_labels(y, fold, groups, n=5, seed=seed):
        for g in range(groups.max() + 1):
            inside = y[groups == g]
            if 0 < inside.sum() < len(inside):
                assert new[groups == g].sum() == inside.sum()
            else:
                assert len(set(new[groups == g])) == 1
        first = np.unique(groups, return_index=True)[1]
        pure = [i for i in first if len(set(y[groups == groups[i]])) == 1]
        for f in range(3):
            here = [i for i in pure if fold[i] == f]
            assert sum(y[i] for i in here) == sum(new[i] for i in here)


def test_every_permutation_is_equally_likely_and_their_number_is_known():
    y = np.array([1, 0, 0, 1, 0, 0, 0]).astype(bool)
    groups = np.array([0, 0, 0, 1, 1, 1, 1])
    ways = exchange(y, None, groups)
    assert np.isclose(ways.log_count, log(3 * 4)) and ways.level == "rows within groups"
    seen = Counter(tuple(row) for row in shuffled_labels(y, None, groups, n=6000, seed=0))
    assert len(seen) == 12 and min(seen.values()) > 400 and max(seen.values()) < 600
    pure = exchange(np.array([1, 1, 0, 0, 0, 0]).astype(bool), None, np.array([0, 0, 1, 1, 2, 2]))
    assert pure.level == "groups" and np.isclose(pure.log_count, log(comb(3, 1)))
    assert exchange(y).level == "rows" and np.isclose(exchange(y).log_count, log(comb(7, 2)))


# -- random labels by token ----------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from("abcdefg"), min_size=3, max_size=40), st.integers(0, 99))
def test_a_type_has_one_label_and_half_of_the_types_are_positive(types, seed):
    if len(set(types)) < 2:
        return
    task = random_token_labels(types, n=3, seed=seed)
    for labels in task.labels:
        by_type = {t: {bool(y) for t2, y in zip(types, labels, strict=True) if t2 == t} for t in set(types)}
        assert all(len(found) == 1 for found in by_type.values())
        assert sum(found == {True} for found in by_type.values()) == len(by_type) // 2
    counts = Counter(types)
    assert task.n_types == len(counts)
    assert np.isclose(task.repeated, np.mean([counts[t] > 1 for t in types]))


def test_a_probe_that_memorises_words_is_told_from_one_that_reads_meaning():
    """One-hot words: any labels by word are learnt by heart, so nothing is selective; noise rows learn nothing."""
    random = np.random.default_rng(0)
    types = random.integers(0, 20, size=400)
    one_hot = np.eye(20)[types] + 0.01 * random.normal(size=(400, 20))
    task = random_token_labels(types, n=3)
    fold = assign_folds(task.labels[0], None, n=5, seed=0)
    scorer = Scorer(fold)
    truth = types < 10
    chosen = {}
    for name, x in {"by heart": one_hot, "blind": random.normal(size=(400, 20))}.items():
        control = held_out(x, task.labels, fold, "logistic")
        own = held_out(x, truth[None], fold, "logistic")[0]
        chosen[name] = selectivity(own, truth, control, task.labels, scorer), scorer.accuracy(own, truth)
    (value, low, high), accuracy = chosen["by heart"]
    assert accuracy > 0.99 and abs(value) < 0.02 and low <= value <= high
    assert abs(chosen["blind"][1] - 0.5) < 0.1


def test_types_are_the_last_tokens_that_differ_and_random_positions_avoid_the_probed_one():
    assert last_varying_tokens([[5, 7, 9], [1, 5, 8, 9], [5, 7, 9]]).tolist() == [7, 8, 7]
    for exclude, gone in ((-1, [4, 2, 6]), (0, [0, 0, 0])):
        found = random_positions([5, 3, 7], exclude=exclude, seed=1)
        assert all(
            len(p) == 1 and p[0] != g and 0 <= p[0] < n
            for p, g, n in zip(found, gone, [5, 3, 7], strict=True)
        )
    assert random_positions([9] * 9, seed=0) != random_positions([9] * 9, seed=1)


# -- text alone ----------------------------------------------------------------------------------------

WORDS = ["gold", "blue", "pink", "loud", "calm", "slow", "dark", "pale"]


def colours(n=120):
    random = np.random.default_rng(0)
    y = np.arange(n) % 2 == 0
    texts = [f"the {random.choice(WORDS)} thing was {'good' if up else 'bad'}" for up in y]
    return texts, y


def test_bag_of_words_is_scikit_learns_on_the_folds_of_the_probe():
    texts, y = colours()
    fold = assign_folds(y, None, n=4, seed=3)
    ours = text_scores(texts, y, fold, "bag of words")
    for f in range(4):
        train, test = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
        oracle = make_pipeline(
            CountVectorizer(token_pattern=r"\w+|[^\w\s]"), LogisticRegression(max_iter=2000)
        )
        oracle.fit([texts[i] for i in train], y[train])
        assert np.allclose(ours[test], oracle.decision_function([texts[i] for i in test]))


def test_words_that_give_the_label_away_are_found_and_balanced_ones_are_not():
    texts, y = colours()
    data = text_only(texts, y, folds=4).data
    assert float(data["auc"].sel(baseline="bag of words")) == 1.0
    assert float(data["auc"].sel(baseline="character n-grams")) == 1.0
    assert float(data["auc"].sel(baseline="length")) == 1.0  # "good" is a letter longer than "bad"
    assert float(data["auc"].sel(baseline="majority")) == 0.5
    capitals = wb.datasets.load("capitals").filter(label=["true", "false"], negated=False)
    found = text_only(capitals.texts, capitals.labels, groups=capitals.groups, n_bootstrap=50)
    assert found.data["auc"].values.max() < 0.53 and found.data.attrs["grouped"]


def test_majority_is_that_of_the_training_rows_and_every_score_has_its_interval_and_n():
    texts, y = colours(60)
    y[:] = np.arange(60) < 40
    result = text_only(texts, y, folds=3, token_ids=[[len(w) for w in t.split()] for t in texts])
    assert result.data["baseline"].values.tolist() == list(BASELINES)
    majority = result.data.sel(baseline="majority")
    assert np.isclose(float(majority["accuracy"]), 2 / 3)
    for name in ("auc", "accuracy"):
        assert (result.data[f"{name}_low"] <= result.data[name] + 1e-9).all()
        assert (result.data[name] <= result.data[f"{name}_high"] + 1e-9).all()
    assert (result.data["n"] == 60).all() and result.summary["n"] == 60
