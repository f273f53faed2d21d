"""Context-aware means against a brute-force mean, and the all-for-one subgraph against masks given to the model."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from conftest import hooks_left, tiny_model

import workbench as wb
from workbench.errors import DataError, PromptError
from workbench.patching.all_for_one import all_for_one, search
from workbench.patching.cama import cama
from workbench.patching.subgraph import Task, peeking

BOS, PLUS, MINUS, EQUALS = 1, 10, 11, 12
NUMBERS = range(20, 26)
ALL = [[BOS, a, o, b, EQUALS] for a, o, b in itertools.product(NUMBERS, (PLUS, MINUS), NUMBERS)]
PROMPTS = [ALL[i] for i in (0, 5, 17, 30, 41, 55, 60, 71)]


def own_answers(model, prompts):
    """What the model says, as if it were right."""
    return model.logits(prompts)[:, -1].argmax(-1).tolist()


def stream_behind(model, prompts, wait):
    """[prompt, position, d_model] by a plain read."""
    if wait == 0:
        site = "blocks.0.hook_resid_pre"
    else:
        site = f"blocks.{wait - 1}.hook_resid_post"
    with model.hooks(read=[site]) as session:
        model.logits(prompts)
    return session[site]


def brute_mean(model, prompts, reference, wait):
    """For each prompt and position the mean over the reference prompts that share the token there, by loops."""
    read = stream_behind(model, reference, wait)
    rows = []
    for prompt in prompts:
        row = []
        for t in range(1, len(prompt)):
            same = [i for i, other in enumerate(reference) if other[t] == prompt[t]]
            row.append(sum(read[i, t] for i in same) / len(same))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def paper_mask(length, sees):
    """Scores' mask written edge by edge: `sees(query, key)` beside position 0 and the query itself."""
    mask = torch.full((length, length), torch.finfo(torch.float32).min)
    for query in range(length):
        for key in range(query + 1):
            if key in (0, query) or sees(query, key):
                mask[query, key] = 0.0
    return mask


@torch.no_grad()
def masked_run(family, prompts, wait, peek, put=None, allowed=None):
    """Last logits of an eager model with masks in its attention modules and `put` in its stream."""
    model = tiny_model(family)
    model.hf.set_attn_implementation("eager")
    length, handles = len(prompts[0]), []
    for layer in range(wait, model.n_layers):
        looks = layer < wait + peek
        mask = paper_mask(
            length,
            lambda query, key, looks=looks: (
                looks and query == length - 1 and (allowed is None or key >= length - allowed)
            ),
        )
        module = model.module(model.catalog[f"blocks.{layer}.attn.hook_pattern"].module)

        def swap(_module, args, kwargs, mask=mask):
            assert "attention_mask" in kwargs
            return args, {**kwargs, "attention_mask": mask[None, None]}

        handles.append(module.register_forward_pre_hook(swap, with_kwargs=True))
    if put is not None:

        def overwrite(_module, _args, output):
            hidden = output if isinstance(output, torch.Tensor) else output[0]
            hidden = torch.cat([hidden[:, :1], put], dim=1)
            return hidden if isinstance(output, torch.Tensor) else (hidden, *output[1:])

        handles.append(model.block(wait - 1).register_forward_hook(overwrite))
    try:
        return model.hf(input_ids=torch.tensor(prompts)).logits[:, -1]
    finally:
        for handle in handles:
            handle.remove()


def log_p(logits, answers):
    return logits.log_softmax(-1)[torch.arange(len(answers)), torch.tensor(answers)].numpy()


# -- context-aware means -----------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", [0, 2, 3])
def test_context_aware_means_are_the_brute_force_means(model, wait):
    means = cama(model, PROMPTS, [wait], reference=ALL, n_least=6, tokens_per_call=50)[wait]
    got = means.stream(torch.tensor(PROMPTS))
    assert torch.allclose(got, brute_mean(model, PROMPTS, ALL, wait), atol=1e-5)
    assert means.counts[3, 20] == 12 and means.counts[4, EQUALS] == len(ALL) and means.counts[2, PLUS] == 36
    assert hooks_left(model) == 0


def test_they_keep_what_a_token_is_and_drop_what_it_saw(llama):
    got = cama(llama, ALL, [2], reference=ALL, n_least=6)[2].stream(torch.tensor(ALL))
    own = stream_behind(llama, ALL, 2)[:, 1:]
    assert torch.allclose(got[:, 0], own[:, 0], atol=1e-5)  # only BOS stands before position 1
    assert not torch.allclose(got[:, 2], own[:, 2], atol=1e-2)
    numbers = torch.tensor(ALL)[:, 3]
    for number in NUMBERS:
        rows = got[numbers == number, 2]
        assert torch.equal(rows, rows[:1].expand_as(rows))
    assert not torch.allclose(got[numbers == 20, 2][0], got[numbers == 21, 2][0], atol=1e-2)


def test_several_depths_in_one_pass_are_the_same_as_one_by_one(llama):
    together = cama(llama, PROMPTS, [0, 1, 3], reference=ALL, n_least=6)
    for wait in (0, 1, 3):
        alone = cama(llama, PROMPTS, [wait], reference=ALL, n_least=6)[wait]
        assert torch.equal(together[wait].stream(torch.tensor(PROMPTS)), alone.stream(torch.tensor(PROMPTS)))


def test_a_sampler_is_asked_for_each_token_at_each_position(llama):
    asked = {}

    def sampler(position, token, n, rng):
        having = [p for p in ALL if p[position] == token]
        drawn = [having[i] for i in rng.integers(0, len(having), n)]
        asked[position, token] = drawn
        return drawn

    means = cama(llama, PROMPTS, [2], sampler=sampler, n_least=30, seed=4)[2]
    assert set(asked) == {(t, p[t]) for p in PROMPTS for t in range(1, 5)}
    for (t, token), drawn in asked.items():
        expected = stream_behind(llama, drawn, 2)[:, t].mean(0)
        assert torch.allclose(means.means[t, token], expected, atol=1e-5)
    again = cama(llama, PROMPTS, [2], sampler=sampler, n_least=30, seed=4)[2]
    assert torch.equal(again.means[3, 20], means.means[3, 20])

    with pytest.raises(DataError, match=r"sampler gave prompts without 20 .* at position 1"):
        cama(llama, PROMPTS, [2], sampler=lambda *_: ALL[-3:], n_least=3)


def test_a_token_with_too_few_examples_is_named(llama):
    scarce = [p for p in ALL if p[3] != 23 or p[1] == 20]  # 23 as second operand: 2 examples
    with pytest.raises(DataError, match=r"Token 23 \('.*'\) at position 3 has 2 examples.*n_least=5"):
        cama(llama, ALL, [2], reference=scarce, n_least=5)
    assert cama(llama, ALL, [2], reference=scarce, n_least=2)[2].counts[3, 23] == 2
    with pytest.raises(DataError, match="few examples|has 0 examples"):
        cama(llama, [[BOS, 30, PLUS, 20, EQUALS]], [2], reference=ALL, n_least=1)


def test_prompts_must_share_their_length_and_first_token(llama):
    with pytest.raises(PromptError, match="Prompt 1 has 4 tokens, expected 5"):
        cama(llama, [ALL[0], ALL[1][:4]], [1])
    with pytest.raises(PromptError, match=r"Prompt 1 begins with 20 .*must say nothing"):
        cama(llama, [ALL[0], [20, *ALL[0][1:]]], [1])
    with pytest.raises(PromptError, match="Prompt 0 begins with 2 "):
        cama(llama, PROMPTS, [1], reference=[[2, *ALL[0][1:]]])
    with pytest.raises(DataError, match="Both a reference and a sampler"):
        cama(llama, PROMPTS, [1], reference=ALL, sampler=lambda *_: ALL)
    with pytest.raises(DataError, match=r"waits \[4\] are not 0–3"):
        cama(llama, PROMPTS, [4], reference=ALL)


# -- masks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [2, 3, 5, 9])
@pytest.mark.parametrize("last_sees", [1, 2, 4, 10])
def test_the_mask_is_the_papers(length, last_sees):
    """q >= 2, k < q, k >= 1, and not (q last and k >= K - allowed), as the authors' script has it."""
    for q in range(length):
        for k in range(q + 1):
            blocked = q >= 2 and k < q and k >= 1
            if q == length - 1 and k >= length - last_sees:
                blocked = False
            assert bool(peeking(length, last_sees)[q, k]) == blocked


def test_self_peeking_leaves_the_last_query_position_0_and_itself():
    open_edges = (~peeking(5, 1) & torch.tril(torch.ones(5, 5, dtype=torch.bool))).nonzero().tolist()
    assert open_edges == [[0, 0], [1, 0], [1, 1], [2, 0], [2, 2], [3, 0], [3, 3], [4, 0], [4, 4]]
    assert (~peeking(5, 5))[4].all()


# -- the subgraph ------------------------------------------------------------------------------------------


def test_with_no_waiting_and_all_peeking_only_the_other_queries_are_masked(family):
    model = tiny_model(family)
    answers = own_answers(model, PROMPTS)
    result = all_for_one(model, PROMPTS, answers, wait=0, peek=model.n_layers)
    expected = masked_run(family, PROMPTS, 0, model.n_layers)
    data = result.data
    assert np.allclose(data["log_probability"].sel(run="all_for_one"), log_p(expected, answers), atol=1e-4)
    said = expected.argmax(-1).numpy()
    assert np.array_equal(data["correct"].sel(run="all_for_one"), said == np.array(answers))
    assert hooks_left(model) == 0


@pytest.mark.parametrize(("wait", "peek", "allowed"), [(1, 1, None), (1, 2, 3), (2, 1, None)])
def test_the_subgraph_is_overwriting_then_masks(family, wait, peek, allowed):
    model = tiny_model(family)
    answers = own_answers(model, PROMPTS)
    put = brute_mean(model, PROMPTS, ALL, wait)
    data = all_for_one(
        model, PROMPTS, answers, wait=wait, peek=peek, allowed=allowed, reference=ALL, n_least=6
    ).data
    runs = {
        "all_for_one": masked_run(family, PROMPTS, wait, peek, put, allowed),
        "no_peek": masked_run(family, PROMPTS, wait, 0, put, allowed),
        "unconditional": masked_run(
            family, PROMPTS, wait, peek, put.mean(0, keepdim=True).expand_as(put), allowed
        ),
    }
    for run, expected in runs.items():
        assert np.allclose(data["log_probability"].sel(run=run), log_p(expected, answers), atol=2e-4), run
    faithfulness = (runs["all_for_one"].argmax(-1) == torch.tensor(answers)).float().mean()
    assert float(data["faithfulness"].sel(run="all_for_one")) == pytest.approx(float(faithfulness))


def test_without_peeking_all_prompts_get_one_answer(llama):
    """The last token is overwritten with a constant and sees only position 0 and itself."""
    task = Task(llama, ALL, own_answers(llama, ALL), [2], ALL, None, 6, 0, 4096)
    constant = [5] * len(ALL)
    task.wanted = torch.tensor(constant)
    _, log_p5 = task.judged(task.stream(2), 2, 0, None)
    assert np.ptp(log_p5) < 1e-5
    _, peeking_log_p5 = task.judged(task.stream(2), 2, 1, None)
    assert np.ptp(peeking_log_p5) > 1e-2


def test_with_no_waiting_and_one_block_the_last_token_still_reads_the_operands(llama):
    """Peeking in the first block only, one key: the answer depends on the key that is allowed and no other."""
    task = Task(llama, ALL, own_answers(llama, ALL), [0], None, None, 6, 0, 4096)
    task.wanted = torch.tensor([5] * len(ALL))
    _, found = task.judged(task.stream(0), 0, 1, 2)  # the second operand and itself
    second = torch.tensor(ALL)[:, 3].numpy()
    for number in NUMBERS:
        assert np.ptp(found[second == number]) < 1e-5
    assert np.ptp(found) > 1e-2


def test_only_prompts_the_model_answers_are_scored(llama):
    answers = own_answers(llama, PROMPTS)
    answers[2] = (answers[2] + 1) % 100
    answers[5] = (answers[5] + 1) % 100
    result = all_for_one(llama, PROMPTS, answers, wait=0, peek=3)
    assert result.data["answered"].values.tolist() == [0, 1, 3, 4, 6, 7]
    assert result.summary["base_accuracy"] == 0.75 and result.summary["n_answered"] == 6
    assert result.data["faithfulness"].values == pytest.approx(result.data["correct"].values.mean(1))
    low, high = result.data["faithfulness_low"].values, result.data["faithfulness_high"].values
    assert (low <= result.data["faithfulness"]).all() and (result.data["faithfulness"] <= high).all()
    with pytest.raises(DataError, match="answers none of the 8 prompts"):
        all_for_one(llama, PROMPTS, [(a + 1) % 100 for a in own_answers(llama, PROMPTS)], wait=0, peek=3)


def test_batching_changes_nothing(llama):
    answers = own_answers(llama, PROMPTS)
    one, many = (
        all_for_one(
            llama, PROMPTS, answers, wait=1, peek=1, reference=ALL, n_least=6, tokens_per_call=n
        ).data["log_probability"]
        for n in (1, 4096)
    )
    assert np.allclose(one, many, atol=1e-5)


def test_what_stands_first_is_said(llama):
    answers = own_answers(llama, PROMPTS)
    with_bos = all_for_one(llama, PROMPTS, answers, wait=0, peek=3).data.attrs["first"]
    assert with_bos == "BOS ('<s>')"
    other = [[30, *p[1:]] for p in PROMPTS]
    without = all_for_one(llama, other, own_answers(llama, other), wait=0, peek=3).data.attrs["first"]
    assert "in place of a BOS token" in without


def test_what_does_not_fit_is_an_error(llama):
    answers = own_answers(llama, PROMPTS)
    for wait, peek in ((2, 2), (-1, 1), (4, 0)):
        with pytest.raises(DataError, match=f"wait={wait}, peek={peek} do not fit"):
            all_for_one(llama, PROMPTS, answers, wait=wait, peek=peek, reference=ALL, n_least=6)
    with pytest.raises(DataError, match="allowed=0"):
        all_for_one(llama, PROMPTS, answers, wait=0, peek=1, allowed=0)
    with pytest.raises(PromptError, match="7 answers were given for 8 prompts"):
        all_for_one(llama, PROMPTS, answers[:7], wait=0, peek=1)


# -- search ------------------------------------------------------------------------------------------------


def test_a_search_is_all_single_subgraphs(llama):
    answers = own_answers(llama, PROMPTS)
    data = search(llama, PROMPTS, answers, reference=ALL, n_least=6).data
    for wait, peek in itertools.product(range(4), range(4)):
        cell = data.sel(wait=wait, peek=peek)
        if wait + peek > 3:
            assert np.isnan(cell["faithfulness"]) and np.isnan(cell["correct"]).all()
            continue
        one = all_for_one(llama, PROMPTS, answers, wait=wait, peek=peek, reference=ALL, n_least=6).data
        assert np.array_equal(cell["correct"], one["correct"].sel(run="all_for_one"))
        assert float(cell["faithfulness"]) == pytest.approx(float(one["faithfulness"].sel(run="all_for_one")))
        assert float(cell["faithfulness_low"]) == pytest.approx(float(one["faithfulness_low"][0]))


def test_the_smallest_subgraph_is_chosen_on_one_half_and_judged_on_the_other(llama, monkeypatch):
    prompts, answers = ALL[:40], own_answers(llama, ALL[:40])
    rng = np.random.default_rng(0)
    chance = {(0, 0): 0.1, (0, 1): 0.6, (1, 1): 0.9, (2, 1): 0.5, (0, 2): 1.0, (1, 2): 1.0, (0, 3): 1.0}
    made = {c: (rng.random(40) < chance.get(c, 0.0)) for c in itertools.product(range(4), range(4))}
    monkeypatch.setattr(
        Task, "judged", lambda _self, _stream, wait, peek, _allowed: (made[wait, peek], np.zeros(40))
    )
    result = search(llama, prompts, answers, keep=0.8, reference=ALL, n_least=6, seed=1)
    half = result.data["for_choice"].values
    assert half.sum() == 20
    assert made[1, 1][half].mean() >= 0.8 > made[0, 1][half].mean()
    smallest = result.summary["smallest"]
    assert (smallest["wait"], smallest["peek"]) == (1, 1)
    assert smallest["faithfulness"] == pytest.approx(made[1, 1][~half].mean())
    assert smallest["no_peek"] == pytest.approx(made[1, 0][~half].mean())
    later = search(llama, prompts, answers, keep=0.95, reference=ALL, n_least=6, seed=1).summary["smallest"]
    assert (later["wait"], later["peek"]) == (1, 2)  # two cells of two blocks: the one that waits longer
    none = search(llama, prompts, answers, waits=[2], peeks=[1], keep=1, reference=ALL, n_least=6)
    assert none.summary["smallest"] is None
    assert none.data["peek"].values.tolist() == [0, 1]  # the control is always run


def test_results_survive_the_disk(llama, tmp_path):
    answers = own_answers(llama, PROMPTS)
    for name, result in (
        ("one", all_for_one(llama, PROMPTS, answers, wait=1, peek=1, reference=ALL, n_least=6)),
        ("grid", search(llama, PROMPTS, answers, reference=ALL, n_least=6)),
    ):
        result.save(tmp_path / name)
        loaded = wb.Result.load(tmp_path / name)
        assert loaded.data.identical(result.data)
        assert loaded.summary == result.summary
