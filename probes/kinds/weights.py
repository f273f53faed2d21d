"""The vectors of a linear probe by what they point to, and one of them as a `Direction`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float64

from probes.estimator_fits import has_weights
from workbench.directions import Direction
from workbench.errors import DataError

if TYPE_CHECKING:
    from probes.fitted import FittedProbe

Vectors = dict[str, Float64[np.ndarray, " d"]]


def weight_vectors(estimator: Any) -> Vectors | None:
    """Vectors over raw activations, by class or output; None where the estimator has none (of each class).

    Two classes: w towards the second and −w towards the first. K classes: the class's weight minus the mean of the
    others' (softmax weights are defined up to a common term). A regression: one vector per output, named "0", "1", …;
    with one output its name is empty.
    """
    if not has_weights(estimator):
        return None
    table = np.atleast_2d(np.asarray(estimator.coef_, dtype=np.float64))
    classes = getattr(estimator, "classes_", None)
    if classes is None:
        return {"": table[0]} if len(table) == 1 else {str(i): row for i, row in enumerate(table)}
    names = [str(c) for c in classes]
    if len(table) == 1:
        return {names[0]: -table[0], names[1]: table[0]}
    return {
        name: row - np.delete(table, i, axis=0).mean(0)
        for i, (name, row) in enumerate(zip(names, table, strict=True))
    }


def deviations(vectors: Vectors, rows: Float64[np.ndarray, "row d"]) -> dict[str, float]:
    """Standard deviation of rows along each vector; those of length 0 are left out."""
    lengths = {name: float(np.linalg.norm(vector)) for name, vector in vectors.items()}
    return {
        name: float((rows @ (vector / lengths[name])).std())
        for name, vector in vectors.items()
        if lengths[name] > 0
    }


def direction_of(fitted: FittedProbe, of: Any) -> Direction:
    """See `FittedProbe.direction`."""
    weight, inner = _chosen(fitted, of)
    norm = float(np.linalg.norm(weight))
    if norm == 0:
        raise DataError(f"The weight of this probe at {fitted.site!r} is zero: it has no direction.")
    spread = float(fitted.training.get("deviations", {}).get(inner, 0.0))
    kind = type(fitted.estimator).__name__
    settings: dict[str, Any] = {
        "kind": kind,
        "position": fitted.position,
        "classes": list(fitted.classes),
        "scale_is": "standard deviation of the training rows" if spread > 0 else "one unit of the score",
        "scores": fitted.scores,
    }
    if hasattr(fitted.estimator, "sign_determined_"):
        settings["sign_determined"] = bool(fitted.estimator.sign_determined_)
    return Direction.from_vector(
        torch.from_numpy(np.array(weight, dtype=np.float64)),
        site=fitted.site,
        scale=spread if spread > 0 else 1 / norm,
        name=": ".join(part for part in (fitted.name, _meaning(fitted, inner)) if part) or kind,
        source=f"probe:{kind}",
        model_fingerprint=fitted.model_fingerprint,
        settings=settings,
        provenance=fitted.provenance,
    )


def _chosen(fitted: FittedProbe, of: Any) -> tuple[Float64[np.ndarray, " d"], str]:
    """One weight vector, and the estimator's own name of what it points to."""
    vectors = weight_vectors(fitted.estimator)
    if vectors is None:
        kind = type(fitted.estimator).__name__
        why = "has weights for pairs of classes" if hasattr(fitted.estimator, "coef_") else "is not linear"
        raise DataError(
            f"{kind} {why}, so it has no one direction: fit a linear kind at {fitted.site!r}, or move along its "
            "gradient."
        )
    inner = list(vectors)
    shown = list(fitted.classes) or inner
    if of is None and (len(inner) == 1 or len(fitted.classes) == 2):
        return vectors[inner[-1]], inner[-1]
    if of is None or str(of) not in shown + inner:
        what = "class" if fitted.classes else "output"
        said = "one must be named" if of is None else f"there is no {what} {str(of)!r}"
        raise DataError(
            f"This probe has a direction for every {what}, and {said}: give of= one of {listed(shown)}."
        )
    name = inner[shown.index(str(of))] if str(of) in shown else str(of)
    return vectors[name], name


def _meaning(fitted: FittedProbe, inner: str) -> str:
    if not fitted.classes:
        return inner
    names = [str(c) for c in fitted.estimator.classes_]
    chosen = fitted.classes[names.index(inner)]
    others = [name for name in fitted.classes if name != chosen]
    return f"{chosen} (vs {others[0]})" if len(others) == 1 else chosen


def listed(names: Sequence[str]) -> str:
    """The first names, quoted, for a message."""
    shown = ", ".join(repr(name) for name in names[:6])
    return shown + (f", … ({len(names)} in all)" if len(names) > 6 else "")
