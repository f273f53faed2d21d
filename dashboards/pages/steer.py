"""Steer: push activations along a direction and read what the model says.

The direction is one of the tray or a mean difference made here. "Generate" continues each prompt at each strength,
beside strength 0 and a random direction of the same norm; "Dose-response" measures score and KL against strength.
`?direction=<name>` chooses a direction of the tray, `?run=<id>` brings back form and result of a run.
"""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import parse_qs

import dash
import dash_mantine_components as dmc
from dash import ALL, Input, Output, State, ctx, dcc, html, no_update

from dashboards import following, ids
from dashboards.components import forms, job_panel, notify, results, tray, tray_rows
from dashboards.components.clicks import clicked
from dashboards.components.tray_data import library
from dashboards.pages import steer_form
from dashboards.pages.steer_fields import (
    CHECKED,
    FORM,
    KIND,
    PAGE,
    PARAMETERS,
    TRAY,
    fields,
    form_values,
    n_layers,
)
from dashboards.pages.steer_show import show
from dashboards.state import AppState
from workbench.errors import DataError
from workbench.specs import parse_spec

PATH = "/steer"
RUN, DOSE = ids.of(PAGE, "run"), ids.of(PAGE, "dose")

__all__ = ["FORM", "KIND", "PAGE", "PATH", "fields", "form_values", "layout", "register", "show"]


def layout(state: AppState) -> html.Div:
    """Form, progress, and where the result goes."""
    about = "Push activations along a direction and read what the model says, beside a random direction."
    return html.Div(
        [
            forms.heading("Steer", about),
            dcc.Store(id=tray.news(PAGE)),
            steer_form.layout(state),
            results.layout(PAGE),
        ]
    )


def chosen_in(search: str | None) -> str | None:
    """The direction a query asks for."""
    return next(iter(parse_qs((search or "").removeprefix("?")).get("direction", [])), None)


def register(app: dash.Dash, state: AppState) -> None:
    """Callbacks: submit, what the form shows, the chosen direction, saving."""
    values = [(ids.of(PAGE, f), "checked" if f in CHECKED else "value") for f in FORM]
    results.register(
        app, state, PAGE, KIND, PATH, form=[Output(*v) for v in values], form_values=form_values, show=show
    )

    @app.callback(
        Output(ids.SUBMITTED, "data", allow_duplicate=True),
        Input(RUN, "n_clicks"),
        Input(DOSE, "n_clicks"),
        State(ids.LOCATION, "search"),
        *(State(*v) for v in values),
        prevent_initial_call=True,
    )
    def submit(generate, dose, search, *form):
        if not (generate if ctx.triggered_id == RUN else dose):
            return no_update
        look_at = "texts" if ctx.triggered_id == RUN else "dose_response"
        return following.submit(state, parse_spec(fields(look_at, *form), source="The form"), PAGE, search)

    _register_form(app)
    _register_direction(app, state)

    @app.callback(
        Output(tray.VERSION, "data", allow_duplicate=True),
        Input({"type": "steer-save", "page": ALL}, "n_clicks"),
        State({"type": "steer-name", "page": ALL}, "value"),
        State({"type": "steer-tags", "page": ALL}, "value"),
        State(ids.query(PAGE), "data"),
        prevent_initial_call=True,
    )
    def save(_clicks, name, tags, query):
        if clicked("page") is None:
            return no_update
        run_id = following.run_of(query["search"])
        if run_id is None:
            return no_update
        from workbench.directions.carried import direction_of

        held = direction_of(state.run(run_id).result)
        if held is None:
            raise DataError(f"Run {run_id} does not hold the direction it steered along.")
        path = library().save((name[0] or "").strip(), held, tags=tray_rows.words(tags[0]))
        notify.show(notify.info(str(path), title=f"{path.stem!r} is in the tray"))
        return time.time_ns()


def _register_form(app: dash.Dash) -> None:
    """What of the form is there to be filled in."""

    @app.callback(
        Output(ids.of(PAGE, "from-tray"), "style"),
        Output(ids.of(PAGE, "from-prompts"), "style"),
        Input(ids.of(PAGE, "source"), "value"),
    )
    def choose_source(source):
        return ({}, job_panel.HIDDEN) if source == TRAY else (job_panel.HIDDEN, {})

    @app.callback(
        Output(ids.of(PAGE, "value"), "style"),
        Output(ids.of(PAGE, "value"), "label"),
        Output(ids.of(PAGE, "offset"), "style"),
        Input(ids.of(PAGE, "op"), "value"),
    )
    def choose_operation(op):
        boxes = PARAMETERS.get(op, {})
        shown = [{} if box in boxes else job_panel.HIDDEN for box in ("value", "offset")]
        return shown[0], boxes.get("value", "value"), shown[1]

    @app.callback(
        Output(ids.of(PAGE, "start"), "style"),
        Output(ids.of(PAGE, "temperature"), "style"),
        Input(ids.of(PAGE, "where"), "value"),
        Input(ids.of(PAGE, "decoding"), "value"),
    )
    def choose_rule(where, decoding):
        starts, sampled = where in ("from", "from_text"), decoding == "sampled"
        return {} if starts else job_panel.HIDDEN, {} if sampled else job_panel.HIDDEN

    @app.callback(Output(ids.of(PAGE, "layer-label"), "children"), Input(ids.of(PAGE, "layer"), "value"))
    def tell_layer(layer):
        return f"Layer {layer}"

    @app.callback(
        Output(ids.of(PAGE, "layer"), "max"),
        Output(ids.of(PAGE, "layer"), "marks"),
        Input(ids.of(PAGE, "model"), "value"),
    )
    def choose_model(model):
        layers = n_layers(model) or steer_form.DEFAULT_LAYERS
        return layers - 1, steer_form.marks(layers)


def _register_direction(app: dash.Dash, state: AppState) -> None:
    """The named direction: what there is, which one the address asks for, and what it is."""

    @app.callback(
        Output(ids.of(PAGE, "direction"), "data"),
        Output(ids.of(PAGE, "direction"), "value", allow_duplicate=True),
        Output(ids.of(PAGE, "source"), "value", allow_duplicate=True),
        Input(ids.query(PAGE), "data"),
        Input(tray.news(PAGE), "data"),
        State(ids.of(PAGE, "direction"), "value"),
        prevent_initial_call="initial_duplicate",
    )
    def offer(query, _version, held):
        names = [e.name for e in library().entries() if not e.problem]
        asked = chosen_in((query or {}).get("search"))
        if asked is None or ctx.triggered_id == tray.news(PAGE):
            gone = held is not None and held not in names
            return names, None if gone else no_update, no_update
        if asked not in names:
            notify.show(notify.error(f"The tray has no direction {asked!r}.", title="Not in the tray"))
            return names, None, TRAY
        return names, asked, TRAY

    @app.callback(
        Output(ids.of(PAGE, "about"), "children"),
        Input(ids.of(PAGE, "direction"), "value"),
        Input(ids.of(PAGE, "model"), "value"),
        Input(ids.of(PAGE, "force"), "checked"),
    )
    def tell(name, model, force) -> Any:
        if not name:
            words = "Choose one of the tray; probes and this page save into it."
            return dmc.Text(words, size="sm", c="dimmed")
        if name not in (mine := library()):
            return dmc.Text(f"{name!r} is not in the tray any more.", size="sm")
        entry = mine.entry(name)
        return tray_rows.about(entry, tray_rows.fit_of(state, entry, model), force=bool(force))
