"""Arithmetic of directions.

A direction stands for its *natural vector* w = scale · v, and arithmetic is that of natural vectors:

    a + b, a - b, 2 * a, -a      Σ k_i w_i, made a unit vector again; its norm is the new scale
    a.orthogonal_to(b, c)        w_a - Q Qᵀ w_a            Q: orthonormal basis of span(v_b, v_c)
    a.interpolate(b, t)          spherical: v turns from v_a to v_b at constant angular speed, the scale goes straight;
                                 linear: (1 - t) w_a + t w_b

So lengths are kept as they naturally are: the sum of two mean differences is the difference of the summed means, and a
direction of scale 10 outweighs one of scale 1. To weigh both alike, give them one scale first (`with_scale(1)`). The
new scale is a length, not a spread on reference text: take that with `with_scale_from`.

All must be of one width, site and model, else there is one error that names both sides. The provenance of what comes
out holds the operation and its parents (name, source, scale, SHA-256 of the vector, weight, and theirs in turn).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.directions.checks import called, together
from workbench.directions.direction import Direction
from workbench.directions.storage import sha256_of_vector
from workbench.errors import DataError

CANCELLED = 1e-6
"""A combination shorter than this share of its terms' lengths is rounding of float32 vectors, not a direction."""


def combine(
    directions: Sequence[Direction], weights: Sequence[float], *, name: str = "", force: bool = False
) -> Direction:
    """Σ weight · scale · vector, as a direction.

    Args:
        directions: at least one, all of one width, site and model.
        weights: one number for each.
        name: of what comes out; made of theirs by default.
        force: combine directions of different models.

    Raises:
        DataError: none given, other numbers of weights, weights that are not finite, directions that do not go
            together, or that cancel.

    Example:
        >>> combine([truth, lies], [0.5, -0.5]).scale
    """
    directions, weights = list(directions), [float(w) for w in weights]
    if not directions or len(directions) != len(weights):
        raise DataError(
            f"A combination needs a weight for each direction: {len(directions)} directions and {len(weights)} "
            "weights were given."
        )
    if not all(math.isfinite(w) for w in weights):
        raise DataError(f"Weights of a combination are finite numbers, not {weights}.")
    fingerprint = together(directions, "A combination", force=force)
    title = name or _sum_name(directions, weights)
    settings = {"operation": "combine", "weights": weights}
    if len(directions) == 1 and weights[0] != 0:  # the same unit vector, bit for bit
        vector = directions[0].vector.double() * math.copysign(1.0, weights[0])
        scale = directions[0].scale * abs(weights[0])
    else:
        terms = torch.stack([w * _natural(d) for w, d in zip(weights, directions, strict=True)])
        vector = terms.sum(0)
        scale = float(vector.norm())
        if scale <= CANCELLED * float(terms.norm(dim=1).sum()):
            raise DataError(
                f"{title!r} cancels: with weights {weights} nothing is left of the directions but rounding."
            )
        vector = vector / scale
    return _child(vector, scale, title, directions, weights, settings, fingerprint)


def members(directions: Direction | Iterable[Direction]) -> list[Direction]:
    """One direction, or those of a set or list, as a list."""
    return [directions] if isinstance(directions, Direction) else list(directions)


def orthogonal_to(
    direction: Direction, others: Direction | Iterable[Direction], *, force: bool = False
) -> Direction:
    """The part of a direction that is orthogonal to others (one, or the span of several).

    Its scale is that of the direction times the sine of the angle to that span: its natural vector gets shorter by
    what is taken away.

    Raises:
        DataError: no others, directions that do not go together, or nothing is left.

    Example:
        >>> orthogonal_to(truth, [sentiment, length]).cosine(sentiment)
        0.0
    """
    several = members(others)
    if not several:
        raise DataError("No direction was given to be orthogonal to.")
    fingerprint = together([direction, *several], "Making orthogonal", force=force)
    basis = span([d.vector for d in several])
    vector = without(basis, without(basis, direction.vector.double()))
    left = float(vector.norm())
    if left < 1e-5:
        raise DataError(
            f"Nothing is left of {called(direction)}: it lies in the span of {_names(several)} "
            f"(the rest has {left:.1e} of its length)."
        )
    title = f"{_name(direction)} ⟂ {_names(several)}"
    settings = {"operation": "orthogonal_to", "kept": left}
    parents = [direction, *several]
    return _child(
        vector / left, direction.scale * left, title, parents, [1.0] * len(parents), settings, fingerprint
    )


def interpolate(
    a: Direction,
    b: Direction,
    t: float,
    *,
    how: Literal["spherical", "linear"] = "spherical",
    force: bool = False,
) -> Direction:
    """A direction between two: `a` at t = 0, `b` at t = 1. Other t go on along the same arc or line.

    Args:
        a, b: of one width, site and model.
        t: where.
        how: `spherical` turns the unit vector at constant angular speed and takes the scale on a straight line (the
            default: the length does not dip in between); `linear` mixes the natural vectors.
        force: interpolate between directions of different models.

    Raises:
        DataError: t is not finite; they do not go together; they are opposite, so that no arc is the shortest.

    Example:
        >>> interpolate(calm, angry, 0.5).cosine(calm)
    """
    if not math.isfinite(t):
        raise DataError(f"t must be a finite number, for instance 0.5, not {t}.")
    title, settings = (
        f"{_name(a)} → {_name(b)} at {t:g}",
        {"operation": "interpolate", "t": float(t), "how": how},
    )
    if how == "linear":
        made = combine([a, b], [1 - t, t], name=title, force=force)
        return _child(
            made.vector.double(), made.scale, title, [a, b], [1 - t, t], settings, made.model_fingerprint
        )
    if how != "spherical":
        raise DataError(f"There is no interpolation {how!r}: give 'spherical' or 'linear'.")
    fingerprint = together([a, b], "Interpolation", force=force)
    v, u = a.vector.double() / a.vector.double().norm(), b.vector.double() / b.vector.double().norm()
    angle = 2 * math.atan2(float((v - u).norm()), float((v + u).norm()))  # exact for small and large angles
    if math.pi - angle < 1e-5:
        raise DataError(
            f"{called(a)} and {called(b)} are opposite: there are many ways from one to the other. "
            "Interpolate linearly, or go through a third direction."
        )
    scale = (1 - t) * a.scale + t * b.scale
    if scale <= 0:
        raise DataError(f"At t = {t:g} the scale would be {scale:.3g}: stay where it is positive.")
    if angle < 1e-6:
        first, second = 1 - t, t
    else:
        first, second = (math.sin(x * angle) / math.sin(angle) for x in (1 - t, t))
    vector = first * v + second * u
    return _child(vector / vector.norm(), scale, title, [a, b], [1 - t, t], settings, fingerprint)


def span(vectors: Sequence[Tensor], tolerance: float = 1e-6) -> Float[Tensor, "rank d"]:
    """Orthonormal rows (float64) that span vectors of norm 1; those that depend on others add no row."""
    stacked = torch.stack([v.double() for v in vectors])
    _, sizes, rows = torch.linalg.svd(stacked, full_matrices=False)
    return rows[sizes > tolerance * float(sizes[0])]


def without(basis: Float[Tensor, "rank d"], x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
    """x - Qᵀ Q x for orthonormal rows Q: what is left outside their span."""
    return x - (x @ basis.T) @ basis


def parent(direction: Direction, weight: float) -> dict[str, Any]:
    """What a provenance keeps of a parent: enough to know which vector it was."""
    kept = ("name", "source", "scale", "site", "model_fingerprint", "settings")
    record = {key: getattr(direction, key) for key in kept}
    above = direction.provenance.get("parents")
    return record | {
        "sha256": sha256_of_vector(direction.vector),
        "weight": weight,
        **({"parents": above} if above is not None else {"provenance": direction.provenance}),
    }


def _child(
    vector: Tensor,
    scale: float,
    name: str,
    parents: Sequence[Direction],
    weights: Sequence[float],
    settings: dict[str, Any],
    fingerprint: str,
) -> Direction:
    return Direction(
        vector=vector,
        scale=scale,
        site=parents[0].site,
        name=name,
        source=settings["operation"],
        model_fingerprint=fingerprint,
        settings=settings,
        provenance={
            "operation": settings["operation"],
            "model": parents[0].provenance.get("model", {}),
            "parents": [parent(d, w) for d, w in zip(parents, weights, strict=True)],
        },
    )


def _natural(direction: Direction) -> Tensor:
    return direction.vector.double() * direction.scale


def _name(direction: Direction) -> str:
    return direction.name or direction.source or "direction"


def _names(directions: Sequence[Direction]) -> str:
    shown = ", ".join(_name(d) for d in directions[:3])
    return shown if len(directions) <= 3 else f"{shown} and {len(directions) - 3} more"


def _sum_name(directions: Sequence[Direction], weights: Sequence[float]) -> str:
    """`truth − 0.5 lies`."""
    text = ""
    for direction, weight in zip(directions[:4], weights, strict=False):
        sign = "−" if weight < 0 else ("+" if text else "")
        size = "" if abs(weight) == 1 else f"{abs(weight):g} "
        bracket = f"({_name(direction)})" if " " in _name(direction) else _name(direction)
        text += f" {sign} {size}{bracket}" if text else f"{sign}{size}{bracket}"
    return text if len(directions) <= 4 else f"{text} + {len(directions) - 4} more"
