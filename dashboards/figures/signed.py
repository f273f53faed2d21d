"""Signed heat maps: effects around zero, alone or beside their control, with all about a cell in its hover.

    effect_figure(grid, title, under)     the grid, its strongest cell outlined
    control_figure(grid, title, under)    the grid and its control side by side on one colour range
    words(grid, ...)                      the same in a few sentences

Colour is ColorBrewer's PuOr, white at zero, with a symmetric range that effect and control share. Cells that do not
exist (NaN) are grey. `under` makes the subtitle: it takes the sentences that come below the facts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import unescape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboards.figures import theme
from dashboards.figures.grid import at as label_at
from dashboards.figures.grid import axes as grid_axes
from dashboards.figures.grid import bottom, fits, gaps, outline, row_height
from dashboards.figures.theme import f32, number

Under = Callable[[Sequence[str]], str]
"""Sentences -> the whole subtitle, escaped."""
NO_CELL = "rgba(128,128,128,0.28)"
"""Cells that do not exist: grey on both schemes, and no colour of the scale."""
BACKGROUND = "background"
"""`meta` of traces that hold no numbers (see `tables`)."""


@dataclass(frozen=True)
class Grid:
    """Effects of cells, and what is known about each.

    Attributes:
        values: [row, column] what is drawn; NaN where there is no such cell.
        rows, columns: labels, escaped; the first row is drawn at the bottom.
        control: [row, column] the same for the control; None: not run.
        row, column: what a row and a column are called.
        x_title, y_title: of the axes.
        unit: title of the colour bar.
        numbers: name -> [row, column], for the hover; `low`, `high`, `control`, `p` are also drawn by `bars`.
        lines: of the hover, with `{name}` for numbers.
        said: [row, column] a line of text of each cell for the hover, escaped.
        form: d3 format of numbers in the hover.
        written_from: |value| from which on a cell carries its number; None: a tenth of the largest.
        at_least: the colour range is no smaller, where several figures share one.
        missing: what NaN means.
        cell, short: how a cell is called in sentences and as a label; `{x}`, `{y}` are its labels.
    """

    values: np.ndarray
    rows: list[str]
    columns: list[str]
    control: np.ndarray | None = None
    row: str = "layer"
    column: str = "head"
    x_title: str = "head"
    y_title: str = "layer"
    unit: str = "effect"
    numbers: Mapping[str, np.ndarray] = field(default_factory=dict)
    lines: tuple[str, ...] = ()
    said: np.ndarray | None = None
    form: str = ".3f"
    written_from: float | None = None
    at_least: float = 0.0
    missing: str = "no such cell"
    cell: str = ""
    short: str = "{y}.{x}"

    def __post_init__(self) -> None:
        shape = (len(self.rows), len(self.columns))
        others = [*self.numbers.values(), *([] if self.control is None else [self.control])]
        assert self.values.shape == shape and all(other.shape == shape for other in others), shape

    @property
    def limit(self) -> float:
        """Half the symmetric colour range: the largest |value| of effect and control (1 if all are 0)."""
        both = [self.values, *([] if self.control is None else [self.control])]
        return max(self.at_least, *(largest(each) for each in both)) or 1.0

    @property
    def least(self) -> float:
        """The least |value| that is written into its cell."""
        return self.written_from or 0.1 * self.limit

    @property
    def form_of_cell(self) -> str:
        """`layer {y}, head {x}`."""
        return self.cell or f"{self.row} {{y}}, {self.column} {{x}}"

    def strongest(self) -> tuple[int, int] | None:
        """Row and column of the largest |value|; None where there are none."""
        if not np.isfinite(self.values).any():
            return None
        at = np.nanargmax(np.abs(self.values))
        row, column = np.unravel_index(int(at), self.values.shape)
        return int(row), int(column)

    def name(self, row: int, column: int) -> str:
        """A cell for a sentence, as plain text."""
        said = "" if self.said is None else f" {unescape(self.said[row, column])}"
        return self.form_of_cell.format(y=label_at(self.rows, row), x=label_at(self.columns, column)) + said

    def label(self, row: int, column: int) -> str:
        """A cell as a label of an axis, escaped."""
        return self.short.format(y=self.rows[row], x=self.columns[column])


def largest(values: np.ndarray) -> float:
    """The largest |value|, 0 where there is none."""
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))


def colours(limit: float, unit: str) -> dict[str, Any]:
    """A colour axis around zero."""
    bar = {"title": {"text": unit}}
    return {"colorscale": theme.DIVERGING, "cmin": -limit, "cmax": limit, "cmid": 0, "colorbar": bar}


def heatmap(
    grid: Grid, values: np.ndarray, name: str, *, written: bool = False, brief: bool = False
) -> list[go.Heatmap]:
    """One panel: its cells, and where there are cells that do not exist, those in grey.

    Args:
        grid: labels and details.
        values: [row, column] what is drawn of it (its own values, or the control).
        name: of the trace.
        written: numbers in the cells.
        brief: only effect and control in the hover.
    """
    numbers = {"effect": grid.values, **({} if grid.control is None else {"control": grid.control})}
    lines: Sequence[str] = [f"{grid.unit} {{effect}}", *(["control {control}"] * ("control" in numbers))]
    if not brief and grid.lines:
        numbers, lines = dict(grid.numbers), grid.lines
    said = "<br>%{hovertext}" if grid.said is not None else ""
    heading = f"<b>{grid.form_of_cell.format(y='%{y}', x='%{x}')}</b>{said}"
    cells = go.Heatmap(
        name=name,
        x=grid.columns,
        y=grid.rows,
        z=f32(values),
        coloraxis="coloraxis",
        customdata=f32(np.stack(list(numbers.values()), axis=-1)),
        hovertext=grid.said,
        hovertemplate=f"{heading}<br>{'<br>'.join(fill(lines, list(numbers), grid.form))}<extra></extra>",
        hoverongaps=False,
        **gaps(len(grid.columns)),
    )
    if written:
        cells.update(
            text=texts(values, grid.least, two_decimals=grid.form == ".3f"),
            texttemplate="%{text}",
            textfont={"size": theme.SIZE["cell"]},
        )
    missing = ~np.isfinite(values)
    return [blank(missing, grid.columns, grid.rows), cells] if missing.any() else [cells]


def blank(missing: np.ndarray, columns: Sequence[str], rows: Sequence[str]) -> go.Heatmap:
    """Grey in the cells that do not exist."""
    return go.Heatmap(
        x=columns,
        y=rows,
        z=f32(np.where(missing, 0, np.nan)),
        meta=BACKGROUND,
        colorscale=[[0, NO_CELL], [1, NO_CELL]],
        showscale=False,
        hoverinfo="skip",
        **gaps(len(columns)),
    )


def fill(lines: Sequence[str], names: Sequence[str], form: str) -> list[str]:
    """Lines of a hover with `{name}` turned into Plotly's reference to that number (p-values always short)."""
    slots = {
        name: f"%{{customdata[{i}]:{'.3g' if name.startswith('p') else form}}}"
        for i, name in enumerate(names)
    }
    return [line.format(**slots) for line in lines]


def texts(values: np.ndarray, least: float, *, two_decimals: bool) -> np.ndarray:
    """Numbers for cells of |value| >= `least`, nothing for the others."""
    shown = np.abs(np.nan_to_num(values)) >= least
    say = (lambda v: f"{v:.2f}".replace("-", "−")) if two_decimals else (lambda v: number(v, 2))
    found = np.full(values.shape, "", dtype=object)
    for at in zip(*np.nonzero(shown), strict=True):
        found[at] = say(float(values[at]))
    return found


def effect_figure(grid: Grid, title: str, under: Under, *, name: str = "effect") -> go.Figure:
    """The grid, its strongest cell outlined and named beside its control."""
    written = fits(len(grid.columns))
    notes, shapes, at = [], [], grid.strongest()
    if at is not None:
        notes.append(f"Outlined: the strongest cell, {found(grid, at)}.")
        shapes = outline(at[1], at[1], at[0], at[0])
    if written:
        notes.append(f"Numbers stand in cells of |effect| ≥ {number(grid.least, 2)}.")
    if not np.isfinite(grid.values).all():
        notes.append(f"Grey: {grid.missing}.")
    notes = [" ".join(notes)]
    x, y = axes(grid)
    made = theme.layout(
        title,
        under(notes),
        plot_height=height(grid, written),
        bottom=bottom(grid.columns),
    )
    layout = {**made, "xaxis": x, "yaxis": y, "shapes": shapes, "coloraxis": colours(grid.limit, grid.unit)}
    return go.Figure(heatmap(grid, grid.values, name, written=written), layout=layout)


def control_figure(grid: Grid, title: str, under: Under, *, control_name: str = "control") -> go.Figure:
    """Effect and control side by side on one colour range."""
    assert grid.control is not None
    figure = make_subplots(
        rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=["effect", control_name]
    )
    for column, (values, name) in enumerate(((grid.values, "effect"), (grid.control, "control effect")), 1):
        for trace in heatmap(grid, values, name, brief=True):
            figure.add_trace(trace, row=1, col=column)
    note = f"Largest |control effect|: {number(largest(grid.control))}. Both grids have one colour range."
    note += f" Grey: {grid.missing}." if not np.isfinite(grid.values).all() else ""
    made = theme.layout(
        title,
        under([note]),
        plot_height=height(grid, False),
        bottom=bottom(grid.columns),
        legend_rows=1,
    )
    x, y = axes(grid)
    figure.update_layout({**made, "showlegend": False, "coloraxis": colours(grid.limit, grid.unit)})
    figure.update_annotations(font={"size": theme.SIZE["axis"]})
    figure.update_xaxes({**x, "title": {"text": x["title"]["text"].replace(" and token, clean→corrupt", "")}})
    figure.update_yaxes(y)
    figure.update_yaxes(title=None, showticklabels=False, ticks="", col=2)
    if (at := grid.strongest()) is not None:
        for i in ("", "2"):
            for shape in outline(at[1], at[1], at[0], at[0], xref=f"x{i}", yref=f"y{i}"):
                figure.add_shape(shape)
    return figure


def height(grid: Grid, written: bool) -> int:
    """Pixels of the plot area; names of rows need more room than numbers of layers, of which some may be left out."""
    return max(row_height(len(grid.rows), written), 0 if grid.row == "layer" else 15 * len(grid.rows))


def axes(grid: Grid) -> tuple[dict[str, Any], dict[str, Any]]:
    """Axes of a panel."""
    x, y = grid_axes(grid.x_title, grid.columns, grid.rows)
    return x, {**y, "title": {"text": grid.y_title}, **({} if grid.row == "layer" else {"dtick": 1})}


def found(grid: Grid, at: tuple[int, int], *, interval: bool = False) -> str:
    """`layer 8, head 3: −1.25 (control 0.1)`, with the interval if asked for."""
    text = f"{grid.name(*at)}: {number(float(grid.values[at]))}"
    ends = [grid.numbers[name][at] for name in ("low", "high") if name in grid.numbers]
    if interval and len(ends) == 2 and np.isfinite(ends).all():
        text += f", 95 % interval {number(float(ends[0]))} to {number(float(ends[1]))}"
    there = grid.numbers.get("control", grid.control)
    return text if there is None else f"{text} (control {number(float(there[at]), 2)})"


def words(grid: Grid, what: str) -> str:
    """A heat map in words. `what`: what its cells are, as a clause."""
    finite = grid.values[np.isfinite(grid.values)]
    shape = f"Heatmap of {len(grid.rows)} {grid.row}s by {len(grid.columns)} {grid.column}s: {what}."
    at = grid.strongest()
    if at is None:
        return f"{shape} No cell has a value."
    ends = f"{number(float(finite.min()))} to {number(float(finite.max()))}"
    return f"{shape} Largest |effect| at {found(grid, at, interval=True)}. Range {ends}."


def control_words(grid: Grid, control: str) -> str:
    """The grid beside its control in words."""
    assert grid.control is not None
    return (
        f"The effect heatmap beside its control ({control}) on one colour range. Largest |effect| "
        f"{number(largest(grid.values))}, largest |control effect| {number(largest(grid.control))}."
    )


def statement(grid: Grid, control: str) -> str:
    """What the grid was compared with, and what came out."""
    if grid.control is None:
        return "No control was run: the size of these effects cannot be judged."
    return (
        f"Control: {control}. Largest |effect| {number(largest(grid.values))}; largest |control effect| "
        f"{number(largest(grid.control))}."
    )
