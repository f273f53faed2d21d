"""Figures of controls, transfer, permutation and text baselines: every number of the result, control and n drawn."""

from __future__ import annotations

import re
from html import unescape

import numpy as np
import pytest
import xarray as xr
from fake_results import where_from
from test_probes import POST, activations, noise, planted
from test_transfer import axis, rows

from dashboards.figures import probe_controls, probe_transfer, theme
from dashboards.figures.tables import tables
from probes.trust import permutation_test, text_only, transfer_matrix, undefined_rows
from probes.trust.report import NAMES as TRUST
from workbench.results import Result, array

NASTY = "<b>plain</b> $x$ %{z}"


def trust(n_layers: int = 30, first: str = "layer") -> Result:
    """A trust report of realistic size, best at three quarters of the depth."""
    rng = np.random.default_rng(0)
    controls = [
        "probe", "shuffled labels", "random token", "untrained model", "untrained, trained embedding", "majority",
        "bag of words", "character n-grams", "length", "token count",
    ]  # fmt: skip
    auc = np.full((n_layers, len(controls)), 0.5) + rng.normal(0, 0.01, size=(n_layers, len(controls)))
    auc[:, 0] += 0.3 * np.sin(np.linspace(0.1, 2.4, n_layers)) ** 2
    auc[:, 2] += 0.08
    auc[:, 5:] = 0.5
    values = {"auc": auc, "accuracy": 0.5 * auc + 0.25, "difference": auc[:, :1] - auc}
    values["selectivity"] = 0.5 * values["difference"]
    dims = (first, "control")
    variables = {
        key: array(dims, values[key.removesuffix("_low").removesuffix("_high")] + 0.03 * (key[-4:] == "high") - 0.03 * (key[-3:] == "low"))
        for key in TRUST
    }  # fmt: skip
    variables["n"] = array(dims, np.full(auc.shape, 628))
    coords = {"control": controls, first: np.arange(n_layers)}
    if first == "site":
        coords[first] = [f"blocks.{i}.hook_{'mlp' if i % 2 else 'attn'}_out" for i in range(n_layers)]
    attrs = {"n": 628, "n_positive": 314, "positive": "true", "negative": "false", "folds": 5, "grouped": True,
             "n_groups": 78, "probe": "mass_mean", "control": "labels permuted over rows within groups"}  # fmt: skip
    at = int(np.argmax(auc[:, 0]))
    where = at if first == "layer" else coords[first][at]
    best = {first: where, "auc": 0.8, "auc_low": 0.77, "auc_high": 0.83, "nested_auc": 0.79, "accuracy": 0.7}
    margins = {name: [0.3, 0.27, 0.33] for name in controls[1:]} | {"random token": [0.2, 0.15, 0.25]}
    summary = {"best": best, "strongest": {"name": "random token", "auc": 0.58}, "margins": margins, "n": 628}
    return Result("probe_trust", xr.Dataset(variables, coords, attrs), where_from(), summary)


def transferred() -> Result:
    sets = {
        "plain": rows(axis(0), n=60, seed=1),
        NASTY: rows(-axis(0), n=40, seed=2),
        "other": rows(axis(1), n=40, seed=3),
    }
    return transfer_matrix(sets, kinds=["mass_mean", "logistic"], n_bootstrap=30, n_control=2)


def permuted(positions: int = 1) -> Result:
    x, y = planted(40 * positions, size=3.0)
    layers = {POST.format(0): noise(40 * positions), POST.format(1): x}
    labels = y if positions == 1 else np.arange(40) % 2
    return permutation_test(
        activations(layers, positions=positions), labels, kinds=["mass_mean", "ridge"], n=39
    )


def undefined() -> Result:
    labels = np.repeat(["false", "true", "neither"], 20)
    acts = activations({POST.format(i): noise(60, seed=i) for i in range(3)})
    return undefined_rows(acts, labels, n_bootstrap=20, folds=3)


MADE = {
    "trust": (probe_controls, trust),
    "trust by site": (probe_controls, lambda: trust(6, "site")),
    "transfer": (probe_transfer, transferred),
    "permutation": (probe_controls, permuted),
    "permutation at positions": (probe_controls, lambda: permuted(2)),
    "undefined": (probe_transfer, undefined),
    "baselines": (probe_controls, lambda: text_only(["a b", "c d"] * 10, [0, 1] * 10, n_bootstrap=20)),
}


@pytest.fixture(scope="module", params=list(MADE))
def made(request):
    module, make = MADE[request.param]
    return module, make()


def under(figure) -> str:
    return re.sub(r"\s+", " ", unescape(figure.layout.title.subtitle.text.replace("<br>", " ")))


def test_every_figure_says_n_and_control_and_has_words_and_tables(made):
    module, result = made
    drawn, words = module.figures(result), module.describe(result)
    assert list(drawn) == list(words)
    for name, figure in drawn.items():
        said = under(figure)
        assert "n = " in said and "control: " in said, name
        assert figure.layout.template.layout.paper_bgcolor == theme.TOKENS["light"].background
        assert len(words[name]) > 80 and "nan" not in words[name].lower()
        assert all(len(table.rows) for table in tables(figure))
        assert "<b>plain" not in figure.to_json().replace("\\u003c", "<").replace("\\u003e", ">")
        assert figure.layout.margin.t >= 46 and theme.use_scheme(figure, "dark")
    assert result.data.attrs["control"].split(",")[0] in module.control_statement(
        result
    ) or "controls" in module.control_statement(result)


def test_the_probe_stands_beside_every_control_with_its_own_numbers():
    result = trust()
    figure = probe_controls.figures(result)["auc"]
    traces = {trace.name: trace for trace in figure.data}
    for name in result.data["control"].values.tolist():
        trace = traces["mass mean probe" if name == "probe" else name]
        np.testing.assert_allclose(trace.y, result.data["auc"].sel(control=name), rtol=1e-6)
    assert traces["mass mean probe"].line.dash == "solid" and traces["random token"].line.dash == "dash"
    assert traces["majority"].line.dash == "dot"
    assert [s.y0 for s in figure.layout.shapes] == [0.5] and figure.layout.annotations[0].text == "chance"
    low, high = traces["mass mean probe, low"], traces["mass mean probe, high"]
    np.testing.assert_allclose(low.y, result.data["auc_low"].sel(control="probe"), rtol=1e-6)
    np.testing.assert_allclose(high.y, result.data["auc_high"].sel(control="probe"), rtol=1e-6)
    assert [trace.name for trace in figure.data if trace.fill] == [
        "mass mean probe, high"
    ]  # areas hide each other
    ends = traces["random token"].customdata[:, 0]
    np.testing.assert_allclose(ends, result.data["auc_low"].sel(control="random token"), rtol=1e-6)


def test_differences_are_those_of_the_best_layer_and_the_least_is_named():
    result = trust()
    bar = probe_controls.figures(result)["difference"].data[0]
    at = result.data.sel(layer=result.summary["best"]["layer"])
    for name, value, up in zip(bar.y, bar.x, bar.error_x.array, strict=True):
        assert np.isclose(value, float(at["difference"].sel(control=name)), atol=1e-6) and np.isclose(
            up, 0.03, atol=1e-6
        )
    assert "random token" in probe_controls.describe(result)["difference"]
    assert "random token 0.2 [0.15, 0.25]" in probe_controls.control_statement(result)


def test_a_transfer_matrix_diverges_around_one_half_and_carries_auc_and_n_in_its_cells():
    result = transferred()
    drawn = probe_transfer.figures(result)
    figure = drawn["auc"]
    axis_of = figure.layout.coloraxis
    assert (axis_of.cmin, axis_of.cmid, axis_of.cmax) == (0, 0.5, 1)
    panel = figure.data[0]
    np.testing.assert_allclose(panel.z, result.data["auc"].values[::-1, :, 0], rtol=1e-6)
    assert panel.y[-1] == "plain" and panel.x[0] == "plain" and len(figure.data) == 2
    worst = result.data["auc"].sel(train="plain", test=NASTY, probe="mass_mean").item()
    assert panel.text[2][1] == f"{worst:.2f}<br>n 40" and worst < 0.3
    boxes = {(s.x0, s.y0) for s in figure.layout.shapes if s.xref in (None, "x")}
    assert boxes == {(-0.5, 1.5), (0.5, 0.5), (1.5, -0.5)}  # the diagonal, first set on top
    data = result.data.isel(train=0, test=1, probe=0)
    expected = [float(data[name]) for name in ("auc_low", "auc_high", "accuracy", "control_auc")]
    np.testing.assert_allclose(panel.customdata[2, 1, :4], expected, rtol=1e-5)
    cosine = drawn["directions"]
    assert cosine.layout.coloraxis.cmin == -1 and np.allclose(np.diag(cosine.data[0].z[::-1]), 1)
    assert "tested on" in probe_transfer.describe(result)["auc"]


def test_cells_of_many_sets_are_not_written_but_still_there():
    one = transferred().data
    k = probe_transfer.WRITTEN + 1
    picked = one.isel(train=[0] * k, test=[0] * k).assign_coords(train=np.arange(k), test=np.arange(k))
    figure = probe_transfer.figures(Result("probe_transfer", picked, where_from()))["auc"]
    assert figure.data[0].text is None and figure.data[0].z.shape == (k, k)


def test_only_cells_that_survive_the_correction_are_filled():
    result = permuted()
    figure = probe_controls.figures(result)["p"]
    trace = figure.data[0]
    good = result.data["p_max"].isel(probe=0).values <= 0.05
    assert [not symbol.endswith("-open") for symbol in trace.marker.symbol] == good.tolist() == [False, True]
    np.testing.assert_allclose(trace.customdata[:, 1], result.data["p_max"].isel(probe=0), rtol=1e-6)
    level = figure.layout.shapes[0].y0
    assert np.isclose(level, np.quantile(result.data["null_max"], 0.95))


def test_rows_that_are_neither_have_their_curves_and_controls():
    result = undefined()
    traces = {t.name: t for t in probe_transfer.figures(result)["undefined"].data}
    np.testing.assert_allclose(
        traces["share of neither called true"].y, result.data["share_positive"].isel(probe=0), rtol=1e-6
    )
    control = traces["neither above false, control"]
    np.testing.assert_allclose(control.y, result.data["control_auc_above"].isel(probe=0), rtol=1e-6)
    assert control.line.dash == "dash"
