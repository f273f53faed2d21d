"""The stream between attention and MLP, where the input of the block is edited as well."""

from __future__ import annotations

import pytest
import torch
from tiny import FAMILIES


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
