"""Deletion and insertion curves; what cannot be; results kept without loss."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import hooks_left, tiny_model
from input_attribution_parts import (
    CLEAN,
    CORRUPT,
    FEW,
    METRIC,
    OTHER,
    SHORT,
    linear_model,
    of_tokens,
)

import workbench as wb
from workbench.errors import DataError, MetricError, ModelError, PromptError
from workbench.patching.input_attribution import METHODS, input_attribution
from workbench.patching.input_deletion import deletion_insertion
from workbench.patching.metrics import Rank

# -- deletion and insertion ----------------------------------------------------------------------------


def test_curves_are_whole_forwards_with_tokens_replaced(model):
    result = input_attribution(model, [CLEAN, SHORT], METRIC, baseline=[OTHER, [84, 81, 86, 87]], **FEW)
    done = deletion_insertion(model, result, METRIC, n_random=3, seed=2)
    assert hooks_left(model) == 0
    share = done.data["share"].values
    for i, (prompt, other) in enumerate([(CLEAN, OTHER), (SHORT, [84, 81, 86, 87])]):
        own, base = of_tokens(model, prompt), of_tokens(model, other)
        values = result.data["attribution"].values[i]
        differing = [p for p in range(len(prompt)) if prompt[p] != other[p]]
        order = sorted(differing, key=lambda p: -values[p] if own > base else values[p])
        for name, first, second in (("deletion", prompt, other), ("insertion", other, prompt)):
            curve = []
            for k in range(len(order) + 1):
                ids = [second[p] if p in order[:k] else first[p] for p in range(len(prompt))]
                curve.append((of_tokens(model, ids) - base) / (own - base))
            area = sum(a + b for a, b in pairwise(curve)) / 2 / len(order)
            tolerance = 1e-4 / abs(own - base) + 1e-4
            assert float(done.data[f"{name}_area"][i]) == pytest.approx(area, abs=tolerance)
            drawn = np.interp(share, np.linspace(0, 1, len(curve)), curve)
            assert np.allclose(done.data[name][i], drawn, atol=tolerance)


def test_random_orders_of_two_tokens_are_one_of_two(llama):
    result = input_attribution(llama, CLEAN, METRIC, baseline=[CORRUPT], **FEW)
    done = deletion_insertion(llama, result, METRIC, n_random=40).data
    own, base = of_tokens(llama, CLEAN), of_tokens(llama, CORRUPT)
    half = [
        (of_tokens(llama, [CORRUPT[p] if p == q else CLEAN[p] for p in range(10)]) - base) / (own - base)
        for q in (2, 6)
    ]
    assert done["share"].values.tolist() == [0, 0.5, 1]
    found = done["random_deletion"].values[0]
    assert np.allclose(found[:, 0], 1, atol=1e-4) and np.allclose(found[:, 2], 0, atol=1e-4)
    first = np.isclose(found[:, 1], half[0], atol=1e-3)
    assert (first | np.isclose(found[:, 1], half[1], atol=1e-3)).all() and 8 < first.sum() < 32
    assert np.allclose(done["random_insertion"].values[0], found[:, ::-1])
    assert np.allclose(done["random_area"].values[0], (1 + 2 * found[:, 1]) / 4, atol=1e-4)


def test_an_order_that_is_right_at_once_has_the_best_areas_there_are():
    """On the linear model only the last token carries anything, whichever end is the higher."""
    model = linear_model()
    for prompt, other in ((CLEAN, [*OTHER[:-1], 60]), ([*OTHER[:-1], 60], CLEAN)):
        result = input_attribution(model, prompt, METRIC, baseline=[other], **FEW)
        n = int(result.data["moved"].sum())
        done = deletion_insertion(model, result, METRIC, n_random=50)
        found, random = done.summary, done.data["random_deletion"].values[0]
        assert found["deletion"]["area"] == pytest.approx(0.5 / n, abs=1e-3)
        assert found["insertion"]["area"] == pytest.approx(1 - 0.5 / n, abs=1e-3)
        assert found["deletion"]["random_interval"][0] >= 0.5 / n - 1e-3
        assert found["deletion"]["random"] == pytest.approx(0.5, abs=0.15)
        as_good = (random[:, 1] < 0.5).sum()  # the token that matters came first, too
        assert 0 < as_good < 30
        assert found["deletion"]["p_value"] == pytest.approx((1 + as_good) / 51, abs=1e-4)
        as_good = (random[:, -2] > 0.5).sum()  # read backwards, it came first
        assert 0 < as_good < 30
        assert found["insertion"]["p_value"] == pytest.approx((1 + as_good) / 51, abs=1e-4)
        assert found["insertion"]["n_random"] == 50


def test_curves_do_not_depend_on_how_many_rows_go_together_and_work_for_every_baseline(llama):
    for baseline in ("zero", "mean", "random", 30):
        result = input_attribution(llama, [CLEAN, OTHER], METRIC, baseline=baseline, n_random=2, **FEW)
        one, all_ = (
            deletion_insertion(llama, result, METRIC, n_random=2, tokens_per_call=n).data for n in (1, 4096)
        )
        for name in ("deletion", "insertion", "random_area"):
            assert np.allclose(one[name], all_[name], atol=1e-3 * max(1, np.abs(one[name]).max())), (
                baseline,
                name,
            )
        assert np.allclose(one["deletion"][:, 0], 1, atol=1e-3) and np.allclose(
            one["deletion"][:, -1], 0, atol=1e-3
        )
        assert np.allclose(one["insertion"][:, 0], 0, atol=1e-3) and np.allclose(
            one["insertion"][:, -1], 1, atol=1e-3
        )


def test_deletion_over_random_baselines_is_the_mean_over_them(llama):
    result = input_attribution(llama, SHORT, METRIC, baseline="random", n_random=3, **FEW)
    done = deletion_insertion(llama, result, METRIC, n_random=1).data
    others = result.data["baseline_id"].values[0].tolist()
    own, base = of_tokens(llama, SHORT), np.mean([of_tokens(llama, o) for o in others])
    values = result.data["attribution"].values[0]
    first = int(np.argmax(values if own > base else -values))
    replaced = [[o[p] if p == first else SHORT[p] for p in range(4)] for o in others]
    expected = (np.mean([of_tokens(llama, ids) for ids in replaced]) - base) / (own - base)
    assert float(done["deletion"][0, 1]) == pytest.approx(expected, abs=1e-3)


def test_several_prompts_have_an_interval_of_the_areas(llama):
    result = input_attribution(llama, [CLEAN, SHORT, OTHER], METRIC, baseline="pad", **FEW)
    done = deletion_insertion(llama, result, METRIC, n_random=5)
    low, high = done.summary["deletion"]["interval"]
    assert low <= done.summary["deletion"]["area"] <= high and done.summary["deletion"]["n_prompts"] == 3
    assert done.data.sizes["share"] == 21
    for name in ("deletion", "insertion"):
        curve = done.data[f"random_{name}"].mean("prompt").values
        assert np.allclose(done.data[f"random_{name}_low"], np.quantile(curve, 0.025, axis=0))
        assert np.allclose(done.data[f"random_{name}_high"], np.quantile(curve, 0.975, axis=0))


# -- what cannot be ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "lime"}, DataError, "method 'lime' is not known.*samp"),
        ({"steps": 0}, DataError, "steps is 0; expected"),
        ({"steps": 2.5}, DataError, "steps is 2.5"),
        ({"n_control": True}, DataError, "n_control is True"),
        ({"method": "gradient_x_input", "steps": 4}, DataError, "has no steps"),
        ({"baseline": [[50, 51]]}, PromptError, "has 10 tokens and its baseline 2"),
        ({"baseline": [CLEAN, OTHER]}, PromptError, "2 baseline prompts for 1 prompts"),
        ({"baseline": [CLEAN]}, PromptError, "are the same tokens"),
        ({"baseline": 500}, MetricError, "500 is outside"),
        ({"baseline": "zeros"}, PromptError, "its baseline 1.*'zero', 'mean'"),
        ({"metric": Rank(7)}, MetricError, "has no gradient"),
        ({"metric": [METRIC, METRIC]}, MetricError, "2 metrics were given for 1 prompts"),
    ],
)
def test_what_cannot_be_is_one_clear_error(llama, arguments, error, message):
    with pytest.raises(error, match=message):
        input_attribution(llama, CLEAN, arguments.pop("metric", METRIC), **arguments)
    assert hooks_left(llama) == 0


def test_a_model_without_padding_token_says_so(llama):
    import copy

    llama.tokenizer = copy.deepcopy(llama.tokenizer)
    llama.tokenizer.pad_token = None
    with pytest.raises(DataError, match="has no padding token"):
        input_attribution(llama, CLEAN, METRIC, baseline="pad")


def test_a_model_that_reads_its_tokens_elsewhere_as_well_is_refused(llama):
    seen = {}
    llama.hf.model.embed_tokens.register_forward_pre_hook(lambda _m, args: seen.update(ids=args[0]))
    llama.hf.model.norm.register_forward_hook(lambda _m, _a, out: out + 0.1 * seen["ids"][..., None])
    with pytest.raises(ModelError, match="not only through the stream"):
        input_attribution(llama, CLEAN, METRIC)


def test_curves_of_another_metric_or_result_are_refused(llama):
    result = input_attribution(llama, CLEAN, METRIC, baseline=[OTHER], **FEW)
    with pytest.raises(MetricError, match="give the model and the metric of the result"):
        deletion_insertion(llama, result, wb.LogitDifference(20, 21))
    with pytest.raises(DataError, match="n_random is 0"):
        deletion_insertion(llama, result, METRIC, n_random=0)
    lens = wb.lens.logit_lens(llama, CLEAN)
    with pytest.raises(DataError, match="'logit_lens' has no token order"):
        deletion_insertion(llama, lens, METRIC)
    same = input_attribution(llama, CLEAN, lambda logits: logits[:, 7] * 0, baseline=[OTHER], **FEW)
    assert np.isnan(same.data["relative_error"]).all() and same.summary["largest_relative_error"] is None
    with pytest.raises(MetricError, match="have the same metric"):
        deletion_insertion(llama, same, lambda logits: logits[:, 7] * 0)


# -- results -------------------------------------------------------------------------------------------


def test_results_and_their_extension_are_saved_and_loaded_without_loss(llama, tmp_path):
    first = input_attribution(llama, [CLEAN, SHORT], METRIC, method="expected_gradients", steps=8)
    second = deletion_insertion(llama, first, METRIC, n_random=3)
    for name, result in (("a", first), ("b", second)):
        loaded = wb.Result.load(result.save(tmp_path / name))
        assert loaded.data.identical(result.data) and loaded.summary == result.summary
    assert second.kind == "input_attribution" and set(first.data) < set(second.data)
    again = deletion_insertion(llama, wb.Result.load(tmp_path / "a"), METRIC, n_random=3)
    assert np.array_equal(again.data["deletion"], second.data["deletion"])


def test_frozen_models_in_inference_mode_are_attributed_too(llama):
    expected = input_attribution(llama, CLEAN, METRIC, baseline="mean", **FEW).data["attribution"]
    llama.hf.requires_grad_(False)
    with torch.inference_mode():
        result = input_attribution(llama, CLEAN, METRIC, baseline="mean", **FEW)
        deletion_insertion(llama, result, METRIC, n_random=1)
    assert np.allclose(result.data["attribution"], expected, atol=1e-6)
    assert all(p.grad is None for p in llama.hf.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_a_model_in_bfloat16_behaves(method):
    model, steps = tiny_model("gpt2"), {} if method == "gradient_x_input" else {"steps": 32}
    settings = {"method": method, "baseline": [OTHER], "control": False, **steps}
    expected = input_attribution(model, CLEAN, METRIC, **settings).data["attribution"].values[0]
    model.hf.bfloat16()
    result = input_attribution(model, CLEAN, METRIC, **settings)
    found = result.data["attribution"].values[0]
    assert result.data["attribution"].dtype == np.float64 and np.isfinite(found).all()
    assert np.corrcoef(found, expected)[0, 1] > 0.98
