"""Causal patching: replace an activation by that of another run and see what the output does.

- `metrics`  logits -> one number per row
- `replay`   re-run only the blocks a patch can change, many patches at once
- `sweep`    layer × position (or layer × head) grids with controls and intervals
"""

from workbench.patching.metrics import LogitDifference, LogProbability, Metric
from workbench.patching.sweep import sweep

__all__ = ["LogProbability", "LogitDifference", "Metric", "sweep"]
