"""What steering refuses: one clear error, before any work, for what would steer nothing or cannot be done."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from conftest import hooks_left, tiny_model

import workbench as wb
from workbench.directions import Direction, DirectionSet
from workbench.errors import DataError, MetricError, PositionError
from workbench.model.language_model import LanguageModel
from workbench.steering import (
    Condition,
    From,
    Listed,
    Plan,
    Ramp,
    Steering,
    Windows,
    dose_response,
    generate,
)
from workbench.steering.extract import ablation_direction, in_context_vector
from workbench.steering.intervention import add_direction
from workbench.steering.measure import iso_kl
from workbench.steering.rules import as_rule
from workbench.steering.schedule import as_schedule
from workbench.steering.specs.make import MakeSpec
from workbench.steering.texts import steered_texts

LLAMA = tiny_model("llama")
SITE = "blocks.1.hook_resid_post"
PROMPTS = [[5, 6, 7], [8, 9, 10, 11]]
METRIC = wb.LogitDifference(5, 6)


def direction(seed=0, site=SITE, width=48) -> Direction:
    drawn = torch.randn(width, generator=torch.Generator().manual_seed(seed))
    return Direction.from_vector(drawn, site=site, name=f"d{seed}")


# -- generate: what was asked for --------------------------------------------------------------------


@pytest.mark.parametrize("op", ["add", "add_keeping_norm", "in_context", "rotate"])
def test_an_operation_without_a_strength_of_its_own_needs_one(op):
    with pytest.raises(DataError, match="give strength"):
        generate(LLAMA, PROMPTS, direction(), op=op, max_new_tokens=2)
    assert generate(LLAMA, PROMPTS, direction(), 0.0, op=op, max_new_tokens=2)


@pytest.mark.parametrize(
    "how",
    [
        {"where": "last"},
        {"op": "ablate"},
        {"schedule": Ramp(3)},
        {"condition": Condition(direction())},
    ],
)
def test_how_to_steer_needs_something_to_steer_along(how):
    with pytest.raises(DataError, match=f"{', '.join(how)} say how to steer, but no direction"):
        generate(LLAMA, PROMPTS, None, max_new_tokens=2, **how)


@pytest.mark.parametrize("strength", [2.0, [1.0, 2.0], np.array([1.0, 2.0]), torch.tensor([1.0, 2.0])])
def test_a_strength_beside_nothing_or_beside_a_steering_is_refused(strength):
    with pytest.raises(DataError, match="without a direction"):
        generate(LLAMA, PROMPTS, None, strength, max_new_tokens=2)
    for steering in (Steering(direction()), Plan((Steering(direction()),)), [Steering(direction())]):
        with pytest.raises(DataError, match="A Steering has its own strength"):
            generate(LLAMA, PROMPTS, steering, strength, max_new_tokens=2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"temperature": "hot"}, "Temperature 'hot'"),
        ({"temperature": None}, "Temperature None"),
        ({"temperature": 1.0, "top_p": "x"}, "top_p 'x'"),
        ({"temperature": 1.0, "top_k": "5"}, "top_k '5'"),
        ({"temperature": 1.0, "top_k": float("inf")}, "top_k inf"),
        ({"temperature": 1.0, "seed": 0.5}, "Seed 0.5"),
        ({"temperature": 1.0, "seed": "a"}, "Seed 'a'"),
        ({"temperature": 1.0, "row_seeds": 5}, "row_seeds is 5"),
        ({"temperature": 1.0, "row_seeds": [0.5, 1]}, "row_seeds is"),
    ],
)
def test_sampling_that_makes_no_sense(options, says):
    with pytest.raises(DataError, match=says):
        generate(LLAMA, PROMPTS, max_new_tokens=2, **options)


# -- nothing would be steered ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "new"),
    [
        ({"where": "prompt", "schedule": Ramp(5)}, 8),
        ({"where": "last", "schedule": {"schedule": "ramp", "steps": 5}}, 8),
        ({"where": "prompt", "schedule": Windows([(1, 5)])}, 8),
        ({"schedule": Windows([(8, 9)])}, 8),
        ({"schedule": Listed([0.0], then=0.0)}, 8),
        ({"where": From(index=6), "schedule": Windows([(0, 3)])}, 8),
    ],
)
def test_a_schedule_that_is_off_wherever_the_rule_is_on(how, new):
    with pytest.raises(PositionError, match="nothing would be steered"):
        generate(LLAMA, PROMPTS, direction(), 9.0, max_new_tokens=new, **how)
    assert hooks_left(LLAMA) == 0


@pytest.mark.parametrize(
    "how",
    [
        {"where": "prompt", "schedule": Windows([(0, 1)])},
        {"where": "generated", "schedule": Ramp(5)},
        {"where": "last", "schedule": Ramp(5, start=1.0)},
        {"schedule": Windows([(7, 8)])},
        {"where": From(index=5), "schedule": Windows([(3, 4)])},
    ],
)
def test_one_position_is_enough(how):
    options = {"max_new_tokens": 8, "stop_at_end": False}
    steering = Steering(direction(), 1e4, **how)
    batch = LLAMA.batch([[*range(5, 5 + n + 7)] for n in (3, 4)])
    with LLAMA.hooks(read=[SITE]) as plain:
        LLAMA.forward(batch)
    with steering.on(LLAMA, batch, prompt_lengths=[3, 4], read=[SITE]) as seen:
        LLAMA.forward(batch)
    assert not torch.equal(seen[SITE], plain[SITE]), "the same positions as generation reads"
    generate(LLAMA, PROMPTS, steering, **options)


def test_a_block_that_the_model_generates_in_may_steer_what_is_generated():
    batch = LLAMA.batch([[5, 6, 7]])
    options = {"attention_mask": batch.mask, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    with Steering(direction(), 1e4, where="generated").on(LLAMA, batch):
        own = LLAMA.hf.generate(batch.ids, **options)[0].tolist()
    assert own != LLAMA.hf.generate(batch.ids, **options)[0].tolist()


def test_measures_in_which_nothing_would_be_steered():
    for targets in (["red"], "red"):
        with pytest.raises(PositionError, match="targets of one token"):
            dose_response(LLAMA, PROMPTS, direction(), [2.0], METRIC, where="generated", targets=targets)
    with pytest.raises(PositionError, match="continuation of one token"):
        iso_kl(LLAMA, PROMPTS, None, [direction()], 0.1, new_tokens=1, where="generated")
    found = dose_response(
        LLAMA, PROMPTS, direction(), [9.0], METRIC, where="generated", targets=["red blue"], n_random=1
    ).data["target_log_probability"].sel(direction="steered")  # fmt: skip
    assert not np.allclose(found.sel(strength=0.0), found.sel(strength=9.0))


# -- rows, rules, schedules, conditions --------------------------------------------------------------


def run(edit, rows: int) -> None:
    with LLAMA.edit({SITE: edit}):
        LLAMA.forward(LLAMA.batch([[5, 6, 7 + i] for i in range(rows)]))


@pytest.mark.parametrize("how", [{}, {"where": "last", "prompt_lengths": [3, 3]}])
def test_directions_for_another_number_of_rows(how):
    with pytest.raises(DataError, match="3 directions, but the model was called with 2 rows"):
        run(add_direction([direction(i) for i in range(3)], 5.0, **how), 2)
    run(add_direction([direction(0), direction(1)], 5.0, **how), 2)
    assert hooks_left(LLAMA) == 0


def test_a_set_or_directions_of_several_sites_are_not_rows():
    other = direction(1, "blocks.2.hook_resid_post")
    with pytest.raises(DataError, match="set of 2 directions"):
        add_direction(DirectionSet([direction(), other]), 5.0)
    with pytest.raises(DataError, match=r"one\s+site"):
        add_direction([direction(), other], 5.0)
    run(add_direction(DirectionSet([direction()]), 5.0), 2)


@pytest.mark.parametrize(
    "how",
    [
        {"where": "last"},
        {"where": From(index=1)},
        {"schedule": Ramp(3)},
        {"condition": Condition(direction(), holds="last")},
    ],
)
def test_a_steering_for_one_prompt_is_not_used_on_three(how):
    steering = Steering(direction(), 5.0, **how)
    three = LLAMA.batch([[5, 6, 7, 8], [9, 10], [11, 12, 13]])
    says = "positions of 1 prompts, but the model was called with 3"
    with pytest.raises(DataError, match=says), steering.on(LLAMA, LLAMA.batch([[5, 6, 7]])):
        LLAMA.forward(three)
    assert hooks_left(LLAMA) == 0
    with Steering(direction(), 5.0).on(LLAMA, LLAMA.batch([[5, 6, 7]])):
        LLAMA.forward(LLAMA.batch([[5, 6, 7, 8], [9, 10]]))


def test_a_condition_on_the_logits():
    probe, along = (direction(seed, "unembed.hook_out", LLAMA.vocab_size) for seed in (0, 1))
    for condition in (Condition(probe), Condition(lambda x, _c: x[..., 0] > 0, site="unembed.hook_out")):
        with pytest.raises(DataError, match="cannot read 'unembed.hook_out'"):
            generate(LLAMA, PROMPTS, along, 9.0, condition=condition, max_new_tokens=3)


@pytest.mark.parametrize(
    "given",
    [{"index": 1.5}, {"index": "3"}, {"text": 3}, {"token": 2.5}, {"token": ""}, {"index": [1]}, {"index": np.float64(2)},
     {"index": np.bool_(True)}, {"text": np.array([1, 2])}],
)  # fmt: skip
def test_rules_from_what_is_no_position_text_or_token(given):
    with pytest.raises(DataError, match="From"):
        From(**given)
    ((key, value),) = given.items()
    with pytest.raises(DataError, match="From"):
        as_rule({{"index": "from", "text": "from_text", "token": "from_token"}[key]: value})


@pytest.mark.parametrize(
    "schedule",
    [["a"], [None], {"schedule": ["ramp"]}, {"schedule": "windows", "windows": [[1, 2, 3]]}, {"schedule": "windows", "windows": [1, 2]},
     {"schedule": "listed", "factors": ["x"]}, {"schedule": "listed", "factors": 3}, {"schedule": "ramp", "steps": 5, "start": "x"}],
)  # fmt: skip
def test_schedules_that_are_none(schedule):
    with pytest.raises(DataError, match=r"(?i)schedule|windows"):
        as_schedule(schedule)
    with pytest.raises(DataError, match=r"(?i)schedule|windows"):
        Steering(direction(), 1.0, schedule=schedule)


def test_schedule_classes_refuse_the_same():
    for make in (
        lambda: Windows([1, 2]),
        lambda: Windows(3),
        lambda: Listed(["a"]),
        lambda: Listed([1.0], then="x"),
    ):  # type: ignore[arg-type]
        with pytest.raises(DataError, match=r"(?i)schedule|windows"):
            make()


# -- measures and methods ----------------------------------------------------------------------------


def test_a_dose_response_says_what_it_takes():
    two = DirectionSet([direction(0), direction(1)])
    for along, says in (
        (two, "one direction, not a set of 2"),
        ([direction()], "not list"),
        (None, "not NoneType"),
    ):
        with pytest.raises(DataError, match=says):
            dose_response(LLAMA, PROMPTS, along, [2.0], METRIC)
    for strengths in ("a", [None], None, [[1.0]]):
        with pytest.raises(DataError, match="give a number"):
            dose_response(LLAMA, PROMPTS, direction(), strengths, METRIC)
        with pytest.raises(DataError, match="give a number"):
            steered_texts(LLAMA, ["the"], direction(), strengths)
    for targets, says in (([""], "no tokens"), (["red", "red"], "twice"), ([5], "no text")):
        with pytest.raises(MetricError, match=says):
            dose_response(LLAMA, PROMPTS, direction(), [2.0], METRIC, targets=targets)
    with pytest.raises(MetricError, match="no scorer"):
        dose_response(LLAMA, PROMPTS, direction(), [2.0], METRIC, show_text=2, scorers=5)


def test_an_ablation_search_reads_one_token():
    sets = [[[a, 6, i] for i in range(20, 32)] for a in (5, 9)]
    with pytest.raises(MetricError, match="answer of one token"):
        ablation_direction(LLAMA, *sets, wb.patching.metrics.LogProbability((5, 6)))
    for layers in ([0.5], [], ["1"], 3):
        with pytest.raises(DataError, match="No layers were given"):
            ablation_direction(LLAMA, *sets, METRIC, layers=layers)
        with pytest.raises(DataError, match="No layers were given"):
            in_context_vector(LLAMA, *sets, layers=layers)


def test_a_rule_that_looks_for_a_text_needs_a_tokenizer():
    bare = LanguageModel(tiny.hf_model("llama"), None, name="bare")
    with pytest.raises(DataError, match="bare has no tokenizer"):
        generate(bare, PROMPTS, direction(), 2.0, where=From(text="red"), max_new_tokens=2)
    with pytest.raises(DataError, match="does not occur"):
        generate(bare, PROMPTS, direction(), 2.0, where=From(token=99), max_new_tokens=2)
    with pytest.raises(MetricError, match="no tokenizer"):
        dose_response(bare, PROMPTS, direction(), [2.0], METRIC, targets=["red"])


def test_pairs_need_a_field_of_texts_or_numbers(tmp_path):
    rows = [
        f'{{"id": "{i}", "text": "t{i}", "label": "{("positive", "negative")[i % 2]}", "g": [{i}]}}\n'
        for i in range(8)
    ]
    (tmp_path / "set.jsonl").write_text("".join(rows))
    with pytest.raises(DataError, match="pairs need a text or number"):
        MakeSpec(dataset=str(tmp_path / "set.jsonl"), pair_by="g").sides()
