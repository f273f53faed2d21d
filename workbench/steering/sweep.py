"""Every prompt at every strength, as rows of one generation.

Rows may carry different strengths, so a dose–response costs little more than one run: on a CPU a step of generation
reads all weights once, whether for one row or for eight. Each prompt draws the same noise at every strength (common
random numbers), so continuations differ by the steering alone; strength 0 is the unsteered model, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from workbench.errors import DataError
from workbench.model.tokens import Prompt, as_list
from workbench.steering.generate import Generation, generate
from workbench.steering.operations import Operation, numbers
from workbench.steering.plan import Steered, Steering
from workbench.steering.rules import Condition, Where

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel
    from workbench.steering.schedule import Schedule


@dataclass(frozen=True)
class StrengthSweep:
    """Continuations by strength and prompt.

    Attributes:
        strengths: in the order given.
        tokens: [strength][prompt] token ids.
        texts: [strength][prompt].
        generation: all rows as one generation, strengths outermost, with prompts, settings and notes.
    """

    strengths: tuple[float, ...]
    tokens: tuple[tuple[tuple[int, ...], ...], ...]
    texts: tuple[tuple[str, ...], ...]
    generation: Generation

    def at(self, strength: float) -> tuple[str, ...]:
        """The texts of one strength. Raises `DataError` where it was not asked for."""
        if strength not in self.strengths:
            raise DataError(f"Strength {strength} was not asked for; there are {list(self.strengths)}.")
        return self.texts[self.strengths.index(strength)]


def sweep_strengths(
    model: LanguageModel,
    prompts: Prompt | Sequence[Prompt],
    direction: Steered | Steering,
    strengths: Sequence[float],
    *,
    where: Where = "all",
    op: str | Operation = "add",
    schedule: Schedule | Sequence[float] | str | None = None,
    condition: Condition | None = None,
    row_seeds: Sequence[int] | None = None,
    **options: Any,
) -> StrengthSweep:
    """Continue each prompt at each strength in one batched generation.

    Args:
        model: the language model.
        prompts: one or many.
        direction: as of `generate`; of a `Steering` the strength is replaced, the rest stays. What it has per row is
            per prompt.
        strengths: of the operation; several may be equal.
        where, op, schedule, condition: as of `Steering`.
        row_seeds: one for each prompt, its index by default; the same at every strength.
        options: the rest of `generate`'s: max_new_tokens, temperature, seed, rows_per_batch, progress, …

    Raises:
        As `generate`; DataError without strengths.

    Example:
        >>> sweep = wb.steering.sweep_strengths(model, "I think that", d, [-8, 0, 8])
        >>> sweep.at(8)
    """
    listed = as_list(prompts)
    doses = numbers(strengths, "strengths")
    if isinstance(direction, Steering):
        if (where, op, schedule, condition) != ("all", "add", None, None):
            raise DataError("A Steering has its own where, op, schedule and condition: give them there.")
        one = replace(direction, strength=1.0)
    else:
        one = Steering(direction, 1.0, op, where, schedule, condition)
    n = len(listed)
    if one.n_rows not in (None, n):
        raise DataError(
            f"Steering has {one.n_rows} rows, but there are {n} prompts: give one for each prompt."
        )
    seeds = list(range(n)) if row_seeds is None else list(row_seeds)
    if len(seeds) != n:
        raise DataError(f"{len(seeds)} row seeds were given for {n} prompts: give one for each.")
    every = one.for_rows(list(range(n)) * len(doses))
    rows = replace(every, strength=[dose for dose in doses for _ in range(n)])
    said = generate(model, listed * len(doses), rows, row_seeds=seeds * len(doses), **options)
    parts = [slice(i * n, (i + 1) * n) for i in range(len(doses))]
    return StrengthSweep(
        doses, tuple(said.tokens[p] for p in parts), tuple(said.texts[p] for p in parts), said
    )
