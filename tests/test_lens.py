"""Logit lens against scipy and the model's own output."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from conftest import tiny_model

import workbench as wb
from workbench.errors import MetricError, ModelError, PositionError

IDS = [50, 51, 52, 53, 54, 55]


def test_the_last_layer_is_the_models_own_output(model):
    lens = wb.lens.logit_lens(model, IDS, top_k=3)
    p = model.logits(IDS)[0].softmax(-1)
    assert np.allclose(
        lens.data["top_probability"].sel(layer=model.n_layers - 1), p.topk(3).values, atol=1e-5
    )
    assert np.array_equal(lens.data["top_id"].sel(layer=model.n_layers - 1), p.topk(3).indices)
    assert np.allclose(lens.data["kl_to_final"].sel(layer=model.n_layers - 1), 0, atol=1e-6)


def test_entropy_kl_rank_and_probability_equal_scipy_on_the_decoded_logits(model):
    lens = wb.lens.logit_lens(model, IDS, target=7).data
    with model.hooks(read="blocks.1.hook_resid_post") as seen:
        final = scipy.special.softmax(model.logits(IDS)[0].double().numpy(), axis=-1)
    decoded = model.readout(seen["blocks.1.hook_resid_post"])[0].double().numpy()
    p = scipy.special.softmax(decoded, axis=-1)
    assert np.allclose(lens["entropy"].sel(layer=1), scipy.stats.entropy(p, axis=-1), atol=1e-4)
    assert np.allclose(lens["kl_to_final"].sel(layer=1), scipy.stats.entropy(final, p, axis=-1), atol=1e-4)
    ranks = scipy.stats.rankdata(-decoded, axis=-1, method="min")
    assert np.array_equal(lens["target_rank"].sel(layer=1), ranks[:, 7])
    assert np.allclose(lens["target_probability"].sel(layer=1), p[:, 7], atol=1e-5)


def test_the_control_is_the_median_rank_of_random_tokens(llama):
    everything = wb.lens.logit_lens(llama, IDS, n_control=llama.vocab_size).data["control_rank"]
    median = (llama.vocab_size + 1) // 2  # torch's lower median of all ranks
    assert np.all(np.abs(everything - median) <= 1)
    once, again = (wb.lens.logit_lens(llama, IDS, seed=3).data["control_rank"] for _ in range(2))
    assert np.array_equal(once, again)


def test_depth_is_the_first_layer_from_which_the_target_stays_on_top(llama):
    lens = wb.lens.logit_lens(llama, IDS)  # the target is the model's own top token, so there is a depth
    ranks = lens.data["target_rank"].isel(position=-1).values
    depth = lens.summary["depth"]
    assert (ranks[depth:] == 1).all() and (depth == 0 or ranks[depth - 1] != 1)
    never = int(model_last_token(llama))
    assert wb.lens.logit_lens(llama, IDS, target=never).summary["depth"] is None


def model_last_token(model) -> int:
    return int(model.logits(IDS)[0, -1].argmin())


def test_positions_can_be_chosen_and_a_wrong_one_is_an_error(llama):
    lens = wb.lens.logit_lens(llama, IDS, positions=[0, -1])
    assert lens.data["position"].values.tolist() == [0, 5]
    with pytest.raises(PositionError, match="Position 6"):
        wb.lens.logit_lens(llama, IDS, positions=6)


def test_a_target_of_two_tokens_is_an_error(llama):
    with pytest.raises(MetricError, match="is 2 tokens"):
        wb.lens.logit_lens(llama, IDS, target="Mary went")


def test_a_readout_that_is_not_the_models_is_refused():
    model = tiny_model("llama")
    model.hf.lm_head.register_forward_hook(lambda _m, _i, out: out)  # harmless
    wb.lens.logit_lens(model, IDS)
    plain = model.hf.forward

    def scaled(*args, **kwargs):
        out = plain(*args, **kwargs)
        out.logits = out.logits * 2
        return out

    model.hf.forward = scaled
    with pytest.raises(ModelError, match="does not give its own logits"):
        wb.lens.logit_lens(model, IDS)


def test_soft_capped_logits_are_capped_in_the_lens_too():
    model = tiny_model("gemma2", final_logit_softcapping=5.0)
    with model.hooks(read="blocks.-1.hook_resid_post") as seen:
        own = model.logits(IDS)
    assert own.abs().max() <= 5
    assert torch.allclose(model.readout(seen["blocks.2.hook_resid_post"]), own, atol=1e-5)
