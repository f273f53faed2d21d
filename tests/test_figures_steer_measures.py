"""Figures of dose–responses and of method comparisons: the numbers of the result, controls, limits, and words."""

from __future__ import annotations

import re
from html import unescape

import numpy as np
import pytest
from conftest import tiny_model
from test_steering_measure_compare import SITES, a_task, towards_one_token
from test_steering_measure_kl import PROMPTS, a_direction

import workbench as wb
from dashboards.figures import steer, steer_methods, steer_words, theme
from dashboards.figures.tables import tables
from workbench.steering.measure import compare_methods
from workbench.steering.measure.methods import mean_difference


@pytest.fixture(scope="module")
def dose():
    model = tiny_model("llama")
    return wb.steering.dose_response(
        model,
        PROMPTS,
        a_direction(model),
        [-30, -5, 5, 30],
        wb.LogitDifference(7, 9),
        n_random=3,
        show_text=6,
    )


@pytest.fixture(scope="module")
def methods():
    model = tiny_model("llama")
    tasks = [
        a_task("<b>one</b>", in_context=lambda p: [50, *p]),
        a_task("two", scorer=lambda t: [len(x) for x in t]),
    ]
    chosen = {"planted": towards_one_token, "mean difference": mean_difference}
    return compare_methods(model, tasks, chosen, sites=SITES[1:], target_kl=0.15, n_random=2)


def under(figure) -> str:
    return re.sub(r"\s+", " ", unescape(figure.layout.title.subtitle.text.replace("<br>", " ")))


def by_name(figure, name):
    return next(t for t in figure.data if t.name == name)


def test_the_random_band_spans_the_random_directions(dose):
    figure = steer.figures(dose)["score"]
    low, high = by_name(figure, "random (control), low"), by_name(figure, "random (control), high")
    np.testing.assert_allclose(low.y, dose.data["random_score"].min("random"), rtol=1e-6)
    np.testing.assert_allclose(high.y, dose.data["random_score"].max("random"), rtol=1e-6)
    steered = by_name(figure, "steered, low")
    np.testing.assert_allclose(steered.y, dose.data["score_low"].sel(direction="steered"), rtol=1e-6)


def test_the_break_is_drawn_where_the_result_has_it(dose):
    drawn = steer.figures(dose)
    at = dose.data.sel(direction="steered")["break_strength"]
    signed = {-float(at.sel(side="negative")), float(at.sel(side="positive"))}
    expected = sorted(x for x in signed if np.isfinite(x))
    assert expected, "this result should break somewhere"
    for name in ("score", "kl", "quality"):
        lines = sorted(s.x0 for s in drawn[name].layout.shapes if s.x0 == s.x1)
        np.testing.assert_allclose(lines, expected)
    assert "Quality breaks at strength" in under(drawn["score"]) and "2 times" in under(drawn["score"])


def test_score_stands_against_kl_along_the_continuation(dose):
    figure = steer.figures(dose)["by_kl"]
    positive = by_name(figure, "steered, positive")
    at = dose.data.sel(direction="steered", strength=[0.0, 5.0, 30.0])
    np.testing.assert_allclose(positive.x, at["kl_along"].mean("prompt"), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(positive.y, at["mean_score"], rtol=1e-5)
    assert positive.customdata.tolist() == [0, 5, 30] and "along" in figure.layout.xaxis.title.text
    assert by_name(figure, "random (control), negative").line.dash == "dash"


def test_quality_shows_perplexity_and_its_limit(dose):
    figure = steer.figures(dose)["quality"]
    line = by_name(figure, "steered")
    entropy = dose.data["mean_value"].sel(measure="cross_entropy", direction="steered")
    np.testing.assert_allclose(line.y, np.exp(entropy), rtol=1e-5)
    limit = next(s for s in figure.layout.shapes if (s.y0 == s.y1 and s.yref == "y domain") or s.yref == "y")
    assert np.isclose(limit.y0, 2 * np.exp(float(entropy.sel(strength=0.0))))
    note = figure.layout.annotations[0]
    assert np.isclose(10**note.y, limit.y0) and figure.layout.yaxis.type == "log"


def test_method_dots_are_those_of_the_table(methods):
    figure = steer_methods.figures(methods)["change"]
    at = methods.data.isel(task=1)
    dots = [t for t in figure.data if t.name == "change, 95 % interval"][1]
    np.testing.assert_allclose(dots.x, at["mean_change"], rtol=1e-5, atol=1e-6)
    up = at["change_high"] - at["mean_change"]
    np.testing.assert_allclose(
        np.nan_to_num(dots.error_x.array), np.nan_to_num(np.clip(up, 0, None)), atol=1e-5
    )
    filled = [not s.endswith("-open") for s in dots.marker.symbol]
    assert filled == at["beats_random"].values.tolist()
    ranges = [t for t in figure.data if t.name == "range of its random directions"][1]
    np.testing.assert_allclose(ranges.customdata[:, 0], at["random_low"], rtol=1e-5, atol=1e-6)
    assert [s.x0 for s in figure.layout.shapes] == [0, 0]


def test_every_figure_says_n_and_control_and_has_words_and_tables(dose, methods):
    words = {**steer_words.describe(dose), **steer_methods.describe(methods)}
    drawn = {**steer.figures(dose), **steer_methods.figures(methods)}
    for name, figure in drawn.items():
        said = under(figure)
        assert "n = " in said and "control: " in said, name
        assert figure.layout.template.layout.paper_bgcolor == theme.TOKENS["light"].background
        assert all(len(table.rows) for table in tables(figure)) and theme.use_scheme(figure, "dark")
        assert "<b>one" not in figure.to_json().replace("\\u003c", "<").replace("\\u003e", ">")
    assert set(words) == {"by_kl", "quality", "change", "cost"}
    assert all(len(text) > 80 and "nan" not in text.lower() for text in words.values())
    assert "of 4 cells" in steer_methods.control_statement(methods)
