"""Start: what is here, what was done last, and three worked examples to click."""

from __future__ import annotations

from typing import Any

import dash
import dash_mantine_components as dmc
from dash import ALL, Input, Output, html, no_update

from dashboards import following, ids
from dashboards.components import forms, tables
from dashboards.components.aria import aria
from dashboards.components.clicks import clicked
from dashboards.jobs_view import PAGES, seconds
from dashboards.pages import patch
from dashboards.state import AppState
from workbench.errors import RunError
from workbench.specs import parse_spec

PAGE, PATH = "start", "/"
N_RECENT = 8

EXAMPLES: dict[str, dict[str, Any]] = {
    "lens": {
        "title": "When is the answer known?",
        "about": "Logit lens on “When Mary and John went to the store, John gave a drink to”: from which "
        "layer on is ' Mary' the top token?",
        "fields": {"kind": "lens", "prompt": patch.EXAMPLE["clean"], "target": " Mary", "top_k": 10},
    },
    "patch": {
        "title": "Where is the answer stored?",
        "about": "Swap one name, then copy the residual stream back, one layer and position at a time, "
        "beside a wrong-source control.",
        "fields": {"kind": "patch", **patch.EXAMPLE},
    },
    "probe": {
        "title": "Is sentiment a direction?",
        "about": "Linear probes for positive and negative sentences at every layer, beside shuffled labels.",
        "fields": {"kind": "probe", "dataset": "sentiment", "limit": 160},
    },
}


def layout(state: AppState) -> html.Div:
    """Examples, recent runs, status."""
    about = "Look inside language models: decode, patch and probe the activations of an untouched model."
    return html.Div(
        [
            forms.heading("Start", about),
            dmc.SimpleGrid(
                [_example(name, e) for name, e in EXAMPLES.items()], cols={"base": 1, "sm": 3}, spacing="md"
            ),
            html.Div(
                [
                    forms.card(dmc.Title("Recent runs", order=2), *_recent(state)),
                    forms.card(dmc.Title("Here", order=2), tables.facts(status(state))),
                ],
                className="start-columns",
            ),
        ],
        className="stack",
    )


def _example(name: str, example: dict[str, Any]) -> dmc.Paper:
    return forms.card(
        dmc.Stack(
            [
                dmc.Title(example["title"], order=2),
                dmc.Text(example["about"], size="sm", c="dimmed", flex=1),
                dmc.Group(
                    [
                        dmc.Button(
                            "Run",
                            id=ids.example(PAGE, name),
                            size="xs",
                            **aria(label=f"Run: {example['title']}"),
                        ),
                        dmc.Anchor("Open the page", href=PAGES[name], size="sm", className="tap"),
                    ],
                    gap="md",
                ),
            ],
            gap="xs",
            h="100%",
        )
    )


def _recent(state: AppState) -> list[Any]:
    found = state.list_runs()
    if not found:
        return [dmc.Text("None yet: click an example.", size="sm", c="dimmed")]
    rows = [
        [
            dmc.Anchor(
                info.title or info.id,
                href=f"/runs/{info.id}",
                size="sm",
                lineClamp=1,
            ),
            info.kind or "broken",
            info.created[:16].replace("T", " "),
        ]
        for info in found[:N_RECENT]
    ]
    all_of_them = dmc.Anchor(f"All {len(found)} runs", href="/runs", size="sm", className="tap")
    return [tables.table(["title", "kind", "created (UTC)"], rows), all_of_them]


def status(state: AppState) -> dict[str, Any]:
    """Model, device, runs and jobs, in words."""
    loaded = state.model_in_use()
    cached = forms.model_cached(state.model)
    where = {
        True: "fetched",
        False: "not fetched yet: the first run does it",
        None: "from a folder or the hub",
    }[cached]
    active = len(state.active())
    return {
        "model": f"{state.model} ({where})",
        "in memory": loaded.name if loaded else "none: the first run loads it",
        "device": _device(state),
        "runs": str(state.runs),
        "jobs": f"{active} running or waiting" if active else "none running",
    }


def _device(state: AppState) -> str:
    """Where the newest run was computed that can be opened here; a link or a copy of another name cannot."""
    for info in state.list_runs():
        if info.problem:
            continue
        try:
            made_by = state.run(info.id).provenance["provenance"]["model"]
        except RunError:
            continue
        return (
            f"{made_by.get('device', '?')}, {made_by.get('dtype', '?')} (last run, {seconds(info.seconds)})"
        )
    return "known after the first run"


def register(app: dash.Dash, state: AppState) -> None:
    """Callback: an example is submitted, and its page shows the progress."""

    @app.callback(
        Output(ids.SUBMITTED, "data", allow_duplicate=True),
        Output(ids.LOCATION, "pathname", allow_duplicate=True),
        Output(ids.LOCATION, "search", allow_duplicate=True),
        Input({"type": f"{PAGE}-example", "name": ALL}, "n_clicks"),
        prevent_initial_call=True,
    )
    def run_example(_clicks):
        if (kind := clicked("name")) is None:
            return [no_update] * 3
        spec = parse_spec({**EXAMPLES[kind]["fields"], "model": {"name": state.model}}, source="The example")
        page = PAGES[kind]
        return following.submit(state, spec, page.strip("/")), page, ""
