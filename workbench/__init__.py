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
_ROOMS = ("lens", "patching", "steering", "datasets", "runs", "jobs", "sites", "hooks", "errors", "model")

__all__ = [
    "Activations",
    "Direction",
    "LanguageModel",
    "LogProbability",
    "LogitDifference",
    "Provenance",
    "Result",
    "WorkbenchError",
    "__version__",
    "collect",
    "datasets",
    "errors",
    "hooks",
    "jobs",
    "lens",
    "list_runs",
    "load_model",
    "load_run",
    "model",
    "patching",
    "run_spec",
    "runs",
    "sites",
    "steering",
]

if TYPE_CHECKING:
    from workbench import datasets, errors, hooks, jobs, lens, model, patching, runs, sites, steering
    from workbench.activations import Activations, collect
    from workbench.directions import Direction
    from workbench.errors import WorkbenchError
    from workbench.model.language_model import LanguageModel
    from workbench.model.loading import load_model
    from workbench.patching.metrics import LogitDifference, LogProbability
    from workbench.provenance import Provenance
    from workbench.results import Result
    from workbench.runs import list_runs, load_run, run_spec


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    if name in _ROOMS:
        return import_module(f"workbench.{name}")
    raise AttributeError(f"module 'workbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
