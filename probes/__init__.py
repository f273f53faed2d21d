"""Linear probes: what can be read off activations, with controls.

    import probes

    sweep = probes.sweep(acts, labels, groups=groups)        # every site of `acts`
    sweep.summary["best"], sweep.data["auc"]
    sweep.direction(layer=14)                                # a `workbench.Direction`

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
    "LogisticProbe": "probes.estimators",
    "MassMeanProbe": "probes.estimators",
    "WhitenedMassMeanProbe": "probes.estimators",
    "ProbeSpec": "probes.spec",
}

__all__ = [
    "LogisticProbe",
    "MassMeanProbe",
    "ProbeSpec",
    "ProbeSweep",
    "WhitenedMassMeanProbe",
    "sweep",
]

if TYPE_CHECKING:
    from probes.estimators import LogisticProbe, MassMeanProbe, WhitenedMassMeanProbe
    from probes.spec import ProbeSpec
    from probes.sweep import sweep
    from probes.sweep_result import ProbeSweep


class _Package(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        # Importing the module `probes.sweep` binds its name here, where users expect the function.
        if name == "sweep" and isinstance(value, ModuleType):
            value = value.sweep
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'probes' has no attribute {name!r}")
    return getattr(import_module(_NAMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
