"""Ablation: replayed cells against whole forwards with plain edits, for every way of ablating."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import hooks_left

import workbench as wb
from workbench.errors import DataError, MetricError, PositionError, PromptError, SiteError
from workbench.patching.ablation import ablate

PROMPTS = [[50, 51, 52, 53, 54, 55], [60, 61, 62, 63, 64, 65], [70, 71, 72, 73, 74, 75]]
REFERENCE = [
    [80, 81, 82, 83, 84, 85],
    [86, 87, 88, 89, 90, 91],
    [92, 93, 94, 95, 96, 97],
    [40, 41, 42, 43, 44, 45],
]
METRIC = wb.LogitDifference(7, 9)
PARTS = ["hook_resid_pre", "attn.hook_z", "attn.hook_k", "hook_attn_out", "hook_mlp_out", "hook_resid_post"]


def activations(model, prompt, site):
    with model.hooks(read=[site]) as session:
        model.logits([prompt])
    return session[site][0]


def whole_forward(model, prompt, site, put, positions: Any = slice(None), head=None):
    """The metric of a whole forward in which `put` ([position, ...]) stands at the site."""
    where = (0, positions) if head is None else (0, positions, head)

    def edit(x):
        x[where] = put[where[1:]].to(x)
        return x

    with model.edit({site: edit}):
        return float(METRIC.resolve(model)(model.logits([prompt])[:, -1])[0])


def sites_of(model):
    return [f"blocks.{layer}.{part}" for layer in range(model.n_layers) for part in PARTS]


def test_zero_ablation_of_each_site_is_a_whole_forward_with_zeros(model):
    data = ablate(model, PROMPTS, sites_of(model), METRIC, how="zero").data
    for site in sites_of(model):
        for i, prompt in enumerate(PROMPTS):
            expected = whole_forward(model, prompt, site, torch.zeros_like(activations(model, prompt, site)))
            assert abs(float(data["metric"].sel(site=site)[i]) - expected) < 1e-4, site
    assert hooks_left(model) == 0


def test_every_other_site_of_the_blocks_can_be_ablated(model):
    left_out = {"hook_embed", "hook_pos_embed", "ln_final.hook_out", "unembed.hook_out"}
    sites = [s for s in model.sites() if s not in left_out and not s.endswith("pattern")]
    data = ablate(model, PROMPTS[0], sites, METRIC, how="zero", control=False).data
    for site in sites:
        expected = whole_forward(
            model, PROMPTS[0], site, torch.zeros_like(activations(model, PROMPTS[0], site))
        )
        assert abs(float(data["metric"].sel(site=site)[0]) - expected) < 1e-4, site


@pytest.mark.parametrize("how", ["mean", "mean_over_positions"])
def test_means_are_taken_over_the_reference(model, how):
    sites = [f"blocks.1.{part}" for part in PARTS]
    at = [2, -1]
    data = ablate(model, PROMPTS, sites, METRIC, how=how, reference=REFERENCE, positions=at).data
    for site in sites:
        read = torch.stack([activations(model, prompt, site) for prompt in REFERENCE])
        mean = read.mean(0) if how == "mean" else read.mean((0, 1)).expand_as(read[0])
        for i, prompt in enumerate(PROMPTS):
            expected = whole_forward(model, prompt, site, mean, positions=[2, 5])
            assert abs(float(data["metric"].sel(site=site)[i]) - expected) < 1e-4, site


def test_each_head_is_ablated_alone(model):
    site = "blocks.1.attn.hook_z"
    data = ablate(model, PROMPTS, site, METRIC, how="mean", reference=REFERENCE, heads="each").data
    mean = torch.stack([activations(model, prompt, site) for prompt in REFERENCE]).mean(0)
    assert data.sizes["head"] == model.n_heads
    for head in range(model.n_heads):
        expected = whole_forward(model, PROMPTS[1], site, mean, head=head)
        assert abs(float(data["metric"].sel(site=site, head=head)[1]) - expected) < 1e-4
    some = ablate(model, PROMPTS, site, METRIC, how="mean", reference=REFERENCE, heads=[2]).data
    assert np.allclose(some["metric"].sel(head=2), data["metric"].sel(head=2), atol=1e-5)
    values = ablate(model, PROMPTS, "blocks.*.attn.hook_v", METRIC, how="zero", heads="each").data
    assert values.sizes["head"] == model.n_kv_heads


def test_resampling_puts_in_another_prompts_run_and_never_its_own(model):
    sites = ["blocks.0.hook_mlp_out", "blocks.1.hook_attn_out"]
    for reference in (REFERENCE, None):
        data = ablate(model, PROMPTS, sites, METRIC, how="resample", reference=reference, seed=1).data
        for i, prompt in enumerate(PROMPTS):
            j = int(data["resampled_from"][i])
            other = (reference or PROMPTS)[j]
            assert other != prompt
            for site in sites:
                expected = whole_forward(model, prompt, site, activations(model, other, site))
                assert abs(float(data["metric"].sel(site=site)[i]) - expected) < 1e-4


def test_a_prompt_ablated_by_the_mean_of_itself_changes_nothing(model):
    data = ablate(model, PROMPTS[0], sites_of(model), METRIC, how="mean", reference=[PROMPTS[0]]).data
    assert np.abs(data["effect"]).max() < 1e-4
    assert np.abs(data["control_effect"]).max() < 1e-3  # the push has length 0


def caught(model, monkeypatch, **arguments):
    """[real, control] activations after each edit of one cell, and before it."""
    import workbench.patching.ablation as module

    found = []
    real = module._edit

    def spy(*args):
        edit = real(*args)

        def kept(x):
            before = x.clone()
            after = edit(x)
            found.append((before, after.clone()))
            return after

        return kept

    monkeypatch.setattr(module, "_edit", spy)
    data = ablate(
        model, arguments.pop("prompts", PROMPTS[0]), arguments.pop("site"), METRIC, **arguments
    ).data
    monkeypatch.undo()
    return found, data


@pytest.mark.parametrize("heads", [None, [1]])
def test_the_control_is_a_push_of_the_same_norm_elsewhere(llama, monkeypatch, heads):
    found, data = caught(
        llama, monkeypatch, site="blocks.1.attn.hook_z", how="zero", positions=[1, 3], heads=heads, seed=2
    )
    (before, after), (_, control) = found
    push, other = (after - before), (control - before)  # both begin at position 1
    assert torch.allclose(push.flatten(1).norm(dim=1), other.flatten(1).norm(dim=1), atol=1e-5)
    assert (push.flatten(1).norm(dim=1) > 0).tolist() == [True, False, True, False, False]
    if heads is not None:
        assert other[:, [0, 2, 3]].abs().max() < 1e-6
    cosine = torch.cosine_similarity(push[0].flatten(), other[0].flatten(), dim=0)
    assert abs(float(cosine)) < 0.6
    whole = activations(llama, PROMPTS[0], "blocks.1.attn.hook_z").clone()
    whole[1:] = control
    expected = whole_forward(llama, PROMPTS[0], "blocks.1.attn.hook_z", whole) - float(data["base_metric"][0])
    assert abs(float(data["control_effect"].squeeze()) - expected) < 1e-4


def test_noise_has_the_references_deviation_in_each_dimension(llama, monkeypatch):
    site = "blocks.1.hook_resid_post"
    found = []
    for seed in range(60):
        some, _ = caught(
            llama, monkeypatch, site=site, how="noise", reference=REFERENCE, control=False, seed=seed
        )
        found += [after - before for before, after in some]
    noise = torch.cat(found)
    read = torch.cat([activations(llama, prompt, site) for prompt in REFERENCE])
    ratio = noise.std(0) / read.std(0, correction=0)
    assert (ratio - 1).abs().max() < 0.2  # 360 draws: standard error 0.04
    assert (noise.mean(0) / read.std(0)).abs().max() < 0.25


def test_noise_is_the_same_for_the_same_seed_however_rows_are_batched(llama):
    one, many, other = (
        ablate(llama, PROMPTS, "blocks.*.hook_mlp_out", METRIC, how="noise", seed=s, tokens_per_call=n).data
        for s, n in ((0, 1), (0, 4096), (1, 4096))
    )
    assert np.allclose(one["metric"], many["metric"], atol=1e-5)
    assert np.allclose(one["control_effect"], many["control_effect"], atol=1e-5)
    assert not np.allclose(many["metric"], other["metric"], atol=1e-3)


def test_statistics_are_those_of_the_prompts(llama):
    result = ablate(llama, PROMPTS, "blocks.*.hook_mlp_out", METRIC, how="mean")
    data = result.data
    base = np.array([float(METRIC.resolve(llama)(llama.logits([p])[:, -1])[0]) for p in PROMPTS])
    assert np.allclose(data["base_metric"], base, atol=1e-5)
    effect = data["metric"].values - base[:, None]
    assert np.allclose(data["effect"], effect, atol=1e-5)
    assert np.allclose(data["mean_effect"], effect.mean(0), atol=1e-5)
    assert np.allclose(data["stderr"], effect.std(0, ddof=1) / np.sqrt(3), atol=1e-5)
    assert (data["effect_low"] <= data["mean_effect"]).all() and (
        data["mean_effect"] <= data["effect_high"]
    ).all()
    at = int(np.abs(effect.mean(0)).argmax())
    assert result.summary["strongest"]["site"] == f"blocks.{at}.hook_mlp_out"
    single = ablate(llama, PROMPTS[0], "blocks.0.hook_mlp_out", METRIC, how="zero").data
    assert np.isnan(single["stderr"]).all() and np.isnan(single["effect_low"]).all()


def test_prompts_of_several_lengths_go_where_positions_need_not_correspond(llama):
    prompts = [PROMPTS[0], PROMPTS[1][:4]]
    for how in ("zero", "mean_over_positions", "noise"):
        data = ablate(llama, prompts, "blocks.1.hook_mlp_out", METRIC, how=how, reference=REFERENCE).data
        one = ablate(llama, prompts[0], "blocks.1.hook_mlp_out", METRIC, how=how, reference=REFERENCE).data
        assert np.allclose(data["metric"][0], one["metric"][0], atol=1e-5)
    for how in ("mean", "resample"):
        with pytest.raises(PromptError, match="Prompt 1 has 4 tokens and prompt 0 has 6"):
            ablate(llama, prompts, "blocks.1.hook_mlp_out", METRIC, how=how, reference=REFERENCE)
        with pytest.raises(PromptError, match="Reference prompt 1 has 3 tokens"):
            ablate(
                llama, PROMPTS, "blocks.1.hook_mlp_out", METRIC, how=how, reference=[PROMPTS[1], [1, 2, 3]]
            )


def test_what_cannot_be_ablated_is_an_error(llama):
    with pytest.raises(DataError, match="how='median' is not known"):
        ablate(llama, PROMPTS, "blocks.0.hook_mlp_out", METRIC, how="median")  # pyright: ignore[reportArgumentType]
    with pytest.raises(DataError, match="one prompt itself changes nothing"):
        ablate(llama, PROMPTS[0], "blocks.0.hook_mlp_out", METRIC, how="mean")
    with pytest.raises(DataError, match="No reference prompt differs from prompt 0"):
        ablate(llama, PROMPTS[:1], "blocks.0.hook_mlp_out", METRIC, how="resample", reference=PROMPTS[:1])
    with pytest.raises(SiteError, match=r"hook_embed' is outside the blocks"):
        ablate(llama, PROMPTS, "hook_embed", METRIC)
    with pytest.raises(SiteError, match="attention pattern.*knockout"):
        ablate(llama, PROMPTS, "blocks.0.attn.hook_pattern", METRIC)
    with pytest.raises(SiteError, match="has no heads"):
        ablate(llama, PROMPTS, "blocks.0.hook_mlp_out", METRIC, heads="each")
    with pytest.raises(SiteError, match=r"\[2, 4\] heads"):
        ablate(llama, PROMPTS, ["blocks.0.attn.hook_q", "blocks.0.attn.hook_k"], METRIC, heads="each")
    with pytest.raises(DataError, match=r"heads=\[4\]"):
        ablate(llama, PROMPTS, "blocks.0.attn.hook_z", METRIC, heads=[4])
    with pytest.raises(PositionError, match="Position 6 is outside"):
        ablate(llama, PROMPTS, "blocks.0.hook_mlp_out", METRIC, how="zero", positions=6)
    with pytest.raises(MetricError, match="2 metrics were given for 3 prompts"):
        ablate(llama, PROMPTS, "blocks.0.hook_mlp_out", [METRIC, METRIC])


def test_a_result_survives_the_disk(llama, tmp_path):
    result = ablate(llama, PROMPTS, "blocks.*.attn.hook_z", METRIC, heads="each", reference=REFERENCE)
    result.save(tmp_path / "r.zarr")
    assert wb.Result.load(tmp_path / "r.zarr").data.identical(result.data)
