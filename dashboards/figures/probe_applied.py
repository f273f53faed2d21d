"""Figure of a saved probe on new texts (`probe_apply`).

`answers`  the probability of the second class (of several, of the answer) for each text, sorted; where labels are
           known, each label in a colour and a symbol of its own. 0.5 dotted. At most `SHOWN` texts ("n of N").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from dashboards.figures import grid, theme
from dashboards.figures.theme import f32, number, safe

if TYPE_CHECKING:
    from workbench.results import Result

SHOWN = 40


def figures(result: Result) -> dict[str, go.Figure]:
    """`answers`; of a regression `values`."""
    return {_name(result): answers_figure(result)}


def _name(result: Result) -> str:
    return "values" if "value" in result.data else "answers"


def _values(data: Any) -> tuple[np.ndarray, str]:
    """One number for each text, and what it is."""
    if "value" in data:
        values = data["value"].values
        return (values if values.ndim == 1 else values[:, 0]), "value that the probe reads"
    if data.sizes["class"] == 2:
        return data["probability"].values[:, 1], f"probability of {str(data['class'].values[1])!r}"
    return data["probability"].values.max(1), "probability of the answer"


def answers_figure(result: Result) -> go.Figure:
    """What the probe says of each text."""
    data = result.data
    values, said = _values(data)
    order = np.argsort(values, kind="stable")
    if len(order) > SHOWN:  # both ends: what it is surest of
        order = np.concatenate([order[: SHOWN // 2], order[-SHOWN // 2 :]])
    rows = grid.unique([safe(grid.shorten(str(data["prompt_text"].values[i]), 46)) for i in order])
    labels = (
        data["label"].values[order].astype(str) if "label" in data.coords else np.full(len(order), "text")
    )
    figure = go.Figure(layout={"template": theme.TEMPLATES["light"]})
    for number_, label in enumerate(dict.fromkeys(labels.tolist())):
        at = np.flatnonzero(labels == label)
        answers = [str(data["answer"].values[order[i]]) if "answer" in data else "" for i in at]
        figure.add_scatter(
            x=f32(values[order[at]]), y=[rows[i] for i in at], mode="markers", hovertext=[safe(a) for a in answers],
            name=safe(f"label: {label}" if "label" in data.coords else said),
            marker={
                "color": theme.SERIES[number_ % len(theme.SERIES)], "size": 10,
                "symbol": theme.SYMBOLS[number_ % len(theme.SYMBOLS)],
            },
            hovertemplate="<b>%{y}</b><br>%{x:.3f} %{hovertext}<extra></extra>",
        )  # fmt: skip
    n = data.sizes["prompt"]
    some = f"{len(order)} of {n} texts: those it is surest of, either way." if len(order) < n else ""
    made = theme.layout(
        "A saved probe on new texts",
        _subtitle(result, some, _agreement(data)),
        plot_height=max(120, 22 * len(order)),
        legend_rows=int("label" in data.coords),
    )
    figure.update_layout(made)
    if "value" not in data:
        if data.sizes["class"] == 2:
            figure.add_shape(
                type="line", x0=0.5, x1=0.5, y0=0, y1=1, yref="paper", line={"dash": "dot", "width": 1.5}
            )
        figure.update_xaxes(range=[-0.02, 1.02])
    figure.update_xaxes(title={"text": said})
    axis = {"categoryorder": "array", "categoryarray": rows, "range": [-0.6, len(rows) - 0.4]}
    return figure.update_yaxes(type="category", ticks="", **axis)


def _agreement(data: Any) -> str:
    attrs = data.attrs
    if "accuracy" not in attrs:
        return ""
    value, low, high = (number(float(attrs[f"accuracy{end}"])) for end in ("", "_low", "_high"))
    return f"Right: {value} (95 % interval {low} to {high}); the majority gives {number(attrs['majority_accuracy'])}."


def _subtitle(result: Result, *more: str) -> str:
    attrs = result.data.attrs
    trained = attrs.get("training", {}).get("n")
    return theme.subtitle(
        model=theme.model_name(result),
        n=f"{attrs['n_prompts']} texts",
        units=f"{attrs['probe']} at {attrs['site']}" + (f", fitted to {trained} rows" if trained else ""),
        control=str(attrs.get("control", "none")),
        more=[note for note in more if note],
    )


def describe(result: Result) -> dict[str, str]:
    """The figure in words."""
    data = result.data
    values, said = _values(data)
    low, high = int(np.argmin(values)), int(np.argmax(values))
    ends = [f"{number(float(values[i]))} for {str(data['prompt_text'].values[i])!r}" for i in (low, high)]
    text = f"Points of the {said} for {len(values)} texts, from {ends[0]} to {ends[1]}."
    return {_name(result): f"{text} {_agreement(data)}".strip()}


def control_statement(result: Result) -> str:
    """What the answers were compared with."""
    return f"Control: {result.data.attrs['control']}. {_agreement(result.data)}".strip()
