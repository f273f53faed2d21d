"""Numbers and intervals as the cells of a table in the terminal."""

from __future__ import annotations

import math
from typing import Any


def number(value: Any, form: str = ".3f") -> str:
    """A number; a dash where there is none."""
    found = float(value)
    return format(found, form) if math.isfinite(found) else "–"


def between(at: Any, name: str, form: str = ".3f") -> str:
    """`[0.700, 0.902]`: from `name_low` to `name_high` of a dataset; a dash where either is missing."""
    ends = [float(at[f"{name}_{end}"]) for end in ("low", "high")]
    return f"[{ends[0]:{form}}, {ends[1]:{form}}]" if all(map(math.isfinite, ends)) else "–"


def with_interval(at: Any, name: str, value: str | None = None, form: str = ".3f") -> str:
    """`0.812 [0.700, 0.902]`, of the variable `value` with the ends of `name` (by default its own)."""
    ends = between(at, name)
    return number(at[value or name], form) + ("" if ends == "–" else f" {ends}")
