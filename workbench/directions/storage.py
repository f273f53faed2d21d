"""Directions on disk: one safetensors file, whose metadata holds all but the vectors as JSON.

    a direction    metadata `direction`:     {schema, sha256, scale, site, name, …}     tensor `vector`
    a set          metadata `direction_set`: {schema, name, settings, directions: [as above, …]}
                                                                                tensors `vector.0`, `vector.1`, …

Other metadata (the library's tags, say) may stand beside it. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from workbench.errors import DataError
from workbench.files import publish_file

SCHEMA = 1
FIELDS = ("scale", "site", "name", "source", "model_fingerprint", "settings", "provenance")
_NUMBER, _TEXT, _OBJECT = ((int, float), "a number"), ((str,), "text"), ((dict,), "an object")
_KINDS: dict[str, Any] = dict(zip(FIELDS, (_NUMBER, *[_TEXT] * 4, *[_OBJECT] * 2), strict=True))


def sha256_of_vector(vector: Tensor) -> str:
    """SHA-256 of a float32 vector's bytes, in hexadecimal."""
    return hashlib.sha256(vector.numpy().tobytes()).hexdigest()


def header_of(direction: Any) -> dict[str, Any]:
    """All of a direction but its vector, JSON-ready."""
    known = {"schema": SCHEMA, "sha256": sha256_of_vector(direction.vector)}
    return known | {name: getattr(direction, name) for name in FIELDS}


def as_json(value: Any, what: str) -> str:
    """JSON text. Raises `DataError` for what does not fit in JSON."""
    try:
        return json.dumps(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} must fit in JSON: {error}.") from error


def write(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Path:
    """Write a safetensors file, complete or not at all; an existing file is replaced."""
    with publish_file(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)
    return Path(path)


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a safetensors file, without reading its tensors.

    Raises:
        DataError: no such file, or damaged.
    """
    return _opened(path, with_tensors=False)[0]


def read(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file. Raises as `read_metadata`."""
    return _opened(path, with_tensors=True)


def parse(text: str, path: str | Path) -> dict[str, Any]:
    """The JSON object of a metadata entry.

    Raises:
        DataError: damaged, or written by a newer version.
    """
    try:
        header = json.loads(text)
        schema = int(header.pop("schema"))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise damaged(path, error) from error
    if schema > SCHEMA:
        raise DataError(
            f"{str(path)!r} was written by a newer version (schema {schema}, this one reads {SCHEMA}): "
            "upgrade latent-workbench."
        )
    return header


def arguments(header: dict[str, Any], vector: Tensor | None, path: str | Path) -> dict[str, Any]:
    """Arguments of `Direction` from its header and vector, once they are shown to belong together."""
    given = {key: value for key, value in header.items() if value is not None or _KINDS.get(key) != _OBJECT}
    given.pop("schema", None)
    if vector is None:
        raise damaged(path, "its vector is missing")
    if sha256_of_vector(vector) != given.pop("sha256", ""):
        raise damaged(path, "its vector is not the one that was saved (SHA-256 differs)")
    if unknown := set(given) - set(FIELDS):
        raise damaged(path, f"it has fields this version does not know: {sorted(unknown)}")
    if lacking := {"scale", "site"} - set(given):
        raise damaged(path, f"{sorted(lacking)} are missing")
    for key in FIELDS:
        kinds, what = _KINDS[key]
        if key in given and (not isinstance(given[key], kinds) or isinstance(given[key], bool)):
            raise damaged(path, f"its {key} is {given[key]!r}, not {what}")
    return {"vector": vector, **given}


def damaged(path: str | Path, error: object) -> DataError:
    """The error for a file that is not what was written."""
    return DataError(f"The direction in {str(path)!r} is damaged: {error}")


def _opened(path: str | Path, *, with_tensors: bool) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(Path(path), framework="pt") as opened:
            names = list(opened.keys()) if with_tensors else []
            return opened.metadata() or {}, {name: opened.get_tensor(name) for name in names}
    except FileNotFoundError:
        raise DataError(f"There is no direction file {str(path)!r}.") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise damaged(path, error) from error
