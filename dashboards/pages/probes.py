"""Probes: is a property of the prompts linearly readable, at which layer, more than shuffled labels are?

The form is in `probes_form`, the details of one probe (its numbers, its direction, its code) in `probes_cell`.
"""

from __future__ import annotations

from typing import Any

import dash
import dash_mantine_components as dmc
from dash import Input, Output, State, ctx, html, no_update

from dashboards import following, ids
from dashboards.components import forms, graphs, job_panel, results, tables
from dashboards.figures import control_statement
from dashboards.pages import probes_cell
from dashboards.pages.probes_form import (
    FORM,
    KIND,
    KINDS,
    PAGE,
    also_of,
    fields,
    form_values,
    groups_of,
    inputs,
    labels_of,
    statement_sets,
    where_of,
)
from dashboards.state import AppState
from workbench.cli.common import result_table
from workbench.errors import RunError
from workbench.results import Result
from workbench.runs import Run
from workbench.specs import parse_spec

PATH = "/probes"
RUN = ids.of(PAGE, "run")

__all__ = [
    "KIND",
    "KINDS",
    "PAGE",
    "PATH",
    "fields",
    "form_values",
    "labels_of",
    "layout",
    "register",
    "statement_sets",
]


def layout(state: AppState) -> html.Div:
    """Form, progress, and where the result goes."""
    about = "Fit probes to activations of labelled sentences at every layer, beside shuffled labels."
    form = forms.card(*inputs(state), job_panel.layout(PAGE))
    return html.Div([forms.heading("Probes", about), form, results.layout(PAGE)])


def best_sentence(result: Result) -> str:
    """The best cell, with its interval and what choosing the best of many gives on shuffled labels."""
    summary, best = result.summary, result.summary["best"]
    where = f"layer {best['layer']}" if "layer" in best else str(best["site"])
    what = f"{best['label']}, " if "label" in best else ""
    majority = _majority(result, best)
    sentence = (
        f"Best: {what}{KINDS.get(best['probe'], best['probe'])} at {where}, AUC {best['auc']:.3f} "
        f"[95 % interval {best['auc_low']:.3f} to {best['auc_high']:.3f}], accuracy {best['accuracy']:.3f}"
    )
    sentence += f" (majority {majority:.3f})" if majority is not None else ""
    if "control_auc" in best:
        sentence += f"; shuffled labels there {best['control_auc']:.3f}"
    return f"{sentence}; n = {summary['n']}."


def _majority(result: Result, best: dict[str, Any]) -> float | None:
    if "label" in best and "majority_accuracy" in result.data.coords:
        return float(result.data["majority_accuracy"].sel(label=best["label"]))
    found = result.summary.get("majority_accuracy")
    return None if found is None else float(found)


def show(run: Run, scheme: str | None) -> list[Any]:
    """The figures of a run, one of its probes, the table, and the code."""
    result = run.result
    columns, rows = result_table(result)
    texts = ("probe", "label", "site")
    numbers = tuple(i for i, name in enumerate(columns) if name.split(" (")[0] not in texts)
    listing = tables.table(columns, [list(row) for row in rows], numbers=numbers)
    drawn = list(graphs.graphs(result, PAGE, scheme).values())
    used = result.summary.get("prompts")
    return [
        results.headline(run, best_sentence(result)),
        dmc.Text(control_statement(result), size="sm", c="dimmed"),
        *([dmc.Text(f"Used: {used}.", size="sm", c="dimmed")] if used else []),
        forms.card(drawn[0]),
        probes_cell.card(run),
        *(forms.card(figure) for figure in drawn[1:]),
        *(
            [forms.card(dmc.Title("Probes in numbers", order=2), html.Div(listing, className="tall"))]
            if rows
            else []
        ),
        *_again(run),
    ]


def _again(run: Run) -> list[Any]:
    try:
        return [forms.card(*probes_cell.again(run))]
    except RunError:  # a spec of another version: the report says so
        return []


def register(app: dash.Dash, state: AppState) -> None:
    """Callbacks: submit, choices of the chosen set, result, and those of one probe."""
    values = [(ids.of(PAGE, f), "checked" if f == "controls" else "value") for f in FORM]
    results.register(
        app, state, PAGE, KIND, PATH, form=[Output(*v) for v in values], form_values=form_values, show=show
    )
    probes_cell.register(app, state)

    @app.callback(
        Output(ids.SUBMITTED, "data", allow_duplicate=True),
        Input(RUN, "n_clicks"),
        State(ids.LOCATION, "search"),
        *(State(*v) for v in values),
        prevent_initial_call=True,
    )
    def submit(n_clicks, search, *form):
        if not n_clicks:
            return no_update
        return following.submit(state, parse_spec(fields(*form), source="The form"), PAGE, search)

    chosen = ("labels", "also", "where", "group_by")

    @app.callback(
        *(Output(ids.of(PAGE, name), "data") for name in chosen),
        *(Output(ids.of(PAGE, name), "value", allow_duplicate=True) for name in chosen),
        Input(ids.of(PAGE, "dataset"), "value"),
        *(State(ids.of(PAGE, name), "value") for name in chosen),
        prevent_initial_call=True,
    )
    def choose_dataset(dataset, labels, also, where, group_by):
        known = labels_of(dataset), also_of(dataset), where_of(dataset), groups_of(dataset)
        fits = ctx.triggered_id is not None and set(labels or []) <= set(known[0]) and (labels or also)
        kept = no_update if fits else known[0][:2]
        rest = [
            no_update if set(now or []) <= set(there) else []
            for now, there in zip((also, where), known[1:3], strict=True)
        ]
        return *known, kept, *rest, no_update if group_by in (None, *known[3]) else None
