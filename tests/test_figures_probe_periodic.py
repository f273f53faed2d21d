"""Figures of structural probes: what is drawn is what the result holds, beside ceiling and null."""

from __future__ import annotations

import json
from html import unescape

import numpy as np
import pytest
import xarray as xr
from fake_results import where_from

from dashboards.figures import probe_periodic, theme
from workbench.results import Result, array

BASES = ("helix", "chosen", "circle", "polynomial", "pca")
SOURCES = ("layer", "helix", "circle", "polynomial", "pca", "permuted", "mean")


def r2_result(low=0.0):
    rng = np.random.default_rng(0)
    values = rng.uniform(0.1, 0.9, size=(4, 5, 3))
    values[2, 1, -1] = 0.95  # the best chosen helix: layer 2
    values[1, 3, -1] += low
    dims = ("layer", "basis", "k")
    variables = {}
    for name, at in (("r2", values), ("null_r2", values - 0.6)):
        for end, shift in (("", 0), ("_low", -0.05), ("_high", 0.04)):
            variables[f"{name}{end}"] = array(dims, at + shift)
    variables["n_columns"] = array(("basis", "k"), np.tile([3, 5, 8], (5, 1)))
    data = xr.Dataset(variables, {"layer": np.arange(4), "basis": list(BASES), "k": [3, 5, 9]})
    data.attrs = {"n": 100, "n_numbers": 100, "n_splits": 20, "held_out": 0.25, "control": "permuted numbers"}
    return Result("probe_periodic", data, where_from())


def patch_result(chosen=True):
    rng = np.random.default_rng(1)
    dims, variables = ("layer", "source"), {}
    for name, scale in (("mean_effect", 30), ("mean_success", 1)):
        values = scale * rng.uniform(0.1, 0.9, size=(3, 7))
        for end, shift in (("", 0), ("_low", -0.05 * scale), ("_high", 0.04 * scale)):
            variables[f"{name}{end}"] = array(dims, values + shift)
    variables["n_columns"] = array(("source",), np.array([-1, 8, 8, 8, 8, 8, 0]))
    variables["period"] = array(("layer", "fold", "rank"), np.tile([2.0, 37.5, np.nan], (3, 4, 1)))
    data = xr.Dataset(variables, {"layer": [0, 1, 2], "source": list(SOURCES)})
    data.attrs = {"n": 180, "n_drawn": 200, "n_numbers": 90, "operand": "b", "control": "5 permutations"}
    data.attrs["chosen_periods"] = chosen
    return Result("probe_periodic_patch", data, where_from())


def under(figure):
    return unescape(figure.layout.title.subtitle.text).replace("<br>", " ")


def test_lines_are_the_largest_size_by_layer_with_bands_and_dashed_nulls():
    result = r2_result()
    figure = probe_periodic.figures(result)["r2"]
    lines = [t for t in figure.data if not t.name.endswith((", low", ", high"))]
    assert len(lines) == 10
    for i, basis in enumerate(BASES):
        solid, dashed = lines[2 * i], lines[2 * i + 1]
        here = result.data.sel(basis=basis, k=9)
        assert np.allclose(solid.y, here["r2"]) and solid.line.dash == "solid"
        assert np.allclose(dashed.y, here["null_r2"]) and dashed.line.dash == "dash"
        assert solid.line.color == dashed.line.color and "8 columns" in solid.name
        assert np.allclose(solid.customdata[:, 0], here["r2_low"])
    assert "100 numbers, 25% of them held out in each of 20 splits" in under(figure)
    assert "control: permuted numbers" in under(figure) and "not drawn" not in under(figure)


def test_sizes_are_those_of_the_layer_of_the_best_chosen_helix():
    result = r2_result()
    figure = probe_periodic.figures(result)["sizes"]
    line = next(t for t in figure.data if t.name == "helix")
    assert "layer 2" in figure.layout.title.text and np.allclose(
        line.y, result.data["r2"].sel(layer=2, basis="helix")
    )
    assert list(line.x) == [3, 5, 9]


def test_a_line_that_leaves_the_figure_is_named_with_its_least_value():
    figure = probe_periodic.figures(r2_result(low=-4.0))["r2"]
    least = theme.number(float(r2_result(low=-4.0).data["r2"].values.min()))
    assert f"not drawn there: polynomial, 8 columns (least {least})" in under(figure)


@pytest.mark.parametrize("name", ["effect", "success"])
def test_bars_have_their_intervals_the_ceiling_is_crossed_and_what_holds_no_number_hatched(name):
    result = patch_result()
    figure = probe_periodic.figures(result)[name]
    assert [bar.type for bar in figure.data] == ["bar"] * 7
    for bar, source in zip(figure.data, SOURCES, strict=True):
        here = result.data.sel(source=source)
        values, low, high = (here[f"mean_{name}{end}"].values for end in ("", "_low", "_high"))
        assert np.allclose(bar.y, values)
        assert np.allclose(bar.error_y.array, high - values, atol=1e-5)
        assert np.allclose(bar.error_y.arrayminus, values - low, atol=1e-5)
    assert [bar.marker.pattern.shape for bar in figure.data] == ["x", "", "", "", "", "/", "/"]
    looks = {(bar.marker.line.color, bar.marker.pattern.shape) for bar in figure.data}
    assert len(looks) == 7
    assert "180 pairs of 200 drawn, 90 new numbers" in under(figure) and "5 permutations" in under(figure)
    assert "first fold and layer: 2, 37.5" in under(figure)
    fixed = probe_periodic.figures(patch_result(chosen=False))[name]
    assert "Periods of the helix: 2, 37.5." in under(fixed)


@pytest.mark.parametrize("result", [r2_result(), patch_result()], ids=["r2", "patch"])
def test_words_colours_and_size(result):
    drawn, words = probe_periodic.figures(result), probe_periodic.describe(result)
    assert list(drawn) == list(words)
    for figure in drawn.values():
        assert theme.has_our_template(figure) and len(figure.to_json()) < 40_000
        json.loads(figure.to_json())
    first = next(iter(words.values()))
    if result.kind == "probe_periodic":
        best = result.data.sel(layer=2, k=9)
        assert f"helix, chosen periods {theme.number(float(best['r2'].sel(basis='chosen')))}" in first
        assert f"null {theme.number(float(best['null_r2'].sel(basis='pca')))}" in first
    else:
        here = result.data.isel(layer=0).sel(source="permuted")
        assert f"(null) {theme.number(float(here['mean_effect']))} (95 % interval" in first
    assert probe_periodic.control_statement(result).startswith("Control: ")
