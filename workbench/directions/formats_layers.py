"""Vectors by layer in safetensors or JSON, as steering-vectors and most home-made scripts keep them.

    safetensors   one [d] tensor per layer under a key that ends in its number: `12`, `layer.12`, `layers_12`,
                  `direction.12`; or under a site name, `blocks.12.hook_resid_post`
    JSON          {"12": [0.1, …], …}, or {"layer_type": "decoder_block", "layer_activations": {"12": […], …}}

Layer N is block N counted from 0, as steering-vectors has it (negative numbers count from the last and need to be made
positive first: the file does not know how many there are). `layer_type` is its word for the place:

    decoder_block  hook_resid_post        self_attn  hook_attn_out        mlp  hook_mlp_out

(the last two where the block has no norm after them; its layer-norm types have no additive site). A pickle, and so what
`torch.save` writes, can run any program when it is opened: it is refused, with the two lines that convert it.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.directions import storage
from workbench.directions.algebra import members
from workbench.directions.checks import called
from workbench.directions.direction import Direction
from workbench.directions.formats_gguf import from_layers, read_gguf, to_layers, write_gguf
from workbench.directions.sets import DirectionSet, load
from workbench.errors import DataError, did_you_mean
from workbench.files import publish_file

SITES = {
    "decoder_block": "blocks.{layer}.hook_resid_post",
    "self_attn": "blocks.{layer}.hook_attn_out",
    "mlp": "blocks.{layer}.hook_mlp_out",
}
_KEY = re.compile(r"(?:[A-Za-z_]+[._ -]?)?(\d+)")
_SITE = re.compile(r"blocks\.(\d+)\.(.+)")


def read(
    path: str | Path, *, name: str = "", layer_type: str = "", model_fingerprint: str = ""
) -> Direction | DirectionSet:
    """Directions from a file of any format that is known: ours, GGUF control vectors, safetensors or JSON by layer.

    Args:
        path: the file; what it is is told by its first bytes, not by its name.
        name: of what comes out (of a set of ours: the set's); by default what the file says, or its name.
        layer_type: `decoder_block` (default), `self_attn` or `mlp`, where the file does not say.
        model_fingerprint: of the model it belongs to, where the file does not say.

    Raises:
        DataError: no such file; a pickle; a format that is not known; damaged; vectors that are no directions; a file
            of ours that says another model than `model_fingerprint`.

    Example:
        >>> control = wb.directions.read("happy.gguf")
        >>> wb.directions.library().save("happy", control)
    """
    file = Path(path)
    try:
        with file.open("rb") as opened:
            start = opened.read(16)
            text = start.removeprefix(codecs.BOM_UTF8).lstrip()  # some editors begin JSON with a mark
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror or error}.") from error
    if start[:4] == b"GGUF":
        return read_gguf(file, name=name, model_fingerprint=model_fingerprint)
    # A safetensors file begins with a length, whose bytes may be those of anything: so it is looked for first.
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= file.stat().st_size - 8:
        return _safetensors(file, name, layer_type, model_fingerprint)
    if start[:2] == b"PK" or start[:1] == b"\x80":
        raise DataError(
            f"{str(path)!r} is a pickle or an archive (as torch.save writes), which can run any program when it is "
            "opened, so it is not. If you trust it, convert it yourself: read it with torch's load and "
            "weights_only=True, then safetensors.torch.save_file({str(layer): vector for layer, vector in "
            "loaded.items()}, 'vectors.safetensors'). (A steering-vectors object: its .layer_activations is that dict.)"
        )
    if text[:1] == b"{":
        return _by_layer(file, *_json(file), name, layer_type, model_fingerprint)
    if start[8:9] == b"{":  # cut off: what reads it says so
        return _safetensors(file, name, layer_type, model_fingerprint)
    raise DataError(
        f"{str(path)!r} is of no format that is known here (safetensors, GGUF, or JSON by layer); it begins with "
        f"{start[:8]!r}."
    )


def _safetensors(file: Path, name: str, layer_type: str, model_fingerprint: str) -> Direction | DirectionSet:
    metadata, tensors = storage.read(file)
    if {"direction", "direction_set"} & set(metadata):
        return _named(load(file), file, name, model_fingerprint)
    return _by_layer(file, dict(tensors), metadata, name, layer_type, model_fingerprint)


def _named(
    found: Direction | DirectionSet, file: Path, name: str, model_fingerprint: str
) -> Direction | DirectionSet:
    """What a file of ours holds, under another name, and with a fingerprint where it says none."""
    changed = []
    for d in members(found):
        if model_fingerprint and d.model_fingerprint not in ("", model_fingerprint):
            raise DataError(
                f"{called(d)} in {str(file)!r} was made on a model with fingerprint {d.model_fingerprint}, not "
                f"{model_fingerprint}: leave model_fingerprint out to read it as it is."
            )
        changed.append(replace(d, model_fingerprint=model_fingerprint or d.model_fingerprint))
    if isinstance(found, Direction):
        return replace(changed[0], name=name or found.name)
    return DirectionSet(changed, name=name or found.name, settings=found.settings)


def write(directions: Direction | Iterable[Direction], path: str | Path, *, model_hint: str = "") -> Path:
    """Write directions for other programs, in the format that the file's ending names.

    `.gguf` is a control vector, `.safetensors` one tensor a layer under `layer.N`, `.json` a dictionary of lists as
    steering-vectors takes it. All hold scale · vector at block outputs. (To keep everything use `save`.)

    Raises:
        DataError: another ending, or directions the format cannot hold.
    """
    group = directions if isinstance(directions, DirectionSet) else DirectionSet(members(directions))
    ending = Path(path).suffix.lower()
    if ending == ".gguf":
        return write_gguf(group, path, model_hint=model_hint)
    if ending not in (".safetensors", ".json"):
        raise DataError(f"{str(path)!r} ends in {ending!r}: give .gguf, .safetensors or .json.")
    rows, _ = to_layers(group)
    facts = {"layer_type": "decoder_block", "name": group.name or group[0].name}
    if ending == ".safetensors":
        return storage.write(path, {f"layer.{layer}": row for layer, row in rows.items()}, facts)
    lists = {str(layer): row.tolist() for layer, row in rows.items()}
    with publish_file(path) as temporary:
        temporary.write_text(json.dumps({**facts, "layer_activations": lists}), encoding="utf-8")
    return Path(path)


def _json(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        held = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{str(path)!r} is not JSON or is damaged: {error}") from error
    lists = held.get("layer_activations", held)
    if not isinstance(lists, dict):
        raise DataError(f"{str(path)!r} is JSON, but not an object of layer -> list of numbers.")
    rows = {}
    for key, values in lists.items():
        try:
            rows[key] = torch.tensor(values, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"{key!r} in {str(path)!r} is not a list of numbers: {error}") from error
    return rows, held if lists is not held else {}


def _by_layer(
    path: Path,
    rows: dict[str, Tensor],
    said: Mapping[str, Any],
    name: str,
    layer_type: str,
    model_fingerprint: str,
) -> DirectionSet:
    """A vector for each layer; what was not asked for is as the file says."""
    kind = layer_type or _said(said, "layer_type", path) or "decoder_block"
    if kind not in SITES:
        raise DataError(
            f"Vectors of layer type {kind!r} have no additive site here: known are {', '.join(SITES)}."
            f"{did_you_mean(kind, SITES)}"
        )
    found: dict[int, Tensor] = {}
    parts: set[str] = set()
    for key, row in rows.items():
        site, number = _SITE.fullmatch(key), _KEY.fullmatch(key)
        match = site or number
        if match is None:
            raise DataError(
                f"{str(path)!r} has a vector called {key!r}, which names no layer: keys are '12', 'layer.12' or "
                "'blocks.12.hook_resid_post' (block 12 counted from 0)."
            )
        if int(match[1]) in found:
            raise DataError(f"{str(path)!r} has two vectors for layer {int(match[1])}.")
        if row.ndim != 1 or not row.is_floating_point():
            raise DataError(
                f"{key!r} in {str(path)!r} is {row.dtype} of shape {list(row.shape)}, not a vector."
            )
        found[int(match[1])] = row
        parts.add(f"blocks.{{layer}}.{site[2]}" if site else SITES[kind])
    if len(parts) > 1:
        raise DataError(f"{str(path)!r} mixes kinds of sites ({', '.join(sorted(parts))}): give one a file.")
    return from_layers(
        found,
        path,
        name=name or _said(said, "name", path) or path.stem,
        source="layers",
        model_fingerprint=model_fingerprint,
        settings={"format": path.suffix.lstrip("."), "file": path.name},
        site=next(iter(parts), SITES[kind]),
    )


def _said(said: Mapping[str, Any], key: str, path: Path) -> str:
    """A text that the file may say; empty where it does not, or says null."""
    found = said.get(key)
    if found is not None and not isinstance(found, str):
        raise DataError(f"{key!r} in {str(path)!r} is {found!r}, not text: correct it, or leave it out.")
    return found or ""
