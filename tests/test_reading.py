"""Reading: invariants 1, 2 and 6 of the design, and every site against an independent source."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from conftest import hooks_left, tiny_model
from transformer_lens.model_bridge.sources import build_bridge_from_module

from workbench.errors import SiteError
from workbench.model.tokens import from_ids

ROWS = [[5, 9, 30, 41, 22], [7, 8, 9], [50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60]]


@pytest.mark.parametrize("attention", ["its own", "eager"])
@pytest.mark.parametrize("rows", [ROWS, ROWS[2:]], ids=["padded", "single"])
def test_reading_every_site_leaves_the_logits_bit_equal(family, attention, rows):
    model = tiny_model(family)
    if attention == "eager":
        model.hf.set_attn_implementation(attention)
    before = model.config._attn_implementation
    batch = from_ids(model, rows)
    plain = model.forward(batch).logits
    with model.hooks(read=model.sites()) as seen:
        hooked = model.forward(batch).logits
    assert torch.equal(plain, hooked)
    assert torch.equal(model.forward(batch).logits, plain)
    assert model.config._attn_implementation == before
    assert len(seen.calls("unembed.hook_out")) == 1
    assert hooks_left(model) == 0


def test_every_site_equals_what_transformer_bridge_caches(model):
    hf = model.hf
    bridge = build_bridge_from_module(
        copy.deepcopy(hf), type(hf).__name__, hf_config=hf.config, tokenizer=None
    )
    with torch.no_grad():
        _, cache = bridge.run_with_cache(torch.tensor(ROWS[2:]))
    with model.hooks(read=model.sites()) as seen:
        model.forward(from_ids(model, ROWS[2:]))
    compared = [name for name in model.sites() if name in cache]
    for name in compared:
        assert seen[name].shape == cache[name].shape, name
        assert (seen[name] - cache[name]).abs().max() < 1e-4, name
    left_out = {model.catalog[name].part for name in model.sites() if name not in compared}
    assert left_out <= {"attn.hook_pattern"}  # the bridge shows none on OPT; compared with eager below


def test_attention_patterns_equal_those_of_eager_attention(model):
    own = model.config._attn_implementation
    model.hf.set_attn_implementation("eager")
    batch = from_ids(model, ROWS)
    with torch.no_grad():
        eager = model.hf(**batch.inputs(), output_attentions=True, use_cache=False).attentions
    model.hf.set_attn_implementation(own)
    with model.hooks(read="blocks.*.attn.hook_pattern") as seen:
        model.forward(batch)
    for layer, pattern in enumerate(eager):
        ours = seen[f"blocks.{layer}.attn.hook_pattern"]
        for row, length in enumerate(batch.lengths):  # rows of padding have no meaning on either side
            difference = ours[row, :, :length, :length] - pattern[row, :, :length, :length]
            assert difference.abs().max() < 1e-5
        assert torch.allclose(ours[0, :, : batch.lengths[0]].sum(-1), torch.ones(()), atol=1e-5)


def test_embeddings_and_added_outputs_sum_to_the_last_stream(model):
    with model.hooks(read=model.sites()) as seen:
        model.forward(from_ids(model, ROWS))
    total = seen["hook_embed"] + (seen["hook_pos_embed"] if "hook_pos_embed" in model.sites() else 0)
    for layer in range(model.n_layers):
        total = total + seen[f"blocks.{layer}.hook_attn_out"] + seen[f"blocks.{layer}.hook_mlp_out"]
    last = seen[f"blocks.{model.n_layers - 1}.hook_resid_post"]
    assert (total - last).norm() / last.norm() < 1e-4


SECOND_NORM = {
    "llama": "post_attention_layernorm",
    "qwen3": "post_attention_layernorm",
    "mixtral": "post_attention_layernorm",
    "gemma2": "pre_feedforward_layernorm",
    "gpt2": "ln_2",
    "opt": "final_layer_norm",
}


@pytest.mark.parametrize("family", sorted(SECOND_NORM))
def test_resid_mid_is_what_the_second_norm_is_given(family):
    model = tiny_model(family)
    given = []
    handle = (
        model.block(1)
        .get_submodule(SECOND_NORM[family])
        .register_forward_pre_hook(lambda _m, args: given.append(args[0]))
    )
    with model.hooks(read="blocks.1.hook_resid_mid") as seen:
        model.forward(from_ids(model, ROWS[:1]))
    handle.remove()
    assert torch.equal(seen["blocks.1.hook_resid_mid"].reshape(given[-1].shape), given[-1])


def test_sequential_neox_has_a_resid_mid_and_parallel_neox_says_why_not():
    sequential = tiny_model("neox", use_parallel_residual=False)
    with sequential.hooks(
        read=["blocks.0.hook_resid_mid", "blocks.0.hook_mlp_out", "blocks.0.hook_resid_post"]
    ) as s:
        sequential.forward(from_ids(sequential, ROWS[:1]))
    total = s["blocks.0.hook_resid_mid"] + s["blocks.0.hook_mlp_out"]
    assert torch.allclose(total, s["blocks.0.hook_resid_post"], atol=1e-5)
    with pytest.raises(SiteError, match="parallel"):
        tiny_model("neox").resolve("blocks.0.hook_resid_mid")


def test_a_mixture_of_experts_says_why_it_has_no_neurons():
    with pytest.raises(SiteError, match="routed experts"):
        tiny_model("mixtral").resolve("blocks.1.mlp.hook_post")


def test_a_post_norm_model_loses_the_sites_that_would_lie_and_says_why():
    model = tiny_model("opt", do_layer_norm_before=False)
    assert not [s for s in model.sites() if s.endswith("hook_attn_out")]
    with pytest.raises(SiteError, match="not what is added to the stream"):
        model.resolve("blocks.0.hook_attn_out")
    assert "blocks.0.hook_resid_post" in model.sites()


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_gives_the_same_activations_as_one_by_one(model, side):
    sites = [s for s in model.sites() if "pattern" not in s]
    batch = from_ids(model, ROWS, side=side)
    with model.hooks(read=sites) as together:
        model.forward(batch)
    for row, ids in enumerate(ROWS):
        columns = batch.columns(row, range(len(ids)))
        with model.hooks(read=sites) as alone:
            model.forward(from_ids(model, [ids]))
        for name in sites:
            difference = together[name][row, columns] - alone[name][0]
            scale = alone[name].abs().max().clamp(min=1)
            assert difference.abs().max() / scale < 1e-4, name


def test_grouped_queries_have_as_many_key_heads_as_the_config_says(llama):
    with llama.hooks(read=["blocks.0.attn.hook_q", "blocks.0.attn.hook_k", "blocks.0.attn.hook_z"]) as seen:
        llama.forward(from_ids(llama, ROWS[:1]))
    assert seen["blocks.0.attn.hook_q"].shape == (1, 5, 4, 12)
    assert seen["blocks.0.attn.hook_k"].shape == (1, 5, 2, 12)
    assert seen["blocks.0.attn.hook_z"].shape == (1, 5, 4, 12)


def test_reads_keep_one_value_per_call_of_the_model(llama):
    batch = from_ids(llama, ROWS[:1])
    with llama.hooks(read="hook_embed") as seen:
        llama.forward(batch)
        llama.forward(batch)
    assert len(seen.calls("hook_embed")) == 2
    with pytest.raises(Exception, match="2 calls"):
        seen["hook_embed"]


def test_tiny_models_of_all_families_are_known(family):
    assert tiny_model(family).catalog.map.architecture == type(tiny.hf_model(family)).__name__
