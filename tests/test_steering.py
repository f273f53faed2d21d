"""Steering: `add_direction`, mean differences, dose–response and its control, what is refused.

Rules, operations and exact generation have files of their own: `test_steering_*`.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import hooks_left, tiny_model

import workbench as wb
from workbench.directions import Direction
from workbench.errors import DataError
from workbench.model.tokens import from_ids
from workbench.steering.intervention import RULES, add_direction

PROMPTS = [[5, 9, 30], [7, 8, 9, 10, 11], [50, 51]]


def a_direction(model, site="blocks.1.hook_resid_post", seed=0) -> Direction:
    width = model.n_heads * model.d_head if site.endswith("hook_z") else model.d_model
    vector = torch.randn(width, generator=torch.Generator().manual_seed(seed))
    return Direction.from_vector(vector, site=site, name="random", source="test")


def test_strength_zero_changes_nothing_bit_for_bit(model):
    batch = from_ids(model, PROMPTS)
    with model.edit({"blocks.1.hook_resid_post": add_direction(a_direction(model), 0.0)}):
        steered = model.forward(batch).logits
    assert torch.equal(steered, model.forward(batch).logits)
    assert hooks_left(model) == 0


def test_a_rule_steers_its_positions_and_no_others(llama):
    direction = a_direction(llama)
    batch = from_ids(llama, PROMPTS, side="left")
    lengths = [2, 3, 1]  # as if the rest had been generated
    with llama.hooks(read="blocks.1.hook_resid_post") as plain:
        llama.forward(batch)
    rules = {
        "all": lambda p, n: True,
        "prompt": lambda p, n: p < n,
        "generated": lambda p, n: p >= n,
        "last": lambda p, n: p == n - 1,
    }
    assert set(rules) == set(RULES)
    for where, applies in rules.items():
        edit = add_direction(direction, 3.0, where=where, prompt_lengths=lengths)
        with llama.hooks(read="blocks.1.hook_resid_post", edit={"blocks.1.hook_resid_post": edit}) as steered:
            llama.forward(batch)
        moved = steered["blocks.1.hook_resid_post"] - plain["blocks.1.hook_resid_post"]
        for row, ids in enumerate(PROMPTS):
            for position, column in enumerate(batch.columns(row, range(len(ids)))):
                expected = 3.0 * direction.vector if applies(position, lengths[row]) else torch.zeros(48)
                assert torch.allclose(moved[row, column], expected, atol=1e-5), (where, row, position)


def test_rows_may_carry_their_own_strength_and_direction(llama):
    rows = [PROMPTS[1]] * 3
    directions = [a_direction(llama, seed=i) for i in range(3)]
    edit = add_direction(directions, [0.0, 5.0, -2.0])
    with llama.hooks(read="blocks.1.hook_resid_post", edit={"blocks.1.hook_resid_post": edit}) as seen:
        llama.forward(from_ids(llama, rows))
    values = seen["blocks.1.hook_resid_post"]
    assert torch.allclose(values[1] - values[0], (5 * directions[1].vector).expand(5, -1), atol=1e-4)
    assert torch.allclose(values[2] - values[0], (-2 * directions[2].vector).expand(5, -1), atol=1e-4)


def test_a_head_site_takes_a_flattened_direction(llama):
    direction = a_direction(llama, site="blocks.1.attn.hook_z")
    edit = add_direction(direction, 4.0)
    with llama.hooks(read=direction.site, edit={direction.site: edit}) as steered:
        llama.forward(from_ids(llama, PROMPTS[:1]))
    with llama.hooks(read=direction.site) as plain:
        llama.forward(from_ids(llama, PROMPTS[:1]))
    moved = (steered[direction.site] - plain[direction.site]).flatten(-2)
    assert torch.allclose(moved, 4 * direction.vector.expand_as(moved), atol=1e-4)


def test_a_mean_difference_is_the_difference_of_means(llama):
    positive, negative = [[5, 6], [7, 8, 9]], [[10, 11], [12], [13, 14]]
    d = wb.steering.mean_difference(llama, positive, negative, "blocks.1.hook_resid_post")
    means = [
        torch.stack(
            [
                wb.collect(llama, p, "blocks.1.hook_resid_post").rows("blocks.1.hook_resid_post")[0]
                for p in rows
            ]
        ).mean(0)
        for rows in (positive, negative)
    ]
    assert torch.allclose(d.vector * d.scale, means[0] - means[1], atol=1e-4)
    assert d.model_fingerprint == llama.fingerprint


def test_a_dose_response_scores_what_a_steered_forward_gives(llama):
    direction = a_direction(llama)
    metric = wb.LogitDifference(7, 9)
    result = wb.steering.dose_response(llama, PROMPTS, direction, [-4, 4], metric, n_random=2)
    with llama.edit({direction.site: lambda x: x + 4 * direction.vector}):
        expected = [float(metric.resolve(llama)(llama.logits(p)[:, -1])) for p in PROMPTS]
    steered = result.data["score"].sel(direction="steered", strength=4.0).values
    assert np.allclose(steered, expected, atol=1e-4)
    assert result.data["strength"].values.tolist() == [-4.0, 0.0, 4.0]
    assert np.allclose(result.data["kl"].sel(strength=0.0), 0)
    assert (result.data["kl"].sel(strength=4.0) > 0).all()
    again = wb.steering.dose_response(llama, PROMPTS, direction, [-4, 4], metric, n_random=2)
    assert result.data.identical(again.data)  # the control is seeded


@pytest.mark.parametrize(
    ("strength", "message"), [(float("nan"), "not finite"), (float("inf"), "not finite")]
)
def test_a_strength_that_is_not_a_number_is_an_error(llama, strength, message):
    with pytest.raises(DataError, match=message):
        wb.steering.generate(llama, PROMPTS, a_direction(llama), strength)


def test_a_direction_of_another_model_is_refused_unless_forced(llama):
    other = Direction.from_vector(
        torch.ones(48), site="blocks.1.hook_resid_post", name="d", source="test", model_fingerprint="0" * 32
    )
    with pytest.raises(DataError, match="fingerprint"):
        wb.steering.generate(llama, PROMPTS, other, 1.0)
    wb.steering.generate(llama, PROMPTS, other, 1.0, force=True, max_new_tokens=1)
    wide = Direction.from_vector(torch.ones(50), site="blocks.1.hook_resid_post", name="d", source="test")
    with pytest.raises(DataError, match="width 50"):
        wb.steering.generate(llama, PROMPTS, wide, 1.0)


def test_empty_sets_and_missing_strengths_are_errors(llama):
    with pytest.raises(DataError, match="positive set has no prompts"):
        wb.steering.mean_difference(llama, [], ["Mary"], "blocks.1.hook_resid_post")
    with pytest.raises(DataError, match="No strengths"):
        wb.steering.dose_response(llama, PROMPTS, a_direction(llama), [0.0], wb.LogitDifference(7, 9))


def test_sampling_is_seeded_and_leaves_the_global_seed_alone(llama):
    torch.manual_seed(11)
    before = torch.rand(1)
    torch.manual_seed(11)
    one = wb.steering.generate(llama, PROMPTS, temperature=1.0, seed=5, max_new_tokens=8)
    assert torch.equal(torch.rand(1), before)
    assert one == wb.steering.generate(llama, PROMPTS, temperature=1.0, seed=5, max_new_tokens=8)
    assert one != wb.steering.generate(llama, PROMPTS, temperature=1.0, seed=6, max_new_tokens=8)


def test_unsteered_generation_is_transformers_own():
    model = tiny_model("gpt2")
    ours = wb.steering.generate(model, PROMPTS[1], max_new_tokens=5).tokens[0]
    with torch.no_grad():
        theirs = model.hf.generate(
            torch.tensor([PROMPTS[1]]), max_new_tokens=5, do_sample=False, pad_token_id=0
        )
    assert list(ours) == theirs[0, 5:].tolist()[: len(ours)]
