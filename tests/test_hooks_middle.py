"""The stream between attention and MLP, where the input of the block is edited as well."""

from __future__ import annotations

import pytest
import torch
from tiny import FAMILIES, hf_model, tokenizer

from workbench.model.language_model import LanguageModel


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "neox"])  # its blocks are parallel
def test_the_middle_of_a_block_follows_an_edit_of_its_input(model):
    """What is read and edited at resid_mid is the sum of the edited input and the attention's output."""
    pre, mid, out = (f"blocks.1.hook_{name}" for name in ("resid_pre", "resid_mid", "attn_out"))
    v = torch.nn.functional.normalize(
        torch.randn(model.d_model, generator=torch.Generator().manual_seed(0)), dim=0
    )
    batch = model.batch([[5, 6, 7, 8]])
    with torch.inference_mode():
        with model.hooks(read=[pre, mid, out], edit={pre: lambda x: x + 3 * v}) as seen:
            model.forward(batch)
        assert torch.allclose(seen[mid], seen[pre] + seen[out], atol=1e-5)
        edits = {pre: lambda x: x + 3 * v, mid: lambda x: x - (x @ v)[..., None] * v}
        with model.hooks(read=[mid], edit=edits) as seen:
            model.forward(batch)
        assert (seen[mid] @ v).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "neox"])
def test_an_edit_of_the_middle_that_changes_nothing_changes_no_bit(family, dtype):
    """(input + attention) - input is rounded; what an edit left alone is not touched."""
    model = LanguageModel(hf_model(family).to(dtype), tokenizer(), name=family)
    ids = torch.randint(3, 110, (8, 20), generator=torch.Generator().manual_seed(1)).tolist()
    batch = model.batch(ids)

    def first_row(x):
        x[0] = x[0] + 1
        return x

    with torch.inference_mode():
        plain = model.forward(batch).logits
        with model.edit({"blocks.0.hook_resid_mid": lambda x: x}):
            assert torch.equal(model.forward(batch).logits, plain)
        with model.edit({"blocks.0.hook_resid_mid": first_row}):
            changed = model.forward(batch).logits
    assert not torch.equal(changed[0], plain[0])
    if family != "mixtral":  # experts see all rows at once, whose sums are ordered by who comes to them
        assert torch.equal(changed[1:], plain[1:])


def test_a_vector_that_is_added_at_the_middle_has_a_gradient_from_0_on(llama):
    v = torch.zeros(llama.d_model, requires_grad=True)
    with llama.edit({"blocks.0.hook_resid_mid": lambda x: x + v}):
        llama.hf(torch.tensor([[5, 6, 7]])).logits[0, -1, 3].backward()
    assert v.grad is not None and float(v.grad.norm()) > 0
