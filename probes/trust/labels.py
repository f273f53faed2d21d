"""Labels, groups and sites as numbers and coordinates: checked once, for every check in this folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from probes.labels import values_of
from workbench.errors import DataError


def two_classes(
    labels: Any, n_rows: int, positive: Any = None, *, where: str = ""
) -> tuple[Bool[np.ndarray, " row"], tuple[Any, Any]]:
    """Whether each label is the positive one, and the (negative, positive) classes.

    Args:
        labels: two classes: booleans, numbers or texts.
        n_rows: how many there must be.
        positive: by default the class that sorts last.
        where: begins the message of the error ("Set 'cities': ").

    Raises:
        DataError: not one label a row, gaps, not two classes, or no such positive class.
    """
    given = values_of(labels, "labels")
    if len(given) != n_rows:
        raise DataError(f"{where}{len(given)} labels for {n_rows} rows: give one for each.")
    try:
        found = sorted(set(given))  # as `probes.sweep` sorts them: False and 0 before True, 1 and 1.0
    except TypeError:
        found = sorted(set(given), key=str)
    shown = ", ".join(repr(c) for c in found[:8]) + (", …" if len(found) > 8 else "")
    if len(found) != 2:
        raise DataError(
            f"{where}two classes expected, found {len(found)} in {len(given)} labels: {shown or 'none'}."
            + (
                " Leave the other rows out."
                if len(found) > 2
                else " Give rows of both, or leave this set out."
            )
        )
    chosen = found[1] if positive is None else next((c for c in found if str(c) == str(positive)), None)
    if chosen is None:
        raise DataError(f"{where}the positive class {positive!r} is not among the labels, which are {shown}.")
    other = next(c for c in found if c != chosen)
    return np.array([value == chosen for value in given]), (other, chosen)


def group_codes(groups: Any, n_rows: int, *, where: str = "") -> Int64[np.ndarray, " row"] | None:
    """Groups as numbers from 0 (of their texts), or None where none are given; `DataError` for a wrong number."""
    if groups is None:
        return None
    names = values_of(groups, "groups")
    if len(names) != n_rows:
        raise DataError(f"{where}{len(names)} groups for {n_rows} rows: give one for each.")
    return np.unique([str(name) for name in names], return_inverse=True)[1].astype(np.int64)


def site_axis(sites: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """`layer` or (where sites are not one per block) `site`, and the coordinates of that dimension."""
    pieces = [site.split(".", 2) for site in sites]
    blocks = all(len(p) == 3 and p[0] == "blocks" for p in pieces)
    per_block = blocks and len({p[-1] for p in pieces}) == 1
    first = "layer" if per_block else "site"
    coords: dict[str, Any] = {"site": (first, np.array(list(sites), dtype=str))}
    return first, coords | ({"layer": [int(p[1]) for p in pieces]} if per_block else {})
