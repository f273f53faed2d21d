"""Patching: replayed grids against TransformerLens' loop and against plain hooked forwards."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from conftest import hooks_left, tiny_model
from transformer_lens.model_bridge.sources import build_bridge_from_module

import workbench as wb
from workbench.errors import MetricError, PromptError, SiteError
from workbench.patching.replay import Entry, Replay
from workbench.patching.sweep import KINDS

CLEAN = [50, 51, 52, 53, 54, 55, 56, 57, 58, 59]
CORRUPT = [50, 51, 60, 53, 54, 55, 61, 57, 58, 59]
METRIC = wb.LogitDifference(7, 9)


def by_whole_forwards(model, clean, corrupt, kind):
    """The same grid with one whole hooked forward per cell."""
    metric = METRIC.resolve(model)
    sites = [f"blocks.{i}.{KINDS[kind]}" for i in range(model.n_layers)]
    with model.hooks(read=sites) as source:
        model.logits(clean)
    n = model.n_heads if kind == "z" else len(clean)
    grid = np.zeros((model.n_layers, n))
    for layer, site in enumerate(sites):
        for at in range(n):
            where = (slice(None), slice(None), at) if kind == "z" else (slice(None), at)

            def put(x, site=site, where=where):
                x[where] = source[site][where]
                return x

            with model.edit({site: put}):
                grid[layer, at] = metric(model.logits(corrupt)[:, -1])
    return grid


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_replayed_grid_equals_whole_hooked_forwards(model, kind):
    try:
        ours = wb.patching.sweep(model, CLEAN, CORRUPT, METRIC, kind=kind, control=False)
    except SiteError as error:
        assert kind == "resid_mid" and "parallel" in str(error)
        return
    expected = by_whole_forwards(model, CLEAN, CORRUPT, kind)
    assert np.abs(ours.data["metric"].values[0] - expected).max() < 1e-4
    assert hooks_left(model) == 0


def test_a_grid_equals_transformer_lens_own_patching_loop(family):
    from transformer_lens import patching as tl_patching

    model = tiny_model(family)
    hf = model.hf
    bridge = build_bridge_from_module(
        copy.deepcopy(hf), type(hf).__name__, hf_config=hf.config, tokenizer=None
    )
    metric = METRIC.resolve(model)
    with torch.no_grad():
        _, cache = bridge.run_with_cache(torch.tensor([CLEAN]))
        theirs = tl_patching.get_act_patch_resid_pre(
            bridge, torch.tensor([CORRUPT]), cache, lambda logits: metric(logits[:, -1])[0]
        )
    ours = wb.patching.sweep(model, CLEAN, CORRUPT, METRIC, control=False).data["metric"].values[0]
    assert np.abs(ours - theirs.numpy()).max() < 1e-4


def test_a_replay_without_a_patch_gives_the_base_logits(model):
    replay = Replay(model, model.batch([CLEAN]))
    assert replay.suffixes
    for start in range(len(CLEAN)):
        layers = range(model.n_layers + 1)
        entries = [Entry(layer, replay.inputs[layer][start:]) for layer in layers for _ in range(2)]
        logits = replay.logits_of(entries[::-1], start)
        assert torch.allclose(logits, replay.logits.expand(len(entries), -1), atol=1e-5)


def test_a_model_that_gives_no_keys_and_values_back_is_replayed_whole(llama, monkeypatch):
    expected = wb.patching.sweep(llama, CLEAN, CORRUPT, METRIC, control=False).data["metric"]
    monkeypatch.setattr("workbench.patching.recording._keys_and_values", lambda *_: None)
    assert not Replay(llama, llama.batch([CLEAN])).suffixes
    ours = wb.patching.sweep(llama, CLEAN, CORRUPT, METRIC, control=False).data["metric"]
    assert np.allclose(ours, expected, atol=1e-5)


def test_effects_run_from_zero_to_one(model):
    denoising = wb.patching.sweep(model, CLEAN, CORRUPT, METRIC, kind="resid_pre").data
    assert np.allclose(denoising["mean_effect"].sel(layer=0, position=0), 0, atol=1e-4)  # the same token
    post = wb.patching.sweep(model, CLEAN, CORRUPT, METRIC, kind="resid_post", control=False).data
    assert np.allclose(post["mean_effect"].sel(layer=model.n_layers - 1, position=9), 1, atol=1e-4)
    noising = wb.patching.sweep(model, CLEAN, CORRUPT, METRIC, kind="resid_post", direction="noising").data
    assert np.allclose(noising["mean_effect"].sel(layer=model.n_layers - 1, position=9), 1, atol=1e-4)


@pytest.mark.parametrize("kind", ["resid_pre", "z"])
def test_patches_that_change_nothing_are_not_run_and_give_the_base_metric(model, kind):
    quick, whole = (
        wb.patching.sweep(model, CLEAN, CORRUPT, METRIC, kind=kind, skip_unchanged=skip).data
        for skip in (True, False)
    )
    assert np.allclose(quick["metric"], whole["metric"], atol=1e-5)
    assert np.allclose(quick["control_effect"], whole["control_effect"], atol=1e-4)
    n = int(quick.attrs["unchanged"].split()[0])
    assert whole.attrs["unchanged"].startswith("0 of")
    if kind == "resid_pre":  # in layer 0 the stream differs at the two changed tokens only
        assert n >= len(CLEAN) - 2


def test_batching_of_rows_changes_nothing(llama):
    one, many = (
        wb.patching.sweep(llama, CLEAN, CORRUPT, METRIC, control=False, tokens_per_call=n).data["metric"]
        for n in (1, 4096)
    )
    assert np.allclose(one, many, atol=1e-5)


def test_noising_swaps_the_runs(llama):
    noising = wb.patching.sweep(llama, CLEAN, CORRUPT, METRIC, direction="noising", control=False).data
    swapped = wb.patching.sweep(llama, CORRUPT, CLEAN, METRIC, control=False).data
    assert np.allclose(noising["metric"], swapped["metric"], atol=1e-5)
    assert np.allclose(noising["clean_metric"], swapped["corrupt_metric"], atol=1e-5)


def test_several_pairs_have_a_mean_an_interval_and_the_next_pairs_source_as_control(llama):
    clean = [CLEAN, [*CLEAN[:2], 70, *CLEAN[3:]], [*CLEAN[:2], 71, *CLEAN[3:]]]
    corrupt = [CORRUPT, [*CLEAN[:2], 72, *CLEAN[3:]], [*CLEAN[:2], 73, *CLEAN[3:]]]
    data = wb.patching.sweep(llama, clean, corrupt, METRIC).data
    single = wb.patching.sweep(llama, clean[1], corrupt[1], METRIC, control=False).data
    assert np.allclose(data["effect"].sel(pair=1), single["mean_effect"], atol=1e-4)
    assert np.allclose(data["mean_effect"], data["effect"].mean("pair"), atol=1e-6)
    assert (data["effect_low"] <= data["mean_effect"] + 1e-6).all()
    assert (data["mean_effect"] <= data["effect_high"] + 1e-6).all()
    wrong = wb.patching.sweep(llama, clean[2], corrupt[1], METRIC, control=False).data["metric"]
    expected = (wrong[0] - data["corrupt_metric"][1]) / (data["clean_metric"][1] - data["corrupt_metric"][1])
    assert np.allclose(data["control_effect"].sel(pair=1), expected, atol=1e-4)


def test_one_pair_has_no_interval_and_a_control_at_deranged_positions(llama):
    data = wb.patching.sweep(llama, CLEAN, CORRUPT, METRIC, seed=1).data
    assert np.isnan(data["effect_low"]).all()
    assert "deranged positions" in data.attrs["control"]
    assert not np.allclose(data["control_effect"], data["effect"])


def test_prompts_of_different_lengths_are_an_error_that_shows_both(llama):
    with pytest.raises(PromptError, match=r"clean prompt has 3 tokens and the corrupt one 2.*'Mary'"):
        wb.patching.sweep(llama, "Mary went to", "Mary went", METRIC)
    with pytest.raises(PromptError, match="Pair 1 has 3 tokens and pair 0 has 2"):
        wb.patching.sweep(llama, ["Mary went", "Mary went to"], ["John went", "John went to"], METRIC)
    with pytest.raises(PromptError, match="2 clean and 1 corrupt"):
        wb.patching.sweep(llama, ["Mary", "John"], ["Mary"], METRIC)


def test_metrics_that_cannot_be_are_errors(llama):
    with pytest.raises(MetricError, match="is 2 tokens"):
        wb.patching.sweep(llama, CLEAN, CORRUPT, wb.LogitDifference("Mary went", "John"))
    with pytest.raises(MetricError, match="the same token"):
        wb.patching.sweep(llama, CLEAN, CORRUPT, wb.LogitDifference("Mary", "Mary"))
    with pytest.raises(MetricError, match="no effect to normalise"):
        wb.patching.sweep(llama, CLEAN, CLEAN, METRIC)


def test_log_probability_is_the_log_softmax(llama):
    logits = llama.logits(CLEAN)[:, -1]
    assert torch.allclose(
        wb.LogProbability(7).resolve(llama)(logits), logits.softmax(-1)[:, 7].log(), atol=1e-5
    )


def test_a_sliding_window_that_bites_is_replayed_exactly():
    model = tiny_model("gemma2", sliding_window=3)
    ours = wb.patching.sweep(model, CLEAN, CORRUPT, METRIC, control=False).data["metric"].values[0]
    assert np.abs(ours - by_whole_forwards(model, CLEAN, CORRUPT, "resid_pre")).max() < 1e-4
