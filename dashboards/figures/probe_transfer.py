"""Figures of a transfer: trained on one set, tested on another.

`auc`         matrix of AUC with n in each cell, one panel per probe; colour diverges around chance (0.5); the diagonal,
              which is cross-validated, is outlined
`directions`  matrix of the cosines between the directions of the sets
`undefined`   (of `probe_undefined`) by layer: where rows fall that are neither, beside the control
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboards.figures import grid, theme
from dashboards.figures.lines import HOVER, LABEL, Curve, curve, hover_title, level
from dashboards.figures.theme import f32, number, safe

if TYPE_CHECKING:
    from workbench.results import Result

WRITTEN = 12
"""Up to so many sets the cells carry their numbers; with more they are in the hover."""


def figures(result: Result) -> dict[str, go.Figure]:
    """`auc` and `directions`; `undefined` of rows that are neither."""
    if result.kind == "probe_undefined":
        return {"undefined": undefined_figure(result)}
    return {"auc": auc_figure(result), "directions": directions_figure(result)}


def _pretty(name: str) -> str:
    return safe(name.replace("_", " "))


def _probes(data: Any) -> list[str]:
    return [str(name) for name in data["probe"].values]


def _names(data: Any) -> list[str]:
    return grid.unique([safe(grid.shorten(str(name), 28)) for name in data["train"].values])


def _subtitle(result: Result, *more: str) -> str:
    attrs = result.data.attrs
    return theme.subtitle(
        model=theme.model_name(result),
        n=f"{attrs['n']} rows in {attrs['n_groups']} groups" if "n_groups" in attrs else f"{attrs['n']} rows",
        units=f"{attrs['folds']} folds that keep groups together over all sets",
        control=str(attrs.get("control", "not run")),
        more=[note for note in (f"Read at {attrs['site']}." if attrs.get("site") else "", *more) if note],
    )


def auc_figure(result: Result) -> go.Figure:
    """AUC of every pair of sets."""
    lines = (
        "AUC %{z:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}], accuracy %{customdata[2]:.3f}",
        "permuted labels: AUC %{customdata[3]:.3f}, highest %{customdata[4]:.3f}",
        "below the probe trained there by %{customdata[5]:.3f} [%{customdata[6]:.3f}, %{customdata[7]:.3f}]",
        "n = %{customdata[8]:.0f} tested, %{customdata[9]:.0f} trained",
    )
    names = (
        "auc_low",
        "auc_high",
        "accuracy",
        "control_auc",
        "control_auc_high",
        "drop",
        "drop_low",
        "drop_high",
    )
    note = "Outlined: within a set, cross-validated. Below 0.5 the order is the other way round."
    return _matrices(
        result,
        "auc",
        (*names, "n", "n_train"),
        "<br>".join(lines),
        "Probes carried over: AUC by set of training and of test",
        "AUC (0.5 = chance)",
        (0.0, 0.5, 1.0),
        note,
        write=lambda at: f"{at['auc']:.2f}<br>n {at['n']:.0f}",
    )


def directions_figure(result: Result) -> go.Figure:
    """Cosines between directions."""
    note = "Directions fitted to all rows of a set. Two random ones have a cosine of about ±1 / √d."
    return _matrices(
        result,
        "cosine",
        (),
        "cosine %{z:.3f}",
        "Cosine between the directions of the sets",
        "cosine",
        (-1.0, 0.0, 1.0),
        note,
        write=lambda at: f"{at['cosine']:.2f}",
    )


def _matrices(
    result: Result,
    name: str,
    extra: tuple[str, ...],
    hover: str,
    title: str,
    bar: str,
    limits: tuple[float, float, float],
    note: str,
    *,
    write: Any,
) -> go.Figure:
    """One annotated heat map per probe; the first training set is the top row."""
    data, probes, names = result.data, _probes(result.data), _names(result.data)
    k = len(names)
    figure = make_subplots(
        rows=1,
        cols=len(probes),
        shared_yaxes=True,
        horizontal_spacing=0.04,
        subplot_titles=[_pretty(p) for p in probes],
    )
    boxes: list[dict[str, Any]] = []
    for i, probe in enumerate(probes):
        at = data.sel(probe=probe).transpose("train", "test", ...)
        z = at[name].values[::-1]
        customdata = f32(np.stack([at[v].values[::-1] for v in extra], axis=-1)) if extra else None
        cells = go.Heatmap(
            name=f"{safe(bar)}, {_pretty(probe)}",
            x=names,
            y=names[::-1],
            z=f32(z),
            coloraxis="coloraxis",
            customdata=customdata,
            hovertemplate=f"<b>train %{{y}}, test %{{x}}</b><br>{hover}<extra></extra>",
            xgap=1,
            ygap=1,
        )
        if k <= WRITTEN:
            text = [[write(at.isel(train=row, test=c)) for c in range(k)] for row in reversed(range(k))]
            cells.update(text=text, texttemplate="%{text}", textfont={"size": theme.SIZE["cell"]})
        figure.add_trace(cells, row=1, col=i + 1)
        axis = {} if i == 0 else {"xref": f"x{i + 1}", "yref": f"y{i + 1}"}
        boxes += [box for d in range(k) for box in grid.outline(d, d, k - 1 - d, k - 1 - d, **axis)]
    low, middle, high = limits
    height = int(np.clip(k * (44 if k <= WRITTEN else 20), 160, 900))
    made = theme.layout(
        title,
        _subtitle(result, note),
        plot_height=height,
        bottom=60 + int(4.5 * max(map(len, names))) * (_angle(names, len(probes)) > 0),
        legend_rows=1,
    )
    scale = {"colorscale": theme.DIVERGING, "cmin": low, "cmid": middle, "cmax": high}
    figure.update_layout(
        {
            **made,
            "showlegend": False,
            "coloraxis": {**scale, "colorbar": {"title": {"text": bar}}},
            "shapes": boxes,
        }
    )
    figure.update_annotations(font={"size": theme.SIZE["axis"]})
    common = {"type": "category", "showgrid": False, "range": [-0.5, k - 0.5]}
    figure.update_xaxes({**common, "title": {"text": "test set"}, "tickangle": -_angle(names, len(probes))})
    figure.update_yaxes(common)
    return figure.update_yaxes(title={"text": "training set"}, col=1)


def _angle(names: list[str], n_panels: int) -> int:
    """Degrees by which the names of the columns are turned, so that they fit side by side in all panels."""
    return 45 if max(map(len, names)) * len(names) * n_panels > 80 else grid.angle(names)


def undefined_figure(result: Result) -> go.Figure:
    """Where the other rows fall, by layer: above the negative class, below the positive one, called positive."""
    data = result.data
    first = str(data["auc"].dims[0])
    at = data.isel(probe=0)
    x = at[first].values if first == "layer" else np.arange(data.sizes[first])
    attrs = data.attrs
    negative, other, positive = (str(attrs[key]) for key in ("negative", "other", "positive"))
    said = {
        "auc": f"{positive} above {negative}",
        "auc_above": f"{other} above {negative}",
        "auc_below": f"{positive} above {other}",
        "share_positive": f"share of {other} called {positive}",
    }
    figure = go.Figure()
    for i, (name, label) in enumerate(said.items()):
        ends = [at[f"{name}_{end}"].values if f"{name}_{end}" in at else None for end in ("low", "high")]
        figure.add_traces(curve(Curve(x, at[name].values, label, i, low=ends[0], high=ends[1])))
        if f"control_{name}" in at:
            control = Curve(x, at[f"control_{name}"].values, f"{label}, control", i, control=True)
            figure.add_traces(curve(control))
    shapes, notes = level(0.5, "chance")
    under = theme.subtitle(
        model=theme.model_name(result),
        n=f"{attrs['n']} {negative} or {positive}, {attrs['n_other']} {other}",
        units=f"{attrs['folds']} folds, {_probes(data)[0].replace('_', ' ')} probe",
        control=str(attrs["control"]),
        more=["Pairs of rows in the order named; shaded: 95 % intervals over groups."],
    )
    made = theme.layout(
        f"Where rows fall that are {other!r} to a probe of {positive!r}",
        under,
        plot_height=340,
        legend_rows=4,
        right=LABEL,
    )
    figure.update_layout(made, shapes=shapes, annotations=notes, **HOVER)
    figure.update_xaxes(title={"text": first}, **hover_title(first))
    return figure.update_yaxes(title={"text": "share of pairs, or of rows"}, range=[-0.02, 1.02])


def describe(result: Result) -> dict[str, str]:
    """The figures in words."""
    data = result.data
    if result.kind == "probe_undefined":
        return {"undefined": _undefined_words(result)}
    words = {"auc": [], "directions": []}
    names = [str(name) for name in data["train"].values]
    off = ~np.eye(len(names), dtype=bool)
    for probe in _probes(data):
        at = data.sel(probe=probe).transpose("train", "test", ...)
        auc, cosine = at["auc"].values, at["cosine"].values
        i, j = np.unravel_index(int(np.nanargmin(np.where(off, auc, np.inf))), auc.shape)
        a, b = np.unravel_index(int(np.nanargmin(np.where(off, cosine, np.inf))), cosine.shape)
        cell = at.isel(train=int(i), test=int(j))
        words["auc"].append(
            f"{probe.replace('_', ' ')}: mean AUC {number(float(np.diag(auc).mean()))} within a set, "
            f"{number(float(auc[off].mean()))} across; lowest {number(float(auc[i, j]))} "
            f"(interval {number(float(cell['auc_low']))} to {number(float(cell['auc_high']))}, n = {int(cell['n'])}) "
            f"trained on {names[i]!r}, tested on {names[j]!r}."
        )
        words["directions"].append(
            f"{probe.replace('_', ' ')}: cosines between different sets have mean {number(float(cosine[off].mean()))}; "
            f"the lowest, {number(float(cosine[a, b]))}, is that of {names[a]!r} and {names[b]!r}."
        )
    begins = f"Heat map of {len(names)} training sets by {len(names)} test sets: "
    return {name: begins + " ".join(said) for name, said in words.items()}


def _undefined_words(result: Result) -> str:
    data, said = result.data, result.summary
    first = str(data["auc"].dims[0])
    attrs = data.attrs
    return (
        f"Lines over {data.sizes[first]} {first}s. At {first} {said[first]}, where {attrs['positive']!r} is told from "
        f"{attrs['negative']!r} best (AUC {number(said['auc'])}), rows that are {attrs['other']!r} score above "
        f"{attrs['negative']!r} ones in {number(said['auc_above'])} of the pairs and below {attrs['positive']!r} ones "
        f"in {number(said['auc_below'])}; {number(said['share_positive'])} of the {attrs['n_other']} are called "
        f"{attrs['positive']!r}."
    )


def control_statement(result: Result) -> str:
    """What the scores were compared with, and what came out."""
    data = result.data
    if result.kind == "probe_undefined":
        share = number(float(data["control_share_positive"].mean()))
        return f"Control: {data.attrs['control']}. Share called positive then, mean over all cells: {share}."
    mean, high = (
        number(float(f(data[n]))) for f, n in ((np.mean, "control_auc"), (np.max, "control_auc_high"))
    )
    return f"Control: {data.attrs['control']}. Its AUC: mean {mean}, highest of all cells {high}."
