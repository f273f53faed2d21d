"""What patching analyses accept: numbers of numpy, one thing for a list of one; and what they then say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from conftest import tiny_model

import workbench as wb
from workbench.patching import (
    Alignment,
    ablate_neurons,
    attribution,
    back_patch,
    das,
    importance,
    input_attribution,
    mediation,
    patchscope,
    path_patch,
    sweep,
)
from workbench.patching.cells import check_layers
from workbench.patching.metrics import Accuracy, LogProbability, Probability, Rank
from workbench.patching.subspace import interchange

A, B, C = [1, 5, 6, 7], [1, 5, 9, 7], [1, 11, 12, 13]
LD = wb.LogitDifference(40, 41)
SITE = "blocks.1.hook_resid_post"
one = np.int64


def numbers(n, seed=0, length=4):
    return [np.random.default_rng([seed, i]).integers(3, 100, length).tolist() for i in range(n)]


def test_one_receiver_needs_no_list(llama):
    bare = path_patch(llama, A, B, LD, ("blocks.2.attn.hook_q", 1))
    listed = path_patch(llama, A, B, LD, [("blocks.2.attn.hook_q", one(1))])
    xr.testing.assert_identical(bare.data["metric"], listed.data["metric"])
    whole = path_patch(llama, A, B, LD, ["blocks.2.attn.hook_q"])
    assert not np.allclose(bare.data["metric"], whole.data["metric"])


def test_senders_are_numbers_of_any_kind(llama):
    some = path_patch(llama, A, B, LD, senders=[[(one(1), one(2))], [(0, "mlp")]])
    same = path_patch(llama, A, B, LD, senders=[[(1, 2)], [(0, "mlp")]])
    xr.testing.assert_identical(some.data["effect"], same.data["effect"])


def rows_of(kind, n, seed=1):
    """Source prompts for `numbers(n)`: all alike in how they differ (`twins`), not at all, or each its own way."""
    base = numbers(n)
    if kind == "same":
        return base, base
    if kind == "twins":
        return [base[0], base[1]] * (n // 2), [numbers(1, seed)[0], numbers(2, seed)[1]] * (n // 2)
    return base, numbers(n, seed)


@pytest.mark.parametrize(("kind", "expected"), [("same", 0), ("twins", 1), ("apart", 4)])
def test_the_pca_control_has_all_dimensions_and_says_how_many_are_components(llama, kind, expected):
    base, source = rows_of(kind, 10)
    result = das(llama, base, source, [40] * 10, site=SITE, rank=4, steps=1, n_random=1)
    assert result.summary["pca_rank"] == result.data.attrs["pca_rank"] == expected


def test_components_come_first_and_the_rest_is_orthogonal(llama):
    from workbench.patching.subspace import _principal, _task

    base, source = rows_of("twins", 8)
    task = _task(llama, base, source, 40, SITE, -1, None)
    train = torch.arange(8)
    basis, n = _principal(task, train, 3, seed=0)
    assert n == 1 and basis.shape == (3, llama.d_model)
    assert torch.allclose(basis @ basis.T, torch.eye(3), atol=1e-5)
    two = (task.taken - task.own)[:2]
    expected = (two[0] - two[1]) / (two[0] - two[1]).norm()  # of two different rows there is one component
    assert abs(float(basis[0] @ expected)) == pytest.approx(1, abs=1e-5)
    assert torch.equal(basis, _principal(task, train, 3, seed=0)[0])
    assert not torch.allclose(basis[1:], _principal(task, train, 3, seed=1)[0][1:])


def test_a_model_in_bfloat16_takes_a_function_as_metric():
    model = tiny_model("llama")
    model.hf.to(torch.bfloat16)
    result = attribution(model, A, B, lambda logits: logits[:, 40] - logits[:, 41], recheck="all")
    exact = sweep(model, A, B, LD, control=False)
    at = np.isfinite(result.data["exact_effect"].values)
    assert at.all()
    assert np.allclose(result.data["exact_effect"], exact.data["effect"], atol=0.05)


def test_recheck_keeps_the_precision_of_the_metric():
    model = tiny_model("llama")
    model.hf.to(torch.float64)
    result = attribution(model, A, B, lambda logits: logits[:, 40] - logits[:, 41], recheck="all")
    values = result.data["exact_effect"].values
    assert not np.array_equal(values, values.astype(np.float32).astype(float))
    assert result.data["exact_effect"].values[0, 0, 2] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("run", [sweep, lambda *a, **k: attribution(*a, recheck=3, **k)])
def test_pairs_that_share_no_position_have_no_mean(llama, run):
    alignment = [{0: 0, 2: 2}, {1: 1, 3: 3}]
    result = run(llama, [A, C], [B, [1, 20, 21, 22]], LD, alignment=alignment)
    assert np.isnan(result.data["mean_effect"]).all()
    assert np.isfinite(result.data["effect"].values[0][:, [0, 2]]).all()
    assert result.summary["strongest"] is None
    assert "No position is patched in every pair" in result.summary["note"]
    assert result.summary["n_pairs"] == 2


def test_answers_may_be_lists_and_numbers_of_numpy(llama):
    for given in ([40, 41], np.array([40, 41]), torch.tensor([40, 41]), (one(40), 41)):
        assert LogProbability(given) == LogProbability((40, 41))
        assert hash(LogProbability(given)) == hash(LogProbability((40, 41)))
    for metric in (LogProbability, Probability, Rank, Accuracy):
        assert metric(one(40)) == metric(40) and str(metric(one(40))) == str(metric(40))
    assert str(wb.LogitDifference(one(40), torch.tensor(41))) == str(LD)
    listed, tupled = (sweep(llama, A, B, LogProbability(answer)) for answer in ([40, 41], (40, 41)))
    xr.testing.assert_identical(listed.data, tupled.data)
    assert llama.token_id(one(40)) == 40 and type(llama.token_id(one(40))) is int


def test_prompts_may_be_arrays(llama):
    ids = llama.batch(np.array([A, B]))  # type: ignore[arg-type]
    assert ids.ids.tolist() == [A, B]
    assert llama.batch(np.array(A)).ids.tolist() == [A]  # type: ignore[arg-type]
    assert llama.batch([[one(i) for i in A], B]).ids.tolist() == [A, B]


NUMPY = {
    "back_patch": lambda m, f: back_patch(m, [A, B], [f(40), f(41)], positions=f(2)),
    "das": lambda m, f: das(m, numbers(6), numbers(6, 1), [f(40)] * 6, site=SITE, positions=f(2), steps=f(2)),
    "das, one answer": lambda m, f: das(m, numbers(6), numbers(6, 1), f(40), site=SITE, steps=2),
    "mediation": lambda m, f: mediation(m, A, C, f(40), f(41), positions=f(2)),
    "sweep": lambda m, f: sweep(m, A, B, wb.LogitDifference(f(40), f(41)), layers=f(1)),
    "attribution": lambda m, f: attribution(m, A, B, LD, layers=f(-1), integrate=f(2), recheck=f(2)),
    "input_attribution": lambda m, f: input_attribution(m, A, LD, baseline=f(5), steps=f(8), n_control=f(2)),
    "importance": lambda m, f: importance(m, [A, B], f(40)),
    "ablate_neurons": lambda m, f: ablate_neurons(m, A, f(40), [(f(1), f(4))], positions=f(2)),
    "patchscope": lambda m, f: patchscope(m, A, B, source_position=f(1), target_position=[f(-1)]),
}


@pytest.mark.parametrize("analysis", NUMPY)
def test_whole_numbers_of_numpy_are_whole_numbers(llama, analysis):
    plain, numpy = (NUMPY[analysis](llama, kind) for kind in (int, one))
    xr.testing.assert_identical(plain.data, numpy.data)
    assert plain.summary == numpy.summary


def test_neurons_may_be_arrays(llama):
    listed = ablate_neurons(llama, [A, B], 40, [[(1, 4), (2, 5)], [(0, 3), (1, 1)]])
    arrays = ablate_neurons(llama, [A, B], 40, np.array([[[1, 4], [2, 5]], [[0, 3], [1, 1]]]))  # type: ignore[arg-type]
    xr.testing.assert_identical(listed.data, arrays.data)


def test_spans_of_numpy_numbers_are_one_span(llama):
    made = Alignment.of_spans(llama, A, B, {"x": (one(1), one(2))})
    assert made == Alignment.of_spans(llama, A, B, {"x": (1, 2)})
    assert made.groups[0].clean == (1,)
    both = Alignment.of_spans(llama, A, B, {"x": ((one(1), one(3)), (0, 2))})
    assert (both.groups[0].clean, both.groups[0].corrupt) == ((1, 2), (0, 1))


def test_layers_are_those_of_a_sweep(llama):
    for layers in ([0, 0, -1], [2, 0], -1, one(1)):
        swept, estimated = (run(llama, A, B, LD, layers=layers) for run in (sweep, attribution))
        assert swept.data["layer"].values.tolist() == estimated.data["layer"].values.tolist()
    assert check_layers(-1, 3, "m") == [2] == check_layers(one(2), 3, "m")
    assert check_layers([0, 0, -1], 3, "m") == [0, 2] and check_layers(None, 3, "m") == [0, 1, 2]


def test_two_texts_are_one_pair(llama):
    text = interchange(llama, "Mary went", "John gave", site=SITE)
    listed = interchange(llama, ["Mary went"], ["John gave"], site=SITE)
    assert text.shape == (1, llama.vocab_size) and torch.equal(text, listed)
    ids = interchange(llama, A, B, site=SITE, basis=np.eye(2, llama.d_model))  # type: ignore[arg-type]
    assert torch.equal(ids, interchange(llama, [A], [B], site=SITE, basis=torch.eye(2, llama.d_model)))
