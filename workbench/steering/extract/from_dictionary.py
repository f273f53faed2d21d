"""Directions from a dictionary: rows of any matrix of named features.

    x ≈ b + Σ_j a_j W_j            direction_j = W_j / ‖W_j‖, scale = ‖W_j‖ · (typical a_j, if known)

What is a dictionary here: a matrix [feature, d], or an object with `W_dec` of that shape (sparse autoencoders,
transcoders and their kin keep their decoder so); names are given, or the features' numbers. Nothing of `saes` is
imported: a row is a row. Features that are never on are often rows of zeros: those are refused by name, not passed
over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.directions import Direction, DirectionSet
from workbench.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel

AT_MOST = 4096
"""Features that are taken without being asked for by name or number."""


def from_dictionary(
    dictionary: Any,
    site: str,
    features: int | str | Sequence[int | str] | None = None,
    *,
    names: Sequence[str] | Mapping[int, str] | None = None,
    activation: float | Sequence[float] | Mapping[int, float] = 1.0,
    model: LanguageModel | None = None,
    name: str = "dictionary",
) -> DirectionSet:
    """Some features' rows as directions.

    Args:
        dictionary: [feature, d] matrix (torch or numpy), or an object with such a `W_dec`.
        site: what it was made at, where adding a row means something.
        features: numbers or names; None takes all (of at most 4,096).
        names: of all features, in order; or by number, of some. Default: `feature 17`.
        activation: how strongly a feature is on when it is on, as its natural unit: one number, one for each of
            `features` in order, or by number. 1 by default: scale is then the row's norm.
        model: the model it belongs to: checked for width, and its fingerprint is kept.
        name: of the set.

    Returns:
        A `DirectionSet`, in the order asked for.

    Raises:
        DataError: no such matrix or feature, names that do not match or are not unique, rows of zeros or NaN, a width
            the site has not (the message says so where the matrix looks transposed).

    Example:
        >>> found = from_dictionary(sae, "blocks.15.hook_resid_post", [17, 905], names={17: "French"}, model=model)
        >>> found["French"].strength(2)
    """
    matrix = matrix_of(dictionary)
    n = len(matrix)
    called = _names(names, n)
    wanted = _wanted(features, called, n)
    strengths = _activations(activation, wanted)
    made = []
    for j, strength in zip(wanted, strengths, strict=True):
        row = matrix[j].double()
        norm = float(row.norm())
        if not (norm > 0 and np.isfinite(norm)):
            what = "zero (a dead feature?)" if norm == 0 else "not finite"
            raise DataError(
                f"Row {j} ({called[j]!r}) of the dictionary is {what}: it is no direction. Leave it out."
            )
        one = Direction.from_vector(
            row,
            site=site,
            scale=norm * strength,
            name=called[j],
            source="dictionary",
            model_fingerprint=model.fingerprint if model is not None else "",
            settings={
                "dictionary": type(dictionary).__name__,
                "feature": j,
                "n_features": n,
                "row_norm": norm,
                "activation": strength,
            },
        )
        if model is not None:
            _fits(one, model, n)
        made.append(one)
    return DirectionSet(
        made, name=name, settings={"n_features": n, "features": wanted if len(wanted) <= 64 else len(wanted)}
    )


def matrix_of(dictionary: Any) -> Float[Tensor, "feature d"]:
    """The [feature, d] rows of a matrix or of an object with `W_dec`, detached, on the CPU."""
    rows = dictionary if isinstance(dictionary, (Tensor, np.ndarray)) else getattr(dictionary, "W_dec", None)
    if rows is None:
        raise DataError(
            f"A {type(dictionary).__name__} is no dictionary: give a matrix [feature, d], or an object with W_dec."
        )
    if getattr(rows, "ndim", None) != 2:
        raise DataError(f"A dictionary is a matrix [feature, d], not of shape {list(np.shape(rows))}.")
    return torch.as_tensor(rows).detach().cpu()


def _names(names: Any, n: int) -> list[str]:
    if names is None:
        return [f"feature {j}" for j in range(n)]
    if isinstance(names, Mapping):
        outside = [j for j in names if not 0 <= j < n]
        if outside:
            raise DataError(f"Feature {outside[0]} has a name, but the dictionary has features 0–{n - 1}.")
        return [str(names.get(j, f"feature {j}")) for j in range(n)]
    if len(names) != n:
        raise DataError(
            f"{len(names)} names were given for {n} features: give one for each, or a dict by number."
        )
    return [str(one) for one in names]


def _wanted(features: Any, called: list[str], n: int) -> list[int]:
    if features is None:
        if n > AT_MOST:
            raise DataError(
                f"The dictionary has {n} features: say which, by number or name (at most {AT_MOST} are taken unasked)."
            )
        return list(range(n))
    listed = [features] if isinstance(features, str) or np.ndim(features) == 0 else list(features)
    if not listed:
        raise DataError("No features were asked for: give numbers or names.")
    wanted = []
    for one in listed:
        if isinstance(one, str):
            found = [j for j, known in enumerate(called) if known == one]
            if len(found) != 1:
                what = f"{len(found)} features are" if found else "No feature is"
                raise DataError(
                    f"{what} called {one!r}.{'' if found else did_you_mean(one, called)} Give its number."
                )
            wanted.append(found[0])
        elif isinstance(one, bool) or int(one) != one:
            raise DataError(f"Feature {one!r} is no whole number and no name: the dictionary has 0–{n - 1}.")
        elif not 0 <= one < n:
            raise DataError(f"Feature {one} does not exist: the dictionary has 0–{n - 1}.")
        else:
            wanted.append(int(one))
    return wanted


def _activations(activation: Any, wanted: list[int]) -> list[float]:
    if isinstance(activation, Mapping):
        missing = [j for j in wanted if j not in activation]
        if missing:
            raise DataError(f"No activation was given for feature {missing[0]}.")
        values = [float(activation[j]) for j in wanted]
    elif np.ndim(activation) == 0:
        values = [float(activation)] * len(wanted)
    else:
        values = [float(a) for a in activation]
        if len(values) != len(wanted):
            raise DataError(
                f"{len(values)} activations were given for {len(wanted)} features: give one for each."
            )
    bad = [a for a in values if not (np.isfinite(a) and a > 0)]
    if bad:
        raise DataError(f"An activation is a number above 0, not {bad[0]}.")
    return values


def _fits(direction: Direction, model: LanguageModel, n_features: int) -> None:
    try:
        direction.fits(model)
    except DataError as error:
        turned = (
            f" Its other dimension is {n_features}: give W_dec as [feature, d]."
            if n_features == model.d_model
            else ""
        )
        raise DataError(f"{error}{turned}") from error
