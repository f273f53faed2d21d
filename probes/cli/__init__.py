"""`workbench probe`: a probe sweep where a data set comes first; its sub-commands are the other analyses."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from workbench.cli.common import new_app

COMMANDS = {
    "sweep": "sweep",
    "trust": "trust",
    "transfer": "transfer",
    "causal": "causal",
    "erase": "erase",
    "mil": "mil",
    "numbers": "numbers",
    "apply": "apply",
}
"""The sub-commands, in the order of the help, and the module of this package that has each as its `app`."""
HELP = "Fit probes at every layer, cross-validated, beside probes of shuffled labels."
EPILOG = (
    "Example: workbench probe capitals --where negated=false, or with a command: workbench probe transfer capitals "
    "--by negated"
)


class Analyses(TyperGroup):
    """Sub-commands that are imported when they are used; what begins with none of them is a sweep."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command = typer.main.get_command(import_module(f"probes.cli.{COMMANDS[cmd_name]}").app)
        command.name = cmd_name
        return command

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in COMMANDS and args[0] != "--help":
            args = ["sweep", *args]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return ["[OPTIONS] DATASET", "|", "COMMAND [ARGS]..."]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sweep = self.get_command(ctx, "sweep")
        sweep.format_options(sweep.make_context("sweep", [], parent=ctx, resilient_parsing=True), formatter)
        self.format_commands(ctx, formatter)


app = new_app(HELP)


@app.callback(cls=Analyses, help=HELP, epilog=EPILOG, no_args_is_help=True)
def probe() -> None:
    """Nothing of its own: the command that is named, or a sweep."""
