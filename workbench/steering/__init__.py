"""Steering: act on the stream along a direction and see what the model says.

- `plan`            `Steering`, `Plan`: one intervention for forward passes and generation
- `operations`      add, norm-preserving add, ablate, clamp, rotate, affine
- `rules`           which positions, and where a condition probe fires
- `schedule`        how strong at each step of generation
- `intervention`    the edit function that does it
- `asked`           what was asked for as a plan, and whether it steers anything
- `generate`, `sampling`   steered generation, the same tokens with and without KV cache; draws by row and step
- `sweep`           every prompt at every strength as one generation
- `extract`         directions from prompts, one file a method
- `measure`         what steering does and what it costs
- `dose_response`   score and side effects against strength, beside random directions
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# `generate` and `dose_response` are modules too: a name that is looked up later would find those.
from workbench.steering.dose_response import dose_response
from workbench.steering.generate import Generation, generate

if TYPE_CHECKING:
    from workbench.steering.directions import mean_difference
    from workbench.steering.operations import OPERATIONS, Operation
    from workbench.steering.plan import Plan, Steering
    from workbench.steering.rules import Condition, From
    from workbench.steering.sampling import Sampling
    from workbench.steering.schedule import CosineDown, Listed, Ramp, Windows
    from workbench.steering.sweep import StrengthSweep, sweep_strengths

_LATER = {
    "Condition": "workbench.steering.rules",
    "CosineDown": "workbench.steering.schedule",
    "From": "workbench.steering.rules",
    "Listed": "workbench.steering.schedule",
    "OPERATIONS": "workbench.steering.operations",
    "Operation": "workbench.steering.operations",
    "Plan": "workbench.steering.plan",
    "Ramp": "workbench.steering.schedule",
    "Sampling": "workbench.steering.sampling",
    "Steering": "workbench.steering.plan",
    "StrengthSweep": "workbench.steering.sweep",
    "Windows": "workbench.steering.schedule",
    "mean_difference": "workbench.steering.directions",
    "sweep_strengths": "workbench.steering.sweep",
}

__all__ = [
    "OPERATIONS",
    "Condition",
    "CosineDown",
    "From",
    "Generation",
    "Listed",
    "Operation",
    "Plan",
    "Ramp",
    "Sampling",
    "Steering",
    "StrengthSweep",
    "Windows",
    "dose_response",
    "generate",
    "mean_difference",
    "sweep_strengths",
]

_ROOMS = ("extract", "measure")


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"workbench.steering.{name}")
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module 'workbench.steering' has no attribute {name!r}")
