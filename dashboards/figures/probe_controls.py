"""Figures of what a probe is worth.

`auc`         (of `probe_trust`) AUC by layer of the probe and of every control; controls read off a model are dashed
              lines, those of the text alone dotted levels
`difference`  (of `probe_trust`) at the probe's best layer: AUC of the probe minus that of each control, with intervals
`p`           (of `probe_permutation`) AUC by layer with the 95 % quantile under permutation; filled where the p-value
              corrected over all cells is at most 0.05
`baselines`   (of `probe_text_baselines`) AUC of what needs no model
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from dashboards.figures import bars, grid, theme
from dashboards.figures.lines import HOVER, LABEL, Curve, curve, hover_title, level
from dashboards.figures.points import Series, add_points
from dashboards.figures.probe_finish import finished
from dashboards.figures.theme import f32, number, safe

if TYPE_CHECKING:
    from workbench.results import Result

TEXT_ONLY = ("majority", "bag of words", "character n-grams", "length", "token count")
"""Controls that do not depend on the layer."""
SIGNIFICANT = 0.05


def figures(result: Result) -> dict[str, go.Figure]:
    """`auc` and `difference`, `p`, or `baselines`, as the kind is."""
    if result.kind == "probe_permutation":
        return {"p": permutation_figure(result)}
    if result.kind == "probe_text_baselines":
        return {"baselines": baselines_figure(result)}
    return {"auc": auc_figure(result), "difference": difference_figure(result)}


def _first(data: Any) -> str:
    return str(data["auc"].dims[0])


def _x(data: Any) -> np.ndarray:
    first = _first(data)
    return f32(data[first].values if first == "layer" else np.arange(data.sizes[first]))


def _axis(figure: go.Figure, data: Any) -> go.Figure:
    first = _first(data)
    if first == "layer":
        return figure.update_xaxes(title={"text": first}, **hover_title(first))
    sites = [safe(str(site)) for site in data[first].values]
    return figure.update_xaxes(
        title={"text": first},
        tickmode="array",
        tickvals=list(range(len(sites))),
        ticktext=sites,
        tickangle=-45,
    )


def _subtitle(result: Result, *more: str) -> str:
    attrs = result.data.attrs
    examples = f"{attrs['n']} examples ({attrs['n_positive']} {attrs['positive']!r})"
    folds = f"{attrs['folds']} folds"
    if attrs.get("grouped") and attrs.get("n_groups"):
        folds += f" that keep {attrs['n_groups']} groups together"
    elif attrs.get("grouped"):
        folds += " that keep groups together"
    return theme.subtitle(
        model=theme.model_name(result),
        n=examples,
        units=folds,
        control=str(attrs.get("control", "not run")),
        more=[note for note in more if note],
    )


def controls_of(data: Any) -> tuple[list[str], list[str]]:
    """Controls that differ from layer to layer, and those that do not."""
    names = [str(name) for name in data["control"].values if str(name) != "probe"]
    return [n for n in names if n not in TEXT_ONLY], [n for n in names if n in TEXT_ONLY]


def auc_figure(result: Result) -> go.Figure:
    """The probe's curve with its interval above the curves and levels of its controls."""
    data = result.data
    by_layer, constant = controls_of(data)
    figure, x = go.Figure(), _x(data)
    for i, name in enumerate(["probe", *by_layer]):
        at = data.sel(control=name)
        label = f"{data.attrs['probe'].replace('_', ' ')} probe" if name == "probe" else name
        low, high = at["auc_low"].values, at["auc_high"].values
        drawn = curve(Curve(x, at["auc"].values, label, i, low, high, control=name != "probe"))
        figure.add_traces(drawn if name == "probe" else drawn[-1:])  # five areas would hide each other
    marks = ("circle-open", "square-open", "diamond-open", "triangle-up-open", "cross-open")
    for name, mark in zip(constant, marks, strict=False):
        y = data["auc"].sel(control=name).values
        line = {"dash": "dot", "width": 1, "color": "#808080"}
        hover = f"{safe(name)} %{{y:.3f}}<extra></extra>"
        marker = {"symbol": mark, "size": 6, "color": "#808080"}
        figure.add_trace(
            go.Scatter(
                x=x, y=f32(y), name=safe(name), mode="lines+markers", line=line, marker=marker, hovertemplate=hover,
                legendrank=1002,
            )
        )  # fmt: skip
    shapes, notes = level(0.5, "chance")
    meaning = (
        "Shaded: 95 % interval of the probe over groups (of the controls: hover, table). Dashed: controls read off a "
        "model. Dotted grey: the text alone."
    )
    made = theme.layout(
        f"What the probe is worth, by {_first(data)}: AUC beside its controls",
        _subtitle(result, meaning),
        plot_height=380,
        legend_rows=-(-(len(by_layer) + len(constant) + 1) // 3),
        right=LABEL,
        bottom=60 if _first(data) == "layer" else 150,
    )
    figure.update_layout(made, shapes=shapes, annotations=notes, **HOVER)
    lowest = float(np.nanmin(data["auc_low"].values))
    figure.update_yaxes(title={"text": "AUC"}, range=[max(0.0, min(0.4, lowest - 0.03)), 1.02])
    return finished(_axis(figure, data))


def difference_figure(result: Result) -> go.Figure:
    """AUC of the probe minus that of each control at the best layer."""
    data = result.data
    first = _first(data)
    best = result.summary["best"]
    at = data.isel({first: data[first].values.tolist().index(best[first])})
    names = [*controls_of(data)[0], *controls_of(data)[1]]
    some = [at.sel(control=name) for name in reversed(names)]
    values, low, high = (
        np.array([float(one[key]) for one in some])
        for key in ("difference", "difference_low", "difference_high")
    )
    labels = [safe(name) for name in reversed(names)]
    bar = go.Bar(
        x=f32(values),
        y=labels,
        orientation="h",
        name="difference",
        marker={"color": theme.rgba(theme.SERIES[0], 0.35), "line": {"color": theme.SERIES[0], "width": 1}},
        error_x={**bars.error_bars(values, low, high), "color": theme.SERIES[0]},
        customdata=f32(np.array([float(one["auc"]) for one in some])[:, None]),
        hovertemplate="<b>%{y}</b><br>probe minus control %{x:.3f}<br>AUC of the control %{customdata[0]:.3f}"
        "<extra></extra>",
    )
    where = f"{first} {best[first]}: AUC {number(best['auc'])}, nested {number(best['nested_auc'])}"
    figure = go.Figure(bar)
    made = theme.layout(
        "How far the probe is above each control (AUC)",
        _subtitle(result, f"At the best {where}. Lines: 95 % intervals, paired by group."),
        plot_height=max(140, 30 * len(names)),
    )
    figure.update_layout(made, bargap=0.35)
    figure.update_xaxes(
        title={"text": "AUC of the probe minus AUC of the control"}, zeroline=True, zerolinewidth=1
    )
    return figure.update_yaxes(type="category", ticks="", showgrid=False)


def permutation_figure(result: Result) -> go.Figure:
    """AUC and what permuted labels give; cells that stay significant after correction are filled."""
    data = _one_position(result.data)
    figure, x = go.Figure(), _x(data)
    for i, probe in enumerate(str(name) for name in data["probe"].values):
        at = data.sel(probe=probe)
        name, colour = safe(probe.replace("_", " ")), theme.SERIES[i % len(theme.SERIES)]
        ps = f32(np.stack([at[key].values for key in ("p", "p_max", "p_holm", "p_bh")], axis=-1))
        good = at["p_max"].values <= SIGNIFICANT
        symbol = theme.SYMBOLS[i % len(theme.SYMBOLS)]
        hover = (
            f"{name}: AUC %{{y:.3f}}, p %{{customdata[0]:.3g}}, corrected: maximum %{{customdata[1]:.3g}}, "
            "Holm %{customdata[2]:.3g}, BH %{customdata[3]:.3g}<extra></extra>"
        )
        marker = {"color": colour, "size": 8, "symbol": [symbol if g else f"{symbol}-open" for g in good]}
        figure.add_trace(
            go.Scatter(
                x=x, y=f32(at["auc"].values), name=name, mode="lines+markers", line={"color": colour, "width": 2},
                marker=marker, customdata=ps, hovertemplate=hover,
            )
        )  # fmt: skip
        control = Curve(
            x, at["null_high"].values, f"{probe.replace('_', ' ')}, 95 % of permutations", i, control=True
        )
        figure.add_traces(curve(control))
    shapes, notes = level(float(np.quantile(data["null_max"].values, 0.95)), "95 % of maxima")
    attrs = data.attrs
    meaning = (
        f"Filled: p ≤ {SIGNIFICANT} after correction over {result.summary['n_cells']} cells by their maximum "
        f"(Westfall and Young). Least p: {number(attrs['smallest_p'])}. {attrs['how']}."
    )
    some = ""
    if "position" in result.data.dims:
        some = f"Shown: position {int(data['position'])} of {result.data.sizes['position']}, that of the best AUC."
    made = theme.layout(
        f"Probes by {_first(data)}: AUC against permuted labels",
        _subtitle(result, meaning, some),
        plot_height=340,
        legend_rows=data.sizes["probe"],
        right=LABEL + 30,
        bottom=60 if _first(data) == "layer" else 150,
    )
    figure.update_layout(made, shapes=shapes, annotations=notes, **HOVER)
    figure.update_yaxes(title={"text": "AUC"})
    return finished(_axis(figure, data))


def _one_position(data: Any) -> Any:
    if "position" not in data.dims:
        return data
    best = data["auc"].max([_first(data), "probe"])
    return data.isel(position=int(np.nanargmax(best.values)))


def baselines_figure(result: Result) -> go.Figure:
    """AUC and accuracy of each baseline with its interval."""
    data = result.data
    names = [safe(str(name)) for name in data["baseline"].values]
    figure = go.Figure()
    for i, name in enumerate(("auc", "accuracy")):
        values, low, high = (data[key].values for key in (name, f"{name}_low", f"{name}_high"))
        label = "AUC" if name == "auc" else name
        add_points(figure, Series(label, names, values, low, high, colour=i, form=".3f"))
    shapes, notes = level(0.5, "chance")
    made = theme.layout(
        "What can be known from the text alone",
        _subtitle(result, "Lines: 95 % intervals."),
        plot_height=300,
        legend_rows=1,
        right=LABEL,
        bottom=grid.bottom(names),
    )
    figure.update_layout(made, shapes=shapes, annotations=notes)
    figure.update_xaxes(type="category", tickangle=-grid.angle(names))
    return figure.update_yaxes(title={"text": "AUC, accuracy"}, range=[-0.02, 1.02])


def describe(result: Result) -> dict[str, str]:
    """The figures in words."""
    data = result.data
    if result.kind == "probe_text_baselines":
        said = [f"{b} {number(float(data['auc'].sel(baseline=b)))}" for b in data["baseline"].values.tolist()]
        return {
            "baselines": f"Points: AUC from the text alone, n = {data.attrs['n']} texts: {'; '.join(said)}."
        }
    first = _first(data)
    if result.kind == "probe_permutation":
        return {"p": _permutation_words(result)}
    best, margins, strongest = (result.summary[key] for key in ("best", "margins", "strongest"))
    least = min(margins, key=lambda name: margins[name][0])
    value, low, high = (number(v) for v in margins[least])
    where = f"{first} {best[first]}"
    auc, auc_low, auc_high, nested = (number(best[k]) for k in ("auc", "auc_low", "auc_high", "nested_auc"))
    return {
        "auc": f"Lines over {data.sizes[first]} {first}s: AUC of the probe, highest at {where} with {auc} (interval "
        f"{auc_low} to {auc_high}, nested {nested}), beside {len(margins)} controls; the strongest there is "
        f"{strongest['name']!r} with {number(strongest['auc'])}.",
        "difference": f"Bars: AUC of the probe minus that of {len(margins)} controls at {where}. The nearest is "
        f"{least!r}: {value} (interval {low} to {high}).",
    }


def _permutation_words(result: Result) -> str:
    data, best = result.data, result.summary["best"]
    first = _first(data)
    found = f"{result.summary['n_significant']} of {result.summary['n_cells']} cells"
    return (
        f"Lines over {data.sizes[first]} {first}s: AUC of each probe and the 95 % quantile under permuted labels. The "
        f"best cell is {first} {best[first]} ({best['probe']}) with AUC {number(best['auc'])}, p {best['p']:.3g}, "
        f"corrected {best['p_max']:.3g}; {found} stay below {SIGNIFICANT} after correction."
    )


def control_statement(result: Result) -> str:
    """What the probe was compared with, and what came out."""
    data = result.data
    if result.kind == "probe_text_baselines":
        return f"These are controls: the best, {result.summary['best']!r}, has AUC {number(result.summary['auc'])}."
    if result.kind == "probe_permutation":
        high = number(float(np.quantile(data["null_max"].values, 0.95)))
        return f"Control: {data.attrs['control']}. 95 % of the maxima over all cells are at most {high}."
    margins = result.summary["margins"]
    said = "; ".join(
        f"{n} {number(v)} [{number(low)}, {number(high)}]" for n, (v, low, high) in margins.items()
    )
    return f"Control: {data.attrs['control']}. AUC of the probe minus that of each control at its best layer: {said}."
