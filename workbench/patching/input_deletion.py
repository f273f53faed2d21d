"""Deletion and insertion: does the model lose its answer with the tokens that an attribution puts first?

Of the n tokens that a prompt's baseline changes, k are replaced, in order of attribution (largest first, or smallest
first where the metric falls from baseline to prompt):

    deletion(k)    the prompt with the first k tokens replaced by the baseline's
    insertion(k)   the baseline with the first k tokens replaced by the prompt's

each as the share of the metric that is kept,  (m - m(x')) / (m(x) - m(x')),  and the area under it over k / n by the
trapezoid rule. A good order has a small deletion area and a large insertion area. The orders are compared with random
ones, for which both areas have one distribution: read backwards, a random order's deletion is another one's insertion.

A token is replaced by its part of the stream into block 0, at its own position (see `input_baselines`), so this asks
the same model function as the attribution did. Over several baselines of a prompt the metric is averaged. Where a
prompt's two metrics are near each other its shares are large, and with them its weight in the mean over prompts.

Petsiuk et al. 2018 (1806.07421), for pixels and probabilities.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from workbench.errors import DataError, MetricError
from workbench.model.language_model import LanguageModel
from workbench.patching.input_baselines import Baselines, Group, groups
from workbench.patching.metrics import Metric, MetricFunction, one_each
from workbench.patching.replay import TOKENS_PER_CALL
from workbench.progress import Progress, Silent
from workbench.results import Result, array
from workbench.statistics import bootstrap_interval

POINTS = 21
"""Points of the curves where prompts have different numbers of tokens."""


@torch.inference_mode(False)
def deletion_insertion(
    model: LanguageModel,
    result: Result,
    metric: Metric | MetricFunction | Sequence[Metric],
    *,
    n_random: int = 20,
    seed: int = 0,
    tokens_per_call: int = TOKENS_PER_CALL,
    progress: Progress | None = None,
) -> Result:
    """Replace tokens in order of an attribution and measure what is kept of the metric.

    Args:
        model: the model of the result.
        result: of `input_attribution`; its baseline is what tokens are replaced by.
        metric: the same as there.
        n_random: random orders.
        seed: of those and of the bootstrap.
        tokens_per_call: tokens that go through together. Results do not depend on it.
        progress: where to report, one item per prompt.

    Returns:
        The result with dims `share` (of the n tokens; 0, 1/n, ..., 1, or 21 points where prompts differ in n, read off
        the lines between theirs) and `order`, and variables `deletion`, `insertion` [prompt, share],
        `deletion_area`, `insertion_area` [prompt], `random_deletion`, `random_insertion` [prompt, order, share] and
        `random_area` [prompt, order]. `random_deletion_low`, `_high` and so on [share] are the 2.5 % and 97.5 %
        quantiles, over orders, of the random curves' mean over prompts. In the summary `deletion` and `insertion`
        have the mean area, its `interval` (95 % bootstrap over prompts, where there are several), that of random orders
        with the 95 % of them (`random_interval`), and `p_value`, the share of random orders (and this one) at least
        as good.

    Raises:
        DataError: no result of `input_attribution`.
        MetricError: another metric or model than the result's, or one that does not tell prompt and baseline apart.

    Example:
        >>> result = input_attribution(model, clean, metric, baseline=corrupt)
        >>> deletion_insertion(model, result, metric).summary["deletion"]
    """
    progress, started = progress or Silent(), time.perf_counter()
    if result.kind != "input_attribution":
        raise DataError(
            f"A result of kind {result.kind!r} has no token order: give one of input_attribution."
        )
    if isinstance(n_random, bool) or not isinstance(n_random, int) or n_random < 1:
        raise DataError(f"n_random is {n_random!r}; expected a whole number, 1 or more.")
    data = result.data
    rows = [row[:n].tolist() for row, n in zip(data["token_id"].values, data["length"].values, strict=True)]
    metrics = one_each(metric, model, len(rows), "prompt")
    baselines = _baselines(result, rows)
    orders = [
        _orders(data["attribution"].values[i], moved, data, i, np.random.default_rng([seed, i]), n_random)
        for i, moved in enumerate(baselines.moved)
    ]
    curves: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    progress.stage("delete and insert", len(rows))
    for group in groups(
        model, rows, metrics, baselines, n_control=0, seed=seed, tokens_per_backward=tokens_per_call
    ):
        ends = _checked_ends(group, data)
        for i, (own, base) in zip(group.which, ends, strict=True):
            curves[i] = tuple((one - base) / (own - base) for one in _metrics(group, i, orders[i]))
            progress.advance()
    return _extended(result, [curves[i] for i in range(len(rows))], seed, time.perf_counter() - started)


def _baselines(result: Result, rows: Sequence[list[int]]) -> Baselines:
    data, ids = result.data, None
    if "baseline_id" in data:
        every = data["baseline_id"].values
        ids = [every[i, :, : len(row)].tolist() for i, row in enumerate(rows)]
    moved = [data["moved"].values[i, : len(row)].tolist() for i, row in enumerate(rows)]
    vector = data.attrs["vector"]
    return Baselines(data.attrs["baseline"], ids, None if vector == "none" else vector, moved)


def _orders(values, moved, data, i: int, rng: np.random.Generator, n_random: int) -> np.ndarray:
    """[1 + order, n] positions: by attribution, and at random."""
    at = np.flatnonzero(moved)
    rising = float(data["metric"][i]) >= float(data["baseline_metric"][i])
    own = at[np.argsort(-values[at] if rising else values[at], kind="stable")]
    return np.stack([own, *(rng.permutation(at) for _ in range(n_random))])


def _checked_ends(group: Group, data) -> np.ndarray:
    """[prompt, 2] metric of prompts and baselines, those of the result."""
    own, base = group.inputs.ends()
    ends = np.stack([own, base.mean(1)], 1)
    then = np.stack([data[name].values[group.which] for name in ("metric", "baseline_metric")], 1)
    for i, now, before in zip(group.which, ends, then, strict=True):
        if not np.allclose(now, before, rtol=1e-3, atol=1e-3):
            raise MetricError(
                f"Prompt {i} and its baseline have metrics {now[0]:.4f} and {now[1]:.4f} here, {before[0]:.4f} and "
                f"{before[1]:.4f} in the result ({data.attrs['metric']}): give the model and the metric of the result."
            )
        if abs(now[0] - now[1]) < 1e-6:
            raise MetricError(
                f"Prompt {i} and its baseline have the same metric, {now[0]:.4f}: there is no share to keep. Choose "
                "another baseline or metric."
            )
    return ends


def _metrics(group: Group, number: int, orders: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean metric over baselines: [k] deletion, [k] insertion, [order, k] deletion in random orders."""
    inputs, i, n = group.inputs, group.which.index(number), orders.shape[1]
    replaced = np.zeros((len(orders) + 1, n + 1, inputs.ids.shape[1]), bool)
    for row, order in enumerate([*orders, orders[0]]):
        for k in range(n + 1):
            replaced[row, k, order[:k] if row < len(orders) else order[k:]] = True
    sets, where = np.unique(replaced.reshape(-1, replaced.shape[-1]), axis=0, return_inverse=True)
    width = inputs.baselines.shape[1]
    values = np.empty(len(sets) * width)
    for part in inputs.chunks(len(values)):
        numbers = np.arange(part.start, part.stop)
        mask = torch.from_numpy(sets[numbers // width]).to(inputs.x.device)[..., None]
        rows = torch.where(mask, inputs.baselines[i, numbers % width], inputs.x[i])
        values[part] = inputs.values([i] * len(numbers), rows).numpy()
    every = values.reshape(len(sets), width).mean(1)[where.reshape(len(orders) + 1, n + 1)]
    return every[0], every[-1], every[1:-1]


def _area(curve: np.ndarray) -> np.ndarray:
    return np.trapezoid(curve, dx=1 / (curve.shape[-1] - 1), axis=-1)


def _extended(
    result: Result,
    curves: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    seed: int,
    seconds: float,
) -> Result:
    numbers = {len(deletion) - 1 for deletion, _, _ in curves}
    share = np.linspace(0, 1, (numbers.pop() + 1) if len(numbers) == 1 else POINTS)
    on_grid = lambda curve: np.interp(share, np.linspace(0, 1, len(curve)), curve)  # noqa: E731
    kept = "share of the metric kept"
    made: dict[str, object] = {}
    for j, name in enumerate(("deletion", "insertion")):
        lines, areas = [on_grid(one[j]) for one in curves], [_area(one[j]) for one in curves]
        made[name] = array(("prompt", "share"), lines, long_name=f"{kept} in order of attribution")
        made[f"{name}_area"] = array(("prompt",), areas, long_name=f"area under {name}")
    deleted = np.stack([np.stack([on_grid(line) for line in one[2]]) for one in curves])
    random_area = np.stack([_area(one[2]) for one in curves])
    for name, values in (("deletion", deleted), ("insertion", deleted[..., ::-1])):
        made[f"random_{name}"] = array(
            ("prompt", "order", "share"), values, long_name=f"{kept}, random orders"
        )
        low, high = np.quantile(values.mean(0), [0.025, 0.975], axis=0)
        for end, line in (("low", low), ("high", high)):
            label = f"{kept}: 95 % of random orders, mean over prompts, {end}"
            made[f"random_{name}_{end}"] = array(("share",), line, long_name=label)
    made["random_area"] = array(("prompt", "order"), random_area, long_name="area, random orders")
    data = result.data.assign(made).assign_coords(share=share)
    summary = dict(result.summary)
    chance = random_area.mean(0)
    for name, sign in (("deletion", 1), ("insertion", -1)):
        areas = data[f"{name}_area"].values
        better = int((sign * chance <= sign * areas.mean() + 1e-12).sum())
        summary[name] = {
            "area": round(float(areas.mean()), 4),
            "random": round(float(chance.mean()), 4),
            "random_interval": [round(float(v), 4) for v in np.quantile(chance, [0.025, 0.975])],
            "p_value": round((1 + better) / (1 + len(chance)), 4),
            "n_prompts": len(areas),
            "n_random": len(chance),
        }
        if len(areas) > 1:
            low, high = bootstrap_interval(areas, seed)
            summary[name]["interval"] = [round(float(low), 4), round(float(high), 4)]  # type: ignore[index]
    where = replace(
        result.provenance,
        seconds={**result.provenance.seconds, "delete_insert": round(seconds, 4)},
        settings={**result.provenance.settings, "delete_insert": {"n_random": len(chance), "seed": seed}},
    )
    return Result(result.kind, data, where, summary)
