"""The search for z: Adam on many rows at once, each stopping by itself.

    maximise   Σ_t log p(x_t | x_<t, z)      over z in R^d, h_l[t] += z at the positions of the mask

Rows (sentences × restarts) do not touch each other: the sum of their losses is differentiated, Adam works component by
component, and a row leaves as soon as every one of its tokens is what greedy decoding would take, by `margin` logits.
Given that, greedy decoding from the prefix writes the sentence: each token in turn is the argmax after those before it.

Rows that never get there keep the z of highest log-likelihood that was seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.progress import Progress
from workbench.steering.extract.above import Above

Schedule = Literal["constant", "cosine"]
BETAS = (0.9, 0.999)
EPSILON = 1e-8


@dataclass(frozen=True, eq=False)
class Search:
    """What was found.

    Attributes:
        z: [row, d] float32.
        log_likelihood: [row, step] nats, before each step; NaN after a row has left.
        steps: [row] forward passes that were needed.
        solved: [row] every token is the argmax, by the margin.
    """

    z: Float[Tensor, "row d"]
    log_likelihood: Float[Tensor, "row step"]
    steps: Int[Tensor, " row"]
    solved: Bool[Tensor, " row"]


@dataclass(frozen=True)
class Settings:
    """How the search goes; lengths are in units of the stream (see `z_steer`)."""

    steps: int
    learning_rate: float
    init: float
    warmup: int
    schedule: Schedule
    margin: float
    seed: int
    tokens_per_call: int

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0: rising over `warmup` steps, then constant or along a cosine to 0."""
        rising = min(1.0, (step + 1) / max(1, self.warmup))
        if self.schedule == "constant":
            return self.learning_rate * rising
        return self.learning_rate * rising * 0.5 * (1 + math.cos(math.pi * step / self.steps))


def search(
    above: Above,
    rows: Sequence[int],
    mask: Bool[Tensor, " position"],
    settings: Settings,
    progress: Progress,
) -> Search:
    """Find z for each row.

    Args:
        above: the model's upper part over the sentences.
        rows: which sentence each row is of; a sentence may come several times (restarts).
        mask: positions at which z is added, for the longest row.
        settings: learning rate, steps and so on.
        progress: one item a step.
    """
    device = above.stream.device
    n, d = len(rows), above.stream.shape[-1]
    drawn = torch.randn(n, d, generator=torch.Generator().manual_seed(settings.seed)) * settings.init
    with torch.inference_mode(False), torch.enable_grad():
        z = drawn.to(device)
        first, second = torch.zeros_like(z), torch.zeros_like(z)
        best, best_value = z.clone(), torch.full((n,), -torch.inf, device=device)
        curve = torch.full((n, settings.steps), torch.nan)
        taken = torch.zeros(n, dtype=torch.long)
        solved = torch.zeros(n, dtype=torch.bool)
        for step in range(settings.steps):
            active = [row for row in range(n) if not solved[row]]
            if not active:
                break
            for part in _chunks(active, [above.lengths[i] for i in rows], settings.tokens_per_call):
                here = z[part].requires_grad_(True)
                width = max(above.lengths[rows[i]] for i in part)
                added = here[:, None] * mask[:width, None].to(device, here.dtype)
                logs, lead = above.score(added, [rows[i] for i in part])
                (gradient,) = torch.autograd.grad(-logs.sum(), here)
                value = logs.detach().sum(1).float()
                curve[part, step] = value.cpu()
                better = value > best_value[part]
                index = torch.tensor(part, device=device)[better]
                best[index], best_value[index] = z[index], value[better]
                done = (lead > settings.margin).all(1)
                finished = torch.tensor(part)[done.cpu()]
                best[finished.to(device)] = z[finished.to(device)]
                solved[finished] = True
                taken[part] = step + 1
                _adam(z, first, second, part, gradient.detach(), step, settings.rate(step))
            progress.advance()
    return Search(best.cpu(), curve[:, : int(taken.max())], taken, solved)


def _adam(
    z: Tensor, first: Tensor, second: Tensor, part: list[int], gradient: Tensor, step: int, rate: float
) -> None:
    """One step of Adam (Kingma and Ba 2015) on some rows. All rows begin together, so they share the step's number."""
    a, b = BETAS
    first[part] = a * first[part] + (1 - a) * gradient
    second[part] = b * second[part] + (1 - b) * gradient.square()
    mean = first[part] / (1 - a ** (step + 1))
    spread = (second[part] / (1 - b ** (step + 1))).sqrt()
    z[part] = z[part] - rate * mean / (spread + EPSILON)


def _chunks(active: Sequence[int], lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Rows of like length together, at most so many tokens at once (one row at least)."""
    part: list[int] = []
    for row in sorted(active, key=lambda i: (lengths[i], i)):
        if part and (len(part) + 1) * lengths[row] > tokens:
            yield part
            part = []
        part.append(row)
    if part:
        yield part
