"""Lines of the library's list: what is known about a file without reading its vectors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.directions import storage
from workbench.errors import DataError


@dataclass(frozen=True)
class Entry:
    """One line of the library.

    Attributes:
        name: what it is called here.
        title: name of the direction or set itself.
        kind: `direction` or `set`.
        n: number of directions.
        sites: where they are, each once.
        width: components.
        source: how it was made.
        model: name of the model that made it, if known.
        fingerprint: of that model.
        scale: natural scale (of a set: None).
        tags: words given to it.
        saved: UTC time, ISO 8601.
        path: its file.
        problem: why it cannot be read; empty for all but damaged files.
    """

    name: str
    title: str = ""
    kind: str = "direction"
    n: int = 0
    sites: tuple[str, ...] = ()
    width: int = 0
    source: str = ""
    model: str = ""
    fingerprint: str = ""
    scale: float | None = None
    tags: tuple[str, ...] = ()
    saved: str = ""
    path: str = ""
    problem: str = ""

    @property
    def site(self) -> str:
        """The site, or how many."""
        if not self.sites:
            return ""
        return self.sites[0] if len(self.sites) == 1 else f"{len(self.sites)} sites, {self.sites[0]} …"


def line(name: str, path: Path) -> Entry:
    """What the header of a file says; of a damaged one what is wrong."""
    try:
        return _entry(name, path, storage.read_metadata(path))
    except (DataError, OSError, KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
        return Entry(name, path=str(path), problem=str(error) or type(error).__name__)


def _entry(name: str, path: Path, metadata: dict[str, str]) -> Entry:
    if not {"direction", "direction_set"} & set(metadata):
        raise DataError(
            "It is safetensors, but not a direction: move it out of the library (vectors by layer are taken in by "
            "`workbench directions import`)."
        )
    kind = "direction" if "direction" in metadata else "set"
    header = storage.parse(metadata["direction" if kind == "direction" else "direction_set"], path)
    members = [header] if kind == "direction" else header["directions"]
    first, extra = members[0], kept(metadata)
    return Entry(
        name=name,
        title=str(header.get("name", "")),
        kind=kind,
        n=len(members),
        sites=tuple(dict.fromkeys(str(m["site"]) for m in members)),
        width=_width(path),
        source=str(first.get("source", "")),
        model=next((_model(m["provenance"]) for m in members if m.get("provenance")), ""),
        fingerprint=str(first.get("model_fingerprint", "")),
        scale=float(first["scale"]) if kind == "direction" else None,
        tags=tuple(extra.get("tags", ())),
        saved=str(extra.get("saved", "")),
        path=str(path),
    )


def kept(metadata: dict[str, str]) -> dict[str, Any]:
    """What the library keeps beside a direction (tags, date), or nothing where none can be made out."""
    try:
        found = json.loads(metadata.get("library", "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _model(provenance: Any) -> str:
    """Name of the model in a provenance, which may be anything that fits in JSON: ours has a record of it."""
    said = provenance.get("model", "") if isinstance(provenance, dict) else ""
    return str(said.get("name") or "") if isinstance(said, dict) else str(said or "")


def _width(path: Path) -> int:
    """Components of the first vector, from the header of the file (8 bytes of length, then JSON)."""
    with path.open("rb") as file:
        described = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return next(int(v["shape"][0]) for k, v in described.items() if k.startswith("vector"))
