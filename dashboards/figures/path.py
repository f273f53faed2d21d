"""Figures of path patching.

`effect`, `control`  layer × component (heads, and the MLP), as in a sweep
`top`                the strongest senders as bars with their intervals and control

Where sets of senders were given, `top` is all there is, a bar for each set.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from dashboards.figures import bars, grid, patch, signed, theme
from dashboards.figures.patch import Look
from dashboards.figures.signed import Grid

if TYPE_CHECKING:
    from workbench.results import Result


def figures(result: Result) -> dict[str, go.Figure]:
    """`effect` and `control` of single senders, and `top`."""
    data, look = result.data, look_of(result)
    under = lambda notes: patch.subtitle(result, data, *notes, *look.facts)  # noqa: E731
    found = {} if "set" in data.dims else patch.made(result, data, look)
    what = "sets of senders" if "set" in data.dims else "senders"
    title = f"Path patching into {receivers_of(result)}: the strongest {what}"
    found["top"] = bars.top_figure(grid_of(result), title, under, what=what)
    return found


def look_of(result: Result) -> Look:
    """Titles."""
    attrs = result.data.attrs
    into = receivers_of(result)
    frozen = (
        "other heads held, MLPs recomputed" if attrs.get("freeze") == "heads" else "other heads and MLPs held"
    )
    title = f"Path patching into {into}: effect on {attrs['metric']}"
    every = receivers_of(result, most=20)
    fact = f"{attrs['direction'].capitalize()}, directly from each sender to {every}: {frozen}."
    return Look(title, "Path patching beside its control", facts=(fact,))


def receivers_of(result: Result, most: int = 3) -> str:
    """`logits`, or heads and sites in short: `20.6 q, 21.1 q`; `5 receivers` where there are more than `most`."""
    text = str(result.data.attrs.get("receivers", "logits"))
    short = re.sub(r"\('blocks\.(\d+)\.(?:attn\.)?hook_(\w+)', (\d+)\)", r"\1.\3 \2", text)
    short = re.sub(r"blocks\.(\d+|\*)\.(?:attn\.)?hook_(\w+)", r"\1 \2", short)
    names = [name.strip(" '()[]") for name in short.split(",")]
    return ", ".join(names) if len(names) <= most else f"{len(names)} receivers"


def grid_of(result: Result) -> Grid:
    """Layer × component, or one column of sets."""
    data, look = result.data, look_of(result)
    if "set" not in data.dims:
        return patch.of(data, look)
    column = lambda values: values[:, None]  # noqa: E731
    numbers, lines = patch.details(data)
    control = patch.mean_control(data)
    return Grid(
        column(data["mean_effect"].values),
        control=None if control is None else column(control),
        rows=grid.unique([theme.safe(str(name)) for name in data["set_name"].values]),
        columns=[""],
        row="senders",
        unit=look.unit,
        numbers={name: column(values) for name, values in numbers.items()},
        lines=lines,
        cell="{y}",
        short="{y}",
    )


def describe(result: Result) -> dict[str, str]:
    """The figures in words."""
    data = result.data
    what = "sets of senders" if "set" in data.dims else "senders"
    said = {} if "set" in data.dims else patch.words(data, look_of(result), _measured(result))
    return said | {"top": f"{_measured(result)}. {bars.top_words(grid_of(result), what)}"}


def _measured(result: Result) -> str:
    data = result.data
    n = int(data.attrs["n_pairs"])
    return (
        f"{data.attrs['direction'].capitalize()} effect on {data.attrs['metric']} of the paths from each sender to "
        f"{receivers_of(result)}, n = {n}"
    )


def control_statement(result: Result) -> str:
    """What the paths were compared with, and what came out."""
    return signed.statement(grid_of(result), str(result.data.attrs.get("control", "")))
