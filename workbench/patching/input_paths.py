"""Paths from a baseline to a prompt, and the integral of a metric's gradient along them.

x is the stream that enters block 0, [position, d_model]; x' a baseline's; m the metric as a function of that stream.
A path γ from x' to x gives coordinate i of token p

    a_pi = ∫ ∂m/∂x_pi (γ) dγ_pi          Σ a_pi = m(x) - m(x')   for every path (completeness)

and a token the sum over its coordinates. What depends on the path is how the total is shared out.

- `straight_line` (integrated gradients, Sundararajan et al. 2017, 1703.01365): γ(t) = x' + t (x - x'), t = (k - 1/2)/n.
- `end_point` (gradient times input): one point, t = 1; not an integral, and not complete.
- `sampled` (expected gradients, Erion et al. 2021, 1906.10670): mean over baselines x' of a set and t in (0, 1), both
  drawn at random. Here both are stratified: every baseline comes up equally often (up to one, by chance), and of the k
  points on its line one lies anywhere in each k-th part of (0, 1). So the expectation stays, with less noise.
- `greedy` (in the spirit of SAMP, Zhang et al. 2024, 2401.10442; see `manipulation_path`): not a line but one corner
  after another, those first that the metric feels most.

What x' is made of stands in `input_baselines`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.model.language_model import LanguageModel
from workbench.patching.gradients import INPUT, Forward, precise
from workbench.patching.metrics import MetricFunction

MOMENTUM = 0.5
"""How much of the former gradients stays in the one that `manipulation_path` chooses by."""

Node = tuple[int, int, float]
"""A point on a straight line: which prompt, which of its baselines, and t."""


@dataclass(frozen=True)
class Inputs:
    """Prompts of one length and what they are compared with; their metrics as functions of the stream into block 0.

    Attributes:
        ids: [prompt, position] token ids, the first tokens of a longer answer appended.
        x: [prompt, position, d_model] the prompts' own stream, in at least single precision.
        baselines: [prompt, baseline, position, d_model].
        metrics: [draw][prompt] functions of logits; draw 0 is the metric, the others its controls.
        keep: positions at the end whose logits the metrics take.
        tokens_per_backward: tokens that go through together; results do not depend on it.
    """

    model: LanguageModel
    ids: Int[Tensor, "prompt position"]
    x: Float[Tensor, "prompt position d_model"]
    baselines: Float[Tensor, "prompt baseline position d_model"]
    metrics: Sequence[Sequence[MetricFunction]]
    keep: int
    tokens_per_backward: int

    def __len__(self) -> int:
        return len(self.ids)

    def chunks(self, n: int) -> Iterator[slice]:
        """Slices of `n` rows that go through together."""
        size = max(1, self.tokens_per_backward // self.ids.shape[1])
        return (slice(i, min(i + size, n)) for i in range(0, n, size))

    def values(
        self, prompts: Sequence[int], rows: Float[Tensor, "row position d_model"]
    ) -> Float[Tensor, " row"]:
        """The metric of each row; `prompts` says whose it is."""
        run = Forward(self.model, self.ids[list(prompts)], [], keep=self.keep, inputs=rows)
        return self._metric(prompts, [0] * len(prompts))(run.logits).double().cpu()

    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """[prompt] metric of the prompts, and [prompt, baseline] of their baselines."""
        n, width = self.baselines.shape[:2]
        rows = [(i, None) for i in range(n)] + [(i, b) for i in range(n) for b in range(width)]
        found = [
            self.values([i for i, _ in rows[part]], torch.stack([self._end(i, b) for i, b in rows[part]]))
            for part in self.chunks(len(rows))
        ]
        values = torch.cat(found).numpy()
        return values[:n], values[n:].reshape(n, width)

    def gradients(
        self,
        prompts: Sequence[int],
        rows: Float[Tensor, "row position d_model"],
        draws: Sequence[Sequence[int]],
    ) -> Iterator[Float[Tensor, "row position d_model"]]:
        """d metric / d stream, from one forward: for each of `draws`, which says each row's metric."""
        leaf = rows.detach().requires_grad_()
        point = self.model.catalog[INPUT]
        run = Forward(
            self.model, self.ids[list(prompts)], [point], probed=[INPUT], keep=self.keep, inputs=leaf
        )
        for draw in draws[:-1]:
            with torch.enable_grad():
                total = self._metric(prompts, draw)(run.logits).sum()
            yield torch.autograd.grad(total, leaf, retain_graph=True)[0].detach()
        yield run.gradients(self._metric(prompts, draws[-1]))[INPUT]

    def slopes(
        self, nodes: Sequence[Node], draws: Sequence[int]
    ) -> Iterator[tuple[slice, Float[np.ndarray, "draw node position"]]]:
        """(x - x') · dm/dx of every token at points x' + t (x - x'), some nodes at a time."""
        for part in self.chunks(len(nodes)):
            prompts, which, t = zip(*nodes[part], strict=True)
            base = self.baselines[list(prompts), list(which)]
            change = self.x[list(prompts)] - base
            rows = base + torch.tensor(t, dtype=base.dtype).to(base)[:, None, None] * change
            every = self.gradients(prompts, rows, [[d] * len(prompts) for d in draws])
            yield part, np.stack([(precise(g) * change).sum(-1).double().cpu().numpy() for g in every])

    def _end(self, prompt: int, baseline: int | None) -> Tensor:
        return self.x[prompt] if baseline is None else self.baselines[prompt, baseline]

    def _metric(self, prompts: Sequence[int], draws: Sequence[int]) -> MetricFunction:
        runs = [(key, len(list(some))) for key, some in groupby(zip(draws, prompts, strict=True))]

        def each(logits: Tensor) -> Tensor:
            parts = logits.split([n for _, n in runs])
            found = [self.metrics[d][p](part) for ((d, p), _), part in zip(runs, parts, strict=True)]
            return torch.cat(found)

        return each


def straight_line(inputs: Inputs, prompts: Sequence[int], steps: int, draws: Sequence[int]) -> np.ndarray:
    """[draw, prompt, position] integrated gradients by the midpoint rule, mean over baselines."""
    at, width = [(k + 0.5) / steps for k in range(steps)], inputs.baselines.shape[1]
    return _means(inputs, [[(i, b, t) for b in range(width) for t in at] for i in prompts], draws)


def end_point(inputs: Inputs, prompts: Sequence[int], draws: Sequence[int]) -> np.ndarray:
    """[draw, prompt, position] gradient at the prompt times (x - x'), mean over baselines."""
    width = inputs.baselines.shape[1]
    return _means(inputs, [[(i, b, 1.0) for b in range(width)] for i in prompts], draws)


def sampled(
    inputs: Inputs, prompts: Sequence[int], n: int, draws: Sequence[int], seeds: Sequence[Sequence[int]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Expected gradients from `n` samples per prompt, drawn by each prompt's seed.

    Returns:
        [draw, prompt, position] means; of the first draw their standard errors [prompt, position], and that of the sum
        over positions [prompt]. These are taken from the differences of neighbouring samples (collapsed strata), hence
        rather too large than too small; NaN for n = 1.
    """
    nodes: list[list[Node]] = []
    for i, seed in zip(prompts, seeds, strict=True):
        rng, some = np.random.default_rng(list(seed)), []
        width = inputs.baselines.shape[1]
        for j, b in enumerate(rng.permutation(width).tolist()):
            k = n // width + (j < n % width)
            some += [(i, b, t) for t in ((np.arange(k) + rng.random(k)) / max(k, 1)).tolist()]
        nodes.append(some)
    each: list[np.ndarray] = []
    means = _means(inputs, nodes, draws, each)
    samples = np.concatenate(each).reshape(len(prompts), n, -1)
    if n == 1:
        error = np.full_like(samples[:, 0], np.nan)
    else:
        left = [*range(0, n - 1, 2), *([n - 2] if n % 2 else [])]
        apart = samples[:, [i + 1 for i in left]] - samples[:, left]
        error = np.sqrt((apart**2).sum(1)) / n
    return means, error[:, :-1], error[:, -1]


def _means(
    inputs: Inputs,
    nodes: Sequence[Sequence[Node]],
    draws: Sequence[int],
    each: list[np.ndarray] | None = None,
) -> np.ndarray:
    """[draw, prompt, position] means of the slopes over each prompt's nodes, of which all have as many.

    `each` collects [node, position + 1] slopes of the first draw, with their sum over positions at the end.
    """
    n = len(nodes[0])
    total = np.zeros((len(draws), len(nodes), inputs.ids.shape[1]))
    of = np.repeat(np.arange(len(nodes)), n)
    for part, slopes in inputs.slopes([node for some in nodes for node in some], draws):
        total += (of[part] == np.arange(len(nodes))[:, None]).astype(float) @ slopes
        if each is not None:
            each.append(np.concatenate([slopes[0], slopes[0].sum(-1, keepdims=True)], -1))
    return total / n


def greedy(inputs: Inputs, prompts: Sequence[int], steps: int, draws: Sequence[int]) -> np.ndarray:
    """[draw, prompt, position]: `manipulation_path` from baseline to prompt and back, mean of both and of baselines."""
    width = inputs.baselines.shape[1]
    rows = [(d, i, b, up) for d in draws for i in prompts for b in range(width) for up in (True, False)]
    ends = [(inputs._end(i, b), inputs._end(i, None)) for _, i, b, _ in rows]
    start = torch.stack([end[not up] for end, (*_, up) in zip(ends, rows, strict=True)])
    goal = torch.stack([end[up] for end, (*_, up) in zip(ends, rows, strict=True)])

    def gradient(which: Tensor, streams: Tensor) -> Tensor:
        found = []
        for part in inputs.chunks(len(which)):
            some = [rows[r] for r in which[part].tolist()]
            (one,) = inputs.gradients([i for _, i, _, _ in some], streams[part], [[d for d, *_ in some]])
            found.append(precise(one))
        return torch.cat(found)

    along = manipulation_path(gradient, start, goal, steps).sum(-1).double().cpu().numpy()
    signed = along * np.array([1 if up else -1 for *_, up in rows])[:, None]
    return signed.reshape(len(draws), len(prompts), 2 * width, -1).mean(2)


def manipulation_path(
    gradient: Callable[[Tensor, Tensor], Tensor],
    start: Float[Tensor, "row ..."],
    goal: Float[Tensor, "row ..."],
    steps: int,
    *,
    momentum: float = MOMENTUM,
) -> Float[Tensor, "row ..."]:
    """Integral of a gradient along a greedy path from `start` to `goal`, coordinate by coordinate.

    With z the point, g the gradient there and G its running mean (G <- momentum G + (1 - momentum) g), each step moves
    the s coordinates of largest |G · (goal - z)| to their goal; where that step is longer than η (in the l1 norm) only
    the part η of it. s = ceil(coordinates that differ / steps), η = |goal - start|_1 / steps, so that at most 2 `steps`
    steps are made. A step's share is its length times the mean of the gradients at its two ends (trapezoid), which is
    exact where the function is quadratic along it.

    This is our reading: of the paper we had the abstract, its reviews and an implementation by others, in which a
    feature is a whole pixel (here one coordinate of one token's embedding), the order goes by the sign and not by the
    size, and the *running* gradient is summed, so that the sum is no longer the path integral. Here it only chooses.

    Args:
        gradient: (numbers of rows, their points) -> gradients at the points.
        start, goal: rows are independent of each other.
        steps: into how many parts coordinates and length are divided.
        momentum: 0 chooses by the gradient at the point alone.
    """
    shape, z, end = start.shape, start.flatten(1).clone(), goal.flatten(1)
    total, left = torch.zeros_like(z), end - z
    each = ((left != 0).sum(1) + steps - 1) // steps
    cap = left.abs().sum(1) / steps
    rows = (left != 0).any(1).nonzero()[:, 0]
    if not len(rows):
        return total.reshape(shape)
    at = lambda some, points: gradient(some, points.reshape(-1, *shape[1:])).flatten(1)  # noqa: E731
    here = running = at(rows, z[rows])
    while len(rows):
        left = end[rows] - z[rows]
        score = (running * left).abs().masked_fill(left == 0, -1)
        order = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        step = torch.where(order < each[rows, None], left, 0)
        share = (cap[rows] / step.abs().sum(1)).clamp(max=1)[:, None]
        new = torch.where((share == 1) & (step != 0), end[rows], z[rows] + share * step)
        there = at(rows, new)
        total[rows] += (new - z[rows]) * (here + there) / 2
        z[rows] = new
        going = (new != end[rows]).any(1)
        running = (momentum * running + (1 - momentum) * there)[going]
        rows, here = rows[going], there[going]
    return total.reshape(shape)
