"""Extraction where a plain hooked forward in float64, an order or a step is easily got wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model

import workbench as wb
from workbench.directions import Direction
from workbench.errors import DataError
from workbench.steering import CosineDown, From, Operation
from workbench.steering.extract import ablation_direction, z_steer
from workbench.steering.extract.ablation import ablate_everywhere
from workbench.steering.extract.above import Above
from workbench.steering.extract.fractional import last_token_edit
from workbench.steering.extract.from_dictionary import from_dictionary
from workbench.steering.extract.in_context_vector import norm_preserving
from workbench.steering.extract.z_optimise import Search
from workbench.steering.extract.z_result import kept_log_likelihood
from workbench.steering.rules import as_rule

MLP = "blocks.1.hook_mlp_out"


def drawn(site=MLP, d=48, seed=0):
    return Direction.from_vector(torch.randn(d, generator=torch.Generator().manual_seed(seed)), site=site)


def test_layers_in_any_order_give_each_its_own_candidate(llama):
    random = np.random.default_rng(0)
    sets = [[[*random.integers(10, 100, 3).tolist(), end] for _ in range(16)] for end in (5, 6)]
    metric = wb.LogitDifference(30, 31)
    loose: dict[str, Any] = {"kl_at_most": 100.0, "induced_at_least": -100.0, "n_random": 1}
    up, down = (
        ablation_direction(llama, sets[0], sets[1], metric, layers=layers, **loose)
        for layers in ([0, 2], [2, 0, 2])
    )
    assert np.unique(up.result.data["norm"]).size == 2
    for name in ("norm", "ablated", "induced", "kl"):
        assert np.array_equal(up.result.data[name], down.result.data.sel(layer=[0, 2])[name])
    assert up.direction.site == down.direction.site and torch.equal(
        up.direction.vector, down.direction.vector
    )
    with pytest.raises(DataError, match="No layers were given"):
        ablation_direction(llama, sets[0], sets[1], metric, layers=[], **loose)


@pytest.mark.parametrize("use_cache", [True, False])
def test_the_setting_of_fractional_reasoning_is_its_edit_step_by_step(llama, use_cache):
    """`application` as arguments of generate, against a loop with a KV cache that edits the last column of each call."""
    d, prompt, strength, n = drawn(), [5, 6, 7, 8], 0.9, 10
    said = wb.steering.generate(
        llama, [prompt], d, strength, op=Operation("in_context", similarity=0.0), where=as_rule({"from": -1}),
        schedule=CosineDown(50, 0.5), max_new_tokens=n, stop_at_end=False, use_cache=use_cache,
    ).tokens[0]  # fmt: skip
    now, past, found = torch.tensor([prompt]), None, []
    with torch.no_grad():
        for step in range(n):
            with llama.edit({MLP: last_token_edit(d, strength, step)}):
                out = llama.hf(input_ids=now, past_key_values=past, use_cache=True)
            past, logits = out.past_key_values, out.logits[0, -1]
            logits[2] = -torch.inf  # the end-of-sequence token
            now = logits.argmax()[None, None]
            found.append(int(now))
    assert list(said) == found
    once = wb.steering.generate(
        llama, [prompt], d, strength, op=Operation("in_context", similarity=0.0), where="last",
        schedule=CosineDown(50, 0.5), max_new_tokens=n, stop_at_end=False,
    ).tokens[0]  # fmt: skip
    assert list(once) != found and as_rule({"from": -1}) == From(index=-1)


def test_in_float64_nothing_is_rounded_to_float32(llama):
    x = torch.randn(2, 3, 48, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    d = drawn()
    v = d.vector.double()
    exact = v / v.norm()
    (out, *_) = ablate_everywhere(llama, d).values()
    assert float((out(x) @ exact).abs().max()) < 1e-13
    assert d.project(x).dtype == torch.float64 and torch.allclose(d.project(x), x @ v, rtol=0, atol=1e-14)
    unit = x / x.norm(dim=-1, keepdim=True)
    size = x.norm(dim=-1, keepdim=True)
    turned = unit + 0.3 * (1 + torch.relu(-(unit @ v)))[..., None] * v
    expected = size * turned / turned.norm(dim=-1, keepdim=True)
    assert torch.allclose(norm_preserving(d, 0.3)(x), expected, rtol=0, atol=1e-13)
    last = unit[:, -1] + 0.3 * v
    expected = size[:, -1] * last / last.norm(dim=-1, keepdim=True)
    assert torch.allclose(last_token_edit(d, 0.3)(x)[:, -1], expected, rtol=0, atol=1e-13)
    assert d.project(x.to(torch.bfloat16)).dtype == torch.float32


def test_an_unsolved_row_is_ranked_by_the_z_that_is_kept():
    nan = float("nan")
    found = Search(
        z=torch.zeros(3, 2),
        log_likelihood=torch.tensor([[-9.0, -2.0, -5.0], [-9.0, -4.0, nan], [nan, nan, nan]]),
        steps=torch.tensor([3, 2, 3]),
        solved=torch.tensor([False, True, False]),
    )
    assert kept_log_likelihood(found)[:2].tolist() == [-2.0, -4.0]
    assert float(kept_log_likelihood(found)[2]) < -1e30


def test_the_log_likelihood_of_a_direction_is_that_of_its_vector():
    model, target = tiny_model("llama"), [40, 41, 42, 43]
    found = z_steer(
        model, [target], 0, prefix=[5, 9], steps=12, restarts=3, learning_rate=30.0, schedule="constant",
        margin=1e9, seed=1,
    )  # fmt: skip
    d = found.directions[0]
    with torch.no_grad():
        logs, _ = Above(model, [[5, 9, *target]], 2, 0).score((d.vector * d.scale).expand(1, 6, -1))
    assert d.settings["log_likelihood"] == pytest.approx(float(logs.sum()), abs=1e-3)
    assert float(found.result.data["log_likelihood"].max()) == pytest.approx(d.settings["log_likelihood"])


def test_numbers_of_a_dictionary_are_whole_and_a_numpy_number_is_a_number():
    rows = torch.randn(5, 48, generator=torch.Generator().manual_seed(0))
    three: Any = np.int64(3)
    two: Any = np.float32(2)
    one = from_dictionary(rows, MLP, three, activation=two)
    assert one[0].scale == pytest.approx(2 * float(rows[3].norm()), rel=1e-6) and one.names == ["feature 3"]
    for wrong in ([1.5], 1.5, True):
        with pytest.raises(DataError, match="no whole number"):
            from_dictionary(rows, MLP, wrong)  # type: ignore[arg-type]


def test_random_controls_of_an_ablation_have_the_norm_of_the_difference(llama, monkeypatch):
    from workbench.steering.extract import ablation

    random, norms, plain = np.random.default_rng(0), [], ablation._scores

    def spy(model, site, difference, *rest):
        norms.append((site, float(difference.norm())))
        return plain(model, site, difference, *rest)

    monkeypatch.setattr(ablation, "_scores", spy)
    sets = [[[*random.integers(10, 100, 3).tolist(), end] for _ in range(8)] for end in (5, 6)]
    found = ablation_direction(
        llama, sets[0], sets[1], wb.LogitDifference(30, 31), layers=[1], kl_at_most=1e9, induced_at_least=-1e9,
        n_random=3,
    )  # fmt: skip
    assert [site for site, _ in norms] == [
        "blocks.1.hook_resid_post"
    ] * 5  # candidate, its test, three controls
    assert [n for _, n in norms] == pytest.approx([found.direction.scale] * 5)


def test_what_is_read_after_erasing_is_read_on_rows_the_axis_was_not_made_of():
    from workbench.steering.extract.leace import _erased

    draw = torch.Generator().manual_seed(0)
    noise = [[torch.randn(20, 64, generator=draw, dtype=torch.float64) for _ in "ab"] for _ in range(12)]
    found = [_erased(a, b, seed=i)["nothing"] for i, (a, b) in enumerate(noise)]
    assert abs(np.mean(found) - 0.5) < 0.12  # on its own rows it would be 1


def test_the_random_z_of_the_control_is_as_long_as_the_z_that_is_kept(monkeypatch):
    from workbench.steering.extract import z_result

    seen, plain = [], z_result._written

    def spy(model, vectors, *rest):
        seen.append(vectors)
        return plain(model, vectors, *rest)

    monkeypatch.setattr(z_result, "_written", spy)
    found = z_steer(
        tiny_model("llama"), [[40, 41], [50, 51, 52]], 0, prefix=[5, 9], steps=4, restarts=2, seed=1
    )
    _, none, random, other = seen
    kept = torch.stack([d.vector * d.scale for d in found.directions])
    assert none is None and torch.allclose(other, kept.roll(1, 0), atol=1e-5)
    assert torch.allclose(random.norm(dim=1), kept.norm(dim=1), rtol=1e-5)
    assert not torch.allclose(random, kept, atol=1e-2)
