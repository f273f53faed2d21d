"""`workbench runs list|show`: what has been run."""

from __future__ import annotations

import json as jsonlib
from typing import Annotated

import typer

from workbench.cli.common import JsonOption, RunsOption, new_app, print_table, run_json, show_run

app = new_app("List and show runs.")


@app.command("list", epilog="Example: workbench runs list --kind lens")
def list_(
    kind: Annotated[str | None, typer.Option(help="Only runs of this kind.")] = None,
    limit: Annotated[int, typer.Option(help="How many of the newest to show.")] = 50,
    runs: RunsOption = None,
    json: JsonOption = False,
) -> None:
    """List the runs of a folder, newest first."""
    from workbench.runs import list_runs, runs_folder

    found = [info for info in list_runs(runs) if kind is None or info.kind == kind]
    shown = found[:limit]
    if json:
        rows = [
            {
                "id": i.id,
                "kind": i.kind,
                "title": i.title,
                "created": i.created,
                "seconds": i.seconds,
                "model": i.model,
                "summary": i.summary,
                "problem": i.problem,
            }
            for i in shown
        ]
        typer.echo(jsonlib.dumps({"runs": rows, "n": len(found)}, indent=1, ensure_ascii=False))
        return
    if not found:
        typer.echo(f"No runs in {str(runs_folder(runs))!r}. `workbench demo` makes some.")
        return
    rows = [[i.id, i.kind, i.model, f"{i.seconds:.1f}", i.problem or i.title] for i in shown]
    print_table(["run", "kind", "model", "seconds", "title"], rows)
    if len(shown) < len(found):
        typer.echo(f"Showing {len(shown)} of {len(found)}; --limit shows more.")


@app.command(epilog="Example: workbench runs show 20261122-0145")
def show(
    run: Annotated[str, typer.Argument(help="Id of the run, or an unambiguous beginning of it.")],
    runs: RunsOption = None,
    json: JsonOption = False,
) -> None:
    """Show one run: its table, summary and where its report is."""
    from workbench.runs import load_run

    found = load_run(run, runs)
    if json:
        typer.echo(jsonlib.dumps(run_json(found), indent=1, ensure_ascii=False))
    else:
        show_run(found)
