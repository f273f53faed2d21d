"""Pairs of runs and their first-order expansions: what attribution of nodes and of edges share.

For each pair: the source run's activations, the base run's, and the gradients of its metric. Without `integrate` that
is two forwards and one backward, with it a forward more and as many midpoints, several of them at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from workbench.errors import MetricError, PromptError
from workbench.model.language_model import LanguageModel
from workbench.model.tokens import TokenBatch
from workbench.patching.gradients import INPUT, Activations, Forward, integrated
from workbench.patching.metrics import KLDivergence
from workbench.patching.outcome import Outcome
from workbench.patching.pairs import Direction, Pairs
from workbench.patching.sources import deranged
from workbench.sites.catalog import Site

__all__ = ["Direction", "Expansion", "Runs"]


@dataclass(frozen=True)
class Expansion:
    """What one pair's passes give: how the metric of its base run changes, to first order."""

    base: Activations
    source: Activations
    delta: Activations
    """Source minus base."""
    wrong: Activations | None
    """Wrong source minus base."""
    gradients: Activations
    ends: tuple[float, float]
    """The metric of the source run and of the base run."""


@dataclass(frozen=True)
class Runs(Pairs):
    """Pairs whose runs are expanded to first order; `integrate` is the number of steps, 0 for the gradient alone."""

    integrate: int = 0

    @classmethod
    def to_expand(
        cls,
        model: LanguageModel,
        clean: Any,
        corrupt: Any,
        metric: Any,
        direction: Direction,
        integrate: int,
        alignment: Any = None,
    ) -> Runs:
        """Look everything up before anything runs; raises `PromptError` and `MetricError`."""
        if not isinstance(integrate, int) or integrate < 0:
            raise PromptError(f"integrate is {integrate!r}; expected a number of steps, 0 or more.")
        made = replace(
            cls.of(model, clean, corrupt, metric, direction, alignment=alignment), integrate=integrate
        )
        against = [str(m) for m in made.metrics if isinstance(m, KLDivergence)]
        if against and direction == "noising" and not integrate:
            raise MetricError(
                f"{against[0]} is least at the clean run, where noising takes the gradient: it is 0 there, and so "
                "would be every estimate. Give integrate=5, or direction='denoising'."
            )
        return made

    def expand(
        self,
        points: Sequence[Site],
        probed: Sequence[str],
        control: bool,
        seed: int,
        tokens_per_backward: int,
    ) -> Iterator[Expansion]:
        """One expansion per pair.

        Args:
            points: where activations are kept.
            probed: names of those where gradients are taken.
            control: also give a wrong source: the next pair's, or with one pair its own at deranged positions.
            seed: of the derangement.
            tokens_per_backward: see `gradients.integrated`.
        """
        every = [*points, self.model.catalog[INPUT]] if self.integrate else list(points)
        probes = [point for point in points if point.name in set(probed)]
        first = source = self._run(self.sources[0], every)
        for i, base_batch in enumerate(self.bases):
            base = self._run(base_batch, every, () if self.integrate else [p.name for p in probes])
            function = self.function(i, source.logits[0].detach(), base.logits[0].detach())
            own = base.activations()
            taken = self.moved(i, source.activations(), own)
            if self.integrate:
                gradients = integrated(
                    self.model, base_batch.ids, probes, function, (own[INPUT], taken[INPUT]), self.integrate,
                    keep=self.keep, tokens_per_backward=tokens_per_backward,
                )  # fmt: skip
            else:
                gradients = {name: g[0] for name, g in base.gradients(function).items()}
            ends = (float(function(source.logits.detach())[0]), float(function(base.logits.detach())[0]))
            following = first if i + 1 == len(self.pairs) else self._run(self.sources[i + 1], every)
            wrong = None
            if control and len(self.pairs) > 1:
                wrong = self.moved(i, following.activations(), own, (i + 1) % len(self.pairs))
            elif control:
                wrong = deranged(taken, np.random.default_rng(seed), "")
            minus = lambda values, own=own: {p.name: values[p.name] - own[p.name] for p in points}  # noqa: E731
            yield Expansion(own, taken, minus(taken), wrong and minus(wrong), gradients, ends)
            source = following

    def _run(self, batch: TokenBatch, points: Sequence[Site], probed: Sequence[str] = ()) -> Forward:
        return Forward(self.model, batch.ids, points, probed=probed, keep=self.keep)

    def outcome(
        self,
        ends: Sequence[tuple[float, float]],
        change: Sequence[np.ndarray],
        wrong: Sequence[np.ndarray] | None,
        *,
        layers: Sequence[int],
        axes: tuple[str, ...],
        settings: dict[str, object],
        seed: int,
        seconds: float,
    ) -> Outcome:
        """Estimated changes of the metric, [layer, *axes] per pair, as what a sweep measured.

        Args:
            ends: metric of the source run and of the base run, per pair.
            change: estimates.
            wrong: the same for wrong sources.
            layers, axes: labels of the grid.
            settings: for `attrs`.
            seed, seconds: as in `Outcome`.
        """
        source = "the next pair's run" if len(self.pairs) > 1 else "the same run at deranged positions"
        patched = lambda grids: np.stack([end[1] + grid for end, grid in zip(ends, grids, strict=True)])  # noqa: E731
        return Outcome(
            pairs=self,
            layers=layers,
            axes=axes,
            settings={**settings, "integrate": self.integrate},
            ends=np.array(ends),
            raw=patched(change),
            wrong=None if wrong is None else patched(wrong),
            control="not run" if wrong is None else f"wrong source: {source}",
            seed=seed,
            seconds=seconds,
        )
