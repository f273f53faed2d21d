"""The app factory: shell, pages, routing and the error boundary, on Flask.

    from dashboards.app import create_app

    create_app("runs").run()          # for a quick look; `workbench dashboard` serves it properly

No state lives in this module: several apps can stand side by side in one process. Everything is served from
here, no page asks another host for anything.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dash
import dash_mantine_components as dmc
from dash import Dash, Input, Output, html

from dashboards import ids, jobs_view, server, shell
from dashboards.components import forms, graphs, job_panel, notify, tray
from dashboards.pages import lens, patch, probes, run, runs, start, steer
from dashboards.state import AppState
from workbench.jobs import JobWorker

PAGES = {page.PATH: page for page in (start, lens, patch, probes, steer, runs)}


def create_app(
    runs: str | Path | None = None, worker: JobWorker | None = None, *, model: str = "smollm2-135m"
) -> Dash:
    """The dashboard.

    Args:
        runs: folder of the runs (default: the worker's, else `$WORKBENCH_RUNS` or `./runs`).
        worker: what executes jobs; one of its own by default.
        model: the model that forms begin with.

    Example:
        >>> app = create_app("runs")
        >>> app.run(port=8050)
    """
    state = AppState.make(runs, worker, model)
    app = Dash(
        "dashboards",
        title="Latent Workbench",
        update_title=None,  # type: ignore[arg-type]  # None leaves the title alone while callbacks run
        assets_folder=str(Path(__file__).parent / "assets"),
        use_pages=False,
        serve_locally=True,
        index_string=shell.INDEX,
        on_error=notify.on_error,
        meta_tags=[{"name": "viewport", "content": "width=device-width, initial-scale=1"}],
    )
    app.layout = shell.layout()
    app.validation_layout = html.Div([shell.layout(), *(page.layout(state) for page in PAGES.values())])
    shell.register(app)
    jobs_view.register(app, state)
    tray.register(app, state)
    graphs.register(app)
    job_panel.register(app, state, {page.PAGE: page.KIND for page in (lens, patch, probes, steer)})
    for page in PAGES.values():
        page.register(app, state)
    _register_routing(app, state)
    server.register_files(app.server, state)
    server.secure(app.server, scripts=app.csp_hashes())
    return app


def page_content(state: AppState, pathname: str | None, scheme: str | None) -> Any:
    """What stands at an address."""
    path = pathname or "/"
    if path.startswith(run.PREFIX) and len(path) > len(run.PREFIX):
        return run.layout(state, path.removeprefix(run.PREFIX), scheme)
    page = PAGES.get(path.rstrip("/") or "/")
    if page is not None:
        return page.layout(state)
    return html.Div(
        [
            forms.heading("No such page", f"There is nothing at {path}."),
            dmc.Anchor("To the start", href="/", className="tap"),
        ]
    )


def _register_routing(app: dash.Dash, state: AppState) -> None:
    @app.callback(Output(ids.CONTENT, "children"), Input(ids.ROUTE, "data"), prevent_initial_call=True)
    def route(to):
        return page_content(state, to["path"], to["scheme"])
