"""Exact steering on the real model: the tokens of every rule with and without cache, in a batch and alone."""

from __future__ import annotations

import pytest
import torch
from conftest import hooks_left

import workbench as wb
from workbench.directions import Direction
from workbench.steering import Condition, CosineDown, From, Plan, Steering

PROMPTS = ["The weather in Paris today is", "She opened the old door and", "Paris"]
SITE = "blocks.14.hook_resid_post"


@pytest.mark.real_model
@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 0.9, "top_p": 0.95, "seed": 3}], ids=["greedy", "sampled"]
)
def test_smollm2_says_the_same_with_and_without_cache_in_a_batch_and_alone(smollm2, sampling):
    assert smollm2.dtype == torch.float32
    vector = torch.randn(smollm2.d_model, generator=torch.Generator().manual_seed(0))
    d = Direction.from_vector(vector, site=SITE, name="random")
    probe = Direction.from_vector(vector.flip(0), site="blocks.8.hook_resid_post", name="probe")
    plan = (
        Steering(d, [60.0, -60.0, 60.0], where="generated", schedule=CosineDown(8, 0.5))
        + Steering(probe, 4.0, "rotate", From(index=-1))
        + Steering(
            d.at("blocks.20.hook_mlp_out"), 0.2, "in_context", condition=Condition(probe, 0.0, holds="onward")
        )
    )
    options = {"max_new_tokens": 8, **sampling}
    plain = wb.steering.generate(smollm2, PROMPTS, **options)
    kept = wb.steering.generate(smollm2, PROMPTS, plan, **options)
    assert all(a != b for a, b in zip(plain.tokens, kept.tokens, strict=True))
    assert wb.steering.generate(smollm2, PROMPTS, plan, use_cache=False, **options).tokens == kept.tokens
    for i, prompt in enumerate(PROMPTS):
        alone = wb.steering.generate(smollm2, prompt, plan.for_rows([i]), row_seeds=[i], **options)
        assert alone.tokens[0] == kept.tokens[i]
    off = Plan(tuple(Steering(s.direction, 0.0, s.op, s.where) for s in plan.steerings))
    assert wb.steering.generate(smollm2, PROMPTS, off, **options).tokens == plain.tokens
    assert hooks_left(smollm2) == 0
