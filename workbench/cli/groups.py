"""Commands with sub-commands, each in a module of its own that is imported when it is used."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from workbench.errors import RunError


def group_of(modules: Mapping[str, str], package: str = "workbench.cli") -> type[TyperGroup]:
    """A group of commands.

    Args:
        modules: name of a sub-command -> module of `package` that has it as its `app`; in the order of the help.
        package: where the modules are.
    """

    class Group(TyperGroup):
        def list_commands(self, ctx: typer.Context) -> list[str]:  # noqa: ARG002
            return list(modules)

        def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # noqa: ARG002
            if cmd_name not in modules:
                return None
            command = typer.main.get_command(import_module(f"{package}.{modules[cmd_name]}").app)
            command.name = cmd_name
            return command

    return Group


def nothing_before(context: typer.Context) -> None:
    """Options that stand before a sub-command would be lost: say so."""
    lost = []
    for name in context.params:
        given = context.get_parameter_source(name)
        if given is not None and given.name != "DEFAULT":
            lost.append("--" + name.replace("_", "-"))
    if lost:
        command = context.invoked_subcommand
        raise RunError(
            f"{' and '.join(lost)} stood before {command!r} and would be lost: give options behind the command, "
            f"`workbench {context.info_name} {command} {lost[0]} …`."
        )
