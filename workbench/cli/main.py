"""`workbench`: the root command.

Sub-commands are found by entry point and imported only when they are used (or when the list of commands is
shown, for which their modules import nothing heavy). A `WorkbenchError` becomes one line and exit code 2.
"""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer
from typer.core import TyperGroup

from workbench.errors import Cancelled, WorkbenchError

EPILOG = "Start with `workbench demo`. Every command has --help with an example, and --json for machines."
ORDER = [
    "demo",
    "dashboard",
    "lens",
    "patch",
    "probe",
    "steer",
    "directions",
    "collect",
    "store",
    "models",
    "data",
    "run",
    "runs",
    "doctor",
]


class Commands(TyperGroup):
    """Sub-commands from the entry points of group `workbench.commands`."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # noqa: ARG002
        names = [entry.name for entry in _entries()]
        return sorted(names, key=lambda n: (ORDER.index(n) if n in ORDER else len(ORDER), n))

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # noqa: ARG002
        for entry in _entries():
            if entry.name == cmd_name:
                command = typer.main.get_command(_load(entry))
                command.name = cmd_name
                return command
        return None


def _entries() -> list[EntryPoint]:
    found = {entry.name: entry for entry in entry_points(group="workbench.commands")}
    return list(found.values())


def _load(entry: EntryPoint) -> typer.Typer:
    """The command's app, or one that says why it cannot be had (a broken plug-in must not hide the others)."""
    try:
        return entry.load()
    except ImportError as error:
        reason = f"the package that provides it cannot be imported: {error}"
        broken = typer.Typer(help=f"(not available: {reason})")

        @broken.command(help=f"(not available: {reason})")
        def unavailable() -> None:
            raise WorkbenchError(f"`workbench {entry.name}` is not available: {reason}.")

        return broken


def _version(value: bool) -> None:
    if value:
        from workbench import __version__

        typer.echo(f"latent-workbench {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    epilog=EPILOG,
)


@app.callback()
def root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version."
    ),
) -> None:
    """Look inside language models: read, decode, probe, patch and steer their activations."""


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except WorkbenchError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(2)
    except (KeyboardInterrupt, Cancelled):
        typer.echo("Stopped; nothing was left half-written.", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
