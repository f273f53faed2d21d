"""Which organisms there are. Tasks are imported when they are asked for."""

from __future__ import annotations

from importlib import import_module

from workbench.errors import ModelError, did_you_mean
from workbench.organisms.organism import Organism

_WHERE = {
    "modular-addition": "modular_addition:ModularAddition",
    "addition": "addition:Addition",
    "multiplication-cot": "multiplication:MultiplicationCot",
    "multiplication-direct": "multiplication:MultiplicationDirect",
    "chains": "chains:Chains",
    "othello-6x6": "othello:Othello",
    "mazes-5x5": "mazes:Mazes",
    "two-hop": "two_hop:TwoHop",
    "looped": "looped:Looped",
}


def names() -> list[str]:
    """The organisms, in the order of the table.

    >>> "two-hop" in names()
    True
    """
    return list(_WHERE)


def get(name: str) -> Organism:
    """The organism called `name`.

    Raises:
        ModelError: there is none; near names are given.

    Example:
        >>> get("addition").words()[:4]
        ['<start>', '+', '-', '=']
    """
    if name not in _WHERE:
        raise ModelError(
            f"There is no model organism {name!r}.{did_you_mean(name, _WHERE)} There are: {', '.join(_WHERE)}."
        )
    module, kind = _WHERE[name].split(":")
    return getattr(import_module(f"workbench.organisms.tasks.{module}"), kind)()
