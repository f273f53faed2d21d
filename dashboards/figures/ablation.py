"""Figures of an ablation.

Of heads, for each kind of site (`z`, `q`, …):
`effect`    layer × head: mean change of the metric, the strongest cell outlined
`control`   the same beside the random push of the same norm, on one colour range
`top`       the strongest heads as bars with their intervals and control

Of whole sites:
`effect`    a line over layers for each kind of site, with interval and control; of more than three kinds a heat map
            layer × kind of site instead, and `control`
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from dashboards.figures import bars, grid, signed, theme
from dashboards.figures.lines import HOVER, LABEL, Curve, curve, hover_title, level
from dashboards.figures.signed import Grid
from dashboards.figures.theme import f32, number

if TYPE_CHECKING:
    from workbench.results import Result

LINES = 3
"""Up to so many kinds of site are lines."""
UNIT = "change of the metric"
PREFIXES = ("attn.hook_", "mlp.hook_", "hook_")


def figures(result: Result) -> dict[str, go.Figure]:
    """See the module's text."""
    data = result.data
    title = f"{title_of(result)}: change of {data.attrs['metric']}"
    under = lambda notes: subtitle(result, *notes)  # noqa: E731
    if are_lines(data):
        return {"effect": _lines(result, title)}
    found: dict[str, go.Figure] = {}
    for end, part, cells in grids(result):
        which = f", {part}" if end else ""
        found[f"effect{end}"] = signed.effect_figure(cells, title + which, under)
        if cells.control is not None:
            found[f"control{end}"] = signed.control_figure(
                cells, f"{title_of(result)} beside its control{which}", under
            )
        what = "heads" if "head" in data.dims else "sites"
        found[f"top{end}"] = bars.top_figure(
            cells, f"{title_of(result)}: the strongest {what}{which}", under, what=what
        )
    return found


def are_lines(data: Any) -> bool:
    """Whether whole sites are lines over layers: few kinds of them, each in its layers."""
    return "head" not in data.dims and len(parts_of(data)) <= LINES


def title_of(result: Result) -> str:
    """`Mean ablation of heads (z)`, `Zero ablation of mlp_out`."""
    data = result.data
    how = str(data.attrs["how"]).replace("_", " ")
    parts = ", ".join(map(pretty, parts_of(data)))
    of = f"heads ({parts})" if "head" in data.dims else parts if len(parts_of(data)) == 1 else "whole sites"
    return f"{how[0].upper()}{how[1:]} ablation of {of}"


def pretty(part: str) -> str:
    """`attn.hook_z` -> `z`, `hook_mlp_out` -> `mlp_out`."""
    for prefix in PREFIXES:
        part = part.removeprefix(prefix)
    return part


def part_of(site: str) -> str:
    """`blocks.3.attn.hook_z` -> `attn.hook_z`."""
    return site.split(".", 2)[-1] if site.startswith("blocks.") else site


def parts_of(data: Any) -> list[str]:
    """Kinds of site, in order."""
    return list(dict.fromkeys(part_of(str(site)) for site in data["site"].values))


def subtitle(result: Result, *more: str) -> str:
    """Model, prompts, base metric, control, and what was put in."""
    data, n = result.data, int(result.data.attrs["n_prompts"])
    base = number(float(data["base_metric"].mean()))
    reference = str(data.attrs.get("reference", "none"))
    put_in = f"Positions: {data.attrs['positions']}."
    if reference != "none":
        put_in += f" Reference: {reference}."
    return theme.subtitle(
        model=theme.model_name(result),
        n=f"{n} prompt{'s' if n > 1 else ''}",
        units=f"{'mean ' if n > 1 else ''}metric of the base run {base}",
        control=str(data.attrs.get("control", "not run")),
        more=[*more, put_in],
    )


def details(data: Any) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Numbers of a cell and the lines that say them; of everything that compares edited runs with the base run."""
    several = data.sizes["prompt"] > 1
    numbers, lines = {}, []
    for prefix, called in (("", "change"), ("control_", "control")):
        if f"mean_{prefix}effect" not in data:
            continue
        name = "effect" if not prefix else "control"
        numbers[name] = data[f"mean_{prefix}effect"].values
        line = f"{'mean ' if several else ''}{called} {{{name}}}"
        if several:
            low, high = ("low", "high") if not prefix else ("control_low", "control_high")
            numbers |= {low: data[f"{prefix}effect_low"].values, high: data[f"{prefix}effect_high"].values}
            line += f", 95 % interval {{{low}}} to {{{high}}}"
        lines.append(line)
    numbers["metric"] = data["metric"].mean("prompt").values
    lines.append("metric of the edited run {metric}")
    return numbers, tuple(lines)


def grids(result: Result) -> list[tuple[str, str, Grid]]:
    """Of heads one for each kind of site, else one of all: (ending of its names, kind, grid)."""
    data, names = result.data, parts_of(result.data)
    sites = np.array([part_of(str(site)) for site in data["site"].values])
    if "head" not in data.dims:
        return [("", "", _of_sites(data, sites, names))]
    found = []
    for part in names:
        some = data.isel(site=np.flatnonzero(sites == part))
        order = np.argsort(some["layer"].values, kind="stable")
        some = some.isel(site=order)
        numbers, lines = details(some)
        columns = [str(int(head)) for head in some["head"].values]
        rows = grid.layer_labels(some["layer"].values)
        cells = _grid(some, rows, columns, numbers, lines, column="head", x_title="head")
        found.append((f"_{pretty(part)}" if len(names) > 1 else "", pretty(part), cells))
    return found


def _grid(data: Any, rows, columns, numbers, lines, **more: Any) -> Grid:
    control = data["mean_control_effect"].values if "mean_control_effect" in data else None
    return Grid(
        data["mean_effect"].values,
        rows,
        columns,
        control=control,
        unit=UNIT,
        numbers=numbers,
        lines=lines,
        form=".3g",
        **more,
    )


def _of_sites(data: Any, sites: np.ndarray, names: list[str]) -> Grid:
    """Layer × kind of site, NaN where a layer has no such site."""
    layers = sorted({int(layer) for layer in data["layer"].values})
    rows = [layers.index(int(layer)) for layer in data["layer"].values]
    columns = [names.index(site) for site in sites]

    def square(values: np.ndarray) -> np.ndarray:
        found = np.full((len(layers), len(names)), np.nan)
        found[rows, columns] = values
        return found

    numbers, lines = details(data)
    return Grid(
        square(data["mean_effect"].values),
        grid.layer_labels(layers),
        [theme.safe(pretty(name)) for name in names],
        control=square(data["mean_control_effect"].values) if "mean_control_effect" in data else None,
        column="site",
        x_title="site",
        unit=UNIT,
        numbers={name: square(values) for name, values in numbers.items()},
        lines=lines,
        form=".3g",
        short="{y} {x}",
    )


def _lines(result: Result, title: str) -> go.Figure:
    data = result.data
    sites = np.array([part_of(str(site)) for site in data["site"].values])
    figure = go.Figure()
    for i, part in enumerate(parts_of(data)):
        at = data.isel(site=np.flatnonzero(sites == part)).sortby("layer")
        figure.add_traces(effect_curves(at, at["layer"].values, pretty(part), i))
    shapes, notes = level(0.0, "no change")
    made = theme.layout(
        title, subtitle(result, lines_note(data)), plot_height=340, legend_rows=1, right=LABEL
    )
    figure.update_layout(made, shapes=shapes, annotations=notes, **HOVER)
    figure.update_xaxes(title={"text": "layer"}, **hover_title("layer"))
    return figure.update_yaxes(title={"text": UNIT})


def effect_curves(
    at: Any, x: np.ndarray, name: str, colour: int, said: list[str] | None = None
) -> list[go.Scatter]:
    """Mean effect and control of a result that compares edited runs with the base run, each with its interval."""
    found = []
    for prefix, called in (("control_", f"{name}, control"), ("", name)):
        if f"mean_{prefix}effect" in at:
            ends = (at[f"{prefix}effect_{end}"].values for end in ("low", "high"))
            one = Curve(
                f32(x),
                at[f"mean_{prefix}effect"].values,
                called,
                colour,
                *ends,
                control=bool(prefix),
                said=said,
            )
            found += curve(one)
    return found


def lines_note(data: Any) -> str:
    """What is solid, dashed and shaded."""
    control = " Dashed: control." if "mean_control_effect" in data else ""
    return f"Solid: effect.{control}" + (" Shaded: 95 % intervals." if data.sizes["prompt"] > 1 else "")


def describe(result: Result) -> dict[str, str]:
    """The figures in words."""
    data, said = result.data, {}
    what = f"{title_of(result)}, change of {data.attrs['metric']}, n = {int(data.attrs['n_prompts'])}"
    if are_lines(data):
        control = "" if "mean_control_effect" in data else " No control was run."
        return {"effect": f"Lines over layers: {what}. {_lines_words(data)}{control}"}
    for end, part, cells in grids(result):
        said[f"effect{end}"] = signed.words(cells, f"{what}{f', {part}' if end else ''}")
        if cells.control is None:
            said[f"effect{end}"] += " No control was run."
        else:
            said[f"control{end}"] = signed.control_words(cells, str(data.attrs["control"]))
        said[f"top{end}"] = f"{what}. {bars.top_words(cells, 'heads' if 'head' in data.dims else 'sites')}"
    return said


def _lines_words(data: Any) -> str:
    sites = np.array([part_of(str(site)) for site in data["site"].values])
    parts = []
    for part in parts_of(data):
        at = data.isel(site=np.flatnonzero(sites == part))
        parts.append(strongest_words(at, pretty(part), "layer", at["layer"].values))
    return " ".join(parts)


def strongest_words(at: Any, name: str, where: str, labels: Any) -> str:
    """`z: strongest at layer 9, −1.2 (95 % interval −1.5 to −0.9), control there 0.02.`"""
    mean = at["mean_effect"].values
    i = int(np.nanargmax(np.abs(mean)))
    text = f"{name}: strongest at {where} {labels[i]}, {number(float(mean[i]))}"
    low, high = (float(at[end].values[i]) for end in ("effect_low", "effect_high"))
    if np.isfinite([low, high]).all():
        text += f" (95 % interval {number(low)} to {number(high)})"
    if "mean_control_effect" in at:
        text += f", control there {number(float(at['mean_control_effect'].values[i]))}"
    return text + "."


def control_statement(result: Result) -> str:
    """What the ablation was compared with, and what came out."""
    control = str(result.data.attrs.get("control", ""))
    each = grids(result)
    texts = [
        f"{part}: {signed.statement(cells, control)}" if end else signed.statement(cells, control)
        for end, part, cells in each
    ]
    return " ".join(texts)
