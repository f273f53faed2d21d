"""Reading runs back."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from workbench.errors import RunError, did_you_mean
from workbench.results import Result
from workbench.specs import Spec, load_spec

ENVIRONMENT = "WORKBENCH_RUNS"


def runs_folder(root: str | Path | None = None) -> Path:
    """Where runs are: the argument, else `$WORKBENCH_RUNS`, else `runs` in the current folder."""
    return Path(root) if root is not None else Path(os.environ.get(ENVIRONMENT) or "runs")


@dataclass(frozen=True)
class RunInfo:
    """What a list of runs shows, read from `provenance.json` alone.

    `problem` says why a folder could not be read as a run; such folders are listed, not hidden.
    """

    id: str
    path: Path
    kind: str = ""
    title: str = ""
    created: str = ""
    seconds: float = 0.0
    model: str = ""
    summary: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True)
class Run:
    """One run on disk.

    Example:
        >>> run = wb.load_run("20261122-014512-lens-3f2a")
        >>> run.result.data["entropy"].sel(layer=7)
    """

    info: RunInfo

    @property
    def id(self) -> str:
        """Name of the folder."""
        return self.info.id

    @property
    def path(self) -> Path:
        """The folder."""
        return self.info.path

    @cached_property
    def spec(self) -> Spec:
        """What was asked."""
        return load_spec(self.path / "spec.yaml")

    @cached_property
    def result(self) -> Result:
        """The labelled arrays."""
        return Result.load(self.path / "result.zarr")

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """Everything in `provenance.json`."""
        return _header(self.path)

    def log(self) -> list[dict[str, Any]]:
        """The events of `log.jsonl`, in order."""
        lines = (self.path / "log.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]


def list_runs(root: str | Path | None = None) -> list[RunInfo]:
    """All runs under `root`, newest first. A folder that cannot be read is listed with its `problem`."""
    folder = runs_folder(root)
    if not folder.is_dir():
        return []
    found = [_info(p) for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")]
    return sorted(found, key=lambda info: (info.created or info.id, info.id), reverse=True)


def load_run(run: str | Path, root: str | Path | None = None) -> Run:
    """Open a run by id, by an unambiguous beginning of its id, or by folder.

    Raises:
        RunError: no such run (near ones are named), an ambiguous beginning, or a damaged folder.
    """
    path = Path(run)
    if not path.is_dir() or path.parent == Path():
        path = _by_id(str(run), runs_folder(root))
    info = _info(path)
    if info.problem:
        raise RunError(f"Run {info.id!r} cannot be read: {info.problem}")
    return Run(info)


def _by_id(name: str, folder: Path) -> Path:
    ids = [info.id for info in list_runs(folder)]
    matches = [i for i in ids if i == name] or [i for i in ids if i.startswith(name)]
    if len(matches) > 1:
        raise RunError(
            f"{name!r} begins {len(matches)} runs ({', '.join(matches[:5])}): give more of the id."
        )
    if not matches:
        have = (
            f" It holds {len(ids)} runs; `workbench runs list` shows them." if ids else " It holds no runs."
        )
        raise RunError(f"No run {name!r} in {str(folder)!r}.{did_you_mean(name, ids)}{have}")
    return folder / matches[0]


def _header(path: Path) -> dict[str, Any]:
    return json.loads((path / "provenance.json").read_text(encoding="utf-8"))


def _info(path: Path) -> RunInfo:
    try:
        raw = _header(path)
        return RunInfo(
            id=path.name,
            path=path,
            kind=raw["kind"],
            title=raw["title"],
            created=raw["created"],
            seconds=raw["seconds"],
            model=raw["provenance"]["model"].get("name", ""),
            summary=raw["summary"],
        )
    except FileNotFoundError:
        return RunInfo(path.name, path, problem="it has no provenance.json, so it is not a finished run")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return RunInfo(path.name, path, problem=f"its provenance.json is damaged ({error})")
