"""Causal patching: replace an activation by that of another run and see what the output does.

- `metrics`    logits -> one number per row
- `recording`, `replay`  re-run only what a patch can change, many patches at once
- `cells`, `sources`     what a patch replaces, and by what
- `sweep`      grids with controls, intervals and p-values
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
from workbench.patching.sweep import sweep

__all__ = [
    "Accuracy",
    "KLDivergence",
    "LogProbability",
    "LogitDifference",
    "Metric",
    "Probability",
    "Rank",
    "sweep",
]
