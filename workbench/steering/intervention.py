"""The steering edit: an operation along a vector, at the positions of a rule, each row as strong as it is asked to be.

    amount[row, position] = strength[row] · g(step of the position)      where rule, condition and padding allow it

The amounts of a call of the model are worked out once for all sites. Where they are zero nothing is computed and the
activation stays as it was, bit for bit; where all of a call is steered there is nothing to select. Vectors are put on
a device once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.directions import Direction, DirectionSet
from workbench.directions.algebra import members
from workbench.errors import DataError
from workbench.hooks.context import HookContext
from workbench.steering.operations import Operation, numbers
from workbench.steering.rules import NAMED, Condition, Where, as_rule, stretches
from workbench.steering.schedule import Schedule

__all__ = ["RULES", "Amounts", "SteeringEdit", "Trigger", "Where", "add_direction"]

RULES = NAMED


@dataclass(frozen=True)
class Chosen:
    """How strongly each position of one call of the model is steered.

    Attributes:
        amount: [row or 1, position or 1] strengths, float32.
        mask: [row, position] which positions are steered at all; None: every one.
        places: row and column of each steered position; None where every one is, empty where none.
    """

    amount: Float[Tensor, "#batch #position"]
    mask: Bool[Tensor, "batch position"] | None
    places: tuple[Tensor, Tensor] | None

    def last(self, n: int) -> Chosen:
        """The last `n` columns, for modules that see only those (logits of the last position)."""
        if self.mask is None:
            return Chosen(self.amount if self.amount.shape[1] == 1 else self.amount[:, -n:], None, None)
        mask = self.mask[:, -n:]
        amount = self.amount if self.amount.shape[1] == 1 else self.amount[:, -n:]
        return _chosen(amount, mask)


class Amounts:
    """Amounts of the rows of one batch; one object for all sites of a steering.

    Args:
        strength: one number, or one per row.
        spans: the stretch [first, end) of absolute positions of each row; None: all.
        lengths: tokens of each row's prompt, needed by a schedule.
        schedule: factor by generation step.
        trigger: the condition, if any.
    """

    def __init__(
        self,
        strength: Sequence[float],
        spans: Sequence[tuple[int, int]] | None = None,
        lengths: Sequence[int] | None = None,
        schedule: Schedule | None = None,
        trigger: Trigger | None = None,
    ) -> None:
        self._strength = torch.tensor(strength, dtype=torch.float32)[:, None]
        everywhere = spans is None or all(first == 0 and end >= 2**31 - 1 for first, end in spans)
        self._spans = None if everywhere else torch.tensor(spans)
        self._lengths = torch.tensor(lengths)[:, None] if lengths is not None else None
        self._schedule = schedule
        self._trigger = trigger
        self._seen: Tensor | None = None
        self._known: Chosen | None = None

    def of(self, context: HookContext) -> Chosen:
        """The amounts of the present call."""
        at = context.positions  # one tensor for each call of the model
        if self._seen is not at or self._known is None:
            self._known = self._work_out(at, context.real)
            self._seen = at
        return self._known

    def _work_out(self, at: Tensor, real: Tensor) -> Chosen:
        if self._strength.device != at.device:
            self._strength = self._strength.to(at.device)
            self._spans = self._spans.to(at.device) if self._spans is not None else None
            self._lengths = self._lengths.to(at.device) if self._lengths is not None else None
        rows = max(len(self._strength), len(self._spans) if self._spans is not None else 1)
        if rows not in (1, at.shape[0]):
            raise DataError(
                f"Steering was prepared for {rows} rows (one strength, direction or prompt length for each), but the "
                f"model was called with {at.shape[0]}."
            )
        by_row = self._spans is not None or self._schedule is not None or self._trigger is not None
        if by_row and self._lengths is not None and len(self._lengths) != at.shape[0]:
            raise DataError(
                f"Steering was prepared for the positions of {len(self._lengths)} prompts, but the model was called "
                f"with {at.shape[0]}: prepare it for the batch it is used with."
            )
        amount, mask = self._strength, real
        if self._spans is not None:
            mask = mask & (at >= self._spans[:, :1]) & (at < self._spans[:, 1:])
        if self._schedule is not None:
            assert self._lengths is not None
            amount = amount * self._schedule((at - self._lengths + 1).clamp(min=0))
        if self._trigger is not None:
            mask = mask & self._trigger.open
        return _chosen(amount, mask & (amount != 0))


def _chosen(amount: Tensor, mask: Tensor) -> Chosen:
    if bool(mask.all()):
        return Chosen(amount, None, None)
    rows, columns = mask.nonzero(as_tuple=True)
    return Chosen(amount, mask, (rows, columns))


class Trigger:
    """A condition at work: reads at its site and knows which positions of the present call it opens."""

    def __init__(self, condition: Condition, lengths: Sequence[int]) -> None:
        self._condition = condition
        self._ends = torch.tensor(lengths)[:, None]
        self._vector = condition.probe.vector if isinstance(condition.probe, Direction) else None
        self._first: Tensor | None = None  # [row, 1] where it fired first
        self.open: Tensor = torch.empty(0)

    def __call__(self, activation: Tensor, context: HookContext) -> Tensor:
        """The edit at the probe's site: looks, and leaves the activation as it was."""
        at, real = context.positions, context.real
        fires = self._fires(activation, context).to(at.device) & real
        holds = self._condition.holds
        if holds == "here":
            self.open = fires
            return activation
        if holds == "last":
            fires = fires & (at == self._ends.to(at.device) - 1)
        never = torch.iinfo(at.dtype).max
        first = torch.where(fires, at, never).min(dim=1, keepdim=True).values
        if self._first is not None and self._first.shape == first.shape:
            begins = ((at == 0) & real).any(dim=1, keepdim=True)  # the whole text anew: nothing is remembered
            first = torch.where(begins, first, torch.minimum(first, self._first))
        self._first = first
        self.open = at >= first
        return activation

    def _fires(self, activation: Tensor, context: HookContext) -> Tensor:
        if self._vector is None:
            found = self._condition.probe(activation, context)  # type: ignore[operator]
            shape = tuple(context.positions.shape)
            if not isinstance(found, Tensor) or tuple(found.shape) != shape or found.dtype != torch.bool:
                got = (
                    f"{found.dtype} {list(found.shape)}"
                    if isinstance(found, Tensor)
                    else type(found).__name__
                )
                raise DataError(f"A condition's function gives a bool tensor {list(shape)}, not {got}.")
            return found
        values = activation.flatten(2)
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        self._vector = self._vector.to(values)  # itself, once it is there
        coefficient = values @ self._vector
        threshold = self._condition.threshold
        return coefficient > threshold if self._condition.fires == "above" else coefficient < threshold


class SteeringEdit:
    """The edit function at one site.

    Args:
        vectors: [row or 1, d] unit vectors.
        operation: what is done along them.
        amounts: how strongly, at which positions.
    """

    def __init__(self, vectors: Float[Tensor, "#batch d"], operation: Operation, amounts: Amounts) -> None:
        self._vectors = vectors[:, None]  # [row or 1, 1, d]
        self._operation = operation
        self._parameters = [torch.tensor(p)[:, None, None] for p in operation.parameters.values()]
        self._amounts = amounts

    def __call__(self, activation: Tensor, context: HookContext) -> Tensor:
        """The steered activation; `activation` is the hook's own copy and may be written to."""
        chosen = self._amounts.of(context)
        if activation.shape[1] != context.positions.shape[1]:
            chosen = chosen.last(activation.shape[1])
        if chosen.places is not None and chosen.places[0].numel() == 0:
            return activation
        vectors, *parameters = self._on(activation.device)
        for name, one in zip(
            ("directions", *self._operation.parameters), (vectors, *parameters), strict=True
        ):
            if one.shape[0] not in (1, activation.shape[0]):
                raise DataError(
                    f"Steering has {one.shape[0]} {name}, but the model was called with {activation.shape[0]} rows: "
                    "give one for all, or one for each row."
                )
        flat = activation.flatten(2) if activation.ndim > 3 else activation
        amount = chosen.amount.to(activation.device)[..., None]
        if chosen.places is None:
            new = self._operation.formula(flat, vectors, amount, *parameters)
        else:
            rows, columns = (i.to(activation.device) for i in chosen.places)
            steered = self._operation.formula(
                flat[rows, columns],
                _pick(vectors, rows, columns),
                _pick(amount, rows, columns),
                *(_pick(p, rows, columns) for p in parameters),
            )
            new = flat.index_put((rows, columns), steered)
        return new.reshape(activation.shape)

    def _on(self, device: torch.device) -> list[Tensor]:
        if self._vectors.device != device:
            self._vectors = self._vectors.to(device)
            self._parameters = [p.to(device) for p in self._parameters]
        return [self._vectors, *self._parameters]


def _pick(values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """[place, ...] of what is [row or 1, position or 1, ...]."""
    return values[rows if values.shape[0] > 1 else 0, columns if values.shape[1] > 1 else 0]


def add_direction(
    direction: Direction | Sequence[Direction],
    strength: float | Sequence[float],
    *,
    where: Where = "all",
    prompt_lengths: Sequence[int] | None = None,
) -> Callable[[Tensor, HookContext], Tensor]:
    """An edit function for `model.edit` that adds directions: h + s v at one site. `Steering` does more.

    Args:
        direction: one for all rows, or one per row of the batch.
        strength: one for all rows, or one per row; norm of what is added.
        where: the position rule.
        prompt_lengths: tokens of each row's prompt, needed by every rule but `all`.

    Raises:
        DataError: a strength that is not finite, an unknown rule, a set of several directions or directions of several
            sites; when the model runs, another number of rows.
    """
    if isinstance(direction, DirectionSet) and len(direction) > 1:
        raise DataError(
            f"A set of {len(direction)} directions was given for one site: give one of its members, or a list of "
            "directions, one for each row. Steering(set) puts each member at its own site."
        )
    along = members(direction)
    if len({d.site for d in along}) > 1:
        raise DataError(
            f"Directions for the rows of one site are at {sorted({d.site for d in along})}: give directions of one "
            "site, or move them there with Direction.at(site)."
        )
    rule = as_rule(where)
    strengths = numbers(strength, "strength")
    if rule != "all" and prompt_lengths is None:
        raise DataError(f"Position rule {rule!r} needs to know how long each prompt is.")
    spans = None if prompt_lengths is None else stretches(rule, prompt_lengths)
    amounts = Amounts(strengths, spans, prompt_lengths)
    return SteeringEdit(torch.stack([d.vector for d in along]), Operation("add"), amounts)


def together(edits: Sequence[Callable[..., Any]]) -> Callable[[Tensor, HookContext], Tensor]:
    """Several edits at one site, one after the other."""
    if len(edits) == 1:
        return edits[0]

    def edit(activation: Tensor, context: HookContext) -> Tensor:
        for one in edits:
            activation = one(activation, context)
        return activation

    return edit
