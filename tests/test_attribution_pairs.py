"""Attribution patching: several pairs, its control, what cannot be, and a model that stays as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attribution_parts import (
    CLEAN,
    CORRUPT,
    LENGTH,
    METRIC,
    MORE_CLEAN,
    MORE_CORRUPT,
    estimated_change,
)
from conftest import hooks_left, tiny_model

import workbench as wb
from workbench.errors import DataError, HookError, MetricError, ModelError, PromptError
from workbench.patching.attribution import attribution
from workbench.patching.edge_attribution import edges
from workbench.patching.gradients import Forward

# -- pairs, control, errors ----------------------------------------------------------------------------


@pytest.mark.parametrize("integrate", [0, 3])
def test_several_pairs_have_a_mean_an_interval_and_the_next_pairs_source_as_control(llama, integrate):
    result = attribution(llama, MORE_CLEAN, MORE_CORRUPT, METRIC, kind="z", recheck=5, integrate=integrate)
    data = result.data
    for i in range(3):
        single = attribution(
            llama, MORE_CLEAN[i], MORE_CORRUPT[i], METRIC, kind="z", integrate=integrate, control=False
        ).data
        assert np.allclose(data["effect"].sel(pair=i), single["mean_effect"], atol=1e-4)
    assert np.allclose(data["mean_effect"], data["effect"].mean("pair"), atol=1e-6)
    assert (data["effect_low"] <= data["mean_effect"] + 1e-6).all()
    assert (data["mean_effect"] <= data["effect_high"] + 1e-6).all()
    assert len(result.summary["recheck"]["spearman_interval"]) == 2
    if integrate == 0:
        for i in range(3):  # the next pair's source, at this pair's base: the estimate of that pairing
            other = attribution(
                llama, MORE_CLEAN[(i + 1) % 3], MORE_CORRUPT[i], METRIC, kind="z", control=False
            ).data
            change = estimated_change(other)
            span = float(data["clean_metric"][i] - data["corrupt_metric"][i])
            assert np.allclose(data["control_effect"].sel(pair=i), change / span, atol=1e-4)


def test_one_pair_has_no_interval_and_a_control_at_deranged_positions(llama):
    first, again, other = (
        attribution(llama, CLEAN, CORRUPT, METRIC, kind="z", seed=seed).data for seed in (1, 1, 2)
    )
    assert np.isnan(first["effect_low"]).all()
    assert "deranged positions" in first.attrs["control"]
    assert np.array_equal(first["control_effect"], again["control_effect"])
    assert not np.allclose(first["control_effect"], other["control_effect"])
    assert np.array_equal(first["effect"], other["effect"])


def test_longer_answers_and_kl_are_attributed_too(llama):
    answer = wb.LogProbability((7, 9))
    data = attribution(llama, CLEAN, CORRUPT, answer, layers=[0], integrate=32, control=False).data
    assert data.sizes["position"] == LENGTH + 1
    assert float(data["effect"].sum()) == pytest.approx(1, abs=0.02)
    from workbench.patching.metrics import KLDivergence

    data = attribution(llama, CLEAN, CORRUPT, KLDivergence(), layers=[0], integrate=32, control=False).data
    assert float(data["effect"].sum()) == pytest.approx(1, abs=0.02)
    assert float(data["clean_metric"][0]) == pytest.approx(0, abs=1e-6) and (data["corrupt_metric"] > 0).all()
    with pytest.raises(MetricError, match="least at the clean run"):
        attribution(llama, CLEAN, CORRUPT, KLDivergence(), direction="noising")


def test_what_cannot_be_is_an_error(llama):
    from workbench.patching.metrics import Accuracy

    with pytest.raises(MetricError, match="no gradient"):
        attribution(llama, CLEAN, CORRUPT, Accuracy(7))
    with pytest.raises(PromptError, match="clean prompt has 3 tokens"):
        attribution(llama, "Mary went to", "Mary went", METRIC)
    with pytest.raises(MetricError, match="no effect to normalise"):
        attribution(llama, CLEAN, CLEAN, METRIC)
    with pytest.raises(PromptError, match="kind 'pattern' has no attribution"):
        attribution(llama, CLEAN, CORRUPT, METRIC, kind=["z", "pattern"])
    with pytest.raises(PromptError, match="does not go with kind 'mlp_out'"):
        attribution(llama, CLEAN, CORRUPT, METRIC, kind="mlp_out", by="head_position")
    with pytest.raises(PromptError, match="recheck is -1"):
        attribution(llama, CLEAN, CORRUPT, METRIC, recheck=-1)
    with pytest.raises(PromptError, match="integrate is 2.5"):
        attribution(llama, CLEAN, CORRUPT, METRIC, integrate=2.5)
    with pytest.raises(MetricError, match="2 metrics were given for 1"):
        attribution(llama, CLEAN, CORRUPT, [METRIC, METRIC])
    with pytest.raises(DataError, match="blocks 0–2"):
        attribution(llama, CLEAN, CORRUPT, METRIC, layers=[3])
    assert hooks_left(llama) == 0


def test_a_gradient_that_is_not_finite_is_an_error(llama):
    with pytest.raises(ModelError, match="not finite"):
        attribution(llama, CLEAN, CORRUPT, lambda logits: (logits[:, 7] * 0).sqrt() + logits[:, 9])


# -- the model stays as it was -------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [False, True])
def test_the_model_is_left_as_it_was(model, frozen):
    some = [p for i, p in enumerate(model.hf.parameters()) if i % 2]
    for parameter in model.hf.parameters() if frozen else some:
        parameter.requires_grad_(False)
    before = [p.requires_grad for p in model.hf.parameters()]
    logits = model.logits(CLEAN)
    data = attribution(model, CLEAN, CORRUPT, METRIC, kind=["z", "mlp_out"], integrate=2, recheck=2).data
    edges(model, CLEAN, CORRUPT, METRIC)
    assert np.isfinite(data["effect_z"]).all() and (data["effect_z"] != 0).all()
    assert [p.requires_grad for p in model.hf.parameters()] == before
    assert all(p.grad is None for p in model.hf.parameters())
    assert hooks_left(model) == 0
    assert torch.equal(model.logits(CLEAN), logits)


def test_probes_change_no_logit_and_hooks_go_when_the_forward_fails(model, monkeypatch):
    batch = model.batch([CLEAN])
    points = model.resolve(["blocks.*.hook_resid_pre", "blocks.*.hook_mlp_out", "blocks.*.attn.hook_z"])
    run = Forward(model, batch.ids, points, probed=[p.name for p in points])
    assert torch.equal(run.logits.detach(), model.forward(batch, logits_to_keep=1).logits[:, -1])

    def broken(_module, _args, _output):
        raise KeyboardInterrupt

    handle = model.block(1).register_forward_hook(broken)
    with pytest.raises(KeyboardInterrupt):
        Forward(model, batch.ids, points)
    handle.remove()
    assert hooks_left(model) == 0


def test_it_works_inside_inference_mode_and_no_grad(llama):
    expected = attribution(llama, CLEAN, CORRUPT, METRIC, kind="z").data["effect"]
    for mode in (torch.inference_mode(), torch.no_grad()):
        with mode:
            found = attribution(llama, CLEAN, CORRUPT, METRIC, kind="z", recheck=2).data["effect"]
        assert np.array_equal(found, expected)


def test_a_place_that_is_passed_never_or_twice_is_an_error(llama):
    from dataclasses import replace

    batch = llama.batch([CLEAN])
    site = llama.catalog["blocks.1.attn.hook_z"]
    unused = torch.nn.Linear(2, 2)
    llama.hf.add_module("unused", unused)
    with pytest.raises(HookError, match="were not passed"):
        Forward(llama, batch.ids, [replace(site, module="unused")])
    shared = llama.hf.model.layers[0].mlp.act_fn
    llama.hf.model.layers[1].mlp.act_fn = shared
    twice = replace(llama.catalog["blocks.0.mlp.hook_pre"], module="model.layers.0.mlp.act_fn")
    with pytest.raises(HookError, match="passed twice"):
        Forward(llama, batch.ids, [twice])
    assert hooks_left(llama) == 0


def test_a_model_in_bfloat16_is_attributed_in_single_precision():
    model = tiny_model("llama")
    expected = attribution(model, CLEAN, CORRUPT, METRIC, kind="resid_post", control=False).data["metric"]
    model.hf.bfloat16()
    found = attribution(model, CLEAN, CORRUPT, METRIC, kind="resid_post", control=False).data["metric"]
    assert np.corrcoef(found.values.ravel(), expected.values.ravel())[0, 1] > 0.98


def test_a_result_is_saved_and_loaded_without_loss(llama, tmp_path):
    for result in (
        attribution(llama, CLEAN, CORRUPT, METRIC, kind=["z", "k"], recheck=3),
        edges(llama, CLEAN, CORRUPT, METRIC),
    ):
        path = tmp_path / result.kind
        result.save(path)
        loaded = wb.Result.load(path)
        assert loaded.data.identical(result.data) and loaded.summary == result.summary
