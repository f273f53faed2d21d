"""Does the model use what a probe reads? Edits made by probes, each beside a control.

- `move`        causal check: move along a probe's direction, random directions beside it
- `optimise`    change an activation until any differentiable probe says otherwise; `closed_form` for linear ones
- `rewrite`     such edits inside a model, at one site or again at later ones
- `saliency`    which squares of a board a prediction hangs on
- `squares`     probes of many squares in one solve, linear and with a hidden layer

Names are imported when first used: `probes.causal.causal_check(model, prompts, probe, metric)`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_NAMES = {
    "causal_check": "move",
    "least_move": "closed_form",
    "least_squares_move": "closed_form",
    "push": "rewrite",
    "saliency_map": "saliency",
}

__all__ = ["causal_check", "least_move", "least_squares_move", "push", "saliency_map"]

if TYPE_CHECKING:
    from probes.causal.closed_form import least_move, least_squares_move
    from probes.causal.move import causal_check
    from probes.causal.rewrite import push
    from probes.causal.saliency import saliency_map


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'probes.causal' has no attribute {name!r}")
    return getattr(import_module(f"probes.causal.{_NAMES[name]}"), name)
