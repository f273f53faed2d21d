"""The numbers a figure draws, as tables: what a screen reader, a sceptic or a spreadsheet wants.

The tables are read off the figure, so they cannot say anything else than it does.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import unescape
from typing import Any

import numpy as np
import plotly.graph_objects as go

from dashboards.figures.theme import number


@dataclass(frozen=True)
class Table:
    """A table of texts. The first column of each row is the row's heading."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class _Line:
    """A line, or horizontal bars: a number for each coordinate, with an interval where it has one."""

    name: str
    coordinates: list[Any]
    said: list[str]


def tables(figure: go.Figure) -> list[Table]:
    """One table per heatmap, one per cloud of points, and one per group of lines (or horizontal bars) along one
    axis.

    Traces of other types are left out, and a table without rows says so in its caption.
    """
    found: list[Table] = []
    lines: dict[str, list[_Line]] = {}
    traces: tuple[Any, ...] = figure.data  # type: ignore[assignment]
    for trace in traces:
        if trace.meta == "background" or (isinstance(trace, go.Scatter) and trace.mode == "text"):
            continue  # grey cells, and labels of the cells of a heatmap, which are in its table
        if isinstance(trace, go.Heatmap):
            found.append(_heatmap(trace, _title(figure, "y") or "layer"))
        elif isinstance(trace, go.Scatter) and trace.mode == "markers" and trace.text is not None:
            found.append(_points(trace, figure))
        elif isinstance(trace, go.Scatter) or (isinstance(trace, go.Bar) and trace.orientation == "h"):
            across = _is_across(trace)
            lines.setdefault("y" if across else "x", []).extend(_pieces(_line(trace, across)))
        else:
            found.append(Table(f"{trace.name or trace.type}: no table for this type of plot", (), ()))
    for axis, group in lines.items():
        title = _title(figure, axis) or ("cell" if axis == "y" else "x")
        found.append(_lines(group, title, _tick_names(figure, axis)))
    return found


def _heatmap(trace: Any, row_title: str) -> Table:
    values = np.asarray(trace.z)
    # Numbers written into cells (by a `texttemplate`) repeat the value; texts such as tokens add to it.
    text = np.asarray(trace.text) if trace.text is not None and trace.texttemplate is None else None
    rows = []
    for i in reversed(range(values.shape[0])):
        cells = [number(float(v)) for v in values[i]]
        if text is not None:
            cells = [f"{unescape(str(t))} {c}" for t, c in zip(text[i], cells, strict=True)]
        rows.append((_plain(trace.y[i]), *cells))
    return Table(_plain(trace.name or ""), (row_title, *(_plain(x) for x in trace.x)), tuple(rows))


def _points(trace: Any, figure: go.Figure) -> Table:
    """Points of a scatter plot, each called by its text."""
    rows = [
        (_plain(text), number(float(x)), number(float(y)))
        for text, x, y in zip(trace.text, _list(trace.x), _list(trace.y), strict=True)
    ]
    columns = ("point", _title(figure, "x") or "x", _title(figure, "y") or "y")
    return Table(_plain(trace.name or ""), columns, tuple(rows))


def _is_across(trace: Any) -> bool:
    """Whether the numbers are along x, as those of horizontal bars are, and the categories along y."""
    return isinstance(trace, go.Bar) or (len(trace.y) > 0 and isinstance(_list(trace.y)[0], str))


def _line(trace: Any, across: bool) -> _Line:
    at, values = (trace.y, trace.x) if across else (trace.x, trace.y)
    error = trace.error_x if across else trace.error_y
    said = [number(float(v)) for v in _list(values)]
    if error is not None and error.array is not None:
        ends = zip(_list(values), _list(error.arrayminus), _list(error.array), strict=True)
        said = [
            text if np.isnan(down) else f"{text} [{number(v - down)}, {number(v + up)}]"
            for text, (v, down, up) in zip(said, ends, strict=True)
        ]
    return _Line(_plain(trace.name or ""), _list(at), said)


def _pieces(line: _Line) -> list[_Line]:
    """A trace of several lines, with a gap (NaN) after each, as so many lines."""
    gaps = [i for i, x in enumerate(line.coordinates) if isinstance(x, float) and np.isnan(x)]
    if not gaps:
        return [line]
    ends = [*gaps, len(line.coordinates)]
    starts = [0, *(i + 1 for i in gaps)]
    parts = [slice(a, b) for a, b in zip(starts, ends, strict=True) if b > a]
    return [
        _Line(f"{line.name} ({i})" if len(parts) > 1 else line.name, line.coordinates[at], line.said[at])
        for i, at in enumerate(parts, 1)
    ]


def _tick_names(figure: go.Figure, axis: str) -> dict[float, str]:
    """Names that the axes of one direction give to numbers, such as sites to their places."""
    axes: Any = figure.select_xaxes() if axis == "x" else figure.select_yaxes()
    named = [one for one in axes if one.tickvals is not None and one.ticktext is not None]
    return {
        float(np.float32(value)): _plain(text)
        for one in named
        for value, text in zip(one.tickvals, one.ticktext, strict=False)
    }


def _lines(lines: list[_Line], title: str, ticks: dict[float, str]) -> Table:
    coordinates: list[Any] = list(dict.fromkeys(x for line in lines for x in line.coordinates))
    if not any(isinstance(x, str) for x in coordinates):
        coordinates.sort()
    columns = []
    for line in lines:
        at = dict(zip(line.coordinates, line.said, strict=True))
        columns.append([at.get(x, "–") for x in coordinates])
    names = tuple(line.name for line in lines)
    rows = tuple(
        (_plain(x) if isinstance(x, str) else ticks.get(x, f"{x:g}"), *(column[i] for column in columns))
        for i, x in enumerate(coordinates)
    )
    return Table(f"{', '.join(names)} by {title}", (title, *names), rows)


def _list(values: Any) -> list[Any]:
    return np.asarray(values).tolist()


def _title(figure: go.Figure, axis: str) -> str:
    """The first title among the axes of one direction."""
    axes: Any = figure.select_xaxes() if axis == "x" else figure.select_yaxes()
    titles = (one.title.text for one in axes)
    return next((_plain(title) for title in titles if title), "")


def _plain(text: object) -> str:
    return unescape(str(text)).replace("<br>", " ")
