"""Tokens of a direction, against plain forward passes with hooks of torch's own, and against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from torch import nn

import workbench as wb
from workbench.directions import Direction, top_tokens
from workbench.errors import DataError
from workbench.model.language_model import LanguageModel

PROMPTS = ["Mary went to the store", "Tom and Anna gave a", "a red drink"]
BLOCKS = {"gpt2": "transformer.h", "neox": "gpt_neox.layers", "opt": "model.decoder.layers"}
NORMS = {
    "gpt2": "transformer.ln_f",
    "neox": "gpt_neox.final_layer_norm",
    "opt": "model.decoder.final_layer_norm",
}


def made(family: str, **overrides) -> LanguageModel:
    return LanguageModel(tiny.hf_model(family, **overrides), tiny.tokenizer(), name=family)


def direction(
    model: LanguageModel, site: str = "blocks.1.hook_resid_post", scale: float = 2.0, seed: int = 0
) -> Direction:
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(seed))
    return Direction.from_vector(
        vector, site=site, scale=scale, name="d", model_fingerprint=model.fingerprint
    )


def adding(module: nn.Module, vector: torch.Tensor, where: str):
    def hook(_module, _inputs, output):
        stream = (output[0] if isinstance(output, tuple) else output).clone()
        if where == "last":
            stream[:, -1] += vector
        else:
            stream += vector
        return (stream, *output[1:]) if isinstance(output, tuple) else stream

    return module.register_forward_hook(hook)


@torch.no_grad()
def plain_change(model: LanguageModel, block: int, vector: torch.Tensor, where: str = "last") -> np.ndarray:
    """[prompt, d_vocab] change of ln p, by two forward passes of the Hugging Face model alone."""
    module = model.hf.get_submodule(f"{BLOCKS.get(model.name, 'model.layers')}.{block}")
    changes = []
    for prompt in PROMPTS:
        ids = torch.tensor([model.encode(prompt)])
        before = model.hf(ids).logits[0, -1].double().log_softmax(-1)
        handle = adding(module, vector, where)
        changes.append(model.hf(ids).logits[0, -1].double().log_softmax(-1) - before)
        handle.remove()
    return torch.stack(changes).numpy()


def expect(result, effect: str, change: np.ndarray, k: int, atol: float) -> None:
    """The table of an effect is that of a [d_vocab] change."""
    for side, order in (("promoted", np.argsort(-change)), ("suppressed", np.argsort(change))):
        cell = result.data.sel(effect=effect, side=side)
        np.testing.assert_allclose(cell["value"].values, change[order[:k]], atol=atol)
        np.testing.assert_allclose(change[cell["token_id"].values], cell["value"].values, atol=atol)


@pytest.mark.parametrize("where", ["last", "all"])
def test_network_is_the_change_of_a_plain_forward_with_the_direction_added(family, where):
    model = made(family)
    d = direction(model)
    change = plain_change(model, 1, d.scale * d.vector, where)
    result = top_tokens(model, d, 7, prompts=PROMPTS, where=where, n_random=2)
    expect(result, "network", change.mean(0), 7, 2e-4)


def test_the_last_stream_is_a_plain_forward_with_the_direction_added_after_the_last_block(family):
    """Also for a direction of an earlier site; and at the last block's output the network adds nothing to it."""
    model = made(family)
    d = direction(model, scale=5.0)
    change = plain_change(model, model.n_layers - 1, d.scale * d.vector)
    expect(top_tokens(model, d, 5, prompts=PROMPTS, n_random=1), "last_stream", change.mean(0), 5, 2e-4)
    last = d.at(f"blocks.{model.n_layers - 1}.hook_resid_post")
    table = top_tokens(model, last, 5, prompts=PROMPTS, n_random=2).data
    both = [table["value"].sel(effect=e).values for e in ("last_stream", "network")]
    np.testing.assert_allclose(*both, atol=2e-4)


@torch.no_grad()
def test_direct_is_the_derivative_of_the_logits_with_the_norms_scale_held(family):
    """Finite differences through norm and unembedding, with the norm's statistics of the unsteered stream."""
    model = made(family)
    d = direction(model, scale=3.0)
    norm = model.hf.get_submodule(NORMS.get(family, "model.norm"))
    weight = model.hf.get_output_embeddings().weight.double()
    changes = []
    for prompt in PROMPTS:
        held = {}
        handle = norm.register_forward_hook(lambda _m, i, _o, held=held: held.update(x=i[0][0, -1].double()))
        model.hf(torch.tensor([model.encode(prompt)]))
        handle.remove()
        v, x = d.vector.double(), held["x"]
        if isinstance(norm, nn.LayerNorm):
            v, sigma = v - v.mean(), (x.var(unbiased=False) + norm.eps).sqrt()
            gain = norm.weight.double()
        else:
            eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
            sigma = (x.square().mean() + eps).sqrt()
            gain = norm.weight.double() + (1.0 if family == "gemma2" else 0.0)
        change = 3.0 * weight @ (gain * v) / sigma
        changes.append(change - change.mean())
    result = top_tokens(model, d, 6, prompts=PROMPTS, n_random=1, network=False)
    expect(result, "direct", torch.stack(changes).mean(0).numpy(), 6, 1e-3)
    assert result.data["effect"].values.tolist() == ["direct", "last_stream"]


def test_for_a_small_strength_the_direct_effect_is_nearly_the_change_of_the_logits():
    """What is left is the norm's own answer, which is along the normed stream: none for a v orthogonal to x."""
    model = made("llama")
    acts = wb.collect(model, PROMPTS[:1], "blocks.2.hook_resid_post")
    x = Direction.from_vector(acts.rows("blocks.2.hook_resid_post")[0], site="blocks.2.hook_resid_post")
    d = direction(model, "blocks.2.hook_resid_post").orthogonal_to(x)
    data = top_tokens(model, d, 10, prompts=PROMPTS[:1], strength=1e-2, n_random=1).data
    gap = data["value"].sel(effect="direct") - data["value"].sel(effect="last_stream")
    assert np.ptp(gap.sel(side="promoted").values) < 1e-4  # equal up to one number for all tokens


@pytest.mark.parametrize("part", ["hook_resid_pre", "hook_resid_mid", "hook_attn_out", "hook_mlp_out"])
def test_directions_at_other_sites_of_the_stream_are_added_there(part):
    model = made("gemma2")
    d = direction(model, f"blocks.1.{part}")
    before = torch.stack([model.logits(p)[0, -1] for p in PROMPTS]).log_softmax(-1)
    after = []
    for prompt in PROMPTS:

        def add(x):
            x = x.clone()
            x[:, -1] += d.scale * d.vector
            return x

        with model.edit({d.site: add}):
            after.append(model.logits(prompt)[0, -1])
    change = torch.stack(after).log_softmax(-1) - before
    result = top_tokens(model, d, 5, prompts=PROMPTS, n_random=1)
    expect(result, "network", change.mean(0).detach().numpy(), 5, 2e-4)


def test_a_tied_unembedding_and_a_soft_cap_are_the_models_own():
    for overrides in (
        {"tie_word_embeddings": True},
        {"tie_word_embeddings": True, "final_logit_softcapping": 2.0},
    ):
        model = made("gemma2", **overrides)
        d = direction(model, "blocks.2.hook_resid_post", scale=20.0)
        change = plain_change(model, 2, d.scale * d.vector)
        expect(top_tokens(model, d, 5, prompts=PROMPTS, n_random=1), "last_stream", change.mean(0), 5, 2e-4)


def test_an_unembedding_row_promotes_its_own_token():
    model = made("llama")
    token = model.token_id("Paris")
    gain = model.hf.model.norm.weight
    row = model.hf.lm_head.weight[token] / gain
    d = Direction.from_vector(row.detach(), site="blocks.2.hook_resid_post", name="Paris")
    result = top_tokens(model, d, 3, strength=30.0, n_random=30, prompts=PROMPTS)
    for effect in ("direct", "last_stream", "network"):
        first = result.data.sel(effect=effect, side="promoted")
        assert str(first["token"].values[0]) == "Paris", effect
    assert float(result.data["p_value"].sel(effect="direct", side="promoted")) == pytest.approx(1 / 31)


def test_the_control_is_random_directions_of_the_same_strength():
    model = made("llama")
    d = direction(model)
    data = top_tokens(model, d, 4, prompts=PROMPTS, n_random=3, seed=5).data
    firsts = []
    for i in range(1, 4):
        one = top_tokens(model, Direction.random(d, seed=5 + i), 4, prompts=PROMPTS, n_random=1).data
        firsts.append(one["value"].values)
    np.testing.assert_allclose(data["control_mean"].values, np.mean(firsts, axis=0), atol=1e-5)
    beaten = np.array(firsts)[:, :, 0, 0] >= data["value"].values[:, 0, 0]
    np.testing.assert_allclose(data["p_value"].values[:, 0], (1 + beaten.sum(0)) / 4)


def test_a_random_direction_is_not_beyond_its_control():
    model = made("llama")
    p = [
        top_tokens(
            model, direction(model, seed=s), 1, prompts=PROMPTS, n_random=9, network=False, seed=100 * s
        )
        .data["p_value"]
        .values
        for s in range(1, 25)
    ]
    assert 0.35 < np.mean(p) < 0.75 and np.mean(np.array(p) <= 0.1) < 0.3


def test_the_mean_reference_is_the_mean_stream():
    model = made("gpt2")
    d = direction(model)
    x = wb.collect(model, PROMPTS, "blocks.2.hook_resid_post").rows("blocks.2.hook_resid_post").mean(0)
    with torch.no_grad():
        change = model.readout(x + d.scale * d.vector).log_softmax(-1) - model.readout(x).log_softmax(-1)
    result = top_tokens(model, d, 5, prompts=PROMPTS, reference="mean", n_random=1)
    expect(result, "last_stream", change.numpy(), 5, 1e-4)
    assert np.isnan(result.data["low"].sel(effect="last_stream").values).all()
    each = top_tokens(model, d, 5, prompts=PROMPTS, n_random=1).data
    assert (each["low"] <= each["value"] + 1e-9).all() and (each["value"] <= each["high"] + 1e-9).all()


def test_default_prompts_seed_and_saving(tmp_path):
    model = made("llama")
    result = top_tokens(model, direction(model), 3, n_random=2)
    assert result.summary["n_prompts"] == 32 and len(result.summary["promoted"]) == 3
    again = top_tokens(model, direction(model), 3, n_random=2)
    assert again.data.identical(result.data)
    assert wb.Result.load(result.save(tmp_path / "r")).data.identical(result.data)
    assert result.data.attrs["strength"] == 2.0 and result.provenance.seed == 0


def test_what_has_no_tokens_is_refused():
    model = made("llama")
    d = direction(model)
    for site, width in (("blocks.1.attn.hook_z", 48), ("ln_final.hook_out", 48), ("hook_embed", 48)):
        elsewhere = Direction.from_vector(torch.ones(width), site=site)
        with pytest.raises(DataError, match=f"residual stream.*{site}"):
            top_tokens(model, elsewhere)
    for strength in (0.0, float("nan"), float("inf")):
        with pytest.raises(DataError, match="finite number other than 0"):
            top_tokens(model, d, strength=strength)
    for k in (0, 61):
        with pytest.raises(DataError, match="k must be 1 to 60"):
            top_tokens(model, d, k)
    with pytest.raises(DataError, match="n_random"):
        top_tokens(model, d, n_random=0)
    with pytest.raises(DataError, match="where"):
        top_tokens(model, d, where="first")  # type: ignore[arg-type]
    other = made("llama")
    other.hf.lm_head.weight.data.mul_(2)
    with pytest.raises(DataError, match="fingerprint"):
        top_tokens(other, d, prompts=PROMPTS)
    top_tokens(other, d, prompts=PROMPTS, n_random=1, force=True)


def test_where_no_suffix_can_be_replayed_the_last_token_is_still_the_one_that_is_changed(monkeypatch):
    from workbench.patching.replay import Replay

    model = made("llama")
    before = top_tokens(model, direction(model), 5, prompts=PROMPTS, n_random=2).data
    monkeypatch.setattr(Replay, "starts", lambda _self, _position: 0)
    after = top_tokens(model, direction(model), 5, prompts=PROMPTS, n_random=2).data
    np.testing.assert_array_equal(before["token_id"], after["token_id"])
    np.testing.assert_allclose(before["value"], after["value"], atol=1e-4)


@pytest.mark.real_model
def test_on_smollm2_it_is_the_change_of_a_plain_forward(smollm2):
    """A direction from " bad" to " good" endings, in the middle of the network."""
    ends = [[f"The film was so {word}" for word in words] for words in (("good", "great"), ("bad", "awful"))]
    d = wb.steering.mean_difference(smollm2, *ends, "blocks.14.hook_resid_post", name="good")
    prompts, changes = ["The food was", "I think that"], []
    module = smollm2.hf.model.layers[14]
    with torch.no_grad():
        for prompt in prompts:
            ids = torch.tensor([smollm2.encode(prompt)])
            before = smollm2.hf(ids).logits[0, -1].double().log_softmax(-1)
            handle = adding(module, d.scale * d.vector, "last")
            changes.append(smollm2.hf(ids).logits[0, -1].double().log_softmax(-1) - before)
            handle.remove()
    result = top_tokens(smollm2, d, 10, prompts=prompts, n_random=3)
    expect(result, "network", torch.stack(changes).mean(0).numpy(), 10, 2e-3)
