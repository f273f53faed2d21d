"""Figures of a causal mediation analysis, for each component (`mlp_out`, `attn_out`).

`effect_C`   layer × position: mean indirect effect in nats (log form), the strongest cell outlined
`control_C`  the same beside the control: prompts with other operands and the same result, or another pair's

All of them have one colour range, so that components can be compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from dashboards.figures import grid, signed, theme
from dashboards.figures.points import say
from dashboards.figures.signed import Grid
from dashboards.figures.theme import number

if TYPE_CHECKING:
    from workbench.results import Result

UNIT = "indirect effect (nats)"


def figures(result: Result) -> dict[str, go.Figure]:
    """`effect_C` of each component, then `control_C` where a control was run."""
    effects, controls = {}, {}
    for component, cells, note in grids(result):
        under = lambda notes, note=note: _subtitle(result, *notes, note)  # noqa: E731
        title = f"Causal mediation: indirect effect of {component} by layer and position"
        effects[f"effect_{component}"] = signed.effect_figure(cells, title, under)
        if cells.control is not None:
            title = f"Indirect effect of {component} beside its control"
            controls[f"control_{component}"] = signed.control_figure(cells, title, under)
    return effects | controls


def grids(result: Result) -> list[tuple[str, Grid, str]]:
    """Component, its grid, and a sentence that says so where not all positions are drawn."""
    data = result.data
    means = [data[name].values for name in ("mean_effect", "mean_control_effect") if name in data]
    most = max(signed.largest(mean) for mean in means)
    columns, cut = grid.last_columns(data.sizes["layer"], data.sizes["position"])
    found = []
    for component in data["component"].values:
        some = data.sel(component=component).isel(position=columns)
        found.append((str(component), _grid(some, str(component), most), cut))
    return found


def _grid(data: Any, component: str, most: float) -> Grid:
    several = data.sizes["pair"] > 1
    two = lambda name: data[name].transpose("layer", "position").values  # noqa: E731
    numbers, lines = {"effect": two("mean_effect")}, [f"{component}: indirect effect {{effect}} nats"]
    if several:
        numbers |= {"low": two("effect_low"), "high": two("effect_high")}
        lines[0] += ", 95 % interval {low} to {high}"
    if "mean_control_effect" in data:
        numbers["control"] = two("mean_control_effect")
        lines.append("control {control} nats")
        if several:
            numbers |= {"control_low": two("control_effect_low"), "control_high": two("control_effect_high")}
            lines[-1] += ", 95 % interval {control_low} to {control_high}"
    if several and "p_value" in data:
        numbers["p"] = two("p_value")
        lines.append("p {p} (effect against control, over pairs)")
    for name, called in (("relative_effect", "relative form"), ("change", "|P(r) − P*(r)|")):
        if f"mean_{name}" in data:
            numbers[name] = two(f"mean_{name}")
            lines.append(f"{called} {{{name}}}")
    tokens = zip(data["position"].values, data["token"].values, data["other_token"].values, strict=True)
    return Grid(
        numbers["effect"],
        grid.layer_labels(data["layer"].values),
        [grid.token_label(int(p), str(a), str(b)) for p, a, b in tokens],
        control=numbers.get("control"),
        column="position",
        x_title="position and token, prompt→other prompt",
        unit=UNIT,
        numbers=numbers,
        lines=tuple(lines),
        form=".3g",
        at_least=most,
        short="{y}, {x}",
    )


def _subtitle(result: Result, *more: str) -> str:
    data, n = result.data, int(result.data.attrs["n_pairs"])
    total = number(float(data["total_effect"].mean()))
    right = ", ".join(
        f"{called} right in {int(data[name].sum())}"
        for name, called in (("correct", "prompt"), ("other_correct", "other prompt"))
        if name in data
    )
    return theme.subtitle(
        model=theme.model_name(result),
        n=f"{n} pair{'s' if n > 1 else ''}" + (f" ({right})" if right else ""),
        units=f"total effect {total} nats",
        control=str(data.attrs.get("control", "not run")),
        more=[*(note for note in more if note), "Token labels are those of the first pair." if n > 1 else ""],
    )


def describe(result: Result) -> dict[str, str]:
    """The figures in words."""
    data, effects, controls = result.data, {}, {}
    n, total = int(data.attrs["n_pairs"]), number(float(data["total_effect"].mean()))
    for component, cells, _ in grids(result):
        what = f"mean indirect effect of {component} in nats, total effect {total}, n = {n}"
        effects[f"effect_{component}"] = signed.words(cells, what)
        if cells.control is None:
            effects[f"effect_{component}"] += " No control was run."
        else:
            controls[f"control_{component}"] = signed.control_words(cells, str(data.attrs["control"]))
    return effects | controls


def control_statement(result: Result) -> str:
    """What the mediation was compared with, and what came out."""
    data = result.data
    if "mean_control_effect" not in data:
        return "No control was run: the size of these effects cannot be judged."
    parts = []
    for component, cells, _ in grids(result):
        at = cells.strongest()
        if at is not None and cells.control is not None:
            low, high = (
                float(cells.numbers[end][at]) if end in cells.numbers else np.nan for end in ("low", "high")
            )
            value = say(float(cells.values[at]), low, high)
            most = number(signed.largest(cells.control))
            parts.append(f"{component}: strongest {value} at {cells.name(*at)}, largest |control| {most}.")
    return f"Control: {data.attrs['control']}. {' '.join(parts)}"
