"""`workbench dashboard`: the workbench in a browser, on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from workbench.cli.common import ModelOption, RunsOption

app = typer.Typer()


@app.command(epilog="Example: workbench dashboard --port 8060 --runs runs --no-open")
def dashboard(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8050,
    host: Annotated[str, typer.Option(help="Loopback address to listen on.")] = "127.0.0.1",
    runs: RunsOption = None,
    model: ModelOption = "smollm2-135m",
    open_: Annotated[bool, typer.Option("--open/--no-open", help="Open a browser.")] = True,
) -> None:
    """Serve the dashboard to this machine and open it in a browser; Ctrl+C ends it."""
    import threading
    import webbrowser

    from dashboards.app import create_app
    from dashboards.server import make_server
    from workbench.jobs import JobWorker
    from workbench.runs import runs_folder

    folder = runs_folder(runs).absolute()
    worker = JobWorker(folder)
    server = make_server(create_app(folder, worker, model=model), host, port)
    address = f"http://{'[::1]' if ':' in host else host}:{port}/"
    typer.echo(f"Latent Workbench is at {address} (runs in {folder}). Ctrl+C ends it.")
    threading.Thread(target=_warm_up, daemon=True).start()
    if open_ and _has_screen():
        webbrowser.open(address)
    try:
        server.run()
    finally:
        server.close()
        worker.close()
        typer.echo("Stopped.")


def _warm_up() -> None:
    """Import what the first job needs while its form is being read: some seconds of its wait."""
    import workbench.lens.logit_lens
    import workbench.model.loading
    import workbench.patching.sweep  # noqa: F401


def _has_screen() -> bool:
    """Whether a browser has a window to open; without one a text browser would take over the terminal."""
    import os
    import sys

    return sys.platform in ("darwin", "win32") or bool({"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys())
