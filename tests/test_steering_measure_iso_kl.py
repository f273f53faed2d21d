"""The search for a strength of equal KL, and for the strength at which quality breaks, on curves with known answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_steering_measure_kl import PROMPTS, a_direction

import workbench as wb
from workbench.errors import DataError
from workbench.steering.measure import Dose, iso_kl, kl_of_doses
from workbench.steering.measure.breaking import Quality, break_strength, first_crossing
from workbench.steering.measure.iso_kl import search


def curves(*functions):
    """What `search` evaluates, and how often it was asked."""
    calls = []

    def evaluate(pairs):
        calls.append(len(pairs))
        return np.array([functions[k](s) for k, s in pairs])

    return evaluate, calls


@settings(deadline=None)
@given(st.floats(0.01, 100), st.floats(0.5, 4), st.floats(0.01, 10))
def test_the_strength_on_a_rising_curve_is_its_inverse(a, power, target):
    evaluate, calls = curves(lambda s: a * s**power)
    (found,) = search(evaluate, [0.01], target, largest=[1e9], tolerance=0.01, rounds=60)
    assert found.reached and found.monotone
    assert np.isclose(found.strength, (target / a) ** (1 / power), rtol=0.011 * max(1, 2 / power))
    assert len(calls) < 25


def test_curves_that_bend_and_curves_that_jump_are_found_together():
    evaluate, calls = curves(
        lambda s: 3 * (1 - np.exp(-(s**2) / 50)), lambda s: 0.9 / (1 + np.exp(-40 * (s - 3))) + 0.2 * s**2 / 9
    )
    found = search(evaluate, [0.5, 0.5], 0.5, largest=[100, 100], tolerance=0.02, rounds=40)
    assert np.isclose(found[0].strength, np.sqrt(-50 * np.log(1 - 0.5 / 3)), rtol=0.02)
    assert all(abs(c.kl - 0.5) <= 0.01 for c in found)
    assert calls[0] == 2 and len(calls) <= 15  # both in every call until one is done


def test_a_curve_that_saturates_below_the_target_is_reported_and_no_error():
    evaluate, _ = curves(lambda s: 0.3 * np.tanh(s))
    (found,) = search(evaluate, [0.1], 0.5, largest=[50])
    assert not found.reached and np.isnan(found.strength)
    assert "target not reached: KL 0.3 at strength 50" in found.note


def test_a_curve_that_falls_again_is_noticed():
    evaluate, _ = curves(lambda s: s * 3 if s < 0.5 else 0.2 + 0.1 * s)
    (found,) = search(evaluate, [0.4], 1.6, largest=[100])
    assert found.monotone is False and found.reached and "does not rise" in found.note


def test_targets_and_starts_that_make_no_sense_are_errors():
    evaluate, _ = curves(lambda s: s)
    for target in (0, -1, float("nan")):
        with pytest.raises(DataError, match="cannot be searched for"):
            search(evaluate, [1], target, largest=[2])
    with pytest.raises(DataError, match="first strength"):
        search(evaluate, [3], 1, largest=[2])
    with pytest.raises(DataError, match="tolerance"):
        search(evaluate, [1], 1, largest=[2], tolerance=0)
    with pytest.raises(DataError, match="not finite"):
        search(lambda pairs: np.array([np.nan]), [1], 1, largest=[2])


def test_directions_of_a_model_all_cost_the_target(llama):
    said = wb.steering.generate(llama, PROMPTS, max_new_tokens=5)
    directions = [a_direction(llama, seed=1), a_direction(llama, "blocks.0.hook_resid_post", 2)]
    found = iso_kl(llama, said.prompts, said.tokens, directions, 0.1, tolerance=0.02)
    doses = [Dose(d, c.strength) for d, c in zip(directions, found, strict=True)]
    again = kl_of_doses(llama, said.prompts, said.tokens, doses).along.mean(1)
    assert np.allclose(again, 0.1, rtol=0.021) and all(c.n_prompts == 3 for c in found)
    assert found[0].strength != found[1].strength
    with pytest.raises(DataError, match="at least one direction"):
        iso_kl(llama, said.prompts, said.tokens, [], 0.1)


def test_texts_are_continued_here_and_directions_of_other_models_refused(llama):
    texts, direction = ["Mary went to the", "John"], a_direction(llama)
    said = wb.steering.generate(llama, texts, max_new_tokens=4)
    by_hand = iso_kl(llama, said.prompts, said.tokens, [direction], 0.1)
    assert iso_kl(llama, texts, None, [direction], 0.1, new_tokens=4) == by_hand
    other = replace(direction, model_fingerprint="f" * 64)
    with pytest.raises(DataError, match="another model|made (with|on|for)"):
        iso_kl(llama, texts, None, [other], 0.1)
    assert iso_kl(llama, texts, None, [other], 0.1, new_tokens=4, force=True) == by_hand


def test_the_first_crossing_is_where_straight_lines_meet_zero():
    s = np.array([0.0, 1.0, 2.0, 4.0])
    assert first_crossing(s, np.array([-1.0, -1.0, 1.0, -5.0])) == 1.5
    assert first_crossing(s, np.array([-1.0, -0.5, -0.1, -0.3])) == np.inf
    assert first_crossing(s, np.array([-3.0, -1.0, np.nan, 1.0])) == 4.0
    assert first_crossing(s, np.array([[-1.0, 3.0, 9, 9], [-1, -1, -1, 1]])).tolist() == [0.25, 3.0]


def test_quality_breaks_where_the_planted_curve_passes_the_limit():
    rng = np.random.default_rng(0)
    s = np.array([0.0, 2, 4, 6, 8, 10])
    noise = rng.normal(0, 0.05, (1, 60)) + rng.normal(0, 0.02, (6, 60))
    entropy = 2.0 + 0.1 * s[:, None] + noise  # passes + ln 2 at 6.93
    calm = np.zeros((6, 60))
    found = break_strength(s, entropy, calm, Quality(perplexity=2.0))
    assert found.cause == "perplexity" and np.isclose(found.strength, 6.93, atol=0.15)
    assert found.low < 6.93 < found.high and found.high - found.low < 0.5 and found.share == 1
    repeats = np.clip((s - 2)[:, None] / 10, 0, 1) * np.ones((1, 60))  # + 0.2 at 4
    both = break_strength(s, entropy, repeats)
    assert both.cause == "repetition" and np.isclose(both.strength, 4.0)


def test_a_side_that_does_not_break_says_so():
    s, flat = np.array([0.0, 1, 2]), np.full((3, 10), 2.0)
    found = break_strength(s, flat, np.zeros((3, 10)))
    assert np.isnan(found.strength) and found.high == np.inf and found.share == 0 and found.cause == ""
    with pytest.raises(DataError, match="ascend from 0"):
        break_strength(s[1:], flat[1:], flat[1:])
    with pytest.raises(DataError, match="breaks at once"):
        Quality(perplexity=1.0)
    with pytest.raises(DataError, match="between 0 and 1"):
        Quality(repetition=2.0)
