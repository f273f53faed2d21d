"""Directions by their names in the library, or from a file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.errors import DataError

if TYPE_CHECKING:
    from workbench.directions import Direction, DirectionSet, Library

SUFFIXES = (".safetensors", ".gguf", ".json", ".pt", ".pkl", ".bin")


def named(name: str) -> Direction | DirectionSet:
    """What the library has under a name; else the direction file of that path (ours, GGUF, layers as JSON).

    Raises:
        DataError: neither there, or a file that is no direction (a pickle is refused).

    Example:
        >>> named("truth"), named("control_vector.gguf")
    """
    from workbench.directions import library, read

    mine, path = library(), Path(name).expanduser()
    if "/" not in name and name in mine:
        return mine.load(name)
    if path.is_file():
        return read(path)
    if path.suffix in SUFFIXES or "/" in name:
        raise DataError(f"There is no file {name!r}, and no direction of that name in the library.")
    return mine.load(name)  # says which names are close


def members_named(names: Iterable[str], library: Library) -> list[Direction]:
    """Directions of a library, sets as their members, each under its name there (`name: member` of a set of several).

    Raises:
        DataError: no such name.
    """
    from dataclasses import replace

    from workbench.directions.algebra import members

    found: list[Direction] = []
    for name in names:
        several = members(library.load(name))
        found += [replace(d, name=name if len(several) == 1 else f"{name}: {d.name}") for d in several]
    return found


def one_named(name: str) -> Direction:
    """The same where one direction is needed: a set of one is one.

    Raises:
        DataError: also for a set of several.
    """
    from workbench.directions import DirectionSet

    found = named(name)
    if isinstance(found, DirectionSet):
        if len(found) > 1:
            raise DataError(
                f"{name!r} is a set of {len(found)} directions, here one is needed. Save one member under a name of "
                f"its own: `library().save(name, library().load({name!r})[0])`."
            )
        return found[0]
    return found
