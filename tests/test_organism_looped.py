"""Depth-recurrent models: unrolled they compute the loop, share its weights, and have sites for every repetition."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from conftest import hooks_left

import workbench as wb
from workbench.errors import ModelError
from workbench.model.looped import Loop, fold, is_folded, loop_of, unroll
from workbench.organisms.tasks.looped import LOOPS, Looped

IDS = torch.tensor([[1, 9, 30, 41, 22, 7], [1, 8, 8, 50, 60, 61]])


def looped_model(prelude: int = 1, core: int = 1, coda: int = 1, loops: int = 3):
    described = {"prelude": prelude, "core": core, "coda": coda, "loops": loops}
    return tiny.hf_model("llama", num_hidden_layers=prelude + core + coda, looped=described)


@torch.no_grad()
def by_hand(hf, prelude: int, core: int, coda: int, loops: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The stream after every block as it is run, and the logits, from a model that was never unrolled."""
    body = hf.model
    assert len(body.layers) == prelude + core + coda
    positions = torch.arange(IDS.shape[1])[None]
    stream = body.embed_tokens(IDS)
    rotary = body.rotary_emb(stream, positions)
    blocks = list(body.layers)
    order = blocks[:prelude] + loops * blocks[prelude : prelude + core] + blocks[prelude + core :]
    states = []
    for block in order:
        stream = block(stream, attention_mask=None, position_ids=positions, position_embeddings=rotary)
        states.append(stream)
    return states, hf.lm_head(body.norm(stream))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 1), (0, 2, 1), (2, 1, 0), (0, 1, 0)])
@pytest.mark.parametrize("loops", [1, 2, 5])
def test_the_unrolled_model_computes_the_hand_written_loop(shape, loops):
    hf = looped_model(*shape)
    states, logits = by_hand(hf, *shape, loops)
    model = wb.load_model((hf, tiny.tokenizer()), loops=loops)
    assert model.n_layers == shape[0] + shape[1] * loops + shape[2] == len(states)
    sites = [f"blocks.{i}.hook_resid_post" for i in range(model.n_layers)]
    with torch.no_grad(), model.hooks(read=sites) as seen:
        ours = model.hf(input_ids=IDS).logits
    torch.testing.assert_close(ours, logits, rtol=1e-5, atol=1e-5)
    for site, state in zip(sites, states, strict=True):
        torch.testing.assert_close(seen[site], state, rtol=1e-5, atol=1e-5)
    if loops > 1:  # the state goes on changing, so a site of one repetition is not that of another
        first = shape[0] + shape[1] - 1
        assert not torch.allclose(seen[sites[first]], seen[sites[first + shape[1]]], atol=1e-2)
    assert hooks_left(model) == 0


def test_a_hook_on_one_repetition_does_not_fire_on_another():
    model = wb.load_model((looped_model(), tiny.tokenizer()), loops=4)
    sites = [f"blocks.{i}.hook_resid_post" for i in range(6)]
    with torch.no_grad():
        with model.hooks(read=sites) as plain:
            model.hf(input_ids=IDS)
        with model.hooks(read=sites, edit={"blocks.3.hook_resid_mid": lambda x: x * 0.5}) as edited:
            model.hf(input_ids=IDS)
    changed = [not torch.equal(plain[site], edited[site]) for site in sites]
    assert changed == [False, False, False, True, True, True]


def test_every_repetition_has_its_own_attention_pattern():
    model = wb.load_model((looped_model(), tiny.tokenizer()), loops=3)
    sites = [f"blocks.{i}.attn.hook_pattern" for i in range(5)]
    with torch.no_grad(), model.hooks(read=sites) as seen:
        model.hf(input_ids=IDS)
    for site in sites:
        torch.testing.assert_close(seen[site].sum(-1), torch.ones(seen[site].shape[:3]))
    assert not torch.allclose(seen[sites[1]], seen[sites[2]], atol=1e-3)


def test_repetitions_share_their_parameters():
    hf = looped_model(1, 2, 1)
    names, n_weights = [n for n, _ in hf.named_parameters()], sum(p.numel() for p in hf.parameters())
    unroll(hf, 5)
    assert len(list(hf.parameters())) == len(names)
    assert sum(p.numel() for p in hf.parameters()) == n_weights
    layers = hf.model.layers
    assert len({id(layer) for layer in layers}) == len({id(layer.self_attn) for layer in layers}) == 12
    with torch.no_grad():
        layers[5].mlp.up_proj.weight.fill_(0.25)  # the first core block in its third run
    filled = [bool((layer.mlp.up_proj.weight == 0.25).all()) for layer in layers]
    assert filled == [False, *5 * [True, False], False]
    assert [layer.self_attn.layer_idx for layer in layers] == list(range(12))
    assert all(layer.self_attn.config is hf.config for layer in layers)


def test_gradients_of_all_repetitions_add_up():
    hf = looped_model()
    unroll(hf, 3)
    hf(input_ids=IDS).logits.square().mean().backward()
    ours = hf.model.layers[1].mlp.up_proj.weight.grad
    apart = looped_model()
    unroll(apart, 3)
    apart.model.layers = torch.nn.ModuleList(copy.deepcopy(layer) for layer in apart.model.layers)
    apart(input_ids=IDS).logits.square().mean().backward()
    parts = [apart.model.layers[i].mlp.up_proj.weight.grad for i in (1, 2, 3)]
    torch.testing.assert_close(ours, torch.stack(parts).sum(0), rtol=1e-4, atol=1e-7)
    assert all(part.abs().max() > 0 for part in parts)


@torch.no_grad()
def test_the_number_of_loops_can_be_changed_again_and_folded_away():
    hf, never = looped_model(1, 2, 1), looped_model(1, 2, 1)
    at_three = by_hand(never, 1, 2, 1, 3)[1]
    for loops in (3, 6, 1, 3):
        assert unroll(hf, loops) == Loop(1, 2, 1, loops)
        assert hf.config.num_hidden_layers == 2 + 2 * loops and loop_of(hf.config).loops == loops
    torch.testing.assert_close(hf(input_ids=IDS).logits, at_three, rtol=1e-5, atol=1e-5)
    fold(hf)
    assert is_folded(hf) and hf.config.looped == never.config.looped
    assert hf.config.num_hidden_layers == never.config.num_hidden_layers
    ours, theirs = hf.state_dict(), never.state_dict()
    assert list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_generation_with_the_kv_cache_is_generation_without():
    model = wb.load_model((looped_model(1, 2, 1), tiny.tokenizer()), loops=4)
    how = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(IDS)}
    cached = model.hf.generate(IDS, use_cache=True, **how)
    assert torch.equal(cached, model.hf.generate(IDS, use_cache=False, **how))
    with torch.no_grad():
        cache = model.hf(input_ids=IDS, use_cache=True).past_key_values
    assert len(cache.layers) == model.n_layers == 10
    assert all(layer.get_seq_length() == IDS.shape[1] for layer in cache.layers)


@torch.no_grad()
def test_a_folder_is_loaded_with_its_own_or_another_number_of_loops(tmp_path):
    looped_model(loops=3).save_pretrained(tmp_path / "looped")
    tiny.tokenizer().save_pretrained(tmp_path / "looped")
    for asked, loops in ((None, 3), (1, 1), (6, 6)):
        model = wb.load_model(tmp_path / "looped", loops=asked, device="cpu")
        assert model.n_layers == loops + 2
        expected = by_hand(looped_model(), 1, 1, 1, loops)[1]
        torch.testing.assert_close(model.hf(input_ids=IDS).logits, expected, rtol=1e-5, atol=1e-5)


def test_loops_of_an_ordinary_model_are_refused(tmp_path):
    with pytest.raises(ModelError, match="no 'looped' entry"):
        wb.load_model((tiny.hf_model("llama"), tiny.tokenizer()), loops=2)
    tiny.hf_model("gpt2").save_pretrained(tmp_path / "plain")
    tiny.tokenizer().save_pretrained(tmp_path / "plain")
    with pytest.raises(ModelError, match="leave `loops` away"):
        wb.load_model(tmp_path / "plain", loops=2)
    with pytest.raises(ModelError, match="no 'looped' entry"):
        fold(tiny.hf_model("llama"))


@pytest.mark.parametrize("loops", [0, -1, 1.5, True])
def test_a_number_of_loops_that_cannot_be_is_refused(loops):
    with pytest.raises(ModelError, match="at least once"):
        wb.load_model((looped_model(), tiny.tokenizer()), loops=loops)


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ({"prelude": 1, "core": 1, "coda": 1}, "expected whole numbers"),
        ({"prelude": 1, "core": 1, "coda": "x", "loops": 2}, "expected whole numbers"),
        ({"prelude": 1, "core": 0, "coda": 2, "loops": 2}, "at least one block"),
        (
            {"prelude": 1, "core": 1, "coda": 2, "loops": 7},
            "describes 1 \\+ 1 \\+ 2 blocks, but the model has 3",
        ),
        (
            {"prelude": 0, "core": 1, "coda": 0, "loops": 2},
            "describes 0 \\+ 1 \\+ 0 blocks, but the model has 3",
        ),
        ("three times", "expected whole numbers"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(described, message):
    hf = tiny.hf_model("llama", looped=described)
    with pytest.raises(ModelError, match=message):
        unroll(hf)


def test_blocks_know_their_repetition():
    loop = Loop(prelude=1, core=2, coda=1, loops=3)
    assert [loop.loop_of(i) for i in range(loop.n_layers)] == [None, 0, 0, 1, 1, 2, 2, None]
    assert [loop.stored_layer(i) for i in range(loop.n_layers)] == [0, 1, 2, 1, 2, 1, 2, 3]
    with pytest.raises(ModelError, match="outside the 8 unrolled blocks"):
        loop.stored_layer(8)


def test_the_looped_organism_is_stored_folded_with_its_own_number_of_loops():
    organism = Looped()
    model = organism.build(0)
    ids = organism.batch(0, 0).ids[:2]
    lengths = set()
    for step in range(12):
        with model.model.layers[2].register_forward_hook(
            lambda module, *_: lengths.add(module.self_attn.layer_idx)
        ):
            organism.forward(model, ids, step)
        assert is_folded(model) and model.config.looped["loops"] == LOOPS
    assert len(lengths) >= 4  # the coda's place, hence the number of loops, changes from step to step
    with pytest.raises(IndexError):
        organism.forward(model, ids + 1000, 0)
    assert is_folded(model) and model.config.looped["loops"] == LOOPS


def test_evaluating_the_looped_organism_leaves_its_depth_as_it_was():
    organism = Looped()
    model = organism.build(0).eval()
    first = organism.evaluate(model)
    assert is_folded(model) and model.config.looped["loops"] == LOOPS
    unroll(model, 4)
    assert organism.evaluate(model) == first
    assert len(model.model.layers) == 6 and model.config.looped["loops"] == 4
