"""The untrained twin: same sites, other weights, and the model it is the twin of is left alone."""

from __future__ import annotations

import pytest
import tiny
import torch
from conftest import hooks_left, tiny_model

import workbench as wb
from probes.trust import collect_untrained, untrained_model
from workbench.errors import ModelError


@pytest.mark.parametrize("keep", [False, True])
def test_the_twin_has_the_same_sites_and_other_weights_and_the_model_is_left_alone(model, keep):
    before = {name: p.clone() for name, p in model.hf.state_dict().items()}
    random_state = torch.get_rng_state()
    twin, again = (untrained_model(model, seed=3, keep_embedding=keep) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(before[name], p) for name, p in model.hf.state_dict().items())
    assert twin.sites() == model.sites() and twin.tokenizer is model.tokenizer
    assert twin.fingerprint != model.fingerprint and twin.fingerprint == again.fingerprint
    assert twin.fingerprint != untrained_model(model, seed=4, keep_embedding=keep).fingerprint
    same = torch.equal(twin.hf.get_input_embeddings().weight, model.hf.get_input_embeddings().weight)
    assert same is keep and "untrained (seed 3" in twin.name and not twin.hf.training
    matrices = [
        p
        for name, p in twin.hf.named_parameters()
        if p.ndim == 2 and "embed" not in name and "wte" not in name
    ]
    spread = torch.cat([p.flatten() for p in matrices]).std()
    assert 0.3 * 0.02 < spread < 2 * 0.02  # the tiny models' own weights are four times as large


def test_activations_of_the_twin_stand_at_the_same_sites_and_say_where_they_are_from(llama):
    acts = collect_untrained(llama, ["the red store", "a blue drink was"], positions=-1, seed=2)
    trained = wb.collect(llama, ["the red store", "a blue drink was"])
    assert acts.sites == trained.sites and (acts.token_id == trained.token_id).all()
    assert not torch.allclose(acts.stack(), trained.stack())
    assert acts.provenance.settings["untrained"] == {
        "twin_of": llama.fingerprint, "seed": 2, "keep_embedding": False,
    }  # fmt: skip
    assert acts.provenance.model["fingerprint"] != llama.fingerprint and hooks_left(llama) == 0


def test_a_looped_model_keeps_sharing_its_repeated_blocks():
    model = wb.load_model("looped", device="cpu")
    twin = untrained_model(model)
    assert twin.n_layers == model.n_layers and twin.sites() == model.sites()
    core = [twin.block(layer) for layer in (2, 3)]
    assert core[0].mlp.up_proj.weight.data_ptr() == core[1].mlp.up_proj.weight.data_ptr()


def test_what_cannot_be_initialised_is_refused(llama):
    quantised = tiny_model("llama")
    quantised.hf.config.quantization_config = {"bits": 4}
    with pytest.raises(ModelError, match="quantised"):
        untrained_model(quantised)

    class Wrapped(torch.nn.Module):
        config = tiny.config("llama")

    llama.hf = Wrapped()
    with pytest.raises(ModelError, match="A Wrapped cannot be made from its config"):
        untrained_model(llama)
