"""Sessions as users put them together: masks without a name, one session inside another, globs."""

from __future__ import annotations

import pytest
import torch
from test_steering_measure_kl import a_direction

from workbench.errors import HookError
from workbench.steering import Steering

PATTERN = "blocks.0.attn.hook_pattern"


@pytest.mark.parametrize("named", [True, False])
def test_a_mask_is_seen_with_and_without_its_name(llama, named):
    """With padding on the left, the last token of each row is steered, however the mask is given."""
    batch = llama.batch([[5, 6, 7, 8, 9], [5, 6]], side="left")
    site = "blocks.1.hook_resid_post"
    with torch.inference_mode():
        with llama.hooks(read=[site]) as plain:
            llama.hf(batch.ids, attention_mask=batch.mask)
        with Steering(a_direction(llama), 5.0, where="last").on(llama, batch, read=[site]) as steered:
            llama.hf(batch.ids, attention_mask=batch.mask) if named else llama.hf(batch.ids, batch.mask)
    moved = (steered[site] - plain[site]).norm(dim=-1) > 1
    assert moved.int().tolist() == [[0, 0, 0, 0, 1], [0, 0, 0, 0, 1]]


def test_a_session_inside_another_reads_a_pattern_once_each(llama):
    before = llama.hf.config._attn_implementation
    with llama.hooks(read=[PATTERN]) as outer:
        with llama.hooks(read=[PATTERN]) as inner:
            llama.forward(llama.batch([[5, 6, 7]]))
        llama.forward(llama.batch([[5, 6, 8]]))
    assert (len(outer.calls(PATTERN)), len(inner.calls(PATTERN))) == (2, 1)
    assert torch.equal(outer.calls(PATTERN)[0], inner[PATTERN])
    assert llama.hf.config._attn_implementation == before


def test_a_glob_that_stands_for_several_sites_is_not_the_first_of_them(llama):
    with llama.hooks(read="blocks.*.hook_resid_post") as seen:
        llama.forward(llama.batch([[5, 6, 7]]))
    with pytest.raises(HookError, match=r"stands for 3 sites .*: give one of them"):
        seen["blocks.*.hook_resid_post"]
    assert torch.equal(seen["blocks.-1.hook_resid_post"], seen["blocks.2.hook_resid_post"])
