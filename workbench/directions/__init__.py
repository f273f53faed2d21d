"""Directions: one type for everything that is a vector at a site.

- `direction`       `Direction`: unit vector, scale, site, provenance; projection, fit to a model
- `algebra`         sums, multiples, orthogonal parts, interpolation
- `scales`          natural scale on reference text
- `sets`            `DirectionSet`: several, at one site or at each layer
- `cosines`, `subspaces`   how they lie to each other, beside random ones
- `tokens`          tokens that a direction promotes and suppresses
- `library`         a folder of them by name
- `storage`, `formats_gguf`, `formats_layers`   files: ours; control vectors; vectors by layer
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from workbench.directions.algebra import combine, interpolate, orthogonal_to
from workbench.directions.direction import Direction
from workbench.directions.formats_gguf import read_gguf, write_gguf
from workbench.directions.formats_layers import read, write
from workbench.directions.library import Entry, Library, library
from workbench.directions.sets import DirectionSet, load

if TYPE_CHECKING:
    from workbench.directions.cosines import direction_cosines
    from workbench.directions.subspaces import principal_angles
    from workbench.directions.tokens import top_tokens

_LATER = {  # what needs xarray and scipy is imported when it is used
    "direction_cosines": "workbench.directions.cosines",
    "principal_angles": "workbench.directions.subspaces",
    "top_tokens": "workbench.directions.tokens",
}

__all__ = [
    "Direction",
    "DirectionSet",
    "Entry",
    "Library",
    "combine",
    "direction_cosines",
    "interpolate",
    "library",
    "load",
    "orthogonal_to",
    "principal_angles",
    "read",
    "read_gguf",
    "top_tokens",
    "write",
    "write_gguf",
]


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module 'workbench.directions' has no attribute {name!r}")
