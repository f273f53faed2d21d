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


def tables(figure: go.Figure) -> list[Table]:
    """One table per heatmap, and one per group of lines over the same x.

    Traces of other types are left out, and a table without rows says so in its caption.
    """
    found: list[Table] = []
    lines: list[Any] = []
    traces: tuple[Any, ...] = figure.data  # type: ignore[assignment]
    for trace in traces:
        if isinstance(trace, go.Heatmap):
            found.append(_heatmap(trace))
        elif isinstance(trace, go.Scatter) and trace.mode == "text":
            continue  # labels of the cells of a heatmap, which are in its table
        elif isinstance(trace, go.Scatter):
            lines.append(trace)
        else:
            found.append(Table(f"{trace.name or trace.type}: no table for this type of plot", (), ()))
    if lines:
        found.append(_lines(lines, _x_title(figure)))
    return found


def _heatmap(trace: Any) -> Table:
    values = np.asarray(trace.z)
    # Numbers written into cells (by a `texttemplate`) repeat the value; texts such as tokens add to it.
    text = np.asarray(trace.text) if trace.text is not None and trace.texttemplate is None else None
    rows = []
    for i in reversed(range(values.shape[0])):
        cells = [number(float(v)) for v in values[i]]
        if text is not None:
            cells = [f"{unescape(str(t))} {c}" for t, c in zip(text[i], cells, strict=True)]
        rows.append((_plain(trace.y[i]), *cells))
    return Table(_plain(trace.name or ""), ("layer", *(_plain(x) for x in trace.x)), tuple(rows))


def _lines(traces: list[Any], x_title: str) -> Table:
    coordinates: list[Any] = list(dict.fromkeys(x for trace in traces for x in _list(trace.x)))
    if not any(isinstance(x, str) for x in coordinates):
        coordinates.sort()
    columns = []
    for trace in traces:
        at = dict(zip(_list(trace.x), _list(trace.y), strict=True))
        columns.append([number(float(at[x])) if x in at else "–" for x in coordinates])
    names = tuple(_plain(trace.name or "") for trace in traces)
    rows = tuple(
        (x if isinstance(x, str) else f"{x:g}", *(column[i] for column in columns))
        for i, x in enumerate(coordinates)
    )
    return Table(f"{', '.join(names)} by {x_title}", (x_title, *names), rows)


def _list(values: Any) -> list[Any]:
    return np.asarray(values).tolist()


def _x_title(figure: go.Figure) -> str:
    axes: Any = figure.select_xaxes()
    titles = (axis.title.text for axis in axes)
    return next((_plain(title) for title in titles if title), "x")


def _plain(text: object) -> str:
    return unescape(str(text)).replace("<br>", " ")
