"""Directions from probes: the weight of anything linear, as a unit vector at a site.

    f(x) = w · x + b            direction = w / ‖w‖, towards the class (or the output) that f grows with

A probe is known by its shape: an object with `coef_` ([d], [1, d] or [class, d], scikit-learn's convention), or a
`Result` of kind `probe_sweep`, whose cells hold the weights over raw activations. A scikit-learn pipeline whose last
step has `coef_` is taken together with a scaler before it: what a weight w is over (x - mean) / sd, w / sd is over x.

    two classes    one direction, towards classes_[1]
    more           one a class: its weight minus the mean of the others', which softmax scores compare

    scale   of `acts`, if given: standard deviation along it; of a sweep: the same, as measured there;
            else 1 / ‖w‖, the step that raises the probe's score by 1 (a logit, of a logistic probe)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from workbench.directions import Direction, DirectionSet
from workbench.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from workbench.activations import Activations
    from workbench.model.language_model import LanguageModel
    from workbench.results import Result
    from workbench.store.reader import Store


def from_probe(
    probe: Any,
    site: str,
    *,
    model: LanguageModel | None = None,
    acts: torch.Tensor | Activations | Store | None = None,
    classes: Sequence[str] = (),
    name: str = "",
) -> Direction:
    """A fitted linear probe of two classes, or of one output, as a direction.

    Args:
        probe: object with `coef_`, or a scikit-learn pipeline that ends in one.
        site: where its activations were read.
        model: the model they are of; the direction then carries its fingerprint and is checked to fit.
        acts: activations whose standard deviation along the direction becomes its scale.
        classes: names of the classes, in the order of `classes_`.
        name: of the direction; made of the classes by default.

    Raises:
        DataError: no `coef_` (not fitted, or not linear), a weight of another shape, zero or not finite, a step before
            it that is no scaler, other numbers of classes, more than two classes.

    Example:
        >>> probe = LogisticRegression().fit(acts.rows(site), labels)
        >>> from_probe(probe, site, model=model, acts=acts).strength(2)
    """
    weight, kind, names = _weights(probe, classes)
    if len(weight) > 1:
        raise DataError(
            f"{kind} has {len(weight)} classes or outputs, so there is no one direction: use from_probe_classes."
        )
    called = name or (f"{names[1]} (vs {names[0]})" if names else kind)
    return _direction(weight[0], site, called, kind, names, model, acts)


def from_probe_classes(
    probe: Any,
    site: str,
    *,
    model: LanguageModel | None = None,
    acts: torch.Tensor | Activations | Store | None = None,
    classes: Sequence[str] = (),
    name: str = "",
) -> DirectionSet:
    """A fitted linear probe of several classes or outputs as a set of directions, one each.

    Arguments and errors as `from_probe`; a probe of two classes gives a set of one.
    """
    weight, kind, names = _weights(probe, classes)
    if len(weight) == 1:
        made = [from_probe(probe, site, model=model, acts=acts, classes=classes, name=name)]
    else:
        called = [f"{name} {names[i] if names else i}".strip() for i in range(len(weight))]
        made = [
            _direction(row, site, one, kind, names, model, acts)
            for row, one in zip(weight, called, strict=True)
        ]
    return DirectionSet(made, name=name or kind)


def from_sweep(result: Result, *, kind: str | None = None) -> DirectionSet:
    """Every linear probe of one kind in a sweep, as directions: one a site (and position, label or class).

    Args:
        result: of kind `probe_sweep`.
        kind: kind of probe; the first of the sweep by default.

    Returns:
        Directions whose scale is the standard deviation of the sweep's rows along them. Settings keep the AUC, its
        interval and that of the permuted labels.

    Raises:
        DataError: a result of another kind, an unknown kind of probe, or none of its probes has a direction.

    Example:
        >>> found = from_sweep(probes.sweep(acts, labels))
        >>> found["blocks.14.hook_resid_post"].settings["auc"]
    """
    data = result.data
    if result.kind != "probe_sweep" or "weight" not in data:
        raise DataError(f"A result of kind {result.kind!r} holds no probes: give one of kind 'probe_sweep'.")
    kinds = [str(k) for k in data["probe"].values]
    kind = kinds[0] if kind is None else kind
    if kind not in kinds:
        raise DataError(
            f"This sweep has no probes of kind {kind!r}.{did_you_mean(kind, kinds)} It has {kinds}."
        )
    data = data.isel(probe=kinds.index(kind))
    dims = [dim for dim in data["weight"].dims if dim != "d_model"]
    attrs = data.attrs
    pair = f"{attrs['positive']} (vs {attrs['negative']})" if "positive" in attrs else ""
    measured = (
        "auc",
        "auc_low",
        "auc_high",
        "control_auc",
        "control_auc_high",
        "accuracy",
        "control_accuracy",
    )
    made = []
    for place in np.ndindex(*(data.sizes[dim] for dim in dims)):
        cell = data.isel(dict(zip(dims, place, strict=True)))
        scale = float(cell["scale"])
        if not scale > 0 or not np.isfinite(cell["weight"].values).all():
            continue  # not linear, or a constant site: there is no direction to give
        extra = [str(cell[dim].item()) for dim in dims if dim not in ("layer", "site") and dim in cell.coords]
        held_out = {key: float(cell[key]) for key in measured if key in cell and cell[key].ndim == 0}
        made.append(
            Direction.from_vector(
                torch.from_numpy(np.array(cell["weight"].values)),
                site=str(cell["site"].item()),
                scale=scale,
                name=" ".join([pair, *extra]).strip() or kind,
                source=f"probe:{kind}",
                model_fingerprint=str(result.provenance.model.get("fingerprint", "")),
                settings={
                    "kind": kind,
                    "scale_is": "standard deviation of the sweep's rows",
                    "n": int(attrs["n"]) if "n" in attrs else None,
                    **{key: value for key, value in held_out.items() if np.isfinite(value)},
                },
                provenance=result.provenance.to_dict(),
            )
        )
    if not made:
        raise DataError(
            f"No probe of kind {kind!r} in this sweep has a direction: they are not linear, or all constant."
        )
    return DirectionSet(
        made,
        name=kind,
        settings={
            "kind": kind,
            "cells": int(np.prod([data.sizes[d] for d in dims])),
            "with_direction": len(made),
        },
    )


def _weights(probe: Any, classes: Sequence[str]) -> tuple[np.ndarray, str, list[str]]:
    """[direction, d] weights over raw activations, the kind of probe, and the names of its classes."""
    last, sd = _last_step(probe)
    weight = np.asarray(_numpy(last.coef_), dtype=np.float64)
    weight = weight[None] if weight.ndim == 1 else weight
    kind = type(last).__name__
    if weight.ndim != 2 or not np.isfinite(weight).all():
        raise DataError(
            f"coef_ of {kind} has shape {list(weight.shape)}{' with NaN in it' if weight.ndim == 2 else ''}: expected "
            "finite numbers, [d] or [class, d]."
        )
    if sd is not None:
        weight = weight / sd
    names = [str(c) for c in (classes if len(classes) else getattr(last, "classes_", []))]
    expected = len(weight) if len(weight) > 1 else 2
    if names and len(names) != expected:
        raise DataError(f"{len(names)} class names for a probe of {expected} classes: give one for each.")
    if len(weight) > 1 and hasattr(last, "classes_"):  # minus the mean of the others
        weight = (weight - weight.mean(0)) * len(weight) / (len(weight) - 1)
    return weight, kind, names


def _direction(
    row: np.ndarray,
    site: str,
    name: str,
    kind: str,
    classes: list[str],
    model: LanguageModel | None,
    acts: Any,
) -> Direction:
    norm = float(np.linalg.norm(row))
    if norm == 0:
        raise DataError(f"The weight of {name!r} is zero: it is no direction.")
    one = Direction.from_vector(
        torch.from_numpy(row),
        site=site,
        scale=1 / norm,
        name=name,
        source=f"probe:{kind}",
        model_fingerprint=model.fingerprint if model is not None else "",
        settings={"scale_is": "a step of 1 in the probe's score", "classes": classes, "weight_norm": norm},
    )
    if model is not None:
        one.fits(model)
    if acts is None:
        return one
    made = one.with_scale_from(acts)
    return replace(made, settings={**made.settings, "scale_is": "standard deviation along it"})


def _last_step(probe: Any) -> tuple[Any, np.ndarray | None]:
    """The object with `coef_`, and the standard deviations a scaler before it divides by."""
    steps = getattr(probe, "steps", None)
    if steps is None:
        if not hasattr(probe, "coef_"):
            raise DataError(
                f"A {type(probe).__name__} has no coef_: it is not fitted, or not linear. Give a fitted linear probe."
            )
        return probe, None
    last, sd = steps[-1][1], None
    for _, step in steps[:-1]:
        if step in (None, "passthrough"):
            continue
        if not (hasattr(step, "scale_") and hasattr(step, "n_features_in_")) or hasattr(step, "coef_"):
            raise DataError(
                f"{type(step).__name__} stands before the probe, and what it does cannot be folded into a weight: only "
                "scalers that divide by `scale_` can."
            )
        own = step.scale_
        multiplies = hasattr(step, "min_")  # MinMaxScaler multiplies by scale_, the others divide
        own = np.ones(step.n_features_in_) if own is None else np.asarray(own, dtype=np.float64)
        sd = (1 if sd is None else sd) * (1 / own if multiplies else own)
    if not hasattr(last, "coef_"):
        raise DataError(f"A {type(last).__name__} has no coef_: it is not fitted, or not linear.")
    return last, sd


def _numpy(values: Any) -> Any:
    return values.detach().cpu().numpy() if hasattr(values, "detach") else values
