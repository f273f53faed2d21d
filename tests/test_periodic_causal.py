"""The causal patch: equal to a plain hooked forward, exact where the embedding is a helix, nulls at chance."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import pytest
import torch

import workbench as wb
from probes.periodic import NumberTask, helix_patch, helix_sweep, read_numbers
from probes.periodic.causal_outcome import SOURCES, _resampled
from probes.periodic.helix import HelixProbe
from probes.periodic.numbers import number_position
from workbench.errors import DataError, MetricError, WorkbenchError
from workbench.model.language_model import LanguageModel
from workbench.results import Result

TASK = NumberTask("{a} + {b} =", range(100), range(100))
ZERO = 103  # token of the number 0


@cache
def addition():
    return wb.load_model("addition", device="cpu", dtype="float32")


@cache
def own():
    return helix_patch(addition(), TASK, periods=4, n_pairs=100, n_bootstrap=200)


def test_the_layer_patch_is_a_plain_patch_with_the_other_runs_activation():
    model, data = addition(), own().data
    for layer in (0, 2):
        for i in (0, 17):
            a, new, b = (int(data[name][i]) for name in ("number", "new_number", "other"))
            ids = [torch.tensor([model.tokenizer(f"{x} + {b} =")["input_ids"]]) for x in (a, new)]
            block, kept = model.hf.model.layers[layer], []
            handle = block.register_forward_pre_hook(lambda _m, x, kept=kept: kept.append(x[0][0, 1].clone()))
            with torch.no_grad():
                model.hf(ids[1])
            handle.remove()

            def put(_module, args, kept=kept):
                changed = args[0].clone()
                changed[0, 1] = kept[0]
                return (changed, *args[1:])

            with torch.no_grad():
                clean = model.hf(ids[0]).logits[0, -1]
                handle = block.register_forward_pre_hook(put)
                logits = model.hf(ids[0]).logits[0, -1]
            handle.remove()
            old, answer = ZERO + a + b, ZERO + new + b
            expected = (logits[answer] - logits[old]) - (clean[answer] - clean[old])
            here = data.isel(pair=i).sel(layer=layer, source="layer")
            assert float(here["effect"]) == pytest.approx(float(expected), abs=1e-3)
            assert float(here["logit_change"]) == pytest.approx(
                float(logits[answer] - clean[answer]), abs=1e-3
            )
            assert float(here["probability"]) == pytest.approx(float(logits.softmax(-1)[answer]), abs=1e-4)


def test_what_a_helix_puts_in_is_fitted_without_the_new_number():
    """By hand for one pair: fit on the other folds, set the activation, run."""
    model = addition()
    result = helix_patch(model, TASK, layers=[0], n_pairs=20, n_permutations=1, n_bootstrap=5, seed=3)
    acts = read_numbers(model, TASK, layers=[0])
    from probes.periodic.splits import number_folds

    fold, data = number_folds(acts.numbers, 4, 3), result.data
    a, new, b = (int(data[name][0]) for name in ("number", "new_number", "other"))
    train = fold != fold[new]
    assert not train[new]
    row = HelixProbe(n_components=None).fit(acts.numbers[train], acts.rows[0][train]).predict([new])[0]

    def put(activation):
        activation[0, 1] = torch.from_numpy(row)
        return activation

    with torch.inference_mode(), model.edit({"blocks.0.hook_resid_pre": put}):
        logits = model.logits(f"{a} + {b} =")[0, -1]
    clean = model.logits(f"{a} + {b} =")[0, -1]
    found = float(data["logit_change"].sel(layer=0, source="helix")[0])
    assert found == pytest.approx(float((logits - clean)[ZERO + new + b]), abs=1e-3)


def test_where_the_embedding_is_a_helix_the_helix_patch_is_the_layer_patch():
    hf = copy.deepcopy(addition().hf)
    table = hf.get_input_embeddings().weight
    periods = (38.0, 19.0, 12.7, 9.5)
    rows = table[ZERO : ZERO + 100].detach().double().numpy()
    fitted = HelixProbe(periods, n_components=None).fit(np.arange(100), rows).predict(np.arange(100))
    with torch.no_grad():
        table[ZERO : ZERO + 100] = torch.from_numpy(fitted).float()
    model = LanguageModel(hf, addition().tokenizer, name="helical")
    data = helix_patch(model, TASK, periods=periods, layers=[0], n_pairs=60, n_bootstrap=50).data
    assert data.attrs["n"] < 60  # of the pairs, those it still gets right
    effect = data["effect"].sel(layer=0)
    for same in ("helix", "pca"):  # nine dimensions: nine components hold it, too
        assert np.allclose(effect.sel(source=same), effect.sel(source="layer"), atol=1e-2)
    assert np.abs(effect.sel(source="circle") - effect.sel(source="layer")).max() > 1
    assert data["mean_success"].sel(layer=0, source="helix") == 1
    assert data["mean_success"].sel(layer=0, source="permuted") < 0.1


def test_addition_is_done_with_a_helix_of_its_own_periods_and_not_with_decimal_ones():
    success = own().data["mean_success"].sel(layer=0)
    assert success.sel(source="layer") == 1
    assert success.sel(source="helix") > 0.8 > success.sel(source="circle") > success.sel(source="polynomial")
    assert success.sel(source=["permuted", "mean"]).max() < 0.05
    assert own().data["helix_minus_success_low"].sel(layer=0, source="polynomial") > 0.3
    period = own().data["period"].sel(layer=1).values
    assert (np.abs(period - 38.1).min(1) < 1).all() and (np.abs(period - 19.05).min(1) < 0.5).all()
    decimal = helix_patch(addition(), TASK, layers=[0], n_pairs=60, n_bootstrap=50).data
    assert decimal["mean_success"].sel(layer=0, source="helix") < 0.1
    acts = read_numbers(addition(), TASK, layers=[1])
    r2 = (
        helix_sweep(acts.rows, acts.numbers, n_splits=4, sizes=(9,), where=acts.provenance)
        .data["r2"]
        .sel(layer=1, k=9)
    )
    assert r2.sel(basis="chosen") > 0.93 > 0.8 > r2.sel(basis="polynomial") and r2.sel(basis="helix") < 0.1


def test_results_do_not_depend_on_the_batch_and_come_back_from_disk(tmp_path):
    options = {"layers": [0, 1], "n_pairs": 12, "n_permutations": 2, "n_bootstrap": 20}
    one, other = (helix_patch(addition(), TASK, batch_size=size, **options) for size in (512, 7))
    for name in ("effect", "probability"):
        assert np.allclose(one.data[name], other.data[name], atol=1e-3)
    one.save(tmp_path / "r.zarr")
    assert Result.load(tmp_path / "r.zarr").data.identical(one.data)


def test_pairs_go_through_all_numbers_with_different_answers_and_intervals_resample_numbers():
    data = own().data
    assert sorted(data["new_number"].values) == list(range(100)) and data.attrs["n_drawn"] == 100
    assert (data["number"] != data["new_number"]).all()
    assert data["source"].values.tolist() == list(SOURCES)
    groups = np.array([4, 4, 9, 7])
    weights = _resampled(groups, 500, seed=0)
    assert np.allclose(weights.sum(1), 1) and np.array_equal(weights[:, 0], weights[:, 1])
    drawn = np.unique((weights[:, [0, 2, 3]] > 0).sum(1))
    assert drawn.tolist() == [1, 2, 3]
    assert np.isnan(_resampled(np.array([3, 3]), 5, seed=0)).all()  # one number has no interval


def test_the_other_operand_is_probed_at_its_own_token_with_several_contexts():
    task = NumberTask("{a} - {b} =", range(100), range(100), operand="b", operation="-")
    assert number_position(addition(), task) == 3 and task.answer_text(3, 10) == " 7"
    acts = read_numbers(addition(), task, layers=[0, 2, 4], n_contexts=3)
    assert acts.rows[2].shape == (300, 128) and np.array_equal(acts.numbers[:4], [0, 0, 0, 1])
    assert np.ptp(acts.rows[0][:3], axis=0).max() == 0 and np.ptp(acts.rows[2][:3], axis=0).max() > 0.1
    text = task.prompt(int(acts.numbers[5]), int(acts.others[5]))
    with addition().hooks(read=["blocks.2.hook_resid_pre", "blocks.3.hook_resid_post"]) as session:
        addition().logits(text)
    assert np.allclose(session["blocks.2.hook_resid_pre"][0, 3], acts.rows[2][5], atol=1e-5)
    assert np.allclose(session["blocks.3.hook_resid_post"][0, 3], acts.rows[4][5], atol=1e-4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: NumberTask("{a} plus", [1, 2], [1]), DataError, "no {b}"),
        (lambda: NumberTask("{a} {b}", [1, 2], [1], answer="c"), DataError, "no {c}"),
        (lambda: NumberTask("{a} {b}", [1, 1], [1]), DataError, "two or more different numbers"),
        (
            lambda: helix_patch(addition(), NumberTask("{a} + {b} = {a}", range(9), range(9))),
            DataError,
            "differ at 2 tokens",
        ),
        (
            lambda: helix_patch(addition(), NumberTask("{a} + {b} =", range(100), range(9), answer=" {c} 0")),
            MetricError,
            "expected exactly one",
        ),
        (
            lambda: helix_patch(addition(), NumberTask("{b} = {a}", range(99), range(99)), n_pairs=9),
            DataError,
            "both problems right in none of 9 pairs",
        ),
        (
            lambda: helix_patch(addition(), NumberTask("{a} + {b} =", range(6), range(9))),
            DataError,
            "parameters",
        ),
        (lambda: helix_patch(addition(), TASK, layers=[7]), DataError, "no layer 7"),
        (lambda: helix_patch(addition(), TASK, periods=(-3,)), DataError, "is no period"),
        (lambda: helix_patch(addition(), TASK, n_permutations=0), DataError, "1 or more"),
        (lambda: read_numbers(addition(), TASK, n_contexts=0), DataError, "n_contexts is 0"),
        (
            lambda: read_numbers(addition(), NumberTask("{a} ! {b}", [1, 2], [1])),
            WorkbenchError,
            "does not know",
        ),
    ],
)
def test_bad_input_is_one_clear_error(call, error, message):
    with pytest.raises(error, match=message):
        call()
