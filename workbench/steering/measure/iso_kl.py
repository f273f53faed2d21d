"""Strength chosen by what it costs: the same KL for every direction, so that methods are compared fairly.

    s* such that mean over prompts of KL_along(s*) = target            (see `kl`; nats per token)

Directions of the same norm move a model by very different amounts, and most effects grow with strength. Holding the
change of the next-token distribution fixed asks what a direction does for what it costs (steering-lite calibrates its
methods so). Search for each direction, all of them as rows of the same batches:

1. begin at a fifth of the activations' mean norm and multiply by sqrt(target / KL), since KL ~ s^2 for small s, until
   the target is passed (downwards in ever longer steps, since KL levels off where it is large);
2. then keep the bracket [below, above] and take the straight line between its ends in log strength and log KL, or the
   geometric middle where the last step did not halve the bracket (bisection).

KL need not rise with strength; whether it did at the strengths that were tried is reported, and the strength is then
that of *a* crossing. A target that is not reached by `largest` is reported and never an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from workbench.directions import Direction
from workbench.errors import DataError, PositionError
from workbench.model.language_model import LanguageModel
from workbench.model.tokens import Prompt, as_list, encode
from workbench.progress import Progress, Silent
from workbench.steering.generate import generate
from workbench.steering.measure.kl import kl_of_doses, mean_norm
from workbench.steering.measure.rows import TOKENS_PER_BATCH, Dose
from workbench.steering.rules import Where

START = 0.2
"""First strength, as a share of the mean norm of the activations at the site."""
LARGEST = 10.0
"""Largest strength, in the same unit."""


@dataclass(frozen=True)
class Calibration:
    """The strength found for one direction.

    Attributes:
        strength: NaN where the target is not reached.
        kl: mean KL at that strength on the prompts it was chosen on (if not reached, the one nearest to the target).
        reached: whether |kl - target| is within the tolerance.
        monotone: whether KL rose with strength at all strengths that were tried.
        tried: (strength, mean KL) of each, ascending.
        n_prompts: number of prompts.
    """

    strength: float
    kl: float
    reached: bool
    monotone: bool
    tried: tuple[tuple[float, float], ...]
    n_prompts: int = 0

    @property
    def nearest(self) -> float:
        """The strength tried at which `kl` was measured."""
        return max(s for s, kl in self.tried if kl == self.kl)

    @property
    def note(self) -> str:
        """What a table should say beside it; empty where all is well."""
        if not self.reached:
            return f"target not reached: KL {self.kl:.3g} at strength {self.nearest:.3g}"
        return "" if self.monotone else "KL does not rise with strength everywhere"


def search(
    evaluate: Callable[[list[tuple[int, float]]], np.ndarray],
    starts: Sequence[float],
    target: float,
    *,
    largest: Sequence[float],
    tolerance: float = 0.05,
    rounds: int = 20,
    n_prompts: int = 0,
) -> list[Calibration]:
    """The search itself, for any function of strength that is 0 at 0.

    Args:
        evaluate: pairs (curve, strength) -> [pair] values; called once a round with all curves not yet done.
        starts, largest: first and largest strength of each curve.
        target: value wanted, above 0.
        tolerance: relative.
        rounds: at most so many calls.
        n_prompts: kept in the outcome.

    Raises:
        DataError: a target, tolerance, start or limit that makes no sense; values that are not finite.
    """
    if not (np.isfinite(target) and target > 0):
        raise DataError(
            f"A target of {target!r} nats cannot be searched for: give a positive number such as 0.5."
        )
    if not 0 < tolerance < 1:
        raise DataError(f"A relative tolerance of {tolerance!r} makes no sense: give one between 0 and 1.")
    if any(not 0 < s <= m for s, m in zip(starts, largest, strict=True)):
        raise DataError("Every first strength must be above 0 and at most the largest.")
    tried: list[list[tuple[float, float]]] = [[] for _ in starts]
    guess: dict[int, float] = {k: float(s) for k, s in enumerate(starts)}
    for _ in range(rounds):
        if not guess:
            break
        pairs = list(guess.items())
        values = np.asarray(evaluate(pairs), dtype=float)
        if not np.isfinite(values).all():
            bad = pairs[int(np.flatnonzero(~np.isfinite(values))[0])]
            raise DataError(
                f"KL at strength {bad[1]:g} is not finite: the model gives no distribution there."
            )
        for (k, s), value in zip(pairs, values.tolist(), strict=True):
            tried[k].append((s, value))
            following = _next(tried[k], target, largest[k], tolerance)
            if following is None:
                del guess[k]
            else:
                guess[k] = following
    return [_outcome(one, target, tolerance, n_prompts) for one in tried]


def _next(tried: list[tuple[float, float]], target: float, largest: float, tolerance: float) -> float | None:
    """The strength to try now; None where the search is over."""
    s, value = tried[-1]
    if abs(value - target) <= tolerance * target:
        return None
    above = [p for p in tried if p[1] > target]
    if not above:
        if s >= largest:
            return None
        step = np.sqrt(target / max(value, 1e-12))
        return float(min(largest, s * np.clip(1.05 * step, 1.25, 8.0)))
    high = min(above)
    below = [p for p in tried if p[0] < high[0]]
    if not below:  # ever longer steps: a KL that has levelled off says nothing of how far down it is
        step = np.clip(0.95 * np.sqrt(target / high[1]), 1 / 8, 0.8)
        return float(high[0] * max(step ** len(above), 1 / 8))
    low = max(below)
    if high[0] / low[0] < 1 + 1e-6:
        return None
    middle = np.sqrt(low[0] * high[0])
    last_two = [p[0] for p in tried[-2:]]
    one_sided = len(tried) >= 4 and (max(last_two) <= low[0] or min(last_two) >= high[0])
    if one_sided or low[1] <= 0:
        return float(middle)
    share = np.log(target / low[1]) / np.log(high[1] / low[1])
    return float(np.exp(np.log(low[0]) + np.clip(share, 0.05, 0.95) * np.log(high[0] / low[0])))


def _outcome(
    tried: list[tuple[float, float]], target: float, tolerance: float, n_prompts: int
) -> Calibration:
    s, value = min(tried, key=lambda p: abs(p[1] - target))
    ordered = tuple(sorted(set(tried)))
    values = [v for _, v in ordered]
    monotone = all(b >= a * (1 - 1e-6) for a, b in pairwise(values))
    reached = abs(value - target) <= tolerance * target
    if not reached:
        return Calibration(float("nan"), value, False, monotone, ordered, n_prompts)
    return Calibration(s, value, True, monotone, ordered, n_prompts)


def iso_kl(
    model: LanguageModel,
    prompts: Prompt | Sequence[Prompt],
    continuations: Sequence[Sequence[int]] | None,
    directions: Sequence[Direction],
    target: float,
    *,
    new_tokens: int = 20,
    force: bool = False,
    where: Where = "all",
    tolerance: float = 0.05,
    rounds: int = 12,
    largest: float = LARGEST,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    progress: Progress | None = None,
) -> list[Calibration]:
    """The strength of each direction at which mean KL along the unsteered continuations is `target`.

    Args:
        model: the language model.
        prompts: texts or token ids that the directions will *not* be judged on.
        continuations: token ids of what the unsteered model says after each; None: `new_tokens` are generated here,
            greedily.
        directions: at any sites; all are searched for together.
        target: nats per token. 0.5 to 1 changes what is said and mostly leaves sentences whole.
        new_tokens: length of continuations that are generated here.
        force: accept directions that were made with another model.
        where: position rule, the one that will be used.
        tolerance: relative; 0.05 takes a KL within 5 % of the target.
        rounds: at most so many batches.
        largest: largest strength, as a multiple of the mean activation norm at the site.
        tokens_per_batch: upper limit of one forward pass.
        progress: one item a row.

    Returns:
        One `Calibration` for each direction, positive strengths.

    Raises:
        DataError: no directions, no prompts, a direction of another model, site or width, a target that is not a
            positive number.
        PositionError: a rule that steers nothing of continuations that are generated here.

    Example:
        >>> [c.strength for c in iso_kl(model, ["I think that", "My"], None, [d, random], 0.5)]
    """
    listed = as_list(prompts)
    if not directions or not listed:
        raise DataError("Choosing a strength by KL needs at least one direction and one prompt.")
    for direction in directions:
        direction.fits(model, force=force)
    progress = progress or Silent()
    if continuations is None:
        if where == "generated" and new_tokens == 1:
            raise PositionError(
                "Position rule 'generated' steers nothing along a continuation of one token, which is not read again: "
                "give new_tokens=2 or more, or steer at 'all' or 'last'."
            )
        continuations = generate(model, listed, max_new_tokens=new_tokens, progress=progress).tokens
    ids = [list(encode(model, prompt)) for prompt in listed]
    norms = {site: mean_norm(model, ids, site) for site in dict.fromkeys(d.site for d in directions)}

    def evaluate(pairs: list[tuple[int, float]]) -> np.ndarray:
        found = kl_of_doses(
            model,
            ids,
            continuations,
            [Dose(directions[k], s) for k, s in pairs],
            where=where,
            tokens_per_batch=tokens_per_batch,
            progress=progress,
        )
        return found.along.mean(1)

    return search(
        evaluate,
        [START * norms[d.site] for d in directions],
        target,
        largest=[max(largest, START) * norms[d.site] for d in directions],
        tolerance=tolerance,
        rounds=rounds,
        n_prompts=len(ids),
    )
