"""Linear probes: what can be read off activations, with controls.

    import probes

    sweep = probes.sweep(acts, labels, groups=groups)        # every site of `acts`, or of a store
    sweep.summary["best"], sweep.data["auc"]
    sweep.direction(layer=14)                                # a `workbench.Direction`

| what | where |
| --- | --- |
| every layer, position and label in one solve; numbers | `sweep`, `regress` |
| estimators with the conventions of scikit-learn | `LogisticProbe`, `MassMeanProbe`, …, `probes.kinds` |
| a probe with the site and model it belongs to, on disk | `FittedProbe`, `save_probe`, `load_probe` |
| one probe of a sweep, fitted on all its rows | `best_cell`, `picked_probe` |
| is it worth trusting: controls, transfer, p-values | `probes.trust` |
| does the model use it: steering, intervention, saliency | `probes.causal`, `probes.boards` |
| erasure; calibration; sets with stated coverage | `Leace`, `erase_scores`, `calibrate`, `ConformalSets` |
| statements as bags of tokens: true, false, neither | `probes.mil` |
| periodic codes of numbers | `probes.periodic` |

Names are imported when first used, so that the command line answers quickly.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

_NAMES = {
    "sweep": "probes.sweep",
    "ProbeSweep": "probes.sweep_result",
    "regress": "probes.regress",
    "LogisticProbe": "probes.estimators",
    "MassMeanProbe": "probes.estimators",
    "WhitenedMassMeanProbe": "probes.estimators",
    "FittedProbe": "probes.fitted",
    "save_probe": "probes.saving",
    "load_probe": "probes.saving",
    "Leace": "probes.leace",
    "erase_scores": "probes.erasure",
    "calibrate": "probes.calibration",
    "ConformalSets": "probes.conformal",
    "ProbeSpec": "probes.spec",
    "best_cell": "probes.picked",
    "picked_probe": "probes.picked",
}
_ROOMS = ("boards", "causal", "kinds", "mil", "periodic", "trust")
_FUNCTIONS = ("sweep", "regress")
"""Functions with the name of the module they live in."""

__all__ = [
    "ConformalSets",
    "FittedProbe",
    "Leace",
    "LogisticProbe",
    "MassMeanProbe",
    "ProbeSpec",
    "ProbeSweep",
    "WhitenedMassMeanProbe",
    "best_cell",
    "calibrate",
    "erase_scores",
    "load_probe",
    "picked_probe",
    "regress",
    "save_probe",
    "sweep",
]

if TYPE_CHECKING:
    from probes.calibration import calibrate
    from probes.conformal import ConformalSets
    from probes.erasure import erase_scores
    from probes.estimators import LogisticProbe, MassMeanProbe, WhitenedMassMeanProbe
    from probes.fitted import FittedProbe
    from probes.leace import Leace
    from probes.picked import best_cell, picked_probe
    from probes.regress import regress
    from probes.saving import load_probe, save_probe
    from probes.spec import ProbeSpec
    from probes.sweep import sweep
    from probes.sweep_result import ProbeSweep


class _Package(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        # Importing the module `probes.sweep` binds its name here, where users expect the function.
        if name in _FUNCTIONS and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"probes.{name}")
    if name not in _NAMES:
        raise AttributeError(f"module 'probes' has no attribute {name!r}")
    return getattr(import_module(_NAMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
