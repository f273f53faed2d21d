"""What measures say where there is nothing: noise, silence, levels, weak steering, a control tried as a direction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import workbench as wb
from probes.causal.direction import controls as probe_controls
from workbench.directions import Direction, DirectionSet
from workbench.directions.controls import random_controls
from workbench.directions.cosines import direction_cosines
from workbench.errors import DataError
from workbench.statistics import bootstrap_interval
from workbench.steering.measure import Dose, LanguageIdentifier, TextClassifier, target_log_probability
from workbench.steering.measure.breaking import Quality, break_strength
from workbench.steering.measure.classifier import _auc_interval, _Couples
from workbench.steering.measure.iso_kl import search
from workbench.steering.measure.kl import kl_divergence
from workbench.steering.texts import _random_like

SITE = "blocks.1.hook_resid_post"


def test_a_classifier_of_noise_has_an_auc_of_one_half():
    """Put together over folds, as it once was, the mean here is 0.34 and the intervals miss 0.5 nearly half the time."""
    texts = [f"t{i}" for i in range(40)]
    found, covers = [], []
    for seed in range(12):
        random = np.random.default_rng(seed)
        rows, labels = random.standard_normal((40, 8)), random.permutation([True, False] * 20)
        read = lambda given, rows=rows: np.array([rows[int(t[1:])] for t in given])  # noqa: E731
        one = TextClassifier.fit(texts, labels.tolist(), features=read, seed=seed)
        found += [one.auc, one.shuffled_auc]
        covers.append(one.auc_low <= 0.5 <= one.auc_high)
    assert abs(np.mean(found) - 0.5) < 0.05 and np.mean(covers) >= 0.8


def test_couples_are_those_of_one_fold_and_groups_are_drawn_whole():
    random = np.random.default_rng(0)
    y, fold = random.random(60) < 0.4, np.repeat([0, 1, 2], 20)
    scores = np.round(random.standard_normal(60) + y, 1) + 100 * fold
    n = [int(y[fold == f].sum() * (~y[fold == f]).sum()) for f in range(3)]
    by_fold = [roc_auc_score(y[fold == f], scores[fold == f]) for f in range(3)]
    couples = _Couples(scores, y, fold)
    assert couples.value() == pytest.approx(np.average(by_fold, weights=n))
    weights = random.integers(0, 3, 60)
    drawn = np.repeat(np.arange(60), weights)
    again = _Couples(scores[drawn], y[drawn], fold[drawn]).value()
    assert couples.auc(weights[None].astype(float))[0] == pytest.approx(again)
    low, high = _auc_interval(couples, np.arange(60) // 2, seed=0)
    assert low < couples.value() < high
    assert np.isnan(_Couples(scores, np.ones(60, bool), fold).value())


def test_groups_that_do_not_fit_the_folds_are_one_clear_error():
    texts = {"a": ["x y"] * 6, "b": ["z w"] * 6}
    for groups, message in (
        ({"a": [1] * 6, "b": [2] * 6}, "2 groups cannot be held out in 5 folds"),
        ({"a": [1] * 6}, "0 groups were given for 6 texts of 'b'"),
        ({"a": [1] * 5, "b": range(6)}, "5 groups were given for 6 texts of 'a'"),
    ):
        with pytest.raises(DataError, match=message):
            LanguageIdentifier.fit(texts, groups=groups)


@pytest.mark.parametrize("size", [1e-2, 1e-4])
def test_kl_of_weak_steering_over_a_large_vocabulary_is_not_rounding(size):
    draw = torch.Generator().manual_seed(0)
    a = 4 * torch.randn(50_000, generator=draw)
    b = a + size * torch.randn(50_000, generator=draw)
    p, q = a.double().softmax(-1).numpy(), b.double().softmax(-1).numpy()
    assert float(kl_divergence(a, b)) == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-6)


def test_a_token_that_cannot_be_said_adds_nothing_to_kl():
    never = torch.tensor([0.0, 1.0, -torch.inf])
    assert float(kl_divergence(never, never)) == 0
    half = torch.tensor([0.0, 0.0, -torch.inf])
    assert float(kl_divergence(half, torch.zeros(3))) == pytest.approx(np.log(1.5))
    assert float(kl_divergence(torch.zeros(3), half)) == np.inf


def test_a_model_that_is_silenced_is_broken():
    strengths, nan = np.array([0.0, 2.0, 4.0, 8.0]), np.nan
    entropy = np.array([[1.0, 1, 1, 1], [1, 1, 1, 1], [1, nan, 1, 1], [nan, nan, nan, nan]])
    found = break_strength(strengths, entropy, np.zeros((4, 4)))
    assert found.cause == "empty texts" and found.strength == pytest.approx(
        4 + 4 / 3
    )  # from 1/4 to 1, half way up
    assert np.isnan(break_strength(strengths[:3], entropy[:3], np.zeros((3, 4))).strength)
    with pytest.raises(DataError, match="rise of empty texts"):
        Quality(empty=0)


def test_a_strength_far_down_from_a_level_is_found_within_the_rounds():
    """KL that levels off just above the target: the same size of step would need dozens of calls."""
    for seed in range(100):
        random = np.random.default_rng(seed)
        a, power, top = 10 ** random.uniform(0, 3), random.uniform(0.7, 2.5), random.choice([0.6, 0.8, 5.0])
        curve = lambda s, a=a, p=power, top=top: top * (1 - np.exp(-a * s**p / top))  # noqa: E731
        (found,) = search(
            lambda pairs, f=curve: np.array([f(s) for _, s in pairs]), [1.0], 0.5, largest=[50.0], rounds=12
        )
        assert found.reached and abs(curve(found.strength) - 0.5) <= 0.025


def test_a_target_that_is_jumped_over_says_where_kl_came_nearest():
    (found,) = search(
        lambda pairs: np.array([0.1 if s < 1 else 0.9 for _, s in pairs]), [0.5], 0.5, largest=[9.0], rounds=9
    )
    assert not found.reached and found.kl in (0.1, 0.9)
    at = found.nearest
    assert (at, found.kl) in found.tried and f"KL {found.kl:.3g} at strength {at:.3g}" in found.note


def test_the_control_is_never_the_direction_itself(llama):
    like = Direction.from_vector(torch.ones(48), site=SITE)
    tried = Direction.random(like, 0)
    found = random_controls(tried, 3, 0)
    assert [d.settings["seed"] for d in found] == [1, 2, 3]
    assert [d.settings["seed"] for d in random_controls(-Direction.random(like, 1), 2, 0)] == [0, 2]
    assert _random_like(tried, 0).settings["seed"] == 1  # beside texts
    (mine,) = _random_like(DirectionSet([tried]), 0)
    assert mine.settings["seed"] == 1
    rows = torch.randn(4, 48)
    assert [d.settings["seed"] for d in probe_controls(tried, rows, control="random", n=2, seed=0)] == [1, 2]
    prompts = [[5, 6, 7], [8, 9, 10]]
    result = wb.steering.dose_response(llama, prompts, tried, [4.0], wb.LogitDifference(30, 31), n_random=1)
    assert float(result.data["difference"].sel(strength=4.0)) != 0


def test_the_band_of_all_pairs_under_reference_activations_holds():
    """Directions drawn from the null itself: the largest of 435 pairs is outside in about 1 set of 20."""
    draw = torch.Generator().manual_seed(0)
    mix = torch.diag(torch.linspace(0.2, 2, 32))
    reference = torch.randn(2000, 32, generator=draw) @ mix
    outside = []
    for seed in range(40):
        rows = torch.randn(30, 32, generator=draw) @ mix
        ds = [Direction.from_vector(r, site=SITE, name=str(i)) for i, r in enumerate(rows)]
        found = direction_cosines(ds, reference=reference, n_null=300, seed=seed)
        outside.append(found.summary["outside"]["reference"] > 0)
    assert np.mean(outside) <= 0.15


def test_both_limits_are_held_against_the_same_draws_of_prompts():
    """Either is passed only where the first of two prompts is drawn twice: a quarter, not 1 - (3/4)² of the draws."""
    entropy = np.array([[1.0, 1.0], [2.0, 1.0]])
    repeated = np.array([[0.0, 0.0], [0.3, 0.0]])
    found = break_strength(np.array([0.0, 1.0]), entropy, repeated, n=4000)
    assert np.isnan(found.strength) and found.share == pytest.approx(0.25, abs=0.04)


def test_the_interval_of_the_difference_resamples_steered_and_random_together(llama):
    d = Direction.from_vector(torch.ones(48), site=SITE)
    prompts = [[5 + i, 6, 7] for i in range(9)]
    data = wb.steering.dose_response(llama, prompts, d, [4.0], wb.LogitDifference(30, 31), n_random=2).data
    score = data["score"].sel(strength=4.0)
    each = (score.sel(direction="steered") - score.sel(direction="random")).values
    low, high = bootstrap_interval(each, 0)
    assert float(data["difference_low"].sel(strength=4.0)) == pytest.approx(float(low))
    assert float(data["difference_high"].sel(strength=4.0)) == pytest.approx(float(high))


def test_a_targets_tokens_count_as_generated(llama):
    """Steered from the first token of the string on, not at the prompt: against a plain hooked forward."""
    d, prompt, text = Direction.from_vector(torch.ones(48), site=SITE), [5, 6, 7], "John went"
    ids = llama.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == 2

    def later(x):
        return torch.cat([x[:, :3], x[:, 3:] + 9 * d.vector], dim=1)

    with torch.no_grad(), llama.edit({SITE: later}):
        logs = llama.logits([[*prompt, ids[0]]])[0].log_softmax(-1)
    found = target_log_probability(llama, [prompt], [text], [Dose(d, 9.0)], where="generated")
    assert float(found[0, 0, 0]) == pytest.approx(float(logs[2, ids[0]] + logs[3, ids[1]]), abs=1e-4)
