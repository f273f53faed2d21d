"""From importances of neurons to arrays, and to the neurons that come first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from workbench.errors import DataError
from workbench.results import Result, array
from workbench.statistics import bootstrap_interval, standard_error

Neuron = tuple[int, int]
"""Block and number in it."""


def over_prompts(
    name: str, values: np.ndarray, dims: tuple[str, ...], what: str, seed: int
) -> dict[str, object]:
    """A variable per prompt, its mean, the standard error of that and a 95 % bootstrap interval.

    Args:
        name: of the variable; the others are `mean_NAME`, `NAME_se`, `NAME_low` and `NAME_high`.
        values: [prompt, *dims].
        dims: names of what stands behind `prompt`.
        what: it is, for labels.
        seed: of the bootstrap.
    """
    ends = [
        bootstrap_interval(values[:, i], seed) for i in range(values.shape[1])
    ]  # one by one, to spare memory
    low, high = (np.stack(end) for end in zip(*ends, strict=True))
    return {
        name: array(("prompt", *dims), values, long_name=what),
        f"mean_{name}": array(dims, values.mean(0), long_name=f"{what}, mean over prompts"),
        f"{name}_se": array(dims, standard_error(values), long_name=f"{what}, standard error over prompts"),
        f"{name}_low": array(dims, low, long_name="95 % bootstrap interval over prompts, lower end"),
        f"{name}_high": array(dims, high, long_name="95 % bootstrap interval over prompts, upper end"),
    }


def top_neurons(result: Result, n: int = 99, of: str = "comparative") -> list[Neuron]:
    """The `n` neurons of largest mean, the largest first.

    Args:
        result: what `importance` or `comparative` returned.
        n: how many.
        of: `comparative` or `importance`.

    Raises:
        DataError: another kind of result, or not as many neurons.

    Example:
        >>> ablate_neurons(model, prompts, answers, top_neurons(result, 50))
    """
    if f"mean_{of}" not in result.data or result.kind != "neuron_importance":
        raise DataError(f"The result ({result.kind}) has no {of!r} of neurons: give one of `comparative`.")
    mean = result.data[f"mean_{of}"]
    first = largest(mean.values, n)
    return [(int(result.data["layer"][i]), int(k)) for i, k in first]


def largest(mean: np.ndarray, n: int) -> list[tuple[int, int]]:
    """Places of the `n` largest of [layer, neuron], the largest first; the earlier of two that are equal."""
    if not 1 <= n <= mean.size:
        raise DataError(f"The {n} first neurons were asked for: give a number from 1 to {mean.size}.")
    order = np.argsort(-mean, axis=None, kind="stable")[:n]
    return [(int(i), int(k)) for i, k in zip(*np.unravel_index(order, mean.shape), strict=True)]


def top_share(mean: np.ndarray, first: Sequence[tuple[int, int]]) -> float | None:
    """Share of Σ |mean| in these places; None where all are 0."""
    total = np.abs(mean).sum()
    return round(float(np.abs(mean[tuple(np.array(first).T)]).sum() / total), 4) if total > 0 else None


def listed(data: xr.Dataset, name: str, n: int, beside: Sequence[str], shown: int = 10) -> dict[str, object]:
    """For a summary: the first neurons by `mean_NAME`, other means beside it, and the share the first `n` hold."""
    mean = data[f"mean_{name}"].values
    first = largest(mean, n)
    rows = []
    for i, k in first[:shown]:
        row: dict[str, object] = {"layer": int(data["layer"][i]), "neuron": k}
        for one in (name, *beside):  # of several control heads, their mean
            row[one] = round(float(data[f"mean_{one}"].values[..., i, k].mean()), 4)
        if data.sizes["prompt"] > 1:
            row["interval"] = [round(float(data[f"{name}_{end}"].values[i, k]), 4) for end in ("low", "high")]
        rows.append(row)
    return {"top": f"{len(rows)} of {n}", "top_neurons": rows, "top_share": top_share(mean, first)}


def overlaps(mean: np.ndarray, controls: np.ndarray, n: int, candidates: int) -> dict[str, object]:
    """How much of the first `n` neurons is also first for the control heads.

    Args:
        mean: [layer, neuron] of the head.
        controls: [control, layer, neuron].
        n: how many are first.
        candidates: neurons that could be among them, for what chance would give.
    """
    own = set(largest(mean, n))
    theirs = [largest(control, n) for control in controls]
    return {
        "control_overlap": [round(len(own & set(first)) / n, 4) for first in theirs],
        "chance_overlap": round(min(1.0, n / max(1, candidates)), 4),
        "control_top_share": [top_share(c, first) for c, first in zip(controls, theirs, strict=True)],
    }
