"""What the figures of a probe sweep share: which lines there are, at which position, what is said under the title."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from dashboards.figures import theme
from dashboards.figures.lines import hover_title
from dashboards.figures.theme import f32, number

if TYPE_CHECKING:
    from workbench.results import Result

LINES = len(theme.SERIES)
"""So many labels are drawn as lines of one panel at most: there are no more colours that all can tell apart."""


def probe_names(result: Result) -> list[str]:
    """The probes of the sweep, in order."""
    return [str(name) for name in result.data["probe"].values]


def label_names(result: Result) -> list[str]:
    """The label sets of the sweep, in order; none where there is but one."""
    return [str(name) for name in result.data["label"].values] if "label" in result.data.dims else []


def pretty(name: str) -> str:
    """`mass_mean` -> `mass mean`."""
    return name.replace("_", " ")


def along(data: Any) -> str:
    """The dimension of the lines: `layer`, or `site` where sites are not one per block."""
    return "layer" if "layer" in data.dims else "site"


def at_best_position(data: Any) -> Any:
    """The data at one position: that of the highest AUC, where there are several."""
    if "position" not in data.dims:
        return data
    best = data["auc"].max([dim for dim in data["auc"].dims if dim != "position"])
    return data.isel(position=int(np.nanargmax(best.values)))


def x_of(data: Any) -> np.ndarray:
    """Layers as float32, or names of sites."""
    values = data[along(data)].values
    return f32(values) if along(data) == "layer" else values.astype(str).astype(object)


def x_type(data: Any) -> dict[str, Any]:
    """Of the x axis."""
    if along(data) == "layer":
        return hover_title("layer") | ({"dtick": 1} if data.sizes["layer"] <= 12 else {})
    return {"type": "category", "tickangle": -45, **hover_title("site", "")}


def bottom(data: Any) -> int:
    """Margin for the labels along x."""
    return 60 if along(data) == "layer" else 150


def style(i: int) -> tuple[str, str]:
    """Colour and symbol of line number `i`: no two of 36 are the same pair."""
    n = len(theme.SERIES)
    return theme.SERIES[i % n], theme.SYMBOLS[(i + i // n) % len(theme.SYMBOLS)]


def line(x: np.ndarray, y: Any, i: int, name: str, template: str, **more: Any) -> go.Scatter:
    """A line with symbols in the style of number `i`."""
    colour, symbol = style(i)
    return go.Scatter(
        x=x,
        y=f32(y),
        name=name,
        mode="lines+markers",
        line={"color": colour, "width": 2},
        marker={"color": colour, "symbol": symbol, "size": 6},
        hovertemplate=template,
        **more,
    )


def position_note(result: Result) -> str:
    """Which of several positions is shown."""
    data = result.data
    if "position" not in data.dims:
        return ""
    shown, n = int(at_best_position(data)["position"]), data.sizes["position"]
    return f"Shown: position {shown}, that of the best AUC among {n}; the heatmap has all." if n > 1 else ""


def classes_note(result: Result) -> str:
    """What AUC means of more than two classes."""
    n = result.data.sizes.get("class", 2)
    return f"AUC: mean over the {n} classes, each against the rest." if n > 2 else ""


def best_note(result: Result) -> str:
    """What choosing the best of many cells is worth."""
    best = result.summary.get("best", {})
    if "nested_auc" not in best or "n_cells" not in result.summary:
        return ""
    name = f" ({best['label']})" if "label" in best else ""
    text = (
        f"Best of {result.summary['n_cells']} cells{name}: AUC {number(best['auc'])}; chosen without the fold it is "
        f"scored on {number(best['nested_auc'])}"
    )
    if "control_best_auc" in best:
        text += f"; best cell of permuted labels {number(best['control_best_auc'])}"
    return text + "."


def subtitle(result: Result, *more: str) -> str:
    """Model, n, folds and control; then a line for each of `more`."""
    attrs = result.data.attrs
    examples = f"{attrs.get('n', '?')} examples"
    if attrs.get("n_positive") is not None:
        label = repr(attrs["positive"]) if attrs.get("positive") else "positive"
        examples += f" ({attrs['n_positive']} {label})"
    elif attrs.get("n_of_class") is not None:
        counts = zip(attrs["n_of_class"], attrs["classes"], strict=True)
        examples += f" ({', '.join(f'{n} {name}' for n, name in list(counts)[:8])})"
    folds = f"{attrs['folds']} folds" if attrs.get("folds") else "held out"
    grouped = attrs.get("grouped")
    if grouped:
        groups = f"{attrs['n_groups']} groups" if attrs.get("n_groups") else "groups"
        folds += f" grouped by {grouped}" if isinstance(grouped, str) else f" that keep {groups} together"
    return theme.subtitle(
        model=theme.model_name(result),
        n=examples,
        units=folds,
        control=str(attrs.get("control", "not run")),
        more=[note for note in more if note],
    )


@dataclass(frozen=True)
class Picked:
    """Lines of one panel: a name and the part of the data each is of."""

    lines: list[tuple[str, Any]]
    note: str = ""


def picked(result: Result) -> Picked:
    """One line for each probe; of a sweep of several labels one for each label, of the kind that is best."""
    data, labels = at_best_position(result.data), label_names(result)
    if not labels:
        return Picked([(pretty(name), data.sel(probe=name)) for name in probe_names(result)])
    kind = best_kind(result)
    shown = best_labels(result, LINES)
    some = (
        f" {len(shown)} of {len(labels)} labels, those of the highest AUC."
        if len(shown) < len(labels)
        else ""
    )
    return Picked(
        [(name, data.sel(label=name, probe=kind)) for name in shown], f"Kind of probe: {pretty(kind)}.{some}"
    )


def best_kind(result: Result) -> str:
    """The kind with the highest AUC, averaged over labels at each label's best cell."""
    auc = result.data["auc"]
    rest = [dim for dim in auc.dims if dim not in ("label", "probe")]
    best = auc.max(rest)
    means = best.mean("label") if "label" in best.dims else best
    return str(result.data["probe"].values[int(np.nanargmax(means.values))])


def best_labels(result: Result, n: int) -> list[str]:
    """At most `n` labels, those with the highest AUC, in the order of the sweep."""
    names = label_names(result)
    if len(names) <= n:
        return names
    auc = result.data["auc"]
    best = auc.max([dim for dim in auc.dims if dim != "label"]).values
    kept = set(np.argsort(-best, kind="stable")[:n].tolist())
    return [name for i, name in enumerate(names) if i in kept]


def auc_range(data: Any) -> list[float]:
    """Down to 0.4, or lower where the data go lower; up to just above 1."""
    names = [name for name in ("auc_low", "auc", "control_auc") if name in data]
    lowest = min(float(np.nanmin(data[name].values)) for name in names)
    return [max(0.0, min(0.4, lowest - 0.03)), 1.02]
