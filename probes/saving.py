"""Probes on disk: one safetensors file, arrays as tensors and the rest as JSON in its header. Nothing is pickled.

    save_probe(fitted, "truth.safetensors")        # a FittedProbe, or an estimator by itself
    load_probe("truth.safetensors")                # the same again, bit for bit

| in the header | what |
| --- | --- |
| `schema`, `kind` | version of this layout; name of the class, from `SAVED` (nothing else is ever imported) |
| `params` | constructor arguments |
| `fitted` | attributes that end in `_` |
| `place` | the fields of `FittedProbe`, or null; keys of its dicts are text, as JSON has no others |
| `versions` | of the packages that wrote it |
| `sha256` | of the rest of the header and all tensors |

What is saved are this project's own arrays, never another library's objects, and every kind predicts with its own few
lines of NumPy or torch. So another version of scikit-learn or torch reads the same numbers; what cannot be read is a
layout, a kind, an argument or an attribute of a newer version of this project, and that is said.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from probes.fitted import FittedProbe
from workbench.errors import DataError, did_you_mean
from workbench.files import publish_file
from workbench.provenance import provenance

SCHEMA = 1
SAVED = {
    "logistic": "probes.estimators:LogisticProbe",
    "mass_mean": "probes.estimators:MassMeanProbe",
    "mass_mean_whitened": "probes.estimators:WhitenedMassMeanProbe",
    "ridge": "probes.kinds.ridge:RidgeProbe",
    "multinomial": "probes.kinds.multinomial:MultinomialProbe",
    "lda": "probes.kinds.lda:LdaProbe",
    "pca": "probes.kinds.unsupervised:PcaProbe",
    "k_means": "probes.kinds.unsupervised:KMeansProbe",
    "ccs": "probes.kinds.ccs:CcsProbe",
    "crc": "probes.kinds.ccs:CrcProbe",
    "mlp": "probes.kinds.mlp:MlpProbe",
    "sparse": "probes.kinds.sparse:SparseProbe",
    "sawmil": "probes.mil.sawmil:SawmilProbe",
    "leace": "probes.leace:Leace",
}
"""Kind -> class, of every probe that can be saved. A new kind is one line here."""
PLACE = (
    "site",
    "position",
    "model_fingerprint",
    "model_name",
    "classes",
    "training",
    "scores",
    "provenance",
    "name",
)


def save_probe(probe: Any, path: str | Path) -> Path:
    """Write a probe to one safetensors file, complete or not at all; an existing file is replaced.

    Args:
        probe: a `FittedProbe`, or a fitted estimator of one of the kinds in `SAVED`.
        path: the file.

    Raises:
        DataError: it is of no known kind, not fitted, or holds something that is neither array nor plain data, or a
            dict with two keys of one text (2 and "2").
        WorkbenchError: the system refuses to write there.

    Example:
        >>> save_probe(RidgeProbe().fit(acts, year), "year.safetensors")
    """
    estimator = probe.estimator if isinstance(probe, FittedProbe) else probe
    kind = next((k for k, place in SAVED.items() if place == _where(type(estimator))), None)
    if kind is None:
        raise DataError(
            f"A {type(estimator).__name__} cannot be saved as a probe: the kinds are {', '.join(SAVED)}. Fit one of "
            "those, or keep its arrays yourself."
        )
    try:
        check_is_fitted(estimator)
    except NotFittedError as error:
        raise DataError(
            f"This {type(estimator).__name__} is not fitted: call fit before saving it."
        ) from error
    fitted = {k: v for k, v in vars(estimator).items() if k.endswith("_") and not k.startswith("_")}
    tensors: dict[str, Tensor] = {}
    place = {k: getattr(probe, k) for k in PLACE} if isinstance(probe, FittedProbe) else None
    header = {
        "schema": SCHEMA,
        "kind": kind,
        "params": {k: _pack(v, f"params.{k}", tensors) for k, v in estimator.get_params(deep=False).items()},
        "fitted": {k: _pack(v, f"fitted.{k}", tensors) for k, v in sorted(fitted.items())},
        "place": place,
        "versions": provenance(None).versions,
    }
    header = _as_json(header)
    header["sha256"] = _digest(header, tensors)
    with publish_file(path) as temporary:
        save_file(tensors, temporary, metadata={"probe": json.dumps(header)})
    return Path(path)


def load_probe(path: str | Path) -> Any:
    """Read what `save_probe` wrote: a `FittedProbe` if one was saved, else the estimator, with the same bits.

    Raises:
        DataError: no such file, not a probe, damaged, or written by a newer version (layout, kind, argument or
            attribute this one does not know).

    Example:
        >>> load_probe("year.safetensors").predict(acts)
    """
    header, tensors = _read(Path(path))
    shown = repr(str(path))
    written = header.get("versions", {}).get("latent-workbench", "an unknown version")
    if int(header["schema"]) > SCHEMA:
        raise DataError(
            f"{shown} was written by a newer version (schema {header['schema']}, by latent-workbench {written}; this "
            f"one reads {SCHEMA}): upgrade latent-workbench."
        )
    if _digest(header, tensors) != header["sha256"]:
        raise DataError(
            f"The probe in {shown} is damaged: it is not the one that was saved (SHA-256 differs)."
        )
    kind = header["kind"]
    if kind not in SAVED:
        raise DataError(
            f"{shown} holds a probe of kind {kind!r}, by latent-workbench {written}, which this version does not know: "
            f"it knows {', '.join(SAVED)}.{did_you_mean(kind, SAVED)} Upgrade latent-workbench."
        )
    module, name = SAVED[kind].split(":")
    maker = getattr(import_module(module), name)
    unknown = set(header["params"]) - set(inspect.signature(maker).parameters)
    if unknown:
        raise DataError(
            f"The {kind} probe in {shown} has arguments this version does not know ({', '.join(sorted(unknown))}): it "
            f"was written by latent-workbench {written}; install that version, or fit the probe again."
        )
    try:
        estimator = maker(**{k: _unpack(v, tensors) for k, v in header["params"].items()})
        for key, value in header["fitted"].items():
            setattr(estimator, key, _unpack(value, tensors))
        place = header["place"]
        if place is None:
            return estimator
        return FittedProbe(estimator=estimator, **(place | {"classes": tuple(place["classes"])}))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"The {kind} probe in {shown}, by latent-workbench {written}, cannot be made here: {error}."
        ) from error


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
    except FileNotFoundError:
        raise DataError(f"There is no probe file {str(file)!r}.") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise DataError(f"The probe in {str(file)!r} is damaged: {error}") from error
    if "probe" not in metadata:
        raise DataError(f"{str(file)!r} is safetensors, but not a probe: its header holds none.")
    try:
        header = json.loads(metadata["probe"])
        missing = {"schema", "kind", "params", "fitted", "place", "sha256"} - set(header)
    except (ValueError, TypeError) as error:
        raise DataError(f"The probe in {str(file)!r} is damaged: {error}") from error
    if missing:
        raise DataError(f"The probe in {str(file)!r} is damaged: {', '.join(sorted(missing))} is missing.")
    return header, tensors


def _where(maker: type) -> str:
    return f"{maker.__module__}:{maker.__qualname__}"


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """A value as JSON with a tag that says how to read it; arrays go to `tensors` under `name`."""
    if isinstance(value, np.str_):  # an element of an array of texts
        value = str(value)
    match value:
        case None | bool() | int() | str():
            if not isinstance(value, np.generic):
                return {"plain": value}
        case float() if not isinstance(value, np.generic):
            return {"float": value.hex()}
        case dict():
            return {"dict": [[str(k), _pack(v, f"{name}.{k}", tensors)] for k, v in value.items()]}
        case list() | tuple():
            items = [_pack(v, f"{name}.{i}", tensors) for i, v in enumerate(value)]
            return {"tuple" if isinstance(value, tuple) else "list": items}
        case Tensor():
            tensors[name] = value.detach().cpu().clone().contiguous()
            return {"tensor": name}
    if isinstance(value, np.ndarray) and value.dtype.kind in "UO":
        items = [_pack(v, f"{name}.{i}", tensors) for i, v in enumerate(value.ravel().tolist())]
        return {"texts": items, "dtype": value.dtype.str, "shape": list(value.shape)}
    if isinstance(value, (np.ndarray, np.generic)):
        array = np.asarray(value)
        try:
            # C order: how an array lies in memory can change the last digit of a product
            tensors[name] = torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
        except TypeError as error:
            raise DataError(f"{name} is of type {array.dtype}, which cannot be saved: {error}") from error
        return {"scalar" if isinstance(value, np.generic) else "array": name}
    raise DataError(
        f"{name} is a {type(value).__name__}, which is neither an array nor plain data: it is not saved."
    )


def _unpack(packed: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    """The inverse of `_pack`."""
    if "texts" in packed:
        items = [_unpack(v, tensors) for v in packed["texts"]]
        found = np.empty(len(items), dtype=packed["dtype"])
        found[:] = items
        return found.reshape(packed["shape"])
    ((tag, value),) = packed.items()
    match tag:
        case "plain":
            return value
        case "float":
            return float.fromhex(value)
        case "dict":
            return {k: _unpack(v, tensors) for k, v in value}
        case "list" | "tuple":
            items = [_unpack(v, tensors) for v in value]
            return tuple(items) if tag == "tuple" else items
        case "tensor":
            return tensors[value]
        case "array":
            return tensors[value].numpy()
        case "scalar":
            return tensors[value].numpy()[()]
    raise DataError(
        f"Its header has an entry {tag!r} that this version does not know: upgrade latent-workbench."
    )


def _as_json(header: dict[str, Any]) -> dict[str, Any]:
    """The header as it will be read again: keys as text, tuples as lists."""

    def keys_differ(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
            raise DataError(
                f"Two keys of one dict in this probe are {twice!r} as text, which is what a file keeps: rename one."
            )
        return found

    try:
        return json.loads(json.dumps(header), object_pairs_hook=keys_differ)
    except (TypeError, ValueError) as error:
        raise DataError(f"This probe cannot be written as JSON: {error}. Keep plain values in it.") from error


def _digest(header: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    said = {key: value for key, value in header.items() if key != "sha256"}
    found = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name in sorted(tensors):
        array = tensors[name].numpy()
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()
