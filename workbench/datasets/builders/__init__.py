"""The programs that make the shipped prompt sets, one module a set: `python -m workbench.datasets.builders`.

A builder is a function of a seed (and, for `plain-text`, of source files) that gives a `BuiltSet`; the same
arguments give the same bytes. Nothing here is needed to load a set.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["BuiltSet", "write_set"]


@dataclass(frozen=True)
class BuiltSet:
    """A finished set, with what `index.json` says of it."""

    name: str
    kind: str
    licence: str
    source: str
    description: str
    seed: int
    records: Sequence[Mapping[str, Any]]
    built_with: Mapping[str, str] = field(default_factory=dict)
    """Versions of the packages whose data went in: another version may give other bytes."""

    @property
    def file(self) -> str:
        return f"{self.name}.jsonl"

    def content(self) -> bytes:
        """The file's bytes: one JSON object a line, in UTF-8, in the order of the ids."""
        ids = [record["id"] for record in self.records]
        if ids != sorted(set(ids)):
            raise ValueError(f"{self.name}: ids must be unique and ascending")
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in self.records)
        return "".join(lines).encode("utf-8")

    def index_entry(self) -> dict[str, Any]:
        """The set's entry in `index.json`."""
        content = self.content()
        return {
            "file": self.file,
            "kind": self.kind,
            "n": len(self.records),
            "licence": self.licence,
            "source": self.source,
            "description": self.description,
            "seed": self.seed,
            "built_with": dict(self.built_with),
            "sha256": hashlib.sha256(content).hexdigest(),
        }


def write_set(built: BuiltSet, folder: Path) -> None:
    """Write the set's file into `folder` and its entry into `index.json` there, keeping the other entries."""
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / built.file, built.content())
    path = folder / "index.json"
    sets = json.loads(path.read_text(encoding="utf-8"))["sets"] if path.is_file() else {}
    sets[built.name] = built.index_entry()
    text = json.dumps({"sets": dict(sorted(sets.items()))}, ensure_ascii=False, indent=2) + "\n"
    _replace(path, text.encode("utf-8"))


def _replace(path: Path, content: bytes) -> None:
    # Complete or absent: a build that is killed leaves the old file.
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
