"""`Activations.take`: some prompts of a collection are what collecting them alone gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import hf_model, tokenizer

import workbench as wb
from workbench.errors import PositionError

PROMPTS = ["Mary and John", "the capital of France is", "red", "one two one two", "the store"]
SITES = ["blocks.1.hook_resid_post", "blocks.0.attn.hook_z"]


@pytest.fixture(scope="module")
def model():
    return wb.LanguageModel(hf_model("llama"), tokenizer(), name="tiny")


@pytest.fixture(scope="module")
def acts(model):
    return wb.collect(model, PROMPTS, SITES, "all")


@settings(max_examples=30, deadline=None)
@given(chosen=st.lists(st.integers(-len(PROMPTS), len(PROMPTS) - 1), min_size=1, max_size=8))
def test_some_prompts_are_what_collecting_them_gives(model, acts, chosen):
    some = acts.take(chosen)
    alone = wb.collect(model, [PROMPTS[i] for i in chosen], SITES, "all")
    assert some.n_prompts == alone.n_prompts and some.token == alone.token
    for name in ("prompt", "position", "token_id"):
        assert np.array_equal(getattr(some, name), getattr(alone, name)), name
    for site in SITES:
        assert torch.allclose(some.rows(site), alone.rows(site), atol=1e-6)


def test_a_mask_and_nothing(acts):
    mask = np.array([True, False, True, False, False])
    assert acts.take(mask).token == acts.take([0, 2]).token
    assert len(acts.take([])) == 0 and acts.take([]).n_prompts == 0


@pytest.mark.parametrize("wrong", [[5], [-6], [0.5], np.array([True, False]), [[0]]])
def test_what_does_not_exist_is_said(acts, wrong):
    with pytest.raises(PositionError, match="from 0 to 4"):
        acts.take(wrong)
