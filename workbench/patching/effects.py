"""Effects: what results that compare edited runs with the base run have in common.

    effect = metric(edited run) - metric(base run)          one number per prompt and cell

with its mean over prompts, the standard error of that (n - 1 in the variance), and a 95 % bootstrap interval over
prompts; the same for the control. With one prompt there is neither error nor interval (NaN).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from workbench.errors import MetricError, PromptError
from workbench.model.language_model import LanguageModel
from workbench.patching.metrics import Metric, MetricFunction, continuation, one_each
from workbench.results import array
from workbench.statistics import bootstrap_interval, standard_error


def resolved_metrics(
    model: LanguageModel, metric: Metric | Sequence[Metric], n: int
) -> tuple[list[MetricFunction], str]:
    """One function for each of `n` prompts, and how to call them.

    Raises:
        PromptError: no prompts.
        MetricError: another number of metrics, one that does not suit the model, or an answer of several tokens.
    """
    if n < 1:
        raise PromptError("No prompts were given: give at least one.")
    metrics = one_each(metric, model, n, "prompt")
    for one in metrics:
        if more := continuation(one, model):
            raise MetricError(
                f"{one} has an answer of {len(more) + 1} tokens, but this analysis reads the one token after the "
                "prompt. Give an answer of one token; sweep, attribution, edges and input_attribution take several."
            )
    names = sorted({str(m) for m in metrics})
    return [m.resolve(model) for m in metrics], names[0] if len(names) == 1 else f"{len(names)} metrics"


def effect_variables(
    base: np.ndarray, values: np.ndarray, control: np.ndarray | None, dims: tuple[str, ...], metric: str, seed: int
) -> dict[str, object]:  # fmt: skip
    """Variables of a result that compares edited runs with the base run.

    Args:
        base: [prompt] metric of the base run.
        values, control: [prompt, *dims] metric of the edited runs and of the control's.
        dims: names of what stands behind `prompt`.
        metric: its name.
        seed: of the bootstrap.
    """
    made: dict[str, object] = {
        "base_metric": array(("prompt",), base, long_name=f"{metric}, base run"),
        "metric": array(("prompt", *dims), values, long_name=f"{metric}, edited run"),
    }
    for prefix, run in (("", values), ("control_", control)):
        if run is None:
            continue
        effect = run - base.reshape(-1, *[1] * (run.ndim - 1))
        low, high = bootstrap_interval(effect, seed)
        stderr = standard_error(effect)
        what = f"{'control: ' if prefix else ''}edited - base"
        made[f"{prefix}effect"] = array(("prompt", *dims), effect, long_name=f"{what}, {metric}")
        made[f"mean_{prefix}effect"] = array(dims, effect.mean(0), long_name=f"{what}, mean over prompts")
        made[f"{prefix}stderr"] = array(dims, stderr, long_name=f"{what}, standard error over prompts")
        made[f"{prefix}effect_low"] = array(dims, low, long_name="95 % bootstrap interval, lower end")
        made[f"{prefix}effect_high"] = array(dims, high, long_name="95 % bootstrap interval, upper end")
    return made


def strongest(data: xr.Dataset, labels: Mapping[str, str]) -> dict[str, object]:
    """The cell of largest mean effect, for a summary. `labels`: coordinate -> its dimension."""
    mean = data["mean_effect"]
    at = dict(zip(mean.dims, np.unravel_index(int(np.abs(mean.values).argmax()), mean.shape), strict=True))
    cell = data.isel({dim: int(i) for dim, i in at.items()})
    found: dict[str, object] = {name: data[name].values[at[dim]].item() for name, dim in labels.items()}
    found["effect"] = round(float(cell["mean_effect"]), 4)
    if "control_effect" in data:
        found["control_effect"] = round(float(cell["mean_control_effect"]), 4)
    if data.sizes["prompt"] > 1:
        found["interval"] = [round(float(cell[name]), 4) for name in ("effect_low", "effect_high")]
    return found
