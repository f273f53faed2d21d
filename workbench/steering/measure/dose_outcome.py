"""From measured rows to the result of a dose–response: means, intervals, the control, the break of quality."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from workbench.directions import Direction
from workbench.model.language_model import LanguageModel
from workbench.provenance import provenance
from workbench.results import Result, array
from workbench.steering.measure.breaking import Break, Quality, break_strength
from workbench.steering.measure.resample import interval, nan_mean
from workbench.steering.measure.texts import MEASURES
from workbench.steering.rules import Where

WHICH = ("steered", "random")


@dataclass
class Measured:
    """What was measured, direction 0 being the one under study and the others random.

    Attributes:
        scores, kl, kl_along: [direction, strength, prompt].
        strengths: [strength] ascending, 0 among them.
        values, units: measure -> [direction, strength, prompt], and its unit.
        texts: [2, strength, prompt] of the direction and the first random one.
        targets: string -> [direction, strength, prompt] log-probability.
    """

    scores: np.ndarray
    kl: np.ndarray
    strengths: np.ndarray
    kl_along: np.ndarray | None = None
    values: dict[str, np.ndarray] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    texts: np.ndarray | None = None
    targets: dict[str, np.ndarray] = field(default_factory=dict)


def outcome(
    model: LanguageModel,
    prompts: Sequence[str],
    ids: list[list[int]],
    direction: Direction,
    measured: Measured,
    metric: Any,
    quality: Quality,
    n_random: int,
    where: Where,
    seed: int,
    seconds: float,
) -> Result:
    """The `Result`; see `dose_response` for what is in it."""
    name = str(getattr(metric, "name", None) or metric)
    units = str(getattr(metric, "units", "nats"))
    variables = {**_scores(measured, name, units, seed), **_kl(measured)}
    coords: dict[str, Any] = {
        "direction": np.array(WHICH),
        "strength": measured.strengths,
        "prompt": np.arange(len(prompts)),
        "prompt_text": ("prompt", np.array(prompts, dtype=str)),
        "random": np.arange(n_random),
    }
    attrs: dict[str, Any] = {
        "metric": name,
        "site": direction.site,
        "direction": direction.name,
        "source": direction.source,
        "scale": direction.scale,
        "where": where if isinstance(where, str) else json.dumps(where.settings(), ensure_ascii=False),
        "n_prompts": len(prompts),
        "n_random": n_random,
        "control": f"mean of {n_random} random direction{'s' if n_random > 1 else ''} of the same norm",
    }
    if measured.texts is not None:
        variables["text"] = array(
            (*_DIMS, "prompt"), measured.texts.astype(str), long_name="greedy continuation"
        )
        variables |= _values(measured, seed)
        breaks, sides = _breaks(measured, quality, seed)
        variables |= breaks
        coords |= {"measure": np.array(list(measured.values)), "side": np.array(sides)}
        attrs |= {
            "quality": str(quality),
            "quality_perplexity": quality.perplexity,
            "quality_repetition": quality.repetition,
        }
    if measured.targets:
        folded = np.stack([_fold(v) for v in measured.targets.values()])
        variables["target_log_probability"] = array(
            ("target", *_DIMS, "prompt"), folded, long_name="log-probability of the string", units="nats"
        )
        coords["target"] = np.array(list(measured.targets))
    data = xr.Dataset(variables, coords, attrs)
    where_from = provenance(model, tokens=ids, seed=seed, seconds={"dose_response": seconds})
    return Result("dose_response", data, where_from, _summary(data))


_DIMS = ("direction", "strength")


def _fold(values: np.ndarray) -> np.ndarray:
    """[direction, strength, prompt] -> [steered | mean of the random ones, strength, prompt]."""
    return np.stack([values[0], nan_mean(values[1:], axis=0)])


def _scores(measured: Measured, name: str, units: str, seed: int) -> dict[str, Any]:
    folded = _fold(measured.scores)
    low, high = interval(folded, seed)
    difference = folded[0] - folded[1]
    below, above = interval(difference, seed)
    interval_is = "95 % bootstrap interval over prompts"
    return {
        "score": array((*_DIMS, "prompt"), folded, long_name=name, units=units),
        "mean_score": array(_DIMS, nan_mean(folded), long_name=f"mean {name}", units=units),
        "score_low": array(_DIMS, low, long_name=f"{interval_is}, lower end"),
        "score_high": array(_DIMS, high, long_name=f"{interval_is}, upper end"),
        "random_score": array(
            ("random", "strength"), nan_mean(measured.scores[1:]), long_name=f"mean {name}", units=units
        ),
        "difference": array(
            ("strength",),
            nan_mean(difference),
            long_name="steered − mean of the random directions",
            units=units,
        ),
        "difference_low": array(("strength",), below, long_name=f"{interval_is}, lower end"),
        "difference_high": array(("strength",), above, long_name=f"{interval_is}, upper end"),
    }


def _kl(measured: Measured) -> dict[str, Any]:
    last = "KL(unsteered || steered), next token"
    found = {
        "kl": array((*_DIMS, "prompt"), _fold(measured.kl), long_name=last, units="nats"),
        "random_kl": array(
            ("random", "strength"), measured.kl[1:].mean(-1), long_name=f"mean {last}", units="nats"
        ),
    }
    if measured.kl_along is not None:
        along = "KL(unsteered || steered) per token along the unsteered continuation"
        found["kl_along"] = array(
            (*_DIMS, "prompt"), _fold(measured.kl_along), long_name=along, units="nats per token"
        )
    return found


def _values(measured: Measured, seed: int) -> dict[str, Any]:
    folded = np.stack([_fold(v) for v in measured.values.values()])
    low, high = interval(folded, seed)
    units = [MEASURES[n][1] if n in MEASURES else measured.units.get(n, "") for n in measured.values]
    dims = ("measure", *_DIMS)
    return {
        "value": array((*dims, "prompt"), folded, long_name="measure of a continuation"),
        "mean_value": array(dims, nan_mean(folded), long_name="mean over prompts that have a value"),
        "value_low": array(dims, low, long_name="95 % bootstrap interval over prompts, lower end"),
        "value_high": array(dims, high, long_name="95 % bootstrap interval over prompts, upper end"),
        "n_value": array(dims, np.isfinite(folded).sum(-1), long_name="prompts that have a value"),
        "unit": array(("measure",), np.array(units, dtype=str), long_name="unit of each measure"),
    }


def _breaks(measured: Measured, quality: Quality, seed: int) -> tuple[dict[str, Any], list[str]]:
    """Both sides of 0 that have strengths, the direction and the random ones (each random one's own prompts' mean)."""
    found: list[list[Break]] = []
    sides: list[str] = []
    for side, sign in (("negative", -1.0), ("positive", 1.0)):
        signed = measured.strengths * sign
        order = [i for i in np.argsort(signed) if signed[i] >= 0]
        if len(order) < 2:
            continue
        sides.append(side)
        found.append(
            [
                break_strength(
                    signed[order],
                    _fold(measured.values["cross_entropy"])[w][order],
                    _fold(measured.values["repetition"])[w][order],
                    quality,
                    seed=seed,
                )
                for w in range(len(WHICH))
            ]
        )
    dims = ("side", "direction")
    pick = lambda name: np.array([[getattr(b, name) for b in row] for row in found])  # noqa: E731
    long_name = f"|strength| at which quality breaks: {quality}"
    variables = {
        "break_strength": array(dims, pick("strength"), long_name=long_name),
        "break_low": array(dims, pick("low"), long_name="95 % bootstrap interval over prompts, lower end"),
        "break_high": array(
            dims, pick("high"), long_name="its upper end; inf: not within the strengths measured"
        ),
        "break_share": array(dims, pick("share"), long_name="share of resamples that break within them"),
        "break_cause": array(dims, pick("cause").astype(str), long_name="which limit is passed first"),
    }
    return variables, sides


def _summary(data: xr.Dataset) -> dict[str, object]:
    """The largest strength each way: how far the score moved, beside the random directions; and where it breaks."""
    mean = data["mean_score"]
    base = float(mean.sel(direction="steered", strength=0.0))
    rows: dict[str, object] = {
        "metric": data.attrs["metric"],
        "n_prompts": int(data.sizes["prompt"]),
        "unsteered": round(base, 3),
    }
    for strength in (float(data["strength"].min()), float(data["strength"].max())):
        if strength == 0.0:
            continue
        rows[f"strength {strength:+g}"] = {
            which: round(float(mean.sel(direction=which, strength=strength)) - base, 3) for which in WHICH
        }
    if "break_strength" in data:
        largest = float(np.abs(data["strength"].values).max())
        for side in data["side"].values:
            cell = data.sel(side=side, direction="steered")
            rows[f"quality breaks, {side} side"] = break_text(
                float(cell["break_strength"]), float(cell["break_low"]), float(cell["break_high"]), largest
            )
    return rows


def break_text(strength: float, low: float, high: float, largest: float) -> str:
    """`12.3 [9.1, over 20]`, or `not up to 20`."""
    if not np.isfinite(strength):
        return f"not up to {largest:g}"
    if np.isnan(low) and np.isnan(high):
        return f"{strength:.3g}"
    ends = [f"{x:.3g}" if np.isfinite(x) else f"over {largest:g}" for x in (low, high)]
    return f"{strength:.3g} [{ends[0]}, {ends[1]}]"
