"""Causal mediation: replayed patches against whole hooked forwards, the paper's formula and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import hooks_left
from hypothesis import given
from hypothesis import strategies as st

import workbench as wb
from workbench.errors import DataError, MetricError, PositionError, PromptError
from workbench.patching.mediation import COMPONENTS, mediation, relative_importance
from workbench.patching.mediation_answers import Vocabulary, token_ids
from workbench.patching.mediation_effects import forms
from workbench.patching.replay import Replay
from workbench.patching.sweep import sweep

PROMPTS = [[50, 51, 52, 53, 54, 55], [50, 61, 62, 63, 64, 65], [50, 71, 72, 73, 74, 75]]
OTHERS = [[50, 51, 82, 53, 54, 85], [50, 86, 62, 88, 64, 91], [50, 71, 94, 95, 74, 97]]
SAME = [[50, 40, 52, 53, 41, 55], [50, 61, 42, 63, 43, 65], [50, 44, 72, 73, 74, 45]]
RESULTS, OTHER_RESULTS = [7, 8, 9], [17, 18, 19]


def probabilities(model, prompt, site=None, position=None, source=None):
    """Of the next token, by a whole forward, with `source`'s activation at one position of a site."""
    if site is None:
        return model.logits([prompt])[0, -1].double().softmax(-1)
    with model.hooks(read=[site]) as session:
        model.logits([source])
    new = session[site][0, position]

    def put(x):
        x[0, position] = new
        return x

    with model.edit({site: put}):
        return model.logits([prompt])[0, -1].double().softmax(-1)


def of_the_paper(base, patched, r, other):
    return float((patched[other] - base[other]) / base[other] + (base[r] - patched[r]) / patched[r]) / 2


def logarithmic(base, patched, r, other):
    return float((patched[other].log() - base[other].log()) + (base[r].log() - patched[r].log())) / 2


def test_every_effect_is_that_of_whole_forwards(model):
    data = mediation(model, PROMPTS, OTHERS, RESULTS, OTHER_RESULTS, same_result=SAME).data
    assert data["effect"].dims == ("pair", "component", "layer", "position")
    assert data["effect"].shape == (3, 2, model.n_layers, 6)
    for i in (0, 2):
        base, r, other = probabilities(model, PROMPTS[i]), RESULTS[i], OTHER_RESULTS[i]
        for kind in COMPONENTS:
            for layer in range(model.n_layers):
                for position in (2, 5):
                    at = {"component": kind, "layer": layer, "position": position}
                    cell = data.isel(pair=i).sel(at)
                    site = f"blocks.{layer}.hook_{kind}"
                    patched = probabilities(model, PROMPTS[i], site, position, OTHERS[i])
                    assert float(cell["effect"]) == pytest.approx(
                        logarithmic(base, patched, r, other), abs=2e-5
                    )
                    expected = of_the_paper(base, patched, r, other)
                    assert float(cell["relative_effect"]) == pytest.approx(expected, rel=1e-4, abs=2e-5)
                    assert float(cell["change"]) == pytest.approx(
                        float((base[r] - patched[r]).abs()), abs=1e-6
                    )
                    assert float(cell["log_p_result"]) == pytest.approx(float(patched[r].log()), abs=2e-5)
                    assert float(cell["log_p_other_result"]) == pytest.approx(
                        float(patched[other].log()), abs=2e-5
                    )
                    same = probabilities(model, PROMPTS[i], site, position, SAME[i])
                    assert float(cell["control_effect"]) == pytest.approx(
                        logarithmic(base, same, r, other), abs=2e-5
                    )
                    assert float(cell["control_change"]) == pytest.approx(
                        float((base[r] - same[r]).abs()), abs=1e-6
                    )
    assert hooks_left(model) == 0


def test_total_effects_are_those_of_the_other_prompt(model):
    data = mediation(model, PROMPTS, OTHERS, RESULTS, OTHER_RESULTS, layers=[0], positions=-1).data
    for i, (r, other) in enumerate(zip(RESULTS, OTHER_RESULTS, strict=True)):
        base, whole = probabilities(model, PROMPTS[i]), probabilities(model, OTHERS[i])
        assert float(data["total_effect"][i]) == pytest.approx(logarithmic(base, whole, r, other), abs=2e-5)
        expected = of_the_paper(base, whole, r, other)
        assert float(data["total_relative_effect"][i]) == pytest.approx(expected, rel=1e-4)
        assert float(data["total_change"][i]) == pytest.approx(float((base[r] - whole[r]).abs()), abs=1e-6)
        assert float(data["base_log_p_result"][i]) == pytest.approx(float(base[r].log()), abs=2e-5)
        assert float(data["base_log_p_other_result"][i]) == pytest.approx(float(base[other].log()), abs=2e-5)
        assert float(data["other_log_p_result"][i]) == pytest.approx(float(whole[r].log()), abs=2e-5)
        assert float(data["other_log_p_other_result"][i]) == pytest.approx(
            float(whole[other].log()), abs=2e-5
        )


@pytest.mark.parametrize("kind", COMPONENTS)
def test_the_log_form_over_the_total_is_the_denoising_effect_of_a_logit_difference(model, kind):
    data = mediation(model, PROMPTS, OTHERS, RESULTS, OTHER_RESULTS, components=kind, control=False).data
    metric = [wb.LogitDifference(b, a) for a, b in zip(RESULTS, OTHER_RESULTS, strict=True)]
    swept = sweep(model, OTHERS, PROMPTS, metric, kind=kind, control=False).data
    share = data["effect"].sel(component=kind) / data["total_effect"]
    assert np.allclose(share, swept["effect"], atol=1e-4)
    span = swept["clean_metric"] - swept["corrupt_metric"]
    assert np.allclose(data["total_effect"], span / 2, atol=1e-5)


def test_candidates_renormalise_and_leave_the_log_form_as_it_is(llama):
    candidates = [7, 8, 9, 17, 18, 19, 30]
    some, all_ = (
        mediation(llama, PROMPTS, OTHERS, RESULTS, OTHER_RESULTS, candidates=c, same_result=SAME).data
        for c in (candidates, None)
    )
    assert np.allclose(some["effect"], all_["effect"], atol=2e-6)
    assert np.allclose(some["total_effect"], all_["total_effect"], atol=2e-6)
    assert not np.allclose(some["relative_effect"], all_["relative_effect"], atol=1e-3)
    i, site, position = 1, "blocks.1.hook_mlp_out", 3
    base, patched = (
        p / p[candidates].sum()
        for p in (
            probabilities(llama, PROMPTS[i]),
            probabilities(llama, PROMPTS[i], site, position, OTHERS[i]),
        )
    )
    cell = some.isel(pair=i).sel(component="mlp_out", layer=1, position=position)
    expected = of_the_paper(base, patched, RESULTS[i], OTHER_RESULTS[i])
    assert float(cell["relative_effect"]) == pytest.approx(expected, rel=1e-4)
    assert float(cell["change"]) == pytest.approx(
        float((base[RESULTS[i]] - patched[RESULTS[i]]).abs()), abs=1e-6
    )
    assert float(some["base_log_p_result"][i]) == pytest.approx(float(base[RESULTS[i]].log()), abs=1e-5)
    assert some.attrs["probabilities"] == "over 7 candidates"


def test_being_right_means_the_first_choice_among_the_candidates(llama):
    first = [int(probabilities(llama, p).argmax()) for p in PROMPTS]
    results = [first[0], first[1] + 1, first[2]]
    others = [t + 2 for t in results]
    result = mediation(llama, PROMPTS, OTHERS, results, others, layers=[0], positions=-1, control=False)
    assert result.data["correct"].values.tolist() == [True, False, True]
    assert result.summary["n_correct"] == 2
    weaker = [int(probabilities(llama, p)[[30, 31]].argmax()) + 30 for p in PROMPTS]
    result = mediation(
        llama,
        PROMPTS,
        OTHERS,
        weaker,
        [61 - w for w in weaker],
        candidates=[30, 31],
        layers=[0],
        positions=-1,
    )
    assert result.data["correct"].all()


@given(
    base=st.tuples(st.floats(-12, -0.05), st.floats(-12, -0.05)),
    patched=st.tuples(st.floats(-12, -0.05), st.floats(-12, -0.05)),
)
def test_forms_are_the_formulas_and_the_relative_one_is_never_the_smaller(base, patched):
    found = forms(np.array(base), np.array(patched))
    p, q = [math.exp(x) for x in base], [math.exp(x) for x in patched]
    assert found["relative_effect"] == pytest.approx(((q[1] - p[1]) / p[1] + (p[0] - q[0]) / q[0]) / 2)
    assert found["effect"] == pytest.approx((math.log(q[1] / p[1]) + math.log(p[0] / q[0])) / 2, abs=1e-12)
    assert found["change"] == pytest.approx(abs(p[0] - q[0]), abs=1e-12)
    assert found["relative_effect"] >= found["effect"] - 1e-12
    assert found["relative_effect"] >= -1


def test_an_improbable_result_explodes_the_relative_form_only():
    base, patched = np.log([[0.5, 0.1], [0.5, 1e-9]]), np.log([[0.4, 0.2], [0.4, 1e-3]])
    found = forms(base, patched)
    assert found["relative_effect"][1] > 4e5
    assert found["effect"][1] < 8


def test_without_prompts_of_the_same_result_the_control_is_the_next_pairs_patch(llama):
    result = mediation(llama, PROMPTS, OTHERS, RESULTS, OTHER_RESULTS, layers=[1], positions=[3])
    assert result.data.attrs["control"] == "wrong source: the next pair's other prompt"
    for i in range(3):
        base = probabilities(llama, PROMPTS[i])
        patched = probabilities(llama, PROMPTS[i], "blocks.1.hook_attn_out", 3, OTHERS[(i + 1) % 3])
        expected = logarithmic(base, patched, RESULTS[i], OTHER_RESULTS[i])
        cell = result.data["control_effect"].isel(pair=i).sel(component="attn_out").squeeze()
        assert float(cell) == pytest.approx(expected, abs=2e-5)


def test_one_pair_has_no_interval_and_its_control_comes_from_other_positions(llama):
    result = mediation(llama, PROMPTS[0], OTHERS[0], 7, 17, seed=3)
    data = result.data
    assert data.attrs["control"] == "wrong source: the other prompt at deranged positions"
    for name in ("effect_se", "effect_low", "p_value"):
        assert np.isnan(data[name]).all()
    assert "interval" not in result.summary["strongest"]
    with llama.hooks(read=["blocks.1.hook_mlp_out"]) as session:
        llama.logits([OTHERS[0]])
    values = session["blocks.1.hook_mlp_out"][0]
    base, found = probabilities(llama, PROMPTS[0]), []
    for new in values:

        def put(x, new=new):
            x[0, 3] = new
            return x

        with llama.edit({"blocks.1.hook_mlp_out": put}):
            patched = llama.logits([PROMPTS[0]])[0, -1].double().softmax(-1)
        found.append(logarithmic(base, patched, 7, 17))
    control = float(data["control_effect"].sel(component="mlp_out", layer=1, position=3).squeeze())
    assert min(abs(control - f) for at, f in enumerate(found) if at != 3) < 2e-5
    assert abs(control - found[3]) > 1e-4


def test_patches_that_change_nothing_are_not_run_and_have_no_effect(llama):
    data = mediation(llama, PROMPTS[:1], OTHERS[:1], 7, 17, control=False).data
    assert (data["effect"].sel(position=[0, 1]) == 0).all()  # both prompts begin alike
    assert (data["effect"].sel(component="mlp_out", layer=0, position=[3, 4]) != 0).all()
    assert data.attrs["unchanged"].startswith("12 of 36 patches")


def test_models_without_keys_to_give_back_begin_at_the_first_position(llama, monkeypatch):
    arguments = (llama, PROMPTS, OTHERS, RESULTS, OTHER_RESULTS)
    expected = mediation(*arguments, layers=[0, 1], positions=[3, 5]).data
    monkeypatch.setattr(Replay, "starts", lambda self, position: 0)
    found = mediation(*arguments, layers=[0, 1], positions=[3, 5]).data
    assert np.allclose(found["effect"], expected["effect"], atol=1e-5)
    assert np.allclose(found["control_effect"], expected["control_effect"], atol=1e-5)


def test_a_result_preserving_prompt_that_is_the_other_one_gives_the_effect_itself(llama):
    data = mediation(llama, PROMPTS, OTHERS, RESULTS, OTHER_RESULTS, same_result=OTHERS).data
    for form in ("effect", "relative_effect", "change"):
        assert np.allclose(data[form], data[f"control_{form}"], atol=1e-5)
    assert np.allclose(data["p_value"], 1)
    assert data.attrs["control"].startswith("result-preserving")


def test_statistics_are_those_over_pairs_and_batching_changes_nothing(llama):
    arguments = (llama, PROMPTS, OTHERS, RESULTS, OTHER_RESULTS)
    result = mediation(*arguments, same_result=SAME)
    data = result.data
    one = mediation(*arguments, same_result=SAME, tokens_per_call=1, positions=[-1, 2], layers=[2, 1]).data
    assert one["position"].values.tolist() == [5, 2] and one["layer"].values.tolist() == [1, 2]
    for form in ("effect", "control_effect", "relative_effect", "change"):
        value = data[form].values
        assert np.allclose(data[f"mean_{form}"], value.mean(0))
        assert np.allclose(data[f"{form}_se"], value.std(0, ddof=1) / np.sqrt(3))
        assert (data[f"{form}_low"] <= data[f"mean_{form}"] + 1e-12).all()
        assert (data[f"mean_{form}"] <= data[f"{form}_high"] + 1e-12).all()
        cells = data[form].sel(layer=[1, 2], position=[5, 2])
        assert np.allclose(one[form], cells, rtol=1e-4, atol=1e-5)
    strongest = result.summary["strongest"]
    at = {name: strongest[name] for name in ("component", "layer", "position")}
    assert abs(float(data["mean_effect"].sel(at))) == float(np.abs(data["mean_effect"]).max())
    assert strongest["control_effect"] == pytest.approx(float(data["mean_control_effect"].sel(at)), abs=1e-4)
    assert strongest["token"] == llama.tokenizer.decode([PROMPTS[0][at["position"]]])


def test_relative_importance_is_the_share_of_the_summed_effects(llama):
    result = mediation(llama, PROMPTS, OTHERS, RESULTS, OTHER_RESULTS, same_result=SAME)
    size = np.abs(result.data["effect"].values)  # [pair, component, layer, position]
    found = relative_importance(result, components="mlp_out", layers=[1, -1], positions=-1)
    shares = size[:, 0, 1:, 5].sum(1) / size.sum((1, 2, 3))
    assert np.allclose(found["shares"], shares)
    assert found["share"] == pytest.approx(shares.mean())
    assert found["interval"][0] <= found["share"] <= found["interval"][1]
    assert (found["cells"], found["share_of_cells"]) == ("2 of 36", pytest.approx(2 / 36))
    control = np.abs(result.data["control_effect"].values)
    expected = (control[:, 0, 1:, 5].sum(1) / control.sum((1, 2, 3))).mean()
    assert found["control_share"] == pytest.approx(expected)
    mean = np.abs(result.data["mean_effect"].values)
    assert found["share_of_mean"] == pytest.approx(mean[0, 1:, 5].sum() / mean.sum())
    assert relative_importance(result)["share"] == pytest.approx(1)
    halves = [relative_importance(result, components=c, of="relative_effect")["share"] for c in COMPONENTS]
    assert sum(halves) == pytest.approx(1)
    alone = mediation(llama, PROMPTS[:1], OTHERS[:1], 7, 17, control=False)
    assert relative_importance(alone)["interval"] is None
    assert relative_importance(alone)["control_share"] is None


def test_shares_that_do_not_exist_are_errors(llama):
    result = mediation(llama, PROMPTS, OTHERS, RESULTS, OTHER_RESULTS, control=False)
    with pytest.raises(DataError, match="component 'resid_post' is not in the result"):
        relative_importance(result, components="resid_post")
    with pytest.raises(DataError, match="layer 7 is not in the result: it has 0, 1, 2"):
        relative_importance(result, layers=[1, 7])
    with pytest.raises(DataError, match="No position was asked for"):
        relative_importance(result, positions=[])
    with pytest.raises(DataError, match="no form of the effect"):
        relative_importance(result, of="log_p_result")
    nothing = mediation(llama, PROMPTS, OTHERS, RESULTS, OTHER_RESULTS, control=False, positions=0)
    with pytest.raises(DataError, match="0 everywhere"):
        relative_importance(nothing)
    swept = sweep(llama, PROMPTS[0], OTHERS[0], wb.LogitDifference(7, 9), layers=[0])
    with pytest.raises(DataError, match="patching_sweep"):
        relative_importance(swept)


def test_answers_are_single_tokens(llama):
    with pytest.raises(MetricError, match="2 tokens"):
        mediation(llama, PROMPTS, OTHERS, "one two", OTHER_RESULTS)
    with pytest.raises(MetricError, match="other_results has 2 items for 3 prompts"):
        mediation(llama, PROMPTS, OTHERS, RESULTS, [1, 2])
    with pytest.raises(MetricError, match="Pair 1: both results are token 8"):
        mediation(llama, PROMPTS, OTHERS, RESULTS, [17, 8, 19])
    with pytest.raises(MetricError, match="results has token 9, which is not among the 3 candidates"):
        mediation(llama, PROMPTS, OTHERS, RESULTS, OTHER_RESULTS, candidates=[7, 8, 17])
    with pytest.raises(MetricError, match="given twice"):
        Vocabulary(llama, [7, 8, 7])
    with pytest.raises(MetricError, match="1 candidates were given"):
        Vocabulary(llama, [7])
    with pytest.raises(MetricError, match="is the text"):
        Vocabulary(llama, "one")
    assert token_ids(llama, "one", 2) == [llama.token_id("one")] * 2


def test_prompts_that_cannot_be_paired_are_errors(llama):
    with pytest.raises(PromptError, match="2 prompts of `others` were given for 3"):
        mediation(llama, PROMPTS, OTHERS[:2], RESULTS, OTHER_RESULTS)
    with pytest.raises(PromptError, match="`same_result` .* do not go together.* 5 tokens"):
        mediation(llama, PROMPTS, OTHERS, RESULTS, OTHER_RESULTS, same_result=[SAME[0], SAME[1][:5], SAME[2]])
    with pytest.raises(PromptError, match="Pair 2: the prompt of `others` is the prompt itself"):
        mediation(llama, PROMPTS, [*OTHERS[:2], PROMPTS[2]], RESULTS, OTHER_RESULTS)
    with pytest.raises(PromptError, match="Component 'resid_post' is not known"):
        mediation(llama, PROMPTS, OTHERS, RESULTS, OTHER_RESULTS, components=["mlp_out", "resid_post"])
    with pytest.raises(PromptError, match="control=False"):
        mediation(llama, PROMPTS, OTHERS, RESULTS, OTHER_RESULTS, same_result=SAME, control=False)
    with pytest.raises(PositionError, match="Position 9 is outside"):
        mediation(llama, PROMPTS, OTHERS, RESULTS, OTHER_RESULTS, positions=[9])
    with pytest.raises(DataError, match="Layer 3 does not exist"):
        mediation(llama, PROMPTS, OTHERS, RESULTS, OTHER_RESULTS, layers=[3])


def test_a_result_survives_the_disk(llama, tmp_path):
    result = mediation(llama, PROMPTS, OTHERS, RESULTS, OTHER_RESULTS, same_result=SAME)
    result.save(tmp_path / "r.zarr")
    loaded = wb.Result.load(tmp_path / "r.zarr")
    assert loaded.data.identical(result.data)
    assert relative_importance(loaded, positions=-1) == relative_importance(result, positions=-1)
    assert result.provenance.settings["same_result_tokens"] == SAME


def test_reading_leaves_the_model_as_it_was(llama):
    before = llama.logits(PROMPTS)
    mediation(llama, PROMPTS, OTHERS, RESULTS, OTHER_RESULTS, layers=[1])
    assert torch.equal(before, llama.logits(PROMPTS))
