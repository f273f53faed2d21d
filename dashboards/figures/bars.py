"""Bars of the strongest cells of a grid, with their intervals and the control.

What is largest of many is large by chance, too. So dotted lines stand at the largest |control| of *all* cells: the
same maximum over the same number of cells where there is nothing to find.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from dashboards.figures import theme
from dashboards.figures.signed import Grid, Under, fill, found, largest
from dashboards.figures.theme import f32, number

BARS = 20
"""So many bars are drawn at most."""


def strongest_cells(grid: Grid, n: int = BARS, *, signed: bool = False) -> list[tuple[int, int]]:
    """Cells of largest |value| (`signed`: of largest value), the largest first; those of value 0 are left out."""
    values = np.nan_to_num(grid.values)
    order = np.argsort(-(values if signed else np.abs(values)), axis=None, kind="stable")[:n]
    rows, columns = np.unravel_index(order, values.shape)
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if values[i, j] != 0]


def n_of(grid: Grid, n_drawn: int, what: str, *, signed: bool = False) -> str:
    """`The strongest 20 of 300 heads` or `All 9 heads`."""
    n = int(np.isfinite(grid.values).sum())
    if n_drawn == n:
        return f"All {n} {what}"
    return (
        f"The {n_drawn} of largest value of {n:,} {what}"
        if signed
        else f"The strongest {n_drawn} of {n:,} {what}"
    )


def top_figure(
    grid: Grid, title: str, under: Under, *, what: str = "cells", n: int = BARS, signed: bool = False
) -> go.Figure:
    """The strongest cells, the strongest at the top.

    Args:
        grid: its `numbers` may have `low`, `high`, and `control` of each cell.
        title, under: as in `signed`.
        what: what cells are called, in the plural.
        n: how many.
        signed: those of largest value instead of largest |value|.
    """
    cells = strongest_cells(grid, n, signed=signed)
    labels = [grid.label(*cell) for cell in reversed(cells)]
    pick = lambda values: f32([values[cell] for cell in reversed(cells)])  # noqa: E731
    values, names = pick(grid.values), list(grid.numbers)
    data = f32(np.stack([pick(v) for v in grid.numbers.values()], axis=-1)) if names and cells else None
    said = None if grid.said is None else [grid.said[cell] for cell in reversed(cells)]
    hover = "<br>".join(fill(grid.lines, names, grid.form)) if names else f"%{{x:{grid.form}}}"
    bar = go.Bar(
        x=values,
        y=labels,
        orientation="h",
        name="effect",
        marker={"color": theme.rgba(theme.SERIES[0], 0.35), "line": {"color": theme.SERIES[0], "width": 1}},
        customdata=data,
        hovertext=said,
        hovertemplate=f"<b>%{{y}}</b>{'<br>%{hovertext}' if said else ''}<br>{hover}<extra></extra>",
    )
    notes = [f"{n_of(grid, len(cells), what, signed=signed)}."]
    low, high = (pick(grid.numbers[name]) if name in grid.numbers else None for name in ("low", "high"))
    if low is not None and high is not None and np.isfinite(low).any():
        bar.update(error_x={**error_bars(values, low, high), "color": theme.SERIES[0]})
        all_of_them = len(cells) == np.isfinite(grid.values).sum()
        alone = "" if all_of_them else " of each alone, which do not know that it was chosen"
        notes.append(f"Lines: 95 % intervals{alone}.")
    figure = go.Figure(bar)
    control = grid.numbers.get("control", grid.control)
    if control is not None:
        figure.add_trace(control_marks(pick(control), labels, grid.form))
    if grid.control is not None:
        limit = largest(grid.control)
        notes.append(f"Dotted: the largest |control| of all of them, ±{number(limit)}.")
        for x in (-limit, limit):
            figure.add_shape(**vertical(x))
    made = theme.layout(title, under([" ".join(notes)]), plot_height=max(120, 22 * len(cells)), legend_rows=1)
    figure.update_layout(made, bargap=0.35)
    figure.update_xaxes(title={"text": grid.unit}, zeroline=True, zerolinewidth=1)
    return figure.update_yaxes(type="category", ticks="", showgrid=False, range=[-0.6, len(cells) - 0.4])


def error_bars(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> dict[str, Any]:
    """From the ends of intervals to Plotly's lengths. (Neither end may lie inside: a mean may leave its interval.)"""
    up, down = (f32(np.clip(length, 0, None)) for length in (high - values, values - low))
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1.2, "width": 3}


def control_marks(values: np.ndarray, labels: list[str], form: str, name: str = "control") -> go.Scatter:
    """The control of each bar, as a mark that can be told from the bar without colour."""
    return go.Scatter(
        x=values,
        y=labels,
        name=name,
        mode="markers",
        marker={
            "color": theme.SERIES[1],
            "symbol": "diamond",
            "size": 8,
            "line": {"color": "#fff", "width": 1},
        },
        hovertemplate=f"<b>%{{y}}</b><br>{name} %{{x:{form}}}<extra></extra>",
    )


def vertical(x: float) -> dict[str, Any]:
    """A dotted line over the whole height."""
    across = {"xref": "x", "yref": "y domain", "y0": 0, "y1": 1}
    return {"type": "line", "x0": x, "x1": x, **across, "line": {"dash": "dot", "width": 1.5}}


def top_words(grid: Grid, what: str = "cells", n: int = BARS, *, signed: bool = False) -> str:
    """The bars in words."""
    cells = strongest_cells(grid, n, signed=signed)
    first = "; ".join(found(grid, cell, interval=True) for cell in cells[:3]) or "None differs from 0"
    text = f"Bars: {n_of(grid, len(cells), what, signed=signed).lower()}. {first}."
    if grid.control is not None:
        text += f" Largest |control effect| of all: {number(largest(grid.control))}."
    return text
