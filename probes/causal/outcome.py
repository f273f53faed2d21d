"""The numbers of a causal check: means, intervals over prompts and random directions, and the data set.

Dimensions of a `probe_causal` result: `strength` (multiples of the scale, 0 with them), `direction` (`probe`,
`random`), `random` (each random direction), `prompt`.

| variable | dims | what it is |
| --- | --- | --- |
| `change` | direction, strength, prompt | metric(moved) − metric(unedited); `random`: mean over random directions |
| `mean_change`, `change_low`, `change_high` | direction, strength | mean over prompts, 95 % interval |
| `random_change` | random, strength | mean over prompts of each random direction |
| `difference`, `_low`, `_high` | strength | probe − random |
| `slope`, `_low`, `_high` | direction | change of the metric per natural scale |
| `random_slope` | random | of each random direction |
| `ablation`, `_low`, `_high` | direction | change where the direction is taken out |
| `random_ablation` | random | of each random direction |
| `base`, `projection` | prompt | metric of the unedited model; h · v |

Intervals: 1,000 percentile bootstrap draws over groups of prompts (over
prompts without groups); wherever random directions enter, they are drawn again, too.
`p_value`: (1 + random directions with at least the probe's |slope|) / (1 + random directions).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from probes.causal.direction import Reading
from workbench.results import array

N_DRAWS = 1000


@dataclass(frozen=True, eq=False)
class Measured:
    """What a causal check measured.

    Attributes:
        strengths: ascending, with 0.
        change: [1 + random, strength, prompt]; the first is the probe.
        ablation: [1 + random, prompt].
        base, projection: of the unedited model.
        units: [prompt] number of the prompt's group from 0 (its own where there are none), which intervals resample.
        reading: the probe.
        metric: its name.
        settings: for the attributes.
    """

    strengths: Float[np.ndarray, " strength"]
    change: Float[np.ndarray, "direction strength prompt"]
    ablation: Float[np.ndarray, "direction prompt"]
    base: Float[np.ndarray, " prompt"]
    projection: Float[np.ndarray, " prompt"]
    units: Int[np.ndarray, " prompt"]
    reading: Reading
    metric: str
    settings: dict[str, Any]


def outcome(measured: Measured, texts: list[str], *, seed: int) -> tuple[xr.Dataset, dict[str, Any]]:
    """The data set and the summary of a causal check."""
    strengths, n_prompts = measured.strengths, len(measured.base)
    slopes = np.einsum("s,dsp->dp", strengths, measured.change) / (strengths**2).sum()
    draws = _Draws(measured.units, len(slopes) - 1, seed)
    variables: dict[str, Any] = {}
    found: dict[str, dict[str, np.ndarray]] = {}
    several = {
        "change": (("strength",), measured.change, "mean change of the metric"),
        "slope": ((), slopes, "change of the metric per natural scale"),
        "ablation": ((), measured.ablation, "change where the direction is taken out"),
    }
    for name, (dims, values, text) in several.items():
        both = found[name] = draws.compare(values)
        shown = "mean_change" if name == "change" else name
        for end, key in (("", shown), ("_low", f"{name}_low"), ("_high", f"{name}_high")):
            stacked = np.stack([both[f"probe{end}"], both[f"random{end}"]])
            said = text if not end else f"{text}, {end[1:]} end of the 95 % interval"
            variables[key] = array(("direction", *dims), stacked, long_name=said, units="metric")
        variables[f"random_{name}"] = array(
            ("random", *dims), values[1:].mean(-1), long_name=f"{text}, each random direction", units="metric"
        )
    for end in ("", "_low", "_high"):
        said = "probe − random" + (f", {end[1:]} end of the 95 % interval" if end else "")
        variables[f"difference{end}"] = array(
            ("strength",), found["change"][f"difference{end}"], long_name=said, units="metric"
        )
    both = np.stack([measured.change[0], measured.change[1:].mean(0)])
    variables["change"] = array(("direction", "strength", "prompt"), both, long_name="change", units="metric")
    variables["base"] = array(("prompt",), measured.base, long_name=measured.metric, units="metric")
    variables["projection"] = array(("prompt",), measured.projection, long_name="h · v", units="activation")
    direction = measured.reading.direction
    data = xr.Dataset(
        variables,
        coords={
            "direction": np.array(["probe", "random"]),
            "strength": strengths,
            "random": np.arange(len(slopes) - 1),
            "prompt": np.arange(n_prompts),
            "prompt_text": ("prompt", np.array(texts, dtype=str)),
        },
        attrs={
            "metric": measured.metric,
            "site": direction.site,
            "direction": direction.name,
            "source": direction.source,
            "scale": direction.scale,
            "n_prompts": n_prompts,
            "n_groups": int(measured.units.max()) + 1,
            "n_random": len(slopes) - 1,
            **measured.settings,
        },
    )
    return data, _summary(measured, slopes, found)


def _summary(
    measured: Measured, slopes: np.ndarray, found: dict[str, dict[str, np.ndarray]]
) -> dict[str, Any]:
    slope, ablation = found["slope"], found["ablation"]
    beside = slopes[1:].mean(-1)
    as_large = int((np.abs(beside) >= abs(slope["probe"])).sum())
    low, high = float(slope["difference_low"]), float(slope["difference_high"])
    together = _correlation(measured.projection, measured.base)
    summary = {
        "metric": measured.metric,
        "site": measured.reading.direction.site,
        "n_prompts": len(measured.base),
        "n_groups": int(measured.units.max()) + 1,
        "n_random": len(beside),
        "scale": measured.reading.direction.scale,
        "unedited": float(measured.base.mean()),
        "slope": _value(slope, "probe"),
        "random_slope": float(beside.mean()),
        "random_slope_sd": float(beside.std(ddof=1)),
        "random_slope_largest": float(np.abs(beside).max()),
        "difference": _value(slope, "difference"),
        "excludes_zero": bool(low > 0 or high < 0),
        "random_as_large": as_large,
        "p_value": (1 + as_large) / (1 + len(beside)),
        "ablation": _value(ablation, "probe"),
        "random_ablation": float(ablation["random"]),
        "ablation_difference": _value(ablation, "difference"),
        "correlation": together,
        "agrees": None if together is None else bool(together * slope["probe"] > 0),
    }
    threshold = measured.reading.threshold
    if threshold is not None:
        positive = measured.projection > threshold
        names = measured.reading.classes or ("negative", "positive")
        summary["metric_by_probe_class"] = {
            str(name): {
                "mean": float(measured.base[chosen].mean()) if chosen.any() else None,
                "n": int(chosen.sum()),
            }
            for name, chosen in zip(names, (~positive, positive), strict=True)
        }
    return summary


def _value(found: dict[str, np.ndarray], name: str) -> dict[str, float | None]:
    ends = {"value": found[name], "low": found[f"{name}_low"], "high": found[f"{name}_high"]}
    return {key: float(v) if np.isfinite(v) else None for key, v in ends.items()}


def _correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    if len(a) < 3 or a.std() == 0 or b.std() == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


class _Draws:
    """Bootstrap weights of prompts and random directions, the same for all numbers of a check.

    Groups are drawn with replacement, and each draw weighs its prompts equally: the weights of a draw add up to 1.
    """

    def __init__(self, units: Int[np.ndarray, " prompt"], n_random: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        n_units = int(units.max()) + 1
        drawn = random.multinomial(n_units, np.full(n_units, 1 / n_units), size=N_DRAWS)[:, units]
        self.prompts = drawn / drawn.sum(1, keepdims=True)
        self.random = random.multinomial(n_random, np.full(n_random, 1 / n_random), size=N_DRAWS) / n_random
        self.single = n_units < 2

    def compare(self, values: Float[np.ndarray, "direction ... prompt"]) -> dict[str, np.ndarray]:
        """Mean and ends of the interval of the probe, of the random directions, and of probe − random."""
        drawn = np.moveaxis(values @ self.prompts.T, -1, 0)  # [draw, direction, ...]
        probe = drawn[:, 0]
        random = np.einsum("dr,dr...->d...", self.random, drawn[:, 1:])
        means = {"probe": values[0].mean(-1), "random": values[1:].mean((0, -1))}
        means["difference"] = means["probe"] - means["random"]
        out: dict[str, np.ndarray] = {}
        for name, each in (("probe", probe), ("random", random), ("difference", probe - random)):
            low, high = np.quantile(each, [0.025, 0.975], axis=0)
            nothing = np.full_like(low, np.nan)
            out[name] = np.asarray(means[name])
            out[f"{name}_low"], out[f"{name}_high"] = (nothing, nothing) if self.single else (low, high)
        return out
