"""KL, cross-entropy and target log-probability against brute force: one prompt, one hooked forward at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import hooks_left, tiny_model

import workbench as wb
from workbench.directions import Direction
from workbench.errors import Cancelled, DataError, MetricError
from workbench.progress import Silent
from workbench.steering.measure import Dose, cross_entropy, kl_of_doses, target_log_probability
from workbench.steering.measure.kl import kl_divergence
from workbench.steering.measure.rows import generate_rows

PROMPTS = [[5, 9, 30], [7, 8, 9, 10, 11], [50, 51]]
SAID = [[20, 21, 22, 23], [40], []]


def a_direction(model, site="blocks.1.hook_resid_post", seed=0) -> Direction:
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(seed))
    return Direction.from_vector(vector, site=site, name="random", source="test")


def brute_logits(model, ids, dose: Dose) -> np.ndarray:
    """[position, vocabulary] float64, by a plain torch hook on the Hugging Face block."""
    handle = None
    if not dose.nothing:
        layer = int(dose.direction.site.split(".")[1])
        add = dose.strength * dose.direction.vector

        def hook(_m, _a, out):
            return out + add if isinstance(out, torch.Tensor) else (out[0] + add, *out[1:])

        handle = model.block(layer).register_forward_hook(hook)
    with torch.no_grad():
        logits = model.hf(torch.tensor([ids])).logits[0].double()
    if handle is not None:
        handle.remove()
    return logits.log_softmax(-1).numpy()


def brute_kl(model, prompt, said, dose) -> np.ndarray:
    """KL at each position that predicts a token of the continuation."""
    ids = [*prompt, *said[:-1]]
    p, q = brute_logits(model, ids, Dose()), brute_logits(model, ids, dose)
    return (np.exp(p) * (p - q)).sum(-1)[len(prompt) - 1 :]


def test_kl_is_that_of_plain_hooked_forwards(model):
    doses = [
        Dose(),
        Dose(a_direction(model), 5.0),
        Dose(a_direction(model, "blocks.0.hook_resid_post", 1), -9.0),
    ]
    found = kl_of_doses(model, PROMPTS, SAID, doses)
    for j, dose in enumerate(doses):
        for i, (prompt, said) in enumerate(zip(PROMPTS, SAID, strict=True)):
            expected = brute_kl(model, prompt, said, dose)
            assert np.isclose(found.last[j, i], expected[0], atol=1e-4, rtol=1e-3)
            assert np.isclose(found.along[j, i], expected.mean(), atol=1e-4, rtol=1e-3)
    assert (found.last[0] == 0).all() and (found.along[1] > 0).all()
    assert hooks_left(model) == 0


def test_batches_of_any_size_give_the_same(llama):
    doses = [Dose(a_direction(llama, seed=i), 3.0 + i) for i in range(4)]
    whole = kl_of_doses(llama, PROMPTS, SAID, doses)
    small = kl_of_doses(llama, PROMPTS, SAID, doses, tokens_per_batch=1)
    assert np.allclose(whole.along, small.along, atol=1e-4) and np.allclose(whole.last, small.last, atol=1e-4)
    rows = [p for _ in doses for p in PROMPTS]
    each = [d for d in doses for _ in PROMPTS]
    assert (
        generate_rows(llama, rows, each, max_new_tokens=5).tokens
        == generate_rows(llama, rows, each, max_new_tokens=5, tokens_per_batch=1).tokens
    )


def test_rows_of_several_sites_and_none_are_generated_as_alone(llama):
    doses = [
        Dose(),
        Dose(a_direction(llama), 20.0),
        Dose(a_direction(llama, "blocks.0.hook_resid_post"), 20.0),
    ]
    found = generate_rows(llama, [PROMPTS[0]] * 3, doses, max_new_tokens=6)
    for i, dose in enumerate(doses):
        alone = wb.steering.generate(llama, PROMPTS[0], dose.direction, dose.strength, max_new_tokens=6)
        assert found.tokens[i] == alone.tokens[0]
    assert len(set(found.tokens)) == 3


def test_position_rules_hold_along_the_continuation(llama):
    """Steering only what is generated leaves the prompt's last token as it was; `along` sees the rest."""
    dose = [Dose(a_direction(llama), 9.0)]
    generated = kl_of_doses(llama, PROMPTS[:1], SAID[:1], dose, where="generated")
    everywhere = kl_of_doses(llama, PROMPTS[:1], SAID[:1], dose)
    assert generated.last[0, 0] < 1e-9 < generated.along[0, 0]
    assert everywhere.last[0, 0] > 1e-3


def test_metrics_ride_on_the_same_forward(llama):
    seen = {}
    dose = Dose(a_direction(llama), 4.0)
    kl_of_doses(llama, PROMPTS, SAID, [Dose(), dose], also=lambda j, i, x: seen.update({(j, i): x.clone()}))
    assert set(seen) == {(j, i) for j in range(2) for i in range(3)}
    for j, one in enumerate([Dose(), dose]):
        expected = brute_logits(llama, PROMPTS[1], one)[-1]
        assert np.allclose(seen[j, 1].double().log_softmax(-1).numpy(), expected, atol=1e-4)


def test_kl_of_known_distributions():
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.5, 0.25])
    expected = 0.5 * np.log(2) - 0.25 * np.log(2)
    assert np.isclose(float(kl_divergence(p.log(), q.log() + 3.0)), expected, atol=1e-6)


def test_cross_entropy_is_that_of_one_by_one_forwards(model):
    found = cross_entropy(model, PROMPTS, SAID)
    for i in (0, 1):
        logs = brute_logits(model, [*PROMPTS[i], *SAID[i]], Dose())
        at = range(len(PROMPTS[i]) - 1, len(PROMPTS[i]) + len(SAID[i]) - 1)
        expected = -np.mean([logs[t, x] for t, x in zip(at, SAID[i], strict=True)])
        assert np.isclose(found[i], expected, atol=1e-4)
    assert np.isnan(found[2])


def test_target_log_probability_is_the_sum_over_its_tokens(llama):
    dose = Dose(a_direction(llama), 6.0)
    found = target_log_probability(llama, PROMPTS, ["Mary went to", "Paris"], [Dose(), dose])
    assert found.shape == (2, 3, 2)
    ids = llama.tokenizer("Mary went to", add_special_tokens=False)["input_ids"]
    for j, one in enumerate([Dose(), dose]):
        logs = brute_logits(llama, [*PROMPTS[1], *ids], one)
        expected = sum(logs[len(PROMPTS[1]) - 1 + t, x] for t, x in enumerate(ids))
        assert np.isclose(found[j, 1, 0], expected, atol=1e-4)


def test_bad_input_is_one_clear_error(llama):
    with pytest.raises(DataError, match="not finite"):
        Dose(a_direction(llama), float("nan"))
    with pytest.raises(DataError, match="needs a direction"):
        Dose(None, 2.0)
    with pytest.raises(DataError, match="1 continuations were given for 3 prompts"):
        kl_of_doses(llama, PROMPTS, [[1]], [Dose()])
    with pytest.raises(DataError, match="1 continuations"):
        cross_entropy(llama, PROMPTS, [[1]])
    with pytest.raises(MetricError, match="No targets"):
        target_log_probability(llama, PROMPTS, " good")
    with pytest.raises(MetricError, match="has no tokens"):
        target_log_probability(llama, PROMPTS, [""])


def test_a_cancel_stops_and_leaves_no_hook():
    class Stop(Silent):
        def advance(self, n: int = 1) -> None:
            raise Cancelled

    model = tiny_model("llama")
    with pytest.raises(Cancelled):
        kl_of_doses(model, PROMPTS, SAID, [Dose(a_direction(model), 1.0)], progress=Stop())
    assert hooks_left(model) == 0
