"""Figures of back-patching.

`pairs`   source × target layer: share of prompts answered right after each single pair. Left of it the prompt's own
          stream, put back (above the diagonal) or forward (below it, a null); right of it another prompt's (a null).
`oracle`  share of prompts for which at least one pair works, beside the same maximum of both nulls, by group
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from dashboards.figures import grid, points, shares, theme
from dashboards.figures.points import Series, add_points
from dashboards.figures.shares import Panel
from dashboards.figures.theme import number

if TYPE_CHECKING:
    from workbench.results import Result

RATES = (
    ("oracle", "back-patched", "difference"),
    ("control", "null: other prompt's stream", "difference"),
    ("forward", "null: patched forward", "forward_difference"),
)


def figures(result: Result) -> dict[str, go.Figure]:
    """`pairs` and `oracle`."""
    return {"pairs": pairs_figure(result), "oracle": oracle_figure(result)}


def group_of(data: Any) -> str:
    """The group that `pairs` shows: prompts first answered wrong, or all where there are none."""
    return "first wrong" if int(data["n"].sel(group="first wrong")) else "all"


def _square(data: Any, name: str) -> np.ndarray:
    """[source, target] rates of the group; NaN where not run."""
    if name not in data:
        return np.full((data.sizes["source_layer"], data.sizes["target_layer"]), np.nan)
    return data[name].sel(group=group_of(data)).transpose("source_layer", "target_layer").values


def best_pair(data: Any) -> tuple[int, int] | None:
    """Row and column of the pair that works most often."""
    return shares.best(_square(data, "pair_rate"))


def pairs_figure(result: Result) -> go.Figure:
    """Rates of single pairs."""
    data = result.data
    group, n = group_of(data), int(data["n"].sel(group=group_of(data)))
    layers = grid.layer_labels(data["source_layer"].values)
    back, forward, other = (_square(data, f"{kind}pair_rate") for kind in ("", "forward_", "control_"))
    own, at = np.where(np.isfinite(back), back, forward), best_pair(data)
    most = float(np.nanmax(np.stack([own, other]), initial=0)) or 1.0
    log_p, other_log_p = (_mean_log_p(data, kind) for kind in (("", "forward_"), ("control_",)))
    hover = (
        "<b>source layer %{y} → target layer %{x}</b><br>share answered right %{z:.3f}"
        f" of {n} prompts<br>other prompt's stream %{{customdata[0]:.3f}}<br>"
        "mean ln p(answer) %{customdata[1]:.3g} nats"
    )
    panels = [
        Panel(
            "own stream: back (above the diagonal), forward (below)", own, hover,
            numbers=np.stack([other, log_p], -1), outlined=at,
        )
    ]  # fmt: skip
    if "control_pair_rate" in data:
        hover = hover.replace("<br>other prompt's stream %{customdata[0]:.3f}", "")
        panels.append(
            Panel("null: other prompt's stream", other, hover, numbers=np.stack([other, other_log_p], -1))
        )
    notes = []
    if at is not None:
        names = f"source {layers[at[0]]} → target {layers[at[1]]}: {number(float(back[at]))}"
        null = f" (other prompt's stream: {number(float(other[at]))})" if "control_pair_rate" in data else ""
        notes.append(f"Outlined: the best pair, {names}{null}.")
    notes.append(f"Prompts: {group}, n = {n}. Grey: no such pair.")
    notes.append("The best of many pairs is high by chance (see the oracle rate).")
    return shares.panels_figure(
        panels,
        layers,
        grid.layer_labels(data["target_layer"].values),
        title="Back-patching: prompts answered right, by source and target layer",
        under=_subtitle(result, " ".join(notes)),
        titles=("target layer", "source layer"),
        unit="share of prompts",
        most=most,
    )


def _mean_log_p(data: Any, kinds: tuple[str, ...]) -> np.ndarray:
    """[source, target] mean log-probability over the group's prompts."""
    right = data["first_right"].values.astype(bool)
    some = ~right if group_of(data) == "first wrong" else np.ones_like(right)
    found = np.full((data.sizes["source_layer"], data.sizes["target_layer"]), np.nan)
    for kind in kinds:
        if f"{kind}log_probability" in data:
            mean = data[f"{kind}log_probability"].values[some].mean(0)
            found = np.where(np.isfinite(found), found, mean)
    return found


def _subtitle(result: Result, *more: str) -> str:
    data, n = result.data, int(result.data.attrs["n_prompts"])
    right = number(float(np.mean(data["first_right"].values)))
    return theme.subtitle(
        model=theme.model_name(result),
        n=f"{n} prompts, {right} of them right without a patch" if n > 1 else "1 prompt",
        units=f"right: {data.attrs.get('success', 'the answer')}",
        control=str(data.attrs.get("control", "not run")),
        more=more,
    )


def oracle_figure(result: Result) -> go.Figure:
    """The best of all pairs, for each prompt, beside the same maximum of the nulls."""
    data, figure = result.data, go.Figure()
    groups = [str(group) for group in data["group"].values if int(data["n"].sel(group=group))]
    groups.sort(key=lambda group: group != group_of(data))
    labels = [f"{group}<br>n = {int(data['n'].sel(group=group))}" for group in groups]
    rates = [(name, called) for name, called, _ in RATES if f"{name}_rate" in data]
    for i, (name, called) in enumerate(rates):
        values, low, high = (
            data[f"{name}_rate{end}"].sel(group=groups).values for end in ("", "_low", "_high")
        )
        add_points(figure, Series(called, labels, values, low, high, colour=i))
    pairs = data.attrs.get("n_pairs", "all")
    note = f"Each mark is a maximum over {pairs} pairs, the nulls' too. Lines: 95 % intervals over prompts."
    made = theme.layout(
        "Back-patching: prompts for which at least one pair of layers works",
        _subtitle(result, note, _difference(data, group_of(data))),
        plot_height=320,
        legend_rows=1,
        bottom=70,
    )
    figure.update_layout(made)
    figure.update_xaxes(type="category", title=None)
    return points.share_axis(figure, "share of prompts")


def _difference(data: Any, group: str) -> str:
    parts = []
    for name, called, difference in RATES[1:]:
        if difference in data and f"{name}_rate" in data:
            one = data.sel(group=group)
            ends = (float(one[f"{difference}{end}"]) for end in ("", "_low", "_high"))
            parts.append(f"minus {called.removeprefix('null: ')} {points.say(*ends)}")
    return f"{group[0].upper()}{group[1:]}: back-patched {', '.join(parts)}." if parts else ""


def describe(result: Result) -> dict[str, str]:
    """The figures in words."""
    data = result.data
    group, at, back = group_of(data), best_pair(data), _square(data, "pair_rate")
    layers = [int(layer) for layer in data["source_layer"].values]
    n = int(data["n"].sel(group=group))
    shape = f"Heatmap of {len(layers)} source by {len(layers)} target layers"
    text = f"{shape}: share of {n} prompts ({group}) answered right."
    if at is None:
        text += " No pair of layers works."
    else:
        text += f" Best pair: source {layers[at[0]]} to target {layers[at[1]]}, {number(float(back[at]))}"
        control = _square(data, "control_pair_rate")[at]
        text += f"; with another prompt's stream {number(float(control))}." if np.isfinite(control) else "."
    return {
        "pairs": text,
        "oracle": f"Points with intervals: share of prompts for which at least one pair works. {_rates(data)}",
    }


def _rates(data: Any) -> str:
    parts = []
    for group in data["group"].values:
        one = data.sel(group=group)
        if int(one["n"]):
            said = [
                f"{called} {points.say(*(float(one[f'{name}_rate{end}']) for end in ('', '_low', '_high')))}"
                for name, called, _ in RATES
                if f"{name}_rate" in one
            ]
            parts.append(f"{str(group)[0].upper()}{str(group)[1:]} (n = {int(one['n'])}): {', '.join(said)}.")
    return " ".join(parts)


def control_statement(result: Result) -> str:
    """What back-patching was compared with, and what came out."""
    if "control_rate" not in result.data:
        return f"No control was run: a maximum over many pairs cannot be judged alone. {_rates(result.data)}"
    return f"Control: {result.data.attrs['control']}, with the same maximum. {_rates(result.data)}"
