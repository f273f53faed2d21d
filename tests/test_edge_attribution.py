"""Edge attribution against finite differences of a hand-written edge patch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attribution_parts import (
    CLEAN,
    CORRUPT,
    FINAL,
    LENGTH,
    METRIC,
    MORE_CLEAN,
    MORE_CORRUPT,
    PARTS,
    close,
    difference,
    estimated_change,
    in_double,
    is_edge,
    read,
    small,
)

from workbench.errors import SiteError
from workbench.patching.attribution import attribution
from workbench.patching.edge_attribution import edges
from workbench.patching.gradients import Forward, integrated


def captured(model, ids, inputs=(), outputs=()):
    """What modules were given or gave in one plain forward, by path."""
    found, handles = {}, []
    for path in inputs:

        def pre(_m, args, kwargs, path=path):
            found[path] = (args[0] if args else kwargs["hidden_states"]).detach().reshape(LENGTH, -1)

        handles.append(model.hf.get_submodule(path).register_forward_pre_hook(pre, with_kwargs=True))
    for path in outputs:

        def post(_m, _args, output, path=path):
            found[path] = (output if torch.is_tensor(output) else output[0]).detach().reshape(LENGTH, -1)

        handles.append(model.hf.get_submodule(path).register_forward_hook(post))
    with torch.no_grad():
        model.hf(input_ids=torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    return found


def told(model, receiver, change):
    """The metric where the input of one norm, and nothing else, is changed: a hand-written edge patch."""

    def add(_module, args):
        return ((args[0].reshape(LENGTH, -1) + change).reshape(args[0].shape),)

    handle = model.hf.get_submodule(receiver).register_forward_pre_hook(add)
    with torch.no_grad():
        logits = model.hf(input_ids=torch.tensor([CORRUPT]), use_cache=False).logits
    handle.remove()
    return float(difference(logits[:, -1]))


def changes_of_senders(model, family):
    """name -> [position, d_model] difference of what each sender adds, worked out from the weights."""
    blocks, norm, out, _, mlp, behind = PARTS[family]
    n = range(model.n_layers)
    wanted = [f"{blocks}.0.{norm}", *[f"{blocks}.{i}.{out}" for i in n]]
    outputs = [f"{blocks}.{i}.{part}" for i in n for part in (out, mlp)]
    source_in, base_in = (captured(model, ids, inputs=wanted) for ids in (CLEAN, CORRUPT))
    source_out, base_out = (captured(model, ids, outputs=outputs) for ids in (CLEAN, CORRUPT))
    first = f"{blocks}.0.{norm}"
    changes = {"input": source_in[first] - base_in[first]}
    for layer in n:
        path = f"{blocks}.{layer}.{out}"
        weight = model.hf.get_submodule(path).weight.detach()
        weight = weight if family == "gpt2" else weight.T  # Conv1D is stored [in, out]
        delta = (source_in[path] - base_in[path]).unflatten(-1, (model.n_heads, -1))
        for head in range(model.n_heads):
            rows = weight.unflatten(0, (model.n_heads, -1))[head]
            change = delta[:, head] @ rows
            if behind is not None:
                after, at, h = model.hf.get_submodule(f"{blocks}.{layer}.{behind}"), base_out[path], 1e-3
                with torch.no_grad():
                    change = (after(at + h * change) - after(at - h * change)) / (2 * h)
            changes[f"a{layer}.h{head}"] = change
        changes[f"m{layer}"] = source_out[f"{blocks}.{layer}.{mlp}"] - base_out[f"{blocks}.{layer}.{mlp}"]
    return changes


def test_edges_equal_finite_differences_of_a_hand_written_edge_patch(family):
    model = in_double(family)
    step = small(model)
    blocks, before_attention, _, before_mlp, _, _ = PARTS[family]
    norms = {f"a{i}": f"{blocks}.{i}.{before_attention}" for i in range(3)}
    norms |= {f"m{i}": f"{blocks}.{i}.{before_mlp}" for i in range(3)}
    norms["logits"] = FINAL.get(family, "model.norm")
    result = edges(model, CLEAN, CORRUPT, difference, control=False)
    score = result.data["score"].isel(pair=0)
    changes = changes_of_senders(model, family)
    assert set(changes) == set(score["sender"].values) and set(norms) == set(score["receiver"].values)
    ours, expected = [], []
    for sender, change in changes.items():
        for receiver, norm in norms.items():
            value = float(score.sel(sender=sender, receiver=receiver))
            if not is_edge(sender, receiver, family == "neox"):
                assert np.isnan(value), (sender, receiver)
                continue
            ours.append(value)
            values = [told(model, norm, sign * step * change) for sign in (1, -1)]
            expected.append((values[0] - values[1]) / (2 * step))
    assert close(ours, expected)
    assert result.summary["n_edges"] == len(ours)


@pytest.mark.parametrize("heads", [True, False])
def test_the_senders_of_a_receiver_add_up_to_the_change_of_its_stream(family, heads):
    model = in_double(family)
    if heads and family == "gemma2":
        return  # a head behind a norm is a first-order part, so the parts do not add up to a finite change
    data = edges(model, CLEAN, CORRUPT, difference, heads=heads, control=False).data
    end = attribution(model, CLEAN, CORRUPT, difference, kind="resid_post", layers=[2], control=False).data
    total = float(data["score"].sel(receiver="logits").sum())
    assert total == pytest.approx(float(estimated_change(end).sum()), rel=1e-5)


def test_heads_add_up_to_their_attention(llama):
    data = edges(llama, CLEAN, CORRUPT, METRIC, integrate=2).data["effect"].isel(pair=0)
    whole = edges(llama, CLEAN, CORRUPT, METRIC, heads=False, integrate=2).data["effect"].isel(pair=0)
    for layer in range(3):
        heads = data.sel(sender=[f"a{layer}.h{h}" for h in range(4)]).sum("sender", skipna=False)
        assert np.allclose(heads, whole.sel(sender=f"a{layer}"), atol=1e-4, equal_nan=True)
    assert np.allclose(data.sel(sender="m1"), whole.sel(sender="m1"), atol=1e-5, equal_nan=True)


def test_integrated_edges_take_the_gradient_between_the_inputs(family):
    """With one step, half-way."""
    model = in_double(family)
    step, first = small(model), "blocks.0.hook_resid_pre"
    blocks, norm, *_ = PARTS[family]
    source, base = (read(model, ids, first) for ids in (CLEAN, CORRUPT))
    with model.edit({first: lambda _: (source + base)[None] / 2}):
        values = [told(model, f"{blocks}.1.{norm}", sign * step * (source - base)) for sign in (1, -1)]
    data = edges(model, CLEAN, CORRUPT, difference, integrate=1, control=False).data
    ours = data["score"].sel(sender="input", receiver="a1").item()
    assert close([ours], [(values[0] - values[1]) / (2 * step)])


def test_blocks_with_one_norm_for_both_have_one_receiver():
    from transformers import AutoModelForCausalLM, GPTJConfig

    from workbench.model.language_model import LanguageModel

    torch.manual_seed(0)
    config = GPTJConfig(vocab_size=120, n_embd=48, n_layer=2, n_head=4, n_positions=64, rotary_dim=8)
    model = LanguageModel(AutoModelForCausalLM.from_config(config).double(), None, name="tiny-gptj")
    data = edges(model, CLEAN, CORRUPT, difference, control=False).data
    assert list(data["receiver"].values) == ["a0+m0", "a1+m1", "logits"]
    change, step = read(model, CLEAN, "blocks.0.hook_mlp_out"), 1e-2
    change = change - read(model, CORRUPT, "blocks.0.hook_mlp_out")
    values = [told(model, "transformer.h.1.ln_1", sign * step * change) for sign in (1, -1)]
    ours = data["score"].sel(sender="m0", receiver="a1+m1").item()
    assert ours == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-3)
    assert np.isnan(data["score"].sel(sender="m0", receiver="a0+m0")).all()


def test_edges_of_several_pairs_have_intervals_and_a_control(llama):
    result = edges(llama, MORE_CLEAN, MORE_CORRUPT, METRIC)
    data = result.data
    edge = np.isfinite(data["effect"].isel(pair=0).values)
    for name in ("effect_low", "effect_high", "p_value", "mean_effect"):
        assert (np.isfinite(data[name].values) == edge).all(), name
    single = edges(llama, MORE_CLEAN[1], MORE_CORRUPT[1], METRIC, control=False).data
    assert np.allclose(data["effect"].sel(pair=1), single["effect"].isel(pair=0), atol=1e-4, equal_nan=True)
    other = edges(llama, MORE_CLEAN[2], MORE_CORRUPT[1], METRIC, control=False).data["score"].isel(pair=0)
    span = float(data["clean_metric"][1] - data["corrupt_metric"][1])
    assert np.allclose(data["control_effect"].sel(pair=1), other / span, atol=1e-4, equal_nan=True)
    strongest = result.summary["strongest"]
    value = data["mean_effect"].sel(sender=strongest["sender"], receiver=strongest["receiver"])
    assert abs(float(value)) == pytest.approx(float(np.abs(data["mean_effect"]).max()))
    assert result.summary["n_pairs"] == 3 and strongest["effect"] == pytest.approx(float(value), abs=1e-4)


def test_a_stream_that_is_not_a_sum_has_no_edges(llama):
    llama.sites()
    llama.catalog.drop(["hook_attn_out", "hook_mlp_out", "hook_resid_mid"], "its blocks scale their outputs")
    with pytest.raises(SiteError, match="scale their outputs"):
        edges(llama, CLEAN, CORRUPT, METRIC)


def test_a_norm_that_does_not_read_the_stream_is_an_error(llama):
    for layer in llama.hf.model.layers:
        layer.input_layernorm.register_forward_pre_hook(lambda _m, args: (2 * args[0],))
    with pytest.raises(SiteError, match="a0 does not read the stream"):
        edges(llama, CLEAN, CORRUPT, METRIC)


def test_gradients_of_many_inputs_are_the_mean_of_each(llama):
    """`integrated` against single runs with that input."""
    points = llama.resolve("blocks.1.hook_mlp_out")
    ids = llama.batch([CORRUPT]).ids
    metric = METRIC.resolve(llama)
    ends = tuple(read(llama, t, "blocks.0.hook_resid_pre") for t in (CORRUPT, CLEAN))
    found = integrated(llama, ids, points, metric, ends, 4)["blocks.1.hook_mlp_out"]
    each = [
        Forward(
            llama, ids, points, probed=[points[0].name], inputs=(ends[0] + f * (ends[1] - ends[0]))[None]
        ).gradients(metric)[points[0].name][0]
        for f in (1 / 8, 3 / 8, 5 / 8, 7 / 8)
    ]
    assert torch.allclose(found, torch.stack(each).mean(0), atol=1e-5)
