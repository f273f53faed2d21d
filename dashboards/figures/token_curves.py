"""Figures of an input attribution over several prompts (`positions`) and of deletion and insertion (`curves`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboards.figures import grid, theme
from dashboards.figures.lines import HOVER, band, hover_title
from dashboards.figures.theme import f32, number

if TYPE_CHECKING:
    from workbench.results import Result

METHODS = {
    "gradient_x_input": "gradient × input",
    "integrated_gradients": "integrated gradients",
    "expected_gradients": "expected gradients",
    "samp": "SAMP",
}


def subtitle(result: Result, *more: str, control: str = "") -> str:
    """Model, n, units and control, and sentences below."""
    data, n = result.data, int(result.data.attrs["n_prompts"])
    return theme.subtitle(
        model=theme.model_name(result),
        n=f"{n} prompt{'s' if n > 1 else ''}",
        units=METHODS[data.attrs["method"]],
        control=control or str(data.attrs["control"]),
        more=[note for note in more if note],
    )


def ends_sentence(data: Any) -> str:
    """What the prompt is compared with."""
    own, base = (number(float(data[name].mean())) for name in ("metric", "baseline_metric"))
    mean = "mean metric" if data.sizes["prompt"] > 1 else "metric"
    return f"Baseline: {data.attrs['baseline']}; {mean} {base} there, {own} for the prompt."


def positions_figure(result: Result) -> go.Figure:
    """Mean over prompts at each position."""
    data = result.data
    tokens = zip(data["position"].values, data["token"].values[0], strict=True)
    labels = [grid.token_label(int(p), str(token)) for p, token in tokens]
    mean = f32(data["mean_attribution"].values)
    low, high = f32(data["attribution_low"].values), f32(data["attribution_high"].values)
    numbers, says = [low, high], "mean %{y:.4f}, 95 % interval %{customdata[0]:.4f} to %{customdata[1]:.4f}"
    if "p_value" in data:
        numbers.append(f32(data["p_value"].values))
        says += ", p = %{customdata[2]:.3g}"
    arms = {"symmetric": False, "array": np.maximum(high - mean, 0), "arrayminus": np.maximum(mean - low, 0)}
    points = {"mode": "markers", "x": labels, "cliponaxis": False}
    figure = go.Figure(
        go.Scatter(
            y=mean,
            name="attribution",
            marker={"color": theme.SERIES[0], "symbol": theme.SYMBOLS[0], "size": 9},
            error_y={"type": "data", **arms, "color": theme.SERIES[0], "width": 4},
            customdata=np.stack(numbers, axis=-1),
            hovertemplate=f"<b>%{{x}}</b><br>{says}<extra></extra>",
            **points,
        )
    )
    if "control_attribution" in data:
        figure.add_scatter(
            y=f32(data["control_attribution"].mean(["prompt", "draw"]).values),
            name="control, mean over prompts and draws",
            marker={"color": theme.SERIES[1], "symbol": theme.SYMBOLS[2], "size": 8},
            hovertemplate="<b>%{x}</b><br>control %{y:.4f}<extra></extra>",
            **points,
        )
    under = subtitle(
        result,
        ends_sentence(data),
        "Lines: 95 % intervals over prompts. Tokens are those of the first prompt.",
    )
    title = f"Mean attribution by position: {data.attrs['metric']}"
    bottom = grid.bottom(labels)
    figure.update_layout(theme.layout(title, under, plot_height=280, bottom=bottom, legend_rows=1))
    x, _ = grid.axes("position and token", labels, [""])
    figure.update_xaxes(x)
    return figure.update_yaxes(
        title={"text": "mean attribution (metric's units)"}, zeroline=True, zerolinewidth=1
    )


def curves_figure(result: Result) -> go.Figure:
    """Deletion and insertion side by side."""
    data = result.data
    share = f32(data["share"].values)
    heads = [f"{name}: area {_area(result, name)}" for name in ("deletion", "insertion")]
    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.06, subplot_titles=heads)
    for column, name in enumerate(("deletion", "insertion"), 1):
        low, high = (data[f"random_{name}_{end}"].values for end in ("low", "high"))
        chance = f32(data[f"random_{name}"].mean(["prompt", "order"]).values)
        colour = theme.SERIES[1]
        for trace in band(share, low, high, colour, f"{name}, random orders"):
            figure.add_trace(trace, row=1, col=column)
        for y, label, i in (
            (chance, "random orders", 1),
            (f32(data[name].mean("prompt").values), "by attribution", 0),
        ):
            figure.add_scatter(
                x=share,
                y=y,
                name=f"{name}, {label}",
                mode="lines" if i else "lines+markers",
                line={"color": theme.SERIES[i], "width": 2, "dash": "dash" if i else "solid"},
                marker={"color": theme.SERIES[i], "symbol": theme.SYMBOLS[i], "size": 6},
                cliponaxis=False,
                hovertemplate=f"{label} %{{y:.3f}}<extra></extra>",
                row=1,
                col=column,
            )
    n = data.sizes["order"]
    notes = [
        ends_sentence(data),
        f"Dashed and shaded: mean and 95 % of the random orders{_over(data)}. A good order falls early on the left "
        "and rises early on the right.",
    ]
    made = theme.layout(
        f"What is kept of {data.attrs['metric']}",
        subtitle(result, *notes, control=f"{n} random orders"),
        plot_height=280,
        legend_rows=1,
    )
    figure.update_layout({**made, **HOVER, "showlegend": False})
    figure.update_annotations(font={"size": theme.SIZE["axis"]})
    figure.update_xaxes(
        title={"text": "share of tokens replaced by the baseline's"}, col=1, **hover_title("share", ":.2f")
    )
    figure.update_xaxes(
        title={"text": "share of tokens put into the baseline"}, col=2, **hover_title("share", ":.2f")
    )
    return figure.update_yaxes(title={"text": "share of the metric kept"}, col=1)


def _over(data: Any) -> str:
    return ", of their mean over prompts" if data.sizes["prompt"] > 1 else ""


def _area(result: Result, name: str) -> str:
    """`0.21 (random 0.52, p = 0.05)`."""
    area = number(float(result.data[f"{name}_area"].mean()), 2)
    chance = number(float(result.data["random_area"].mean()), 2)
    p = result.summary.get(name, {}).get("p_value")
    return f"{area} (random {chance}{'' if p is None else f', p = {number(float(p), 2)}'})"


def words(result: Result) -> dict[str, str]:
    """The two figures in words, where the result has them."""
    data, n, made = result.data, result.data.sizes["prompt"], {}
    if "mean_attribution" in data:
        mean = data["mean_attribution"].values
        best = int(np.abs(mean).argmax())
        ends = [number(float(data[name][best])) for name in ("attribution_low", "attribution_high")]
        made["positions"] = (
            f"Points over {len(mean)} positions: mean attribution of {n} prompts with 95 % intervals. Largest at "
            f"position {best}: {number(float(mean[best]))}, {ends[0]} to {ends[1]}."
        )
    if "deletion" in data:
        areas = "; ".join(f"{name} area {_area(result, name)}" for name in ("deletion", "insertion"))
        made["curves"] = (
            f"Two panels of lines: the share of {data.attrs['metric']} kept as tokens are replaced by the baseline's "
            f"in order of attribution, and as they are put in. {areas}, of {data.sizes['order']} random orders."
        )
    return made
