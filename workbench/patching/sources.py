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

from collections.abc import Sequence
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


class Reader:
    """Source runs, read when they are asked for and forgotten when they are not needed any more."""

    def __init__(
        self, model: LanguageModel, batches: Sequence[TokenBatch], sites: list[str], keep: int
    ) -> None:
        self._model, self._batches, self._sites, self._keep = model, list(batches), sites, keep
        self._kept: dict[int, Activations] = {}

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, i: int) -> Activations:
        if i not in self._kept:
            self._kept[i] = read(self._model, self._batches[i], self._sites, self._keep)
        return self._kept[i]

    def forget(self, before: int) -> None:
        """Drop runs of lower numbers, but the first, which is the last one's control."""
        for i in [i for i in self._kept if 0 < i < before]:
            del self._kept[i]


class PutIn:
    """What each pair's patches put in, made of the pairs' source runs.

    Args:
        runs: the source runs.
        source: see the module's text.
        rng: for the order of `resample` and the noise.
        kind: what is patched.

    Raises:
        PromptError: an unknown source, one that needs several pairs, whose runs have different lengths, or noise for
            attention patterns.
    """

    def __init__(self, runs: Reader, source: str, rng: np.random.Generator, kind: str = "") -> None:
        if source not in SOURCES:
            raise PromptError(f"source {source!r} is not known: give one of {', '.join(SOURCES)}.")
        if source == "noise" and kind == "pattern":
            raise PromptError(
                "Noise is no attention: its rows do not sum to 1. Give source 'mean' or 'resample' for patterns."
            )
        if source not in ("run", "zero"):
            if len(runs) < 2:
                raise PromptError(
                    f"source {source!r} is made of several pairs' runs: give two pairs or more."
                )
            lengths = sorted({batch.lengths[0] for batch in runs._batches})
            if len(lengths) > 1:
                raise PromptError(
                    f"source {source!r} is made position by position, and the source runs have {lengths} tokens: give "
                    "source runs of one length, or source='run'."
                )
        self._runs, self._source = runs, source
        self._order = derangement(len(runs), rng) if source == "resample" else None
        if source in ("mean", "noise"):
            self._mean, self._spread = _moments(runs)
        self._generator = (
            torch.Generator().manual_seed(int(rng.integers(2**31))) if source == "noise" else None
        )

    @property
    def control(self) -> str:
        """Whose run the control of several pairs is."""
        return "the next pair's run" + (", or the one after it" if self._order is not None else "")

    def of(self, i: int) -> int | None:
        """The pair whose run is put in for pair i, where it is another one's."""
        return None if self._order is None else int(self._order[i])

    def other_than(self, i: int) -> int:
        """The next pair whose run is neither of pair i nor put in for it, as far as there is one."""
        n = len(self._runs)
        after = [(i + k) % n for k in range(1, n)] or [i]
        return next((j for j in after if j != self.of(i)), after[0])

    def __getitem__(self, i: int) -> Activations:
        """Site -> what is put in, for pair i. Noise is drawn anew: ask once for each pair, in order."""
        if self._order is not None:
            return self._runs[int(self._order[i])]
        one = self._runs[i]
        if self._source == "run":
            return one
        if self._source == "zero":
            return {name: torch.zeros_like(v) for name, v in one.items() if name != "logits"}
        if self._source == "mean":
            return self._mean
        return {
            name: mean
            + self._spread[name] * torch.randn(mean.shape, generator=self._generator).to(mean.device)
            for name, mean in self._mean.items()
        }


def _moments(runs: Reader) -> tuple[Activations, Activations]:
    """Site -> mean over runs [position, ...], and standard deviation over runs and positions [...], float32."""
    total: Activations = {}
    squares: Activations = {}
    for i in range(len(runs)):
        runs.forget(i)
        for name, value in runs[i].items():
            if name == "logits":
                continue
            value = value.double() if value.device.type != "mps" else value.float()
            total[name] = total[name] + value if name in total else value
            square = value.square().sum(0)
            squares[name] = squares[name] + square if name in squares else square
    n = len(runs)
    mean = {name: value / n for name, value in total.items()}
    spread = {}
    for name, value in squares.items():
        count = n * len(mean[name])
        centre = mean[name].mean(0)
        spread[name] = ((value - count * centre.square()).clamp(min=0) / (count - 1)).sqrt()
    return {k: v.float() for k, v in mean.items()}, {k: v.float() for k, v in spread.items()}


def deranged(one: Activations, rng: np.random.Generator, kind: str) -> Activations:
    """A run's own activations at deranged positions (patterns: heads): a source that should not help."""
    n = next(v.shape[0] for name, v in one.items() if name != "logits")
    if n < 2:
        raise PromptError(
            f"With one pair the control takes activations from another {'head' if kind == 'pattern' else 'position'}, "
            "and there is only one: give several pairs, or control=False."
        )
    index = torch.from_numpy(derangement(n, rng))
    return {k: v if k == "logits" else v[index.to(v.device)] for k, v in one.items()}


def wrong_sources(taken: list[Activations], rng: np.random.Generator, kind: str) -> list[Activations]:
    """Sources that should not help: the next pair's run, or with one pair its own, `deranged`."""
    return taken[1:] + taken[:1] if len(taken) > 1 else [deranged(taken[0], rng, kind)]


def derangement(n: int, rng: np.random.Generator) -> np.ndarray:
    """A random order of n things in which none stays in its place."""
    if n < 3:
        return np.roll(np.arange(n), 1)
    while True:
        order = rng.permutation(n)
        if not (order == np.arange(n)).any():
            return order
