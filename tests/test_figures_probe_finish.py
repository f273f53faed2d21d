"""Areas below lines, one layer as readable as many, and no two kinds of probe drawn alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import plotly.graph_objects as go
import pytest
from fake_results import probes as fake_sweep
from plotly.subplots import make_subplots
from test_figures_probe_mil import made_up

from dashboards.figures import probe, probe_mil
from dashboards.figures.lines import Curve, curve
from dashboards.figures.probe_common import style
from dashboards.figures.probe_finish import MOST_AREAS, areas_note, finished


def drawn(n_points: int, n: int = 2) -> go.Figure:
    figure = make_subplots(rows=2, cols=1)
    x = np.arange(5, 5 + n_points)
    for i in range(n):
        y = np.full(n_points, 0.5 + i / 10)
        figure.add_traces(curve(Curve(x, y, f"line {i}", i, y - 0.1, y + 0.1)), rows=1, cols=1)
        figure.add_traces(curve(Curve(x, y - 0.2, f"line {i}, control", i, control=True)), rows=2, cols=1)
    return figure


def names(figure: go.Figure) -> list[str]:
    return [trace.name for trace in figure.data]  # type: ignore[union-attr]


def test_every_area_is_drawn_before_every_line_and_reaches_down_to_what_it_did():
    before, after = drawn(4), finished(drawn(4))
    fills = [i for i, trace in enumerate(after.data) if trace.fill == "tonexty"]
    shown = [i for i, trace in enumerate(after.data) if trace.line.width]
    assert len(fills) == 2 and max(fills) < min(shown)
    for i in fills:
        low, high = after.data[i - 1], after.data[i]
        assert low.name.removesuffix(", low") == high.name.removesuffix(", high")
        np.testing.assert_allclose(high.y - low.y, 0.2, atol=1e-6)
    assert sorted(names(after)) == sorted(names(before))
    assert [t.yaxis for t in after.data if t.name.endswith("control")] == ["y2", "y2"]
    after.update_yaxes(title="below", row=2, col=1)  # rows and columns are still known
    assert after.layout["yaxis2"].title.text == "below" and after.layout["yaxis"].title.text is None


def test_an_area_that_hangs_on_a_line_keeps_its_edge_and_the_line_stays():
    result = fake_sweep()
    after = probe.auc_figure(result)
    name = "logistic, control"
    place = names(after).index(f"{name}, highest")
    edge, line = after.data[place - 1], after.data[names(after).index(name)]
    np.testing.assert_allclose(edge.y, line.y)
    assert edge.line.width == 0 and line.line.dash == "dash" and edge.showlegend is False
    assert names(after).index(name) > place


def test_at_one_layer_interval_and_control_are_seen_and_the_axis_names_that_layer():
    after = finished(drawn(1))
    bars = [trace for trace in after.data if trace.name.endswith("bar")]
    assert len(bars) == 2 and all(trace.fill is None and trace.line.width > 1 for trace in bars)
    np.testing.assert_allclose([b.y for b in bars], [[0.4, 0.6], [0.5, 0.7]], atol=1e-6)
    control = next(trace for trace in after.data if trace.name == "line 0, control")
    assert control.mode == "markers" and control.marker.symbol == "line-ew-open"
    places = [trace.x[0] for trace in after.data if trace.showlegend is not False]
    assert len(set(places)) == 4 and max(abs(p - 5) for p in places) < 0.5  # side by side
    assert after.layout["xaxis"].tickvals == (5.0,) and after.layout["xaxis"].range == (4.0, 6.0)
    many = made_up()
    one = replace(many, data=many.data.isel(layer=[0]))
    figure = probe_mil.mcc_figure(one)
    bar = next(trace for trace in figure.data if trace.name.endswith("bar"))
    low, high = (float(one.data[f"mcc_{end}"].values[0]) for end in ("low", "high"))
    np.testing.assert_allclose(bar.y, [low, high], rtol=1e-6)


def test_sites_with_names_stay_where_they_are():
    x = np.array(["blocks.3.attn.hook_z"], dtype=object)
    figure = go.Figure(go.Scatter(x=x, y=[0.6], name="a", mode="lines", line={"color": "red"}))
    assert finished(figure).data[0].x[0] == x[0]


@pytest.mark.parametrize(("n", "hidden"), [(MOST_AREAS, False), (MOST_AREAS + 1, True)])
def test_areas_that_would_hide_each_other_are_left_out_and_that_is_said(n, hidden):
    assert bool(areas_note(n)) is hidden
    after = finished(drawn(3, n), areas=not areas_note(n))
    assert any(trace.fill for trace in after.data) is not hidden
    kept = [trace for trace in after.data if trace.line.width]
    assert len(kept) == 2 * n


def test_no_two_kinds_of_probe_have_one_colour_and_symbol():
    assert len({style(i) for i in range(36)}) == 36
