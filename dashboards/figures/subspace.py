"""Figures of distributed alignment search (DAS).

`accuracy`  interchange intervention accuracy on held-out pairs: the trained subspace beside principal components,
            random subspaces of the same rank, the whole activation, and no intervention
`loss`      training loss by step
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from dashboards.figures import points, theme
from dashboards.figures.lines import HOVER, LABEL, Curve, curve, hover_title, level
from dashboards.figures.points import Series, add_points
from dashboards.figures.theme import number

if TYPE_CHECKING:
    from workbench.results import Result

NAMES = {
    "trained": "trained",
    "given": "given",
    "pca": "principal components",
    "random": "random (control)",
    "whole": "whole activation",
}


def figures(result: Result) -> dict[str, go.Figure]:
    """`accuracy`, and `loss` where something was trained."""
    found = {"accuracy": accuracy_figure(result)}
    if "loss" in result.data and result.data["loss"].size:
        found["loss"] = loss_figure(result)
    return found


def _subtitle(result: Result, *more: str) -> str:
    attrs = result.data.attrs
    n = attrs.get("n_test", result.data.sizes.get("pair", "?"))
    trained = f" (trained on {attrs['n_train']} others)" if attrs.get("n_train") else ""
    return theme.subtitle(
        model=theme.model_name(result),
        n=f"{n} held-out pairs{trained}",
        units=f"rank {attrs['rank']} at {attrs['site']}" if "rank" in attrs else str(attrs.get("site", "")),
        control=str(attrs.get("control", "not run")),
        more=more,
    )


def accuracy_figure(result: Result) -> go.Figure:
    """Accuracy of each subspace with its interval."""
    data, figure = result.data, go.Figure()
    names = [str(name) for name in data["subspace"].values]
    said = None
    if "log_probability" in data:
        mean = data["log_probability"].mean("pair").values
        said = [f"mean ln p(counterfactual answer) {number(float(v))} nats" for v in mean]
    labels = [theme.safe(NAMES.get(name, name)) for name in names]
    values, low, high = (data[f"accuracy{end}"].values for end in ("", "_low", "_high"))
    add_points(figure, Series("accuracy", labels, values, low, high, said=said))
    unpatched = result.summary.get("unpatched")
    shapes, notes = level(float(unpatched), "no intervention") if unpatched is not None else ([], [])
    made = theme.layout(
        "Interchange interventions in subspaces: accuracy on held-out pairs",
        _subtitle(
            result, "Accuracy: first choice is the counterfactual answer. Lines: 95 % intervals over pairs."
        ),
        plot_height=320,
        right=LABEL + 25,
    )
    figure.update_layout(made, shapes=shapes, annotations=notes)
    figure.update_xaxes(type="category")
    return points.share_axis(figure, "accuracy")


def loss_figure(result: Result) -> go.Figure:
    """Training loss."""
    loss = result.data["loss"].values
    figure = go.Figure(curve(Curve(np.arange(1, len(loss) + 1), loss, "loss", control=False)))
    figure.update_traces(mode="lines")
    figure.update_layout(
        theme.layout("Distributed alignment search: training loss", _subtitle(result), plot_height=260),
        **HOVER,
    )
    figure.update_xaxes(title={"text": "step"}, **hover_title("step"))
    return figure.update_yaxes(title={"text": "cross-entropy (nats), one batch"}, rangemode="tozero")


def _accuracies(data: Any, summary: dict[str, Any]) -> str:
    parts = []
    for i, name in enumerate(data["subspace"].values):
        ends = (float(data[f"accuracy{end}"].values[i]) for end in ("", "_low", "_high"))
        parts.append(f"{NAMES.get(str(name), str(name))} {points.say(*ends)}")
    if summary.get("unpatched") is not None:
        parts.append(f"no intervention {number(float(summary['unpatched']))}")
    return "; ".join(parts)


def describe(result: Result) -> dict[str, str]:
    """The figures in words."""
    data = result.data
    n = data.attrs.get("n_test", data.sizes.get("pair", "?"))
    what = f"interchange intervention accuracy on {n} held-out pairs at {data.attrs.get('site', '?')}"
    found = {"accuracy": f"Points with intervals: {what}: {_accuracies(data, result.summary)}."}
    if "loss" in data and data["loss"].size:
        loss = data["loss"].values
        first, last, least = (number(float(value)) for value in (loss[0], loss[-1], loss.min()))
        found["loss"] = (
            f"Line of the training loss over {len(loss)} steps, from {first} to {last} nats, least {least}."
        )
    return found


def control_statement(result: Result) -> str:
    """What the trained subspace was compared with, and what came out."""
    control = result.data.attrs.get("control", "not run")
    return f"Control: {control}. Accuracy: {_accuracies(result.data, result.summary)}."
