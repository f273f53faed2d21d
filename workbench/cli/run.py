"""`workbench run spec.yaml`: do what a spec asks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.common import JsonOption, RunsOption, execute, new_app

app = new_app()


@app.command(epilog="Example: workbench run runs/20261122-014512-lens-3f2a/spec.yaml")
def run(
    spec: Annotated[Path, typer.Argument(help="YAML file with a spec (every run folder has one).")],
    runs: RunsOption = None,
    json: JsonOption = False,
) -> None:
    """Run a spec from a YAML file."""
    from workbench.specs import load_spec

    execute(load_spec(spec), runs=runs, as_json=json)
