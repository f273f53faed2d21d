"""Interchange interventions and distributed alignment search."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import hooks_left, tiny_model

import workbench as wb
from workbench.errors import DataError, MetricError, PromptError
from workbench.patching.subspace import das, interchange

SITE = "blocks.1.hook_resid_post"


def prompts(n, seed=0, length=6):
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 100, length).tolist() for _ in range(n)]


def test_the_whole_space_is_a_patch_and_an_empty_difference_is_nothing(model):
    base, source = prompts(4), prompts(4, seed=1)
    whole = interchange(model, base, source, site=SITE)
    square = interchange(model, base, source, site=SITE, basis=torch.eye(model.d_model))
    for i in range(4):
        with model.hooks(read=SITE) as session:
            model.logits(source[i])

        def put(x):
            x[:, -1] = session[SITE][:, -1]
            return x

        with model.edit({SITE: put}):
            expected = model.logits(base[i])[0, -1]
        assert torch.allclose(whole[i], expected, atol=1e-4)
        assert torch.allclose(square[i], expected, atol=1e-3)
    same = interchange(model, base, base, site=SITE, basis=torch.randn(2, model.d_model))
    assert torch.allclose(same[2], model.logits(base[2])[0, -1], atol=1e-4)
    assert hooks_left(model) == 0


def test_a_subspace_moves_its_own_coordinates_only(llama):
    base, source = prompts(1), prompts(1, seed=1)
    basis = torch.randn(3, llama.d_model, generator=torch.Generator().manual_seed(0))
    q = torch.linalg.qr(basis.T).Q
    seen = []

    def look(x):
        seen.append(x[0, -1].clone())
        return x

    with llama.hooks(read=SITE) as session:
        llama.logits(base)
        llama.logits(source)
    x, s = (run[0, -1] for run in session.calls(SITE))
    with llama.edit({SITE: look}):
        interchange(llama, base, source, site=SITE, basis=basis)
    # hooks of one site fire in the order they were registered: the outer one sees the run untouched
    patched = x + q @ (q.T @ (s - x))
    with llama.hooks(read="blocks.2.hook_resid_pre") as after:
        interchange(llama, base, source, site=SITE, basis=basis)
    got = after["blocks.2.hook_resid_pre"][0, -1]
    assert torch.allclose(got, patched, atol=1e-5)
    assert torch.allclose(got - q @ (q.T @ got), x - q @ (q.T @ x), atol=1e-5)


def test_a_planted_subspace_is_found():
    """What each pair should answer is what the planted direction makes of it; a search must give it back."""
    model = tiny_model("llama")
    before = {name: p.clone() for name, p in model.hf.named_parameters()}
    base, source = prompts(96), prompts(96, seed=1)
    planted = torch.randn(1, model.d_model, generator=torch.Generator().manual_seed(5))
    planted /= planted.norm()
    targets = interchange(model, base, source, site=SITE, basis=planted).float().softmax(-1).clone()
    answers = targets.argmax(-1).tolist()
    result = das(
        model, base, source, answers, site=SITE, targets=targets, steps=400, learning_rate=0.02, seed=1
    )
    found = torch.from_numpy(result.data["basis"].values)
    assert abs(float((found @ planted.T).item())) > 0.95
    accuracy = result.summary["accuracy"]
    assert accuracy["trained"] > 0.9
    assert (
        accuracy["trained"] > accuracy["random"] + 0.1 and accuracy["trained"] > result.summary["unpatched"]
    )
    low, high = (result.data[f"accuracy_{end}"].sel(subspace="trained") for end in ("low", "high"))
    assert low <= accuracy["trained"] + 1e-6 <= high + 2e-6
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.hf.named_parameters())
    assert result.data.attrs["n_test"] == 29 and result.data["success"].shape == (4, 29)


def test_the_trained_rows_are_orthonormal_and_the_seed_decides(llama):
    base, source = prompts(12), prompts(12, seed=1)
    given = {"site": SITE, "rank": 3, "steps": 5, "seed": 2}
    one, two = (das(llama, base, source, [7] * 12, **given).data["basis"].values for _ in range(2))
    assert np.allclose(one @ one.T, np.eye(3), atol=1e-5)
    np.testing.assert_array_equal(one, two)


def test_what_does_not_fit_is_an_error(llama):
    base, source = prompts(6), prompts(6, seed=1)
    with pytest.raises(MetricError, match="2 answers were given for 6 pairs"):
        das(llama, base, source, [7, 8], site=SITE)
    with pytest.raises(DataError, match="has 48 dimensions"):
        das(llama, base, source, [7] * 6, site=SITE, rank=49)
    with pytest.raises(PromptError, match="names 3 sites"):
        das(llama, base, source, [7] * 6, site="blocks.*.hook_resid_post")
    with pytest.raises(PromptError, match="within prompts of 6 tokens"):
        das(llama, base, source, [7] * 6, site=SITE, positions=6)
    with pytest.raises(DataError, match="none to test on"):
        das(llama, base[:1], source[:1], [7], site=SITE)
    assert wb.patching.das is das
