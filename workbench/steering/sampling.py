"""How tokens are drawn: temperature, top-k and top-p are transformers' own, in its order, before the noise.

The noise is that of `workbench.model.generating`: every draw depends on (seed, number of the row, step, token) and on
nothing else, so a row draws the same alone and in a batch, with and without KV cache, on a CPU and on a GPU.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from workbench.errors import DataError
from workbench.model.generating import GumbelNoise, row_keys

if TYPE_CHECKING:
    from transformers import LogitsProcessorList


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: 0 is greedy; scores are divided by it.
        top_k: keep the k likeliest tokens.
        top_p: keep the likeliest tokens that together reach this probability.
        seed: of the noise.

    Raises:
        DataError: a number out of range, or top-k or top-p without a temperature.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        temperature, top_k, top_p = (_number(x) for x in (self.temperature, self.top_k, self.top_p))
        if temperature is None or not (math.isfinite(temperature) and temperature >= 0):
            raise DataError(
                f"Temperature {self.temperature!r}: give 0 (greedy) or a positive number such as 0.8."
            )
        whole = top_k is not None and math.isfinite(top_k) and top_k == int(top_k) and top_k >= 1
        if self.top_k is not None and not whole:
            raise DataError(f"top_k {self.top_k!r}: give a whole number of tokens, at least 1.")
        if self.top_p is not None and not (top_p is not None and 0 < top_p <= 1):
            raise DataError(f"top_p {self.top_p!r}: give a probability above 0, at most 1.")
        try:
            object.__setattr__(self, "seed", operator.index(self.seed))
        except TypeError:
            raise DataError(f"Seed {self.seed!r}: give a whole number, such as 0.") from None
        if self.temperature == 0 and (self.top_k is not None or self.top_p is not None):
            raise DataError("top_k and top_p are for sampling: give a temperature above 0, for instance 1.0.")

    def processors(self, rows: Sequence[int], start: int, device: torch.device) -> LogitsProcessorList:
        """What makes transformers' greedy search sample: `rows` are the numbers of the rows, `start` the width of the
        padded prompts. Empty where the temperature is 0."""
        from transformers import (
            LogitsProcessorList,
            TemperatureLogitsWarper,
            TopKLogitsWarper,
            TopPLogitsWarper,
        )

        if self.temperature == 0:
            return LogitsProcessorList()
        found: list[Any] = [TemperatureLogitsWarper(float(self.temperature))]
        if self.top_k is not None:
            found.append(TopKLogitsWarper(int(self.top_k)))
        if self.top_p is not None:
            found.append(TopPLogitsWarper(float(self.top_p)))
        return LogitsProcessorList([*found, GumbelNoise(row_keys(self.seed, rows, device), start)])

    def settings(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p, "seed": self.seed}


def _number(given: Any) -> float | None:
    """A number as a float; None where it is none (a bool, a text, nothing)."""
    if isinstance(given, (bool, str)):
        return None
    try:
        return float(given)
    except (TypeError, ValueError):
        return None
