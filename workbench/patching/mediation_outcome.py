"""From the log-probabilities of patched runs to the arrays and the summary of a mediation analysis."""

from __future__ import annotations

import numpy as np
import xarray as xr

from workbench.patching.mediation_effects import FORMS, forms
from workbench.results import array
from workbench.statistics import bootstrap_interval, paired_permutation, standard_error

DIMS = ("component", "layer", "position")
TOKENS = {"result": "r", "other_result": "r'"}
RUNS = {"base": "p", "other": "p'"}


def dataset(values: np.ndarray, ends: np.ndarray, seed: int) -> xr.Dataset:
    """All variables of the result.

    Args:
        values: [pair, source, *cells, token] log-probabilities of the patched runs; the second source is the control's.
        ends: [pair, run, token] those of p and p'.
        seed: of bootstrap and permutations.
    """
    made: dict[str, object] = {
        "log_p_result": array(("pair", *DIMS), values[:, 0, ..., 0], long_name="log P*(r), patched run"),
        "log_p_other_result": array(
            ("pair", *DIMS), values[:, 0, ..., 1], long_name="log P*(r'), patched run"
        ),
    }
    for run, (who, prompt) in enumerate(RUNS.items()):
        for token, (what, answer) in enumerate(TOKENS.items()):
            label = f"log P({answer} | {prompt})"
            made[f"{who}_log_p_{what}"] = array(("pair",), ends[:, run, token], long_name=label)
    for form, value in forms(ends[:, 0], ends[:, 1]).items():
        made[f"total_{form}"] = array(
            ("pair",), value, long_name=f"total effect: {FORMS[form]}, P* = P(.|p')"
        )
    base = ends[:, 0, None, None, None, :]
    per_source = [forms(base, values[:, s]) for s in range(values.shape[1])]
    for prefix, found in zip(("", "control_"), per_source, strict=False):
        for form, value in found.items():
            name, label = f"{prefix}{form}", f"{'control: ' if prefix else ''}{FORMS[form]}"
            low, high = bootstrap_interval(value, seed)
            made[name] = array(("pair", *DIMS), value, long_name=label)
            made[f"mean_{name}"] = array(DIMS, value.mean(0), long_name=f"{label}, mean over pairs")
            made[f"{name}_se"] = array(DIMS, standard_error(value), long_name="standard error over pairs")
            made[f"{name}_low"] = array(DIMS, low, long_name="95 % bootstrap interval over pairs, lower end")
            made[f"{name}_high"] = array(
                DIMS, high, long_name="95 % bootstrap interval over pairs, upper end"
            )
    if len(per_source) > 1:
        p = paired_permutation(per_source[0]["effect"], per_source[1]["effect"], seed)
        made["p_value"] = array(DIMS, p, long_name="permutation p-value: effect against control, over pairs")
    return xr.Dataset(made)  # pyright: ignore[reportArgumentType]


def summary(data: xr.Dataset) -> dict[str, object]:
    """The few numbers to print: total effect, how often the model is right, the component of largest mean effect."""
    mean = data["mean_effect"].values
    at = np.unravel_index(int(np.abs(mean).argmax()), mean.shape)
    cell = data.isel(dict(zip(DIMS, map(int, at), strict=True)))
    strongest: dict[str, object] = {name: cell[name].values.item() for name in (*DIMS, "token")}
    strongest["effect"] = round(float(cell["mean_effect"]), 4)
    strongest["relative_effect"] = round(float(cell["mean_relative_effect"]), 4)
    if data.sizes["pair"] > 1:
        strongest["interval"] = [round(float(cell[name]), 4) for name in ("effect_low", "effect_high")]
    found: dict[str, object] = {
        "n_pairs": int(data.sizes["pair"]),
        "n_correct": int(data["correct"].sum()),
        "n_other_correct": int(data["other_correct"].sum()),
        "total_effect": round(float(data["total_effect"].mean()), 4),
        "total_relative_effect": round(float(data["total_relative_effect"].mean()), 4),
        "control": data.attrs["control"],
        "strongest": strongest,
    }
    if "control_effect" in data:
        strongest["control_effect"] = round(float(cell["mean_control_effect"]), 4)
        if data.sizes["pair"] > 1:
            strongest["p_value"] = round(float(cell["p_value"]), 4)
        found["control_largest"] = round(float(np.abs(data["mean_control_effect"]).max()), 4)
    return found
