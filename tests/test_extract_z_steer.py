"""z_steer: the replayed part is the model's own, gradients are right, planted vectors are found, BLEU is BLEU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import hooks_left, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.translate.bleu_score import (
    SmoothingFunction,
)
from nltk.translate.bleu_score import (
    corpus_bleu as nltk_corpus,
)
from nltk.translate.bleu_score import (
    sentence_bleu as nltk_sentence,
)

import workbench as wb
from workbench.directions import Direction
from workbench.errors import DataError, ModelError, PromptError
from workbench.progress import Silent
from workbench.steering.extract import z_steer
from workbench.steering.extract.above import Above
from workbench.steering.extract.bleu import corpus_bleu, sentence_bleu
from workbench.steering.extract.z_optimise import Settings, search

PREFIX = [5, 9]
ROWS = [[5, 9, 30, 31, 8], [5, 9, 7], [5, 9, 50, 51, 52, 60]]


def addition(n=3, width=6, d=48, size=1.0):
    return size * torch.randn(n, width, d, generator=torch.Generator().manual_seed(4))


def planted(model, n=5, length=5, where: Any = "last", layer=0, size=8.0, seed=0):
    """Sequences that a random vector makes the model write: known to be within reach."""
    site = f"blocks.{layer}.hook_resid_post"
    like = Direction.from_vector(torch.ones(model.d_model), site=site)
    ds = [Direction.random(like, seed * 100 + i) for i in range(n)]
    made = wb.steering.generate(
        model, [PREFIX] * n, ds, [size] * n, where=where, max_new_tokens=length
    ).tokens
    kept = {tuple(t): d for t, d in zip(made, ds, strict=True) if len(t) == length}
    return [list(t) for t in kept], list(kept.values())


@pytest.mark.parametrize("layer", [0, 1])
def test_scores_are_those_of_a_plain_hooked_forward(model, layer):
    above, added = Above(model, ROWS, 2, layer), addition()
    logs, lead = above.score(added)
    for i, row in enumerate(ROWS):
        with (
            model.edit({f"blocks.{layer}.hook_resid_post": lambda x, i=i: x + added[i, : x.shape[1]]}),
            torch.no_grad(),
        ):
            logits = model.hf(input_ids=torch.tensor([row])).logits[0]
        for t in range(2, len(row)):
            assert logs[i, t - 2].item() == pytest.approx(
                float(logits[t - 1].log_softmax(-1)[row[t]]), abs=2e-4
            )
            others = logits[t - 1].clone()
            others[row[t]] = -torch.inf
            assert float(lead[i, t - 2]) == pytest.approx(
                float(logits[t - 1, row[t]] - others.max()), abs=2e-4
            )
        assert (logs[i, len(row) - 2 :] == 0).all()
    alone = above.score(added[[1], :3], [1])[0]
    assert torch.allclose(alone[0], logs[1, :1], atol=1e-4)
    assert hooks_left(model) == 0
    assert not any("forward" in m.__dict__ for m in model.hf.modules())


def test_the_gradient_is_that_of_finite_differences_and_parameters_get_none(family):
    model = tiny_model(family)
    if family != "mixtral":  # its experts' kernel has no double precision
        model.hf.double()
    above = Above(model, ROWS, 2, 0)
    z = (0.3 * addition(3, 1)[:, 0].to(model.dtype)).requires_grad_(True)
    value = above.score(z[:, None].expand(-1, 6, -1))[0].sum()
    (gradient,) = torch.autograd.grad(value, z)
    width, close = (1e-2, 5e-3) if model.dtype == torch.float64 else (1e-2, 2e-2)
    for i, k in [(0, 3), (1, 17), (2, 40)]:
        moved = []
        for step in (width, -width):
            other = z.detach().clone()
            other[i, k] += step
            moved.append(float(above.score(other[:, None].expand(-1, 6, -1))[0].detach().double().sum()))
        assert float(gradient[i, k]) == pytest.approx(
            (moved[0] - moved[1]) / (2 * width), rel=close, abs=close
        )
    assert all(p.grad is None and p.requires_grad for p in model.hf.parameters())


@pytest.mark.parametrize("where", ["all", "last"])
def test_a_planted_vector_already_leads_at_every_token(model, where):
    sentences, ds = planted(model, where=where)
    above = Above(model, [[*PREFIX, *s] for s in sentences], 2, 0)
    added = torch.stack([d.vector * 8.0 for d in ds])[:, None].repeat(1, 7, 1)
    if where == "last":
        added[:, [0, 2, 3, 4, 5, 6]] = 0
    assert (above.score(added)[1] >= -1e-4).all()


@pytest.mark.parametrize("where", ["all", "last"])
def test_what_is_solved_is_what_generation_writes(model, where):
    sentences, _ = planted(model, where=where)
    found = z_steer(model, sentences, 0, prefix=PREFIX, where=where, restarts=4, steps=40, init=1.0)
    data = found.result.data
    assert data["exact"].any(), "none of the planted sequences was found"
    assert (data["exact"].values[data["solved"].values]).all()
    best = data["best"].values
    for i, d in enumerate(found.directions):
        assert d.scale == pytest.approx(float(data["norm"][i, best[i]]), rel=1e-5)
        made = wb.steering.generate(
            model, [PREFIX], d, d.scale, where=where, max_new_tokens=5, use_cache=False
        )
        assert (
            (list(made.tokens[0]) == sentences[i]) == bool(data["exact"][i, best[i]]) == d.settings["exact"]
        )
    assert found.result.summary["solved_but_not_written"] == 0


def test_random_sequences_of_tokens_come_back_and_controls_do_not():
    model = tiny_model("qwen3")
    sentences, _ = planted(model, n=8, where="last", size=20.0)
    sentences = [s for s in sentences if len(set(s)) > 1]
    found = z_steer(model, sentences, 0, prefix=PREFIX, where="last", restarts=3, init=1.0, steps=80)
    summary = found.result.summary
    assert summary["exact"]["share"] >= 0.8
    assert summary["exact"]["low"] < summary["exact"]["share"]
    assert summary["corpus_bleu_no_z"] < 50
    assert summary["corpus_bleu_random_z"] < 50
    assert summary["corpus_bleu_other_z"] < 50
    assert found.result.data["restart_cosine"].shape == (len(sentences), 3)
    assert abs(summary["restart_cosine"]) <= 1
    curve = found.result.data["log_likelihood"].values[0, 0]
    taken = int(found.result.data["steps"][0, 0])
    assert np.isfinite(curve[:taken]).all()
    assert np.isnan(curve[taken:]).all()
    assert curve[taken - 1] > curve[0]


def test_the_search_is_adam(llama):
    """The same path as torch.optim.Adam, on one row that never stops."""
    above = Above(llama, [ROWS[2]], 2, 0)
    how = Settings(6, 0.05, 0.1, 3, "cosine", 1e9, 11, 512)
    mask = torch.ones(6, dtype=torch.bool)
    found = search(above, [0], mask, how, Silent())
    z = torch.randn(1, 48, generator=torch.Generator().manual_seed(11)) * 0.1
    z.requires_grad_(True)
    adam, values = torch.optim.Adam([z], lr=1.0), []
    for step in range(6):
        adam.param_groups[0]["lr"] = 0.05 * min(1, (step + 1) / 3) * 0.5 * (1 + np.cos(np.pi * step / 6))
        loss = -above.score(z[:, None].expand(-1, 6, -1))[0].sum()
        values.append(-loss.item())
        adam.zero_grad()
        (z.grad,) = torch.autograd.grad(loss, z)
        adam.step()
    assert found.log_likelihood[0].tolist() == pytest.approx(values, abs=1e-3)
    assert not found.solved.any()
    assert found.steps.tolist() == [6]


def test_rows_do_not_depend_on_their_neighbours_or_on_chunks(llama):
    sentences, _ = planted(llama, n=6)
    one = z_steer(llama, sentences, 0, prefix=PREFIX, steps=8, seed=3)
    two = z_steer(llama, sentences, 0, prefix=PREFIX, steps=8, seed=3, tokens_per_call=7)
    a, b = (r.result.data["log_likelihood"].values for r in (one, two))
    assert np.allclose(a, b, atol=1e-2, equal_nan=True)
    assert np.allclose(one.directions.matrix(), two.directions.matrix(), atol=1e-2)


def test_the_end_of_the_sentence_can_belong_to_it(llama):
    found = z_steer(llama, [[30, 30]], 0, prefix=PREFIX, end=True, steps=3)
    assert int(found.result.data["n_tokens"][0]) == 3
    default = z_steer(llama, ["red blue"], 0, steps=2)
    assert default.prefix == (llama.tokenizer.bos_token_id,)
    assert default.directions.names == ["red blue"]


words = st.lists(st.integers(0, 5), min_size=4, max_size=12)


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(words, words), min_size=1, max_size=5))
def test_bleu_is_nltks(couples):
    hypotheses, references = [h for h, _ in couples], [r for _, r in couples]
    matched = corpus_bleu(hypotheses, references)
    theirs = 100 * nltk_corpus(
        [[r] for r in references], hypotheses, smoothing_function=SmoothingFunction().method0
    )
    assert matched == pytest.approx(theirs if theirs > 1e-3 else 0, abs=1e-6)
    smooth = SmoothingFunction().method2
    for h, r in couples:
        expected = 100 * float(nltk_sentence([r], h, smoothing_function=smooth)) if set(h) & set(r) else 0.0
        assert sentence_bleu(h, r) == pytest.approx(expected, abs=1e-6)


def test_bleu_of_short_and_of_equal_sequences():
    assert sentence_bleu([7], [7]) == sentence_bleu([1, 2], [1, 2]) == 100
    assert sentence_bleu([], [1, 2]) == 0
    assert corpus_bleu([[1, 2], [3]], [[1, 2], [3]]) == 100
    with pytest.raises(DataError, match="at least one token"):
        sentence_bleu([1], [])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: z_steer(m, [], 0), DataError, "No sentences"),
        (lambda m: z_steer(m, ["red", "red"], 0), DataError, "twice"),
        (lambda m: z_steer(m, ["red"], 9), ModelError, "blocks 0–2"),
        (lambda m: z_steer(m, ["red"], 0, where="first"), DataError, "where='first'"),
        (lambda m: z_steer(m, ["red"], 0, steps=0), DataError, "steps=0"),
        (lambda m: z_steer(m, [[5, 2, 7]], 0), PromptError, "end-of-sequence"),
        (lambda m: z_steer(m, [[5] * 64], 0), PromptError, "65 tokens"),
        (lambda m: Above(m, [[5, 9]], 2, 0), PromptError, "nothing to predict"),
    ],
)
def test_what_cannot_be_searched_is_one_clear_error(llama, call, error, message):
    with pytest.raises(error, match=message):
        call(llama)


@pytest.mark.real_model
def test_smollm2_writes_a_given_sentence(smollm2):
    sentences = ["The kettle was useless.", "Amman is the capital of Jordan."]
    found = z_steer(smollm2, sentences, 12, prefix="<|im_start|>assistant\n", steps=60)
    assert found.result.summary["exact"]["share"] == 1
    made = wb.steering.generate(
        smollm2, ["<|im_start|>assistant\n"] * 2, list(found.directions), [d.scale for d in found.directions],
        max_new_tokens=9,
    )  # fmt: skip
    assert [text.startswith(s) for text, s in zip(made.texts, sentences, strict=True)] == [True, True]
