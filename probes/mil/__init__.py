"""Multiple-instance probes: a label belongs to a bag of tokens, and which token carries it is found.

    from probes.mil import SawmilProbe, make_bags, three_way

    bags = make_bags(acts, "blocks.20.hook_resid_post")      # the last tokens of each prompt
    probe = SawmilProbe().fit(bags, labels)
    probe.decision_function(bags), probe.carrier(bags)
    result = three_way(acts, labels, groups=groups)          # true / false / neither, with conformal sets

Names are imported when first used, so that the command line answers quickly.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

_NAMES = {
    "Bags": "probes.mil.bags",
    "SawmilProbe": "probes.mil.sawmil",
    "make_bags": "probes.mil.bags",
    "three_way": "probes.mil.three_way",
}

__all__ = ["Bags", "SawmilProbe", "make_bags", "three_way"]

if TYPE_CHECKING:
    from probes.mil.bags import Bags, make_bags
    from probes.mil.sawmil import SawmilProbe
    from probes.mil.three_way import three_way


class _Package(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        # Importing the module `probes.mil.three_way` binds its name here, where users expect the function.
        if name == "three_way" and isinstance(value, ModuleType):
            value = value.three_way
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'probes.mil' has no attribute {name!r}")
    return getattr(import_module(_NAMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
