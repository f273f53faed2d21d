"""Directions inside a result: a run keeps what it steered along, bit for bit, and gives it back.

`vector` [member, component] holds the unit vectors, the attribute `steered_along` everything else that their files
have. So a run can be saved into the library later without computing anything again.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from workbench.directions.algebra import members
from workbench.directions.direction import Direction

if TYPE_CHECKING:
    from workbench.directions import DirectionSet
    from workbench.results import Result


def with_direction(data: xr.Dataset, direction: Direction | DirectionSet) -> xr.Dataset:
    """A result's data with the direction it was steered along: `vector` (member, component) and its header."""
    from workbench.directions import storage

    several = members(direction)
    widest = max(d.width for d in several)
    vectors = np.zeros((len(several), widest), dtype=np.float32)
    for row, d in zip(vectors, several, strict=True):
        row[: d.width] = d.vector.numpy()
    header = {
        "set": None if isinstance(direction, Direction) else json.loads(direction.header()),
        "directions": [storage.header_of(d) for d in several],
        "widths": [d.width for d in several],
    }
    meaning = {"long_name": "unit vectors that were steered along"}
    data = data.assign(vector=(("member", "component"), vectors, meaning))
    return data.assign_attrs(steered_along=json.dumps(header, ensure_ascii=False))


def direction_of(result: Result) -> Direction | DirectionSet | None:
    """The direction a result was steered along, bit for bit; None where the result does not hold it."""
    from safetensors.numpy import save_file

    from workbench.directions import load

    told = result.data.attrs.get("steered_along")
    if told is None:
        return None
    header = json.loads(told)
    rows = [
        row[:width].copy() for row, width in zip(result.data["vector"].values, header["widths"], strict=True)
    ]
    if header["set"] is None:
        tensors, name, what = {"vector": rows[0]}, "direction", header["directions"][0]
    else:
        tensors = {f"vector.{i}": row for i, row in enumerate(rows)}
        name, what = "direction_set", header["set"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "direction.safetensors"
        save_file(tensors, file, metadata={name: json.dumps(what, ensure_ascii=False)})
        return load(file)
