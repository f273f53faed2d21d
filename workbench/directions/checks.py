"""What a direction must be, and which directions may be put together."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from workbench.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from workbench.directions.direction import Direction
    from workbench.model.language_model import LanguageModel
    from workbench.sites.catalog import Site


def checked_vector(vector: ArrayLike | Tensor, site: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """A private contiguous copy on the CPU of a vector (tensor, array or list of numbers) that can be a direction.

    Raises:
        DataError: it is not real numbers, not 1-D, empty, not finite, or zero.
    """
    if not isinstance(vector, Tensor):
        try:
            vector = torch.tensor(np.asarray(vector))
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(
                f"A direction is a vector of numbers (a tensor, an array or a list); at {site!r} came a "
                f"{type(vector).__name__} that is none: {error}"
            ) from error
    if vector.is_complex():
        raise DataError(f"A direction is a vector of real numbers; at {site!r} came one of {vector.dtype}.")
    if vector.ndim != 1 or vector.numel() == 0:
        raise DataError(f"A direction is a 1-D vector; at {site!r} came one of shape {list(vector.shape)}.")
    copy = vector.detach().to("cpu", dtype, copy=True).contiguous()
    bad = int((~torch.isfinite(copy)).sum())
    if bad:
        raise DataError(f"{bad} of {copy.numel()} components of the vector at {site!r} are NaN or infinite.")
    if not bool(copy.any()):
        raise DataError(f"The vector at {site!r} is zero, so it has no direction.")
    return copy


def checked_scale(scale: Any) -> float:
    """A scale as a float. Raises `DataError` unless it is a positive number."""
    try:
        found = float(scale)
    except (TypeError, ValueError, RuntimeError):
        found = math.nan
    if not (math.isfinite(found) and found > 0):
        raise DataError(f"The scale of a direction is a positive number, not {scale!r}.")
    return found


def checked_seed(seed: Any) -> int:
    """A seed as an int, also where it is one of numpy's. Raises `DataError` unless it is a whole number from 0 on."""
    try:
        found = operator.index(seed)
    except TypeError:
        found = -1
    if found < 0:
        raise DataError(f"A seed is a whole number from 0 on, for instance 0, not {seed!r}.")
    return found


def called(direction: Direction) -> str:
    """`'truth' (width 576 at 'blocks.14.hook_resid_post')`, for messages."""
    name = direction.name or direction.source or "without a name"
    return f"{name!r} (width {direction.width} at {direction.site!r})"


def same_width(directions: Sequence[Direction], what: str) -> None:
    """Raise `DataError` unless all have one width; the message names both sides."""
    first = directions[0]
    for other in directions[1:]:
        if other.width != first.width:
            raise DataError(
                f"{what} needs directions of one width: {called(first)} and {called(other)} differ. "
                "Take directions of one model and one kind of site."
            )


def same_model(directions: Sequence[Direction], what: str, *, force: bool = False) -> str:
    """The fingerprint that all have in common (empty where none is known).

    A direction without a fingerprint goes with any. With `force` the first one that is known is given.

    Raises:
        DataError: two have different fingerprints; the message names both sides.
    """
    known = [d for d in directions if d.model_fingerprint]
    for other in known[1:]:
        if other.model_fingerprint != known[0].model_fingerprint and not force:
            raise DataError(
                f"{what} needs directions of one model: {called(known[0])} was made on a model with fingerprint "
                f"{known[0].model_fingerprint}, {called(other)} on one with {other.model_fingerprint}. Other weights "
                "give a site another meaning; use force=True if you want that."
            )
    return known[0].model_fingerprint if known else ""


def together(directions: Sequence[Direction], what: str, *, force: bool = False) -> str:
    """The common fingerprint of directions with one width, site and model.

    Raises:
        DataError: they differ in one of these; the message names both sides. `force` allows other models.
    """
    same_width(directions, what)
    first = directions[0]
    for other in directions[1:]:
        if other.site != first.site:
            raise DataError(
                f"{what} needs directions at one site: {called(first)} and {called(other)} differ. "
                "If both mean the same there, move one with `.at(site)`."
            )
    return same_model(directions, what, force=force)


def width_of(model: LanguageModel, site: Site) -> int:
    """Components of a site's activation at one position, all trailing dimensions taken together."""
    match site.dims[-1]:
        case "d_head":
            return site.heads * model.d_head
        case "d_vocab":
            return model.vocab_size
        case "key":
            raise DataError(f"{site.name!r} holds attention over positions: no direction fits there.")
        case "d_mlp":  # the weight of an MLP's linear map is d_model by d_mlp, either way round
            return model.module(site.module).get_parameter("weight").numel() // model.d_model
        case _:
            return model.d_model
