"""GGUF control vectors, as repeng and llama.cpp's tools write them and llama.cpp applies them.

    general.architecture        "controlvector"
    controlvector.model_hint    name of the architecture, for instance "llama"
    controlvector.layer_count   how many directions the file has (llama.cpp does not read it)
    direction.N                 [d] float32: added, times a strength, to the output of block N counted from 0

So `direction.N` belongs to `blocks.N.hook_resid_post`. repeng hooks `layers[N]`, and llama.cpp adds tensor N at the end
of block `il == N` (`llama_control_vector::apply_to`); it refuses `direction.0`, which is why files usually begin with
1, and this is what makes the numbers look 1-based. (In terms of transformers' `hidden_states`, N is number N + 1.)
llama.cpp's own `cvector-generator` numbers from 1 the differences it takes from block 0 on, so its vectors are applied
one block after the one they were read from; they are read here where they are applied.

A vector becomes a direction with the vector's norm as its scale: adding it with `strength=scale` is llama.cpp's
`--control-vector` with scale 1. Layers whose vector is zero (nothing is added there) are left out and named in
`settings["zero_layers"]`. Vectors of norm 1 (repeng's) come back bit for bit when written again, others to the last
digit or so, since norm and unit vector are kept apart.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.directions.algebra import members
from workbench.directions.direction import Direction
from workbench.directions.sets import DirectionSet
from workbench.errors import DataError
from workbench.files import publish_file

ARCHITECTURE = "controlvector"
SITE = "blocks.{layer}.hook_resid_post"
OURS = "latent_workbench.directions"
"""Metadata of ours beside the format's own: name, fingerprint and source, as JSON. Other programs pass over it."""


def read_gguf(path: str | Path, *, name: str = "", model_fingerprint: str = "") -> DirectionSet:
    """A control vector as a set with a direction at each layer.

    Args:
        path: the file.
        name: of set and directions; by default the one the file was exported with, or its name.
        model_fingerprint: of the model it belongs to, if you know it (the file does not say, unless we wrote it).

    Raises:
        DataError: no such file, not GGUF or damaged, no control vector, tensors that are not float32 vectors of one
            width, NaN, or all zero.

    Example:
        >>> control = read_gguf("happy.gguf")
        >>> wb.steering.generate(model, "I feel", control["blocks.12.hook_resid_post"], strength=1.5)
    """
    reader = _opened(path)
    said = {
        key: _text(reader, key, path) for key in ("general.architecture", f"{ARCHITECTURE}.model_hint", OURS)
    }
    architecture = said["general.architecture"]
    if architecture != ARCHITECTURE:
        raise DataError(
            f"{str(path)!r} is GGUF of architecture {architecture!r}, not a control vector ({ARCHITECTURE!r})."
        )
    ours = _object(said[OURS])
    rows: dict[int, Tensor] = {}
    for tensor in reader.tensors:
        found = re.fullmatch(r"direction\.(\d+)", tensor.name)
        if not found:
            raise DataError(
                f"{str(path)!r} has a tensor {tensor.name!r}: control vectors have direction.N only."
            )
        if tensor.tensor_type.name != "F32" or len(tensor.shape) != 1:
            raise DataError(
                f"{tensor.name} in {str(path)!r} is {tensor.tensor_type.name} of shape "
                f"{[int(s) for s in tensor.shape]}: a control vector's are float32 and 1-D."
            )
        rows[int(found[1])] = torch.from_numpy(np.array(tensor.data, dtype=np.float32))
    hint = said[f"{ARCHITECTURE}.model_hint"]
    return from_layers(
        rows,
        path,
        name=name or str(ours.get("name", "")) or Path(path).stem,
        source=str(ours.get("source", "")) or "control_vector",
        model_fingerprint=model_fingerprint or str(ours.get("model_fingerprint", "")),
        settings={"format": "gguf", "file": Path(path).name, "model_hint": hint},
    )


def write_gguf(
    directions: Direction | Iterable[Direction], path: str | Path, *, model_hint: str = ""
) -> Path:
    """Write a set of directions at block outputs as a GGUF control vector: scale · vector for each layer.

    Args:
        directions: one at each of some `blocks.N.hook_resid_post`, of one width.
        path: the file; complete or not at all.
        model_hint: architecture for other programs, for instance `model.config.model_type`; as it was read by default.

    Raises:
        DataError: another site, two directions at one, or one at block 0 (llama.cpp refuses the whole file then).

    Example:
        >>> write_gguf(control * 0.5, "calmer.gguf", model_hint="llama")
    """
    import gguf

    rows, group = to_layers(directions)
    if 0 in rows:
        raise DataError(
            "A GGUF control vector cannot steer block 0: llama.cpp refuses a file with direction.0. Leave the "
            "direction at 'blocks.0.hook_resid_post' out (DirectionSet(d for d in directions if ...))."
        )
    first = group[0]
    ours = {
        "name": group.name or first.name,
        "source": first.source,
        "model_fingerprint": first.model_fingerprint,
    }
    hint = model_hint or str(group.settings.get("model_hint", ""))
    with publish_file(path) as temporary:
        writer = gguf.GGUFWriter(temporary, ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", hint)
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(rows))
        writer.add_string(OURS, json.dumps(ours))
        for layer, vector in rows.items():
            writer.add_tensor(f"direction.{layer}", vector.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return Path(path)


def from_layers(
    rows: dict[int, Tensor],
    path: str | Path,
    *,
    name: str,
    source: str,
    model_fingerprint: str = "",
    settings: dict[str, Any] | None = None,
    site: str = SITE,
) -> DirectionSet:
    """A set from one vector per layer; zero vectors are left out and named in its settings."""
    if not rows:
        raise DataError(f"{str(path)!r} holds no directions.")
    widths = {layer: row.numel() for layer, row in sorted(rows.items())}
    if len(set(widths.values())) > 1:
        raise DataError(f"Directions of one file have one width; {str(path)!r} has {widths}.")
    zero = [layer for layer in sorted(rows) if not bool(rows[layer].any())]
    if len(zero) == len(rows):
        raise DataError(f"All {len(rows)} vectors of {str(path)!r} are zero, so it holds no direction.")
    found = []
    for layer in sorted(set(rows) - set(zero)):
        row = rows[layer].float()
        norm = float(row.double().norm())
        unit = row if abs(norm - 1) < 1e-6 else row.double() / norm  # of norm 1 already: keep every bit
        found.append(
            Direction(
                vector=unit,
                scale=1.0 if unit is row else norm,
                site=site.format(layer=layer),
                name=name,
                source=source,
                model_fingerprint=model_fingerprint,
                settings={"file": Path(path).name, "layer": layer},
            )
            if np.isfinite(norm)
            else Direction(row, 1.0, site.format(layer=layer))  # says what is wrong with it
        )
    return DirectionSet(found, name=name, settings={**(settings or {}), "zero_layers": zero})


def to_layers(
    directions: Direction | Iterable[Direction], site: str = SITE
) -> tuple[dict[int, Tensor], DirectionSet]:
    """Natural vectors (float32) by layer, ascending; and the set. Raises `DataError` as `write_gguf`."""
    group = directions if isinstance(directions, DirectionSet) else DirectionSet(members(directions))
    group.matrix()  # one width
    pattern = re.escape(site).replace(r"\{layer\}", r"(\d+)")
    rows: dict[int, Tensor] = {}
    for d in group:
        found = re.fullmatch(pattern, d.site)
        if not found:
            raise DataError(
                f"A direction at {d.site!r} cannot be written in this format, which has block outputs only "
                f"({site.format(layer='N')})."
            )
        if int(found[1]) in rows:
            raise DataError(
                f"This format has one direction a layer, and the set has several at {d.site!r}: choose with "
                "`.named(name)`."
            )
        rows[int(found[1])] = (d.vector.double() * d.scale).float()
    return dict(sorted(rows.items())), group


def _opened(path: str | Path) -> Any:
    import gguf

    if not Path(path).is_file():
        raise DataError(f"There is no file {str(path)!r}.")
    try:
        return gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError, OSError, TypeError) as error:
        raise DataError(f"{str(path)!r} is not GGUF or is damaged: {error}") from error


def _text(reader: Any, key: str, path: str | Path) -> str:
    field = reader.get_field(key)
    try:
        return str(field.contents()) if field is not None else ""
    except (ValueError, IndexError, TypeError) as error:
        raise DataError(f"{key!r} in {str(path)!r} cannot be read; the file is damaged: {error}") from error


def _object(text: str) -> dict[str, Any]:
    """A JSON object, or an empty one: what stands there is a convenience, the vectors are what counts."""
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
