"""`workbench dashboard`: the workbench in a browser, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command(epilog="Example: workbench dashboard --port 8060 --runs runs --no-open")
def dashboard(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8050,
    host: Annotated[str, typer.Option(help="Loopback address to listen on.")] = "127.0.0.1",
    runs: Annotated[
        Path | None, typer.Option(help="Folder of the runs [default: $WORKBENCH_RUNS or ./runs].")
    ] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="Model that forms begin with.")
    ] = "smollm2-135m",
    open_: Annotated[bool, typer.Option("--open/--no-open", help="Open a browser.")] = True,
) -> None:
    """Serve the dashboard to this machine and open it in a browser; Ctrl+C ends it."""
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
    if open_:
        webbrowser.open(address)
    try:
        server.run()
    finally:
        server.close()
        worker.close()
        typer.echo("Stopped.")
