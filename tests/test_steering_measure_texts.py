"""Text measures and scorers against counts by hand; classifiers on texts with a known answer and without one."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import DataError, MetricError
from workbench.steering.measure import (
    LanguageIdentifier,
    OneSentence,
    SentenceCount,
    TextClassifier,
    UpperCase,
    as_scorer,
    distinct,
    measure_texts,
    repetition,
)
from workbench.steering.measure.classifier import reading
from workbench.steering.measure.instructions import sentences
from workbench.steering.measure.resample import interval, nan_mean
from workbench.steering.measure.shipped_tasks import french_identifier


def test_distinct_and_repeated_n_grams_by_hand():
    assert distinct([1, 2, 1, 2], 1) == 2 / 4
    assert distinct([1, 2, 1, 2], 2) == 2 / 3
    assert distinct([1, 2, 1, 2], 3) == 1
    assert np.isnan(distinct([1, 2], 3)) and np.isnan(distinct([], 1))
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4, 1]) == pytest.approx(1 - 4 / 6)
    assert repetition([7] * 10) == pytest.approx(1 - 1 / 7)
    with pytest.raises(DataError, match="length 0"):
        distinct([1], 0)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=12))
def test_distinct_2_counts_first_occurrences(tokens):
    seen, new = [], 0
    for pair in pairwise(tokens):
        new += pair not in seen
        seen.append(pair)
    assert distinct(tokens, 2) == pytest.approx(new / (len(tokens) - 1))


def test_all_measures_of_a_continuation_stand_together(llama):
    found = measure_texts(llama, [[5, 6], [7], [8]], [[9, 10, 9, 10], [11], []])
    assert found["length"].tolist() == [4, 1, 0]
    assert found["distinct_2"][0] == 2 / 3 and np.isnan(found["distinct_2"][1])
    assert np.isfinite(found["cross_entropy"]).tolist() == [True, True, False]


def test_sentences_are_told_from_abbreviations_and_lists():
    assert sentences("Dr. Bach came. He sat down and") == ["Dr. Bach came.", "He sat down and"]
    assert sentences("It costs 3.50 euros!") == ["It costs 3.50 euros!"]
    assert sentences("1. Bees\n2. Ants") == ["1. Bees", "2. Ants"]
    assert sentences('He said "No." Then he left...') == ['He said "No."', "Then he left..."]
    assert SentenceCount()(["A b. C d? E", ""])[0] == 3 and np.isnan(SentenceCount()([""])[0])
    assert OneSentence()(["Rome is big.", "Rome is", "Rome. Paris.", " One!\n"]).tolist() == [1, 0, 0, 1]


def test_upper_case_is_a_share_of_letters_that_have_a_case():
    found = UpperCase()(["ABC d, 12!", "été", "ÉTÉ", "123"])
    assert found[:3].tolist() == [0.75, 0, 1] and np.isnan(found[3])


def test_a_users_function_is_a_scorer_and_its_mistakes_are_told():
    count = as_scorer(lambda texts: torch.tensor([float(t.count("!")) for t in texts]), "marks")
    assert count(["Oh!", "No."]).tolist() == [1, 0] and count.name == "marks"
    with pytest.raises(MetricError, match="shape"):
        as_scorer(lambda texts: [1.0], "one")(["a", "b"])
    with pytest.raises(MetricError, match="not numbers"):
        as_scorer(lambda texts: ["good"] * len(texts), "words")(["a"])
    with pytest.raises(MetricError, match="infinite"):
        as_scorer(lambda texts: [np.inf] * len(texts), "x")(["a"])
    with pytest.raises(MetricError, match="no scorer"):
        as_scorer(3)


@pytest.mark.parametrize("features", ["words", "characters"])
def test_a_classifier_finds_what_is_there_and_nothing_where_nothing_is(features):
    rng = np.random.default_rng(0)
    nouns = ["film", "book", "meal", "room", "phone", "song"]
    texts, labels, groups = [], [], []
    for i in range(60):
        label = bool(i % 2)
        texts.append(f"the {rng.choice(nouns)} number {i} was {'lovely' if label else 'dreadful'}")
        labels.append(label)
        groups.append(i // 6)
    found = TextClassifier.fit(texts, labels, features=features, groups=groups)
    assert found.auc == 1.0 and found.n == 60 and found.n_groups == 10
    assert abs(found.shuffled_auc - 0.5) < 0.25
    scores = found(["a lovely day", "a dreadful day", "  "])
    assert scores[0] > scores[1] and np.isnan(scores[2])
    null = TextClassifier.fit(texts, rng.permutation(labels).tolist(), features=features, groups=groups)
    assert null.auc_low < 0.5 < null.auc_high + 0.2 and null.auc < 0.8


def test_a_reading_classifier_uses_mean_activations_of_the_unsteered_model(llama):
    site = "blocks.1.hook_resid_post"
    texts = ["Mary went to the store", "Tom", "red blue green"]
    found = reading(llama, site)(texts)
    for row, text in zip(found, texts, strict=True):
        with llama.hooks(read=site) as session:
            llama.forward(llama.batch(text))
        whole = session[site][0].numpy()
        assert np.allclose(row, whole[1:].mean(0) if len(whole) > 1 else whole[0], atol=1e-4)
    labels = [True, False] * 10
    words = ["red green", "one two"] * 10
    fitted = TextClassifier.fit(words, labels, features=reading(llama, site))
    assert fitted.auc == 1.0 and fitted(["red green", ""])[0] > 0


def test_language_is_told_on_held_out_sentences():
    identifier = french_identifier()
    assert identifier.accuracy > 0.97 and identifier.n == 144
    french = identifier.scorer("fr")
    assert french(["Où est la bibliothèque du quartier ?", "Bonjour, je m'appelle Paul."]).min() > 0.9
    assert french([" a nice place to be, and we will go there.", "The bread is fresh."]).max() < 0.1
    assert np.isnan(french(["12, 13 …"])[0])
    with pytest.raises(DataError, match="Did you mean"):
        identifier.scorer("fre")


def test_bad_training_texts_are_errors():
    with pytest.raises(DataError, match="both classes"):
        TextClassifier.fit(["a", "b"], [True, True])
    with pytest.raises(DataError, match="Text 1 is empty"):
        TextClassifier.fit(["a", " "], [True, False])
    with pytest.raises(DataError, match="one group"):
        TextClassifier.fit(["a", "b"], [True, False], groups=[0, 0])
    with pytest.raises(DataError, match="2 texts, 1 labels"):
        TextClassifier.fit(["a", "b"], [True])
    with pytest.raises(DataError, match="are not known"):
        TextClassifier.fit(["a", "b"], [True, False], features="letters")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="at least two"):
        LanguageIdentifier.fit({"en": ["a"] * 9})
    with pytest.raises(DataError, match="too few"):
        LanguageIdentifier.fit({"en": ["a"] * 9, "fr": ["b"]})


def test_means_and_intervals_leave_out_what_has_no_value():
    rng = np.random.default_rng(0)
    values = rng.normal(2.0, 1.0, (2, 40))
    holes = values.copy()
    holes[:, ::4] = np.nan
    assert np.allclose(nan_mean(holes), [row[np.isfinite(row)].mean() for row in holes])
    low, high = interval(holes, 0)
    spread = 1.96 * np.array([row[np.isfinite(row)].std(ddof=1) for row in holes]) / np.sqrt(30)
    assert np.allclose(high - low, 2 * spread, rtol=0.25)
    assert (low < nan_mean(holes)).all() and (nan_mean(holes) < high).all()
    nothing = np.full((1, 5), np.nan)
    assert np.isnan(nan_mean(nothing)).all() and np.isnan(interval(nothing, 0)).all()
