"""The strength at which quality breaks.

Going from strength 0 outwards on one side, quality is broken where, on average over prompts,

    perplexity under the unsteered model  >  `perplexity` x that of the unsteered continuations, or
    share of repeated 4-grams             >  that of the unsteered continuations + `repetition`, or
    share of empty continuations          >  that of the unsteered continuations + `empty`

whichever comes first. (Perplexity is the geometric mean: exp of the mean cross-entropy.) Between two measured strengths
the means are joined by straight lines; before the first crossing nothing is extrapolated, and where no strength
measured breaks it the value is NaN, which reads "beyond the largest strength". The interval is a bootstrap over
prompts, the same prompts drawn for the steered and the unsteered side; resamples that do not break count as infinite,
and their share is reported.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workbench.errors import DataError
from workbench.steering.measure.resample import nan_mean, resampled_means


@dataclass(frozen=True)
class Quality:
    """What counts as broken.

    Args:
        perplexity: multiple of the unsteered perplexity; 2 means one bit less likely per token.
        repetition: rise of the share of repeated 4-grams; a plain greedy continuation of a small model repeats itself
            too, hence a rise and not a level.
        empty: rise of the share of continuations without a token. They have no perplexity and no 4-grams, so a model
            that steering has silenced would not count as broken by the other two.

    Raises:
        DataError: a multiple of 1 or less, a rise outside 0–1.
    """

    perplexity: float = 2.0
    repetition: float = 0.2
    empty: float = 0.5

    def __post_init__(self) -> None:
        if not self.perplexity > 1:
            raise DataError(f"A perplexity multiple of {self.perplexity:g} breaks at once: give more than 1.")
        for what, rise in (("repetition", self.repetition), ("empty texts", self.empty)):
            if not 0 < rise < 1:
                raise DataError(f"A rise of {what} of {rise:g} makes no sense: give one between 0 and 1.")

    def __str__(self) -> str:
        return (
            f"perplexity over {self.perplexity:g} times the unsteered, or repeated 4-grams over the unsteered "
            f"+ {self.repetition:g}, or empty texts over the unsteered + {self.empty:g}"
        )


@dataclass(frozen=True)
class Break:
    """Where quality breaks on one side of 0.

    Attributes:
        strength: |strength| at which it breaks; NaN: not within what was measured.
        low, high: 95 % bootstrap interval; inf: beyond the largest strength measured.
        share: share of resamples that break within it.
        cause: `perplexity`, `repetition` or `empty texts`; nothing where it does not break.
    """

    strength: float
    low: float
    high: float
    share: float
    cause: str


def first_crossing(strengths: np.ndarray, excess: np.ndarray) -> np.ndarray:
    """The first strength at which a curve that begins at or below 0 goes above 0, by linear interpolation.

    Args:
        strengths: [strength] ascending, beginning at 0.
        excess: [..., strength]; NaN (no value) never crosses.

    Returns:
        [...]; inf where it never does.

    Example:
        >>> first_crossing(np.array([0.0, 1.0, 2.0]), np.array([-1.0, -1.0, 1.0]))
        array(1.5)
    """
    excess = np.asarray(excess, dtype=float)
    above = excess > 0
    crossed = above.any(-1)
    at = above.argmax(-1)
    before = np.maximum(at - 1, 0)
    y1 = np.take_along_axis(excess, at[..., None], -1)[..., 0]
    y0 = np.take_along_axis(excess, before[..., None], -1)[..., 0]
    y0 = np.where(np.isfinite(y0), y0, y1)
    slope = np.where(y1 - y0 > 0, y1 - y0, 1.0)
    share = np.where((at > 0) & (y1 - y0 > 0), -y0 / slope, 1.0 if excess.shape[-1] else 0.0)
    found = strengths[before] + np.clip(share, 0, 1) * (strengths[at] - strengths[before])
    return np.where(crossed, found, np.inf)


def break_strength(
    strengths: np.ndarray,
    cross_entropy: np.ndarray,
    repetition: np.ndarray,
    quality: Quality | None = None,
    *,
    seed: int = 0,
    n: int = 1000,
) -> Break:
    """Where quality breaks along one side.

    Args:
        strengths: [strength] |strength| ascending, the first is 0.
        cross_entropy: [strength, prompt] nats per token under the unsteered model; NaN for an empty text.
        repetition: [strength, prompt]; NaN for a text that is too short.
        quality: what counts as broken; by default `Quality()`.
        seed: of the bootstrap.
        n: resamples.

    Raises:
        DataError: strengths that do not ascend from 0.
    """
    quality = quality or Quality()
    strengths = np.asarray(strengths, dtype=float)
    if len(strengths) < 2 or strengths[0] != 0 or (np.diff(strengths) <= 0).any():
        raise DataError(f"Strengths must ascend from 0, these are {strengths.tolist()}.")
    limits = {
        "perplexity": float(np.log(quality.perplexity)),
        "repetition": quality.repetition,
        "empty texts": quality.empty,
    }
    values = {
        "perplexity": np.asarray(cross_entropy),
        "repetition": np.asarray(repetition),
        "empty texts": np.isnan(cross_entropy).astype(float),
    }
    observed = {
        name: float(first_crossing(strengths, _excess(nan_mean(v), limits[name])))
        for name, v in values.items()
    }
    drawn = np.min(
        [
            first_crossing(strengths, _excess(resampled_means(v.T, seed, n), limits[name]))
            for name, v in values.items()
        ],
        axis=0,
    )
    cause = min(observed, key=lambda name: observed[name])
    found = observed[cause]
    low, high = np.quantile(drawn, [0.025, 0.975], method="inverted_cdf")
    if values["perplexity"].shape[1] < 2:
        low = high = np.nan
    broken = bool(np.isfinite(found))
    return Break(
        found if broken else float("nan"),
        float(low),
        float(high),
        float(np.isfinite(drawn).mean()),
        cause if broken else "",
    )


def _excess(means: np.ndarray, limit: float) -> np.ndarray:
    """[..., strength] rise over strength 0, less what is allowed."""
    return means - means[..., :1] - limit
