"""Figures of edge attribution.

`top`      the strongest edges as bars with their intervals and control
`effect`   sender × receiver: scores of the senders and receivers with the strongest edges
`control`  the same beside the wrong-source control, on one colour range
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from dashboards.figures import bars, patch, signed, theme
from dashboards.figures.signed import Grid
from dashboards.figures.theme import number

if TYPE_CHECKING:
    from workbench.results import Result

NODES = 40
"""So many senders, and so many receivers, are drawn."""
UNIT = "estimated effect (0 none, 1 full)"


def figures(result: Result) -> dict[str, go.Figure]:
    """`effect`, `control` where it was run, and `top`."""
    cells, note = grid_of(result)
    metric = result.data.attrs["metric"]
    integrate = int(result.data.attrs.get("integrate", 0))
    how = f"mean gradient over {integrate} inputs (EAP-IG)" if integrate else "gradient of the base run (EAP)"
    fact = f"First-order estimate of {result.data.attrs['direction']} one edge: {how}."

    def under(notes):
        return patch.subtitle(result, result.data, *notes, note, fact)

    found = {"effect": signed.effect_figure(cells, f"Edge attribution: estimated effect on {metric}", under)}
    if cells.control is not None:
        found["control"] = signed.control_figure(cells, "Edge attribution beside its control", under)
    whole = grid_of(result, every=True)[0]
    under_bars = lambda notes: patch.subtitle(result, result.data, *notes, fact)  # noqa: E731
    found["top"] = bars.top_figure(whole, "Edge attribution: the strongest edges", under_bars, what="edges")
    return found


def grid_of(result: Result, *, every: bool = False) -> tuple[Grid, str]:
    """Sender × receiver, in the order of the forward pass, and a sentence that says how many are drawn."""
    data = result.data
    mean = data["mean_effect"].transpose("sender", "receiver").values
    strength = np.abs(np.nan_to_num(mean))
    n = mean.size if every else NODES
    senders, receivers = (np.sort(np.argsort(-strength.max(axis), kind="stable")[:n]) for axis in (1, 0))
    pick = lambda values: values[np.ix_(senders, receivers)]  # noqa: E731
    # The pairs' control is a mean over pairs that all have the same edges, so NaN stays NaN.
    numbers, lines = patch.details(data)
    if "score" in data:
        numbers = {"effect": numbers.pop("effect"), "score": data["score"].mean("pair").values, **numbers}
        lines = (lines[0], "change of the metric {score}", *lines[1:])
    control = patch.mean_control(data)
    cells = Grid(
        pick(mean),
        control=None if control is None else pick(control),
        rows=[theme.safe(str(name)) for name in data["sender"].values[senders]],
        columns=[theme.safe(str(name)) for name in data["receiver"].values[receivers]],
        row="sender",
        column="receiver",
        x_title="receiver, in the order of the forward pass",
        y_title="sender",
        unit=UNIT,
        numbers={name: pick(values) for name, values in numbers.items()},
        lines=lines,
        form=".3g",
        missing="no edge, the receiver reads before the sender writes",
        cell="{y} → {x}",
        short="{y} → {x}",
    )
    return cells, _counts(mean.shape, cells.values.shape)


def _counts(whole: tuple[int, ...], drawn: tuple[int, ...]) -> str:
    if whole == drawn:
        return f"All {whole[0]} senders and {whole[1]} receivers."
    return (
        f"{drawn[0]} of {whole[0]} senders and {drawn[1]} of {whole[1]} receivers are drawn, those with the strongest "
        "edges; the result holds all."
    )


def _n_edges(data: Any) -> int:
    return int(np.isfinite(data["mean_effect"].values).sum())


def describe(result: Result) -> dict[str, str]:
    """The figures in words."""
    data = result.data
    cells, note = grid_of(result)
    n = int(data.attrs["n_pairs"])
    what = f"estimated {data.attrs['direction']} effect of each edge on {data.attrs['metric']}, n = {n}"
    said = {"effect": f"{signed.words(cells, what)} {note} {number(_n_edges(data))} edges."}
    if cells.control is not None:
        said["control"] = signed.control_words(cells, str(data.attrs["control"]))
    return said | {"top": bars.top_words(grid_of(result, every=True)[0], "edges")}


def control_statement(result: Result) -> str:
    """What the edges were compared with, and what came out."""
    return signed.statement(grid_of(result, every=True)[0], str(result.data.attrs.get("control", "")))
