"""Figure of probes on few latents beside the dense probe (`probe_sparse`).

`auc`  AUC against the number of latents with its interval; permuted labels dashed; the dense probe's AUC a level with
       its interval as a band, since that is what few latents must come near
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from dashboards.figures import theme
from dashboards.figures.lines import HOVER, LABEL, Curve, curve, level
from dashboards.figures.points import say
from dashboards.figures.probe_common import subtitle
from dashboards.figures.theme import f32, number

if TYPE_CHECKING:
    from workbench.results import Result


def figures(result: Result) -> dict[str, go.Figure]:
    """`auc`."""
    return {"auc": auc_figure(result)}


def auc_figure(result: Result) -> go.Figure:
    """AUC by number of latents, and the dense probe."""
    data = result.data
    k = f32(data["k"].values)
    figure = go.Figure(layout={"template": theme.TEMPLATES["light"]})
    few = Curve(k, data["auc"].values, "k latents", 0, data["auc_low"].values, data["auc_high"].values)
    dense = Curve(
        k, np.full(len(k), float(data["dense_auc"])), f"dense: {data.attrs['d_dense']} dimensions", 1,
        np.full(len(k), float(data["dense_auc_low"])), np.full(len(k), float(data["dense_auc_high"])),
    )  # fmt: skip
    figure.add_traces([*curve(dense), *curve(few)])
    if "control_auc" in data:
        figure.add_traces(curve(Curve(k, data["control_auc"].values, "k latents, control", 0, control=True)))
    shapes, notes = level(0.5, "chance")
    enough = result.summary.get("enough")
    said = f"From {enough} latents on" if enough is not None else "With no number of latents"
    meaning = f"Shaded: 95 % intervals. {said} the interval of dense − sparse holds 0."
    made = theme.layout(
        "Probes on few latents beside the dense probe",
        subtitle(result, f"{data.attrs['n_latents']:,} latents, chosen by {data.attrs['selection'].replace('_', ' ')} "
                 "in each fold.", meaning),
        plot_height=320,
        legend_rows=1,
        right=LABEL,
    )  # fmt: skip
    figure.update_layout(made, shapes=shapes, annotations=notes, **HOVER)
    ticks = {"tickvals": k, "ticktext": [number(float(v)) for v in k]}
    figure.update_xaxes(
        type="log", title={"text": "latents (k)"}, unifiedhovertitle={"text": "%{x} latents"}, **ticks
    )
    lowest = float(np.nanmin([data["auc_low"].values.min(), data["control_auc"].values.min()]))
    return figure.update_yaxes(
        title={"text": "AUC out of fold"}, range=[max(0.0, min(0.4, lowest - 0.03)), 1.02]
    )


def describe(result: Result) -> dict[str, str]:
    """The figure in words."""
    data = result.data
    first, last = (data.isel(k=i) for i in (0, -1))
    parts = [f"with {int(at['k'])} {_auc(at, '')}" for at in (first, last)]
    return {
        "auc": f"Lines of the AUC over {data.sizes['k']} numbers of latents, {data.attrs['n']} examples: "
        f"{', '.join(parts)}; dense probe {_auc(data, 'dense_')}. Control: {_control(data)}."
    }


def control_statement(result: Result) -> str:
    """What the probes were compared with, and what came out."""
    data = result.data
    last = data.isel(k=-1)
    return (
        f"Control: {data.attrs['control']}: {_control(data)}. Dense probe {_auc(data, 'dense_')}, {int(last['k'])} "
        f"latents {_auc(last, '')}."
    )


def _auc(at: Any, prefix: str) -> str:
    return say(*(float(at[f"{prefix}auc{end}"]) for end in ("", "_low", "_high")))


def _control(data: Any) -> str:
    values = data["control_auc"].values
    return f"AUC on permuted labels {number(float(values.min()))} to {number(float(values.max()))}"
