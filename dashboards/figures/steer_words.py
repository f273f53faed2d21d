"""The figures of a dose–response in words, but for those that `alt` says itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dashboards.figures import steer
from dashboards.figures.theme import number

if TYPE_CHECKING:
    from workbench.results import Result


def describe(result: Result) -> dict[str, str]:
    """The figures that the words of `alt` leave out: `by_kl` and `quality`."""
    words: dict[str, str] = {}
    if "random_kl" in result.data:
        (axis, kl), mean = (
            steer.kl_of(result),
            result.data["mean_score"].transpose("direction", "strength").values,
        )
        ends = [
            f"{name}: {number(mean[i, -1])} at KL {number(kl[i, -1])}, {number(mean[i, 0])} at KL {number(kl[i, 0])}"
            for i, name in enumerate(steer.directions(result))
        ]
        words["by_kl"] = (
            f"Lines of the mean {steer.score_name(result)} against {axis}, from no change outwards on each side of "
            f"strength 0. At the largest and the smallest strength: {'; '.join(ends)}."
        )
    if "break_strength" in result.data:
        at = result.data.sel(direction="steered")
        parts = []
        for measure, shown in steer.PANELS:
            values = at["mean_value"].sel(measure=measure).values
            values = np.exp(values) if measure == "cross_entropy" else values
            if not np.isfinite(values).any():
                continue  # every text is too short
            top = int(np.nanargmax(values))
            parts.append(
                f"{shown} of the steered continuations from {number(float(np.nanmin(values)))} to "
                f"{number(float(values[top]))} (strength {number(float(at['strength'].values[top]))})"
            )
        words["quality"] = (
            f"Lines by strength: {'; '.join(parts) or 'none'}. {' '.join(steer.break_notes(result))}"
        )
    return words
