"""Figures and their tables: faults that reviews found, each with what a reader saw."""

from __future__ import annotations

from html import unescape
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr
from fake_results import TOKENS, patching, where_from
from test_figures_tokens import attributed

from dashboards.figures import figures, grid
from dashboards.figures.tables import tables
from dashboards.figures.theme import number
from workbench.results import Result, array


def under(drawn: go.Figure) -> str:
    """The subtitle as a reader sees it."""
    return unescape(drawn.layout.title.subtitle.text).replace("<br>", " ")


def written(n_sentences: int = 3, n_steps: int = 4) -> Result:
    """A search for vectors that write sentences: sentence i has the log-likelihood -(i + 1) · (steps left)."""
    left = np.arange(n_steps, 0, -1.0)
    curves = -left * np.arange(1, n_sentences + 1)[:, None]
    dims = ("sentence", "restart")
    data = xr.Dataset(
        {
            "log_likelihood": array((*dims, "step"), curves[:, None]),
            "best": array(("sentence",), np.zeros(n_sentences, int)),
            "exact": array(dims, np.ones((n_sentences, 1), bool)),
            "steps": array(dims, np.full((n_sentences, 1), n_steps)),
            "bleu": array(dims, np.linspace(100, 20, n_sentences)[:, None]),
            "bleu_no_z": array(dims, np.linspace(1, 5, n_sentences)[:, None]),
        },
        coords={"text": ("sentence", np.array([f"sentence {i}" for i in range(n_sentences)]))},
        attrs={"layer": 3},
    )
    return Result("z_steer", data, where_from())


def test_the_table_of_a_search_has_the_curve_of_every_sentence():
    """It had the last sentence's values under "each sentence", and a row "nan" for each gap between them."""
    result = written()
    (table,) = tables(figures(result)["likelihood"])
    assert table.columns == ("step", *(f"each sentence ({i})" for i in (1, 2, 3)), "median")
    assert [row[0] for row in table.rows] == ["0", "1", "2", "3"]
    for i in range(3):
        expected = result.data["log_likelihood"].values[i, 0]
        assert [row[1 + i] for row in table.rows] == [number(v) for v in expected]
    (alone,) = tables(figures(written(1))["likelihood"])
    assert alone.columns == ("step", "each sentence")


def test_the_tables_of_bleu_name_the_sentences_and_what_was_added():
    """All columns were called "" and the rows by where a point was put aside, such as -0.137708."""
    result = written()
    own, none, means = tables(figures(result)["bleu"])
    assert (own.caption, none.caption) == ("its own vector", "no vector")
    assert [(row[0], row[2]) for row in own.rows] == [
        ("sentence 0", "100"), ("sentence 1", "60"), ("sentence 2", "20"),
    ]  # fmt: skip
    assert means.columns[1:] == ("its own vector, mean", "no vector, mean")


@pytest.mark.parametrize("at", [[0.0, 1.0, 2.0], np.array([0, 0.1, 2], dtype=np.float32)], ids=["list", "f4"])
def test_tables_call_places_as_the_axis_does(at):
    """Sites, which stand at 0, 1, 2, were rows "0", "1", "2" of the table."""
    sites = ["blocks.0.hook_mlp_out", "a &lt;b&gt;", "ln_final.hook_out"]
    figure = go.Figure(go.Scatter(x=np.asarray(at, dtype=np.float32), y=[0.5, 0.75, 1.0], name="MCC"))
    figure.update_xaxes(title={"text": "site"}, tickmode="array", tickvals=at, ticktext=sites)
    (table,) = tables(figure)
    assert [row[0] for row in table.rows] == ["blocks.0.hook_mlp_out", "a <b>", "ln_final.hook_out"]
    assert [row[1] for row in table.rows] == ["0.5", "0.75", "1"]


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (150.5, 2, "150"), (-150.5, 2, "−150"), (99.96, 2, "100"), (999.7, 3, "1,000"), (234.4, 3, "234"),
        (0.000012345, 3, "1.23e−05"), (12.34, 2, "12"), (1e6, 3, "1,000,000"),
    ],
)  # fmt: skip
def test_numbers_above_a_hundred_are_not_powers_of_ten(value, digits, text):
    """A cell of 150.5 said 1.5e+02, and a mean of 999.7 said 1e+03."""
    assert number(value, digits) == text


def test_of_many_prompts_only_those_that_are_drawn_are_spelt_out(monkeypatch):
    """A thousand prompts of five hundred tokens took half a minute, twice a run."""
    seen, plain = [], grid.visible
    monkeypatch.setattr(grid, "visible", lambda token: seen.append(token) or plain(token))
    prompts: list[Any] = [TOKENS] * 300
    drawn = figures(attributed(prompts))["tokens"]
    cells: Any = drawn.data[0]
    n = int(np.isfinite(cells.z).sum())
    assert len(seen) == n == 8 * len(TOKENS)
    assert "The first 8 of 300 prompts are drawn" in under(drawn)
    said = [unescape(text) for text in cells.hovertext.ravel() if text]
    assert len(said) == n
    assert "prompt 7, position 1: ' Mary'" in said


def test_a_strongest_cell_that_is_not_drawn_is_named_all_the_same():
    """Of more positions than can be drawn the strongest *drawn* cell was called the strongest."""
    result = patching(n_columns=1_000)  # of which the last 833 are drawn; the strongest is at position 9
    drawn = figures(result)["effect"]
    assert "The last 833 of 1000 positions are drawn" in under(drawn)
    assert "Stronger, but not among them: layer 8, position 9 ' John'→' Mary': −1.25" in under(drawn)
    result.data["mean_effect"][4, 990] = 2.0
    assert "Stronger" not in under(figures(result)["effect"])
    assert "Stronger" not in under(figures(patching())["effect"])
