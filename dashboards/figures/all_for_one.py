"""Figures of an all-for-one subgraph, and of the search for the smallest.

`faithfulness`  share of the answered prompts that stay right, beside the controls (no peeking; unconditional means)
`grid`          of a search: wait × peek, the smallest subgraph that keeps enough outlined
`smallest`      of a search: what it keeps of the prompts that did not choose it, beside the controls
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

RUNS = {
    "all_for_one": "subgraph",
    "no_peek": "control: no peeking",
    "unconditional": "control: unconditional mean",
}


def figures(result: Result) -> dict[str, go.Figure]:
    """`faithfulness`; of a search `grid`, and `smallest` where a subgraph keeps enough."""
    if result.kind == "all_for_one":
        return {"faithfulness": faithfulness_figure(result)}
    found = {"grid": grid_figure(result)}
    if result.summary.get("smallest"):
        found["smallest"] = smallest_figure(result)
    return found


def _subtitle(result: Result, *more: str) -> str:
    data = result.data
    n = int(data.attrs["n_prompts"])
    base = float(np.mean(data["base_correct"].values))
    return theme.subtitle(
        model=theme.model_name(result),
        n=f"{data.attrs['n_answered']} of {n} prompts that the whole model answers ({number(base)})",
        units="share of them that stay right",
        control="no peeking, unconditional means" if result.kind == "all_for_one" else "peek = 0",
        more=[*more, f"Means {data.attrs['means']}; keys seen while peeking: {data.attrs['allowed']}."],
    )


def _points_figure(
    result: Result,
    title: str,
    values: dict[str, float],
    ends: dict[str, tuple[float, float]],
    said: list[str],
    *notes: str,
) -> go.Figure:
    figure = go.Figure()
    names = [theme.safe(RUNS[run]) for run in values]
    low, high = np.array([ends.get(run, (np.nan, np.nan)) for run in values]).T
    add_points(figure, Series("faithfulness", names, list(values.values()), low, high, said=said or None))
    figure.update_layout(theme.layout(title, _subtitle(result, *notes), plot_height=300, bottom=60))
    figure.update_xaxes(type="category")
    return points.share_axis(figure, "faithfulness")


def faithfulness_figure(result: Result) -> go.Figure:
    """One subgraph beside its controls."""
    data = result.data
    runs = [str(run) for run in data["run"].values]
    at = {run: data.sel(run=run) for run in runs}
    said = [f"mean ln p(answer) {number(float(at[run]['log_probability'].mean()))} nats" for run in runs]
    return _points_figure(
        result,
        f"All-for-one subgraph: wait {data.attrs['wait']}, peek {data.attrs['peek']}",
        {run: float(at[run]["faithfulness"]) for run in runs},
        {run: (float(at[run]["faithfulness_low"]), float(at[run]["faithfulness_high"])) for run in runs},
        said,
        "Lines: 95 % intervals over prompts.",
    )


def smallest_figure(result: Result) -> go.Figure:
    """The smallest subgraph on the half of the prompts that did not choose it."""
    found, keep = result.summary["smallest"], number(float(result.data.attrs["keep"]))
    names = {"all_for_one": "faithfulness", "no_peek": "no_peek", "unconditional": "unconditional"}
    return _points_figure(
        result,
        f"The smallest subgraph that keeps {keep}: wait {found['wait']}, peek {found['peek']}",
        {run: float(found[name]) for run, name in names.items()},
        {"all_for_one": tuple(found["interval"])},
        [],
        f"On the {found['n']} answered prompts that did not choose it. Line: 95 % interval.",
    )


def grid_figure(result: Result) -> go.Figure:
    """Faithfulness by wait and peek."""
    data = result.data
    values = data["faithfulness"].transpose("wait", "peek").values
    low, high = (data[f"faithfulness_{end}"].transpose("wait", "peek").values for end in ("low", "high"))
    waits, peeks = (grid.layer_labels(data[name].values) for name in ("wait", "peek"))
    keep, written = float(data.attrs["keep"]), grid.fits(data.sizes["peek"])
    none = data["faithfulness"].sel(peek=0).values[:, None]  # a search always runs it
    hover = (
        "<b>wait %{y}, peek %{x}</b><br>faithfulness %{z:.3f}, 95 % interval %{customdata[0]:.3f} to "
        "%{customdata[1]:.3f}<br>control (same wait, peek 0) %{customdata[2]:.3f}"
    )
    numbers = np.stack([low, high, np.broadcast_to(none, values.shape)], -1)
    smallest = result.summary.get("smallest")
    outlined, found = None, f"No cell keeps {number(keep)} of the prompts."
    if smallest:
        outlined = (
            list(data["wait"].values).index(smallest["wait"]),
            list(data["peek"].values).index(smallest["peek"]),
        )
        chosen = f"the smallest that keeps {number(keep)} (chosen on half of the prompts)"
        found = f"Outlined: {chosen}: {_smallest(result)}."
    mark = f"{'Bold' if written else 'Dots'}: {number(keep)} or more."
    return shares.panels_figure(
        [Panel("faithfulness", values, hover, numbers=numbers, outlined=outlined)],
        waits,
        peeks,
        title="All-for-one subgraphs: faithfulness by blocks to wait and to peek",
        under=_subtitle(result, found, f"{mark} Grey: more blocks than the model has."),
        titles=(
            "peek: blocks in which the last token looks at others (0: control)",
            "wait: blocks before that",
        ),
        unit="faithfulness",
        cell_texts=_texts(values, keep, written),
    )


def _texts(values: np.ndarray, keep: float, written: bool) -> np.ndarray:
    found = np.full(values.shape, "", dtype=object)
    for cell in np.argwhere(np.isfinite(values)):
        value = values[tuple(cell)]
        number_of = f"<b>{value:.2f}</b>" if value >= keep else f"{value:.2f}"
        found[tuple(cell)] = number_of if written else "•" * bool(value >= keep)
    return found


def _smallest(result: Result) -> str:
    found = result.summary["smallest"]
    of = points.say(found["faithfulness"], *found["interval"])
    return (
        f"wait {found['wait']}, peek {found['peek']}, on the other half {of}, no peeking {number(found['no_peek'])}, "
        f"unconditional {number(found['unconditional'])}"
    )


def describe(result: Result) -> dict[str, str]:
    """The figures in words."""
    if result.kind == "all_for_one":
        return {"faithfulness": f"Points with intervals: {_runs(result.data)}"}
    data = result.data
    values = data["faithfulness"].values
    keep = number(float(data.attrs["keep"]))
    n, enough = int(np.isfinite(values).sum()), int((np.nan_to_num(values) >= data.attrs["keep"]).sum())
    ends = f"{number(float(np.nanmin(values)))} to {number(float(np.nanmax(values)))}"
    text = (
        f"Heatmap of {data.sizes['wait']} waits by {data.sizes['peek']} peeks: faithfulness on "
        f"{data.attrs['n_answered']} answered prompts, from {ends}. {enough} of {n} subgraphs keep {keep} or more. "
    )
    if not result.summary.get("smallest"):
        return {"grid": f"{text}No subgraph was chosen."}
    smallest = f"The smallest: {_smallest(result)}."
    return {
        "grid": text + smallest,
        "smallest": f"Points: the smallest subgraph beside its controls. {smallest}",
    }


def _runs(data: Any) -> str:
    parts = []
    for run in data["run"].values:
        one = data.sel(run=run)
        ends = (float(one[f"faithfulness{end}"]) for end in ("", "_low", "_high"))
        parts.append(f"{RUNS[str(run)]} {points.say(*ends)}")
    sizes = f"wait {data.attrs['wait']}, peek {data.attrs['peek']}"
    n = data.attrs["n_answered"]
    return f"share of {n} answered prompts that stay right with {sizes}: {'; '.join(parts)}."


def control_statement(result: Result) -> str:
    """What the subgraph was compared with, and what came out."""
    if result.kind == "all_for_one":
        text = _runs(result.data)
        return text[0].upper() + text[1:]
    if not result.summary.get("smallest"):
        return f"Control: peek = 0 in the grid. No subgraph keeps {number(float(result.data.attrs['keep']))}."
    return f"Controls of the smallest subgraph, on prompts that did not choose it: {_smallest(result)}."
