"""What a patch puts in: another run's activation, or something that stands for "nothing known".

| source | put in |
|---|---|
| `run` | the activation of the pair's other run |
| `zero` | zeros |
| `mean` | the mean over the pairs' source runs, position by position |
| `resample` | the source run of another pair (a seeded derangement) |
| `noise` | Gaussian noise with that mean and the standard deviation of each coordinate over pairs and positions |

Zeros are far from what a model ever sees; means and resampled activations stay nearer (Heimersheim & Nanda 2024,
arXiv:2404.15255, section 2).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from workbench.errors import PromptError
from workbench.model.language_model import LanguageModel
from workbench.model.tokens import TokenBatch

Source = Literal["run", "zero", "mean", "resample", "noise"]
SOURCES: tuple[Source, ...] = ("run", "zero", "mean", "resample", "noise")
Activations = dict[str, Tensor]


@torch.inference_mode()
def read(model: LanguageModel, batch: TokenBatch, sites: list[str], keep: int = 1) -> Activations:
    """Site -> activation of one prompt without the batch axis, and under `logits` those at its end."""
    with model.hooks(read=sites) as session:
        logits = model.forward(batch, logits_to_keep=keep).logits[0]
    return {
        "logits": logits[-1] if keep == 1 else logits[-keep:],
        **{name: session[name][0] for name in sites},
    }


def put_in(taken: list[Activations], source: str, rng: np.random.Generator) -> list[Activations]:
    """What each pair's patches put in, made of the pairs' source runs.

    Raises:
        PromptError: an unknown source, or one that needs several pairs.
    """
    if source not in SOURCES:
        raise PromptError(f"source {source!r} is not known: give one of {', '.join(SOURCES)}.")
    if source == "run":
        return taken
    sites = [name for name in taken[0] if name != "logits"]
    if source == "zero":
        return [{name: torch.zeros_like(one[name]) for name in sites} for one in taken]
    if len(taken) < 2:
        raise PromptError(f"source {source!r} is made of several pairs' runs: give two pairs or more.")
    if source == "resample":
        order = derangement(len(taken), rng)
        return [{name: taken[int(i)][name] for name in sites} for i in order]
    every = {name: torch.stack([one[name] for one in taken]).float() for name in sites}
    mean = {name: value.mean(0) for name, value in every.items()}
    if source == "mean":
        return [mean] * len(taken)
    spread = {name: value.flatten(0, 1).std(0) for name, value in every.items()}
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    return [
        {
            name: mean[name]
            + spread[name] * torch.randn(mean[name].shape, generator=generator).to(mean[name].device)
            for name in sites
        }
        for _ in taken
    ]


def wrong_sources(taken: list[Activations], rng: np.random.Generator, kind: str) -> list[Activations]:
    """Sources that should not help: the next pair's run, or with one pair its own at deranged positions (of a
    pattern, at deranged heads)."""
    if len(taken) > 1:
        return taken[1:] + taken[:1]
    (only,) = taken
    n = next(v.shape[0] for name, v in only.items() if name != "logits")
    if n < 2:
        raise PromptError(
            f"With one pair the control takes activations from another {'head' if kind == 'pattern' else 'position'}, "
            "and there is only one: give several pairs, or control=False."
        )
    index = torch.from_numpy(derangement(n, rng))
    return [{k: v if k == "logits" else v[index.to(v.device)] for k, v in only.items()}]


def derangement(n: int, rng: np.random.Generator) -> np.ndarray:
    """A random order of n things in which none stays in its place."""
    if n < 3:
        return np.roll(np.arange(n), 1)
    while True:
        order = rng.permutation(n)
        if not (order == np.arange(n)).any():
            return order
