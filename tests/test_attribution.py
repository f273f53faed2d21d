"""Attribution patching against finite differences of plain hooked forwards, closed forms and exact sweeps."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from conftest import hooks_left, tiny_model

import workbench as wb
from workbench.errors import DataError, HookError, MetricError, ModelError, PromptError, SiteError
from workbench.patching.attribution import ATTRIBUTED, attribution
from workbench.patching.edge_attribution import edges
from workbench.patching.gradients import Forward, integrated
from workbench.patching.recheck import agreement
from workbench.patching.sweep import KINDS, sweep

CLEAN = [50, 51, 52, 53, 54, 55, 56, 57, 58, 59]
CORRUPT = [50, 51, 60, 53, 54, 55, 61, 57, 58, 59]
LENGTH = len(CLEAN)
METRIC = wb.LogitDifference(7, 9)


def difference(logits):
    """The same metric in the logits' own precision."""
    return logits[:, 7] - logits[:, 9]


def in_double(family, **overrides):
    return doubled(tiny_model(family, **overrides))


def doubled(model):
    if model.hf.config.model_type == "mixtral":  # grouped matrix products know no double precision
        model.hf.set_experts_implementation("eager")
    model.hf.double()
    return model


def small(model):
    """A step for central differences: above the noise of norms that work in single precision, below a ReLU's kinks."""
    return 1e-6 if model.hf.config.model_type == "opt" else 1e-2


def close(ours, expected, rtol=1e-3):
    """Equal up to `rtol` of the largest."""
    assert np.abs(expected).max() > 1e-6, "an oracle of zeros tests nothing"
    return np.abs(np.asarray(ours) - np.asarray(expected)).max() < rtol * np.abs(expected).max()


def read(model, ids, site):
    with model.hooks(read=[site]) as session:
        model.logits(ids)
    return session[site][0].clone()


def metric_of_rows(model, site, rows):
    """The metric with the activation of each row at a site replaced, in one whole hooked forward."""
    with model.edit({site: lambda _: rows}):
        return difference(model.logits([CORRUPT] * len(rows))[:, -1]).numpy()


def cells_of(kind, by, n_heads):
    if kind not in ("z", "q", "k", "v"):
        return [(p,) for p in range(LENGTH)]
    if by == "auto":
        return [(slice(None), h) for h in range(n_heads)]
    return [(p, h) for h in range(n_heads) for p in range(LENGTH)]


def slopes(model, kind, layer, by="auto"):
    """Central differences of the exact patch along base + t (source - base), one for each cell."""
    step = small(model)
    site = f"blocks.{layer}.{KINDS[kind]}"
    source, base = read(model, CLEAN, site), read(model, CORRUPT, site)
    cells = cells_of(kind, by, base.shape[1])
    rows = base.repeat(2 * len(cells), *[1] * base.ndim)
    for i, at in enumerate(cells):
        rows[2 * i][at] += step * (source - base)[at]
        rows[2 * i + 1][at] -= step * (source - base)[at]
    values = metric_of_rows(model, site, rows)
    return (values[::2] - values[1::2]) / (2 * step)


def estimated_change(data, suffix=""):
    return data[f"metric{suffix}"].values[0] - float(data["corrupt_metric"][0])


def test_every_kind_equals_finite_differences_of_whole_patched_forwards(family):
    model = in_double(family)
    kinds = [k for k in ATTRIBUTED if k != "resid_mid" or family != "neox"]
    data = attribution(model, CLEAN, CORRUPT, difference, kind=kinds, control=False).data
    for kind in kinds:
        ours = estimated_change(data, f"_{kind}")
        expected = np.stack([slopes(model, kind, layer) for layer in range(model.n_layers)])
        assert close(ours, expected), kind


@pytest.mark.parametrize("kind", ["z", "q", "k", "v"])
def test_heads_at_each_position_equal_finite_differences_and_add_up_to_the_head(family, kind):
    model = in_double(family)
    data = attribution(model, CLEAN, CORRUPT, difference, kind=kind, by="head_position", control=False).data
    ours = estimated_change(data)
    expected = slopes(model, kind, 1, by="head_position")
    assert close(ours[1].reshape(-1), expected)
    whole = attribution(model, CLEAN, CORRUPT, difference, kind=kind, control=False).data
    assert np.allclose(ours.sum(-1), estimated_change(whole))


def test_grouped_experts_give_the_gradients_of_single_ones():
    grouped, single = tiny_model("mixtral"), tiny_model("mixtral")
    single.hf.set_experts_implementation("eager")
    a, b = (attribution(m, CLEAN, CORRUPT, METRIC, kind="attn_out").data["effect"] for m in (grouped, single))
    assert close(a, b, rtol=1e-4)


def test_parallel_blocks_have_no_resid_mid():
    with pytest.raises(SiteError, match="parallel"):
        attribution(tiny_model("neox"), CLEAN, CORRUPT, METRIC, kind="resid_mid")


def test_one_kind_alone_gives_what_several_together_give(llama):
    several = attribution(llama, CLEAN, CORRUPT, METRIC, kind=["z", "resid_post", "k"]).data
    for kind, dims in (("z", "head"), ("resid_post", "position"), ("k", "kv_head")):
        one = attribution(llama, CLEAN, CORRUPT, METRIC, kind=kind).data
        assert several[f"effect_{kind}"].dims == ("pair", "layer", dims)
        for name in ("effect", "control_effect", "metric"):
            assert np.allclose(several[f"{name}_{kind}"], one[name], atol=1e-6)


def test_a_small_enough_source_gives_the_exact_effect(model):
    """Along a short step the metric is linear: then the estimate is the sweep."""
    table = doubled(model).hf.get_input_embeddings().weight
    with torch.no_grad():
        for token, other in ((60, 52), (61, 56)):
            table[token] = table[other] + 1e-3 * (table[token] - table[other])
    kinds = ["resid_pre", "attn_out", "z"]
    ours = attribution(model, CLEAN, CORRUPT, difference, kind=kinds, control=False).data
    for kind in kinds:
        exact = sweep(model, CLEAN, CORRUPT, difference, kind=kind, control=False).data
        assert close(ours[f"effect_{kind}"], exact["effect"].values, rtol=1e-2), kind


def test_the_direction_decides_where_the_gradient_is_taken(llama):
    noising = attribution(llama, CLEAN, CORRUPT, METRIC, kind="z", direction="noising", control=False).data
    swapped = attribution(llama, CORRUPT, CLEAN, METRIC, kind="z", control=False).data
    assert np.allclose(noising["metric"], swapped["metric"], atol=1e-6)
    assert np.allclose(noising["clean_metric"], swapped["corrupt_metric"], atol=1e-6)
    denoising = attribution(llama, CLEAN, CORRUPT, METRIC, kind="z", control=False).data
    assert not np.allclose(noising["effect"], denoising["effect"], rtol=0.05)


# -- integrated gradients ------------------------------------------------------------------------------


def test_integrated_gradients_add_up_to_the_difference_of_the_metrics_the_better_the_more_steps(family):
    """Where the metric is continuous in the input: a mixture must ask all its experts."""
    model = tiny_model(family, **({"num_experts_per_tok": 4} if family == "mixtral" else {}))
    errors = []
    for steps in (1, 4, 64):
        run = attribution(model, CLEAN, CORRUPT, METRIC, layers=[0], integrate=steps, control=False)
        data = run.data
        change = float((data["clean_metric"] - data["corrupt_metric"])[0])
        errors.append(abs(float((data["effect"].sum() - 1) * change)))
    assert errors[2] < 2e-3 and errors[2] < 0.2 * max(errors[:2])


def test_integrated_gradients_are_the_mean_over_midpoints_of_whole_forwards(family):
    """The average of finite differences at z, with the stream into block 0 set by a plain edit."""
    model = in_double(family)
    first, site, step = "blocks.0.hook_resid_pre", "blocks.1.attn.hook_z", small(model)
    ends = [read(model, ids, first) for ids in (CORRUPT, CLEAN)]
    change = read(model, CLEAN, site) - read(model, CORRUPT, site)
    expected = np.zeros(model.n_heads)
    for fraction in (1 / 6, 1 / 2, 5 / 6):
        inputs = ends[0] + fraction * (ends[1] - ends[0])
        for head in range(model.n_heads):
            values = []
            for sign in (1, -1):

                def put(z, head=head, sign=sign):
                    z[:, :, head] += sign * step * change[:, head]
                    return z

                with model.edit({first: lambda _, inputs=inputs: inputs[None], site: put}):
                    values.append(float(difference(model.logits(CORRUPT)[:, -1])))
            expected[head] += (values[0] - values[1]) / (2 * step) / 3
    data = attribution(
        model, CLEAN, CORRUPT, difference, kind="z", layers=[1], integrate=3, control=False
    ).data
    assert close(estimated_change(data)[0], expected)


def test_how_many_steps_go_together_changes_nothing(llama):
    one, all_ = (
        attribution(llama, CLEAN, CORRUPT, METRIC, kind="z", integrate=7, tokens_per_backward=n).data
        for n in (1, 4096)
    )
    assert np.allclose(one["effect"], all_["effect"], atol=1e-4)


# -- recheck -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["resid_pre", "resid_post", "mlp_out", "z"])
def test_rechecked_cells_are_those_of_the_sweep_and_the_strongest(model, kind):
    swept = sweep(model, CLEAN, CORRUPT, METRIC, kind=kind, control=False).data["effect"].values
    result = attribution(model, CLEAN, CORRUPT, METRIC, kind=kind, recheck=4, control=False)
    exact, effect = result.data["exact_effect"].values, np.abs(result.data["effect"].values)
    done = np.isfinite(exact)
    assert done.sum() == 4 and effect[done].min() >= effect[~done].max()
    assert np.allclose(exact[done], swept[done], atol=1e-3 * np.abs(swept).max())
    whole = attribution(model, CLEAN, CORRUPT, METRIC, kind=kind, recheck="all", control=False)
    assert np.allclose(whole.data["exact_effect"], swept, atol=1e-3 * np.abs(swept).max())
    assert hooks_left(model) == 0


@pytest.mark.parametrize("kind", ["q", "v"])
def test_rechecked_heads_at_a_position_equal_whole_forwards(family, kind):
    model = in_double(family)
    result = attribution(
        model,
        CLEAN,
        CORRUPT,
        difference,
        kind=kind,
        by="head_position",
        layers=[1],
        recheck="all",
        control=False,
    )
    site = f"blocks.1.{KINDS[kind]}"
    source, base = read(model, CLEAN, site), read(model, CORRUPT, site)
    cells = cells_of(kind, "head_position", base.shape[1])
    rows = base.repeat(len(cells), 1, 1, 1)
    for i, at in enumerate(cells):
        rows[i][at] = source[at]
    ends = float(result.data["clean_metric"][0]), float(result.data["corrupt_metric"][0])
    expected = (metric_of_rows(model, site, rows) - ends[1]) / (ends[0] - ends[1])
    assert close(result.data["exact_effect"].values.reshape(-1), expected)


def test_the_summary_has_the_correlations_over_cells_whose_patch_changes_something(llama):
    result = attribution(llama, CLEAN, CORRUPT, METRIC, recheck="all")
    swept = sweep(llama, CLEAN, CORRUPT, METRIC, control=False).data["effect"].values.ravel()
    ours = result.data["effect"].values.ravel()
    moved = ours != 0  # positions before the first changed token are bit-equal in both runs
    found = result.summary["recheck"]
    assert found["n"] == moved.sum() < ours.size
    assert found["spearman"] == pytest.approx(scipy.stats.spearmanr(ours[moved], swept[moved])[0], abs=2e-2)
    assert found["pearson"] == pytest.approx(scipy.stats.pearsonr(ours[moved], swept[moved])[0], abs=1e-3)
    assert found["rechecked"].startswith("30 of 30 cells")


def test_agreement_has_a_null_and_an_interval():
    rng = np.random.default_rng(0)
    exact = rng.normal(size=(1, 40)) + 0.1 * rng.normal(size=(6, 40))
    good = agreement(exact**3, exact, seed=0)
    assert good["spearman"] > 0.95 and good["spearman_p"] < 0.01
    assert good["spearman_interval"][0] <= good["spearman"] + 0.02
    bad = [agreement(rng.normal(size=(1, 40)), exact[:1], seed=i)["spearman_p"] for i in range(200)]
    assert 0.01 <= np.mean(np.array(bad) < 0.05) <= 0.10
    assert agreement(exact[:, :2], exact[:, :2], seed=0)["spearman"] is None
    assert agreement(np.ones((1, 5)), exact[:1, :5], seed=0)["pearson"] is None


# -- pairs, control, errors ----------------------------------------------------------------------------

MORE_CLEAN = [CLEAN, [*CLEAN[:2], 70, *CLEAN[3:]], [*CLEAN[:2], 71, *CLEAN[3:]]]
MORE_CORRUPT = [CORRUPT, [*CLEAN[:2], 72, *CLEAN[3:]], [*CLEAN[:2], 73, *CLEAN[3:]]]


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


# -- edges ---------------------------------------------------------------------------------------------

PARTS = {
    # block list, norm before attention, output projection, norm before the MLP, MLP, norm behind the attention
    "llama": ("model.layers", "input_layernorm", "self_attn.o_proj", "post_attention_layernorm", "mlp", None),
    "gpt2": ("transformer.h", "ln_1", "attn.c_proj", "ln_2", "mlp", None),
    "neox": ("gpt_neox.layers", "input_layernorm", "attention.dense", "post_attention_layernorm", "mlp", None),
    "gemma2": (
        "model.layers", "input_layernorm", "self_attn.o_proj", "pre_feedforward_layernorm",
        "post_feedforward_layernorm", "post_attention_layernorm",
    ),
    "opt": ("model.decoder.layers", "self_attn_layer_norm", "self_attn.out_proj", "final_layer_norm", "fc2", None),
}  # fmt: skip
PARTS |= {"qwen3": PARTS["llama"], "mixtral": PARTS["llama"]}
FINAL = {
    "gpt2": "transformer.ln_f", "neox": "gpt_neox.final_layer_norm", "opt": "model.decoder.final_layer_norm",
}  # fmt: skip


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


def is_edge(sender, receiver, parallel):
    """Written out once more: what comes before what."""
    if sender == "input" or receiver == "logits":
        return True
    s, r = int(sender[1:].split(".")[0]), int(receiver[1:])
    within = sender[0] == "a" and receiver[0] == "m" and not parallel
    return s < r or (s == r and within)


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
