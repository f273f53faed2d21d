"""Figures of stacked multiple-instance probes with conformal sets.

`mcc`         Matthews' correlation by layer with its interval, and dashed that of shuffled labels; 0 dotted.
`coverage`    share of sets that hold the right class, with its interval, the stated 1 − α dotted; below it the share
              of rows without an answer. Shuffled labels dashed: they are covered, too, but get no answers.
`confusion`   what was answered at the best layer, by class, as shares of the class.

Sites that are not one per block are named along the axis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboards.figures import theme
from dashboards.figures.lines import HOVER, LABEL, Curve, curve, hover_title, level
from dashboards.figures.probe_finish import finished
from dashboards.figures.theme import f32, number, safe

if TYPE_CHECKING:
    from workbench.results import Result


def figures(result: Result) -> dict[str, go.Figure]:
    """`mcc`, `coverage` and `confusion`."""
    return {
        "mcc": mcc_figure(result),
        "coverage": coverage_figure(result),
        "confusion": confusion_figure(result),
    }


def along(data: Any) -> str:
    """The dimension of the lines: `layer`, or `site` where sites are not one per block."""
    return str(data["mcc"].dims[0])


def best_index(data: Any) -> int:
    """The site with the highest MCC."""
    return int(np.nanargmax(data["mcc"].values))


def _name(data: Any, i: int) -> str:
    """`layer 20`, or the site's name."""
    first = along(data)
    return f"layer {data['layer'].values[i]}" if first == "layer" else str(data["site"].values[i])


def _axis(figure: go.Figure, data: Any, **at: Any) -> None:
    if along(data) == "layer":
        figure.update_xaxes(hover_title("layer"))
        figure.update_xaxes(title={"text": "layer"}, **at)
    else:
        figure.update_xaxes(
            tickmode="array",
            tickvals=list(range(data.sizes["site"])),
            ticktext=[safe(str(site)) for site in data["site"].values],
            tickangle=-45,
            **hover_title("site number"),
        )
        figure.update_xaxes(title={"text": "site"}, **at)


def _x(data: Any) -> np.ndarray:
    return data["layer"].values if along(data) == "layer" else np.arange(data.sizes["site"])


def _subtitle(result: Result, *more: str) -> str:
    attrs = result.data.attrs
    counts = ", ".join(f"{n} {c}" for n, c in zip(attrs["n_class"], _classes(result), strict=True))
    groups = f" that keep {attrs['n_groups']} groups together" if attrs.get("grouped") else ""
    tokens = f"{number(float(attrs['tokens_per_bag']))} tokens a prompt, the last {attrs['known_positive']} assumed"
    return theme.subtitle(
        model=theme.model_name(result),
        n=f"{attrs['n']} prompts ({counts})",
        units=f"{attrs['folds']} folds{groups}",
        control=str(attrs.get("control", "not run")),
        more=[f"{tokens} positive.", *more],
    )


def _units(result: Result) -> str:
    return "groups" if result.data.attrs.get("grouped") else "prompts"


def _classes(result: Result) -> list[str]:
    return [str(name) for name in result.data["class"].values]


def _bottom(data: Any) -> int:
    return 60 if along(data) == "layer" else 150


def mcc_figure(result: Result) -> go.Figure:
    """MCC by layer, with the control."""
    data, figure = result.data, go.Figure()
    x = _x(data)
    low, high = data["mcc_low"].values, data["mcc_high"].values
    figure.add_traces(curve(Curve(x, data["mcc"].values, "MCC", 0, low, high)))
    if "control_mcc" in data:
        figure.add_traces(
            curve(Curve(x, data["control_mcc"].values, "MCC, shuffled labels", 0, control=True))
        )
    shapes, notes = level(0.0, "chance")
    i = best_index(data)
    at = f"Best: {_name(data, i)}, {_value(data, 'mcc', i)}. The best of many is high by chance: see the control."
    title = f"True, false or neither by {along(data)}: Matthews' correlation, held out"
    made = theme.layout(
        title,
        _subtitle(result, at + f" Band: 95 % interval over {_units(result)}."),
        plot_height=320,
        legend_rows=1,
        right=LABEL,
        bottom=_bottom(data),
    )
    figure.update_layout(made, shapes=shapes, annotations=notes, **HOVER)
    _axis(figure, data)
    lowest = float(np.nanmin([data[name].values for name in ("mcc_low", "control_mcc") if name in data]))
    figure.update_yaxes(title={"text": "MCC (1 = perfect)"}, range=[min(-0.15, lowest - 0.05), 1.03])
    return finished(figure)


def coverage_figure(result: Result) -> go.Figure:
    """Coverage above, abstention below."""
    data = result.data
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.1)
    x, every = _x(data), data.sel(of="all")
    for row, name in enumerate(("coverage", "abstention"), start=1):
        low, high = (every[f"{name}{end}"].values for end in ("_low", "_high"))
        traces = curve(Curve(x, every[name].values, name, row - 1, low, high))
        if f"control_{name}" in data:
            dashed = Curve(
                x, data[f"control_{name}"].values, f"{name}, shuffled labels", row - 1, control=True
            )
            traces += curve(dashed)
        figure.add_traces(traces, rows=row, cols=1)
    stated = 1 - float(data.attrs["alpha"])
    shapes, notes = level(stated, f"stated: {number(stated)}")
    i = best_index(data)
    answered = number(float(every["accuracy_answered"].values[i]))
    said = f"At {_name(data, i)} {answered} of the answers are right. Bands: 95 % intervals over {_units(result)}."
    kind = "each class by itself" if data.attrs.get("per_class") else "all classes together"
    made = theme.layout(
        f"Conformal sets by {along(data)}: coverage and abstention",
        _subtitle(result, f"Calibration: {data.attrs['calibration']}, {kind}.", said),
        plot_height=420,
        legend_rows=2 if "control_coverage" in data else 1,
        right=LABEL + 20,
        bottom=_bottom(data),
    )
    figure.update_layout(made, shapes=shapes, annotations=notes, **HOVER)
    _axis(figure, data, row=2, col=1)
    lowest = min(float(np.nanmin(every["coverage_low"].values)), stated - 0.2)
    figure.update_yaxes(title={"text": "coverage"}, range=[lowest - 0.02, 1.02], row=1, col=1)
    figure.update_yaxes(title={"text": "no answer (share)"}, range=[-0.03, 1.03], row=2, col=1)
    return finished(figure)


def confusion_figure(result: Result) -> go.Figure:
    """Answers at the best layer, as shares of each class."""
    data = result.data
    i = best_index(data)
    counts = data["answers"].values[i]
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    classes = [safe(c) for c in _classes(result)]
    panel = go.Heatmap(
        name=f"answers at {_name(data, i)}",
        x=[*classes, "no answer"],
        y=classes,
        z=f32(shares),
        text=[
            [f"{share:.2f}<br>{n}" for share, n in zip(*row, strict=True)]
            for row in zip(shares, counts, strict=True)
        ],
        texttemplate="%{text}",
        coloraxis="coloraxis",
        xgap=1,
        ygap=1,
        hovertemplate="<b>%{y}</b> answered as %{x}<br>share and number: %{text}<extra></extra>",
    )
    figure = go.Figure(panel)
    made = theme.layout(
        f"What was answered at {_name(data, i)}",
        _subtitle(result, "Share of the class in each cell, and the number of prompts."),
        plot_height=90 * len(classes),
    )
    scale = {
        "colorscale": theme.SEQUENTIAL,
        "cmin": 0,
        "cmax": 1,
        "colorbar": {"title": {"text": "share of the class"}},
    }
    figure.update_layout({**made, "coloraxis": scale})
    figure.update_xaxes(title={"text": "answer"}, type="category")
    return figure.update_yaxes(title={"text": "label"}, type="category", autorange="reversed")


def _value(data: Any, name: str, i: int) -> str:
    value, low, high = (float(data[f"{name}{end}"].values[i]) for end in ("", "_low", "_high"))
    return f"{number(value)} (95 % interval {number(low)} to {number(high)})"


def describe(result: Result) -> dict[str, str]:
    """The figures in words."""
    data = result.data
    i, n = best_index(data), data.sizes[along(data)]
    where, every = _name(data, i), data.sel(of="all")
    stated = number(1 - float(data.attrs["alpha"]))
    control = (
        f" Shuffled labels: {number(float(data['control_mcc'].values[i]))}." if "control_mcc" in data else ""
    )
    counts = data["answers"].values[i]
    answers = "; ".join(
        f"{name}: "
        + ", ".join(f"{c} {a}" for c, a in zip(row, (*_classes(result), "no answer"), strict=True))
        for name, row in zip(_classes(result), counts, strict=True)
    )
    return {
        "mcc": (
            f"Line over {n} {along(data)}s: Matthews' correlation of {', '.join(_classes(result))}, held out, n = "
            f"{data.attrs['n']}. Highest at {where}: {_value(data, 'mcc', i)}.{control}"
        ),
        "coverage": (
            f"Two panels over {n} {along(data)}s. Share of conformal sets with the right class, {stated} stated: at "
            f"{where} {_value(every, 'coverage', i)}. Share without an answer: {_value(every, 'abstention', i)}."
        ),
        "confusion": f"Table of answers at {where}. {answers}.",
    }


def control_statement(result: Result) -> str:
    """What the probes were compared with, and what came out."""
    data, i = result.data, best_index(result.data)
    if "control_mcc" not in data:
        return "No control was run: how high an MCC is by chance is not known."
    high, abstained = (float(data[name].values[i]) for name in ("control_mcc_high", "control_abstention"))
    return (
        f"Control: {data.attrs['control']}. At {_name(data, i)} MCC {_value(data, 'mcc', i)}; on shuffled labels at "
        f"most {number(high)}, with no answer for {number(abstained)} of the prompts."
    )
