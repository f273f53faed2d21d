"""Latent Workbench: look inside language models.

    import workbench as wb

    model = wb.load_model("smollm2-135m")
    acts = wb.collect(model, prompts, sites="blocks.*.hook_resid_post", positions=-1)
    wb.lens.logit_lens(model, prompt).plot()

Names are imported when first used, so `import workbench` stays quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_NAMES = {
    "load_model": "workbench.model.loading",
    "LanguageModel": "workbench.model.language_model",
    "collect": "workbench.activations",
    "Activations": "workbench.activations",
    "collect_to": "workbench.collection.to_store",
    "collect_with_ray": "workbench.collection.on_ray",
    "open_store": "workbench.store.reader",
    "Generation": "workbench.collection.generation",
    "LiveLoader": "workbench.collection.live",
    "ShuffledLoader": "workbench.store.loader",
    "Result": "workbench.results",
    "Provenance": "workbench.provenance",
    "Direction": "workbench.directions",
    "LogitDifference": "workbench.patching.metrics",
    "LogProbability": "workbench.patching.metrics",
    "WorkbenchError": "workbench.errors",
    "load_run": "workbench.runs",
    "list_runs": "workbench.runs",
    "run_spec": "workbench.runs",
}
_ROOMS = (
    "lens",
    "patching",
    "steering",
    "directions",
    "datasets",
    "organisms",
    "runs",
    "jobs",
    "sites",
    "hooks",
    "errors",
    "model",
)

__all__ = [
    "Activations",
    "Direction",
    "Generation",
    "LanguageModel",
    "LiveLoader",
    "LogProbability",
    "LogitDifference",
    "Provenance",
    "Result",
    "ShuffledLoader",
    "WorkbenchError",
    "__version__",
    "collect",
    "collect_to",
    "collect_with_ray",
    "datasets",
    "directions",
    "errors",
    "hooks",
    "jobs",
    "lens",
    "list_runs",
    "load_model",
    "load_run",
    "model",
    "open_store",
    "organisms",
    "patching",
    "run_spec",
    "runs",
    "sites",
    "steering",
]

if TYPE_CHECKING:
    from workbench import (
        datasets,
        directions,
        errors,
        hooks,
        jobs,
        lens,
        model,
        organisms,
        patching,
        runs,
        sites,
        steering,
    )
    from workbench.activations import Activations, collect
    from workbench.collection.generation import Generation
    from workbench.collection.live import LiveLoader
    from workbench.collection.on_ray import collect_with_ray
    from workbench.collection.to_store import collect_to
    from workbench.directions import Direction
    from workbench.errors import WorkbenchError
    from workbench.model.language_model import LanguageModel
    from workbench.model.loading import load_model
    from workbench.patching.metrics import LogitDifference, LogProbability
    from workbench.provenance import Provenance
    from workbench.results import Result
    from workbench.runs import list_runs, load_run, run_spec
    from workbench.store.loader import ShuffledLoader
    from workbench.store.reader import open_store


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    if name in _ROOMS:
        return import_module(f"workbench.{name}")
    raise AttributeError(f"module 'workbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
