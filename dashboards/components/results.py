"""What the pages of one analysis share: `?run=<id>` -> the form filled in and the figures drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dash
import dash_mantine_components as dmc
from dash import Input, Output, State, dcc, html, no_update

from dashboards import following, ids
from dashboards.components import forms, notify
from dashboards.state import AppState
from workbench.errors import RunError
from workbench.runs import Run
from workbench.specs import Spec

N_RECENT = 5


def layout(page: str) -> html.Div:
    """Where the result goes, and the query it is drawn for."""
    return html.Div(
        [dcc.Store(id=ids.query(page)), html.Div(id=ids.of(page, "result"), className="results stack")]
    )


def headline(run: Run, sentence: str) -> dmc.Group:
    """What came out in one sentence, and the way to the whole report."""
    return dmc.Group(
        [
            dmc.Text(sentence, fw=500, flex=1, miw=280, className="headline"),
            dmc.Anchor("Report, spec and code", href=f"/runs/{run.id}", size="sm", className="tap"),
        ],
        gap="md",
        align="baseline",
    )


def recent(state: AppState, kind: str, path: str) -> list[Any]:
    """Runs of a kind to look at while nothing else is shown."""
    found = [info for info in state.list_runs() if info.kind == kind and not info.problem]
    if not found:
        return [dmc.Text("No run yet. Results appear here.", c="dimmed", size="sm")]
    links = [
        html.Li(
            dmc.Anchor(
                info.title or info.id, href=f"{path}{following.address(info.id)}", size="sm", truncate="end"
            )
        )
        for info in found[:N_RECENT]
    ]
    title = f"Recent runs ({len(links)} of {len(found)})"
    return [html.Div([dmc.Title(title, order=2), html.Ul(links, className="plain-list")])]


def of_kind(run: Run, kind: str) -> Run:
    """The run, if this page can show it. Raises `RunError` otherwise."""
    if run.info.kind != kind:
        raise RunError(
            f"Run {run.id!r} is a {run.info.kind} run, not a {kind} run: open it under /runs/{run.id}."
        )
    return run


def register(
    app: dash.Dash,
    state: AppState,
    page: str,
    kind: str,
    path: str,
    *,
    form: list[Output],
    form_values: Callable[[Spec], list[Any]],
    show: Callable[[Run, str | None], list[Any]],
) -> None:
    """Callback: the address -> form and result.

    The form is left alone when the run is the one it has just asked for: it may hold the next question.
    """

    @app.callback(
        Output(ids.of(page, "result"), "children"),
        *form,
        Input(ids.query(page), "data"),
        State(ids.FOLLOWING, "data"),
        State(ids.SUBMITTED, "data"),
    )
    def show_run(query, known, submitted):
        unchanged = [no_update] * len(form)
        mine = following.entry(page, known, submitted)
        run_id = following.run_of(query["search"])
        if run_id is None:
            waiting = state.job(mine["job"]) if mine is not None and not mine["done"] else None
            return recent(state, kind, path), *(
                form_values(waiting.spec) if waiting is not None else unchanged
            )
        try:
            run = of_kind(state.run(run_id), kind)
            shown, asked = show(run, query["scheme"]), form_values(run.spec)
        except RunError as error:
            notify.show(notify.error(str(error), title="This run cannot be shown"))
            return [forms.card(dmc.Text(str(error))), *recent(state, kind, path)], *unchanged
        return shown, *(unchanged if following.own(mine, run.id) else asked)
