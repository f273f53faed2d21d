"""Figures of a patching sweep.

`effect`   layer × position (or head): mean effect, PuOr with zero at white and a symmetric range. The cell of
           largest |effect| is outlined.
`control`  the same beside the wrong-source control, on one colour range. Only where the control was run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboards.figures import grid, theme
from dashboards.figures.theme import f32

if TYPE_CHECKING:
    from workbench.results import Result


def figures(result: Result) -> dict[str, go.Figure]:
    """`effect`, and `control` where the sweep has one."""
    made = {"effect": effect_figure(result)}
    if "control_effect" in result.data:
        made["control"] = control_figure(result)
    return made


def column_of(data) -> str:
    """Name of the grid's columns: `position`, `head` or `group` (of neurons)."""
    return next(name for name in ("position", "head", "group") if name in data.dims)


def mean_control(data) -> np.ndarray | None:
    """[layer, column] control effect, mean over pairs; None if it was not run."""
    return data["control_effect"].mean("pair").values if "control_effect" in data else None


def strongest(mean: np.ndarray) -> tuple[int, int]:
    """Row and column of the largest |effect|."""
    row, column = np.unravel_index(int(np.nanargmax(np.abs(mean))), mean.shape)
    return int(row), int(column)


def column_labels(data) -> list[str]:
    """Labels of the columns: numbers, or positions with the clean (and where it differs, the corrupt) token."""
    if (column := column_of(data)) != "position":
        return [str(int(number)) for number in data[column].values]
    tokens = zip(
        data["position"].values, data["clean_token"].values, data["corrupt_token"].values, strict=True
    )
    return [grid.token_label(int(p), str(clean), str(corrupt)) for p, clean, corrupt in tokens]


def colour_range(result: Result) -> float:
    """Half the symmetric range of effect and control: the largest |value| of both (1 if all are 0)."""
    control = mean_control(result.data)
    arrays = [result.data["mean_effect"].values, *([control] if control is not None else [])]
    finite = [np.abs(a[np.isfinite(a)]).max(initial=0.0) for a in arrays]
    return float(max(finite)) or 1.0


def title_of(result: Result) -> str:
    """`Denoising patches of resid_pre: effect on …`."""
    attrs = result.data.attrs
    return f"{str(attrs['direction']).capitalize()} patches of {attrs['kind']}: effect on {attrs['metric']}"


def _subtitle(result: Result, *more: str) -> str:
    data = result.data
    clean, corrupt = (float(data[name].mean()) for name in ("clean_metric", "corrupt_metric"))
    n = int(data.attrs["n_pairs"])
    ends = f"metric: clean {theme.number(clean)}, corrupt {theme.number(corrupt)}"
    return theme.subtitle(
        model=theme.model_name(result),
        n=f"{n} pair{'s' if n > 1 else ''}",
        units=f"mean {ends}" if n > 1 else ends,
        control=str(data.attrs.get("control", "not run")),
        more=[note for note in (*more, _tokens_note(data, n)) if note],
    )


def _tokens_note(data, n: int) -> str:
    if n == 1:
        return ""
    labels = "Metric and token labels are" if column_of(data) == "position" else "The metric is"
    return f"{labels} named after the first pair."


def _scale(result: Result) -> dict[str, Any]:
    limit = colour_range(result)
    bar = {"title": {"text": "effect (0 none, 1 full)"}}
    return {"colorscale": theme.DIVERGING, "cmin": -limit, "cmax": limit, "cmid": 0, "colorbar": bar}


def _drawn(result: Result):
    """The columns that are drawn, and a sentence if they are not all."""
    data = result.data
    column = column_of(data)
    columns, cut = grid.last_columns(data.sizes["layer"], data.sizes[column])
    return data.isel({column: columns}), cut


def _heatmap(data, values: np.ndarray, name: str, numbers: bool) -> go.Heatmap:
    """One grid with everything about a cell in its hover."""
    hover, labels = _details(data), column_labels(data)
    cells = go.Heatmap(
        name=name,
        x=labels,
        y=grid.layer_labels(data["layer"].values),
        z=f32(values),
        coloraxis="coloraxis",
        **grid.gaps(len(labels)),
        customdata=hover[0],
        hovertemplate=f"<b>layer %{{y}}, {column_of(data)} %{{x}}</b><br>{hover[1]}<extra></extra>",
    )
    if numbers:
        shown = np.abs(values) >= 0.1
        text = np.where(shown, np.char.replace(np.char.mod("%.2f", values), "-", "−"), "")
        cells.update(text=text.astype(object), texttemplate="%{text}", textfont={"size": theme.SIZE["cell"]})
    return cells


def _details(data) -> tuple[np.ndarray, str]:
    """[layer, column, number] for the hover, and the template that names the numbers."""
    mean_of = "mean " if data.sizes["pair"] > 1 else ""
    numbers = [data["mean_effect"].values, data["metric"].mean("pair").values]
    lines = [f"{mean_of}effect %{{customdata[0]:.3f}}", f"{mean_of}metric %{{customdata[1]:.3f}}"]
    control = mean_control(data)
    if data.sizes["pair"] > 1:
        numbers += [data["effect_low"].values, data["effect_high"].values]
        lines[0] += ", 95 % interval %{customdata[2]:.3f} to %{customdata[3]:.3f}"
    if control is not None:
        lines.append(f"control effect %{{customdata[{len(numbers)}]:.3f}}")
        numbers.append(control)
    return f32(np.stack(numbers, axis=-1)), "<br>".join(lines)


def effect_figure(result: Result) -> go.Figure:
    """The grid of mean effects."""
    data, cut = _drawn(result)
    mean = data["mean_effect"].values
    labels = column_labels(data)
    column = column_of(data)
    row, at = strongest(mean)
    written = len(labels) <= grid.TEXT_COLUMNS
    where = f"layer {int(data['layer'].values[row])}, {column} {grid.at(labels, at)}"
    found = f"Outlined: the strongest cell, {where}: {theme.number(float(mean[row, at]))}"
    control = mean_control(data)
    found += f" (control {theme.number(float(control[row, at]), 2)})." if control is not None else "."
    if written:
        found += " Numbers stand in cells of |effect| ≥ 0.1."
    under = _subtitle(result, found, cut)
    x, y = _axes(data)
    made = theme.layout(
        title_of(result),
        under,
        plot_height=grid.row_height(data.sizes["layer"], written),
        bottom=grid.bottom(labels),
    )
    cells = _heatmap(data, mean, "mean effect" if data.sizes["pair"] > 1 else "effect", written)
    shapes = grid.outline(at, at, row, row)
    return go.Figure(
        cells, layout={**made, "xaxis": x, "yaxis": y, "shapes": shapes, "coloraxis": _scale(result)}
    )


def control_figure(result: Result) -> go.Figure:
    """Effect and control side by side on the same colour range."""
    data, cut = _drawn(result)
    control = mean_control(data)
    assert control is not None
    figure = make_subplots(
        rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=["effect", "control"]
    )
    figure.add_trace(_heatmap(data, data["mean_effect"].values, "effect", False), row=1, col=1)
    figure.add_trace(_heatmap(data, control, "control effect", False), row=1, col=2)
    largest = theme.number(float(np.nanmax(np.abs(control))))
    note = f"Largest |control effect|: {largest}. Both grids have one colour range."
    under = _subtitle(result, note, cut)
    made = theme.layout(
        f"Effect beside its control: {result.data.attrs['direction']} patches of {result.data.attrs['kind']}",
        under,
        plot_height=grid.row_height(data.sizes["layer"], False),
        bottom=grid.bottom(column_labels(data)),
        legend_rows=1,
    )
    x, y = _axes(data)
    figure.update_layout({**made, "showlegend": False, "coloraxis": _scale(result)})
    figure.update_annotations(font={"size": theme.SIZE["axis"]})
    figure.update_xaxes({**x, "title": {"text": x["title"]["text"].replace(" and token, clean→corrupt", "")}})
    figure.update_yaxes(y)
    figure.update_yaxes(title=None, showticklabels=False, ticks="", col=2)
    row, at = strongest(data["mean_effect"].values)
    for i in ("", "2"):
        for shape in grid.outline(at, at, row, row, xref=f"x{i}", yref=f"y{i}"):
            figure.add_shape(shape)
    return figure


def _axes(data) -> tuple[dict[str, Any], dict[str, Any]]:
    titles = {
        "position": "position and token, clean→corrupt",
        "head": "head (all positions)",
        "group": "group of neurons (all positions)",
    }
    return grid.axes(titles[column_of(data)], column_labels(data), grid.layer_labels(data["layer"].values))
