"""Attention knock-out against masked attention: a 4-d mask given to the model, or to one of its attention modules."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from conftest import hooks_left, tiny_model
from hypothesis import given
from hypothesis import strategies as st

import workbench as wb
from workbench.errors import DataError, MetricError, ModelError, PositionError
from workbench.patching.knockout import block_edges, knockout

PROMPT = [50, 51, 52, 53, 54, 55, 56, 57]
PROMPTS = [PROMPT, [60, 61, 62, 63, 64, 65, 66, 67], [70, 71, 72, 73, 74, 75, 76, 77]]
METRIC = wb.LogitDifference(7, 9)


def causal_mask(length, edges, n_heads=1, heads=None):
    """[1, head, query, key] added to scores: 0 or the lowest number."""
    may = torch.tril(torch.ones(length, length, dtype=torch.bool)).repeat(n_heads, 1, 1)
    for query, key in edges:
        may[list(range(n_heads)) if heads is None else heads, query, key] = False
    return torch.where(may, 0.0, torch.finfo(torch.float32).min)[None]


def eager(family):
    model = tiny_model(family)
    model.hf.set_attn_implementation("eager")
    return model


@torch.no_grad()
def with_whole_mask(model, ids, edges):
    """The model run by itself, with our mask in place of its own."""
    positions = {"position_ids": torch.arange(len(ids))[None]}
    out = model.hf(input_ids=torch.tensor([ids]), attention_mask=causal_mask(len(ids), edges), **positions)
    return float(METRIC.resolve(model)(out.logits[:, -1])[0])


@torch.no_grad()
def with_masks_in_layers(model, ids, edges, layers, heads=None):
    """The model run by itself, with our mask in some of its attention modules."""
    mask = causal_mask(len(ids), edges, model.n_heads, heads)
    handles = []
    for layer in layers:
        module = model.module(model.catalog[f"blocks.{layer}.attn.hook_pattern"].module)

        def swap(_module, args, kwargs):
            assert "attention_mask" in kwargs
            return args, {**kwargs, "attention_mask": mask}

        handles.append(module.register_forward_pre_hook(swap, with_kwargs=True))
    try:
        logits = model.hf(input_ids=torch.tensor([ids])).logits
    finally:
        for handle in handles:
            handle.remove()
    return float(METRIC.resolve(model)(logits[:, -1])[0])


def test_knockout_in_all_layers_is_the_model_with_an_additive_mask(family):
    queries, keys = [4, -1], [1, 3]
    edges = [(q, k) for q in (4, 7) for k in keys]
    model = tiny_model(family)
    data = knockout(model, PROMPT, METRIC, queries=queries, keys=keys, window=model.n_layers).data
    expected = with_whole_mask(eager(family), PROMPT, edges)
    assert abs(float(data["metric"][0, 0]) - expected) < 1e-4
    assert abs(float(data["effect"][0, 0])) > 1e-3
    assert abs(float(data["base_metric"][0]) - with_whole_mask(eager(family), PROMPT, [])) < 1e-4
    assert hooks_left(model) == 0


@pytest.mark.parametrize("window", [1, 2])
def test_each_window_blocks_its_own_layers_only(family, window):
    model = tiny_model(family)
    data = knockout(model, PROMPT, METRIC, queries="last", keys=[0, 2, 5], window=window).data
    assert data.sizes["window"] == model.n_layers - window + 1
    reference = eager(family)
    for at, first in enumerate(data["first_layer"].values):
        layers = range(first, int(data["last_layer"][at]) + 1)
        assert len(layers) == window
        expected = with_masks_in_layers(reference, PROMPT, [(7, 0), (7, 2), (7, 5)], layers)
        assert abs(float(data["metric"][0, at]) - expected) < 1e-4


def test_single_heads_and_chosen_sets_of_layers(llama):
    reference = eager("llama")
    data = knockout(
        llama, PROMPT, METRIC, queries=[6, 7], keys=[1, 2], layers=[[0, 2], [1]], heads=[0, 3]
    ).data
    edges = [(q, k) for q in (6, 7) for k in (1, 2)]
    for at, layers in enumerate([[0, 2], [1]]):
        expected = with_masks_in_layers(reference, PROMPT, edges, layers, heads=[0, 3])
        assert abs(float(data["metric"][0, at]) - expected) < 1e-4
    assert list(data["layers"].values) == ["0 2", "1"]


def test_a_sliding_window_that_bites_is_kept():
    model = tiny_model("gemma2", sliding_window=4)
    ours = knockout(model, PROMPT, METRIC, queries="last", keys=[5], layers=[[0, 1, 2]]).data["metric"]

    def block(pattern):
        pattern[:, :, 7, 5] = 0
        return pattern / pattern.sum(-1, keepdim=True)

    with model.edit({"blocks.*.attn.hook_pattern": block}):
        expected = METRIC.resolve(model)(model.logits([PROMPT])[:, -1])
    assert abs(float(ours[0, 0]) - float(expected)) < 1e-4


def test_zeroing_and_giving_to_position_0_are_what_they_say(model):
    def zero(pattern):
        pattern[:, :, 7, 2:7] = 0
        return pattern

    def to_first(pattern):
        pattern[:, :, 7, 0] += pattern[:, :, 7, 2:7].sum(-1)
        return zero(pattern)

    asked: list[tuple[dict[str, Any], Any]] = [({"renormalise": False}, zero), ({"to_bos": True}, to_first)]
    for arguments, edit in asked:
        data = knockout(model, PROMPT, METRIC, queries=-1, keys=range(2, 7), control=False, **arguments).data
        for layer in range(model.n_layers):
            with model.edit({f"blocks.{layer}.attn.hook_pattern": edit}):
                expected = METRIC.resolve(model)(model.logits([PROMPT])[:, -1])
            assert abs(float(data["metric"][0, layer]) - float(expected)) < 1e-4


@given(seed=st.integers(0, 10_000), n=st.integers(2, 8))
def test_blocking_a_pattern_is_a_score_of_minus_infinity(seed, n):
    torch.manual_seed(seed)
    scores = torch.randn(2, 3, n, n) * 3
    scores = scores.masked_fill(torch.triu(torch.ones(n, n, dtype=torch.bool), 1), -torch.inf)
    blocked = torch.rand(n, n) < 0.5
    blocked.fill_diagonal_(False)
    expected = scores.masked_fill(blocked, -torch.inf).softmax(-1)
    assert torch.allclose(block_edges(scores.softmax(-1), blocked), expected, atol=1e-6)


def test_rows_that_are_not_blocked_keep_their_bits():
    pattern = torch.randn(2, 5, 5).softmax(-1)
    blocked = torch.zeros(5, 5, dtype=torch.bool)
    blocked[3, 1] = True
    new = block_edges(pattern, blocked)
    keep = [0, 1, 2, 4]
    assert torch.equal(new[:, keep], pattern[:, keep])
    assert (new[:, 3, 1] == 0).all()


def test_a_row_of_which_nothing_is_left_is_an_error_that_names_the_query(llama):
    with pytest.raises(PositionError, match=r"Query 2 \('.*'\) has nothing left.*to_bos=True"):
        knockout(llama, PROMPT, METRIC, queries=[2, 7], keys=[0, 1, 2])
    with pytest.raises(PositionError, match=r"Query 4 has no attention left"):
        block_edges(torch.eye(5)[3:], torch.tensor([[False] * 5, [False] * 4 + [True]]))
    narrow = tiny_model("gemma2", sliding_window=2)  # its window hides all other keys
    with pytest.raises(PositionError, match=r"Query 7 \(.*\) has nothing left to attend to"):
        knockout(narrow, PROMPT, METRIC, queries="last", keys=[6, 7])
    data = knockout(llama, PROMPT, METRIC, queries=[2, 7], keys=[0, 1, 2], to_bos=True).data
    assert np.isfinite(data["metric"]).all()


def test_rows_that_do_not_sum_to_1_cannot_be_renormalised():
    pattern = torch.full((1, 2, 2), 0.25)
    with pytest.raises(ModelError, match="do not sum to 1"):
        block_edges(pattern, torch.tensor([[False, False], [True, False]]))


def test_spans_may_differ_between_prompts_of_different_lengths(llama):
    prompts = [PROMPT, PROMPT[:5]]
    both = knockout(llama, prompts, METRIC, queries="last", keys=[[1, 2], [3]], control=False).data
    for i, keys in enumerate(([1, 2], [3])):
        one = knockout(llama, prompts[i], METRIC, queries=-1, keys=keys, control=False).data
        assert np.allclose(both["metric"][i], one["metric"][0], atol=1e-5)
    assert both["n_edges"].isel(window=0).values.tolist() == [2, 1]


def test_the_control_blocks_as_many_other_edges_of_the_same_queries(llama, monkeypatch):
    # by its name in sys.modules: the package gives the function of the same name
    module = importlib.import_module("workbench.patching.knockout")
    seen = []
    real = module.block_edges

    def spy(pattern, blocked, **kwargs):
        seen.append(blocked[0].nonzero().tolist())
        return real(pattern, blocked, **kwargs)

    monkeypatch.setattr(module, "block_edges", spy)
    data = knockout(llama, PROMPT, METRIC, queries=[5, 7], keys=[1, 2], layers=[[1]], seed=3).data
    asked, other = ({(q + 5, k) for q, k in edges} for edges in seen)  # replayed from position 5 on
    assert asked == {(5, 1), (5, 2), (7, 1), (7, 2)}
    assert not asked & other
    assert sorted(q for q, _ in other) == [5, 5, 7, 7]
    assert all(k <= q for q, k in other)
    monkeypatch.undo()
    expected = with_masks_in_layers(eager("llama"), PROMPT, sorted(other), [1]) - float(
        data["base_metric"][0]
    )
    assert abs(float(data["control_effect"][0, 0]) - expected) < 1e-4
    few = knockout(llama, PROMPT, METRIC, queries=[3], keys=[0, 1, 2]).data
    assert (int(few["n_edges"][0, 0]), int(few["n_control_edges"][0, 0])) == (3, 1)


def test_statistics_are_those_of_the_prompts(llama):
    result = knockout(llama, PROMPTS, METRIC, queries="last", keys=[2, 3], seed=5)
    data = result.data
    effect = (data["metric"] - data["base_metric"]).values
    assert np.allclose(data["effect"], effect)
    assert np.allclose(data["mean_effect"], effect.mean(0))
    assert np.allclose(data["stderr"], np.sqrt(effect.var(0, ddof=1) / 3))
    assert (data["effect_low"] <= data["mean_effect"]).all() and (
        data["mean_effect"] <= data["effect_high"]
    ).all()
    strongest = result.summary["strongest"]
    assert strongest["first_layer"] == int(np.abs(effect.mean(0)).argmax())
    again = knockout(llama, PROMPTS, METRIC, queries="last", keys=[2, 3], seed=5).data
    assert again.identical(data)


def test_batching_of_rows_changes_nothing(llama):
    one, many = (
        knockout(llama, PROMPT, METRIC, queries="all", keys=[1], window=2, tokens_per_call=n).data["metric"]
        for n in (1, 4096)
    )
    assert np.allclose(one, many, atol=1e-5)


def test_what_cannot_be_blocked_is_an_error(llama):
    with pytest.raises(PositionError, match="No edge to block"):
        knockout(llama, PROMPT, METRIC, queries=[2], keys=[5])
    with pytest.raises(PositionError, match="Position 9 is outside"):
        knockout(llama, PROMPT, METRIC, queries="last", keys=[9])
    with pytest.raises(PositionError, match="keys has 1 lists of positions for 2 prompts"):
        knockout(llama, PROMPTS[:2], METRIC, queries="last", keys=[[1]])
    with pytest.raises(DataError, match="window of 4 layers does not fit a model of 3"):
        knockout(llama, PROMPT, METRIC, queries="last", keys=[1], window=4)
    with pytest.raises(DataError, match=r"layers \[\[3\]\] cannot be blocked"):
        knockout(llama, PROMPT, METRIC, queries="last", keys=[1], layers=[[3]])
    with pytest.raises(DataError, match=r"Heads \[4\]"):
        knockout(llama, PROMPT, METRIC, queries="last", keys=[1], heads=[4])
    with pytest.raises(MetricError, match="2 metrics were given for 1 prompts"):
        knockout(llama, PROMPT, [METRIC, METRIC], queries="last", keys=[1])


def test_a_result_survives_the_disk(llama, tmp_path):
    result = knockout(llama, PROMPTS, METRIC, queries="last", keys=[2])
    result.save(tmp_path / "r.zarr")
    assert wb.Result.load(tmp_path / "r.zarr").data.identical(result.data)
