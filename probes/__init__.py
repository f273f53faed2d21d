"""Linear probes: what can be read off activations, with controls.

    import probes

    sweep = probes.sweep(acts, labels, groups=groups)        # every site of `acts`
    sweep.summary["best"], sweep.data["auc"]
    sweep.direction(layer=14)                                # a `workbench.Direction`

Names are imported when first used: the command line asks for `probes.cli` alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_NAMES = {
    "ProbeSweep": "probes.sweep",
    "KINDS": "probes.estimators",
    "LogisticProbe": "probes.estimators",
    "MassMeanProbe": "probes.estimators",
    "WhitenedMassMeanProbe": "probes.estimators",
    "ProbeSpec": "probes.spec",
}
