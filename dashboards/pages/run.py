"""Report of one run: figures, summary, spec, code that asks for it again, provenance."""

from __future__ import annotations

import json
from typing import Any

import dash_mantine_components as dmc
from dash import html

from dashboards import ids
from dashboards.components import code, forms, graphs, notify, reproduce, tables
from dashboards.components.aria import aria
from dashboards.figures import control_statement
from dashboards.jobs_view import PAGES, seconds
from dashboards.state import AppState
from workbench.errors import RunError
from workbench.runs import Run

PAGE, PREFIX = "run", "/runs/"
BODY, ID = ids.of(PAGE, "body"), ids.of(PAGE, "id")
FILES = {"report.html": "Standalone page", "spec.yaml": "Spec", "provenance.json": "Provenance"}
"""Files of a run that the server hands out, and what they are called."""


def layout(state: AppState, run_id: str, scheme: str | None) -> html.Div:
    """The report, or why there is none."""
    try:
        return html.Div(report(state.run(run_id), scheme), className="stack")
    except RunError as error:
        notify.show(notify.error(str(error), title="This run cannot be shown"))
        return html.Div(
            [
                forms.heading("Run", "It cannot be shown."),
                forms.card(
                    dmc.Text(str(error)), dmc.Anchor("All runs", href="/runs", mt="sm", className="tap")
                ),
            ]
        )


def report(run: Run, scheme: str | None) -> list[Any]:
    """Everything about a run."""
    result = run.result
    drawn = graphs.graphs(result, PAGE, scheme)
    return [
        _head(run),
        dmc.Text(control_statement(result), size="sm", c="dimmed", mb="sm"),
        *(forms.card(figure) for figure in drawn.values()),
        html.Div(
            [
                html.Div(
                    [
                        forms.card(dmc.Title("Summary", order=2), tables.facts(readable(result.summary))),
                        forms.card(dmc.Title("Provenance", order=2), *_provenance(run)),
                    ],
                    className="stack",
                ),
                html.Div(
                    [
                        forms.card(*_how_to_repeat(run)),
                        forms.card(dmc.Title("Log", order=2), _log(run)),
                    ],
                    className="stack",
                ),
            ],
            className="report-columns",
        ),
    ]


def readable(values: dict[str, Any]) -> dict[str, str]:
    """Values of a summary as texts; nested ones on one line."""
    shown = {}
    for name, value in values.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k.replace('_', ' ')} {v!r}" for k, v in value.items())
        elif name == "depth" and value is None:
            value = "never top-1"
        shown[name] = str(value)
    return shown


def _head(run: Run) -> html.Div:
    info = run.info
    page = PAGES.get(info.kind)
    links = (
        [dmc.Anchor("Open with its form", href=f"{page}?run={run.id}", size="sm", className="tap")]
        if page
        else []
    )
    links += [
        html.A(label, href=f"/files/{run.id}/{name}", download=f"{run.id}-{name}", className="tap download")
        for name, label in FILES.items()
        if (run.path / name).is_file()
    ]
    created = info.created[:16].replace("T", " ")
    facts = f"{info.model or 'model not named'} · {created} UTC · {seconds(info.seconds)}"
    return html.Div(
        [
            dmc.Group(
                [
                    dmc.Badge(info.kind, variant="light", color="gray"),
                    dmc.Title(info.title or run.id, order=1, className="run-title"),
                ],
                gap="xs",
                wrap="nowrap",
                align="flex-start",
            ),
            dmc.Group(
                [
                    dmc.Text([html.Code(run.id), " · ", facts], size="sm", c="dimmed"),
                    html.Div(className="spacer"),
                    *links,
                ],
                gap="md",
            ),
        ],
        className="page-heading",
    )


def _how_to_repeat(run: Run) -> list[Any]:
    try:
        spec = run.spec
    except RunError as error:  # a kind of a package that is not installed here
        return [dmc.Title("Ask again", order=2), dmc.Text(str(error), size="sm")]
    parts = {"Python": reproduce.python(spec), "command line": reproduce.shell(spec), "spec": spec.to_yaml()}
    tabs = dmc.Tabs(
        [
            dmc.TabsList([dmc.TabsTab(name[0].upper() + name[1:], value=name) for name in parts]),
            *(dmc.TabsPanel(code.block(text, name), value=name, pt="xs") for name, text in parts.items()),
        ],
        value="Python",
    )
    return [dmc.Title("Ask again", order=2), tabs]


def _provenance(run: Run) -> list[Any]:
    recorded = run.provenance["provenance"]
    flat = {"seed": str(recorded.get("seed"))}
    for part in ("model", "inputs", "settings"):
        known = (recorded.get(part) or {}).items()
        flat |= {f"{part}: {name}": str(value) for name, value in known if value is not None}
    flat |= {name: str(recorded[name]) for name in ("created", "python", "processor") if name in recorded}
    flat["seconds"] = ", ".join(
        f"{name} {value:g}" for name, value in (recorded.get("seconds") or {}).items()
    )
    versions = ", ".join(f"{name} {value}" for name, value in (recorded.get("versions") or {}).items())
    return [tables.facts({**flat, "versions": versions})]


def _log(run: Run) -> html.Pre:
    lines = []
    try:
        for event in run.log():
            more = {k: v for k, v in event.items() if k not in ("time", "seconds", "event")}
            lines.append(
                f"{event['seconds']:>9.3f} s  {event['event']:<9} {json.dumps(more, ensure_ascii=False)}"
            )
    except (OSError, ValueError, KeyError) as error:  # a run copied without it: everything else is there
        lines.append(f"log.jsonl cannot be read further: {error}")
    return html.Pre("\n".join(lines), className="code", tabIndex=0, **aria(label="Log"))
