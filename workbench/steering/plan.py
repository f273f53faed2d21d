"""`Steering`: one intervention for plain forward passes, generation with and without KV cache, one prompt or many.

    h  <-  operation(h, v, strength · g(step))       at the direction's site, where rule and condition allow

    steering = Steering(d, strength=[0, 4, 8], where="generated")       # a strength for each row
    with steering.on(model, batch):
        logits = model.forward(batch).logits
    generate(model, prompts, steering)
    both = steering + Steering(other, op="ablate")                       # a `Plan`: one after the other

What a direction may be:

    Direction              at its site, for all rows
    DirectionSet           all its members, each at its own site (in-context vectors: one a layer)
    list of Direction      one for each row, all at one site
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from workbench.directions import Direction, DirectionSet
from workbench.directions.algebra import members
from workbench.errors import DataError, SiteError
from workbench.hooks.session import EditFunction, HookSession
from workbench.steering.asked import check_steers
from workbench.steering.intervention import Amounts, SteeringEdit, Trigger, together
from workbench.steering.operations import Operation, numbers
from workbench.steering.rules import Condition, Where, as_rule, rule_settings, stretches
from workbench.steering.schedule import Schedule, as_schedule

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel
    from workbench.model.tokens import TokenBatch

Steered = Direction | DirectionSet | Sequence[Direction]
"""What steering goes along; see the module's text."""


@dataclass(frozen=True, eq=False)
class Steering:
    """One operation along one direction (or a set of them), with its strength and where it applies.

    Attributes:
        direction: what to steer along; see the module's text.
        strength: one for all rows, or one per row; what it means depends on `op` (`operations`). 0 changes nothing.
        op: name of an operation, or an `Operation` with parameters, such as `Operation("clamp", value=8.0)`.
        where: position rule, see `rules`.
        schedule: factor on the strength by generation step, see `schedule`; None is constant.
        condition: steer only where a probe fires, see `rules.Condition`.

    Raises:
        DataError: a strength that is not finite, an unknown operation, rule or schedule, directions per row at
            different sites, or numbers of rows that do not go together.

    Example:
        >>> Steering(DirectionSet(by_layer), 0.1, op="in_context", where="all")
    """

    direction: Steered
    strength: float | Sequence[float] = 1.0
    op: str | Operation = "add"
    where: Where = "all"
    schedule: Schedule | Mapping[str, Any] | Sequence[float] | str | None = None
    condition: Condition | None = None

    def __post_init__(self) -> None:
        direction = self.direction
        if not isinstance(direction, (Direction, DirectionSet)):
            if not isinstance(direction, Sequence) or not all(isinstance(d, Direction) for d in direction):
                raise DataError(
                    "Steering takes a Direction, a DirectionSet or a list of directions (one per row), not "
                    f"{type(direction).__name__}."
                )
            if len({(d.site, d.width) for d in direction}) != 1:
                raise DataError(
                    f"A list of directions is one for each row, all at one site; these are at "
                    f"{sorted({d.site for d in direction})}. For several sites at once give a DirectionSet."
                )
            object.__setattr__(self, "direction", tuple(direction))
        if self.condition is not None and not isinstance(self.condition, Condition):
            raise DataError(
                f"A condition is a workbench.steering.Condition, not {type(self.condition).__name__}."
            )
        object.__setattr__(self, "strength", numbers(self.strength, "strength"))
        op = self.op if isinstance(self.op, Operation) else Operation(self.op)
        object.__setattr__(self, "op", op)
        object.__setattr__(self, "where", as_rule(self.where))
        object.__setattr__(self, "schedule", as_schedule(self.schedule))
        counts = {name: n for name, n in self._counts().items() if n != 1}
        if len(set(counts.values())) > 1:
            raise DataError(
                f"Numbers of rows do not go together: {counts}. Give one of each, or as many of all."
            )

    @property
    def strengths(self) -> tuple[float, ...]:
        """One, or one per row."""
        assert isinstance(self.strength, tuple)
        return self.strength

    @property
    def operation(self) -> Operation:
        """The operation with its parameters."""
        assert isinstance(self.op, Operation)
        return self.op

    @property
    def n_rows(self) -> int | None:
        """How many rows it is made for; None where it has one value for all."""
        return next((n for n in self._counts().values() if n != 1), None)

    @property
    def sites(self) -> list[str]:
        """The sites it steers at, as the directions name them."""
        return list(dict.fromkeys(d.site for d in self.directions))

    @property
    def directions(self) -> tuple[Direction, ...]:
        """All its directions."""
        return tuple(members(self.direction))

    def _counts(self) -> dict[str, int]:
        per_row = {"directions": len(self.direction)} if isinstance(self.direction, tuple) else {}
        return {
            "strengths": len(self.strengths),
            **per_row,
            **{p: len(v) for p, v in self.operation.parameters.items()},
        }

    def for_rows(self, rows: Sequence[int]) -> Steering:
        """The same for some of the rows, in the order given (rows may come several times)."""

        def pick(values: Any) -> Any:
            return values if len(values) == 1 else tuple(values[i] for i in rows)

        direction = pick(self.direction) if isinstance(self.direction, tuple) else self.direction
        op = Operation(self.operation.name, **{p: pick(v) for p, v in self.operation.parameters.items()})
        return replace(self, direction=direction, strength=pick(self.strengths), op=op)

    def __add__(self, other: Steering | Plan) -> Plan:
        return Plan((self,)) + other

    def on(self, model: LanguageModel, batch: TokenBatch, **options: Any) -> HookSession:
        """Steer inside a `with` block; see `Plan.on`."""
        return Plan((self,)).on(model, batch, **options)

    def settings(self) -> dict[str, Any]:
        """JSON-ready: everything but the vectors, which are named by site, name, source, model and scale."""
        assert self.schedule is None or isinstance(self.schedule, Schedule)
        known = [
            {
                "site": d.site,
                "name": d.name,
                "source": d.source,
                "scale": d.scale,
                "model": d.model_fingerprint,
            }
            for d in self.directions
        ]
        return {
            "directions": known,
            "per_row": isinstance(self.direction, tuple) and len(self.direction) > 1,
            "strength": self.strengths[0] if len(self.strengths) == 1 else list(self.strengths),
            **self.operation.settings(),
            "where": rule_settings(self.where),
            "schedule": None if self.schedule is None else self.schedule.settings(),
            "condition": None if self.condition is None else self.condition.settings(),
        }


@dataclass(frozen=True, eq=False)
class Plan:
    """Several steerings as one intervention. At one site they act in their order; sites act in that of the model.

    Attributes:
        steerings: at least one.

    Example:
        >>> plan = Steering(anger, op="ablate") + Steering(joy, 6.0, where="generated")
        >>> wb.steering.generate(model, prompts, plan)
    """

    steerings: tuple[Steering, ...]

    def __post_init__(self) -> None:
        found = tuple(self.steerings)
        wrong = [type(s).__name__ for s in found if not isinstance(s, Steering)]
        if not found or wrong:
            raise DataError(f"A plan consists of steerings; it has {wrong or 'none'}.")
        object.__setattr__(self, "steerings", found)

    def __add__(self, other: Steering | Plan) -> Plan:
        more = other.steerings if isinstance(other, Plan) else (other,)
        return Plan((*self.steerings, *more))

    def fits(self, model: LanguageModel, *, n_rows: int | None = None, force: bool = False) -> None:
        """Check against a model, and a number of rows if given; nothing is returned.

        Raises:
            DataError: a direction that does not fit the model (`Direction.fits`; `force` overrides the fingerprint
                alone), strengths for another number of rows, or a condition that reads too late.
            SiteError: a site that stands for several.
        """
        for steering in self.steerings:
            if n_rows is not None and steering.n_rows not in (None, n_rows):
                raise DataError(
                    f"Steering has {steering.n_rows} rows ({steering._counts()}), but there are {n_rows} prompts: give "
                    "one strength for all or one for each prompt. For each prompt at each of several strengths use "
                    "sweep_strengths."
                )
            for direction in steering.directions:
                direction.fits(model, force=force)
            sites = [_one_site(model, site) for site in steering.sites]
            if steering.condition is not None:
                steering.condition.fits(model, sites, force=force)

    def for_rows(self, rows: Sequence[int]) -> Plan:
        """The same for some of the rows."""
        return Plan(tuple(s.for_rows(rows) for s in self.steerings))

    def check_rules(
        self, model: LanguageModel, ids: Sequence[Sequence[int]], max_new_tokens: int = 0
    ) -> None:
        """Raise what `stretches` raises for prompts in which a rule finds no position, before generating.

        Raises:
            PositionError: also where the rule or the schedule leaves nothing to steer; see `asked.check_steers`.
        """
        for steering in self.steerings:
            assert steering.schedule is None or isinstance(steering.schedule, Schedule)
            check_steers(steering.where, steering.schedule, model, ids, max_new_tokens)

    def settings(self) -> list[dict[str, Any]]:
        """JSON-ready: `Steering.settings` of each."""
        return [s.settings() for s in self.steerings]

    def on(
        self,
        model: LanguageModel,
        batch: TokenBatch,
        *,
        prompt_lengths: Sequence[int] | None = None,
        max_new_tokens: int = 0,
        read: Sequence[str] = (),
        force: bool = False,
    ) -> HookSession:
        """Steer inside a `with` block, in plain forward passes or the model's own generation.

        Args:
            model: the language model.
            batch: the rows; with padding on either side.
            prompt_lengths: tokens of each row that are prompt, where the batch holds a continuation too; all by
                default.
            max_new_tokens: how many tokens will be generated inside the block.
            read: sites to read (after the edits), as `model.hooks`.
            force: accept directions of another model.

        Raises:
            As `fits`; PositionError or DataError where a rule finds no position.

        Example:
            >>> with plan.on(model, batch, read=["blocks.20.hook_resid_post"]) as seen:
            ...     logits = model.forward(batch).logits
        """
        self.fits(model, n_rows=len(batch), force=force)
        lengths = list(batch.lengths if prompt_lengths is None else prompt_lengths)
        if len(lengths) != len(batch) or any(
            not 0 < n <= m for n, m in zip(lengths, batch.lengths, strict=False)
        ):
            raise DataError(
                f"Prompt lengths {lengths} do not fit rows of {list(batch.lengths)} tokens: give one for each row, "
                "from 1 to its number of tokens."
            )
        return model.hooks(read=read, edit=self._edits(model, batch, lengths, max_new_tokens))

    def _edits(
        self, model: LanguageModel, batch: TokenBatch, lengths: Sequence[int], max_new_tokens: int
    ) -> dict[str, EditFunction]:
        """Site -> edit function, with memory of one run: made anew for each."""
        rows = batch.ids.cpu()
        ids = [rows[i, batch.columns(i, range(n))].tolist() for i, n in enumerate(lengths)]
        seen = [m + max(0, max_new_tokens - 1) for m in batch.lengths]
        at: dict[str, list[EditFunction]] = {}
        for steering in self.steerings:
            assert steering.schedule is None or isinstance(steering.schedule, Schedule)
            trigger = None
            if steering.condition is not None:
                trigger = Trigger(steering.condition, lengths)
                at.setdefault(_one_site(model, steering.condition.at), []).append(trigger)
            spans = stretches(steering.where, lengths, ids, model, seen)
            amounts = Amounts(steering.strengths, spans, lengths, steering.schedule, trigger)
            groups = (
                [steering.direction]
                if isinstance(steering.direction, tuple)
                else [[d] for d in steering.directions]
            )
            for group in groups:
                vectors = torch.stack([d.vector for d in group])
                edit = SteeringEdit(vectors, steering.operation, amounts)
                at.setdefault(_one_site(model, group[0].site), []).append(edit)
        return {site: together(edits) for site, edits in at.items()}


def as_plan(steering: Steering | Plan | Sequence[Steering]) -> Plan:
    """One steering, several or a plan -> a plan."""
    if isinstance(steering, Plan):
        return steering
    return Plan((steering,) if isinstance(steering, Steering) else tuple(steering))


def _one_site(model: LanguageModel, site: str) -> str:
    found = model.resolve(site)
    if len(found) != 1:
        raise SiteError(
            f"A direction is at one site; {site!r} stands for {len(found)}. Use Direction.at(site)."
        )
    return found[0].name
