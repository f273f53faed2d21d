"""Causal patching: replace an activation by that of another run and see what the output does.

- `metrics`    logits -> one number per row
- `recording`, `replay`  re-run only what a patch can change, many patches at once
- `cells`, `sources`     what a patch replaces, and by what
- `sweep`      grids with controls, intervals and p-values
- `path`       path patching from senders to receivers
- `subspace`   interchange interventions in a subspace, distributed alignment search
"""

from workbench.patching.metrics import (
    Accuracy,
    KLDivergence,
    LogitDifference,
    LogProbability,
    Metric,
    Probability,
    Rank,
)
from workbench.patching.path import path_patch
from workbench.patching.subspace import das, interchange
from workbench.patching.sweep import sweep

__all__ = [
    "Accuracy",
    "KLDivergence",
    "LogProbability",
    "LogitDifference",
    "Metric",
    "Probability",
    "Rank",
    "das",
    "interchange",
    "path_patch",
    "sweep",
]
