"""Figures of attribution patching.

`effect`, `control`, `positions`  of the estimates, as in a sweep
`top`      the strongest heads as bars with intervals and control; where cells are heads
`recheck`  estimate against exact effect of every cell that was patched exactly, with the rank correlation

Of several kinds each has its own, with the kind in the name: `effect_z`, `control_z`, …; `recheck` has all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from dashboards.figures import bars, patch, signed, theme
from dashboards.figures.patch import Look
from dashboards.figures.theme import f32, number

if TYPE_CHECKING:
    from workbench.results import Result

SHARED = ("clean_metric", "corrupt_metric")
POINTS = 4_000
"""So many points `recheck` draws of each kind at most."""


def figures(result: Result) -> dict[str, go.Figure]:
    """Figures of each kind, and `recheck` where cells were patched exactly."""
    found: dict[str, go.Figure] = {}
    kinds = kinds_of(result)
    for kind, data in kinds.items():
        end = f"_{kind}" if len(kinds) > 1 else ""
        look = look_of(data, kind)
        found |= {f"{name}{end}": drawn for name, drawn in patch.made(result, data, look).items()}
        if patch.column_of(data) in ("head", "kv_head"):
            found[f"top{end}"] = _top(result, data, look, kind)
    if any("exact_effect" in data for data in kinds.values()):
        found["recheck"] = recheck_figure(result)
    return found


def kinds_of(result: Result) -> dict[str, Any]:
    """Kind -> data with the names of a sweep."""
    data = result.data
    if "mean_effect" in data:
        return {str(data.attrs["kind"]): data}
    kinds = [
        str(name).removeprefix("mean_effect_")
        for name in data.data_vars
        if str(name).startswith("mean_effect_")
    ]
    found = {}
    for kind in kinds:
        names = {
            name: str(name).removesuffix(f"_{kind}")
            for name in data.data_vars
            if _is_of(str(name), kind, kinds)
        }
        part = data[[*names, *(name for name in SHARED if name in data)]]
        dims = {dim for name in names for dim in part[name].dims}
        unused = [name for name in part.coords if not set(part[name].dims) <= dims]
        found[kind] = part.drop_vars(unused).rename(names)
    return found


def _is_of(name: str, kind: str, kinds: list[str]) -> bool:
    """Whether a variable is of this kind, and not of one whose name ends alike."""
    ends = [k for k in kinds if name.endswith(f"_{k}")]
    return name not in SHARED and bool(ends) and max(ends, key=len) == kind


def look_of(data: Any, kind: str) -> Look:
    """Titles of one kind."""
    attrs = data.attrs
    steps = int(attrs.get("integrate", 0))
    how = (
        f"mean gradient over {steps} inputs between base and source" if steps else "gradient of the base run"
    )
    title = f"Attribution patching of {kind}: estimated effect on {attrs['metric']}"
    facts = (f"First-order estimate of {attrs['direction']} patches: {how}.",)
    return Look(
        title,
        f"Estimated effect beside its control: {kind}",
        "estimated effect (0 none, 1 full)",
        facts=facts,
    )


def _top(result: Result, data: Any, look: Look, kind: str) -> go.Figure:
    under = lambda notes: patch.subtitle(result, data, *notes, *look.facts)  # noqa: E731
    return bars.top_figure(
        patch.of(data, look), f"Attribution patching of {kind}: the strongest heads", under, what="heads"
    )


def checked(data: Any) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, estimates and exact effects (means over pairs) of the cells patched exactly."""
    exact = data["exact_effect"].mean("pair").values
    mean, cells = data["mean_effect"].values, np.argwhere(np.isfinite(exact))
    axes = [str(dim) for dim in data["mean_effect"].dims]
    labels = {axis: [str(value) for value in data[axis].values] for axis in axes}
    if "position" in axes:
        labels["position"] = patch.position_labels(data)
    names = [
        ", ".join(f"{axis} {labels[axis][i]}" for axis, i in zip(axes, cell, strict=True)) for cell in cells
    ]
    at = tuple(cells.T)
    return [name.replace("kv_head", "key-value head") for name in names], mean[at], exact[at]


def agreement_of(result: Result, kind: str) -> dict[str, Any]:
    """What the summary says of how well a kind's estimates agree."""
    summary = result.summary
    return dict(summary.get("recheck") or (summary.get(kind) or {}).get("recheck") or {})


def recheck_figure(result: Result) -> go.Figure:
    """Estimate against exact effect, a point a cell."""
    figure = go.Figure()
    kinds = {kind: data for kind, data in kinds_of(result).items() if "exact_effect" in data}
    notes, ends = ["Dotted: estimate and patch agree."], [0.0]
    for i, (kind, data) in enumerate(kinds.items()):
        names, estimate, exact = checked(data)
        order = np.sort(np.argsort(-np.abs(estimate), kind="stable")[:POINTS])
        if len(order) < len(names):
            notes.append(f"{kind}: the {len(order)} strongest of {len(names)} rechecked cells are drawn.")
        ends += [*estimate[order], *exact[order]]
        colour, symbol = theme.SERIES[i % len(theme.SERIES)], theme.SYMBOLS[i % len(theme.SYMBOLS)]
        figure.add_scatter(
            x=f32(estimate[order]),
            y=f32(exact[order]),
            text=[names[j] for j in order],
            name=kind,
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 8, "opacity": 0.75},
            hovertemplate=f"<b>{kind}: %{{text}}</b><br>estimated %{{x:.3f}}, exact %{{y:.3f}}<extra></extra>",
        )
        notes.append(agreement_sentence(result, kind))
    margin = 0.05 * (max(ends) - min(ends)) or 1.0
    span = [min(ends) - margin, max(ends) + margin]
    n = int(result.data.attrs["n_pairs"])
    made = theme.layout(
        "Attribution patching: estimates against patches",
        theme.subtitle(
            model=theme.model_name(result),
            n=f"{n} pair{'s' if n > 1 else ''}",
            units="effects: 0 none, 1 full",
            control="p of permuted cells",
            more=notes,
        ),
        plot_height=420,
        legend_rows=1 if len(kinds) > 1 else 0,
    )
    diagonal = {
        "type": "line",
        "x0": span[0],
        "x1": span[1],
        "y0": span[0],
        "y1": span[1],
        "line": {"dash": "dot"},
    }
    figure.update_layout(made, shapes=[diagonal], hovermode="closest")
    figure.update_xaxes(title={"text": "estimated effect"}, range=span, zeroline=True, zerolinewidth=1)
    return figure.update_yaxes(
        title={"text": "exact effect of the patch"}, range=span, zeroline=True, zerolinewidth=1
    )


def agreement_sentence(result: Result, kind: str) -> str:
    """`z: rank correlation 0.93 [0.9, 0.95], p 0.001; …`."""
    found = agreement_of(result, kind)
    parts = []
    for name, called in (("spearman", "rank correlation"), ("pearson", "linear correlation")):
        r = found.get(name)
        interval = found.get(f"{name}_interval")
        text = f"{called} {number(r) if r is not None else 'not defined'}"
        if r is not None and interval:
            text += f" [{number(interval[0])}, {number(interval[1])}]"
        if r is not None and found.get(f"{name}_p") is not None:
            text += f" (p {number(found[f'{name}_p'])})"
        parts.append(text)
    cells = f"; patched exactly: {found['rechecked']}" if "rechecked" in found else ""
    return f"{kind}: {', '.join(parts)} over {found.get('n', '?')} cells{cells}."


def describe(result: Result) -> dict[str, str]:
    """The figures in words."""
    said: dict[str, str] = {}
    kinds = kinds_of(result)
    for kind, data in kinds.items():
        look, end = look_of(data, kind), f"_{kind}" if len(kinds) > 1 else ""
        n = int(data.attrs["n_pairs"])
        what = f"estimated {data.attrs['direction']} effect of patching {kind} on {data.attrs['metric']}, n = {n}"
        said |= {f"{name}{end}": text for name, text in patch.words(data, look, what).items()}
        if patch.column_of(data) in ("head", "kv_head"):
            said[f"top{end}"] = bars.top_words(patch.of(data, look), "heads")
    if any("exact_effect" in data for data in kinds.values()):
        each = " ".join(
            agreement_sentence(result, kind) for kind, data in kinds.items() if "exact_effect" in data
        )
        said["recheck"] = (
            f"Scatter plot of estimated against exact effects, a point for each cell patched exactly. {each}"
        )
    return said


def control_statement(result: Result) -> str:
    """What the estimates were compared with, and what came out."""
    parts = []
    kinds = kinds_of(result)
    for kind, data in kinds.items():
        text = signed.statement(patch.of(data, look_of(data, kind)), str(data.attrs.get("control", "")))
        parts.append(f"{kind}: {text}" if len(kinds) > 1 else text)
        if "exact_effect" in data:
            parts.append(agreement_sentence(result, kind))
    return " ".join(parts)
