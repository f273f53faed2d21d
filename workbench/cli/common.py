"""What the sub-commands share: running a spec with progress bars, and printing what came out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from workbench.progress import Progress
    from workbench.results import Result
    from workbench.runs import Run
    from workbench.specs import Spec


def new_app(help: str | None = None) -> typer.Typer:
    """A command's Typer app: plain help texts (no markup, so `[...]` stays), no completion options.

    With `help` it is a group of sub-commands that shows its help when called bare.
    """
    return typer.Typer(
        help=help, no_args_is_help=help is not None, rich_markup_mode=None, add_completion=False
    )


ModelOption = Annotated[str, typer.Option("--model", "-m", help="Alias, hub id or folder.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
DtypeOption = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
RunsOption = Annotated[
    Path | None, typer.Option("--runs", help="Folder of the runs [default: $WORKBENCH_RUNS or ./runs].")
]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def make_spec(kind: str, *, command: str | None = None, **fields: Any) -> Spec:
    """A checked spec from a command's arguments; unset (None) arguments take the spec's defaults.

    `command` is what errors call the command where it is not called as the kind.
    """
    from workbench.specs import parse_spec

    given = {name: value for name, value in fields.items() if value is not None}
    return parse_spec({"kind": kind, **given}, source=f"`workbench {command or kind}`")


def execute(
    spec: Spec, *, runs: Path | None, as_json: bool, then: Callable[[Run], dict[str, Any]] | None = None
) -> None:
    """Run a spec with progress bars, write its run folder, and print summary, table and where it is.

    `then` is called with the run before anything is printed; what it returns is printed, too.
    """
    from workbench.runs import run_spec

    with progress_bars(show=not as_json) as progress:
        run = run_spec(spec, runs=runs, progress=progress)
    more = then(run) if then is not None else {}
    if as_json:
        typer.echo(json.dumps(run_json(run) | more, indent=1, ensure_ascii=False))
    else:
        show_run(run)
        if more:
            print_summary(more)


def run_json(run: Run) -> dict[str, Any]:
    """A run for machines: id, folder, kind, summary, provenance."""
    return {
        "id": run.id,
        "path": str(run.path),
        "kind": run.info.kind,
        "title": run.info.title,
        "seconds": run.info.seconds,
        "summary": run.info.summary,
        "provenance": run.provenance["provenance"],
    }


def show_run(run: Run) -> None:
    """A run for people: its table and summary, and where to look next."""
    from rich.console import Console

    console = Console()
    console.print(f"\n[bold]{run.info.kind}[/bold]  {run.info.title}", highlight=False)
    columns, rows = result_table(run.result)
    if rows:
        print_table(columns, rows, console=console)
    print_summary(run.info.summary, console=console)
    console.print(f"\nRun     {run.path}", highlight=False, soft_wrap=True)
    if (report := run.path / "report.html").is_file():
        console.print(f"Report  {report}", highlight=False, soft_wrap=True)
    console.print(f"Again   workbench run {run.path / 'spec.yaml'}", highlight=False, soft_wrap=True)
    console.print(
        f"Look    workbench runs show {run.id}   ·   workbench dashboard", highlight=False, soft_wrap=True
    )


def result_table(result: Result) -> tuple[list[str], list[list[str]]]:
    """The few rows of a result worth reading in a terminal: columns and cells."""
    data = result.data
    if result.kind == "logit_lens":
        last = data.isel(position=-1)
        rows = [
            [
                str(int(layer)),
                repr(str(row["top_token"].values[0])),
                f"{float(row['top_probability'].values[0]):.3f}",
                f"{float(row['entropy']):.2f}",
                f"{float(row['kl_to_final']):.2f}",
                str(int(row["target_rank"])),
                f"{float(row['control_rank']):.0f}",
            ]
            for layer in data["layer"].values
            for row in [last.sel(layer=layer)]
        ]
        rank = f"rank of {data.attrs['target']!r}"
        return ["layer", "top-1", "p", "entropy (nats)", "KL to final (nats)", rank, "control rank"], rows
    from workbench.cli import patch_tables, probe_tables, steer_tables

    module = next((m for m in (steer_tables, probe_tables) if result.kind in m.KINDS), patch_tables)
    return module.table(result)


def print_table(columns: list[str], rows: list[list[str]], *, console: Any = None) -> None:
    """A plain table."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    (console or Console()).print(table)


def print_summary(summary: dict[str, Any], *, console: Any = None) -> None:
    """Name and value, a line each; what is nested twice has a line of its own."""
    rows = []
    for name, value in summary.items():
        label = name.replace("_", " ")
        inner = value if isinstance(value, dict) else {}
        deeper = {key: one for key, one in inner.items() if isinstance(one, dict)}
        if not isinstance(value, dict) or len(deeper) < len(inner):
            plain = {key: one for key, one in inner.items() if key not in deeper}
            rows.append([label, _shown(plain or value)])
        rows += [[f"{label}: {key.replace('_', ' ')}", _shown(one)] for key, one in deeper.items()]
    print_table(["", ""], rows, console=console)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(one)}" for name, one in value.items())
    if isinstance(value, float):  # also numpy's
        return f"{value:.6g}"
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return ", ".join(value)
    return str(value)


@contextmanager
def progress_bars(*, show: bool = True) -> Iterator[Progress]:
    """Bars on stderr, one per stage; silent when not `show`."""
    from workbench.progress import Silent

    if not show:
        yield Silent()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:
        yield _RichProgress(bars)


class _RichProgress:
    def __init__(self, bars: Any) -> None:
        self._bars, self._task = bars, None

    def stage(self, name: str, total: int) -> None:
        self._task = self._bars.add_task(name, total=total or None)

    def advance(self, n: int = 1) -> None:
        if self._task is not None:
            self._bars.advance(self._task, n)
