"""The same tokens for every rule: with and without cache, in a padded batch and alone; and those of a plain loop.

The loop is the oracle: one unpadded prompt, the whole text anew for every token, one torch hook on the block.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import hooks_left

import workbench as wb
from workbench.directions import Direction, DirectionSet
from workbench.steering import Condition, CosineDown, From, Operation, Plan, Steering, Windows

PROMPTS = [[5, 9, 30], [7, 8, 9, 10, 11, 9], [50, 9]]
SITE = "blocks.1.hook_resid_post"
STRENGTHS = [25.0, -25.0, 25.0]
NEW = 6


def direction(site=SITE, seed=0, width=48) -> Direction:
    vector = torch.randn(width, generator=torch.Generator().manual_seed(seed))
    return Direction.from_vector(vector, site=site, name=f"d{seed}", source="test")


RULES = {
    "all": {"where": "all"},
    "prompt": {"where": "prompt"},
    "generated": {"where": "generated"},
    "last": {"where": "last"},
    "from": {"where": From(token=9)},
    "schedule": {"schedule": CosineDown(5, 0.2)},
    "windows": {"schedule": Windows([(0, 1), (2, 4)])},
    "condition": {"condition": Condition(direction("blocks.0.hook_resid_post", 3), 0.0)},
    "onward": {"condition": Condition(direction("blocks.0.hook_resid_post", 3), 1.0, holds="onward")},
}
FACTORS = {  # of prompt, position, length of the prompt
    "all": lambda ids, p, n: 1.0,
    "prompt": lambda ids, p, n: float(p < n),
    "generated": lambda ids, p, n: float(p >= n),
    "last": lambda ids, p, n: float(p == n - 1),
    "from": lambda ids, p, n: float(p >= list(ids).index(9)),
    "schedule": lambda ids, p, n: max(0.2, (np.cos(np.pi * min(max(0, p - n + 1), 5) / 5) + 1) / 2),
    "windows": lambda ids, p, n: float(max(0, p - n + 1) in (0, 2, 3)),
}


def same_everywhere(model, steering: Steering | Plan, **options) -> wb.steering.Generation:
    """Generate with a cache, without, and each prompt alone (cached or not in turn); all must agree."""
    kept = wb.steering.generate(model, PROMPTS, steering, max_new_tokens=NEW, **options)
    uncached = wb.steering.generate(model, PROMPTS, steering, max_new_tokens=NEW, use_cache=False, **options)
    assert kept.tokens == uncached.tokens
    plan = steering if isinstance(steering, Plan) else Plan((steering,))
    for i, prompt in enumerate(PROMPTS):
        alone = wb.steering.generate(
            model,
            prompt,
            plan.for_rows([i]),
            max_new_tokens=NEW,
            use_cache=bool(i % 2),
            row_seeds=[i],
            **options,
        )
        assert alone.tokens[0] == kept.tokens[i], (i, prompt)
    assert hooks_left(model) == 0
    return kept


@pytest.mark.parametrize("rule", list(RULES))
def test_cache_or_not_and_batch_or_alone_give_the_same_tokens(model, rule):
    same_everywhere(model, Steering(direction(), STRENGTHS, **RULES[rule]))


@pytest.mark.parametrize("rule", ["generated", "from", "onward"])
def test_sampled_tokens_depend_on_seed_row_and_step_alone(model, rule):
    steering = Steering(direction(), STRENGTHS, **RULES[rule])
    options = {"temperature": 1.3, "top_k": 60, "top_p": 0.95, "seed": 4}
    kept = same_everywhere(model, steering, **options)
    turned = wb.steering.generate(
        model,
        PROMPTS[::-1],
        Plan((steering,)).for_rows([2, 1, 0]),
        max_new_tokens=NEW,
        rows_per_batch=2,
        row_seeds=[2, 1, 0],
        **options,
    )
    assert turned.tokens[::-1] == kept.tokens


@pytest.mark.parametrize("op", ["add_keeping_norm", "in_context", "ablate", "clamp", "rotate", "affine"])
def test_every_operation_at_two_sites_gives_the_same_tokens(llama, op):
    parameters = {"clamp": {"value": [20.0, 0.0, -20.0]}, "affine": {"a": -1.0, "b": 5.0}}.get(op, {})
    strength = {"rotate": 70.0, "add_keeping_norm": 15.0}.get(op, 1.0)
    both = DirectionSet([direction("blocks.0.hook_mlp_out", 1), direction("blocks.1.attn.hook_z", 2)])
    steering = Steering(both, strength, Operation(op, **parameters), "generated")
    kept = same_everywhere(llama, steering + Steering(direction(), 5.0, where="last"))
    assert kept.settings["steering"][0]["op"] == op


@pytest.mark.parametrize(
    "site", ["ln_final.hook_out", "blocks.1.hook_resid_mid", "hook_embed", "blocks.2.mlp.hook_post"]
)
def test_sites_of_other_kinds_give_the_same_tokens(llama, site):
    width = 80 if site.endswith("hook_post") else 48
    same_everywhere(llama, Steering(direction(site, width=width), 10.0, where="generated"))


def test_logits_are_steered_although_generation_computes_those_of_the_last_position_alone(llama):
    vector = torch.zeros(llama.vocab_size)
    vector[17] = 1.0
    push = Direction.from_vector(vector, site="unembed.hook_out", name="token 17")
    kept = same_everywhere(llama, Steering(push, 1e4, where=From(index=-1)))
    assert kept.tokens == ((17,) * NEW,) * 3
    late = same_everywhere(llama, Steering(push, 1e4, where="generated"))
    plain = wb.steering.generate(llama, PROMPTS, max_new_tokens=1)
    assert [row[0] for row in late.tokens] == [row[0] for row in plain.tokens]
    assert all(row[1:] == (17,) * (NEW - 1) for row in late.tokens)


@torch.no_grad()
def loop(model, ids: list[int], strength: float, factor) -> list[int]:
    """Greedy decoding of one prompt, with one hook of torch's own on the second block."""
    v, text, n = direction().vector, list(ids), len(ids)

    def hook(_module, _args, out):
        whole = out if isinstance(out, torch.Tensor) else out[0]
        amounts = torch.tensor([float(factor(ids, p, n)) for p in range(whole.shape[1])])
        new = whole + strength * amounts[None, :, None] * v
        return new if isinstance(out, torch.Tensor) else (new, *out[1:])

    handle = model.block(1).register_forward_hook(hook)
    try:
        for _ in range(NEW):
            text.append(int(model.hf(torch.tensor([text]), use_cache=False).logits[0, -1].argmax()))
    finally:
        handle.remove()
    said = text[n:]
    return said[: said.index(2)] if 2 in said else said


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_tokens_are_those_of_a_plain_loop_with_one_hook(model):
    different = set()
    for rule, factor in FACTORS.items():
        found = wb.steering.generate(
            model, PROMPTS, Steering(direction(), STRENGTHS, **RULES[rule]), max_new_tokens=NEW
        )
        expected = [loop(model, ids, s, factor) for ids, s in zip(PROMPTS, STRENGTHS, strict=True)]
        assert [list(row) for row in found.tokens] == expected, rule
        different.add(found.tokens)
    assert len(different) >= 4  # the rules do not happen to say the same


def test_a_row_with_its_own_strength_says_what_a_run_of_that_strength_says(model):
    strengths = [-30.0, 0.0, 4.0, 30.0]
    sweep = wb.steering.sweep_strengths(model, PROMPTS, direction(), strengths, max_new_tokens=NEW)
    for i, strength in enumerate(strengths):
        one = wb.steering.generate(model, PROMPTS, direction(), strength, max_new_tokens=NEW)
        assert sweep.tokens[i] == one.tokens and sweep.at(strength) == one.texts
    plain = wb.steering.generate(model, PROMPTS, max_new_tokens=NEW)
    assert sweep.tokens[1] == plain.tokens
    assert sweep.tokens[0] != plain.tokens != sweep.tokens[3]


def test_a_sweep_draws_each_prompt_alike_at_every_strength(llama):
    options = {"temperature": 1.0, "max_new_tokens": NEW, "seed": 2}
    sweep = wb.steering.sweep_strengths(llama, PROMPTS, Steering(direction()), [0.0, 0.0, 9.0], **options)
    assert sweep.tokens[0] == sweep.tokens[1] != sweep.tokens[2]
    assert sweep.tokens[0] == wb.steering.generate(llama, PROMPTS, **options).tokens
    alone = wb.steering.sweep_strengths(llama, PROMPTS[2], direction(), [9.0], row_seeds=[2], **options)
    assert alone.tokens[0][0] == sweep.tokens[2][2]


def test_equal_prompts_draw_their_own_luck_unless_their_row_seeds_are_equal(llama):
    options = {"temperature": 2.0, "max_new_tokens": NEW, "stop_at_end": False}
    own = wb.steering.generate(llama, [PROMPTS[0]] * 4, **options)
    assert len(set(own.tokens)) == 4
    same = wb.steering.generate(llama, [PROMPTS[0]] * 4, row_seeds=[3, 1, 3, 0], **options)
    assert same.tokens == tuple(own.tokens[i] for i in (3, 1, 3, 0))
    assert wb.steering.generate(llama, PROMPTS[0], seed=1, **options).tokens[0] != own.tokens[0]
