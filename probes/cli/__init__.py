"""`workbench probe`: a probe sweep where a data set comes first; its sub-commands are the other analyses."""

from __future__ import annotations

from typing import Any

from workbench.cli.common import new_app
from workbench.cli.groups import group_of

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


class Analyses(group_of(COMMANDS, "probes.cli")):
    """What begins with none of the sub-commands is a sweep."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in COMMANDS and args[0] != "--help":
            args = ["sweep", *args]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return ["[OPTIONS] DATASET", "|", "COMMAND [ARGS]..."]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sweep: Any = self.get_command(ctx, "sweep")
        sweep.format_options(sweep.make_context("sweep", [], parent=ctx, resilient_parsing=True), formatter)
        self.format_commands(ctx, formatter)


app = new_app(HELP)


@app.callback(cls=Analyses, help=HELP, epilog=EPILOG, no_args_is_help=True)
def probe() -> None:
    """Nothing of its own: the command that is named, or a sweep."""
