"""What the Steer page shows of a run: texts in a table, figures, the way to save the direction and to ask again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import dash_mantine_components as dmc
import numpy as np
from dash import html

from dashboards.components import code, forms, graphs, reproduce, results, tables
from dashboards.components.aria import aria
from dashboards.figures import control_statement
from dashboards.figures.theme import number
from dashboards.pages.steer_code import python
from dashboards.pages.steer_fields import PAGE
from dashboards.pages.steer_names import NORMS, TEXTS
from workbench.cli.common import result_table

if TYPE_CHECKING:
    from workbench.results import Result
    from workbench.runs import Run

SHOWN = 12
"""Texts of so many prompts are shown; it says so where there are more."""
SIDES = {"steered": "steered", "random": "random direction, same norm (control)"}


def show(run: Run, scheme: str | None) -> list[Any]:
    """Everything below the form."""
    result, spec = run.result, run.spec
    parts: list[Any] = [
        results.headline(run, sentence(result)),
        dmc.Text(control_of(result), size="sm", c="dimmed"),
    ]
    if (quality := quality_sentence(result)) is not None:
        parts.append(dmc.Text(quality, size="sm", c="dimmed"))
    if result.kind == TEXTS:
        parts += [forms.card(*texts(result)), forms.card(*costs(result))]
    else:
        parts += [forms.card(figure) for figure in graphs.graphs(result, PAGE, scheme).values()]
        columns, rows = result_table(result)
        listing = tables.table(columns, [list(row) for row in rows], numbers=(1, 2, 3, 4))
        parts.append(forms.card(dmc.Title("Every strength", order=2), html.Div(listing, className="tall")))
        if "text" in result.data:
            parts.append(forms.card(*texts(result)))
    two = html.Div([forms.card(*_saving(result)), forms.card(*_again(spec))], className="report-columns")
    return [*parts, two]


def sentence(result: Result) -> str:
    """What came out, in one sentence."""
    data, n = result.data, result.data.sizes["prompt"]
    prompts = f"n = {n} prompt{'s' if n > 1 else ''}"
    strengths = [float(s) for s in data["strength"].values if s != 0]
    if not strengths:
        return f"Unsteered continuations only; {prompts}."
    s = max(strengths, key=lambda s: (abs(s), s))
    if result.kind == TEXTS:
        plain = data["text"].sel(direction="steered", strength=0.0).values
        differ = {d: int((data["text"].sel(direction=d, strength=s).values != plain).sum()) for d in SIDES}
        cost = [
            data["mean_cross_entropy"].sel(direction=d, strength=x)
            for d, x in (("steered", s), ("random", s))
        ]
        steered, random = (number(float(c)) for c in cost)
        unsteered = number(float(data["mean_cross_entropy"].sel(direction="steered", strength=0.0)))
        return (
            f"At strength {number(s)}, {differ['steered']} of {n} texts differ from the unsteered ones "
            f"(random direction: {differ['random']}); they cost {steered} nats per token under the unsteered model "
            f"(random direction: {random}, unsteered: {unsteered}); {prompts}."
        )
    change = {}
    for d in [str(d) for d in data["direction"].values]:
        one = data["mean_score"].sel(direction=d)
        change[d] = float(one.sel(strength=s)) - float(one.sel(strength=0.0))
    control = (
        f" (random directions: {_signed(change['random'])})" if "random" in change else "; control not run"
    )
    return (
        f"At strength {number(s)}, the mean score moves by {_signed(change['steered'])} "
        f"{data['score'].attrs.get('units', '')}{control}; {prompts}."
    )


def control_of(result: Result) -> str:
    """What it is compared with."""
    if result.kind != TEXTS:
        return control_statement(result)
    attrs = result.data.attrs
    how = f"sampled at temperature {attrs['temperature']:g}" if attrs["temperature"] else "greedy"
    return f"Control: {attrs['control']}; {how}. Strength: {result.data['strength'].attrs.get('units', '')}."


def quality_sentence(result: Result) -> str | None:
    """How well a direction made here separates prompts it has not seen; None where that is not known."""
    told = result.data.attrs.get("steered_along")
    if told is None:
        return None
    held = json.loads(told)["directions"][0]["settings"].get("held_out")
    if not isinstance(held, dict):
        return None
    if not held.get("measured", True):
        why = held.get("why", "too few prompts")
        return f"How well the direction separates unseen prompts was not measured: {why}."
    low, high, control = (number(float(held[k])) for k in ("auc_low", "auc_high", "control_auc"))
    return (
        f"The direction on prompts it has not seen: AUC {number(float(held['auc']))} [95 % interval {low} to {high}], "
        f"shuffled labels {control}; n = {held['n_positive']} + {held['n_negative']}."
    )


# -- texts -------------------------------------------------------------------------------------------------------


def texts(result: Result) -> list[Any]:
    """Each prompt with its continuations, strengths down, steered beside random."""
    data = result.data
    n = data.sizes["prompt"]
    note = f" The first {SHOWN} of {n} prompts; the report has more." if n > SHOWN else ""
    about = "Under each text: nats per token under the unsteered model, and the share of repeated 4-grams."
    parts: list[Any] = [
        dmc.Title("Continuations", order=2),
        dmc.Text(about + note if "cross_entropy" in data else note, size="sm", c="dimmed"),
    ]
    for i in range(min(n, SHOWN)):
        parts.append(_of_prompt(data.isel(prompt=i), i, scale_of(result)))
    return parts


def scale_of(result: Result) -> float | None:
    """Natural scale of the one direction that was added; None where strengths are not multiples of it."""
    told = result.data.attrs.get("steered_along")
    held = json.loads(told)["directions"] if told else []
    return float(held[0]["scale"]) if len(held) == 1 and result.data.attrs.get("op", "add") in NORMS else None


def _of_prompt(data: Any, i: int, scale: float | None) -> html.Div:
    prompt = str(data["prompt_text"].values) if "prompt_text" in data.coords else f"prompt {i}"
    sides = [d for d in SIDES if d in data["direction"].values]
    head = dmc.TableThead(
        dmc.TableTr([dmc.TableTh("strength", ta="right"), *(dmc.TableTh(SIDES[d]) for d in sides)])
    )
    body = []
    for s in data["strength"].values:
        cells = [data.sel(direction=d, strength=s) for d in sides]
        natural = f"{number(float(s) / scale)} × scale" if scale and s != 0 else ""
        told: list[Any] = [number(float(s), 4), html.Span(natural, className="steer-cost")]
        label = dmc.TableTh(told, ta="right", className="steer-strength")
        if s == 0:
            told = [*_text(cells[0]), html.Span("unsteered, the same for both", className="steer-cost")]
            body.append(
                dmc.TableTr(
                    [label, dmc.TableTd(told, tableProps={"colSpan": len(sides)})], className="steer-zero"
                )
            )
        else:
            body.append(dmc.TableTr([label, *(dmc.TableTd(_text(cell)) for cell in cells)]))
    table = dmc.Table(
        [head, dmc.TableTbody(body)], fz="sm", verticalSpacing=6, horizontalSpacing="sm", className="steer-texts",
        **aria(label=f"Continuations of: {prompt}"),
    )  # fmt: skip
    return html.Div(
        [
            html.Div(prompt, className="steer-prompt"),
            dmc.TableScrollContainer(table, minWidth=560, type="native"),
        ]
    )


def _text(cell: Any) -> list[Any]:
    text = str(cell["text"].values)
    told: list[Any] = [html.Span(text or "∅", className="steer-text")]
    if "cross_entropy" in cell:
        cost, repeated = float(cell["cross_entropy"]), float(cell["repetition"])
        words = [f"{number(cost)} nats/token" if np.isfinite(cost) else ""]
        words += [f"{repeated:.0%} repeated" if np.isfinite(repeated) and repeated > 0 else ""]
        words += ["ended by itself" if "ended" in cell and bool(cell["ended"]) else ""]
        told.append(html.Span(" · ".join(w for w in words if w), className="steer-cost"))
    return told


def costs(result: Result) -> list[Any]:
    """Mean cost of the texts of each strength, with intervals, beside the control."""
    data = result.data
    columns = ["strength", *(f"{name}, {d}" for name in ("nats/token", "repeated 4-grams") for d in SIDES)]
    rows = []
    for s in data["strength"].values:
        row = [number(float(s), 4)]
        for name in ("cross_entropy", "repetition"):
            for d in SIDES:
                cell = data.sel(direction=d, strength=s)
                low, high = (float(cell[f"{name}_{end}"]) for end in ("low", "high"))
                interval = f" [{number(low)}, {number(high)}]" if np.isfinite(low) else ""
                row.append(number(float(cell[f"mean_{name}"])) + interval)
        rows.append(row)
    n = data.sizes["prompt"]
    about = f"Means over n = {n} prompt{'s' if n > 1 else ''} with 95 % bootstrap intervals. "
    about += (
        "A text that repeats itself is cheap: read both columns together."
        if n > 1
        else "One prompt has no interval."
    )
    listing = tables.table(columns, rows, numbers=tuple(range(len(columns))))
    return [dmc.Title("What steering costs", order=2), dmc.Text(about, size="sm", c="dimmed"), listing]


# -- save and repeat ---------------------------------------------------------------------------------------------


def saving(part: str) -> dict[str, str]:
    """Id of a part of the card that saves the direction: `name`, `tags` or `save`. It is there with a result only."""
    return {"type": f"steer-{part}", "page": PAGE}


def _saving(result: Result) -> list[Any]:
    told = result.data.attrs.get("steered_along")
    if told is None:
        return [
            dmc.Title("Save the direction", order=2),
            dmc.Text("This run does not hold its direction.", size="sm"),
        ]
    held = json.loads(told)["directions"]
    first = held[0]
    several = f" and {len(held) - 1} more" if len(held) > 1 else ""
    facts = f"{first['source']} at {first['site']}{several}, scale {number(float(first['scale']))} activation units"
    return [
        dmc.Title("Save the direction", order=2),
        dmc.Text(facts, size="sm", c="dimmed", mb="xs"),
        dmc.Group(
            [
                dmc.TextInput(id=saving("name"), label="Name in the tray", value="", w=220),
                dmc.TextInput(id=saving("tags"), label="Tags, by commas", value="", w=160),
                dmc.Button("Save direction", id=saving("save"), variant="light"),
            ],
            align="end",
            gap="sm",
        ),
    ]


def _again(spec: Any) -> list[Any]:
    parts = {
        "Python": python(spec),
        "Python, as a run": reproduce.python(spec),
        "Command line": reproduce.shell(spec),
    }
    tabs = dmc.Tabs(
        [
            dmc.TabsList([dmc.TabsTab(name, value=name) for name in parts]),
            *(dmc.TabsPanel(code.block(text, name), value=name, pt="xs") for name, text in parts.items()),
        ],
        value="Python",
    )
    return [dmc.Title("Reproduce", order=2), tabs]


def _signed(value: float) -> str:
    return f"+{number(value)}" if value > 0 else number(value)
