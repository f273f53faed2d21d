"""`workbench models`: which models can be fetched by name, fetch one, check one."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from workbench.cli.common import JsonOption, new_app, progress_bars

if TYPE_CHECKING:
    from workbench.model.aliases import Alias

app = new_app("List, fetch and check models.")


@dataclass(frozen=True)
class Row:
    """One model in the list."""

    name: str
    summary: str
    n_parameters: int
    n_layers: int
    licence: str
    cached: str
    """"yes", "no" or "damaged"."""
    bytes_on_disk: int
    """0 where it is not cached."""
    bytes_to_fetch: int
    """0 where it is cached."""
    source: str
    folder: str


def rows() -> list[Row]:
    """The models the table shows, built-in ones first."""
    from workbench.model import aliases

    return [_fetchable(alias) for alias in aliases.known().values()]


@app.command("list")
def list_models(as_json: JsonOption = False) -> None:
    """Show the models that can be loaded by name, and which of them are in the cache.

    Example: workbench models list --json
    """
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows()], indent=2))
        return
    from rich.console import Console
    from rich.table import Column, Table

    table = Table(Column("Name", no_wrap=True), "Parameters", "Layers", "Licence", "Cached", "Size", "Source")
    for row in rows():
        size = (
            _megabytes(row.bytes_on_disk)
            if row.bytes_on_disk
            else f"{_megabytes(row.bytes_to_fetch)} to fetch"
        )
        table.add_row(
            row.name,
            f"{row.n_parameters / 1e6:.0f} M",
            str(row.n_layers),
            row.licence,
            row.cached,
            size,
            row.source,
        )
    Console().print(table)


@app.command("pull")
def pull_model(
    name: Annotated[str, typer.Argument(help="A name from `workbench models list`.")],
    force: Annotated[bool, typer.Option("--force", help="Fetch again and replace what is cached.")] = False,
    wheel: Annotated[
        Path | None, typer.Option("--wheel", help="A local copy of the wheel: no network.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch a model, convert it and keep it in the cache.

    Example: workbench models pull smollm2-135m
    """
    from workbench.model import cache
    from workbench.model.pull import pull

    started = time.perf_counter()
    with progress_bars(show=not as_json) as progress:
        folder = pull(name, wheel=wheel, force=force, progress=progress)
    seconds = round(time.perf_counter() - started, 1)
    size = cache.verify(folder, name=name).size
    if as_json:
        typer.echo(json.dumps({"name": name, "folder": str(folder), "bytes": size, "seconds": seconds}))
    else:
        typer.echo(f"{name} is ready in {folder} ({_megabytes(size)}, {seconds} s).")


@app.command("verify")
def verify_model(
    name: Annotated[str, typer.Argument(help="A name from `workbench models list`.")],
    as_json: JsonOption = False,
) -> None:
    """Compare every byte of a cached model with the hashes taken when it was made.

    Example: workbench models verify smollm2-135m
    """
    from workbench.errors import ModelError
    from workbench.model import aliases, cache

    folder = cache.model_folder(aliases.find(name))
    if not folder.exists():
        raise ModelError(f"Model {name!r} is not in the cache. Fetch it with `workbench models pull {name}`.")
    manifest = cache.verify(folder, name=name, deep=True)
    if as_json:
        files = {path: asdict(record) for path, record in manifest.files.items()}
        typer.echo(json.dumps({"name": name, "folder": str(folder), "whole": True, "files": files}))
    else:
        typer.echo(f"{name} is whole: {len(manifest.files)} files, {_megabytes(manifest.size)} in {folder}.")


def _fetchable(alias: Alias) -> Row:
    from workbench.errors import ModelError
    from workbench.model import cache

    folder, size, cached = cache.model_folder(alias), 0, "no"
    if folder.exists():
        try:
            size, cached = cache.verify(folder, name=alias.name).size, "yes"
        except ModelError:
            cached = "damaged"
    return Row(
        name=alias.name,
        summary=alias.summary,
        n_parameters=alias.n_parameters,
        n_layers=alias.n_layers,
        licence=alias.licence,
        cached=cached,
        bytes_on_disk=size,
        bytes_to_fetch=0 if cached == "yes" else alias.wheel_size,
        source=f"PyPI {alias.requirement} ({alias.quantisation})",
        folder=str(folder),
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"
