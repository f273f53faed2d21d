"""Figures of sweeps, bars, attribution, edges, paths, ablation and knock-out."""

from __future__ import annotations

from html import unescape

import numpy as np
import pytest
from fake_results import where_from
from patching_results import (
    LAYERS,
    VARIANTS,
    attribution,
    edges,
    grids,
    made,
    main,
    named,
    path_sets,
    paths,
    spans,
    under,
)

from dashboards.figures import describe, figure, figures
from dashboards.figures.tables import tables
from workbench.results import Result

# --- results of realistic size --------------------------------------------------------------------------


@pytest.fixture(params=VARIANTS, ids=str)
def name(request) -> str:
    return request.param


@pytest.fixture
def result(name) -> Result:
    return made(name)


# --- sweeps ---------------------------------------------------------------------------------------------


def test_of_heads_at_positions_the_strongest_position_is_drawn_and_named():
    result = made("sweep, heads at positions")
    data = result.data.transpose("pair", "layer", "head", "position")
    mean, control = data["mean_effect"].values, data["control_effect"].mean("pair").values
    drawn = figures(result)
    (cells,) = grids(drawn["effect"])
    at = np.abs(mean).argmax(-1)
    for layer, head in ((9, 6), (5, 2), (0, 0)):
        assert cells.z[layer, head] == pytest.approx(mean[layer, head, at[layer, head]], rel=1e-5)
        assert unescape(cells.hovertext[layer, head]).startswith(f"at position {at[layer, head]} '")
    assert at[9, 6] == 13 and "layer 9, head 6 at position 13 ' to': 0.79" in under(drawn["effect"])
    own, theirs = grids(drawn["control"])
    most = np.abs(control).argmax(-1)
    np.testing.assert_allclose(theirs.z, np.take_along_axis(control, most[..., None], -1)[..., 0], rtol=1e-5)
    np.testing.assert_array_equal(own.z, cells.z)
    names = [line.split(" %")[0] for line in cells.hovertemplate.split("<br>")]
    for word in ("mean effect", "mean metric", "control effect", "p", "largest control over positions"):
        assert word in names, names


def test_the_strongest_heads_have_a_row_by_position_in_the_order_of_layers():
    result = made("sweep, heads at positions")
    drawn = figures(result)["positions"]
    (cells,) = grids(drawn)
    assert len(cells.y) == 24 and "The strongest 24 of 270 heads" in under(drawn)
    for label in ("9.6", "5.2", "20.0"):
        layer, head = map(int, label.split("."))
        row = result.data["mean_effect"].sel(layer=layer, head=head).values
        np.testing.assert_allclose(cells.z[list(cells.y).index(label)], row, rtol=1e-5)
    keys = [tuple(map(int, label.split("."))) for label in cells.y]
    assert keys == sorted(keys)
    assert cells.x[9] == "9 ' John'→' Mary'"


def test_positions_that_correspond_to_nothing_are_grey_and_the_alignment_is_said():
    drawn = main("sweep, unequal lengths")
    (cells,) = grids(drawn)
    assert np.isnan(cells.z[:, 3:5]).all() and np.isfinite(np.delete(cells.z, [3, 4], 1)).all()
    assert cells.x[3] == "3 ∅→' John'" and "12 of 14 positions" in under(drawn) and "Grey" in under(drawn)


def test_spans_are_columns_by_name_and_stay_apart_where_long_names_are_cut():
    (cells,) = grids(main("sweep, spans"))
    assert list(cells.x)[:2] == ["first name", "second name"]
    names = ["the words before the name", "the words before the verb", "the words before the end"]
    same = spans()
    (cells,) = grids(figure(Result(same.kind, same.data.assign_coords(span=names), where_from())))
    assert list(cells.x) == [
        "the words before the na…",
        "the words before the ve…",
        "the words before the end",
    ]
    names = [f"{'the words before'} the verb number {i}" for i in range(3)]
    (cells,) = grids(figure(Result(same.kind, same.data.assign_coords(span=names), where_from())))
    assert len(set(cells.x)) == 3 and cells.x[1] == "the words before the ve… (2)"


# --- bars -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["attribution", "edges", "paths", "ablation, heads"])
def test_bars_are_the_strongest_cells_with_interval_control_and_the_largest_control_of_all(name):
    result = made(name)
    data, drawn = result.data, figures(result)["top"]
    mean = data["mean_effect"].values
    over = "pair" if "pair" in data.dims else "prompt"
    control = data["control_effect"].mean(over).values
    order = np.argsort(-np.abs(np.nan_to_num(mean)), axis=None, kind="stable")[:20]
    at = np.unravel_index(order[::-1], mean.shape)
    bar, marks = named(drawn, "effect"), named(drawn, "control")
    np.testing.assert_allclose(bar.x, mean[at], rtol=1e-5)
    np.testing.assert_allclose(
        bar.x + bar.error_x.array, data["effect_high"].values[at], rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        bar.x - bar.error_x.arrayminus, data["effect_low"].values[at], rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(marks.x, control[at], rtol=1e-4, atol=1e-6)
    most = np.nanmax(np.abs(control))
    assert [shape.x0 for shape in drawn.layout.shapes] == pytest.approx([-most, most])
    assert f"strongest 20 of {np.isfinite(mean).sum():,}" in under(drawn)


def test_all_sets_of_senders_are_bars_and_nothing_is_said_of_a_choice():
    drawn = main("paths, sets")
    bar = named(drawn, "effect")
    assert list(bar.y) == ["3.mlp+4.mlp", "10.1", "9.6+9.7"]  # the first is drawn at the bottom
    assert "All 3 sets of senders" in under(drawn) and "chosen" not in under(drawn)
    assert "into logits" in drawn.layout.title.text


def test_cells_of_no_effect_have_no_bar():
    result = path_sets()
    result.data["mean_effect"][1] = 0
    assert list(named(figure(result), "effect").y) == ["3.mlp+4.mlp", "9.6+9.7"]
    result.data["mean_effect"][:] = 0
    assert len(named(figure(result), "effect").y) == 0 and "None differs from 0" in describe(result)["top"]


# --- attribution, edges, paths --------------------------------------------------------------------------


def test_recheck_draws_the_cells_that_were_patched_and_says_how_well_they_agree():
    result = made("attribution")
    drawn = figures(result)["recheck"]
    (points,) = drawn.data
    data = result.data
    exact = data["exact_effect"].mean("pair").values
    at = np.nonzero(np.isfinite(exact))
    assert len(points.x) == 40
    np.testing.assert_allclose(points.x, data["mean_effect"].values[at], rtol=1e-5)
    np.testing.assert_allclose(points.y, exact[at], rtol=1e-5)
    assert points.text[list(zip(*at, strict=True)).index((9, 6))] == "layer 9, head 6"
    assert "rank correlation 0.97 [0.9, 0.99] (p 0.001)" in under(drawn) and "40 of 270 cells" in under(drawn)
    assert drawn.layout.xaxis.range == drawn.layout.yaxis.range
    ((row, x, y), *_) = tables(drawn)[0].rows
    assert row == points.text[0] and (
        float(x.replace("−", "-")),
        float(y.replace("−", "-")),
    ) == pytest.approx((points.x[0], points.y[0]), rel=1e-2)


def test_correlations_that_do_not_exist_are_said_not_to():
    result = attribution()
    result.summary["recheck"] |= {"spearman": None, "spearman_p": None, "spearman_interval": None}
    assert "rank correlation not defined," in under(figures(result)["recheck"])


def test_each_of_several_kinds_has_its_own_figures_with_the_heads_it_has():
    result = made("attribution, two kinds")
    drawn = figures(result)
    assert list(drawn) == ["effect_q", "control_q", "top_q", "effect_k", "control_k", "top_k", "recheck"]
    (q,), (k,) = grids(drawn["effect_q"]), grids(drawn["effect_k"])
    np.testing.assert_allclose(q.z, result.data["mean_effect_q"], rtol=1e-5)
    np.testing.assert_allclose(k.z, result.data["mean_effect_k"], rtol=1e-5)
    assert len(k.x) == 3 and "key-value head 1" in under(drawn["effect_k"])
    assert [trace.name for trace in drawn["recheck"].data] == ["q"]


def test_estimates_say_that_they_are_and_how_they_were_made():
    drawn = main("attribution")
    assert "estimated effect" in drawn.layout.title.text
    assert "First-order estimate of denoising patches: mean gradient over 5 inputs" in under(drawn)


def test_edges_are_those_of_the_strongest_senders_and_receivers_in_the_order_of_the_pass():
    result = made("edges")
    drawn = figure(result)
    (cells,) = grids(drawn)
    expected = result.data["mean_effect"].sel(sender=list(cells.y), receiver=list(cells.x))
    np.testing.assert_allclose(cells.z, expected, rtol=1e-5)
    order = [list(result.data["sender"].values).index(name) for name in cells.y]
    assert order == sorted(order) and {"a9.h6", "a5.h2", "m3"} <= set(cells.y)
    assert "40 of 301 senders and 40 of 61 receivers" in under(drawn)
    assert "a9.h6 → logits: 0.3" in under(drawn)
    assert "change of the metric %{customdata[1]" in cells.hovertemplate


def test_a_small_graph_is_drawn_whole():
    data = edges().data.isel(sender=slice(0, 12), receiver=slice(0, 5))
    drawn = figure(Result("edge_attribution", data, where_from()))
    assert "All 12 senders and 5 receivers" in under(drawn)


def test_paths_name_senders_and_receivers_in_short():
    drawn = main("paths")
    (cells,) = grids(drawn)
    assert list(cells.x) == [*map(str, range(9)), "mlp"]
    assert unescape(drawn.layout.title.text).startswith("Path patching into 20.6 q, 21.1 q: effect on")
    assert "sender 9.6: 0.6" in under(drawn) and "other heads held, MLPs recomputed" in under(drawn)
    for given, short in (
        ("logits", "logits"), ("blocks.7.hook_mlp_out", "7 mlp_out"), ("blocks.*.attn.hook_v", "* v"),
        ("['blocks.1.attn.hook_q', ('blocks.2.attn.hook_k', 0)]", "1 q, 2.0 k"),
        (str([("blocks.1.attn.hook_q", h) for h in range(4)]), "4 receivers"),
    ):  # fmt: skip
        result = paths()
        result.data.attrs["receivers"] = given
        assert unescape(figure(result).layout.title.text).startswith(f"Path patching into {short}: "), given


# --- ablation, knock-out --------------------------------------------------------------------------------


def test_heads_of_each_kind_of_site_are_layer_by_head():
    result = made("ablation, heads of two sites")
    drawn = figures(result)
    for part in ("z", "q"):
        (cells,) = grids(drawn[f"effect_{part}"])
        sites = [f"blocks.{layer}.attn.hook_{part}" for layer in range(LAYERS)]
        np.testing.assert_allclose(cells.z, result.data["mean_effect"].sel(site=sites), rtol=1e-5)
    assert drawn["effect_z"].layout.coloraxis.colorbar.title.text == "change of the metric"
    assert "layer 9, head 6: −2" in under(drawn["effect_z"]) and "mean metric of the base run 3.5" in under(
        drawn["effect_q"]
    )


def test_rows_are_layers_whatever_the_order_of_the_sites():
    result = made("ablation, heads")
    turned = Result(
        result.kind, result.data.isel(site=slice(None, None, -1)), result.provenance, result.summary
    )
    (one,), (other,) = grids(figure(result)), grids(figure(turned))
    np.testing.assert_array_equal(one.z, other.z)
    np.testing.assert_array_equal(one.y, other.y)


def test_few_kinds_of_site_are_lines_with_interval_and_control():
    result = made("ablation, sites")
    drawn = figure(result)
    for part in ("attn_out", "mlp_out"):
        at = result.data.sel(site=[f"blocks.{layer}.hook_{part}" for layer in range(LAYERS)])
        for end, variable in (
            ("", "mean_effect"), (", low", "effect_low"), (", high", "effect_high"),
            (", control", "mean_control_effect"), (", control, low", "control_effect_low"),
        ):  # fmt: skip
            np.testing.assert_allclose(named(drawn, part + end).y, at[variable], rtol=1e-5)
        assert named(drawn, f"{part}, control").line.dash == "dash"


def test_many_kinds_of_site_are_a_grid():
    result = made("ablation, many sites")
    (cells,) = grids(figure(result))
    assert list(cells.x) == ["attn_out", "mlp_out", "resid_pre", "resid_post"]
    wanted = result.data["mean_effect"].sel(site="blocks.7.hook_resid_pre")
    assert cells.z[7, 2] == pytest.approx(float(wanted), rel=1e-5)


def test_windows_are_a_line_over_their_first_layers():
    result = made("knockout")
    drawn = figure(result)
    line = named(drawn, "knock-out")
    np.testing.assert_array_equal(line.x, np.arange(26))
    np.testing.assert_allclose(line.y, result.data["mean_effect"], rtol=1e-5)
    assert line.text[12] == "layers 12–16" and "window of 5" in drawn.layout.xaxis.title.text
    assert "queries last to keys [1, 3]" in under(drawn) and "2 edges (2 in the control)" in under(drawn)
    assert "strongest at layers 12, 13, 14, 15, 16" in describe(result)["effect"]


def test_sets_of_layers_are_points_side_by_side():
    drawn = main("knockout, sets")
    assert list(named(drawn, "knock-out").x) == ["1 2 9", "12 13 14", "25"]
    assert drawn.layout.scattermode == "group" and named(drawn, "control").error_y.array is not None
