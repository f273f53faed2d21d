"""Input attribution: baselines, control, steps, several prompts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import hooks_left, tiny_model
from input_attribution_parts import (
    CLEAN,
    CORRUPT,
    FEW,
    METRIC,
    OTHER,
    SHORT,
    close,
)

import workbench as wb
from workbench.patching.input_attribution import METHODS, input_attribution
from workbench.patching.input_baselines import embedding, streams
from workbench.patching.metrics import LogProbability

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
