"""Editing: out of place, fire-checked, removed on every way out (invariants 4 and 5)."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import hooks_left, tiny_model
from transformer_lens.model_bridge.sources import build_bridge_from_module

from workbench.errors import HookError, SiteError
from workbench.model.tokens import from_ids

ROW = [50, 51, 52, 53, 54, 55, 56, 57]


def logits(model, rows=(ROW,)):
    return model.forward(from_ids(model, list(rows))).logits


@pytest.mark.parametrize(
    "part", ["hook_resid_pre", "hook_resid_post", "attn.hook_z", "attn.hook_v", "hook_mlp_out"]
)
def test_an_edit_does_what_transformer_bridge_hooks_do(model, part):
    name = f"blocks.1.{part}"
    hf = model.hf
    bridge = build_bridge_from_module(
        copy.deepcopy(hf), type(hf).__name__, hf_config=hf.config, tokenizer=None
    )
    edit = lambda x: x * 0.5 + 0.3  # noqa: E731
    with torch.no_grad():
        expected = bridge.run_with_hooks(
            torch.tensor([ROW]),
            fwd_hooks=[(name, lambda x, hook: edit(x))],
            return_type="logits",
        )
    with model.edit({name: edit}):
        ours = logits(model)
    assert (ours - expected).abs().max() < 1e-4
    assert (ours - logits(model)).abs().max() > 1e-3  # and it does something


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen3", "mixtral", "opt"])
def test_editing_resid_mid_reaches_both_the_mlp_and_the_skip_branch(family):
    model = tiny_model(family)
    shift = torch.linspace(-1, 1, model.d_model)
    sites = ["blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out", "blocks.1.hook_resid_post"]
    with model.hooks(read=sites, edit={"blocks.1.hook_resid_mid": lambda x: x + shift}) as seen:
        shifted = logits(model)
    total = seen["blocks.1.hook_resid_mid"] + seen["blocks.1.hook_mlp_out"]
    assert torch.allclose(total, seen["blocks.1.hook_resid_post"], atol=1e-4)
    with model.edit({"blocks.1.hook_attn_out": lambda x: x + shift}):  # adding to it is the same thing
        assert torch.allclose(logits(model), shifted, atol=1e-4)


def test_an_edited_pattern_gives_pattern_times_values(model):
    def only_first(pattern):
        new = torch.zeros_like(pattern)
        new[..., 0] = 1
        return new

    sites = ["blocks.1.attn.hook_v", "blocks.1.attn.hook_z"]
    with model.hooks(read=sites, edit={"blocks.1.attn.hook_pattern": only_first}) as seen:
        logits(model)
    values = seen["blocks.1.attn.hook_v"].repeat_interleave(model.n_heads // model.n_kv_heads, dim=2)
    expected = values[:, :1].expand_as(seen["blocks.1.attn.hook_z"])
    assert torch.allclose(seen["blocks.1.attn.hook_z"], expected, atol=1e-5)


def test_an_unchanged_pattern_gives_the_same_logits(model):
    with model.edit({"blocks.*.attn.hook_pattern": lambda p: p}):
        edited = logits(model)
    assert torch.allclose(edited, logits(model), atol=1e-4)


def test_an_edit_that_writes_into_its_argument_changes_nothing_else(llama):
    def scribble(x):
        return x.zero_()

    with llama.hooks(read="blocks.0.hook_resid_post") as plain:
        logits(llama)
    with llama.hooks(read="blocks.0.hook_resid_post", edit={"blocks.1.hook_resid_pre": scribble}) as seen:
        logits(llama)
    assert torch.equal(seen["blocks.0.hook_resid_post"], plain["blocks.0.hook_resid_post"])


def test_a_read_sees_the_edited_value(llama):
    with llama.hooks(read="blocks.1.hook_mlp_out", edit={"blocks.1.hook_mlp_out": torch.zeros_like}) as seen:
        logits(llama)
    assert not seen["blocks.1.hook_mlp_out"].any()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: None, "returned NoneType"),
        (lambda x: x[:, :1], "returned shape"),
        (lambda x: 3, "returned int"),
    ],
)
def test_an_edit_that_returns_something_else_is_an_error(llama, function, message):
    with pytest.raises(HookError, match=message), llama.edit({"blocks.0.hook_resid_post": function}):
        logits(llama)
    assert hooks_left(llama) == 0


def test_a_hook_that_did_not_fire_is_an_error(llama):
    with (
        pytest.raises(HookError, match=r"2 of 2 hooks did not fire: .*hook_z"),
        llama.hooks(read="blocks.0.attn.hook_z", edit={"blocks.1.hook_mlp_out": lambda x: x}),
    ):
        pass


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blocks.1.hook_resid_pots", "Did you mean 'blocks.1.hook_resid_post'"),
        ("blocks.40.hook_resid_post", r"has blocks 0–2. Did you mean 'blocks.2.hook_resid_post'"),
        ("blocks.*.hook_nothing", "does not exist"),
        ("blocks.{0,7}.attn.hook_z", "blocks 0–2"),
    ],
)
def test_a_misspelt_site_is_an_error_that_names_the_nearest(llama, name, message):
    with pytest.raises(SiteError, match=message), llama.edit({name: lambda x: x}):
        logits(llama)
    assert hooks_left(llama) == 0


@pytest.mark.parametrize("problem", [RuntimeError, KeyboardInterrupt])
def test_hooks_are_removed_and_attention_restored_after_an_exception(llama, problem):
    before = llama.config._attn_implementation

    def fail(_x):
        raise problem

    with (
        pytest.raises(problem),
        llama.hooks(
            read=["blocks.*.attn.hook_pattern", "blocks.0.hook_resid_mid"],
            edit={"blocks.1.hook_mlp_out": fail},
        ),
    ):
        logits(llama)
    assert hooks_left(llama) == 0
    assert llama.config._attn_implementation == before
    assert llama.hf.config._attn_implementation == before


def test_globs_braces_ranges_lists_and_aliases_name_the_same_sites(llama):
    names = lambda pattern: [s.name for s in llama.resolve(pattern)]  # noqa: E731
    posts = [f"blocks.{i}.hook_resid_post" for i in range(3)]
    assert names("blocks.*.hook_resid_post") == posts
    assert names("blocks.{0..2}.hook_resid_post") == names("blocks.{2..0}.hook_resid_post") == posts
    assert names("blocks.{0..2..2}.hook_resid_post") == [posts[0], posts[2]]
    assert names(["blocks.2.hook_out", "blocks.{0,1}.hook_out"]) == posts
    assert names("blocks.-1.hook_resid_post") == posts[-1:]
    assert names("blocks.1.attn.o.hook_in") == ["blocks.1.attn.hook_z"]


def test_positions_are_absolute_with_cache_without_and_with_left_padding(model):
    seen = {}

    def watch(key):
        def edit(x, context):
            seen.setdefault(key, []).append(torch.where(context.real, context.positions, -1))
            return x

        return edit

    rows = [[5, 9, 30], [7, 8, 9, 10, 11]]
    batch = from_ids(model, rows, side="left")
    for use_cache in (True, False):
        with model.edit({"blocks.0.hook_resid_post": watch(use_cache)}):
            model.hf.generate(
                input_ids=batch.ids, attention_mask=batch.mask, max_new_tokens=3, min_new_tokens=3,
                do_sample=False, use_cache=use_cache, pad_token_id=0,
            )  # fmt: skip
    assert seen[True][0].tolist() == [[-1, -1, 0, 1, 2], [0, 1, 2, 3, 4]]
    assert [p.tolist() for p in seen[True][1:]] == [[[3], [5]], [[4], [6]]]
    assert seen[False][-1].tolist() == [[-1, -1, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6]]
