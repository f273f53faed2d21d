"""What a probe says as a `Direction` at a site, whatever form the probe came in.

    Direction                    as it is
    fitted linear estimator      w / ‖w‖ of `coef_` (two classes); w_a − w_b for a pair of several classes
    FittedProbe                  that of its estimator, with the probe's names of the classes

The natural scale is the standard deviation of the projection x · v over the prompts of the check, unless the
direction (or the training rows of a `FittedProbe`) bring their own; the probe's decision f(x) = w · x + b tells which
prompts it calls positive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from probes.estimator_fits import has_weights
from probes.fitted import FittedProbe
from workbench.directions import Direction
from workbench.directions.controls import random_controls
from workbench.errors import DataError
from workbench.model.language_model import LanguageModel


@dataclass(frozen=True, eq=False)
class Reading:
    """A direction, and how the probe that gave it decides.

    Attributes:
        direction: unit vector; + is towards the positive class.
        threshold: x · v above which the probe says positive; None for a bare direction.
        classes: names of the negative and the positive class, or empty.
    """

    direction: Direction
    threshold: float | None = None
    classes: tuple[str, ...] = ()


def site_of(probe: Any, site: str | None) -> str:
    """The site a probe belongs to: its own, or the one given.

    Raises:
        DataError: neither is known, or they differ.
    """
    own = probe.site if isinstance(probe, Direction) else getattr(probe, "site", None)
    if own and site and own != site:
        raise DataError(f"The probe is for {own!r}, but site={site!r} was given: leave `site` out.")
    if not (own or site):
        raise DataError("This probe does not know its site: give site='blocks.7.hook_resid_post' or alike.")
    return str(own or site)


def reading(
    model: LanguageModel,
    probe: Any,
    rows: Float[Tensor, "line d"],
    *,
    site: str,
    classes: Sequence[Any] | None = None,
    scale: float | int | None = None,
    force: bool = False,
) -> Reading:
    """The direction of a probe, checked against the model.

    Args:
        model: the model it is used on.
        probe: a `Direction`, a fitted linear estimator (`coef_`, `intercept_`, and `classes_` if it has them), or a
            `FittedProbe` of one.
        rows: activations at the site, for the scale of an estimator.
        site: where the probe belongs.
        classes: (from, to), for an estimator of more than two classes.
        scale: natural scale in activation units, instead of the one described above.
        force: accept a direction made on other weights.

    Raises:
        DataError: not a linear probe, not fitted, another width, no pair of classes where one is needed.
    """
    if isinstance(probe, Direction):
        probe.fits(model, force=force)
        made = probe if scale is None else Direction.from_vector(
            probe.vector, site=probe.site, scale=scale, name=probe.name, source=probe.source,
            model_fingerprint=probe.model_fingerprint, settings=probe.settings,
        )  # fmt: skip
        return Reading(made)
    fingerprint = getattr(probe, "model_fingerprint", "") or ""
    if isinstance(probe, FittedProbe):
        weight, bias, named = _of_fitted(probe, classes)
        if scale is None and probe.training.get("deviations") and np.shape(probe.estimator.coef_)[0] == 1:
            scale = probe.direction().scale
        probe = probe.estimator
    else:
        weight, bias, named = _weights(probe, classes)
    if len(weight) != rows.shape[1]:
        raise DataError(
            f"The probe has {len(weight)} weights, but {site!r} of {model.name} is {rows.shape[1]} wide: it "
            "was fitted at another site or model."
        )
    vector = torch.from_numpy(weight)
    norm = float(vector.norm())
    if norm == 0:
        raise DataError("All weights of the probe are 0, so it has no direction to move along.")
    spread = float((rows.double() @ vector / norm).std(correction=0))
    if scale is None and spread <= 0:
        raise DataError(
            "All prompts have one projection on the probe, so it has no natural scale: give scale=…."
        )
    direction = Direction.from_vector(
        vector,
        site=site,
        scale=spread if scale is None else scale,
        name=f"{named[0]} to {named[1]}" if named else type(probe).__name__,
        source=f"probe:{type(probe).__name__}",
        model_fingerprint=fingerprint,
    )
    direction.fits(model, force=force)
    return Reading(direction, -bias / norm, named)


def _of_fitted(
    probe: FittedProbe, classes: Sequence[Any] | None
) -> tuple[np.ndarray, float, tuple[str, ...]]:
    """`_weights` of its estimator; classes may go by the probe's names, and are shown by them."""
    inner = [_plain(c) for c in getattr(probe.estimator, "classes_", ())]
    meant = dict(zip(probe.classes, inner, strict=True)) if inner else {}
    wanted = None if classes is None else [meant.get(str(c), c) for c in classes]
    weight, bias, named = _weights(probe.estimator, wanted)
    shown = {str(own): name for name, own in meant.items()}
    return weight, bias, tuple(shown.get(name, name) for name in named)


def _weights(probe: Any, classes: Sequence[Any] | None) -> tuple[np.ndarray, float, tuple[str, ...]]:
    if not hasattr(probe, "coef_"):
        fitted = " It has not been fitted." if hasattr(probe, "fit") else ""
        raise DataError(
            f"A {type(probe).__name__} is no linear probe: give a Direction, or a fitted estimator with "
            f"`coef_`.{fitted}"
        )
    if not has_weights(probe):
        raise DataError(
            f"The weights of this {type(probe).__name__} are of pairs of classes, not of classes: fit a kind with one "
            "weight for each class, such as LdaProbe or MultinomialProbe."
        )
    coef = np.atleast_2d(np.asarray(probe.coef_, dtype=np.float64))
    bias = np.broadcast_to(np.ravel(getattr(probe, "intercept_", 0.0)).astype(np.float64), len(coef))
    known = [_plain(c) for c in getattr(probe, "classes_", ())]
    if not np.isfinite(coef).all():
        raise DataError("Some weights of the probe are NaN or infinite.")
    if len(coef) == 1:
        if classes is None or list(classes) == known:
            return coef[0], float(bias[0]), tuple(str(c) for c in known)
        if list(classes) == known[::-1]:
            return -coef[0], -float(bias[0]), tuple(str(c) for c in classes)
    elif classes is None:
        raise DataError(
            f"A probe of {len(coef)} classes has many directions: give classes=(from, to), of {known}."
        )
    wanted = list(classes)
    if len(wanted) != 2 or wanted[0] == wanted[1] or not set(wanted) <= set(known):
        raise DataError(f"classes={tuple(wanted)} are not two of the probe's classes {known}.")
    away, towards = known.index(wanted[0]), known.index(wanted[1])
    return coef[towards] - coef[away], float(bias[towards] - bias[away]), tuple(str(c) for c in wanted)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def controls(
    like: Direction, rows: Float[Tensor, "line d"], *, control: str, n: int, seed: int
) -> list[Direction]:
    """`n` random directions with the site and scale of `like`.

    Args:
        like: the direction they stand beside.
        rows: activations at the site.
        control: `random`, even over the sphere; or `natural`, Σ_i g_i (x_i − x̄) with g_i ~ N(0, 1), which point
        where
            activations vary (a stricter control, since the model may ignore most of the sphere).
        n: how many.
        seed: of the first; the others follow.

    Raises:
        DataError: another control, fewer than two directions, or rows that do not vary.
    """
    if control not in ("random", "natural"):
        raise DataError(f"There is no control {control!r}: give 'random' or 'natural'.")
    if n < 2:
        raise DataError(f"At least 2 random directions are needed to see their spread, not {n}.")
    if control == "random":
        return random_controls(like, n, seed)
    centred = rows.double() - rows.double().mean(0)
    if not bool(centred.any()):
        raise DataError("Activations do not vary over these prompts: control='natural' needs more than one.")
    made = []
    for i in range(n):
        generator = torch.Generator().manual_seed(seed + i)
        drawn = torch.randn(len(rows), generator=generator, dtype=torch.float64) @ centred
        made.append(
            Direction.from_vector(
                drawn, site=like.site, scale=like.scale, name=f"natural {seed + i}", source="natural",
                model_fingerprint=like.model_fingerprint, settings={"seed": seed + i},
            )
        )  # fmt: skip
    return made
