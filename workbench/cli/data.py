"""`workbench data list|show`: the prompt sets at hand."""

from __future__ import annotations

import json as jsonlib
from dataclasses import asdict
from typing import Annotated

import typer

from workbench.cli.common import JsonOption, new_app, print_table

app = new_app("List and show prompt sets.")


@app.command("list", epilog="Example: workbench data list")
def list_(json: JsonOption = False) -> None:
    """List the prompt sets with size, licence and source."""
    from workbench import datasets

    sets = [datasets.load(name) for name in datasets.names()]
    if json:
        facts = [
            {"name": s.name, "kind": s.kind, "n": len(s), "licence": s.licence, "source": s.source}
            for s in sets
        ]
        typer.echo(jsonlib.dumps(facts, indent=1, ensure_ascii=False))
        return
    rows = [[s.name, s.kind, str(len(s)), s.licence, s.source] for s in sets]
    print_table(["name", "kind", "n", "licence", "source"], rows)


@app.command(epilog="Example: workbench data show capitals --limit 5")
def show(
    dataset: Annotated[str, typer.Argument(help="A prompt set by name, or a file.")],
    limit: Annotated[int, typer.Option(help="How many records.")] = 5,
    json: JsonOption = False,
) -> None:
    """Show the first records of a prompt set."""
    from workbench import datasets

    loaded = datasets.load(dataset)
    records = [asdict(record) for record in list(loaded)[:limit]]
    if json:
        typer.echo(jsonlib.dumps(records, indent=1, ensure_ascii=False, default=dict))
        return
    for record in records:
        print_table(["", ""], [[k, str(v)] for k, v in record.items() if v not in (None, "", {})])
        typer.echo("")
    typer.echo(f"Showing {len(records)} of {len(loaded)}.")
