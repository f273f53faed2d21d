"""Sampling whose every draw depends on (seed, number of the row, step, token) and on nothing else.

    token = argmax_i ( score_i + G_i )        G_i = -log(-log u_i) independent Gumbel numbers

is distributed as softmax(score) (the Gumbel-max trick). u_i comes from a counter, not from a generator with a state:

    key  = mix(mix(mix(seed) + row) + step)             u_i = (top 52 bits of mix(key + (i + 1) φ) + 1/2) / 2⁵²

with mix and φ those of SplitMix64 (Steele, Lea and Flood 2014), all in 64-bit integers. So a row draws the same numbers
alone and in a batch, with and without KV cache, on a CPU and on a GPU, and no row costs a line of Python.

Temperature, top-k and top-p are transformers' own, in its order, before the noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.errors import DataError

if TYPE_CHECKING:
    from transformers import LogitsProcessorList


def _signed(x: int) -> int:
    """An unsigned 64-bit number as the int64 with the same bits."""
    return x - (1 << 64) if x >= 1 << 63 else x


_PHI = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def _mix(z: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
    """SplitMix64's finaliser; shifts are logical, products wrap around."""
    z = (z ^ _shift(z, 30)) * _FIRST
    z = (z ^ _shift(z, 27)) * _SECOND
    return z ^ _shift(z, 31)


def _shift(z: Tensor, by: int) -> Tensor:
    return (z >> by) & ((1 << (64 - by)) - 1)


def row_keys(seed: int, rows: Sequence[int], device: torch.device | str = "cpu") -> Int[Tensor, " row"]:
    """The key of each row: [row] int64.

    Args:
        seed: of the whole run.
        rows: number of each row; rows of equal number draw equal noise.
    """
    start = torch.tensor([_signed(seed % (1 << 64))])
    numbers = torch.tensor([_signed(row % (1 << 64)) for row in rows], dtype=torch.int64)
    return _mix(_mix(start) + numbers).to(device)


def gumbel(keys: Int[Tensor, " row"], step: int, n: int) -> Float[Tensor, "row n"]:
    """[row, n] float64 standard Gumbel numbers of one step."""
    tokens = torch.arange(1, n + 1, device=keys.device) * _PHI
    bits = _shift(_mix(_mix(keys + step)[:, None] + tokens), 12)
    return bits.double().add_(0.5).mul_(2.0**-52).log_().neg_().log_().neg_()


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
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise DataError(
                f"Temperature {self.temperature!r}: give 0 (greedy) or a positive number such as 0.8."
            )
        if self.top_k is not None and (
            isinstance(self.top_k, bool) or self.top_k != int(self.top_k) or self.top_k < 1
        ):
            raise DataError(f"top_k {self.top_k!r}: give a whole number of tokens, at least 1.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise DataError(f"top_p {self.top_p!r}: give a probability above 0, at most 1.")
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
        return LogitsProcessorList([*found, _GumbelNoise(row_keys(self.seed, rows, device), start)])

    def settings(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p, "seed": self.seed}


class _GumbelNoise:
    """The last processor: scores plus the noise of this step, in float64, so that ties do not occur."""

    def __init__(self, keys: Tensor, start: int) -> None:
        self._keys, self._start = keys, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self._start
        return scores.double() + gumbel(self._keys, step, scores.shape[-1])
