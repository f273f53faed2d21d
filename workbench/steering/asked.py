"""What `generate` was asked for as a plan, and whether that plan steers anything of what the model will read.

    read by the model    positions [0, n + k - 1) of a prompt of n tokens with k new ones: the last is not read again
    steered              positions of the rule among these at which the schedule is not 0

A rule or schedule that leaves none in any row is an error, since the texts would silently be those of the plain model.
(Strength 0 is none: sweeps have it on purpose. A condition decides while the model runs.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from workbench.errors import DataError, PositionError
from workbench.steering.operations import Operation, numbers
from workbench.steering.rules import Where, stretches
from workbench.steering.schedule import Schedule

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel
    from workbench.steering.plan import Plan

USUAL = {"where": "all", "op": "add", "schedule": None, "condition": None}
"""The defaults of what says how to steer."""


def plan_of(direction: Any, strength: Any, **how: Any) -> Plan | None:
    """What was asked for as a plan; None: unsteered.

    Args:
        direction: as of `generate`.
        strength: None where none was given: the whole of operations whose strength is a share, else an error.
        how: `where`, `op`, `schedule` and `condition`.

    Raises:
        DataError: no strength for an operation that needs one; how to steer without a direction, or beside a Steering
            that says it itself; and what `Steering` raises.
    """
    from workbench.steering.plan import Plan, Steering, as_plan

    given = [k for k, v in how.items() if not _is_usual(v, USUAL[k])]
    several = (
        isinstance(direction, Sequence) and len(direction) and all(isinstance(s, Steering) for s in direction)
    )
    if several or isinstance(direction, (Steering, Plan)):
        given += ["strength"] if strength is not None else []
        if given:
            raise DataError(f"A Steering has its own {', '.join(given)}: give them there, not to generate.")
        return as_plan(direction)
    if direction is None:
        if given:
            raise DataError(
                f"{', '.join(given)} say how to steer, but no direction to steer along was given: give one, or leave "
                "them away for the plain model."
            )
        if strength is not None and any(numbers(strength, "strength")):
            raise DataError(f"Strength {strength!r} was given without a direction to steer along.")
        return None
    op = how["op"] if isinstance(how["op"], Operation) else Operation(how["op"])
    chosen = op.full_strength if strength is None else strength
    if chosen is None:
        raise DataError(
            f"No strength was given, and {op.name!r} has none of its own: give strength ({op.strength_means}), for "
            "instance strength=8.0 or strength=direction.strength(1.5)."
        )
    return Plan((Steering(direction, chosen, **{**how, "op": op}),))


def _is_usual(given: Any, usual: Any) -> bool:
    return given is usual or (isinstance(given, str) and given == usual)


def with_zero(strengths: float | Sequence[float]) -> list[float]:
    """One strength or several, ascending, each once, and 0. Raises `DataError`."""
    try:
        several = (
            isinstance(strengths, Iterable)
            and not isinstance(strengths, str)
            and getattr(strengths, "ndim", 1)
        )
        listed: Any = strengths if several else [strengths]
        found = {float(s) for s in listed}
    except (TypeError, ValueError):
        raise DataError(
            f"Strengths are {strengths!r}: give a number such as 8.0, or a list of them."
        ) from None
    if not all(map(math.isfinite, found)):
        raise DataError(f"Strengths {sorted(found)} are not all finite: give numbers such as -8 and 8.")
    return sorted(found | {0.0})


def check_steers(
    where: Where,
    schedule: Schedule | None,
    model: LanguageModel,
    ids: Sequence[Sequence[int]],
    max_new_tokens: int = 0,
) -> None:
    """Raise where nothing of what the model reads would be steered.

    Args:
        where: the position rule.
        schedule: factor by step; None is constant.
        model: the language model.
        ids: token ids of each prompt.
        max_new_tokens: how many tokens are generated after them.

    Raises:
        PositionError, DataError: as `rules.stretches`; PositionError also where in every row the stretch is empty or
            the schedule 0 on all of it.
    """
    lengths = [len(row) for row in ids]
    seen = [n + max(0, max_new_tokens - 1) for n in lengths]
    if where == "generated" and max_new_tokens == 1:
        raise PositionError(
            "Position rule 'generated' steers new tokens as the model reads them again, and the only new one "
            "is not read again: nothing would be steered. Generate 2 or more, or steer at 'last', whose "
            "position chooses the first."
        )
    spans = stretches(where, lengths, ids, model, seen)
    steps: set[int] = set()
    for (first, end), n, limit in zip(spans, lengths, seen, strict=True):
        if first < min(end, limit):
            steps.update(range(max(0, first - n + 1), max(0, min(end, limit) - n) + 1))
    if not steps:
        raise PositionError(
            f"Position rule {where!r} leaves nothing to steer: the model reads at most {max(seen)} positions, and none "
            "of them is in it. Give another rule, or generate more tokens."
        )
    listed = sorted(steps)
    if schedule is not None and not schedule(torch.tensor([listed])).any():
        what = "step 0 (the prompt)" if listed == [0] else f"steps {listed[0]} to {listed[-1]}"
        raise PositionError(
            f"The schedule {schedule!r} is 0 at {what}, which is all that position rule {where!r} steers of {len(ids)} "
            f"prompt(s) with {max_new_tokens} new tokens: nothing would be steered. Give another schedule or rule, or "
            "generate more tokens."
        )
