"""Figure of the ablation of some neurons.

`ablation`  change of the answer's log-probability and of the accuracy, beside draws of as many random neurons
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboards.figures import theme
from dashboards.figures.points import Series, add_points
from dashboards.figures.theme import number

if TYPE_CHECKING:
    from workbench.results import Result

MEASURES = {
    "log_probability": "change of ln p(answer) (nats)",
    "correct": "change of accuracy",
}


def figures(result: Result) -> dict[str, go.Figure]:
    """`ablation`."""
    return {"ablation": ablation_figure(result)}


def ablation_figure(result: Result) -> go.Figure:
    """Effect of silencing neurons beside the draws of random ones."""
    data, figure = result.data, make_subplots(rows=1, cols=2, horizontal_spacing=0.12)
    for column, (measure, title) in enumerate(MEASURES.items(), 1):
        one, axis = data.sel(measure=measure), "" if column == 1 else str(column)
        axes = {"xaxis": f"x{axis}", "yaxis": f"y{axis}"}
        own = Series(
            "neurons silenced", ["given"], [one["mean_effect"]], [one["effect_low"]], [one["effect_high"]]
        )
        add_points(figure, own, showlegend=column == 1, **axes)
        if "mean_control_effect" in data:
            draws = one["mean_control_effect"].values
            said = [
                f"mean of {len(draws)} draws, from {number(float(draws.min()))} to {number(float(draws.max()))}"
            ]
            drawn = Series(
                "random neurons of the same blocks", ["random"], [draws.mean()], [draws.min()], [draws.max()], 1, said,
                interval="lowest to highest draw",
            )  # fmt: skip
            add_points(figure, drawn, showlegend=column == 1, **axes)
        figure.update_yaxes(
            title={"text": title}, zeroline=True, zerolinewidth=1, rangemode="tozero", col=column
        )
    attrs, n = data.attrs, int(data.attrs["n_prompts"])
    under = theme.subtitle(
        model=theme.model_name(result),
        n=f"{n} prompt{'s' if n > 1 else ''}, {attrs['n_neurons']} neurons",
        units=f"positions {attrs['positions']}",
        control=str(attrs.get("control", "not run")),
        more=[
            what_it_did(result),
            "Lines: 95 % interval over prompts; of random neurons, lowest to highest draw.",
        ],
    )
    made = theme.layout(
        "Ablation of neurons: what it does to the answer", under, plot_height=300, legend_rows=1
    )
    figure.update_layout(made, scattermode="overlay")
    return figure.update_xaxes(type="category", range=[-0.6, 1.6] if "mean_control_effect" in data else None)


def what_it_did(result: Result) -> str:
    """Log-probability and accuracy before and after, with random neurons, and p-values."""
    data, parts = result.data, []
    for measure, name in (("log_probability", "log-probability of the answer"), ("correct", "accuracy")):
        one = data.sel(measure=measure)
        before, after = (number(float(one[run].mean())) for run in ("base", "ablated"))
        text = f"{name} {before} → {after}"
        if "control" in data:
            text += (
                f" (random neurons {number(float(one['control'].mean()))}, p {number(float(one['p_value']))})"
            )
        parts.append(text)
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def describe(result: Result) -> dict[str, str]:
    """The figure in words."""
    n = result.data.attrs["n_neurons"]
    return {"ablation": f"Points with intervals, {n} neurons silenced. {what_it_did(result)}"}


def control_statement(result: Result) -> str:
    """What the neurons were compared with, and what came out."""
    if "control" not in result.data:
        return "No control was run: as many random neurons may do the same."
    return f"Control: {result.data.attrs['control']}. {what_it_did(result)}"
