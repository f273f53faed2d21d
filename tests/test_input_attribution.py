"""Input attribution against finite differences, closed forms, plain forwards of other tokens, and greedy paths by hand."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import hooks_left, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

import workbench as wb
from workbench.errors import DataError, MetricError, ModelError, PromptError
from workbench.patching.input_attribution import METHODS, input_attribution
from workbench.patching.input_baselines import embedding, streams
from workbench.patching.input_deletion import deletion_insertion
from workbench.patching.input_paths import manipulation_path
from workbench.patching.metrics import KLDivergence, LogProbability, Rank

CLEAN = [50, 51, 52, 53, 54, 55, 56, 57, 58, 59]
CORRUPT = [50, 51, 60, 53, 54, 55, 61, 57, 58, 59]
OTHER = [70, 51, 72, 53, 74, 55, 76, 57, 78, 59]
SHORT = [80, 81, 82, 83]
INPUT = "blocks.0.hook_resid_pre"
METRIC = wb.LogitDifference(7, 9)
FEW = {"steps": 4, "n_control": 2}


def difference(logits):
    """The same metric in the logits' own precision."""
    return logits[:, 7] - logits[:, 9]


def of_tokens(model, ids):
    return float(difference(model.logits([ids])[:, -1])[0])


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


def close(ours, expected, rtol=2e-3):
    """Equal up to `rtol` of the largest."""
    assert np.abs(expected).max() > 1e-6, "an oracle of zeros tests nothing"
    return np.abs(np.asarray(ours) - np.asarray(expected)).max() < rtol * np.abs(expected).max()


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


def linear_model():
    """A GPT-2 without anything between its embeddings and its logits."""
    model = tiny_model("gpt2")
    with torch.no_grad():
        for block in model.hf.transformer.h:
            for projection in (block.attn.c_proj, block.mlp.c_proj):
                projection.weight.zero_()
                projection.bias.zero_()
    model.hf.transformer.ln_f = torch.nn.Identity()
    return model


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


# -- baselines -----------------------------------------------------------------------------------------

VECTORS = {  # the stream that a token embedding v makes at positions 0–3, from the weights
    "llama": lambda hf, v: v.expand(4, -1),
    "gpt2": lambda hf, v: v + hf.transformer.wpe.weight[:4],
    "neox": lambda hf, v: v.expand(4, -1),
    "gemma2": lambda hf, v: (v * 48**0.5).expand(4, -1),
    "qwen3": lambda hf, v: v.expand(4, -1),
    "mixtral": lambda hf, v: v.expand(4, -1),
    "opt": lambda hf, v: v + hf.model.decoder.embed_positions.weight[2:6],
}


@pytest.mark.parametrize("vector", ["zero", "mean"])
def test_a_vector_takes_the_token_away_and_leaves_the_position(family, vector):
    model = tiny_model(family)
    table = model.hf.get_input_embeddings().weight.detach()
    v = torch.zeros(48) if vector == "zero" else table.mean(0)
    found = streams(model, torch.tensor([SHORT]), embedding(model, vector))[0]
    expected = VECTORS[family](model.hf, v).detach()
    assert torch.allclose(found, expected, atol=1e-4), (found - expected).abs().max()
    token = streams(model, torch.tensor([SHORT]))[0]
    assert torch.allclose(
        token,
        torch.stack([VECTORS[family](model.hf, table[t])[p] for p, t in enumerate(SHORT)]).detach(),
        atol=1e-4,
    )
    assert hooks_left(model) == 0


def test_special_tokens_stay_unless_asked_for(llama):
    prompt = [1, *CLEAN]
    for baseline in ("mean", "pad", 30, "random"):
        data = input_attribution(llama, prompt, METRIC, baseline=baseline, **FEW).data
        assert not bool(data["moved"][0, 0]) and float(data["attribution"][0, 0]) == 0
        assert bool(data["moved"][0, 1:].all())
        if "baseline_id" in data:
            assert (data["baseline_id"].values[0, :, 0] == 1).all()
    data = input_attribution(llama, prompt, METRIC, baseline="mean", keep_special=False, **FEW).data
    assert bool(data["moved"][0, 0]) and abs(float(data["attribution"][0, 0])) > 1e-6


def test_only_what_differs_from_the_corrupt_prompt_gets_anything(llama):
    data = input_attribution(llama, CLEAN, METRIC, baseline=[CORRUPT], **FEW).data
    assert np.flatnonzero(data["moved"][0]).tolist() == [2, 6]
    assert np.flatnonzero(data["attribution"][0]).tolist() == [2, 6]
    assert data["baseline_token"].values[0, 2] == llama.tokenizer.decode([60])


def test_padding_is_a_token_like_any_other(llama):
    pad, zero = (input_attribution(llama, CLEAN, METRIC, baseline=b, **FEW) for b in ("pad", 0))
    assert np.array_equal(pad.data["attribution"], zero.data["attribution"])
    assert (pad.data["baseline_id"] == 0).all()


# -- control -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_controls_are_the_attribution_to_random_tokens(llama, method):
    steps = {} if method == "gradient_x_input" else {"steps": 6}
    result = input_attribution(
        llama, CLEAN, METRIC, method=method, baseline=[OTHER], n_control=3, seed=4, **steps
    )
    for draw in range(3):
        order = np.random.default_rng([4, 0, draw]).permutation(120)
        other = lambda logits, order=order: logits[:, order[7]] - logits[:, order[9]]  # noqa: E731
        expected = input_attribution(
            llama, CLEAN, other, method=method, baseline=[OTHER], seed=4, control=False, **steps
        )
        assert close(result.data["control_attribution"][0, draw], expected.data["attribution"][0])
    strongest = result.summary["strongest"]
    at = strongest["position"]
    rms = np.sqrt((result.data["control_attribution"][0, :, at] ** 2).mean())
    assert strongest["control_rms"] == pytest.approx(float(rms), abs=1e-4)
    assert abs(strongest["attribution"]) == pytest.approx(
        float(np.abs(result.data["attribution"]).max()), abs=1e-4
    )


# -- steps ---------------------------------------------------------------------------------------------


def test_auto_doubles_each_prompts_steps_until_it_is_complete_and_says_so(llama):
    prompts, baselines = [CLEAN, CLEAN], [OTHER, [0] * 10]
    result = input_attribution(llama, prompts, METRIC, baseline=baselines, tolerance=1e-3, n_control=1)
    for i in range(2):
        used = int(result.data["steps"][i])

        def fixed(steps, i=i):
            base = [baselines[i]]
            return input_attribution(
                llama, prompts[i], METRIC, baseline=base, steps=steps, control=False
            ).data

        assert used & (used - 1) == 0 and used >= 16
        assert np.allclose(fixed(used)["attribution"][0], result.data["attribution"][i], atol=1e-5)
        assert bool(result.data["converged"][i]) == (float(result.data["relative_error"][i]) <= 1e-3)
        if used > 16:
            assert float(fixed(used // 2)["relative_error"][0]) > 1e-3
    assert len(set(result.data["steps"].values.tolist())) == 2, "the two should need different numbers"
    assert " to " in result.summary["steps"]


@pytest.mark.parametrize("method", ["integrated_gradients", "expected_gradients"])
@pytest.mark.parametrize("turned", [False, True])
def test_a_prompt_that_is_done_early_keeps_what_is_its_own(llama, method, turned):
    prompts, baselines = [CLEAN, CLEAN[::-1]], [[*CLEAN[:-1], 60], [0] * 10]
    if method == "expected_gradients":
        prompts, baselines = [CLEAN, OTHER], [[*CLEAN[:-1], 60]]
    settings = {"method": method, "baseline": baselines[::-1] if turned else baselines, "n_control": 2}
    prompts = prompts[::-1] if turned else prompts
    auto = input_attribution(llama, prompts, METRIC, tolerance=5e-3, **settings).data
    assert len(set(auto["steps"].values.tolist())) == 2, "the two should need different numbers"
    for i in range(2):
        fixed = input_attribution(llama, prompts, METRIC, steps=int(auto["steps"][i]), **settings).data
        for name in ("attribution", "control_attribution", "attribution_se", "metric", "baseline_metric"):
            if name in auto:
                assert np.allclose(auto[name][i], fixed[name][i], atol=1e-5), name


def test_auto_stops_at_the_most_and_says_that_it_was_not_enough(llama):
    """From a zero embedding the norm's input jumps from nothing to its full length."""
    result = input_attribution(llama, CLEAN, METRIC, baseline="zero", max_steps=70, control=False)
    assert int(result.data["steps"][0]) == 64 and not bool(result.data["converged"][0])
    assert result.summary["converged"].startswith("0 of 1")


# -- several prompts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_prompts_together_give_what_they_give_alone(model, method):
    prompts = [OTHER, SHORT, CLEAN, CORRUPT]
    steps = {} if method == "gradient_x_input" else {"steps": 5}
    settings = {"method": method, "baseline": "pad", "n_control": 2, **steps}
    metrics = [METRIC, wb.LogitDifference(11, 12), LogProbability((7, 8)), wb.LogitDifference(20, 21)]
    together = input_attribution(model, prompts, metrics, **settings).data
    assert together["length"].values.tolist() == [10, 4, 10, 10]
    assert (
        np.isnan(together["attribution"][1, 4:]).all() and np.isfinite(together["attribution"][1, :4]).all()
    )
    assert together["token"].values[1].tolist()[4:] == [""] * 6 and (together["token_id"][1, 4:] == -1).all()
    assert "mean_attribution" not in together
    if method == "expected_gradients":  # samples are drawn by the number of the prompt
        return
    for i, (prompt, metric) in enumerate(zip(prompts, metrics, strict=True)):
        alone = input_attribution(model, prompt, metric, **settings).data
        for name in ("attribution", "control_attribution"):
            a, b = together[name].values[i][..., : len(prompt)], alone[name].values[0]
            assert np.allclose(a, b, atol=2e-4 * max(1, np.abs(b).max())), name


@pytest.mark.parametrize("method", METHODS)
def test_how_many_tokens_go_together_changes_nothing(llama, method):
    steps = {"gradient_x_input": {}, "samp": {"steps": 2}}.get(method, {"steps": 5})
    one, all_ = (
        input_attribution(
            llama,
            [CLEAN, OTHER],
            METRIC,
            method=method,
            baseline="random",
            tokens_per_backward=n,
            n_random=2,
            n_control=1,
            **steps,
        ).data
        for n in (1, 4096)
    )
    for name in ("attribution", "control_attribution", "metric", "baseline_metric"):
        assert np.allclose(one[name], all_[name], atol=1e-4)


def test_prompts_of_one_length_have_means_with_intervals_and_p_values(llama):
    prompts = [CLEAN, OTHER, CORRUPT, CLEAN[::-1]]
    data = input_attribution(llama, prompts, METRIC, baseline="pad", **FEW).data
    values = data["attribution"].values
    assert np.allclose(data["mean_attribution"], values.mean(0))
    assert np.allclose(data["mean_attribution_se"], values.std(0, ddof=1) / 2)
    low, high = data["attribution_low"].values, data["attribution_high"].values
    assert (low <= values.mean(0)).all() and (values.mean(0) <= high).all() and (low < high).all()
    gap = values - data["control_attribution"].values.mean(1)
    signs = 1 - 2 * ((np.arange(16)[:, None] >> np.arange(4)) & 1)
    expected = (np.abs(signs @ gap) >= np.abs(gap.sum(0)) - 1e-9).mean(0)
    assert np.allclose(data["p_value"], expected)


# -- deletion and insertion ----------------------------------------------------------------------------


def test_curves_are_whole_forwards_with_tokens_replaced(model):
    result = input_attribution(model, [CLEAN, SHORT], METRIC, baseline=[OTHER, [84, 81, 86, 87]], **FEW)
    done = deletion_insertion(model, result, METRIC, n_random=3, seed=2)
    assert hooks_left(model) == 0
    share = done.data["share"].values
    for i, (prompt, other) in enumerate([(CLEAN, OTHER), (SHORT, [84, 81, 86, 87])]):
        own, base = of_tokens(model, prompt), of_tokens(model, other)
        values = result.data["attribution"].values[i]
        differing = [p for p in range(len(prompt)) if prompt[p] != other[p]]
        order = sorted(differing, key=lambda p: -values[p] if own > base else values[p])
        for name, first, second in (("deletion", prompt, other), ("insertion", other, prompt)):
            curve = []
            for k in range(len(order) + 1):
                ids = [second[p] if p in order[:k] else first[p] for p in range(len(prompt))]
                curve.append((of_tokens(model, ids) - base) / (own - base))
            area = sum(a + b for a, b in pairwise(curve)) / 2 / len(order)
            tolerance = 1e-4 / abs(own - base) + 1e-4
            assert float(done.data[f"{name}_area"][i]) == pytest.approx(area, abs=tolerance)
            drawn = np.interp(share, np.linspace(0, 1, len(curve)), curve)
            assert np.allclose(done.data[name][i], drawn, atol=tolerance)


def test_random_orders_of_two_tokens_are_one_of_two(llama):
    result = input_attribution(llama, CLEAN, METRIC, baseline=[CORRUPT], **FEW)
    done = deletion_insertion(llama, result, METRIC, n_random=40).data
    own, base = of_tokens(llama, CLEAN), of_tokens(llama, CORRUPT)
    half = [
        (of_tokens(llama, [CORRUPT[p] if p == q else CLEAN[p] for p in range(10)]) - base) / (own - base)
        for q in (2, 6)
    ]
    assert done["share"].values.tolist() == [0, 0.5, 1]
    found = done["random_deletion"].values[0]
    assert np.allclose(found[:, 0], 1, atol=1e-4) and np.allclose(found[:, 2], 0, atol=1e-4)
    first = np.isclose(found[:, 1], half[0], atol=1e-3)
    assert (first | np.isclose(found[:, 1], half[1], atol=1e-3)).all() and 8 < first.sum() < 32
    assert np.allclose(done["random_insertion"].values[0], found[:, ::-1])
    assert np.allclose(done["random_area"].values[0], (1 + 2 * found[:, 1]) / 4, atol=1e-4)


def test_an_order_that_is_right_at_once_has_the_best_areas_there_are():
    """On the linear model only the last token carries anything, whichever end is the higher."""
    model = linear_model()
    for prompt, other in ((CLEAN, [*OTHER[:-1], 60]), ([*OTHER[:-1], 60], CLEAN)):
        result = input_attribution(model, prompt, METRIC, baseline=[other], **FEW)
        n = int(result.data["moved"].sum())
        done = deletion_insertion(model, result, METRIC, n_random=50)
        found, random = done.summary, done.data["random_deletion"].values[0]
        assert found["deletion"]["area"] == pytest.approx(0.5 / n, abs=1e-3)
        assert found["insertion"]["area"] == pytest.approx(1 - 0.5 / n, abs=1e-3)
        assert found["deletion"]["random_interval"][0] >= 0.5 / n - 1e-3
        assert found["deletion"]["random"] == pytest.approx(0.5, abs=0.15)
        as_good = (random[:, 1] < 0.5).sum()  # the token that matters came first, too
        assert 0 < as_good < 30
        assert found["deletion"]["p_value"] == pytest.approx((1 + as_good) / 51, abs=1e-4)
        as_good = (random[:, -2] > 0.5).sum()  # read backwards, it came first
        assert 0 < as_good < 30
        assert found["insertion"]["p_value"] == pytest.approx((1 + as_good) / 51, abs=1e-4)
        assert found["insertion"]["n_random"] == 50


def test_curves_do_not_depend_on_how_many_rows_go_together_and_work_for_every_baseline(llama):
    for baseline in ("zero", "mean", "random", 30):
        result = input_attribution(llama, [CLEAN, OTHER], METRIC, baseline=baseline, n_random=2, **FEW)
        one, all_ = (
            deletion_insertion(llama, result, METRIC, n_random=2, tokens_per_call=n).data for n in (1, 4096)
        )
        for name in ("deletion", "insertion", "random_area"):
            assert np.allclose(one[name], all_[name], atol=1e-3 * max(1, np.abs(one[name]).max())), (
                baseline,
                name,
            )
        assert np.allclose(one["deletion"][:, 0], 1, atol=1e-3) and np.allclose(
            one["deletion"][:, -1], 0, atol=1e-3
        )
        assert np.allclose(one["insertion"][:, 0], 0, atol=1e-3) and np.allclose(
            one["insertion"][:, -1], 1, atol=1e-3
        )


def test_deletion_over_random_baselines_is_the_mean_over_them(llama):
    result = input_attribution(llama, SHORT, METRIC, baseline="random", n_random=3, **FEW)
    done = deletion_insertion(llama, result, METRIC, n_random=1).data
    others = result.data["baseline_id"].values[0].tolist()
    own, base = of_tokens(llama, SHORT), np.mean([of_tokens(llama, o) for o in others])
    values = result.data["attribution"].values[0]
    first = int(np.argmax(values if own > base else -values))
    replaced = [[o[p] if p == first else SHORT[p] for p in range(4)] for o in others]
    expected = (np.mean([of_tokens(llama, ids) for ids in replaced]) - base) / (own - base)
    assert float(done["deletion"][0, 1]) == pytest.approx(expected, abs=1e-3)


def test_several_prompts_have_an_interval_of_the_areas(llama):
    result = input_attribution(llama, [CLEAN, SHORT, OTHER], METRIC, baseline="pad", **FEW)
    done = deletion_insertion(llama, result, METRIC, n_random=5)
    low, high = done.summary["deletion"]["interval"]
    assert low <= done.summary["deletion"]["area"] <= high and done.summary["deletion"]["n_prompts"] == 3
    assert done.data.sizes["share"] == 21
    for name in ("deletion", "insertion"):
        curve = done.data[f"random_{name}"].mean("prompt").values
        assert np.allclose(done.data[f"random_{name}_low"], np.quantile(curve, 0.025, axis=0))
        assert np.allclose(done.data[f"random_{name}_high"], np.quantile(curve, 0.975, axis=0))


# -- what cannot be ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "lime"}, DataError, "method 'lime' is not known.*samp"),
        ({"steps": 0}, DataError, "steps is 0; expected"),
        ({"steps": 2.5}, DataError, "steps is 2.5"),
        ({"n_control": True}, DataError, "n_control is True"),
        ({"method": "gradient_x_input", "steps": 4}, DataError, "has no steps"),
        ({"baseline": [[50, 51]]}, PromptError, "has 10 tokens and its baseline 2"),
        ({"baseline": [CLEAN, OTHER]}, PromptError, "2 baseline prompts for 1 prompts"),
        ({"baseline": [CLEAN]}, PromptError, "are the same tokens"),
        ({"baseline": 500}, MetricError, "500 is outside"),
        ({"baseline": "zeros"}, PromptError, "its baseline 1.*'zero', 'mean'"),
        ({"metric": Rank(7)}, MetricError, "has no gradient"),
        ({"metric": [METRIC, METRIC]}, MetricError, "2 metrics were given for 1 prompts"),
    ],
)
def test_what_cannot_be_is_one_clear_error(llama, arguments, error, message):
    with pytest.raises(error, match=message):
        input_attribution(llama, CLEAN, arguments.pop("metric", METRIC), **arguments)
    assert hooks_left(llama) == 0


def test_a_model_without_padding_token_says_so(llama):
    import copy

    llama.tokenizer = copy.deepcopy(llama.tokenizer)
    llama.tokenizer.pad_token = None
    with pytest.raises(DataError, match="has no padding token"):
        input_attribution(llama, CLEAN, METRIC, baseline="pad")


def test_a_model_that_reads_its_tokens_elsewhere_as_well_is_refused(llama):
    seen = {}
    llama.hf.model.embed_tokens.register_forward_pre_hook(lambda _m, args: seen.update(ids=args[0]))
    llama.hf.model.norm.register_forward_hook(lambda _m, _a, out: out + 0.1 * seen["ids"][..., None])
    with pytest.raises(ModelError, match="not only through the stream"):
        input_attribution(llama, CLEAN, METRIC)


def test_curves_of_another_metric_or_result_are_refused(llama):
    result = input_attribution(llama, CLEAN, METRIC, baseline=[OTHER], **FEW)
    with pytest.raises(MetricError, match="give the model and the metric of the result"):
        deletion_insertion(llama, result, wb.LogitDifference(20, 21))
    with pytest.raises(DataError, match="n_random is 0"):
        deletion_insertion(llama, result, METRIC, n_random=0)
    lens = wb.lens.logit_lens(llama, CLEAN)
    with pytest.raises(DataError, match="'logit_lens' has no token order"):
        deletion_insertion(llama, lens, METRIC)
    same = input_attribution(llama, CLEAN, lambda logits: logits[:, 7] * 0, baseline=[OTHER], **FEW)
    assert np.isnan(same.data["relative_error"]).all() and same.summary["largest_relative_error"] is None
    with pytest.raises(MetricError, match="have the same metric"):
        deletion_insertion(llama, same, lambda logits: logits[:, 7] * 0)


# -- results -------------------------------------------------------------------------------------------


def test_results_and_their_extension_are_saved_and_loaded_without_loss(llama, tmp_path):
    first = input_attribution(llama, [CLEAN, SHORT], METRIC, method="expected_gradients", steps=8)
    second = deletion_insertion(llama, first, METRIC, n_random=3)
    for name, result in (("a", first), ("b", second)):
        loaded = wb.Result.load(result.save(tmp_path / name))
        assert loaded.data.identical(result.data) and loaded.summary == result.summary
    assert second.kind == "input_attribution" and set(first.data) < set(second.data)
    again = deletion_insertion(llama, wb.Result.load(tmp_path / "a"), METRIC, n_random=3)
    assert np.array_equal(again.data["deletion"], second.data["deletion"])


def test_frozen_models_in_inference_mode_are_attributed_too(llama):
    expected = input_attribution(llama, CLEAN, METRIC, baseline="mean", **FEW).data["attribution"]
    llama.hf.requires_grad_(False)
    with torch.inference_mode():
        result = input_attribution(llama, CLEAN, METRIC, baseline="mean", **FEW)
        deletion_insertion(llama, result, METRIC, n_random=1)
    assert np.allclose(result.data["attribution"], expected, atol=1e-6)
    assert all(p.grad is None for p in llama.hf.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_a_model_in_bfloat16_behaves(method):
    model, steps = tiny_model("gpt2"), {} if method == "gradient_x_input" else {"steps": 32}
    settings = {"method": method, "baseline": [OTHER], "control": False, **steps}
    expected = input_attribution(model, CLEAN, METRIC, **settings).data["attribution"].values[0]
    model.hf.bfloat16()
    result = input_attribution(model, CLEAN, METRIC, **settings)
    found = result.data["attribution"].values[0]
    assert result.data["attribution"].dtype == np.float64 and np.isfinite(found).all()
    assert np.corrcoef(found, expected)[0, 1] > 0.98
