"""Last touches to figures of lines with shaded intervals: lines above all areas, and one layer as readable as many.

Areas that are drawn after a line dim it, so areas come first. A line of one point shows neither its interval (an area
without width) nor, dashed, itself: there the interval becomes a bar and the control a dash, each colour beside the
others, and the axis names that one layer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from dashboards.figures.theme import f32

MOST_AREAS = 3
"""Areas of more lines than this hide each other: the interval is then in the hover and the table."""
BESIDE = 0.12
"""How far the colours stand apart at the one layer, in layers."""


def areas_note(n: int) -> str:
    """What is said where the intervals of `n` lines are not drawn; empty where they are."""
    return f"Intervals of {n} lines would hide each other: they are in the hover and the table." * (
        n > MOST_AREAS
    )


def finished(figure: go.Figure, *, areas: bool = True) -> go.Figure:
    """The figure with its areas below its lines (or without them), and lines of one point made visible.

    Args:
        figure: of scatter traces; an area (`fill="tonexty"`) follows the trace it reaches down to.
        areas: False leaves the areas out.

    Example:
        >>> finished(figure, areas=not areas_note(len(names)))
    """
    below: list[Any] = []
    lines: list[Any] = []
    before: Any = None
    for trace in _traces(figure):
        if trace.fill == "tonexty" and before is not None:
            if areas:
                below += [_edge(before), trace]
            if before.line.width == 0:  # an edge that is nothing else
                lines.remove(before)
        else:
            lines.append(trace)
        before = trace
    one = {len(trace.x) for trace in lines} == {1}
    if one:
        below = [_bar(low, high) for low, high in zip(below[::2], below[1::2], strict=True)]
        for trace in lines:
            if trace.mode == "lines":
                mark = {"symbol": "line-ew-open", "size": 22, "color": trace.line.color}
                trace.update(mode="markers", marker=mark | {"line": {"width": 2, "color": trace.line.color}})
    made = go.Figure(layout=figure.layout)
    made.add_traces([*below, *lines])
    made._grid_ref = figure._grid_ref  # rows and columns of subplots stay known
    return _apart(made) if one else made


def _traces(figure: go.Figure) -> list[Any]:
    return list(figure.data)


def _edge(trace: Any) -> Any:
    """The lower edge of an area: the trace itself if it is drawn as nothing else, a bare copy of a line."""
    if trace.line.width == 0:
        return trace
    bare = {"line": {"width": 0}, "mode": "lines", "showlegend": False, "hoverinfo": "skip"}
    return go.Scatter(
        x=trace.x, y=trace.y, name=f"{trace.name}, edge", legendgroup=trace.legendgroup, meta=trace.meta,
        xaxis=trace.xaxis, yaxis=trace.yaxis, **bare,
    )  # fmt: skip


def _bar(low: Any, high: Any) -> go.Scatter:
    """An interval at one point as a vertical bar."""
    return go.Scatter(
        x=[low.x[0], high.x[0]], y=f32([low.y[0], high.y[0]]), name=f"{high.name}, bar", mode="lines",
        line={"width": 8, "color": high.fillcolor}, showlegend=False, hoverinfo="skip", meta=high.meta,
        legendgroup=high.legendgroup, xaxis=high.xaxis, yaxis=high.yaxis,
    )  # fmt: skip


def _apart(figure: go.Figure) -> go.Figure:
    """Colours side by side at the one layer, which alone is on the axis; sites have names and stay where they are."""
    traces = _traces(figure)
    x = traces[0].x[0]
    if isinstance(x, str):
        return figure
    groups = [trace.legendgroup or trace.name for trace in traces]
    lines = [g for g, trace in zip(groups, traces, strict=True) if trace.showlegend is not False]
    order = list(dict.fromkeys(lines))
    for group, trace in zip(groups, traces, strict=True):
        shift = (order.index(group) - (len(order) - 1) / 2) * BESIDE if group in order else 0.0
        trace.x = f32(np.asarray(trace.x, dtype=np.float64) + shift)
    reach = max(1.0, len(order) * BESIDE)
    return figure.update_xaxes(tickvals=[float(x)], range=[float(x) - reach, float(x) + reach], dtick=None)
