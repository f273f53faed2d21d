"""Figures of the multiple-instance probes, on made-up results of realistic size."""

from __future__ import annotations

import re

import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr
from fake_results import where_from

from dashboards.figures import probe_mil, theme
from dashboards.figures.tables import tables
from workbench.results import Result, array

LAYERS = 30


def made_up(sites="layer", control=True, names=("true", "false", "neither")) -> Result:
    """MCC rises to 0.62 at layer 20; there 12 of 40 true prompts get no answer."""
    rng = np.random.default_rng(0)
    mcc = 0.62 - 0.002 * (np.arange(LAYERS) - 20) ** 2
    answers = np.tile([[24, 4, 0, 12], [6, 20, 0, 14], [0, 0, 39, 1]], (LAYERS, 1, 1))
    one = (sites,)
    found = {"mcc": array(one, mcc), "mcc_low": array(one, mcc - 0.07), "mcc_high": array(one, mcc + 0.08)}
    found["answers"] = array((*one, "class", "answer"), answers)
    for name, value in (("coverage", 0.91), ("abstention", 0.3), ("accuracy_answered", 0.86)):
        values = value + rng.normal(0, 0.01, size=(LAYERS, 4))
        for end, shift in (("", 0), ("_low", -0.04), ("_high", 0.05)):
            found[name + end] = array((*one, "of"), values + shift)
    if control:
        for name, value in (("mcc", 0.0), ("mcc_high", 0.04), ("coverage", 0.92), ("abstention", 0.97)):
            found[f"control_{name}"] = array(one, value + rng.normal(0, 0.005, LAYERS))
    coords = {"class": list(names), "answer": [*names, "abstained"], "of": ["all", *names]}
    coords["site"] = (sites, np.array([f"blocks.{i}.hook_resid_post" for i in range(LAYERS)]))
    if sites == "layer":
        coords["layer"] = np.arange(LAYERS)
    attrs = {"n": 120, "n_groups": 60, "n_class": [40, 40, 40], "grouped": True, "alpha": 0.1, "folds": 5}
    attrs |= {"calibration": "one fold of 5, 24 bags or more", "tokens_per_bag": 7.4, "known_positive": 2}
    attrs["control"] = "labels shuffled over rows within folds, 2 times" if control else "none"
    return Result("probe_mil", xr.Dataset(found, coords, attrs), where_from())


@pytest.mark.parametrize("sites", ["layer", "site"])
@pytest.mark.parametrize("control", [True, False])
def test_every_figure_names_n_units_and_control_and_has_words(sites, control):
    result = made_up(sites, control)
    figures, words = probe_mil.figures(result), probe_mil.describe(result)
    assert list(figures) == list(words) == ["mcc", "coverage", "confusion"]
    for name, figure in figures.items():
        assert isinstance(figure, go.Figure) and theme.has_our_template(figure)
        under = figure.layout.title.subtitle.text
        assert "120 prompts (40 true, 40 false, 40 neither)" in under and "smollm2-135m" in under
        assert ("labels shuffled" in under) == control
        assert all(axis.title.text for axis in figure.select_yaxes()) and len(words[name]) > 60
        figure.to_json()
    assert ("No control was run" in probe_mil.control_statement(result)) != control


def test_the_lines_are_the_numbers_of_the_result_with_interval_and_control():
    result = made_up()
    figure = probe_mil.figures(result)["mcc"]
    lines = {trace.name: trace for trace in figure.data}
    assert np.allclose(lines["MCC"].y, result.data["mcc"], atol=1e-6)
    assert np.allclose(lines["MCC, low"].y, result.data["mcc_low"], atol=1e-6)
    assert lines["MCC, shuffled labels"].line.dash == "dash"
    assert "layer 20, 0.62 (95 % interval 0.55 to 0.7)" in re.sub(
        "<br>", " ", figure.layout.title.subtitle.text
    )
    both = {trace.name: trace for trace in probe_mil.figures(result)["coverage"].data}
    for name in ("coverage", "abstention"):
        assert np.allclose(both[name].y, result.data[name].sel(of="all"), atol=1e-6)
        assert np.allclose(both[f"{name}, shuffled labels"].y, result.data[f"control_{name}"], atol=1e-6)
    assert [shape.y0 for shape in probe_mil.figures(result)["coverage"].layout.shapes] == [0.9]


def test_the_confusion_shows_shares_of_the_class_and_their_numbers():
    figure = probe_mil.figures(made_up())["confusion"]
    panel = figure.data[0]
    assert np.allclose(panel.z, [[0.6, 0.1, 0, 0.3], [0.15, 0.5, 0, 0.35], [0, 0, 0.975, 0.025]])
    assert panel.text[0][3] == "0.30<br>12" and list(panel.x)[-1] == "no answer"
    assert "true: 24 true, 4 false, 0 neither, 12 no answer" in probe_mil.describe(made_up())["confusion"]
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, 1)


def test_tables_can_be_read_off_every_figure():
    for figure in probe_mil.figures(made_up()).values():
        for table in tables(figure):
            assert table.rows and "no table" not in table.caption


def test_awkward_class_names_are_shown_as_they_are():
    result = made_up(names=("<b>true</b>", "$x$", "%{z}"))
    for figure in probe_mil.figures(result).values():
        assert "<b>true" not in figure.layout.title.subtitle.text
    panel = probe_mil.figures(result)["confusion"].data[0]
    assert list(panel.y) == [theme.safe(n) for n in ("<b>true</b>", "$x$", "%{z}")]


def test_dark_mode_takes_the_template_and_nothing_else():
    for figure in probe_mil.figures(made_up()).values():
        assert (
            theme.use_scheme(figure, "dark").layout.template.layout.paper_bgcolor
            == theme.TOKENS["dark"].background
        )
