"""`workbench models`: which models can be loaded by name; fetch one, check one, train one."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli.common import JsonOption, new_app, progress_bars

if TYPE_CHECKING:
    from workbench.model.aliases import Alias
    from workbench.organisms.shipped import Card

app = new_app("List, fetch, check and train models.")


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
    figures: dict[str, float] = field(default_factory=dict)
    """Held-out figures of a model organism; empty for others."""
    goals: list[dict[str, Any]] = field(default_factory=list)


def rows() -> list[Row]:
    """The models the table shows: those to fetch first, then the organisms that come with the project."""
    from workbench.model import aliases
    from workbench.organisms import shipped

    return [*map(_fetchable, aliases.known().values()), *map(_organism, shipped.cards())]


@app.command("list")
def list_models(as_json: JsonOption = False) -> None:
    """Show the models that can be loaded by name: those to fetch, and the small ones trained by this project.

    Example: workbench models list --json
    """
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows()], indent=2))
        return
    from rich.console import Console
    from rich.table import Column, Table

    every = rows()
    console = Console()
    table = Table(Column("Name", no_wrap=True), "Parameters", "Layers", "Licence", "Cached", "Size", "Source")
    for row in (row for row in every if not row.figures):
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
    console.print(table)
    organisms = [row for row in every if row.figures]
    if organisms:
        title = "Model organisms: small models trained for this project"
        right = {"justify": "right", "no_wrap": True}
        table = Table(
            Column("Organism", no_wrap=True),
            Column("Task", ratio=1),
            Column("Held out", no_wrap=True),
            Column("Parameters", **right),  # type: ignore[arg-type]
            Column("Size", **right),  # type: ignore[arg-type]
            box=None,
            title=title,
            title_justify="left",
        )
        for row in organisms:
            metric = row.goals[0]["metric"] if row.goals else next(iter(row.figures))
            table.add_row(
                row.name,
                row.summary,
                f"{metric} {row.figures[metric]:.4f} (n {row.figures.get('n', 0):.0f})",
                f"{row.n_parameters / 1e6:.2f} M",
                f"{row.bytes_on_disk / 1e6:.1f} MB",
            )
        console.print(table)


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


@app.command("train")
def train_model(
    name: Annotated[str, typer.Argument(help="A model organism from `workbench models list`.")],
    seed: Annotated[int, typer.Option(help="Seed of the weights and of every batch.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Stop after so many steps in all [default: all].")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the trained model [default: ./models/NAME-seedS].")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads. Other numbers change the last digits.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Train a model organism; called again after an interruption it goes on where it stopped.

    Example: workbench models train modular-addition --seed 3
    """
    import torch

    from workbench import organisms
    from workbench.errors import ModelError
    from workbench.model.loading import resolve_device
    from workbench.organisms import shipped
    from workbench.organisms.training import snapshots_of, train

    if threads < 1 or (steps is not None and steps < 1):
        raise ModelError(f"threads is {threads} and steps {steps}: both are whole numbers of at least 1.")
    organism = organisms.get(name)
    target = out or Path("models") / f"{name}-seed{seed}"
    working = target.with_name(f".{target.name}.training")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with progress_bars(show=not as_json) as progress:
            trained = train(
                organism,
                seed=seed,
                steps=steps,
                folder=working,
                device=str(resolve_device(device)),
                progress=progress,
            )
    except KeyboardInterrupt:
        typer.echo(f"Stopped. The same command goes on from {working}.", err=True)
        raise typer.Exit(130) from None
    finally:
        torch.set_num_threads(before)
    card = shipped.write(organism, trained, seed=seed, target=target, snapshots=snapshots_of(working))
    if as_json:
        typer.echo(json.dumps({"folder": str(target), **asdict(card)}, indent=1))
        return
    figures = ", ".join(f"{key} {value:.4g}" for key, value in card.figures.items())
    typer.echo(f"{name}, seed {seed}: {trained.step} steps, {card.minutes:g} min. Held out: {figures}.")
    typer.echo(f"Model {target}   ·   workbench lens --model {target} …")


def _organism(card: Card) -> Row:
    from workbench.organisms import shipped

    return Row(
        name=card.name,
        summary=card.summary,
        n_parameters=card.n_parameters,
        n_layers=card.n_layers,
        licence=card.licence,
        cached="shipped",
        bytes_on_disk=card.bytes,
        bytes_to_fetch=0,
        source="trained by this project",
        folder=str(shipped.folder(card.name)),
        figures=dict(card.figures),
        goals=[dict(goal) for goal in card.goals],
    )


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
