"""Steering that is off changes not a bit, and nothing of it is left behind: at the end, after an error, after a cancel."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from conftest import hooks_left, tiny_model
from test_steering_exact import PROMPTS, RULES, SITE, direction

import workbench as wb
from workbench.errors import Cancelled, DataError, PromptError
from workbench.model.generating import gumbel, row_keys
from workbench.model.tokens import from_ids
from workbench.steering import OPERATIONS, Condition, Operation, Steering
from workbench.steering.sampling import Sampling

PARAMETERS = {"clamp": {"value": 3.0}, "affine": {"a": 0.5, "b": 1.0}}


def bits(logits: torch.Tensor) -> torch.Tensor:
    return logits.contiguous().view(torch.int32)


def test_strength_0_changes_nothing_bit_for_bit_and_removal_restores_the_model(model):
    batch = from_ids(model, PROMPTS, side="left")
    plain = model.forward(batch).logits
    for name in OPERATIONS:
        op = Operation(name, **PARAMETERS.get(name, {}))
        with Steering(direction(), 0.0, op).on(model, batch):
            assert torch.equal(bits(model.forward(batch).logits), bits(plain)), name
    with model.hooks(read=SITE) as seen:
        model.forward(batch)
    before = bits(seen[SITE])
    for rule in RULES.values():  # rows at strength 0 beside one that is steered
        with Steering(direction(), [0.0, 40.0, 0.0], **rule).on(model, batch, read=[SITE]) as seen:
            model.forward(batch)
        after = bits(seen[SITE])
        assert torch.equal(after[0], before[0]) and torch.equal(after[2], before[2])
    with Steering(direction(), 40.0).on(model, batch):
        assert not torch.equal(model.forward(batch).logits, plain)
    assert hooks_left(model) == 0
    assert torch.equal(bits(model.forward(batch).logits), bits(plain))


def test_half_precision_at_strength_0_is_untouched_too():
    model = tiny_model("llama", dtype=torch.bfloat16)
    model.hf.to(torch.bfloat16)
    batch = from_ids(model, PROMPTS, side="left")
    plain = model.forward(batch).logits
    with Steering(direction(), 0.0, "add_keeping_norm").on(model, batch):
        assert torch.equal(model.forward(batch).logits, plain)
    with Steering(direction(), 8.0, "rotate").on(model, batch, read=[SITE]) as seen:
        model.forward(batch)
    assert seen[SITE].dtype == torch.bfloat16


class Watch:
    """Progress that counts, and raises what it is told to after some tokens."""

    def __init__(self, after: int = 10**9, error: type[Exception] = Cancelled) -> None:
        self.after, self.error, self.done, self.total = after, error, 0, 0

    def stage(self, name: str, total: int) -> None:
        self.total = total

    def advance(self, n: int = 1) -> None:
        self.done += n
        if self.done > self.after:
            raise self.error


@pytest.mark.parametrize("error", [Cancelled, KeyboardInterrupt, ValueError])
def test_a_cancel_or_an_error_leaves_the_model_as_it_was(llama, error):
    batch = from_ids(llama, PROMPTS)
    plain = llama.forward(batch).logits
    watch = Watch(after=9, error=error)
    with pytest.raises(error):
        wb.steering.generate(llama, PROMPTS, direction(), 30.0, max_new_tokens=20, progress=watch)
    assert watch.done == 12  # the fourth token of three rows: it stopped there, not at the end
    assert hooks_left(llama) == 0
    assert torch.equal(llama.forward(batch).logits, plain)

    def broken(activation, context):
        raise error("inside the hook")

    steering = Steering(direction(), 1.0, condition=Condition(broken, site=SITE))
    with pytest.raises(error, match="inside the hook"):
        wb.steering.generate(llama, PROMPTS, steering)
    assert hooks_left(llama) == 0
    assert torch.equal(llama.forward(batch).logits, plain)


def test_progress_counts_tokens_of_rows_even_where_they_end_early(llama):
    watch = Watch()
    wb.steering.generate(
        llama, PROMPTS, direction(), 30.0, max_new_tokens=7, rows_per_batch=2, progress=watch
    )
    assert watch.done == watch.total == 21


def test_rows_go_up_in_halves_where_memory_is_full(llama, monkeypatch):
    expected = wb.steering.sweep_strengths(llama, PROMPTS, direction(), [0.0, 9.0, 30.0], max_new_tokens=5)
    own, sizes = llama.hf.forward, []

    def small(*args, **kwargs):
        sizes.append(kwargs["input_ids"].shape[0])
        if sizes[-1] > 3 and len(sizes) > 2:  # only once the third token is due
            raise torch.OutOfMemoryError("CUDA out of memory")
        return own(*args, **kwargs)

    monkeypatch.setattr(llama.hf, "forward", small)
    watch = Watch()
    found = wb.steering.sweep_strengths(
        llama, PROMPTS, direction(), [0.0, 9.0, 30.0], max_new_tokens=5, progress=watch
    )
    assert found.tokens == expected.tokens
    assert found.generation.notes == (
        "Memory was full with 9 rows; went on with 4 at a time.",
        "Memory was full with 4 rows; went on with 2 at a time.",
    )
    assert watch.done == watch.total == 45
    assert max(sizes[3:]) <= 4 and hooks_left(llama) == 0
    monkeypatch.setattr(llama.hf, "forward", lambda *a, **k: (_ for _ in ()).throw(MemoryError("no more")))
    with pytest.raises(MemoryError, match="no more"):
        wb.steering.generate(llama, PROMPTS)


def test_rows_end_at_any_end_token_and_say_so(llama):
    plain = wb.steering.generate(llama, PROMPTS, max_new_tokens=8, stop_at_end=False)
    assert [len(row) for row in plain.tokens] == [8, 8, 8] and plain.ended == (False,) * 3
    end = plain.tokens[0][3]
    llama.hf.generation_config.eos_token_id = [2, end]
    found = wb.steering.generate(llama, PROMPTS, max_new_tokens=8)
    assert found.tokens[0] == plain.tokens[0][: plain.tokens[0].index(end)] and found.ended[0]
    assert all(end not in row and 2 not in row for row in found.tokens)
    assert found.settings["steering"] is None and found.settings["max_new_tokens"] == 8


def test_penalties_of_a_generation_config_are_left_out(llama):
    plain = wb.steering.generate(llama, PROMPTS, max_new_tokens=8)
    llama.hf.generation_config.repetition_penalty = 5.0
    llama.hf.generation_config.no_repeat_ngram_size = 1
    assert wb.steering.generate(llama, PROMPTS, max_new_tokens=8).tokens == plain.tokens


def splitmix(state: int) -> int:
    """SplitMix64's output function in whole numbers, as published."""
    top = (1 << 64) - 1
    z = state & top
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & top
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & top
    return z ^ (z >> 31)


def test_noise_is_splitmix_of_seed_row_step_and_token():
    import math

    noise = gumbel(row_keys(7, [3, -1, 2**40]), step=5, n=50)
    for i, row in enumerate((3, -1, 2**40)):
        key = splitmix(splitmix(splitmix(7) + row) + 5)
        for token in range(50):
            u = ((splitmix(key + (token + 1) * 0x9E3779B97F4A7C15) >> 12) + 0.5) / 2**52
            assert math.isclose(float(noise[i, token]), -math.log(-math.log(u)), rel_tol=1e-12)
    assert splitmix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF  # the published first output of seed 0


def test_draws_have_the_probabilities_of_the_softmax():
    from scipy.stats import chisquare

    scores = torch.tensor([[2.0, 1.0, 0.0, -1.0, -3.0]])
    n = 40_000
    keys = row_keys(11, range(n))
    drawn = (scores.double() + gumbel(keys, 1, 5)).argmax(-1)
    counts = Counter(drawn.tolist())
    expected = (n * scores.double().softmax(-1))[0].tolist()
    assert chisquare([counts[i] for i in range(5)], expected).pvalue > 1e-3
    steps = torch.cat([(scores.double() + gumbel(keys[:1], step, 5)).argmax(-1) for step in range(4000)])
    share = float((steps == 0).double().mean())
    assert abs(share - float(scores.softmax(-1)[0, 0])) < 0.03


def test_top_k_and_top_p_leave_only_the_likeliest(llama):
    prompts, options = [[5, 9, 30]] * 300, {"temperature": 3.0, "max_new_tokens": 1, "stop_at_end": False}
    order = llama.logits([5, 9, 30])[0, -1].argsort(descending=True).tolist()
    order.remove(2)
    said = {row[0] for row in wb.steering.generate(llama, prompts, top_k=3, **options).tokens}
    assert said == set(order[:3])
    probability = (llama.logits([5, 9, 30])[0, -1] / 3.0).softmax(-1)
    narrow = {
        row[0]
        for row in wb.steering.generate(llama, prompts, top_p=float(probability.max()) / 2, **options).tokens
    }
    assert narrow == {order[0]}
    assert len({row[0] for row in wb.steering.generate(llama, prompts, **options).tokens}) > 10


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"strength": [1.0, 2.0]}, DataError, "2 rows.*3 prompts"),
        ({"row_seeds": [1]}, DataError, "1 row seeds were given for 3 prompts"),
        ({"temperature": -1.0}, DataError, "Temperature -1.0"),
        ({"top_p": 0.5}, DataError, "give a temperature"),
        ({"temperature": 1.0, "top_p": 0.0}, DataError, "top_p 0.0"),
        ({"temperature": 1.0, "top_k": 0}, DataError, "top_k 0"),
        ({"max_new_tokens": 0}, DataError, "max_new_tokens is 0"),
        ({"max_new_tokens": 60}, PromptError, "Prompt 1 has 6 tokens.*at most 59 new tokens"),
        ({"direction": None, "strength": 3.0}, DataError, "without a direction"),
        ({"direction": Steering(direction()), "strength": 3.0}, DataError, "its own strength"),
        ({"direction": Steering(direction()), "strength": 0.0, "where": "last"}, DataError, "its own where"),
    ],
)
def test_what_cannot_be_generated_is_one_clear_error(llama, options, kind, message):
    asked = {"direction": direction(), "strength": 1.0, "max_new_tokens": 2} | options
    with pytest.raises(kind, match=message):
        wb.steering.generate(llama, PROMPTS, **asked)
    assert hooks_left(llama) == 0


def test_sampling_settings_are_kept():
    assert Sampling(0.8, 40, 0.9, 3).settings() == {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "seed": 3}
