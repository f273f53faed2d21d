"""Figures of a patchscope.

`texts`    source × target layer: what the model goes on to say (in the hover, its first token in cells that are wide
           enough); colour is the probability of its first token
`control`  the same beside the control's streams
`changed`  by source layer: share of target layers whose text differs from the unpatched one, beside the control
`decoded`  by source layer: share of target layers whose text names the thing, beside the control. Only where what
           `decodes` found was merged into the result: `replace(seen, data=seen.data.merge(decodes(seen, names)))`.
           Cells that name it are then outlined in `texts` and `control`.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from dashboards.figures import grid, shares, theme
from dashboards.figures.lines import HOVER, Curve, curve, hover_title
from dashboards.figures.shares import Panel
from dashboards.figures.theme import number, safe

if TYPE_CHECKING:
    from workbench.results import Result

TEXT = 240
"""So many characters of a continuation are in its hover."""
CHARACTERS = 500_000
"""So many characters the hover of a figure has at most."""
PROBABILITY = "probability of the first token"


def figures(result: Result) -> dict[str, go.Figure]:
    """See the module's text."""
    data = result.data
    found = {"texts": texts_figure(result)}
    if "control_text" in data:
        found["control"] = control_figure(result)
    found["changed"] = share_figure(result, "changed")
    if "decoded" in data:
        found["decoded"] = share_figure(result, "decoded")
    return found


def said_in(data: Any, kind: str) -> np.ndarray:
    """[source, target] what is in the hover: the text, and the most probable first tokens."""
    text, tokens = data[f"{kind}text"].values, data[f"{kind}top_token"].values
    p = data[f"{kind}top_probability"].values
    room = CHARACTERS // text.size
    limit, shown = min(TEXT, room), min(tokens.shape[-1], max(0, (room - TEXT) // 40))
    found = np.empty(text.shape, dtype=object)
    for cell in np.ndindex(text.shape):
        lines = textwrap.wrap(repr(grid.shorten(str(text[cell]), limit)), 60) or ["''"]
        each = (
            f"{grid.visible(str(t))!r} {q:.3f}"
            for t, q in zip(tokens[cell][:shown], p[cell][:shown], strict=True)
        )
        found[cell] = "<br>".join(safe(line) for line in [*lines, *textwrap.wrap(", ".join(each), 70)])
    return found


def _panel(data: Any, kind: str, name: str) -> Panel:
    hover = "<b>source layer %{y} → target layer %{x}</b><br>%{hovertext}"
    return Panel(name, data[f"{kind}top_probability"].values[..., 0], hover, said=said_in(data, kind))


def _labels(data: Any) -> tuple[list[str], list[str]]:
    return grid.layer_labels(data["source_layer"].values), grid.layer_labels(data["target_layer"].values)


def texts_figure(result: Result) -> go.Figure:
    """What the model says, by source and target layer."""
    data = result.data
    rows, columns = _labels(data)
    written = grid.fits(len(columns))
    tokens = np.vectorize(lambda t: grid.visible(str(t)), otypes=[object])(data["top_token"].values[..., 0])
    n = int(changed(data, "").sum())
    notes = [
        f"The text differs from the unpatched one in {n} of {data.sizes['source_layer'] * len(columns)} cells."
    ]
    if written:
        notes.append("In cells: the first token, · for a leading space.")
    notes.append("Hover: the text.")
    figure = shares.panels_figure(
        [_panel(data, "", PROBABILITY)],
        rows,
        columns,
        title="Patchscope: what the target prompt goes on to say",
        under=_subtitle(result, " ".join(notes), _decoded_note(data)),
        titles=("target layer", "source layer"),
        unit=PROBABILITY,
        cell_texts=grid.cut(tokens) if written else None,
    )
    return _outlined(figure, data, ("",))


def control_figure(result: Result) -> go.Figure:
    """The same beside the control."""
    data = result.data
    rows, columns = _labels(data)
    n, n_control = (int(changed(data, kind).sum()) for kind in ("", "control_"))
    cells = len(rows) * len(columns)
    note = (
        f"The text differs from the unpatched one in {n} of {cells} cells, with the control in {n_control}."
    )
    figure = shares.panels_figure(
        [_panel(data, "", "the stream"), _panel(data, "control_", "control: another position's stream")],
        rows,
        columns,
        title="Patchscope beside its control",
        under=_subtitle(result, note, _decoded_note(data)),
        titles=("target layer", "source layer"),
        unit=PROBABILITY,
    )
    return _outlined(figure, data, ("", "control_"))


def _outlined(figure: go.Figure, data: Any, kinds: tuple[str, ...]) -> go.Figure:
    """A thin line around the cells whose text names the thing, where that is known."""
    shapes = []
    for i, kind in enumerate(kinds):
        axis = "" if i == 0 else str(i + 1)
        for row, column in np.argwhere(data[f"{kind}decoded"].values) if f"{kind}decoded" in data else ():
            *_, line = grid.outline(column, column, row, row, xref=f"x{axis}", yref=f"y{axis}")
            shapes.append({**line, "line": {**line["line"], "width": 1.5}})
    return figure.update_layout(shapes=shapes)  # at once: one by one takes quadratic time


def _decoded_note(data: Any) -> str:
    if "decoded" not in data:
        return ""
    text = f"Outlined: the text names the thing, {int(data['decoded'].sum())} of {data['decoded'].size} cells"
    if "control_decoded" in data:
        text += f" (control {int(data['control_decoded'].sum())})"
    return f"{text}{_names(data)}."


def _names(data: Any) -> str:
    aliases = data.attrs.get("aliases") or (
        data["decoded"].attrs.get("aliases") if "decoded" in data else None
    )
    if isinstance(aliases, str):
        aliases = [aliases]
    return f": {' or '.join(map(repr, aliases))}" if aliases is not None and len(aliases) else ""


def changed(data: Any, kind: str) -> np.ndarray:
    """[source, target] whether the text differs from the unpatched one."""
    return data[f"{kind}text"].values != str(data["unpatched_text"].values)


def _shares(data: Any, what: str) -> dict[str, np.ndarray]:
    """[source] share of target layers, of the stream and of its control."""
    found = {}
    for kind, name in (("", "the stream"), ("control_", "control")):
        if f"{kind}text" in data:
            cells = changed(data, kind) if what == "changed" else data[f"{kind}decoded"].values
            found[name] = cells.mean(1)
    return found


def share_figure(result: Result, what: str) -> go.Figure:
    """Share of target layers by source layer: texts that changed, or that name the thing."""
    data, figure = result.data, go.Figure()
    for name, share in reversed(_shares(data, what).items()):
        one = Curve(
            data["source_layer"].values, share, name, 0 if name != "control" else 1, control=name == "control"
        )
        figure.add_traces(curve(one))
    title = {
        "changed": "Patchscope: target layers whose text differs from the unpatched one",
        "decoded": "Patchscope: target layers whose text names the thing",
    }[what]
    note = f"Each point: {data.sizes['target_layer']} target layers." + (
        _decoded_note(data) if what == "decoded" else ""
    )
    under = _subtitle(result, note.replace("Outlined: the", " In all, the"))
    figure.update_layout(theme.layout(title, under, plot_height=280, legend_rows=1), **HOVER)
    figure.update_xaxes(title={"text": "source layer"}, **hover_title("source layer"))
    return figure.update_yaxes(title={"text": "share of target layers"}, range=[-0.02, 1.02])


def _subtitle(result: Result, *more: str) -> str:
    data = result.data
    cells = data.sizes["source_layer"] * data.sizes["target_layer"]
    source, target = (repr(str(data.attrs[f"{end}_token"])) for end in ("source", "target"))
    mapping = data.attrs.get("mapping", "identity")
    return theme.subtitle(
        model=theme.model_name(result),
        n=f"1 prompt, {cells} cells",
        units=f"stream at {source} put in at {target}"
        + (f" through {mapping}" if mapping != "identity" else ""),
        control=str(data.attrs.get("control", "not run")),
        more=[
            f"Unpatched: {grid.shorten(repr(str(data['unpatched_text'].values)), 120)}.",
            *(m for m in more if m),
        ],
    )


def describe(result: Result) -> dict[str, str]:
    """The figures in words."""
    data = result.data
    rows, columns = _labels(data)
    unpatched = repr(grid.shorten(str(data["unpatched_text"].values), TEXT))
    middle, n = len(rows) // 2, len(rows) * len(columns)
    example = repr(grid.shorten(str(data["text"].values[middle, 0]), TEXT))
    text = (
        f"Heatmap of {len(rows)} source by {len(columns)} target layers: what the model goes on to say with the "
        f"stream put in; unpatched it says {unpatched}. {int(changed(data, '').sum())} of {n} texts differ from that. "
        f"From source layer {rows[middle]} into target layer {columns[0]}: {example}. {_decoded_note(data)}"
    )
    found = {"texts": text.strip()}
    if "control_text" in data:
        found["control"] = f"The same heatmap beside its control. {control_statement(result)}"
    found["changed"] = (
        f"Lines by source layer, share of target layers whose text changes. {_share_words(data, 'changed')}"
    )
    if "decoded" in data:
        found["decoded"] = (
            f"Lines by source layer, share of target layers that name the thing. {_share_words(data, 'decoded')}"
        )
    return found


def _share_words(data: Any, what: str) -> str:
    layers, parts = data["source_layer"].values, []
    for name, share in _shares(data, what).items():
        at = int(np.argmax(share))
        parts.append(
            f"{name}: mean {number(float(share.mean()))}, most {number(float(share[at]))} at layer {layers[at]}"
        )
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def control_statement(result: Result) -> str:
    """What the patchscope was compared with, and what came out."""
    data = result.data
    if "control_text" not in data:
        return "No control was run: part of these texts may come with any stream put in there."
    n, n_control = (int(changed(data, kind).sum()) for kind in ("", "control_"))
    cells = data["text"].size
    text = f"Control: {data.attrs['control']}. Texts changed: {n} of {cells}, with the control {n_control}."
    return f"{text} {_decoded_note(data).replace('Outlined: the', 'The')}".strip()
