"""Neurons: importances against one forward of the readout per neuron, silenced heads and neurons against whole runs."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from conftest import hooks_left, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from torch import nn

import workbench as wb
from workbench.errors import DataError, MetricError, ModelError, PositionError, SiteError
from workbench.model.language_model import LanguageModel
from workbench.patching import neurons_ablation
from workbench.patching.neurons import ablate_neurons, comparative, importance, top_neurons
from workbench.patching.neurons_importance import _Base
from workbench.patching.neurons_outcome import largest, overlaps
from workbench.patching.neurons_readout import AffineNorm, Readout

PROMPTS = [[50, 51, 52, 53, 54, 55], [60, 61, 62, 63], [70, 71, 72, 73, 74, 75, 76]]
ANSWERS = [7, 8, 9]
FAMILIES = ["llama", "gpt2", "neox", "gemma2", "qwen3", "opt"]
"""All tiny families but the one whose neurons live inside experts."""


@pytest.fixture(params=FAMILIES)
def dense(request) -> LanguageModel:
    return tiny_model(request.param)


def last_token(model, prompt, sites, silent=None):
    """Activations at the last token, in a whole forward; `silent`: a head whose output is zero."""

    def zero(z):
        z[:, :, silent[1]] = 0
        return z

    edit = {} if silent is None else {f"blocks.{silent[0]}.attn.hook_z": zero}
    with model.hooks(read=sites, edit=edit) as session, torch.no_grad():
        model.logits([prompt])
    return [session[site][0, -1] for site in sites]


def values_of_neurons(model, prompt, layer, silent=None):
    """The stream before the MLP writes [d], and every neuron's value [neuron, d]: columns by switching one on."""
    parts = ("hook_resid_pre", "hook_attn_out", "mlp.hook_post", "hook_mlp_out")
    pre, attn, m, out = last_token(model, prompt, [f"blocks.{layer}.{p}" for p in parts], silent)
    down = model.module(model.resolve(f"blocks.{layer}.mlp.hook_post")[0].module)
    with torch.no_grad():
        nothing = down(torch.zeros_like(m)[None])[0]
        values = down(torch.diag(m)) - nothing
        if "block.ln2_post" in model.catalog.map.paths:  # Gemma 2
            norm = model.hf.model.layers[layer].post_feedforward_layernorm
            written = values.sum(0) + nothing
            values = values * (1 + norm.weight) / (written.pow(2).mean() + norm.eps).sqrt()
            nothing = nothing * 0
    assert torch.allclose(values.sum(0) + nothing, out, atol=1e-4)
    return pre + attn, values


def frozen_readout(model, final):
    """Stream -> logits, with the final norm's variance that of `final`: written out for each kind of norm."""
    norm = model.module(model.catalog.map.paths["ln_final"])
    head = model.module(model.catalog.map.paths["unembed"])
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))

    def read(x):
        with torch.no_grad():
            if isinstance(norm, nn.LayerNorm):
                scale = (final.var(correction=0) + eps).sqrt()
                normed = (x - x.mean(-1, keepdim=True)) / scale * norm.weight + norm.bias
            else:
                gain = 1 + norm.weight if type(norm).__name__.startswith("Gemma") else norm.weight
                normed = x / (final.pow(2).mean() + eps).sqrt() * gain
            logits = head(normed)
            cap = getattr(model.config, "final_logit_softcapping", None)
            return logits if cap is None else cap * torch.tanh(logits / cap)

    return read


def brute_force(model, prompt, answer, layer, freeze, silent=None):
    """[neuron] importance: one forward of the readout for each."""
    (final,) = last_token(model, prompt, [f"blocks.{model.n_layers - 1}.hook_resid_post"])  # never silenced
    read = frozen_readout(model, final) if freeze else model.readout
    stream, values = values_of_neurons(model, prompt, layer, silent)
    before = read(stream[None])[0].double().log_softmax(-1)[answer]
    return np.array(
        [float(read((stream + v)[None])[0].double().log_softmax(-1)[answer] - before) for v in values]
    )


@pytest.mark.parametrize("freeze", [True, False])
def test_importances_are_those_of_one_readout_per_neuron(dense, freeze):
    result = importance(dense, PROMPTS, ANSWERS, freeze=freeze)
    data = result.data
    assert data["importance"].dims == ("prompt", "layer", "neuron")
    for i, layer in ((0, 0), (1, 2), (2, 1)):
        expected = brute_force(dense, PROMPTS[i], ANSWERS[i], layer, freeze)
        found = data["importance"].values[i, layer]
        assert np.abs(found - expected).max() < 2e-5
        assert np.abs(expected).max() > 1e-2
        token = result.provenance.settings["control_tokens"][i]
        assert token != ANSWERS[i]
        expected = brute_force(dense, PROMPTS[i], token, layer, freeze)
        assert np.abs(data["control_importance"].values[i, layer] - expected).max() < 2e-5
    assert hooks_left(dense) == 0


@pytest.mark.parametrize("freeze", [True, False])
def test_comparative_is_the_difference_to_a_run_without_the_head(dense, freeze):
    head = (1, 2)
    data = comparative(dense, PROMPTS, ANSWERS, head=head, control_heads=2, freeze=freeze).data
    controls = data["control_head"].values.tolist()
    assert len(controls) == 2 and 2 not in controls
    for i, layer in ((0, 1), (1, 2)):
        own = brute_force(dense, PROMPTS[i], ANSWERS[i], layer, freeze)
        without = brute_force(dense, PROMPTS[i], ANSWERS[i], layer, freeze, silent=head)
        assert np.abs(data["importance_without_head"].values[i, layer] - without).max() < 2e-5
        assert np.abs(data["comparative"].values[i, layer] - (own - without)).max() < 4e-5
        other = brute_force(dense, PROMPTS[i], ANSWERS[i], layer, freeze, silent=(1, controls[1]))
        found = data["control_comparative"].values[i, 1, layer]
        assert np.abs(found - (own - other)).max() < 4e-5
        assert np.abs(own - without).max() > 1e-3
    assert (data["comparative"].sel(layer=0) == 0).all()  # below the head
    assert (data["control_comparative"].sel(layer=0) == 0).all()
    assert np.allclose(
        data["importance"].sel(layer=0), data["importance_without_head"].sel(layer=0), atol=1e-6
    )
    assert hooks_left(dense) == 0


def test_head_scores_are_those_of_whole_forwards_and_the_strongest_head_is_taken(model):
    if "mixtral" in model.name:
        with pytest.raises(SiteError, match="routed experts"):
            comparative(model, PROMPTS, ANSWERS)
        return
    result = comparative(model, PROMPTS, ANSWERS, tokens_per_call=20)
    data = result.data
    for i, prompt in enumerate(PROMPTS):
        p = float(model.logits([prompt])[0, -1].double().softmax(-1)[ANSWERS[i]])
        assert float(data["log_p"][i]) == pytest.approx(np.log(p), abs=1e-5)
        for layer in range(model.n_layers):
            for head in range(model.n_heads):

                def zero(z, head=head):
                    z[:, :, head] = 0
                    return z

                with model.edit({f"blocks.{layer}.attn.hook_z": zero}):
                    silent = float(model.logits([prompt])[0, -1].double().softmax(-1)[ANSWERS[i]])
                found = float(data["head_score"].values[i, layer, head])
                assert found == pytest.approx((p - silent) / p, abs=1e-4)
    mean = data["head_score"].values.mean(0)
    at = np.unravel_index(mean.argmax(), mean.shape)
    assert result.summary["head"] == [int(i) for i in at]
    assert result.summary["head_rank"] == f"1 of {mean.size}"
    assert data.attrs["silenced_head"] == f"{at[0]}.{at[1]}"


def test_silencing_a_head_is_zeroing_its_columns_of_the_output_projection(llama):
    without = LanguageModel(copy.deepcopy(llama.hf), llama.tokenizer, name="without")
    with torch.no_grad():
        without.hf.model.layers[1].self_attn.o_proj.weight[:, 24:36] = 0  # head 2 of width 12
    data = comparative(llama, PROMPTS, ANSWERS, head=(1, 2), freeze=False, control_heads=0).data
    expected = importance(without, PROMPTS, ANSWERS, freeze=False).data
    assert np.abs(data["importance_without_head"] - expected["importance"]).max() < 2e-5
    assert "control_comparative" in data and data.sizes["control_head"] == 0


def test_in_the_last_block_all_values_together_give_the_models_own_answer(dense):
    """Closed form: the frozen readout of r + Σ v + bias is the model's own logits."""
    readout = Readout(dense)
    stream, values = values_of_neurons(dense, PROMPTS[0], dense.n_layers - 1)
    (final,) = last_token(dense, PROMPTS[0], [f"blocks.{dense.n_layers - 1}.hook_resid_post"])
    scale = readout.norm.scale(final)
    rest = final - stream - values.sum(0)  # biases
    total = stream + values.sum(0) + rest
    logits = dense.logits([PROMPTS[0]])[0, -1]
    assert torch.allclose(readout.logits(total, scale), logits, atol=1e-4)
    parts = readout.direction(stream) + readout.direction(values).sum(0) + readout.direction(rest)
    assert torch.allclose(readout.finish(parts / scale + readout.constant), logits, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "overrides"),
    [("opt", {"word_embed_proj_dim": 32}), ("gpt2", {}), ("gemma2", {"final_logit_softcapping": 2.0})],
)
def test_the_readout_is_the_models_at_every_stream(family, overrides):
    model = tiny_model(family, **overrides)
    readout = Readout(model)
    x = torch.randn(5, model.d_model, generator=torch.Generator().manual_seed(0)) * 3 + 0.5
    for factor in (None, 0.25):
        if factor is not None:
            model.config.logit_scale = factor
            readout = Readout(model)
        assert torch.allclose(readout.logits(x, readout.norm.scale(x)), model.readout(x), atol=1e-4)


@pytest.mark.parametrize("freeze", [True, False])
def test_strongly_capped_logits_are_read_right(freeze):
    model = tiny_model("gemma2", final_logit_softcapping=1.0)
    found = importance(model, PROMPTS[0], 7, freeze=freeze).data["importance"].values[0, 1]
    assert np.abs(found - brute_force(model, PROMPTS[0], 7, 1, freeze)).max() < 2e-5


def test_blocks_that_norm_their_output_and_norms_that_are_not_named_are_errors():
    with pytest.raises(SiteError, match="not what is added to the stream"):
        importance(tiny_model("opt", do_layer_norm_before=False), PROMPTS, ANSWERS)
    with pytest.raises(
        ModelError, match="do not give its own logits"
    ):  # its last norm has no name in the map
        importance(tiny_model("opt", word_embed_proj_dim=32), PROMPTS, ANSWERS)


def test_a_neuron_that_is_off_has_no_importance():
    model = tiny_model("opt")  # ReLU
    data = importance(model, PROMPTS, ANSWERS).data
    for i, prompt in enumerate(PROMPTS):
        for layer in range(3):
            (m,) = last_token(model, prompt, [f"blocks.{layer}.mlp.hook_post"])
            off = (m == 0).numpy()
            assert 0 < off.sum() < len(off)
            assert (data["importance"].values[i, layer][off] == 0).all()
            assert (data["importance"].values[i, layer][~off] != 0).all()


class RootMeanSquare(nn.Module):
    def __init__(self, gain, eps):
        super().__init__()
        self.gain, self.eps = nn.Parameter(gain), eps

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.gain


@settings(max_examples=30, deadline=None)
@given(
    width=st.integers(3, 40),
    eps=st.sampled_from([1e-8, 1e-6, 1e-5, 1e-3]),
    centred=st.booleans(),
    seed=st.integers(0, 1000),
    size=st.floats(0.01, 100),
)
def test_norms_are_read_by_their_outputs(width, eps, centred, seed, size):
    generator = torch.Generator().manual_seed(seed)
    gain, bias, x = torch.randn(3, width, generator=generator)
    if centred:
        norm = nn.LayerNorm(width, eps=eps)
        with torch.no_grad():
            norm.weight.copy_(gain)
            norm.bias.copy_(bias)
    else:
        norm, bias = RootMeanSquare(gain, eps), torch.zeros(width)
    found = AffineNorm.of(norm, width, torch.float64, torch.device("cpu"))
    assert found.centred == centred
    assert found.eps == pytest.approx(eps, rel=1e-3)
    assert torch.allclose(found.gain, gain.double(), atol=1e-5)
    assert torch.allclose(found.bias, bias.double(), atol=1e-6)
    x = x.double() * size
    assert torch.allclose(
        found.linear(x) / found.scale(x) + found.bias, norm.double()(x), rtol=1e-4, atol=1e-5
    )


def test_what_is_no_such_norm_is_an_error():
    class Absolute(nn.Module):
        def forward(self, x):
            return x / (x.abs().mean(-1, keepdim=True) + 1e-6)

    class Groups(nn.Module):
        def forward(self, x):
            return torch.cat([nn.functional.layer_norm(part, (4,)) for part in x.split(4, dim=-1)], dim=-1)

    for norm in (Absolute(), nn.Softmax(-1), Groups()):
        with pytest.raises(ModelError, match="neither a layer norm nor an RMS norm"):
            AffineNorm.of(norm, 8, torch.float32, torch.device("cpu"))


@settings(max_examples=60, deadline=None)
@given(
    size=st.sampled_from([1e-7, 1e-3, 1.0, 30.0, 300.0]), shift=st.floats(-50, 50), seed=st.integers(0, 999)
)
def test_the_change_of_the_normaliser_is_exact_for_small_and_large_changes(size, shift, seed):
    rng = np.random.default_rng(seed)
    log_p = torch.tensor(rng.normal(size=(1, 50)) * 3).log_softmax(-1)[0]
    delta = torch.tensor(rng.normal(size=(4, 50)) * size)
    delta[0] += shift
    base = _Base(torch.zeros(1), torch.ones(()), True, log_p.float(), None)
    found = base.log_normaliser(delta.float()).double().numpy()
    expected = logsumexp(log_p.float().double().numpy() + delta.float().double().numpy(), axis=-1)
    tiny = delta.float().double().numpy() @ log_p.float().double().exp().numpy()
    if size < 1e-5:  # first order is exact here, and a plain logsumexp in single precision is not
        assert np.allclose(found[1:], tiny[1:], rtol=1e-4, atol=1e-13)
    assert np.allclose(found, expected, rtol=1e-5, atol=2e-6)


def test_batching_and_the_choice_of_layers_change_nothing(llama):
    whole = comparative(llama, PROMPTS, ANSWERS, head=(1, 0)).data
    some = comparative(
        llama, PROMPTS, ANSWERS, head=(1, 0), neurons_per_call=7, tokens_per_call=1, layers=[0, 2]
    )
    for name in ("importance", "comparative", "control_comparative"):
        assert np.allclose(some.data[name], whole[name].sel(layer=[0, 2]), atol=2e-5)
    assert np.allclose(some.data["head_score"], whole["head_score"], atol=1e-5)


def test_statistics_and_summary_are_those_of_the_arrays(llama):
    result = comparative(llama, PROMPTS, ANSWERS, head=(1, 3), control_heads=9, top=20, seed=1)
    data, summary = result.data, result.summary
    assert data["control_head"].values.tolist() == [0, 1, 2]  # all there are
    for name in ("comparative", "importance", "importance_without_head", "head_score"):
        value = data[name].values
        assert np.allclose(data[f"mean_{name}"], value.mean(0), atol=1e-6)
        assert np.allclose(data[f"{name}_se"], value.std(0, ddof=1) / np.sqrt(3), atol=1e-6)
        assert (data[f"{name}_low"] <= data[f"mean_{name}"] + 1e-6).all()
        assert (data[f"mean_{name}"] <= data[f"{name}_high"] + 1e-6).all()
    mean = data["mean_comparative"].values
    order = np.argsort(-mean, axis=None)[:20]
    expected = [(int(i // mean.shape[1]), int(i % mean.shape[1])) for i in order]
    assert top_neurons(result, 20) == expected
    first = summary["top_neurons"][0]
    assert (first["layer"], first["neuron"]) == expected[0]
    assert first["comparative"] == pytest.approx(mean.max(), abs=1e-4)
    at = expected[0]
    assert first["control_comparative"] == pytest.approx(
        data["mean_control_comparative"].values[:, *at].mean(), abs=1e-4
    )
    assert first["importance"] == pytest.approx(data["mean_importance"].values[at], abs=1e-4)
    assert summary["top"] == "10 of 20" and len(summary["top_neurons"]) == 10
    share = np.abs(mean.ravel()[order]).sum() / np.abs(mean).sum()
    assert summary["top_share"] == pytest.approx(share, abs=1e-4)
    for c in range(3):
        control = data["mean_control_comparative"].values[c]
        theirs = np.argsort(-control, axis=None)[:20]
        assert summary["control_overlap"][c] == len(set(theirs) & set(order)) / 20
        share = np.abs(control.ravel()[theirs]).sum() / np.abs(control).sum()
        assert summary["control_top_share"][c] == pytest.approx(share, abs=1e-4)
    assert summary["chance_overlap"] == 20 / 160  # blocks 1 and 2
    rank = 1 + int((data["mean_head_score"].values > float(data["mean_head_score"][1, 3])).sum())
    assert summary["head_rank"] == f"{rank} of 12"


def test_neurons_of_the_same_head_overlap_wholly_and_those_of_nothing_by_chance():
    mean = np.random.default_rng(0).normal(size=(3, 200))
    found = overlaps(mean, np.stack([mean, -mean]), 50, 600)
    assert found["control_overlap"] == [1.0, 0.0]
    assert found["chance_overlap"] == round(50 / 600, 4)
    assert largest(np.array([[1.0, 3.0], [3.0, 2.0]]), 3) == [(0, 1), (1, 0), (1, 1)]


def test_one_prompt_has_no_interval(llama):
    result = importance(llama, PROMPTS[0], 7)
    assert np.isnan(result.data["importance_se"]).all() and np.isnan(result.data["importance_low"]).all()
    assert "interval" not in result.summary["top_neurons"][0]
    assert result.summary["top"] == "10 of 99"
    answer = int(llama.logits([PROMPTS[0]])[0, -1].argmax())
    assert importance(llama, PROMPTS[0], answer).summary["n_correct"] == 1


def test_models_of_less_precision_are_worked_out_in_single():
    model = tiny_model("llama")
    expected = importance(model, PROMPTS, ANSWERS, freeze=False).data["importance"].values
    model.hf.to(torch.bfloat16)
    result = comparative(model, PROMPTS, ANSWERS, freeze=False)
    found = result.data["importance"].values
    assert result.data["importance"].dtype == np.float32
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.99
    model.hf.to(torch.float64)
    assert importance(model, PROMPTS[0], 7).data["importance"].dtype == np.float64


def test_what_cannot_be_analysed_is_an_error(llama):
    with pytest.raises(SiteError, match="routed experts"):
        importance(tiny_model("mixtral"), PROMPTS, ANSWERS)
    with pytest.raises(MetricError, match="2 tokens"):
        importance(llama, PROMPTS, "one two")
    with pytest.raises(MetricError, match="answers has 2 items for 3 prompts"):
        importance(llama, PROMPTS, [1, 2])
    with pytest.raises(DataError, match=r"Head 1\.4 does not exist"):
        comparative(llama, PROMPTS, ANSWERS, head=(1, 4))
    with pytest.raises(DataError, match="All layers asked for lie below block 2"):
        comparative(llama, PROMPTS, ANSWERS, head=(-1, 0), layers=[0, 1])
    with pytest.raises(DataError, match="-1 control heads"):
        comparative(llama, PROMPTS, ANSWERS, head=(1, 0), control_heads=-1)
    with pytest.raises(DataError, match="The 999 first neurons"):
        importance(llama, PROMPTS, ANSWERS, top=999)
    with pytest.raises(DataError, match="has no 'comparative'"):
        top_neurons(importance(llama, PROMPTS, ANSWERS), 5)
    broken = tiny_model("llama")
    broken.hf.lm_head.register_forward_hook(lambda _m, _i, out: out * 2)
    with pytest.raises(ModelError, match="do not give its own logits"):
        importance(broken, PROMPTS, ANSWERS)
    broken = tiny_model("llama")
    broken.hf.model.layers[1].mlp.down_proj.register_forward_hook(lambda _m, _i, out: out * 2)
    with pytest.raises(ModelError, match="In block 1 the neurons' values do not add up"):
        importance(broken, PROMPTS, ANSWERS)


# -- ablation ---------------------------------------------------------------------------------------------

NEURONS = [(0, 3), (1, 7), (1, 20), (2, 11)]


def silenced(model, prompt, answer, neurons, positions):
    """[log-probability, first choice] of a whole forward with plain edits."""

    def edit(x, numbers):
        for p in positions:
            x[0, p, numbers] = 0
        return x

    edits = {
        f"blocks.{layer}.mlp.hook_post": lambda x, n=[k for at, k in neurons if at == layer]: edit(x, n)
        for layer in {at for at, _ in neurons}
    }
    with model.edit(edits):
        logits = model.logits([prompt])[0, -1].double()
    return [float(logits.log_softmax(-1)[answer]), float(logits.argmax() == answer)]


@pytest.mark.parametrize("positions", [-1, "all", [1, -2]])
def test_ablated_neurons_are_those_of_whole_forwards(dense, positions, monkeypatch):
    drawn = []
    real = neurons_ablation._drawn
    monkeypatch.setattr(neurons_ablation, "_drawn", lambda *args: drawn.append(real(*args)) or drawn[-1])
    data = ablate_neurons(dense, PROMPTS, ANSWERS, NEURONS, positions=positions, n_control=2).data
    for i, prompt in enumerate(PROMPTS):
        at = range(len(prompt)) if positions == "all" else [positions] if positions == -1 else positions
        logits = dense.logits([prompt])[0, -1].double()
        base = [float(logits.log_softmax(-1)[ANSWERS[i]]), float(logits.argmax() == ANSWERS[i])]
        assert np.allclose(data["base"].values[i], base, atol=1e-5)
        expected = silenced(dense, prompt, ANSWERS[i], NEURONS, at)
        assert np.allclose(data["ablated"].values[i], expected, atol=1e-5)
        for draw in range(2):
            expected = silenced(dense, prompt, ANSWERS[i], drawn[2 * i + draw], at)
            assert np.allclose(data["control"].values[i, draw], expected, atol=1e-5)
    assert drawn[:2] == drawn[2:4] == drawn[4:]  # the same random neurons for all prompts
    assert drawn[0] != drawn[1]
    assert hooks_left(dense) == 0


def test_ablation_at_all_positions_is_zeroing_columns_of_the_weights(llama):
    without = LanguageModel(copy.deepcopy(llama.hf), llama.tokenizer, name="without")
    with torch.no_grad():
        for layer, k in NEURONS:
            without.hf.model.layers[layer].mlp.down_proj.weight[:, k] = 0
    data = ablate_neurons(llama, PROMPTS, ANSWERS, NEURONS, positions="all", n_control=0).data
    for i, prompt in enumerate(PROMPTS):
        expected = float(without.logits([prompt])[0, -1].double().log_softmax(-1)[ANSWERS[i]])
        assert float(data["ablated"].sel(measure="log_probability")[i]) == pytest.approx(expected, abs=1e-5)
    assert "control_effect" not in data and data.attrs["control"] == "not run"


def test_each_prompt_may_have_neurons_of_its_own(llama):
    each = [[(0, 1)], [(1, 2), (2, 3)], [(0, 4)]]
    result = ablate_neurons(llama, PROMPTS, ANSWERS, each, n_control=3)
    for i, prompt in enumerate(PROMPTS):
        expected = silenced(llama, prompt, ANSWERS[i], each[i], [-1])
        assert np.allclose(result.data["ablated"].values[i], expected, atol=1e-5)
    assert result.summary["n_neurons"] == "1, 2"
    assert result.provenance.settings["neurons"] == [[list(n) for n in one] for one in each]


@settings(max_examples=40, deadline=None)
@given(
    neurons=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), min_size=1, max_size=10, unique=True),
    seed=st.integers(0, 99),
)
def test_random_neurons_are_as_many_others_of_the_same_blocks(neurons, seed):
    drawn = neurons_ablation._drawn(neurons, {0: 20, 1: 20, 2: 20}, np.random.default_rng(seed))
    assert sorted(layer for layer, _ in drawn) == sorted(layer for layer, _ in neurons)
    assert len(set(drawn)) == len(drawn) and not set(drawn) & set(neurons)
    assert all(0 <= k < 20 for _, k in drawn)


def test_p_values_and_summary_of_an_ablation_are_those_of_its_draws(llama):
    answers = [int(llama.logits([p])[0, -1].argmax()) for p in PROMPTS]
    found = importance(llama, PROMPTS, answers, freeze=False)
    result = ablate_neurons(llama, PROMPTS, answers, top_neurons(found, 40, "importance"), n_control=19)
    data = result.data
    assert result.summary["accuracy"]["base"] == 1
    effect = (data["ablated"] - data["base"]).values.mean(0)
    drawn = (data["control"] - data["base"]).values.mean(0)
    assert np.allclose(data["mean_effect"], effect)
    assert np.allclose(data["effect_se"], (data["ablated"] - data["base"]).values.std(0, ddof=1) / np.sqrt(3))
    expected = (1 + (np.abs(drawn) >= np.abs(effect)).sum(0)) / 20
    assert np.allclose(data["p_value"], expected)
    log_p = result.summary["log_p"]
    assert log_p["ablated"] == pytest.approx(float(data["ablated"][:, 0].mean()), abs=1e-4)
    assert log_p["random_neurons"] == pytest.approx(float(data["control"][..., 0].mean()), abs=1e-4)
    assert log_p["p_value"] == 0.05 and effect[0] < drawn[:, 0].min()  # important ones do more than any draw
    again = ablate_neurons(
        llama, PROMPTS, answers, top_neurons(found, 40, "importance"), n_control=19, tokens_per_call=1
    )
    assert np.allclose(again.data["control"], data["control"], atol=1e-5)
    assert "interval_of_effect" not in ablate_neurons(llama, PROMPTS[0], 7, NEURONS).summary["log_p"]


def test_neurons_that_cannot_be_ablated_are_errors(llama):
    with pytest.raises(DataError, match="No neurons were given"):
        ablate_neurons(llama, PROMPTS, ANSWERS, [])
    with pytest.raises(DataError, match="No neurons were given"):
        ablate_neurons(llama, PROMPTS, ANSWERS, [[(0, 1)], [], [(0, 1)]])
    with pytest.raises(DataError, match="2 lists of neurons were given for 3 prompts"):
        ablate_neurons(llama, PROMPTS, ANSWERS, [[(0, 1)], [(0, 2)]])
    with pytest.raises(DataError, match=r"given twice: \(0, 1\)"):
        ablate_neurons(llama, PROMPTS, ANSWERS, [(0, 1), (0, 1)])
    with pytest.raises(DataError, match="Block 3 does not exist"):
        ablate_neurons(llama, PROMPTS, ANSWERS, [(3, 1)])
    with pytest.raises(DataError, match="Neuron 80 of block 1 does not exist"):
        ablate_neurons(llama, PROMPTS, ANSWERS, [(1, 80)])
    with pytest.raises(DataError, match="not as many others"):
        ablate_neurons(llama, PROMPTS, ANSWERS, [(1, k) for k in range(41)])
    with pytest.raises(DataError, match="n_control is -1"):
        ablate_neurons(llama, PROMPTS, ANSWERS, NEURONS, n_control=-1)
    with pytest.raises(PositionError):
        ablate_neurons(llama, PROMPTS, ANSWERS, NEURONS, positions=5)
    with pytest.raises(SiteError, match="routed experts"):
        ablate_neurons(tiny_model("mixtral"), PROMPTS, ANSWERS, NEURONS)


def test_results_survive_the_disk(llama, tmp_path):
    for name, result in (
        ("a", comparative(llama, PROMPTS, ANSWERS)),
        ("b", comparative(llama, PROMPTS, ANSWERS, control_heads=0)),
        ("c", ablate_neurons(llama, PROMPTS, ANSWERS, NEURONS)),
    ):
        result.save(tmp_path / name)
        loaded = wb.Result.load(tmp_path / name)
        assert loaded.data.identical(result.data)
        assert loaded.summary == result.summary
