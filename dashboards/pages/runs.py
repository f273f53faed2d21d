"""Runs: every run of the folder in a table, newest first; broken ones with what is wrong with them."""

from __future__ import annotations

from typing import Any

import dash
import dash_ag_grid as dag
import dash_mantine_components as dmc
from dash import Input, Output, dcc, html, no_update

from dashboards import ids
from dashboards.components import forms
from dashboards.components.aria import aria
from dashboards.state import AppState
from workbench.runs import RunInfo

PAGE, PATH = "runs", "/runs"
KIND, TEXT, COUNT, GRID = (ids.of(PAGE, name) for name in ("kind", "text", "count", "grid"))
ALL_KINDS, BROKEN = "all", "broken"
THEME = (
    "themeQuartz.withParams({backgroundColor: 'var(--mantine-color-body)',"
    " foregroundColor: 'var(--mantine-color-text)', headerTextColor: 'var(--mantine-color-text)',"
    " borderColor: 'var(--mantine-color-default-border)', headerBackgroundColor: 'var(--surface)',"
    " accentColor: 'var(--mantine-primary-color-filled)',"
    " rowHoverColor: 'var(--mantine-color-default-hover)',"
    " selectedRowBackgroundColor: 'var(--mantine-color-default-hover)', fontFamily: 'inherit', fontSize: 13,"
    " browserColorScheme: 'inherit', spacing: 5})"
)
"""The grid takes its colours from the page, so it follows light and dark by itself."""
COLUMNS: list[dict[str, Any]] = [
    {
        "field": "title",
        "headerName": "Title",
        "flex": 3,
        "minWidth": 220,
        "cellRenderer": "RunLink",
        "tooltipField": "title",
    },
    {"field": "kind", "headerName": "Kind", "width": 90},
    {"field": "model", "headerName": "Model", "width": 150},
    {"field": "created", "headerName": "Created (UTC)", "width": 150},
    {"field": "seconds", "headerName": "Seconds", "width": 95, "type": "numericColumn"},
    {"field": "id", "headerName": "Id", "width": 215, "cellClass": "mono", "tooltipField": "id"},
]


def layout(state: AppState) -> html.Div:
    """Filters, count and table."""
    found = state.list_runs()
    about = f"What has been run, from {str(state.runs)!r}. Click a run for its report."
    filters = dmc.Group(
        [
            dmc.Select(
                id=KIND,
                label="Kind",
                data=kinds(found),
                value=ALL_KINDS,
                allowDeselect=False,
                w=160,
                **forms.KEEP,
            ),
            dmc.TextInput(id=TEXT, label="Text in title, model or id", debounce=250, w=300, **forms.KEEP),
            dmc.Text(id=COUNT, size="sm", c="dimmed", className="count", **aria(live="polite")),
        ],
        align="end",
        gap="sm",
        mb="sm",
    )
    grid = dag.AgGrid(
        id=GRID,
        columnDefs=COLUMNS,
        rowData=[],
        defaultColDef={
            "resizable": True,
            "sortable": True,
            "filter": False,
            "suppressHeaderMenuButton": True,
        },
        getRowId="params.data.id",
        dashGridOptions={
            "theme": {"function": THEME},
            "animateRows": False,
            "suppressCellFocus": False,
            "tooltipShowDelay": 500,
            "localeText": {"noRowsToShow": "No runs to show."},
        },
        rowClassRules={"run-broken": "params.data.problem !== ''"},
        style={"height": "calc(100vh - 230px)", "minHeight": "320px"},
    )
    return html.Div([forms.heading("Runs", about), dcc.Store(id=ids.news(PAGE)), filters, grid])


def kinds(found: list[RunInfo]) -> list[dict[str, str]]:
    """What can be chosen as kind, with how many there are of each."""
    counts: dict[str, int] = {}
    for info in found:
        name = BROKEN if info.problem else info.kind
        counts[name] = counts.get(name, 0) + 1
    options = [{"value": ALL_KINDS, "label": f"all ({len(found)})"}]
    return options + [{"value": name, "label": f"{name} ({n})"} for name, n in sorted(counts.items())]


def select(found: list[RunInfo], kind: str | None, text: str | None) -> list[RunInfo]:
    """The runs of a kind whose title, model or id has the text."""
    needle = (text or "").strip().lower()
    return [
        info
        for info in found
        if kind in (None, ALL_KINDS, BROKEN if info.problem else info.kind)
        and needle in f"{info.title} {info.model} {info.id}".lower()
    ]


def row(info: RunInfo) -> dict[str, Any]:
    """A run as a row of the table."""
    return {
        "id": info.id,
        "kind": info.kind or BROKEN,
        "title": f"Cannot be read: {info.problem}" if info.problem else info.title or "(no title)",
        "model": info.model,
        "created": info.created[:16].replace("T", " "),
        "seconds": None if info.problem else round(info.seconds, 2),
        "problem": info.problem,
    }


def register(app: dash.Dash, state: AppState) -> None:
    """Callbacks: filter; open the clicked run."""

    @app.callback(
        Output(GRID, "rowData"),
        Output(COUNT, "children"),
        Input(KIND, "value"),
        Input(TEXT, "value"),
        Input(ids.news(PAGE), "data"),
    )
    def filter_runs(kind, text, _jobs):
        found = state.list_runs()
        chosen = select(found, kind, text)
        n = f"{len(found)} runs" if len(chosen) == len(found) else f"{len(chosen)} of {len(found)} runs"
        return [row(info) for info in chosen], n

    @app.callback(
        Output(ids.LOCATION, "pathname", allow_duplicate=True),
        Output(ids.LOCATION, "search", allow_duplicate=True),
        Input(GRID, "cellClicked"),
        prevent_initial_call=True,
    )
    def open_run(cell):
        if not cell or cell["colId"] == "title":  # the title is a link and goes there by itself
            return no_update, no_update
        return f"/runs/{cell['rowId']}", ""
