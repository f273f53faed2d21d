"""Positions by rule, condition and schedule: against loops over rows and positions."""

from __future__ import annotations

import json
import math

import pytest
import torch
from conftest import hooks_left, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.directions import Direction, DirectionSet
from workbench.errors import DataError, PositionError, SiteError
from workbench.model.tokens import from_ids
from workbench.steering import Condition, CosineDown, From, Listed, Operation, Plan, Ramp, Steering, Windows
from workbench.steering.schedule import as_schedule

ROWS = [[5, 9, 30], [7, 8, 9, 10, 11], [50, 51]]
SITE = "blocks.1.hook_resid_post"
LLAMA = tiny_model("llama")


def direction(site=SITE, seed=0, name="d", width=48) -> Direction:
    vector = torch.randn(width, generator=torch.Generator().manual_seed(seed))
    return Direction.from_vector(vector, site=site, name=name, source="test")


def moved(steering: Steering | Plan, side="left", lengths=None, site=SITE, model=LLAMA) -> list[torch.Tensor]:
    """[position, d] of each row: how far each real position moved at `site`."""
    batch = from_ids(model, ROWS, side=side)
    with model.hooks(read=site) as plain:
        model.forward(batch)
    with steering.on(model, batch, prompt_lengths=lengths, read=[site]) as seen:
        model.forward(batch)
    change = seen[site] - plain[site]
    return [change[i, batch.columns(i, range(len(row)))] for i, row in enumerate(ROWS)]


def check(steering, expected, **options) -> None:
    """`expected(row, position, n)` is the factor of strength · v that each position moved by."""
    lengths = options.get("lengths") or [len(row) for row in ROWS]
    v = steering.directions[0].vector
    for row, change in enumerate(moved(steering, **options)):
        for position, found in enumerate(change):
            wanted = expected(row, position, lengths[row]) * v
            assert torch.allclose(found, wanted, atol=2e-5), (row, position)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("where", "applies"),
    [
        ("all", lambda row, p, n: True),
        ("prompt", lambda row, p, n: p < n),
        ("generated", lambda row, p, n: p >= n),
        ("last", lambda row, p, n: p == n - 1),
        (From(index=1), lambda row, p, n: p >= 1),
        (From(index=-1), lambda row, p, n: p >= n - 1),
    ],
    ids=["all", "prompt", "generated", "last", "from 1", "from -1"],
)
def test_a_rule_steers_its_positions_and_no_others(where, applies, side):
    lengths = [2, 3, 1]  # as if the rest had been generated
    check(Steering(direction(), 3.0, where=where), lambda *at: 3.0 * applies(*at), side=side, lengths=lengths)


def test_from_a_text_or_a_token_on():
    texts = ["the red store and the red drink", "red", "Mary went to the red store"]
    batch = LLAMA.batch(texts, side="left")
    for where in (From(text="red"), From(token="red")):
        with LLAMA.hooks(read=SITE) as plain:
            LLAMA.forward(batch)
        with Steering(direction(), 2.0, where=where).on(LLAMA, batch, read=[SITE]) as seen:
            LLAMA.forward(batch)
        change = (seen[SITE] - plain[SITE]).norm(dim=-1)
        for row, text in enumerate(texts):
            first = text.split().index("red")
            found = change[row, batch.columns(row, range(len(text.split())))]
            assert torch.allclose(found[:first], torch.zeros(first), atol=1e-5)
            assert torch.allclose(found[first:], torch.full_like(found[first:], 2.0), atol=1e-4)


@pytest.mark.parametrize("holds", ["here", "onward", "last"])
@pytest.mark.parametrize("fires", ["above", "below"])
def test_a_condition_narrows_a_rule_to_where_its_probe_fires(holds, fires):
    probe = direction("blocks.0.hook_resid_post", seed=3)
    batch = from_ids(LLAMA, ROWS, side="left")
    with LLAMA.hooks(read=probe.site) as seen:
        LLAMA.forward(batch)
    score = probe.project(seen[probe.site])
    threshold = float(score[batch.mask.bool()].median())
    lengths = [2, 4, 1]

    def fired(row: int, p: int) -> bool:
        c = float(score[row, batch.columns(row, [p])[0]])
        return c > threshold if fires == "above" else c < threshold

    def expected(row: int, p: int, n: int) -> float:
        open_ = {
            "here": fired(row, p),
            "onward": any(fired(row, q) for q in range(p + 1)),
            "last": p >= n - 1 and fired(row, n - 1),
        }[holds]
        return 3.0 * (open_ and p >= 1)

    condition = Condition(probe, threshold, fires=fires, holds=holds)
    steering = Steering(direction(), 3.0, where=From(index=1), condition=condition)
    check(steering, expected, lengths=lengths)
    found = {expected(r, p, lengths[r]) for r, row in enumerate(ROWS) for p in range(len(row))}
    assert found == {0.0, 3.0}  # it fires somewhere, and not everywhere


def test_another_text_in_the_same_block_remembers_no_firing_of_the_one_before():
    start = [0]
    condition = Condition(lambda x, context: context.positions >= start[0], site=SITE, holds="onward")
    batch = from_ids(LLAMA, ROWS, side="left")
    with LLAMA.hooks(read=SITE) as seen:
        LLAMA.forward(batch)
    d = direction()
    with Steering(d, 2.0, condition=condition).on(LLAMA, batch, read=[SITE]) as steered:
        for start[0] in (1, 2, 9):
            LLAMA.forward(batch)
    for n, values in zip((1, 2, 9), steered.calls(SITE), strict=True):
        change = (values - seen[SITE]) @ d.vector
        for row, ids in enumerate(ROWS):
            found = change[row, batch.columns(row, range(len(ids)))].tolist()
            assert found == pytest.approx([2.0 * (p >= n) for p in range(len(ids))], abs=2e-5)


def test_a_condition_may_be_a_function_and_reads_what_steerings_before_it_made():
    long = Condition(lambda x, context: context.positions >= 2, site=SITE)
    check(Steering(direction(), 2.0, condition=long), lambda row, p, n: 2.0 * (p >= 2))
    d, other = direction(seed=1), direction()
    batch = from_ids(LLAMA, ROWS)
    with LLAMA.hooks(read=SITE) as plain:
        LLAMA.forward(batch)
    highest = float(d.project(plain[SITE]).max())
    second = Steering(other, 2.0, condition=Condition(d, highest + 1))
    check(second, lambda *at: 0.0)
    change = moved(Steering(d, 500.0) + second)
    assert torch.allclose(change[1], (500 * d.vector + 2 * other.vector).expand(5, -1), atol=1e-3)


@given(st.lists(st.integers(0, 60), min_size=1, max_size=20), st.integers(1, 30), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_schedules_are_their_formulas(steps, length, floor):
    at = torch.tensor([steps])
    expected = {
        Ramp(length, 2.0, -1.0): [2 - 3 * min(t, length) / length for t in steps],
        CosineDown(length, floor): [
            max(floor, (math.cos(math.pi * min(t, length) / length) + 1) / 2) for t in steps
        ],
        Windows([(1, 5), (10, 10 + length)]): [float(1 <= t < 5 or 10 <= t < 10 + length) for t in steps],
        Listed([1.0, 0.5, 0.25], then=-1.0): [([1, 0.5, 0.25] + [-1] * 60)[t] for t in steps],
    }
    for schedule, factors in expected.items():
        assert torch.allclose(schedule(at)[0], torch.tensor(factors).float(), atol=1e-5), schedule
        again = as_schedule(json.loads(json.dumps(schedule.settings())))
        assert torch.equal(again(at), schedule(at))


def test_a_schedule_counts_the_prompt_as_step_0_and_then_every_token():
    lengths = [2, 3, 1]
    steering = Steering(direction(), [1.0, 2.0, -3.0], schedule=[1.0, 0.0, 0.5, 0.25])

    def expected(row: int, p: int, n: int) -> float:
        step = max(0, p - n + 1)
        return [1.0, 2.0, -3.0][row] * [1.0, 0.0, 0.5, 0.25][step]

    check(steering, expected, lengths=lengths)


def test_a_set_of_directions_acts_at_all_its_sites_and_steerings_in_their_order():
    early, late = direction("blocks.0.hook_mlp_out", 1, "early"), direction(seed=2, name="late")
    both = Steering(DirectionSet([early, late]), 4.0)
    assert both.sites == [early.site, SITE]
    for site, d in ((early.site, early), (SITE, late)):
        only = Steering(d, 4.0)
        assert torch.allclose(moved(only, site=site)[1], (4 * d.vector).expand(5, -1), atol=1e-4)
    batch = from_ids(LLAMA, ROWS)
    with both.on(LLAMA, batch, read=["blocks.0.hook_mlp_out"]) as seen:
        together = LLAMA.forward(batch).logits
    assert len(seen.calls(early.site)) == 1
    with (Steering(early, 4.0) + Steering(late, 4.0)).on(LLAMA, batch):
        assert torch.equal(LLAMA.forward(batch).logits, together)
    v = late.vector
    ordered = Steering(late, 4.0) + Steering(late, 1.0, op="ablate")
    with ordered.on(LLAMA, batch, read=[SITE]) as seen:
        LLAMA.forward(batch)
    assert float((seen[SITE][0, :3] @ v).abs().max()) < 1e-4
    with Plan(ordered.steerings[::-1]).on(LLAMA, batch, read=[SITE]) as seen:
        LLAMA.forward(batch)
    assert torch.allclose(seen[SITE][0, :3] @ v, torch.full((3,), 4.0), atol=1e-4)


def test_settings_fit_in_json_and_say_all_but_the_vectors():
    condition = Condition(direction("blocks.0.hook_resid_post"), 1.5, holds="onward")
    steering = Steering(
        direction(),
        [1.0, 2.0],
        Operation("clamp", value=8.0),
        From(text="red"),
        CosineDown(20, 0.5),
        condition,
    )
    kept = json.loads(json.dumps(steering.settings()))
    assert kept["where"] == {"from_text": "red"} and kept["value"] == 8.0 and kept["strength"] == [1.0, 2.0]
    assert kept["schedule"] == {"schedule": "cosine_down", "steps": 20, "floor": 0.5}
    assert kept["condition"]["site"] == "blocks.0.hook_resid_post"
    again = Steering(direction(), where=kept["where"], schedule=kept["schedule"])
    assert again.where == steering.where and again.schedule == steering.schedule


def run(steering, model=LLAMA, **options):
    with steering.on(model, model.batch(["the red store", "the red drink"]), **options):
        model.forward(model.batch(["the red store", "the red drink"]))


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: Steering(direction(), float("nan")), DataError, "nan is not finite"),
        (lambda: Steering(direction(), [1.0, float("inf")]), DataError, "not finite"),
        (lambda: Steering(direction(), []), DataError, "empty"),
        (lambda: run(Steering(direction(), [1.0, 2.0, 3.0])), DataError, "3 rows.*2 prompts"),
        (lambda: run(Steering([direction()] * 3, 1.0)), DataError, "3 rows.*2 prompts"),
        (lambda: Steering([direction()] * 3, [1.0, 2.0]), DataError, "do not go together"),
        (lambda: run(Steering(direction("blocks.9.hook_resid_post"))), DataError, "lacks"),
        (lambda: run(Steering(direction("blocks.1.hook_resid_mid")), tiny_model("neox")), DataError, "lacks"),
        (lambda: run(Steering(direction(width=50))), DataError, "width 50"),
        (lambda: Steering(direction(), where="middle"), DataError, "'middle' is not known"),
        (lambda: Steering(direction(), op="multiply"), DataError, "'multiply' is not known"),
        (lambda: Steering(direction(), schedule="sine"), DataError, "'sine' is not known"),
        (lambda: Steering(direction(), schedule={"schedule": "ramp", "size": 3}), DataError, "does not take"),
        (lambda: Windows([(4, 2)]), DataError, "0 <= first < last"),
        (lambda: Ramp(0), DataError, "at least 1"),
        (lambda: Listed([]), DataError, "at least one factor"),
        (lambda: run(Steering(direction(), where=From(text="blue"))), DataError, "'blue' does not occur in prompt 0"),
        (lambda: run(Steering(direction(), where=From(token="drink"))), DataError, "does not occur in prompt 0"),
        (lambda: run(Steering(direction(), where=From(index=3))), PositionError, "nothing would be steered"),
        (lambda: run(Steering(direction(), where=From(index=-4))), PositionError, "outside the prompt"),
        (lambda: From(index=1, text="a"), DataError, "one of index"),
        (lambda: run(Steering(direction(), condition=Condition(direction("blocks.2.hook_resid_post")))), DataError, "comes after"),
        (lambda: Condition(lambda x, c: x, 0.0), DataError, "needs the site"),
        (lambda: run(Steering(direction(), condition=Condition(lambda x, c: x, site=SITE))), DataError, "gives a bool"),
        (lambda: run(Steering(direction(), condition=Condition(lambda x, c: x, site="blocks.*.hook_resid_pre"))), SiteError, "reads one site"),
        (lambda: Condition(direction(), float("nan")), DataError, "finite"),
        (lambda: Plan(()), DataError, "none"),
        (lambda: Steering("joy"), DataError, "takes a Direction"),
        (lambda: Steering([direction(), direction("blocks.0.hook_resid_post")]), DataError, "give a DirectionSet"),
        (lambda: run(Steering(direction()), prompt_lengths=[9, 1]), DataError, "Prompt lengths"),
    ],
)  # fmt: skip
def test_what_cannot_be_steered_is_one_clear_error(make, kind, message):
    with pytest.raises(kind, match=message):
        make()
    assert hooks_left(LLAMA) == 0
