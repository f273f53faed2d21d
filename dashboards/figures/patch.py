"""Figures of a patching sweep, and of every result that looks like one (`mean_effect` over layer × something).

`effect`     layer × position (or head, or group of neurons): mean effect. The cell of largest |effect| is outlined.
`control`    the same beside the wrong-source control, on one colour range. Only where the control was run.
`positions`  of a sweep over heads at each position: the strongest heads × positions. `effect` and `control` then show
             for each head that effect over positions which is largest in size, and the control's own such maximum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from dashboards.figures import grid, signed, theme
from dashboards.figures.signed import Grid

if TYPE_CHECKING:
    from workbench.results import Result

HEADS = 24
"""So many heads have a row in `positions`."""
X_TITLES = {
    "position": "position and token, clean→corrupt",
    "head": "head (all positions)",
    "kv_head": "key-value head (all positions)",
    "group": "group of neurons (all positions)",
    "span": "span of tokens",
    "component": "head, or MLP",
}
EFFECT = "effect (0 none, 1 full)"


@dataclass(frozen=True)
class Look:
    """How results that look like a sweep differ in words."""

    title: str
    short_title: str
    """For the figure of the control."""
    unit: str = EFFECT
    form: str = ".3f"
    written_from: float | None = 0.1
    facts: tuple[str, ...] = ()
    """Sentences under the title."""


def figures(result: Result) -> dict[str, go.Figure]:
    """`effect`, `control` where the sweep has one, and `positions` of heads at positions."""
    return made(result, result.data, look_of(result))


def look_of(result: Result) -> Look:
    """Titles of a sweep."""
    attrs = result.data.attrs
    what = f"{attrs['direction']} patches of {attrs['kind']}"
    facts = () if attrs.get("source", "run") == "run" else (f"Put in: {attrs['source']}.",)
    title = f"{what[0].upper()}{what[1:]}: effect on {attrs['metric']}"
    return Look(title, f"Effect beside its control: {what}", facts=facts)


def made(result: Result, data: Any, look: Look) -> dict[str, go.Figure]:
    """Figures of data with `mean_effect` [layer, ...] and what goes with it."""
    drawn, cut = _drawn(data)
    cells = of(drawn, look)
    if cut and (stronger := _left_out(of(data, look), cells)):
        cut += f" Stronger, but not among them: {stronger}."

    def under(notes):
        more = [note for note in (*notes, *look.facts, cut, _tokens_note(data), alignment_note(data)) if note]
        return subtitle(result, data, *more)

    found = {"effect": signed.effect_figure(cells, look.title, under, name=_name(drawn))}
    if cells.control is not None:
        found["control"] = signed.control_figure(
            cells, look.short_title, under, control_name="control" + " (its own maximum)" * is_of_heads(data)
        )
    if is_of_heads(data):
        found["positions"] = _positions_figure(result, data, look)
    return found


def subtitle(result: Result, data: Any, *more: str) -> str:
    """Model, pairs, metric at both ends, control."""
    clean, corrupt = (float(data[name].mean()) for name in ("clean_metric", "corrupt_metric"))
    n = int(data.attrs["n_pairs"])
    ends = f"metric: clean {theme.number(clean)}, corrupt {theme.number(corrupt)}"
    return theme.subtitle(
        model=theme.model_name(result),
        n=f"{n} pair{'s' if n > 1 else ''}",
        units=f"mean {ends}" if n > 1 else ends,
        control=str(data.attrs.get("control", "not run")),
        more=more,
    )


def is_of_heads(data: Any) -> bool:
    """Whether cells are heads at positions: three axes."""
    return data["mean_effect"].ndim == 3


def column_of(data: Any) -> str:
    """Name of the grid's columns: `position`, `head`, `group` (of neurons), …"""
    last = [
        name for name in ("head", "kv_head", "component", "group", "span", "position") if name in data.dims
    ]
    return last[0]


def column_labels(data: Any) -> list[str]:
    """Labels of the columns: numbers or names, or positions with the clean (and other corrupt) token."""
    column = column_of(data)
    if column == "position":
        return position_labels(data)
    if column == "component" and "component_name" in data.coords:
        return [str(name).removeprefix("head ") for name in data["component_name"].values]
    if column == "span":
        return grid.unique([theme.safe(grid.shorten(str(name), 24)) for name in data["span"].values])
    return [str(int(n)) for n in data[column].values]


def position_labels(data: Any) -> list[str]:
    """`3 ' John'`, or `9 ' John'→' Mary'` where the corrupt prompt has another token."""
    if "clean_token" not in data.coords:
        return [str(int(p)) for p in data["position"].values]
    tokens = (data[name].values for name in ("position", "clean_token", "corrupt_token"))
    return [grid.token_label(int(p), str(a), str(b)) for p, a, b in zip(*tokens, strict=True)]


def mean_control(data: Any) -> np.ndarray | None:
    """[layer, ...] control effect, mean over pairs; None if it was not run."""
    return data["control_effect"].mean("pair").values if "control_effect" in data else None


def of(data: Any, look: Look) -> Grid:
    """The grid of a sweep; heads at positions are brought down to heads."""
    mean, control = data["mean_effect"].values, mean_control(data)
    numbers, lines = details(data)
    common: dict[str, Any] = {
        "rows": grid.layer_labels(data["layer"].values),
        "columns": column_labels(data),
        "column": column_of(data),
        "x_title": X_TITLES[column_of(data)],
        "unit": look.unit,
        "form": look.form,
        "written_from": look.written_from,
        "missing": "corresponds to nothing in the other prompt",
    }
    cell = {"kv_head": "layer {y}, key-value head {x}", "component": "sender {y}.{x}"}
    common["cell"] = cell.get(column_of(data), "")
    if not is_of_heads(data):
        return Grid(mean, control=control, numbers=numbers, lines=lines, **common)
    best = np.abs(np.nan_to_num(mean)).argmax(-1)
    at = lambda values: np.take_along_axis(values, best[..., None], -1)[..., 0]  # noqa: E731
    numbers = {name: at(values) for name, values in numbers.items()}
    if control is not None:
        most = np.abs(np.nan_to_num(control)).argmax(-1)
        control = np.take_along_axis(control, most[..., None], -1)[..., 0]
        numbers["control_most"] = control
        lines += ("largest control over positions {control_most}",)
    labels = np.array(position_labels(data), dtype=object)
    common["x_title"] = "head (largest |effect| over positions)"
    said = np.vectorize(lambda i: f"at position {labels[i]}", otypes=[object])(best)
    return Grid(at(mean), control=control, numbers=numbers, lines=lines, said=said, **common)


def details(data: Any) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Numbers of a cell and the lines that say them."""
    several = data.sizes["pair"] > 1
    mean_of = "mean " if several else ""
    numbers = {"effect": data["mean_effect"].values}
    lines = [f"{mean_of}effect {{effect}}"]
    if "metric" in data:
        numbers["metric"] = data["metric"].mean("pair").values
        lines.append(f"{mean_of}metric {{metric}}")
    if several:
        numbers |= {"low": data["effect_low"].values, "high": data["effect_high"].values}
        lines[0] += ", 95 % interval {low} to {high}"
    if (control := mean_control(data)) is not None:
        numbers["control"] = control
        lines.append("control effect {control}")
    if several and "p_value" in data:
        numbers["p"] = data["p_value"].values
        lines.append("p {p} (effect against control, over pairs)")
    if "exact_effect" in data and np.isfinite(data["exact_effect"].values).any():
        numbers["exact"] = data["exact_effect"].mean("pair").values
        lines.append("patched exactly {exact}")
    return numbers, tuple(lines)


def _positions_figure(result: Result, data: Any, look: Look) -> go.Figure:
    """The strongest heads, each at every position."""
    cells, n = heads_by_position(data, look)
    under = lambda notes: subtitle(  # noqa: E731
        result,
        data,
        f"Effect on {data.attrs['metric']}. {n} Rows: layer.head, in the order of layers.",
        *(note for note in (*notes, *look.facts, _tokens_note(data)) if note),
    )
    return signed.effect_figure(cells, f"{look.title.split(':')[0]}: the strongest heads by position", under)


def heads_by_position(data: Any, look: Look) -> tuple[Grid, str]:
    """[head, position] of the strongest heads in the order of layers, and a sentence that says how many."""
    mean, control, head = data["mean_effect"].values, mean_control(data), column_of(data)
    n_layers, n_heads, n_positions = mean.shape
    strength = np.abs(np.nan_to_num(mean)).max(-1).ravel()
    chosen = np.sort(np.argsort(-strength, kind="stable")[:HEADS])
    flat = lambda values: values.reshape(n_layers * n_heads, n_positions)[chosen]  # noqa: E731
    numbers, lines = details(data)
    name = "key-value head" if head == "kv_head" else "head"
    cells = Grid(
        flat(mean),
        control=None if control is None else flat(control),
        rows=[f"{data['layer'].values[i // n_heads]}.{data[head].values[i % n_heads]}" for i in chosen],
        columns=position_labels(data),
        row=name,
        column="position",
        x_title=X_TITLES["position"],
        y_title=f"layer.{name}",
        unit=look.unit,
        numbers={key: flat(values) for key, values in numbers.items()},
        lines=lines,
        form=look.form,
        written_from=look.written_from,
    )
    n = n_layers * n_heads
    return cells, f"All {n} {name}s." if len(chosen) == n else f"The strongest {len(chosen)} of {n} {name}s."


def words(data: Any, look: Look, what: str) -> dict[str, str]:
    """Figures of `made` in words. `what`: what was measured, as a clause."""
    cells, control = of(data, look), str(data.attrs.get("control", ""))
    most = " For each head the largest |effect| over positions." if is_of_heads(data) else ""
    said = {"effect": signed.words(cells, what) + most}
    if cells.control is None:
        said["effect"] += " No control was run."
    else:
        said["control"] = signed.control_words(cells, control)
    if is_of_heads(data):
        by_position, n = heads_by_position(data, look)
        said["positions"] = f"{n} {signed.words(by_position, what)}"
    return said


def describe(result: Result) -> dict[str, str]:
    """Figures of a sweep in words."""
    return words(result.data, look_of(result), f"{_patched(result.data)}, 0 for none and 1 for full")


def _patched(data: Any) -> str:
    n = int(data.attrs["n_pairs"])
    attrs = data.attrs
    return (
        f"{attrs['direction']} effect of patching {attrs['kind']} on {attrs['metric']}, "
        f"{n} pair{'s' if n > 1 else ''}"
    )


def control_statement(result: Result) -> str:
    """What the sweep was compared with, and what came out."""
    return signed.statement(of(result.data, look_of(result)), str(result.data.attrs.get("control", "")))


def _name(data: Any) -> str:
    return "mean effect" if data.sizes["pair"] > 1 else "effect"


def _tokens_note(data: Any) -> str:
    if data.sizes["pair"] == 1:
        return ""
    labels = "Metric and token labels are" if "clean_token" in data.coords else "The metric is"
    return f"{labels} named after the first pair."


def alignment_note(data: Any) -> str:
    """How positions correspond, where the prompts differ in length."""
    parts = [str(data.attrs[name]) for name in ("alignment", "left_out") if name in data.attrs]
    return f"Alignment: {'; '.join(parts)}." if parts else ""


def _left_out(whole: Grid, drawn: Grid) -> str:
    """The strongest cell of all where it is not drawn; else an empty text."""
    at = whole.strongest()
    if at is None or signed.largest(whole.values) <= signed.largest(drawn.values):
        return ""
    return signed.found(whole, at)


def _drawn(data: Any) -> tuple[Any, str]:
    """The columns that are drawn, and a sentence if they are not all."""
    column = column_of(data)
    if is_of_heads(data) or column != "position":
        return data, ""
    columns, cut = grid.last_columns(data.sizes["layer"], data.sizes[column])
    return data.isel({column: columns}), cut
