"""What a gradient pass computes, and for which rows: those that differ, whose gradient is wanted, whose logits are."""

from __future__ import annotations

import pytest
import torch
from conftest import hooks_left, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

import workbench as wb
from workbench.patching import first_order, products
from workbench.patching.attribution import attribution
from workbench.patching.products import Rows, only_tokens, trimmed

BASE = [50, 51, 52, 53, 54, 55, 56, 57, 58, 59]
SOURCE = [*BASE[:7], 60, *BASE[8:]]
LENGTH = len(BASE)
METRIC = wb.LogitDifference(7, 9)


def swapped(model):
    return [name for name, module in model.hf.named_modules() if "forward" in module.__dict__]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_rows_say_which_row_equals_which(data):
    length, n = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 5))
    like = [data.draw(st.sampled_from([i, n - 1])) for i in range(n)]
    equal = [0 if like[i] == i else data.draw(st.integers(0, length)) for i in range(n)]
    wanted = [data.draw(st.integers(0, length)) for _ in range(n)]
    rows = Rows.of(length, like, equal, wanted)
    everything = list(range(n * length))

    def listed(index):
        return everything[index] if isinstance(index, slice) else index.tolist()

    computed = listed(rows.computed)
    for i in range(n):
        for p in range(length):
            of = like[i] if p < equal[i] else i
            assert computed[rows.copied[i * length + p]] == of * length + p
    assert len(computed) == sum(length - e for e in equal)
    assert listed(rows.wanted) == [i * length + p for i in range(n) for p in range(wanted[i], length)]


@pytest.mark.parametrize("control", [False, True])
def test_products_are_computed_for_the_rows_that_matter(llama, monkeypatch, control):
    rows = []

    def counting(weight, _one_dnn):
        def product(x, w, bias=None):
            rows.append((w.shape == weight.shape and w.stride() == weight.stride(), len(x)))
            return torch.nn.functional.linear(x, w, bias)

        return product

    monkeypatch.setattr(products, "product_of", counting)
    attribution(llama, SOURCE, BASE, METRIC, kind=["resid_pre", "mlp_out"], control=control)
    assert len(rows) == 2 * 7 * 3, "seven products in each of three blocks, there and back"
    forward, back = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    assert {n for _, n in forward} == {2 * LENGTH - 7}
    assert {n for _, n in back} == {LENGTH if control else LENGTH - 7}


def test_nothing_differs_where_both_runs_have_the_same_tokens(model):
    runs = first_order.Runs.to_expand(model, SOURCE, BASE, METRIC, "denoising", 0)
    points = model.resolve(["blocks.*.hook_resid_post", "blocks.*.attn.hook_z"])
    (one,) = runs.expand(points, [p.name for p in points], False, 0, 1024)
    for name, delta in one.delta.items():
        assert not delta[:7].any() and delta[7:].any(), name


def test_a_trimmed_pass_has_the_logits_and_a_few_tokens_are_those_of_all(model):
    batch = model.batch([SOURCE])
    ids = torch.cat([batch.ids, torch.tensor([BASE])])
    rows = Rows.of(LENGTH, [1, 1], [7, 0], [LENGTH, 7])
    whole = model.hf(input_ids=ids, use_cache=False).logits.detach()
    with torch.no_grad(), trimmed(model, rows):
        same = model.hf(input_ids=ids, use_cache=False).logits
    assert torch.allclose(same, whole, atol=1e-4, rtol=1e-4)
    with torch.no_grad(), only_tokens(model, [9, 7, 50]) as few:
        some = model.hf(input_ids=ids, use_cache=False).logits
    assert few and some.shape == (2, LENGTH, 3)
    assert torch.allclose(some, whole[..., [9, 7, 50]], atol=1e-5)
    assert not swapped(model)


def test_in_lower_precision_all_logits_are_computed():
    model = tiny_model("llama")
    model.hf.bfloat16()
    with torch.no_grad(), only_tokens(model, [7, 9]) as few:
        assert not few and model.hf(input_ids=torch.tensor([BASE]), use_cache=False).logits.shape[-1] == 120


def test_modules_are_put_back_when_the_pass_fails(model):
    def broken(_module, _args, _output):
        raise KeyboardInterrupt

    handle = model.block(1).register_forward_hook(broken)
    with pytest.raises(KeyboardInterrupt):
        attribution(model, SOURCE, BASE, METRIC)
    handle.remove()
    assert hooks_left(model) == 0 and not swapped(model)
