"""Figures of a comparison of steering methods at equal KL.

`change`   mean change of the score by method, one panel a task (scores have different units), with its 95 % interval;
           beside each method the range of its random directions at the same site and KL, the unsteered model at 0.
           Filled marks: the interval against random directions lies above 0.
`cost`     perplexity under the unsteered model over that of unsteered continuations, all tasks in one panel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboards.figures import theme
from dashboards.figures.bars import error_bars, vertical
from dashboards.figures.theme import f32, number, safe

if TYPE_CHECKING:
    from workbench.results import Result

BASELINES = ("random direction", "in-context prompt")
COLUMNS = 2
"""Panels side by side."""


def figures(result: Result) -> dict[str, go.Figure]:
    """`change` and `cost`."""
    return {"change": change_figure(result), "cost": cost_figure(result)}


def _colour(result: Result, method: str) -> int:
    methods = [str(m) for m in result.data["method"].values if m not in BASELINES]
    return methods.index(method) if method in methods else len(methods) + BASELINES.index(method)


def _cell(result: Result, task: str, method: str) -> Any:
    return result.data.sel({"task": task, "method": method})


def _n(result: Result) -> str:
    counts = sorted({int(n) for n in result.data["n_test"].values})
    return f"{counts[0]}–{counts[-1]} prompts a task" if len(counts) > 1 else f"{counts[0]} prompts a task"


def _under(result: Result, *more: str) -> str:
    attrs = result.data.attrs
    return theme.subtitle(
        model=theme.model_name(result),
        n=_n(result),
        units=f"KL {number(float(attrs['target_kl']))} nats per token on other prompts",
        control=str(attrs["control"]),
        more=more,
    )


def _series(result: Result, task: str, methods: list[str]) -> dict[str, np.ndarray]:
    names = (
        "mean_change",
        "change_low",
        "change_high",
        "random_low",
        "random_high",
        "mean_against_random",
        "n",
    )
    return {name: np.array([float(_cell(result, task, m)[name]) for m in methods]) for name in names}


def change_figure(result: Result) -> go.Figure:
    """Dots with intervals, one panel a task."""
    data = result.data
    tasks, methods = [str(t) for t in data["task"].values], [str(m) for m in data["method"].values]
    rows = -(-len(tasks) // COLUMNS)
    titles = [safe(f"{t} ({data['scorer'].sel({'task': t}).item()})") for t in tasks]
    figure = make_subplots(
        rows=rows, cols=COLUMNS, shared_yaxes=True, subplot_titles=titles,
        horizontal_spacing=0.06, vertical_spacing=0.5 / (rows + 1),
    )  # fmt: skip
    labels = [safe(m) for m in methods]
    shapes = []
    for t, task in enumerate(tasks):
        place = {"row": t // COLUMNS + 1, "col": t % COLUMNS + 1}
        v = _series(result, task, methods)
        beats = [bool(_cell(result, task, m)["beats_random"]) for m in methods]
        middle = (v["random_low"] + v["random_high"]) / 2
        figure.add_scatter(
            x=f32(middle),
            y=labels,
            name="range of its random directions",
            mode="markers",
            marker={"symbol": "line-ns", "size": 8, "color": theme.SERIES[1]},
            error_x={
                **error_bars(middle, v["random_low"], v["random_high"]),
                **{"color": theme.SERIES[1], "thickness": 6, "width": 0},
            },
            opacity=0.45,
            legendgroup="random",
            showlegend=t == 0,
            customdata=f32(np.stack([v["random_low"], v["random_high"]], axis=-1)),
            hovertemplate="random directions %{customdata[0]:.3f} to %{customdata[1]:.3f}<extra></extra>",
            **place,
        )
        symbols = [_symbol(m, b) for m, b in zip(methods, beats, strict=True)]
        said = [safe(_said(result, task, m)) for m in methods]
        figure.add_scatter(
            x=f32(v["mean_change"]),
            y=labels,
            name="change, 95 % interval",
            mode="markers",
            marker={"symbol": symbols, "size": 10, "color": theme.SERIES[0]},
            error_x={**error_bars(v["mean_change"], v["change_low"], v["change_high"]), "color": theme.SERIES[0]},
            legendgroup="change",
            showlegend=t == 0,
            hovertext=said,
            hovertemplate="<b>%{y}</b><br>%{hovertext}<extra></extra>",
            **place,
        )  # fmt: skip
        axis = "" if t == 0 else str(t + 1)
        shapes.append({**vertical(0), "xref": f"x{axis}", "yref": f"y{axis} domain"})
    under = _under(
        result,
        "Change of the score against the unsteered model (dotted at 0). Filled: above its random directions.",
    )
    made = theme.layout("Steering methods at equal KL", under, plot_height=190 * rows, legend_rows=2)
    figure.update_layout(made, shapes=shapes)
    figure.update_layout(legend={"y": 1 + 24 / (190 * rows)})  # above the titles of the panels
    figure.update_annotations(font={"size": theme.SIZE["axis"]})
    return figure.update_yaxes(type="category", autorange="reversed", ticks="")


def _symbol(method: str, filled: bool) -> str:
    shape = {"random direction": "square", "in-context prompt": "diamond"}.get(method, "circle")
    return shape if filled else f"{shape}-open"


def _said(result: Result, task: str, method: str) -> str:
    """Numbers of a cell in a line."""
    at = _cell(result, task, method)
    if not np.isfinite(float(at["mean_change"])):
        return f"no value: {at['note'].values}"
    v = {name: number(float(at[name])) for name in ("mean_change", "change_low", "change_high")}
    text = f"{v['mean_change']} [{v['change_low']}, {v['change_high']}], n = {int(at['n'])}"
    if np.isfinite(float(at["mean_against_random"])):
        ends = [number(float(at[f"against_random_{end}"])) for end in ("low", "high")]
        text += f"; against random {number(float(at['mean_against_random']))} [{ends[0]}, {ends[1]}]"
    if str(at["site"].values):
        text += f"; {at['site'].values}, strength {number(float(at['strength']))}"
    return f"{text}; KL there {number(float(at['kl_along']))}"


def cost_figure(result: Result) -> go.Figure:
    """Perplexity ratio by task, one mark a method."""
    data = result.data
    tasks = [str(t) for t in data["task"].values]
    figure = go.Figure(layout={"template": theme.TEMPLATES["light"]})
    for method in (str(m) for m in data["method"].values):
        i = _colour(result, method) % len(theme.SERIES)
        values = [float(_cell(result, t, method)["perplexity_ratio"]) for t in tasks]
        others = np.array(
            [
                [float(_cell(result, t, method)[n]) for n in ("repetition", "distinct_2", "kl_along")]
                for t in tasks
            ]
        )
        figure.add_scatter(
            x=f32(values),
            y=[safe(t) for t in tasks],
            name=safe(method),
            mode="markers",
            marker={"color": theme.SERIES[i], "symbol": theme.SYMBOLS[i], "size": 10},
            customdata=f32(others),
            hovertemplate=(
                f"<b>{safe(method)}</b><br>%{{y}}<br>perplexity × %{{x:.2f}}<br>repeated 4-grams "
                "%{customdata[0]:.2f}, distinct 2-grams %{customdata[1]:.2f}<br>KL %{customdata[2]:.2f}<extra></extra>"
            ),
        )  # fmt: skip
    under = _under(
        result,
        "Perplexity under the unsteered model over that of its own greedy continuations (dotted at 1).",
    )
    made = theme.layout(
        "What steering costs in likelihood", under, plot_height=max(160, 44 * len(tasks)), legend_rows=2
    )
    figure.update_layout(made, shapes=[vertical(1)])
    figure.update_xaxes(type="log", title={"text": "perplexity ratio"})
    return figure.update_yaxes(type="category", autorange="reversed", ticks="")


def describe(result: Result) -> dict[str, str]:
    """The figures in words."""
    data = result.data
    methods = [str(m) for m in data["method"].values]
    tasks = [str(t) for t in data["task"].values]
    parts = [f"{t}: " + "; ".join(f"{m} {_said(result, t, m)}" for m in methods) for t in tasks]
    costs = []
    for t in tasks:
        values = [(float(_cell(result, t, m)["perplexity_ratio"]), m) for m in methods]
        known = [(v, m) for v, m in values if np.isfinite(v)]
        if known:
            (low, least), (high, most) = min(known), max(known)
            costs.append(f"{t}: from {number(low)} ({least}) to {number(high)} ({most})")
    return {
        "change": (
            f"Dots with 95 % intervals of the change of the score, {len(methods)} rows in each of {len(tasks)} panels. "
            + ". ".join(parts)
            + "."
        ),
        "cost": f"Marks of the perplexity ratio by task and method. {'; '.join(costs)}.",
    }


def control_statement(result: Result) -> str:
    """In how many cells a method is above its random directions."""
    data = result.data
    methods = [m for m in data["method"].values if m not in BASELINES]
    at = data.sel({"method": methods})
    known = int(np.isfinite(at["mean_against_random"].values).sum())
    return (
        f"Control: {data.attrs['control']}. The interval against them lies above 0 in "
        f"{int(at['beats_random'].sum())} and below 0 in {int(at['below_random'].sum())} of {known} cells."
    )
