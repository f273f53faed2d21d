"""Heat maps of shares from 0 up: rates, faithfulness, probabilities by two numbers (layers, or sizes).

Cividis, as for all probabilities. Cells that do not exist (NaN) are grey.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboards.figures import grid, theme
from dashboards.figures.signed import blank
from dashboards.figures.theme import f32

SIDE = 520
"""Most pixels of the height of a square panel."""
TICKS = 16
"""Most labels along x of each of several panels."""


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        name: what it shows, plain text.
        values: [row, column].
        hover: template of a cell without its end.
        said: [row, column] a text for `%{hovertext}`, escaped.
        numbers: [row, column, number] for `%{customdata[i]}`.
        outlined: row and column of a cell.
    """

    name: str
    values: np.ndarray
    hover: str
    said: np.ndarray | None = None
    numbers: np.ndarray | None = None
    outlined: tuple[int, int] | None = None


def panels_figure(
    panels: Sequence[Panel],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    under: str,
    titles: tuple[str, str],
    unit: str,
    most: float = 1.0,
    cell_texts: np.ndarray | None = None,
) -> go.Figure:
    """Panels side by side on one colour range from 0 to `most`.

    Args:
        panels: one or several.
        rows, columns: labels; the first row is drawn at the bottom.
        title, under: of the figure.
        titles: of the x and the y axis.
        unit: title of the colour bar.
        most: upper end of the colours.
        cell_texts: [row, column] texts of the first panel's cells, if there is only one.
    """
    figure = make_subplots(
        rows=1,
        cols=len(panels),
        shared_yaxes=True,
        horizontal_spacing=0.03,
        subplot_titles=[theme.safe(panel.name) for panel in panels] if len(panels) > 1 else None,
    )
    for i, panel in enumerate(panels, 1):
        for trace in _traces(panel, rows, columns):
            figure.add_trace(trace, row=1, col=i)
    if cell_texts is not None:
        shown = np.nan_to_num(panels[0].values) / (most or 1)
        figure.add_trace(grid.text_trace(columns, rows, cell_texts, shown), row=1, col=1)
    x, y = grid.axes(titles[0], columns, rows)
    height = min(grid.row_height(len(rows), cell_texts is not None), SIDE if len(panels) > 1 else 1800)
    made = theme.layout(
        title,
        under,
        plot_height=max(height, 200),
        bottom=grid.bottom(columns),
        legend_rows=int(len(panels) > 1),
    )
    colours = {"colorscale": theme.SEQUENTIAL, "cmin": 0, "cmax": most, "colorbar": {"title": {"text": unit}}}
    figure.update_layout({**made, "showlegend": False, "coloraxis": colours})
    figure.update_annotations(font={"size": theme.SIZE["axis"]})
    figure.update_xaxes(x, nticks=TICKS if len(panels) > 1 and len(columns) > TICKS else None)
    figure.update_yaxes({**y, "title": None})
    figure.update_yaxes(title={"text": titles[1]}, col=1)
    for i, panel in enumerate(panels, 1):
        if i > 1:
            figure.update_yaxes(showticklabels=False, ticks="", col=i)
        if panel.outlined is not None:
            row, column = panel.outlined
            axis = "" if i == 1 else str(i)
            for shape in grid.outline(column, column, row, row, xref=f"x{axis}", yref=f"y{axis}"):
                figure.add_shape(shape)
    return figure


def _traces(panel: Panel, rows: Sequence[str], columns: Sequence[str]) -> list[go.Heatmap]:
    more: dict[str, Any] = grid.gaps(len(columns))
    cells = go.Heatmap(
        name=theme.safe(panel.name),
        x=list(columns),
        y=list(rows),
        z=f32(panel.values),
        coloraxis="coloraxis",
        hovertext=panel.said,
        customdata=None if panel.numbers is None else f32(panel.numbers),
        hovertemplate=f"{panel.hover}<extra></extra>",
        hoverongaps=False,
        **more,
    )
    missing = ~np.isfinite(panel.values)
    return [blank(missing, columns, rows), cells] if missing.any() else [cells]


def best(values: np.ndarray) -> tuple[int, int] | None:
    """Row and column of the largest value; None where there is none above 0."""
    if not (np.nan_to_num(values) > 0).any():
        return None
    row, column = np.unravel_index(int(np.nanargmax(values)), values.shape)
    return int(row), int(column)
