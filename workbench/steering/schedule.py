"""How strong steering is at each step of generation: a factor g(t) on the strength.

Step t = 0 is the prompt (all of its positions), t = k the k-th token that was generated; it follows from the position
alone (t = max(0, position - length of prompt + 1)), so it is the same with and without KV cache.

    ramp            from `start` to `end` in `steps` steps, then `end`
    cosine_down     max(floor, (cos(π min(t, steps) / steps) + 1) / 2)     (fractional reasoning: steps 50, floor 0.5)
    windows         1 inside [first, last) of one of some windows of steps, else 0
    listed          one factor for each step, given; from its end on `then`
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.errors import DataError, did_you_mean

Steps = Int[Tensor, "batch position"]
Factors = Float[Tensor, "batch position"]


@runtime_checkable
class Schedule(Protocol):
    """Steps -> factors, element by element, as float32; `settings` is JSON-ready."""

    def __call__(self, steps: Steps) -> Factors:
        """The factor of each step."""
        ...

    def settings(self) -> dict[str, Any]:
        """Name and arguments."""
        ...


@dataclass(frozen=True)
class Ramp:
    """Linear from `start` (step 0) to `end` (step `steps`), and `end` from there on."""

    steps: int
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        _checked("ramp", self.steps, self.start, self.end)
        object.__setattr__(self, "start", float(self.start))
        object.__setattr__(self, "end", float(self.end))

    def __call__(self, steps: Steps) -> Factors:
        done = steps.clamp(max=self.steps).float() / self.steps
        return self.start + (self.end - self.start) * done

    def settings(self) -> dict[str, Any]:
        return {"schedule": "ramp", **asdict(self)}


@dataclass(frozen=True)
class CosineDown:
    """From 1 (step 0) down along a cosine to 0 (step `steps`), never below `floor`."""

    steps: int
    floor: float = 0.0

    def __post_init__(self) -> None:
        _checked("cosine_down", self.steps, self.floor)
        object.__setattr__(self, "floor", float(self.floor))

    def __call__(self, steps: Steps) -> Factors:
        down = (torch.cos(steps.clamp(max=self.steps).float() * (math.pi / self.steps)) + 1) / 2
        return down.clamp(min=self.floor)

    def settings(self) -> dict[str, Any]:
        return {"schedule": "cosine_down", **asdict(self)}


@dataclass(frozen=True)
class Windows:
    """On (1) in the windows `[first, last)` of steps, off (0) elsewhere.

    Example:
        >>> Windows([(1, 5), (10, 15)])
    """

    windows: Sequence[tuple[int, int]]

    def __post_init__(self) -> None:
        try:
            found = tuple((a, b) for a, b in self.windows)
        except (TypeError, ValueError):
            found = ()
        whole = all(isinstance(x, int) and not isinstance(x, bool) for pair in found for x in pair)
        if not found or not whole or any(not 0 <= a < b for a, b in found):
            raise DataError(
                f"Windows of steps are pairs [first, last) of whole numbers, 0 <= first < last, not {self.windows!r}."
            )
        object.__setattr__(self, "windows", found)

    def __call__(self, steps: Steps) -> Factors:
        on = torch.zeros_like(steps, dtype=torch.bool)
        for first, last in self.windows:
            on |= (steps >= first) & (steps < last)
        return on.float()

    def settings(self) -> dict[str, Any]:
        return {"schedule": "windows", "windows": [list(w) for w in self.windows]}


@dataclass(frozen=True)
class Listed:
    """The factor of each step, beginning with step 0 (the prompt); `then` from the end of the list on.

    Example:
        >>> Listed([1.0, 0.5, 0.25], then=0.0)
    """

    factors: Sequence[float]
    then: float = 0.0

    def __post_init__(self) -> None:
        try:
            found, then = tuple(float(x) for x in self.factors), float(self.then)
        except (TypeError, ValueError):
            raise DataError(
                f"A listed schedule takes numbers, the factor of each step, not {self.factors!r} (then {self.then!r}): "
                "give a list such as [1.0, 0.5, 0.25]."
            ) from None
        if not found:
            raise DataError("A listed schedule needs at least one factor, that of step 0 (the prompt).")
        _checked("listed", 1, *found, then)
        object.__setattr__(self, "factors", found)
        object.__setattr__(self, "then", then)

    def __call__(self, steps: Steps) -> Factors:
        table = torch.tensor([*self.factors, self.then], device=steps.device)
        return table[steps.clamp(max=len(self.factors))]

    def settings(self) -> dict[str, Any]:
        return {"schedule": "listed", "factors": list(self.factors), "then": self.then}


SCHEDULES = {"ramp": Ramp, "cosine_down": CosineDown, "windows": Windows, "listed": Listed}


def as_schedule(given: Schedule | Mapping[str, Any] | Sequence[float] | str | None) -> Schedule | None:
    """A schedule, or None where the strength is constant.

    Args:
        given: a schedule; None or `"constant"`; a list of factors (see `Listed`); or settings as
            `{"schedule": "ramp", "steps": 20}`.

    Raises:
        DataError: an unknown schedule, or arguments it does not take.
    """
    if given is None or given == "constant":
        return None
    if isinstance(given, Schedule) and not isinstance(given, type):
        return given
    if isinstance(given, Mapping) and "schedule" in given:
        name, arguments = given["schedule"], {k: v for k, v in given.items() if k != "schedule"}
        if name == "constant" and not arguments:
            return None
        if isinstance(name, str) and name in SCHEDULES:
            try:
                return SCHEDULES[name](**arguments)
            except TypeError as error:
                raise DataError(f"Schedule {name!r} does not take {arguments!r}: {error}.") from error
        given = name if isinstance(name, str) else given
    if isinstance(given, Sequence) and not isinstance(given, str):
        return Listed(given)
    hint = did_you_mean(str(given), SCHEDULES)
    raise DataError(
        f"Schedule {given!r} is not known: give 'constant', a list of factors, or one of "
        f"{', '.join(c.__name__ for c in SCHEDULES.values())} of workbench.steering with its arguments.{hint}"
    )


def _checked(name: str, steps: int, *factors: float) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise DataError(f"Schedule {name!r} takes a whole number of steps, at least 1, not {steps!r}.")
    try:
        finite = all(math.isfinite(x) for x in factors)
    except TypeError:
        raise DataError(f"Schedule {name!r} takes numbers as factors, not {list(factors)}.") from None
    if not finite:
        raise DataError(f"Schedule {name!r} has factors that are not finite: {list(factors)}.")
