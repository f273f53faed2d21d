"""Input attribution against finite differences, closed forms and a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import hooks_left, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from input_attribution_parts import (
    CLEAN,
    CORRUPT,
    FEW,
    METRIC,
    OTHER,
    close,
    difference,
    linear_model,
    of_tokens,
)

from workbench.patching.input_attribution import METHODS, input_attribution
from workbench.patching.input_paths import manipulation_path
from workbench.patching.metrics import KLDivergence, LogProbability

INPUT = "blocks.0.hook_resid_pre"


def in_double(family, **overrides):
    model = tiny_model(family, **overrides)
    if family == "mixtral":  # grouped matrix products know no double precision
        model.hf.set_experts_implementation("eager")
    model.hf.double()
    return model


def entering(model, ids):
    with model.hooks(read=[INPUT]) as session:
        model.logits([ids])
    return session[INPUT][0].clone()


def metric_of_streams(model, rows):
    """In one plain forward whose stream into block 0 is edited."""
    with model.edit({INPUT: lambda _: rows}):
        return difference(model.logits([CLEAN] * len(rows))[:, -1]).numpy()


def slopes(model, at, change):
    """Central differences of the metric at the stream `at`, along each token's own change."""
    step = (
        1e-6 if model.hf.config.model_type == "opt" else 1e-3
    )  # a ReLU has kinks; norms work in single precision
    n = len(change)
    rows = at.repeat(2 * n, 1, 1)
    for p in range(n):
        rows[2 * p, p] += step * change[p]
        rows[2 * p + 1, p] -= step * change[p]
    values = metric_of_streams(model, rows)
    return (values[::2] - values[1::2]) / (2 * step)


# -- the attributions themselves -----------------------------------------------------------------------


def test_gradient_x_input_equals_finite_differences(family):
    model = in_double(family)
    x, other = entering(model, CLEAN), entering(model, OTHER)
    data = input_attribution(
        model, CLEAN, difference, method="gradient_x_input", baseline=OTHER, control=False
    ).data
    assert close(data["attribution"].values[0], slopes(model, x, x - other))
    assert hooks_left(model) == 0


def test_integrated_gradients_equal_a_midpoint_sum_of_finite_differences(family):
    model = in_double(family)
    x, other = entering(model, CLEAN), entering(model, OTHER)
    expected = np.mean([slopes(model, other + t * (x - other), x - other) for t in (1 / 6, 1 / 2, 5 / 6)], 0)
    data = input_attribution(model, CLEAN, difference, baseline=OTHER, steps=3, control=False).data
    assert close(data["attribution"].values[0], expected)


@pytest.mark.parametrize("method", ["integrated_gradients", "expected_gradients", "samp"])
def test_attributions_add_up_to_the_difference_of_two_plain_forwards(family, method):
    """Where the metric is continuous in the input: a mixture must ask all its experts."""
    model = tiny_model(family, **({"num_experts_per_tok": 4} if family == "mixtral" else {}))
    span = of_tokens(model, CLEAN) - of_tokens(model, OTHER)
    errors = []
    for steps in (2, 128):
        data = input_attribution(
            model, CLEAN, METRIC, method=method, baseline=[OTHER], steps=steps, control=False
        ).data
        errors.append(float(data["attribution"].sum()) - span)
        assert float(data["completeness_error"][0]) == pytest.approx(errors[-1], abs=1e-5)
        assert float(data["relative_error"][0]) == pytest.approx(abs(errors[-1] / span), abs=1e-4)
        assert float(data["metric"][0]) == pytest.approx(of_tokens(model, CLEAN), abs=1e-5)
        assert float(data["baseline_metric"][0]) == pytest.approx(of_tokens(model, OTHER), abs=1e-5)
    assert abs(errors[1]) < 0.03 * abs(span) + 5e-3 and abs(errors[1]) < 0.5 * abs(errors[0])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("baseline", [[OTHER], [[0] * 9 + [60]], "zero", "mean", 30])
def test_on_a_linear_model_every_method_gives_the_weights_times_the_change_of_the_last_token(
    method, baseline
):
    model = linear_model()
    table, readout = model.hf.transformer.wte.weight.detach(), model.hf.lm_head.weight.detach()
    vector = {"zero": torch.zeros(48), "mean": table.mean(0)}.get(str(baseline))
    if vector is None:
        vector = table[baseline if isinstance(baseline, int) else baseline[0][-1]]
    expected = float((readout[7] - readout[9]) @ (table[CLEAN[-1]] - vector))
    result = input_attribution(model, CLEAN, METRIC, method=method, baseline=baseline, control=False)
    data = result.data
    assert np.abs(data["attribution"].values[0, :-1]).max() < 1e-5
    if CLEAN[-1] == (baseline[0][-1] if isinstance(baseline, list) else None):
        assert not bool(data["moved"][0, -1]) and expected == 0
    assert float(data["attribution"][0, -1]) == pytest.approx(expected, abs=1e-4)
    assert float(data["completeness_error"][0]) == pytest.approx(0, abs=1e-4)


def test_expected_gradients_tend_to_the_mean_of_integrated_gradients_over_the_set(llama):
    references = [OTHER, CORRUPT, list(range(100, 110))]
    exact = np.mean(
        [
            input_attribution(llama, CLEAN, METRIC, baseline=[r], steps=256, control=False)
            .data["attribution"]
            .values[0]
            for r in references
        ],
        axis=0,
    )
    gaps = []
    for steps in (31, 301):
        data = input_attribution(
            llama,
            CLEAN,
            METRIC,
            method="expected_gradients",
            baseline=references,
            steps=steps,
            control=False,
            seed=3,
        ).data
        gaps.append(np.abs(data["attribution"].values[0] - exact).max())
        error = data["attribution_se"].values[0]
        assert (np.abs(data["attribution"].values[0] - exact) < 4 * error + 1e-6).all()
        if steps == 301:  # and are no guess that anything would pass
            assert (error < 0.03 * np.abs(exact).max()).all()
    assert gaps[1] < 0.01 * np.abs(exact).max() and gaps[1] < gaps[0]
    means = np.mean([of_tokens(llama, r) for r in references])
    assert float(data["baseline_metric"][0]) == pytest.approx(means, abs=1e-5)


@pytest.mark.parametrize(
    ("steps", "references"), [(16, [OTHER]), (17, [OTHER, CORRUPT]), (2, [OTHER, CORRUPT, CLEAN[::-1]])]
)
def test_standard_errors_over_samples_are_those_of_repetitions_or_larger(llama, steps, references):
    settings = {"method": "expected_gradients", "baseline": references, "steps": steps, "control": False}
    runs = [input_attribution(llama, CLEAN, METRIC, seed=s, **settings).data for s in range(25)]
    spread = np.std([run["attribution"].values[0] for run in runs], axis=0, ddof=1)
    said = np.sqrt(np.mean([run["attribution_se"].values[0] ** 2 for run in runs], axis=0))
    moved = runs[0]["moved"].values[0]
    assert (said[moved] > 0.75 * spread[moved]).all() and (said[moved] < 6 * spread[moved]).all()
    assert (said[~moved] == 0).all()


def test_fewer_samples_than_baselines_favour_none_of_them():
    """On a linear model a sample is exact, so the mean over seeds must be that over the set."""
    model = linear_model()
    references = [[*CLEAN[:-1], 100 + i] for i in range(6)]
    table, readout = model.hf.transformer.wte.weight.detach(), model.hf.lm_head.weight.detach()
    each = [float((readout[7] - readout[9]) @ (table[CLEAN[-1]] - table[r[-1]])) for r in references]
    found = [
        float(
            input_attribution(
                model,
                CLEAN,
                METRIC,
                method="expected_gradients",
                baseline=references,
                steps=1,
                control=False,
                seed=s,
            ).data["attribution"][0, -1]
        )
        for s in range(60)
    ]
    assert {round(v, 3) for v in found} == {round(v, 3) for v in each}
    assert abs(np.mean(found) - np.mean(each)) < 4 * np.std(each) / np.sqrt(60)


def test_random_baselines_are_averaged_and_have_no_special_tokens(llama):
    result = input_attribution(llama, CLEAN, METRIC, baseline="random", n_random=3, seed=5, **FEW)
    ids = result.data["baseline_id"].values[0]
    assert ids.shape == (3, 10) and not np.isin(ids, llama.tokenizer.all_special_ids).any()
    single = [
        input_attribution(llama, CLEAN, METRIC, baseline=[row.tolist()], **FEW).data["attribution"]
        for row in ids
    ]
    assert np.allclose(result.data["attribution"], np.mean(single, 0), atol=1e-5)
    again = input_attribution(llama, CLEAN, METRIC, baseline="random", n_random=3, seed=6, **FEW)
    assert not np.array_equal(again.data["baseline_id"], result.data["baseline_id"])


def test_an_answer_of_several_tokens_is_attributed_to_the_prompt_alone(llama):
    """ln p of both tokens, the second after the first; the first stands in the baseline as well."""

    def log_p(ids):
        p = llama.logits([[*ids, 7]])[0].float().log_softmax(-1)
        return float(p[-2, 7] + p[-1, 9])

    result = input_attribution(llama, CLEAN, LogProbability((7, 9)), baseline=[OTHER], control=False)
    data = result.data
    assert data.sizes["position"] == len(CLEAN)
    assert float(data["metric"][0]) == pytest.approx(log_p(CLEAN), abs=1e-4)
    assert float(data["baseline_metric"][0]) == pytest.approx(log_p(OTHER), abs=1e-4)
    assert float(data["attribution"].sum()) == pytest.approx(log_p(CLEAN) - log_p(OTHER), rel=0.03)


def test_a_divergence_is_attributed_against_the_prompts_own_distribution(llama):
    p, q = (llama.logits([ids])[0, -1].float().log_softmax(-1) for ids in (CLEAN, OTHER))
    data = input_attribution(llama, CLEAN, KLDivergence(), baseline=[OTHER], control=False).data
    expected = float((p.exp() * (p - q)).sum())
    assert float(data["metric"][0]) == pytest.approx(0, abs=1e-6)
    assert float(data["baseline_metric"][0]) == pytest.approx(expected, rel=1e-4)
    assert float(data["attribution"].sum()) == pytest.approx(-expected, rel=0.03)


# -- the greedy path -----------------------------------------------------------------------------------


def by_hand(gradient, start, goal, steps, momentum):
    """One row, one coordinate after another, without tensors."""
    z, total = list(start), [0.0] * len(start)
    each = -(-sum(a != b for a, b in zip(start, goal, strict=True)) // steps)
    cap = sum(abs(b - a) for a, b in zip(start, goal, strict=True)) / steps
    here = running = gradient(z)
    while z != list(goal):
        score = [
            -abs(r * (b - a)) if a != b else 1.0 for r, a, b in zip(running, z, goal, strict=True)
        ]  # 1: last
        chosen = sorted((i for i in range(len(z)) if z[i] != goal[i]), key=lambda i: score[i])[:each]
        length = sum(abs(goal[i] - z[i]) for i in chosen)
        new = list(z)
        for i in chosen:
            new[i] = goal[i] if length <= cap else z[i] + cap / length * (goal[i] - z[i])
        there = gradient(new)
        for i in range(len(z)):
            total[i] += (new[i] - z[i]) * (here[i] + there[i]) / 2
        running = [momentum * r + (1 - momentum) * g for r, g in zip(running, there, strict=True)]
        z, here = new, there
    return total


def test_the_greedy_path_of_a_small_function_worked_out_on_paper():
    """f = x + 10 y + x y from (0, 0) to (1, 2) in two parts: y up to 1.5, y up to 2, then x."""
    along = manipulation_path(
        lambda _, z: torch.stack([1 + z[:, 1], 10 + z[:, 0]], 1),
        torch.zeros(1, 2),
        torch.tensor([[1.0, 2.0]]),
        2,
        momentum=0.0,
    )
    assert along.tolist() == [[3.0, 20.0]]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 9),
    steps=st.integers(1, 8),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
)
def test_the_greedy_path_is_that_of_a_plain_loop_and_complete_on_quadratics(seed, n, steps, momentum):
    rng = np.random.default_rng(seed)
    square, weight = rng.normal(size=(n, n)), rng.normal(size=n)
    square = square + square.T
    start, goal = rng.normal(size=(2, 3, n))
    goal[1, : n // 2] = start[1, : n // 2]  # coordinates that do not move
    goal[2] = start[2]
    calls = []

    def gradient(rows, z):
        calls.append(rows.tolist())
        return z @ torch.from_numpy(square) + torch.from_numpy(weight)

    along = manipulation_path(
        gradient, torch.from_numpy(start), torch.from_numpy(goal), steps, momentum=momentum
    )
    for row in range(3):
        expected = by_hand(
            lambda z: (np.array(z) @ square + weight).tolist(), start[row], goal[row], steps, momentum
        )
        assert np.allclose(along[row], expected, atol=1e-8)
    value = lambda z: 0.5 * np.einsum("ri,ij,rj->r", z, square, z) + z @ weight  # noqa: E731
    assert np.allclose(along.sum(1), value(goal) - value(start), atol=1e-8)
    assert all(sum(row in some for some in calls) <= 2 * steps + 2 for row in range(3))


def test_a_greedy_path_is_more_concentrated_than_the_line_where_one_coordinate_can_do_it_all():
    """f = tanh of a sum saturates: who moves first gets it."""
    f = lambda z: torch.tanh(3 * z.sum(1))  # noqa: E731
    gradient = lambda _, z: (3 * (1 - f(z) ** 2))[:, None].expand_as(z)  # noqa: E731
    goal = torch.tensor([[1.0, 0.9, 0.8, 0.7]], dtype=torch.double)
    along = manipulation_path(gradient, torch.zeros_like(goal), goal, 200)
    line = goal / goal.sum() * f(goal)
    assert float(along.sum()) == pytest.approx(float(f(goal)), abs=1e-3)
    assert float(along.var()) > 2 * float(line.var())


def test_samp_goes_both_ways_and_takes_the_mean(llama):
    """Swapping prompt and baseline swaps the two paths, hence only the sign."""
    forth = input_attribution(llama, CLEAN, METRIC, method="samp", baseline=[OTHER], steps=8, control=False)
    back = input_attribution(llama, OTHER, METRIC, method="samp", baseline=[CLEAN], steps=8, control=False)
    assert np.allclose(forth.data["attribution"], -back.data["attribution"], atol=1e-4)
