"""Figure of an erasure (`probe_erasure`).

`accuracy`  what a probe reads from held-out rows without erasing, after LEACE, after the mean difference is projected
            out, and after as many random directions are; the majority dotted. ● eraser and probe from the same rows,
            ■ from different halves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from dashboards.figures import theme
from dashboards.figures.lines import LABEL, level
from dashboards.figures.points import Series, add_points, say
from dashboards.figures.probe_common import pretty, subtitle
from dashboards.figures.theme import number, safe

if TYPE_CHECKING:
    from workbench.results import Result

SAID = {"none": "nothing erased", "leace": "LEACE", "random_direction": "random directions (control)"}
ROWS = {"same": "eraser and probe: same rows", "other": "eraser and probe: other halves"}


def figures(result: Result) -> dict[str, go.Figure]:
    """`accuracy`."""
    return {"accuracy": accuracy_figure(result)}


def _called(eraser: str) -> str:
    return SAID.get(eraser, pretty(eraser))


def accuracy_figure(result: Result) -> go.Figure:
    """Accuracy after each eraser."""
    data = result.data
    names = [_called(str(e)) for e in data["eraser"].values]
    figure = go.Figure(layout={"template": theme.TEMPLATES["light"]})
    for i, rows in enumerate(str(r) for r in data["rows"].values):
        at = data.sel(rows=rows)
        said = [
            f"drop {number(float(one['drop']))}, log-loss {number(float(one['log_loss']))} nats, "
            f"{number(float(one['rank']))} dimensions erased"
            for one in (at.sel(eraser=e) for e in data["eraser"].values)
        ]
        add_points(
            figure,
            Series(
                ROWS.get(rows, rows), [safe(n) for n in names], at["accuracy"].values, at["accuracy_low"].values,
                at["accuracy_high"].values, i, said,
            ),
        )  # fmt: skip
    shapes, notes = level(float(data.attrs["majority_accuracy"]), "majority")
    what = f"Erased: {data.attrs['erased']} at {data.attrs['site']}." if "site" in data.attrs else ""
    made = theme.layout(
        "What a probe reads after erasing",
        subtitle(result, what, f"Whiskers: 95 % intervals over {data.attrs['n_groups']} groups."),
        plot_height=320,
        legend_rows=1,
        right=LABEL,
    )
    figure.update_layout(made, shapes=shapes, annotations=notes)
    lowest = float(np.nanmin(data["accuracy_low"].values))
    bottom = max(0.0, min(lowest, data.attrs["majority_accuracy"]) - 0.08)
    return figure.update_yaxes(title={"text": "accuracy out of fold"}, range=[bottom, 1.02])


def describe(result: Result) -> dict[str, str]:
    """The figure in words."""
    data = result.data
    parts = []
    for rows in (str(r) for r in data["rows"].values):
        each = [
            f"{_called(str(e))} {_accuracy(data.sel(rows=rows, eraser=e))}" for e in data["eraser"].values
        ]
        parts.append(f"{ROWS.get(rows, rows)}: {', '.join(each)}")
    majority = number(float(data.attrs["majority_accuracy"]))
    return {
        "accuracy": f"Points of the held-out accuracy after each eraser, {data.attrs['n']} examples. "
        f"{'. '.join(parts)}. "
        f"The majority class gives {majority}."
    }


def control_statement(result: Result) -> str:
    """What the erasure was compared with, and what came out."""
    at = result.data.sel(rows="other")
    leace, random = (_accuracy(at.sel(eraser=e)) for e in ("leace", "random_direction"))
    return (
        f"Control: {result.data.attrs['control']}. On rows that the eraser did not see: after LEACE {leace}, after "
        f"random directions {random}, without erasing {_accuracy(at.sel(eraser='none'))}."
    )


def _accuracy(at: Any) -> str:
    return say(*(float(at[f"accuracy{end}"]) for end in ("", "_low", "_high")))
