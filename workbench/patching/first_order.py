"""Pairs of runs and their first-order expansions: what attribution of nodes and of edges share.

For each pair: the source run's activations, the base run's, and the gradients of its metric. Without `integrate` that
is two forwards and one backward, with it as many midpoints more, several of them at once. Pairs of one length go
through together; short pairs' two forwards are one batch.

Where source and base run begin with the same tokens they are equal, so no gradient is wanted there (of the control's
source neither), and of what is computed once the other run gets a copy (`products`). Where an alignment says which
positions correspond, everything is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from workbench.errors import MetricError, PromptError
from workbench.model.language_model import LanguageModel
from workbench.patching.gradients import INPUT, Activations, Forward, integrated
from workbench.patching.metrics import KLDivergence, MetricFunction
from workbench.patching.outcome import Outcome
from workbench.patching.pairs import Direction, Pairs
from workbench.patching.products import Rows
from workbench.patching.sources import deranged
from workbench.sites.catalog import Site

__all__ = ["Direction", "Expansion", "Runs"]

FEW_TOKENS = 64
"""Up to so many tokens of the source runs, source and base runs go through as one batch."""


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
    """Of the base run's metric; without meaning before the first position at which `delta` or `wrong` is not 0."""
    ends: tuple[float, float]
    """The metric of the source run and of the base run."""


@dataclass(frozen=True)
class _Pass:
    """Both runs of one pair."""

    number: int
    taken: Activations
    own: Activations
    gradients: Activations
    ends: tuple[float, float]
    equal: int
    """How many positions the source run shares with its base run."""


@dataclass(frozen=True)
class _Batch:
    """Pairs that go through together, and what is known of them before."""

    sources: Int[Tensor, "row position"]
    bases: Int[Tensor, "row position"]
    equal: list[int]
    """How many positions the source run shares with its base run."""
    wanted: list[int]
    """The first position at which gradients are wanted."""
    tokens: list[int] | None
    """Tokens whose logits the metrics take; None: any."""


_Runs = tuple[
    Tensor, Tensor, tuple[Activations, Activations], Callable[[Sequence[MetricFunction]], Activations]
]
"""Logits of source and base runs, their activations [row, ...], and what gives the base runs' gradients."""


def _each(functions: Sequence[MetricFunction], logits: Tensor) -> Tensor:
    """[row] each row's own metric."""
    return torch.cat([function(logits[row : row + 1]) for row, function in enumerate(functions)])


def _of_tokens(function: MetricFunction, tokens: Sequence[int] | None) -> MetricFunction:
    """A metric of all logits as one of those of `tokens`."""
    if tokens is None:
        return function
    own: Any = function
    columns = [tokens.index(token) for token in own.tokens]
    return lambda logits: own.of_tokens(logits[:, columns])


def _first_difference(a: Tensor, b: Tensor) -> int:
    """Positions that two prompts share at their beginning, but never all."""
    n = min(len(a), len(b)) - 1
    differs = (a[:n] != b[:n]).nonzero()
    return int(differs[0]) if len(differs) else n


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
        if not isinstance(integrate, Integral) or integrate < 0:
            raise PromptError(f"integrate is {integrate!r}; expected a number of steps, 0 or more.")
        made = replace(
            cls.of(model, clean, corrupt, metric, direction, alignment=alignment), integrate=int(integrate)
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
        passes = self._passes(points, probed, control, tokens_per_backward)
        first = waiting = next(passes)
        for following in passes:
            yield self._expansion(waiting, following if control else None, points, seed)
            waiting = following
        yield self._expansion(waiting, first if control else None, points, seed)

    def _expansion(self, one: _Pass, following: _Pass | None, points: Sequence[Site], seed: int) -> Expansion:
        """One pair's, with the next pair's source as its control."""
        own, taken, wrong = one.own, self.moved(one.number, one.taken, one.own), None
        if following is not None and following.number != one.number:
            wrong = self.moved(one.number, following.taken, own, following.number)
        elif following is not None:
            wrong = deranged(taken, np.random.default_rng(seed), "")
        minus = lambda values: {p.name: values[p.name] - own[p.name] for p in points}  # noqa: E731
        delta = minus(taken)
        for values in delta.values():  # experts and unlike batches may round equal rows otherwise
            values[: one.equal] = 0
        return Expansion(own, taken, delta, wrong and minus(wrong), one.gradients, one.ends)

    def _passes(
        self, points: Sequence[Site], probed: Sequence[str], control: bool, tokens_per_backward: int
    ) -> Iterator[_Pass]:
        """Both runs of each pair, several pairs at once where all have one length."""
        every = [*points, self.model.catalog[INPUT]] if self.integrate else list(points)
        probes = [point for point in points if point.name in set(probed)]
        lengths = {batch.lengths[0] for pair in self.pairs for batch in pair}
        size = 1 if len(lengths) > 1 else max(1, tokens_per_backward // self.length)
        for at in range(0, len(self.pairs), size):
            numbers = range(at, min(at + size, len(self.pairs)))
            known = [self._known(i) for i in numbers]
            batch = self._batch(numbers, known, control)
            keep = [] if self.integrate else [p.name for p in probes]
            runs = (
                self._together if len(lengths) == 1 and batch.sources.numel() <= FEW_TOKENS else self._apart
            )
            source, base, values, gradients = runs(batch, every, keep)
            functions = [
                _of_tokens(
                    known[row] or self.function(i, source[row].detach(), base[row].detach()), batch.tokens
                )
                for row, i in enumerate(numbers)
            ]
            found = gradients(functions)
            for row, i in enumerate(numbers):
                taken, own = ({name: value[row] for name, value in side.items()} for side in values)
                both = (source[row].detach(), base[row].detach())
                ends = tuple(float(functions[row](logits[None])[0]) for logits in both)
                if self.integrate:
                    moved = self.moved(i, taken, own)
                    slopes = integrated(
                        self.model, self.bases[i].ids, probes, functions[row], (own[INPUT], moved[INPUT]),
                        self.integrate, keep=self.keep, tokens_per_backward=tokens_per_backward,
                        first=batch.wanted[row], tokens=batch.tokens,
                    )  # fmt: skip
                else:
                    slopes = {name: g[row] for name, g in found.items()}
                yield _Pass(i, taken, own, slopes, ends, batch.equal[row])  # type: ignore[arg-type]

    def _known(self, i: int) -> MetricFunction | None:
        """The metric of pair i, where it can be known before the run."""
        metric = self.metrics[i]
        return None if isinstance(metric, KLDivergence) else metric.resolve(self.model)

    def _batch(self, numbers: Sequence[int], known: Sequence[MetricFunction | None], control: bool) -> _Batch:
        sources, bases = self.sources, self.bases
        equal, wanted = [], []
        for i in numbers:
            other = sources[(i + 1) % len(self.pairs)].ids[0]
            base = bases[i].ids[0]
            equal.append(0 if self.alignments is not None else _first_difference(sources[i].ids[0], base))
            if control:
                shared = 0 if len(self.pairs) == 1 else _first_difference(other, base)
                wanted.append(min(equal[-1], shared))
            else:
                wanted.append(equal[-1])
        each = [getattr(function, "tokens", None) for function in known]
        tokens = None if None in each or self.keep > 1 else sorted({t for some in each for t in some or ()})
        first, second = (torch.cat([side[i].ids for i in numbers]) for side in (sources, bases))
        return _Batch(first, second, equal, wanted, tokens)

    def _together(self, batch: _Batch, points: Sequence[Site], probed: Sequence[str]) -> _Runs:
        """Source and base runs as one batch: with few tokens a pass takes as long as reading the weights does."""
        n, length = batch.bases.shape
        bases = range(n, 2 * n)
        rows = Rows.of(
            length,
            [*bases, *bases],
            [*batch.equal, *[0] * n],
            [*[length] * n, *batch.wanted],
            self.model.device,
        )
        ids = torch.cat([batch.sources, batch.bases])
        run = Forward(
            self.model, ids, points, probed=probed, keep=self.keep, rows=rows, tokens=batch.tokens
        )  # fmt: skip

        def gradients(functions: Sequence[MetricFunction]) -> Activations:
            if not probed:
                return {}
            found = run.gradients(lambda logits: _each(functions, logits[n:]))
            return {name: value[n:] for name, value in found.items()}

        sides = [
            {name: value[some] for name, value in run.values.items()} for some in (slice(n), slice(n, None))
        ]
        return run.logits[:n], run.logits[n:], (sides[0], sides[1]), gradients

    def _apart(self, batch: _Batch, points: Sequence[Site], probed: Sequence[str]) -> _Runs:
        """Source and base runs one after the other: no backward pass through the source runs."""

        def forward(ids: Tensor, wanted: Sequence[int], probed: Sequence[str]) -> Forward:
            n, length = ids.shape
            rows = Rows.of(length, range(n), [0] * n, wanted, self.model.device)
            return Forward(
                self.model, ids, points, probed=probed, keep=self.keep, rows=rows, tokens=batch.tokens
            )  # fmt: skip

        source = forward(batch.sources, [batch.sources.shape[1]] * len(batch.sources), ())
        base = forward(batch.bases, batch.wanted, probed)

        def gradients(functions: Sequence[MetricFunction]) -> Activations:
            return base.gradients(lambda logits: _each(functions, logits)) if probed else {}

        return source.logits, base.logits, (source.values, base.values), gradients

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
