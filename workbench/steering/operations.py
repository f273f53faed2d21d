"""What steering does to an activation h along a unit vector v, with a strength s.

    c = h · v          the coefficient of h along v, in activation units

    add                 h + s v
    add_keeping_norm    ‖h‖ (h + s v) / ‖h + s v‖
    in_context          ‖h‖ (ĥ + y) / ‖ĥ + y‖     ĥ = h / ‖h‖,  y = s (1 + m · max(0, -cos(h, sign(s) v))) v
    ablate              h - s c v                  s = 1 projects v out
    clamp               h + s (value - c) v        s = 1 sets the coefficient to `value`
    rotate              h turned by s degrees in the plane of h and v, towards v; its norm stays
    affine              h + s ((a - 1) c + b) v    s = 1 makes the coefficient a c + b

**Strength 0 changes nothing, bit for bit**, whatever the operation: so every dose–response has the unsteered model
in it. `ablate`, `clamp` and `affine` go the whole way at 1; `add` and `add_keeping_norm` take activation units,
`in_context` shares of the activation's own norm, `rotate` degrees. Mean ablation is `clamp` with the mean
coefficient as value.

`in_context` is the edit of in-context vectors (Liu et al. 2023, 2311.06668, on the MLP output); with `similarity=0`
(m above) that of fractional reasoning (Liu et al. 2025, 2506.15882). Negative strengths are ours: there the
direction is -v throughout.

All are pure functions. They compute in float32 or better and give back the activation's own dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.errors import DataError, did_you_mean

Strength = float | Float[Tensor, "#batch"] | Float[Tensor, "#batch #position"]
"""One strength, one per row, or one per row and position."""
Activation = Float[Tensor, "batch position d"]
Vector = Float[Tensor, "d"] | Float[Tensor, "#batch d"]
"""One unit vector, or one per row."""


def add(h: Activation, v: Vector, strength: Strength) -> Activation:
    """h + s v: s is the norm of what is added, in activation units (activation addition, 2308.10248).

    Args:
        h: [batch, position, d] activation, any float dtype.
        v: [d] or [batch, d] unit vector(s).
        strength: a number, [batch] or [batch, position].

    Example:
        >>> add(torch.zeros(1, 1, 2), torch.tensor([0.6, 0.8]), 5.0)
        tensor([[[3., 4.]]])
    """
    return _run(_add, h, v, strength)


def add_keeping_norm(h: Activation, v: Vector, strength: Strength) -> Activation:
    """h + s v brought back to the norm of h. Arguments as `add`; a sum of norm 0 leaves h as it was."""
    return _run(_add_keeping_norm, h, v, strength)


def in_context(h: Activation, v: Vector, strength: Strength, similarity: Strength = 1.0) -> Activation:
    """The norm-preserving edit of in-context vectors; see the module's text.

    Args:
        h, v: as `add`.
        strength: share of ‖h‖ that is added before the norm is restored (λ; 0.1 is usual).
        similarity: 1 (default) pushes up to twice as hard where h points away from v, 0 equally everywhere.
    """
    return _run(_in_context, h, v, strength, similarity)


def ablate(h: Activation, v: Vector, strength: Strength = 1.0) -> Activation:
    """h - s (h · v) v: the share s of the coefficient is taken out (1, the default: all of it; 2406.11717)."""
    return _run(_ablate, h, v, strength)


def clamp(h: Activation, v: Vector, value: Strength, strength: Strength = 1.0) -> Activation:
    """Set the coefficient h · v to `value` (activation units); with strength s only the share s of the way."""
    return _run(_clamp, h, v, strength, value)


def rotate(h: Activation, v: Vector, strength: Strength) -> Activation:
    """Turn h by `strength` degrees towards v in the plane of the two; negative turns away.

    The norm stays. Nothing stops at v: 90 degrees from an angle of 30 ends 60 beyond. Where h lies along v there is
    no plane and h stays.
    """
    return _run(_rotate, h, v, strength)


def affine(h: Activation, v: Vector, a: Strength, b: Strength, strength: Strength = 1.0) -> Activation:
    """h + (a - 1)(h · v) v + b v: the coefficient c becomes a c + b (with strength s, the share s of the way)."""
    return _run(_affine, h, v, strength, a, b)


def _add(h: Tensor, v: Tensor, s: Tensor) -> Tensor:
    return h + s * v


def _add_keeping_norm(h: Tensor, v: Tensor, s: Tensor) -> Tensor:
    return _rescaled(h + s * v, h)


def _in_context(h: Tensor, v: Tensor, s: Tensor, similarity: Tensor) -> Tensor:
    norm = h.norm(dim=-1, keepdim=True)
    unit = h / torch.where(norm > 0, norm, 1)
    away = (-s.sign() * _coefficient(unit, v)).clamp(min=0)
    return _rescaled(unit + s * (1 + similarity * away) * v, h)


def _ablate(h: Tensor, v: Tensor, s: Tensor) -> Tensor:
    return h - s * _coefficient(h, v) * v


def _clamp(h: Tensor, v: Tensor, s: Tensor, value: Tensor) -> Tensor:
    return h + s * (value - _coefficient(h, v)) * v


def _rotate(h: Tensor, v: Tensor, s: Tensor) -> Tensor:
    c = _coefficient(h, v)
    norm = h.norm(dim=-1, keepdim=True)
    across = v * norm - (c / torch.where(norm > 0, norm, 1)) * h  # norm · (v - cos ĥ), at right angles to h
    length = across.norm(dim=-1, keepdim=True)
    plane = length > 1e-6 * norm
    angle = s * (math.pi / 180)
    turned = angle.cos() * h + angle.sin() * norm * across / torch.where(plane, length, 1)
    return torch.where(plane, turned, h)


def _affine(h: Tensor, v: Tensor, s: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return h + s * ((a - 1) * _coefficient(h, v) + b) * v


def _coefficient(h: Tensor, v: Tensor) -> Tensor:
    return (h * v).sum(-1, keepdim=True)


def _rescaled(new: Tensor, old: Tensor) -> Tensor:
    """`new` with the norm of `old`; `old` where `new` is zero."""
    norm = new.norm(dim=-1, keepdim=True)
    return torch.where(norm > 0, new * (old.norm(dim=-1, keepdim=True) / torch.where(norm > 0, norm, 1)), old)


@dataclass(frozen=True)
class Kind:
    """An operation by name: its formula, its parameters with their defaults, and what its strength means."""

    formula: Callable[..., Tensor]
    parameters: dict[str, float | None]
    """Name -> default; None where one must be given."""
    strength: str
    full: float | None = None
    """The strength that goes the whole way, where strength is a share."""


OPERATIONS = {
    "add": Kind(_add, {}, "norm of what is added (activation units)"),
    "add_keeping_norm": Kind(_add_keeping_norm, {}, "norm of what is added (activation units)"),
    "in_context": Kind(_in_context, {"similarity": 1.0}, "share of the activation's norm"),
    "ablate": Kind(_ablate, {}, "share taken out (1: all)", full=1.0),
    "clamp": Kind(_clamp, {"value": None}, "share of the way (1: all)", full=1.0),
    "rotate": Kind(_rotate, {}, "angle (degrees)"),
    "affine": Kind(_affine, {"a": None, "b": None}, "share of the way (1: all)", full=1.0),
}


class Operation:
    """An operation and its parameters, each one number or one per row.

    Args:
        name: one of `OPERATIONS`.
        parameters: `value` of `clamp`, `a` and `b` of `affine`, `similarity` of `in_context`.

    Raises:
        DataError: an unknown name or parameter, one that is missing or not finite.

    Example:
        >>> Operation("clamp", value=[-5.0, 0.0, 5.0])
        Operation('clamp', value=[-5.0, 0.0, 5.0])
    """

    def __init__(self, name: str, **parameters: float | Sequence[float]) -> None:
        if not isinstance(name, str) or name not in OPERATIONS:
            raise DataError(
                f"Steering operation {name!r} is not known: give one of {', '.join(OPERATIONS)}."
                f"{did_you_mean(str(name), OPERATIONS)}"
            )
        known = OPERATIONS[name].parameters
        if unknown := set(parameters) - set(known):
            raise DataError(
                f"Operation {name!r} takes {sorted(known) or 'no parameters'}, not {sorted(unknown)}."
            )
        if missing := [p for p, default in known.items() if default is None and p not in parameters]:
            wanted = ", ".join(f"{p}=..." for p in missing)
            raise DataError(
                f"Operation {name!r} needs {' and '.join(missing)}: Operation({name!r}, {wanted})."
            )
        self.name = name
        self.parameters = {p: numbers(parameters.get(p, d), f"{p} of {name!r}") for p, d in known.items()}

    def __repr__(self) -> str:
        given = "".join(f", {p}={_plain(v)}" for p, v in self.parameters.items())
        return f"Operation({self.name!r}{given})"

    @property
    def strength_means(self) -> str:
        """What a strength of 1 is, for axes and tables."""
        return OPERATIONS[self.name].strength

    @property
    def full_strength(self) -> float | None:
        """The strength that goes the whole way (`ablate`, `clamp`, `affine`: 1); None where there is no such."""
        return OPERATIONS[self.name].full

    def settings(self) -> dict[str, Any]:
        """JSON-ready: `{"op": "clamp", "value": 8.0}`."""
        return {"op": self.name, **{p: _plain(v) for p, v in self.parameters.items()}}

    def formula(self, h: Tensor, v: Tensor, strength: Tensor, *parameters: Tensor) -> Tensor:
        """The bare formula, for tensors that broadcast; in h's dtype, computed in float32 or better."""
        wide = h.to(torch.promote_types(h.dtype, torch.float32))
        return OPERATIONS[self.name].formula(wide, v, strength, *parameters).to(h.dtype)


def numbers(given: Any, what: str) -> tuple[float, ...]:
    """One number or a sequence of them, as a tuple of finite floats; else a `DataError` that names `what`."""
    try:
        several = _array(given) or (isinstance(given, Sequence) and not isinstance(given, str))
        listed: Any = given if several else [given]
        found = tuple(float(x) for x in listed)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"Steering {what} is {given!r}: give a number such as 8.0, or one per prompt."
        ) from error
    if not found or not all(math.isfinite(x) for x in found):
        raise DataError(
            f"Steering {what} {given!r} is {'not finite' if found else 'empty'}: give a number such as 8.0, or one "
            "per prompt."
        )
    return found


def _array(given: Any) -> bool:
    return bool(getattr(given, "shape", ()))


def _plain(values: tuple[float, ...]) -> float | list[float]:
    return values[0] if len(values) == 1 else list(values)


def _run(formula: Callable[..., Tensor], h: Tensor, v: Tensor, strength: Any, *parameters: Any) -> Tensor:
    if h.ndim != 3 or v.shape[-1] != h.shape[-1]:
        raise DataError(
            f"An operation takes an activation [batch, position, d] and unit vectors [d] or [batch, d], not "
            f"{list(h.shape)} and {list(v.shape)}."
        )
    wide = h.to(torch.promote_types(h.dtype, torch.float32))
    vector = v.to(wide) if v.ndim == 1 else v.to(wide)[:, None]
    s, *rest = (_broadcast(x, wide) for x in (strength, *parameters))
    new = formula(wide, vector, s, *rest).to(h.dtype)
    return torch.where(s == 0, h, new)


def _broadcast(x: Any, like: Tensor) -> Tensor:
    x = torch.as_tensor(x, dtype=like.dtype, device=like.device)
    return x.reshape(*x.shape, *[1] * (3 - x.ndim)) if x.ndim else x
