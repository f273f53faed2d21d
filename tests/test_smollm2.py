"""Reality: smollm2-135m, invariants 1, 2 and 6, and the known answers of the first analyses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import workbench as wb
from workbench.model.tokens import from_ids

pytestmark = pytest.mark.real_model
CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"
TEXTS = [CLEAN, "The capital of France is", "Once upon a time, in a land far away, there lived a"]


def test_reading_every_site_leaves_the_logits_bit_equal(smollm2):
    batch = smollm2.batch(TEXTS)
    plain = smollm2.forward(batch).logits
    with smollm2.hooks(read=smollm2.sites()):
        hooked = smollm2.forward(batch).logits
    assert torch.equal(plain, hooked)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_gives_what_one_by_one_gives(smollm2, side):
    sites = ["blocks.{0,14,29}.hook_resid_post", "blocks.14.attn.hook_z"]
    batch = smollm2.batch(TEXTS, side=side)
    with smollm2.hooks(read=sites) as together:
        smollm2.forward(batch)
    for row, text in enumerate(TEXTS):
        with smollm2.hooks(read=sites) as alone:
            smollm2.forward(smollm2.batch(text))
        columns = batch.columns(row, range(batch.lengths[row]))
        for site in (s.name for s in smollm2.resolve(sites)):
            difference = (together[site][row, columns] - alone[site][0]).abs().max()
            assert difference / alone[site].abs().max() < 1e-4, site


def test_embedding_and_added_outputs_sum_to_the_last_stream(smollm2):
    with smollm2.hooks(
        read=["hook_embed", "blocks.*.hook_attn_out", "blocks.*.hook_mlp_out", "blocks.29.hook_resid_post"]
    ) as seen:
        smollm2.forward(smollm2.batch(CLEAN))
    total = seen["hook_embed"].double()
    for layer in range(30):
        total = total + seen[f"blocks.{layer}.hook_attn_out"] + seen[f"blocks.{layer}.hook_mlp_out"]
    last = seen["blocks.29.hook_resid_post"]
    assert (total - last).norm() / last.norm() < 1e-4


def test_the_lens_finds_the_name_late_and_on_top(smollm2):
    lens = wb.lens.logit_lens(smollm2, CLEAN, target=" Mary")
    assert lens.summary["final_rank"] == 1
    assert 20 <= lens.summary["depth"] <= 29
    control = lens.data["control_rank"].isel(position=-1)
    assert np.median(control) > 5_000  # random tokens stay in the middle of 49,152


def test_the_answer_moves_from_the_changed_name_to_the_last_token(smollm2):
    result = wb.patching.sweep(smollm2, CLEAN, CORRUPT, wb.LogitDifference(" Mary", " John"))
    effect = result.data["mean_effect"]
    tokens = result.data["clean_token"].values.tolist()
    assert len(tokens) == 14
    changed = next(
        i for i, (a, b) in enumerate(zip(tokens, result.data["corrupt_token"].values, strict=True)) if a != b
    )
    early, late = effect.sel(layer=slice(0, 9)), effect.sel(layer=slice(27, 29))
    assert early.sel(position=changed).min() > 0.8 and np.abs(early.sel(position=13)).max() < 0.2
    assert late.sel(position=13).min() > 0.8 and np.abs(late.sel(position=changed)).max() < 0.2
    assert np.abs(effect.isel(position=slice(0, changed))).max() < 1e-3  # nothing changed before it


def test_generation_greedy_is_the_same_with_and_without_cache(smollm2):
    kept = wb.steering.generate(smollm2, TEXTS, max_new_tokens=8)
    uncached = wb.steering.generate(smollm2, TEXTS, max_new_tokens=8, use_cache=False)
    assert kept.tokens == uncached.tokens


def test_a_chat_prompt_has_one_beginning_and_the_model_answers_in_its_turn(smollm2):
    ids = smollm2.encode([{"role": "user", "content": "Hi"}])
    text = smollm2.tokenizer.decode(ids)
    assert text.count("<|im_start|>user") == 1 and text.endswith("<|im_start|>assistant\n")
    assert from_ids(smollm2, [ids]).lengths == (len(ids),)


def test_bfloat16_reads_are_bit_equal_too(smollm2):
    model = wb.load_model("smollm2-135m", dtype="bfloat16")
    batch = model.batch(TEXTS)
    plain = model.forward(batch).logits
    with model.hooks(read=model.sites()):
        assert torch.equal(model.forward(batch).logits, plain)
    assert model.fingerprint != smollm2.fingerprint
