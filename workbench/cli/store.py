"""`workbench store info|verify|merge`: activation stores on disk."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.common import JsonOption, new_app, print_table, progress_bars

app = new_app("Look at, check and merge activation stores.")
Folder = Annotated[Path, typer.Argument(help="Folder of the store.", show_default=False)]


@app.command(epilog="Example: workbench store info acts/")
def info(folder: Folder, json: JsonOption = False) -> None:
    """Say what a store holds and what made it."""
    from workbench.store import open_store

    facts = open_store(folder).info
    if json:
        typer.echo(jsonlib.dumps(facts, indent=1, ensure_ascii=False))
        return
    sites = facts.pop("sites")
    not_finite = facts.pop("not_finite")
    rows = [
        [name, str(site["shape"]), site["dtype"], str(not_finite.get(name, 0))]
        for name, site in sites.items()
    ]
    print_table(["site", "shape of a row", "dtype", "rows with NaN or inf"], rows)
    settings = facts.pop("settings")
    if not facts["complete"]:
        facts["complete"] = "no: still being written, or interrupted (run its collection again to go on)"
    print_table(["", ""], [[name.replace("_", " "), _shown(value)] for name, value in facts.items()])
    if settings:
        print_table(["setting", ""], [[name, _shown(value)] for name, value in settings.items()])


@app.command(epilog="Example: workbench store verify acts/")
def verify(folder: Folder, json: JsonOption = False) -> None:
    """Read every byte and compare it with what was written. Exit code 1 when something is damaged."""
    from workbench.store.verify import verify as verify_store

    with progress_bars(show=not json) as progress:
        report = verify_store(folder, progress=progress)
    if json:
        typer.echo(jsonlib.dumps(report.to_dict(), indent=1, ensure_ascii=False))
    else:
        if report.faults:
            rows = [["" if f.shard is None else str(f.shard), f.what] for f in report.faults]
            print_table(["shard", "what is wrong"], rows)
        state = "complete" if report.complete else "incomplete"
        found = f"{len(report.faults)} faults" if report.faults else "nothing wrong"
        typer.echo(f"{folder}: {state}, {report.n_shards} shards, {report.n_rows:,} rows; {found}.")
    if not report.ok:
        raise typer.Exit(1)


@app.command(epilog="Example: workbench store merge acts-1/ acts-2/ --into acts/")
def merge(
    folders: Annotated[list[Path], typer.Argument(help="Complete stores, in order.", show_default=False)],
    into: Annotated[Path, typer.Option(help="Folder of the new store.", show_default=False)],
    rows_per_shard: Annotated[
        int | None, typer.Option(help="Rows of a shard [default: as in the first].")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write one store with the rows of several; prompts of later ones are numbered on."""
    from workbench.store.merge import merge as merge_stores

    with progress_bars(show=not json) as progress:
        store = merge_stores(folders, into, rows_per_shard=rows_per_shard, progress=progress)
    if json:
        typer.echo(jsonlib.dumps(store.info, indent=1, ensure_ascii=False))
    else:
        typer.echo(f"Merged {len(folders)} stores: {store!r}")


def _shown(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return value if isinstance(value, str) else jsonlib.dumps(value, ensure_ascii=False)
