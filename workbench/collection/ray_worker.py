"""What runs on a Ray worker: a model, and units one after another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.collection.engine import Engine, refuse_not_finite
from workbench.collection.request import Request
from workbench.collection.units import Unit, work
from workbench.errors import DataError
from workbench.model.text_side import TextSide
from workbench.store.manifest import Manifest


@dataclass(frozen=True)
class Described:
    """What the process that owns the store must know of a model it does not have."""

    manifest: Manifest
    text_side: TextSide


def described(model: str, options: Mapping[str, Any], request: Request) -> Described:
    """Load the model and say what a store of it looks like."""
    from workbench.model.loading import load_model

    loaded = load_model(model, **options)
    return Described(request.manifest(loaded), TextSide.of(loaded))


@dataclass(frozen=True)
class Job:
    """What every worker is given."""

    model: str
    options: Mapping[str, Any]
    """For `load_model`."""
    request: Request
    manifest: Manifest
    """Of the store; the model must be the one it names."""
    folder: str


class Worker:
    """Computes units. Ray Data makes one per actor and calls it with one row at a time."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._engine: Engine | None = None
        self._events: list[dict[str, Any]] = []

    def __call__(self, rows: Mapping[str, Any]) -> dict[str, Any]:
        """The outcome of each row's unit; what is no unit is passed on."""
        out = np.empty(len(rows["unit"]), dtype=object)
        for i, unit in enumerate(rows["unit"]):
            out[i] = self._outcome(unit) if isinstance(unit, Unit) else unit
        return {"result": out}

    def _outcome(self, unit: Unit) -> dict[str, Any]:
        self._events.clear()
        engine, request = self._ready(), self._job.request
        before = engine.n_tokens
        result: dict[str, Any] = {"part": None, "blocks": [], "prompts": unit.prompts}
        if request.generate is None:
            part = work(engine, unit, self._job.folder, self._job.manifest, strict=request.strict)
            result["part"] = (str(part.folder), part.first, part.shards)
        else:
            for task in unit.tasks:
                done = engine.compute(task)
                done.arrived()
                if request.strict:
                    refuse_not_finite(engine.model, done.rows)
                result["blocks"].append((done.rows, (task.number, task.window, task.digest, task.skip)))
                result["prompts"] += len(done.rows.prompts)
        return {**result, "tokens": engine.n_tokens - before, "events": list(self._events)}

    def _ready(self) -> Engine:
        """The engine; the model is loaded once."""
        if self._engine is None:
            from workbench.model.loading import load_model

            model = load_model(self._job.model, **self._job.options)
            wanted = self._job.manifest.model_fingerprint
            if model.fingerprint != wanted:
                raise DataError(
                    f"A worker found another model under {self._job.model!r}: fingerprint {model.fingerprint}, "
                    f"the store has {wanted}. Give every machine the same files."
                )
            self._engine = self._job.request.engine(model, self._events.append)
        return self._engine
