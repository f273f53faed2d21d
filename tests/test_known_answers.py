"""Models whose inner workings are known, or long agreed on: what patching must find there."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import workbench as wb
from workbench import organisms
from workbench.organisms import shipped

rng = np.random.default_rng


@pytest.mark.real_model
def test_the_indirect_object_moves_from_the_second_subject_to_the_end(smollm2):
    """Early layers hold which name was repeated at its second place, late ones the answer at the end."""
    records = [r for r in wb.datasets.load("indirect-objects") if r.template == "went" and r.order == "ABBA"][
        :10
    ]
    result = wb.patching.sweep(
        smollm2,
        [r.clean for r in records],
        [r.corrupt for r in records],
        [wb.LogitDifference(r.answer, r.wrong_answer) for r in records],
        layers=[4, 16, 24, 28],
        control=True,
    ).data
    differ = [
        i
        for i, (a, b) in enumerate(zip(result["clean_token"], result["corrupt_token"], strict=True))
        if a != b
    ]
    (second_subject,) = differ
    low, high = result["effect_low"].values, result["effect_high"].values
    for early in (0, 1):
        assert low[early, second_subject] > 0.9 and high[early, -1] < 0.1
    for late in (2, 3):
        assert high[late, second_subject] < 0.2 and low[late, -1] > 0.7
    assert result["p_value"].values[3, -1] < 0.01 and result["p_value"].values[0, second_subject] < 0.01
    others = np.delete(np.arange(result.sizes["position"]), [second_subject, *range(second_subject + 1, 14)])
    assert np.abs(result["mean_effect"].values[:, others]).max() < 1e-6  # both prompts are the same so far


@cache
def addition():
    return wb.load_model("addition", device="cpu")


@cache
def sums(n=60):
    records = list(wb.datasets.load("addition"))[:n]
    metrics = [wb.LogitDifference(r.answer, r.wrong_answer) for r in records]
    return records, [r.clean for r in records], [r.corrupt for r in records], metrics


def test_operands_go_to_the_last_token_and_its_mlps_make_the_sum():
    _, clean, corrupt, metrics = sums()
    stream = wb.patching.sweep(addition(), clean, corrupt, metrics).data
    low, high = stream["effect_low"].values, stream["effect_high"].values
    last = addition().n_layers - 1
    assert high[0, -1] < 0.05  # nothing of the operands is at the last token before the first block
    assert low[last, -1] > 0.6 and high[last, 1:4].max() < 0.3  # before the last block nearly all of it is
    attention = wb.patching.sweep(addition(), clean, corrupt, metrics, kind="attn_out").data
    assert (
        attention["effect_low"].values[0, -1] > 0.5
    )  # most of the way goes through the first block's attention
    assert attention["effect_high"].values[last].max() < 0.5
    mlp = wb.patching.sweep(addition(), clean, corrupt, metrics, kind="mlp_out").data
    assert mlp["effect_low"].values[last, -1] > 0.8  # and the last MLP at the last token makes the result
    assert mlp["effect_high"].values[:, :-1].max() < 0.2  # no MLP elsewhere does
    assert mlp["p_value"].values[last, -1] < 0.01


def test_all_for_one_is_measured_on_addition_and_does_not_hold():
    """Every non-last token alone with itself: the answers that are left come to less than half."""
    model, (records, clean, _, _) = addition(), sums(120)
    draw = rng(0)
    reference = [
        f"{a} {o} {b} ="
        for a, b, o in zip(*draw.integers(0, 100, (2, 12_000)), draw.choice(["+", "-"], 12_000), strict=True)
    ]
    found = wb.patching.search(
        model, clean, [r.answer for r in records], reference=reference, n_least=20, keep=0.9
    )
    faithful = found.data["faithfulness"].sel(wait=0).values
    assert found.summary["base_accuracy"] > 0.98 and found.summary["smallest"] is None
    assert faithful[0] < 0.05  # without a look at the operands there is no answer
    assert faithful[0] < faithful[2] < faithful[4]  # the more blocks look, the more answers
    assert 0.25 < faithful[4] < 0.6
    assert np.nanmax(found.data["faithfulness"].sel(wait=slice(2, None)).values) < 0.05  # waiting costs all


@cache
def two_hop():
    return wb.load_model("two-hop", device="cpu")


def compositions(n, seed=0):
    """Held-out ones: prompts, and the token ids of their bridges and answers, and which hops they are made of."""
    organism = organisms.get("two-hop")
    rows = organism.compositions("held_out")
    rows = rows[rng(seed).choice(len(rows), n, replace=False)]
    bridges = organism.facts[rows[:, 1], rows[:, 0]]
    answers = organism.facts[rows[:, 2], bridges]
    texts = [f"e{e} r{first} r{second} :" for e, first, second in rows]
    return texts, ids_of(bridges), ids_of(answers), rows


def ids_of(entities):
    return torch.tensor([two_hop().tokenizer.convert_tokens_to_ids(f"e{i}") for i in entities])


def test_the_bridge_is_decoded_before_the_answer():
    """By the model's own readout of the stream behind each block: share of prompts in which it comes first."""
    model = two_hop()
    texts, bridges, answers, _ = compositions(200)
    with model.hooks(read="blocks.*.hook_resid_post") as session:
        model.logits(texts)
    found = {}
    for layer in range(model.n_layers):
        best = model.readout(session[f"blocks.{layer}.hook_resid_post"]).argmax(-1)
        at_relation, at_end = best[:, 2], best[:, -1]
        found[layer] = [
            float((x == y).float().mean()) for x, y in ((at_relation, bridges), (at_end, answers))
        ]
    assert (
        found[0][0] < 0.5 and found[1][0] > 0.95
    )  # the bridge is there behind block 1, at the first relation …
    assert found[1][1] < 0.3 and found[3][1] > 0.95  # … where the answer at the end needs blocks 2 and 3
    never = [float((model.readout(session[f"blocks.{i}.hook_resid_post"])[:, -1].argmax(-1) == bridges).float().mean())
             for i in range(model.n_layers)]  # fmt: skip
    assert max(never) < 0.3  # at the end itself the bridge is hardly ever first


def test_back_patching_repairs_failures_beyond_its_null():
    """The weights after 500 steps fail on some compositions both of whose hops they know. Putting a later stream of the
    bridge's token into an earlier block repairs about half of them; another prompt's stream, or an earlier stream in a
    later block, repairs fewer, with the same maximum over pairs of blocks."""
    path = shipped.folder("two-hop") / "snapshots" / "step-00500.safetensors"
    hf = copy.deepcopy(two_hop().hf)
    hf.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    model = wb.load_model((hf, two_hop().tokenizer))
    texts, bridges, answers, rows = compositions(400)
    says = lambda prompts: model.logits(prompts)[:, -1].argmax(-1)  # noqa: E731
    right = says(texts) == answers
    words = [f"e{i}" for i in organisms.get("two-hop").facts[rows[:, 1], rows[:, 0]]]
    known = (says([f"e{e} r{a} :" for e, a, _ in rows]) == bridges) & (
        says([f"{word} r{b} :" for word, (_, _, b) in zip(words, rows, strict=True)]) == answers
    )
    failed = [i for i in range(len(texts)) if known[i] and not right[i]]
    assert 0.8 < float(right.float().mean()) < 0.95 and len(failed) >= 30
    summary = wb.patching.back_patch(
        model, [texts[i] for i in failed], [[int(answers[i])] for i in failed], positions=2
    ).summary["first wrong"]
    assert 0.4 < summary["oracle_rate"] < 0.8
    assert summary["difference_interval"][0] > 0 and summary["forward_difference_interval"][0] > 0
