"""Figures of back-patching, patchscopes, all-for-one, subspaces, mediation, circuits and neurons."""

from __future__ import annotations

from html import unescape

import numpy as np
import pytest
from fake_results import where_from
from patching_results import (
    LAYERS,
    VARIANTS,
    back_patching,
    circuits,
    das,
    drawn_of,
    grids,
    made,
    main,
    named,
    patchscope,
    under,
)

from dashboards.figures import control_statement, describe, figure, figures
from dashboards.figures.tables import tables
from workbench.results import Result

# --- results of realistic size --------------------------------------------------------------------------


@pytest.fixture(params=VARIANTS, ids=str)
def name(request) -> str:
    return request.param


@pytest.fixture
def result(name) -> Result:
    return made(name)


# --- back-patching, patchscope --------------------------------------------------------------------------


def test_back_patching_shows_prompts_first_wrong_with_the_forward_null_below_the_diagonal():
    result = made("back-patching")
    drawn, one = figure(result), result.data.sel(group="first wrong")
    own, other = grids(drawn)
    for s, t in ((20, 5), (29, 0), (3, 2)):
        assert own.z[s, t] == pytest.approx(float(one["pair_rate"][s, t]))
        assert own.z[t, s] == pytest.approx(float(one["forward_pair_rate"][t, s]))
        assert other.z[s, t] == pytest.approx(float(one["control_pair_rate"][s, t]))
    assert np.isnan(np.diagonal(own.z)).all() and np.isnan(other.z[np.triu_indices(LAYERS)]).all()
    rate = one["pair_rate"].values
    s, t = np.unravel_index(np.nanargmax(rate), rate.shape)
    assert f"source {s} → target {t}" in under(drawn) and "first wrong, n = 30" in under(drawn)
    boxes = {(b.x0, b.y0) for b in drawn.layout.shapes}
    assert boxes == {(t - 0.5, s - 0.5)}


def test_the_oracle_stands_beside_the_same_maximum_of_both_nulls():
    result = made("back-patching")
    drawn = figures(result)["oracle"]
    assert [label.split("<br>")[0] for label in drawn.data[0].x] == ["first wrong", "all", "first right"]
    for trace, name in zip(drawn.data, ("oracle", "control", "forward"), strict=True):
        values = result.data[f"{name}_rate"].sel(group=["first wrong", "all", "first right"])
        np.testing.assert_allclose(trace.y, values, rtol=1e-6)
    assert "maximum over 435 pairs, the nulls' too" in under(drawn)
    assert "minus other prompt's stream" in under(drawn)


def test_groups_without_prompts_are_left_out_and_all_are_shown_where_none_was_wrong():
    result = back_patching(n=8, layers=4)
    group = result.data["group"].values == "first wrong"
    result.data["n"][group] = 0
    drawn = figures(result)
    assert "Prompts: all, n = 8" in under(drawn["pairs"])
    assert [label.split("<br>")[0] for label in drawn["oracle"].data[0].x] == ["all", "first right"]


def test_where_no_pair_works_nothing_is_outlined():
    result = back_patching(n=8, layers=4)
    for name in ("pair_rate", "forward_pair_rate", "control_pair_rate"):
        result.data[name] = result.data[name] * 0
    assert len(figure(result).layout.shapes) == 0 and "No pair of layers works" in describe(result)["pairs"]


def test_patchscope_has_the_whole_text_in_its_hover_and_the_first_token_where_it_fits():
    result = made("patchscope, small")
    drawn = figure(result)
    (cells,) = grids(drawn)
    said = unescape(cells.hovertext[5, 3]).replace("<br>", "")
    assert said.startswith(repr(str(result.data["text"].values[5, 3])))
    assert f"{result.data['top_probability'].values[5, 3, 0]:.3f}" in said
    (texts,) = [t for t in drawn.data if t.type == "scatter"]
    assert unescape(texts.text[0]).replace("·", " ") == str(result.data["top_token"].values[0, 0, 0]).replace(
        "\n", "\\n"
    )
    wide = main("patchscope")
    assert [t.type for t in wide.data] == ["heatmap"]
    n = int((result.data["text"] != result.data["unpatched_text"]).sum())
    assert f"differs from the unpatched one in {n} of 64 cells" in under(drawn)


def test_long_texts_are_cut_with_an_ellipsis_and_stay_within_the_budget():
    result = patchscope(60, 60, texts=["word " * 200, "other " * 200, "x", "y"])
    for drawn in figures(result).values():
        assert len(drawn.to_json()) < 2_000_000
    assert all(
        text.endswith("…'") or "…'<br>" in text or len(text) < 99
        for text in figure(result).data[0].hovertext.flat
    )


def test_cells_whose_text_names_the_thing_are_outlined_and_counted_beside_the_control():
    result = made("patchscope, decoded")
    drawn = figures(result)
    decoded = result.data["decoded"].values
    boxes = {(int(b.y0 + 0.5), int(b.x0 + 0.5)) for b in drawn["texts"].layout.shapes}
    assert boxes == set(map(tuple, np.argwhere(decoded).tolist()))
    assert f"{decoded.sum()} of 900 cells (control 0): 'Paris' or 'France'" in under(drawn["texts"])
    np.testing.assert_allclose(named(drawn["decoded"], "the stream").y, decoded.mean(1), rtol=1e-6)
    assert not named(drawn["decoded"], "control").y.any()


# --- all for one, subspaces, mediation ------------------------------------------------------------------


def test_a_search_is_a_grid_of_wait_and_peek_with_the_smallest_outlined():
    result = made("all-for-one search, small")
    drawn = figure(result)
    (cells,) = grids(drawn)
    np.testing.assert_allclose(cells.z, result.data["faithfulness"], rtol=1e-6)
    assert {(b.x0, b.y0) for b in drawn.layout.shapes} == {(1.5, 3.5)}  # wait 4, peek 2
    (texts,) = [t for t in drawn.data if t.type == "scatter"]
    assert [t for t in texts.text if t.startswith("<b>")] and all(
        (float(t.strip("<b>/")) >= 0.95) == t.startswith("<b>") for t in texts.text if t
    )
    np.testing.assert_allclose(cells.customdata[..., 2], np.repeat(cells.z[:, :1], 9, 1), rtol=1e-6)
    large = main("all-for-one search")
    (dots,) = [t for t in large.data if t.type == "scatter"]
    assert sum(t == "•" for t in dots.text) == int((np.nan_to_num(grids(large)[0].z) >= 0.95).sum())


def test_where_no_subgraph_keeps_enough_nothing_is_outlined():
    result = made("all-for-one search, nothing found")
    drawn = figures(result)
    assert list(drawn) == ["grid"] and len(drawn["grid"].layout.shapes) == 0
    assert "No cell keeps 0.95" in under(drawn["grid"])


def test_the_smallest_subgraph_is_shown_on_prompts_that_did_not_choose_it():
    drawn = drawn_of("all-for-one search")["smallest"]
    np.testing.assert_allclose(drawn.data[0].y, [0.98, 0.12, 0.3], rtol=1e-6)
    assert "80 answered prompts that did not choose it" in under(drawn)


def test_points_have_their_intervals_and_tables_too():
    for name, values, ends in (
        ("das", "accuracy", ("accuracy_low", "accuracy_high")),
        ("all for one", "faithfulness", ("faithfulness_low", "faithfulness_high")),
    ):
        data, drawn = made(name).data, main(name)
        (points,) = drawn.data
        np.testing.assert_allclose(points.y, data[values], rtol=1e-6)
        np.testing.assert_allclose(points.y - points.error_y.arrayminus, data[ends[0]], rtol=1e-5)
        np.testing.assert_allclose(points.y + points.error_y.array, data[ends[1]], rtol=1e-5)
        assert drawn.layout.yaxis.range == (-0.02, 1.02)
        assert "[" in tables(drawn)[0].rows[0][1]


def test_subspaces_stand_beside_no_intervention_at_all_and_may_be_others():
    drawn = main("das")
    assert [shape.y0 for shape in drawn.layout.shapes] == [0.03] and "random (control)" in drawn.data[0].x
    data = das().data.assign_coords(subspace=["given", "pca", "random", "whole"]).drop_vars("loss")
    given = figures(Result("das", data, where_from(), {}))
    assert list(given) == ["accuracy"] and given["accuracy"].data[0].x[0] == "given"


def test_components_share_one_colour_range():
    result = made("mediation")
    most = float(np.abs(result.data["mean_effect"]).max())
    for drawn in figures(result).values():
        assert drawn.layout.coloraxis.cmax == pytest.approx(most, rel=1e-5)
    (cells,) = grids(figure(result))
    np.testing.assert_allclose(cells.z, result.data["mean_effect"].sel(component="mlp_out"), rtol=1e-5)
    assert "layer 20, position 13 ' to': 1.8" in under(figure(result)) and "total effect 5.5 nats" in under(
        figure(result)
    )
    for word in ("relative form", "|P(r) − P*(r)|", "95 % interval", "p %"):
        assert word in cells.hovertemplate, word


# --- circuits, neurons ----------------------------------------------------------------------------------


def test_circuits_have_both_measures_beside_the_range_of_random_ones():
    result = made("circuits")
    data, drawn = result.data, figure(result)
    for name, axis in (("faithfulness", None), ("completeness", "y2")):
        line, random = named(drawn, name), named(drawn, f"{name}, random circuits")
        np.testing.assert_allclose(line.y, data[f"mean_{name}"], rtol=1e-5)
        np.testing.assert_allclose(named(drawn, f"{name}, high").y, data[f"{name}_high"], rtol=1e-5)
        each = data[f"random_{name}"].mean("pair")
        np.testing.assert_allclose(random.y, each.mean("random"), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(
            named(drawn, f"{name}, random circuits, low").y, each.min("random"), rtol=1e-4, atol=1e-6
        )
        assert (line.yaxis if axis else None) == axis and random.line.dash == "dash"
    assert drawn.layout.xaxis.type == drawn.layout.xaxis2.type == "log"
    assert named(drawn, "faithfulness").text[8] == "450 edges after pruning, 330 nodes, p 0.0909"
    assert "0.8 first at 500 edges (450 after pruning)" in under(drawn)


def test_a_circuit_without_edges_has_a_place_on_the_log_axis():
    data = circuits().data.assign_coords(size=[0, *circuits().data["size"].values[1:]])
    drawn = figure(Result("circuit", data, where_from()))
    assert named(drawn, "faithfulness").x[0] == 0.5
    assert "No random circuits" in control_statement(Result("circuit", data, where_from()))


def test_the_first_neurons_are_those_of_largest_value_beside_each_ones_largest_control():
    result = made("neurons, head silenced")
    drawn, data = figures(result)["top"], result.data
    bar, marks = named(drawn, "effect"), named(drawn, "control")
    mean = data["mean_comparative"].values
    assert bar.y[-1] == "20.117" and bar.y[-2] == "22.4" and "21.50" not in bar.y  # the last is negative
    np.testing.assert_allclose(bar.x, np.sort(mean, axis=None)[-20:], rtol=1e-5)
    control = data["mean_control_comparative"].values
    there = control[:, 20, 117]
    assert marks.x[-1] == pytest.approx(there[np.abs(there).argmax()], rel=1e-5)
    most = np.abs(control).max()
    assert [shape.x0 for shape in drawn.layout.shapes] == pytest.approx([-most, most])
    assert "of 46,080 neurons" in under(drawn)


def test_shares_of_layers_add_up_to_one_and_so_do_those_of_the_control():
    for name in ("neurons", "neurons, head silenced"):
        drawn = main(name)
        for trace in drawn.data:
            assert trace.y.sum() == pytest.approx(1, rel=1e-5)
    share = np.abs(made("neurons").data["mean_importance"]).sum("neuron")
    np.testing.assert_allclose(named(main("neurons"), "importance").y, share / share.sum(), rtol=1e-5)


def test_the_silenced_head_is_outlined_among_the_scores_of_all():
    drawn = drawn_of("neurons, head silenced")["heads"]
    assert {(b.x0, b.y0) for b in drawn.layout.shapes} == {(1.5, 16.5)}
    assert "Silenced: head 17.2 (largest mean score on these prompts)" in under(drawn)


def test_ablated_neurons_stand_beside_random_draws_in_both_measures():
    result = made("neuron ablation")
    given, random, *_ = figure(result).data
    one = result.data.sel(measure="log_probability")
    assert given.y[0] == pytest.approx(float(one["mean_effect"]), rel=1e-5)
    draws = one["mean_control_effect"]
    assert random.y[0] == pytest.approx(float(draws.mean()), rel=1e-5)
    assert random.y[0] - random.error_y.arrayminus[0] == pytest.approx(float(draws.min()), rel=1e-4)
    assert "p 0.0476" in under(figure(result))
