"""From measured continuations to the result of a method comparison: changes, controls, intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from workbench.model.language_model import LanguageModel
from workbench.provenance import provenance
from workbench.results import Result, array
from workbench.steering.measure.iso_kl import Calibration
from workbench.steering.measure.resample import interval, nan_mean
from workbench.steering.measure.tasks import SteeringTask

RANDOM, IN_CONTEXT = "random direction", "in-context prompt"
_INTERVAL = "95 % bootstrap interval over prompts"


@dataclass(eq=False)
class Cell:
    """The test prompts under one dose.

    Attributes:
        score, kl, kl_along: [prompt].
        measures: name -> [prompt].
        tokens, texts: of the continuations.
    """

    score: np.ndarray
    measures: dict[str, np.ndarray]
    tokens: Sequence[Sequence[int]]
    texts: Sequence[str]
    kl: np.ndarray = field(default_factory=lambda: np.zeros(0))
    kl_along: np.ndarray = field(default_factory=lambda: np.zeros(0))


@dataclass(eq=False)
class TaskOutcome:
    """All that was measured for a task: by method, its cell, random cells, site and strength; and the choice."""

    task: SteeringTask
    plain: Cell
    sites: list[str]
    cells: dict[str, Cell] = field(default_factory=dict)
    random: dict[str, list[Cell]] = field(default_factory=dict)
    site: dict[str, str] = field(default_factory=dict)
    strength: dict[str, float] = field(default_factory=dict)
    selection: dict[str, dict[str, tuple[float, Calibration]]] = field(default_factory=dict)
    in_context: Cell | None = None


def outcome(
    model: LanguageModel, found: list[TaskOutcome], attrs: dict[str, Any], seed: int, seconds: float
) -> Result:
    """The `Result`; see `compare_methods` for what is in it."""
    methods = list(found[0].selection)
    rows = [*methods, RANDOM, IN_CONTEXT]
    widest = max(len(t.task.test) for t in found)
    shape = (len(found), len(rows))
    number: dict[str, np.ndarray] = {name: np.full(shape, np.nan) for name in _NUMBERS}
    each = {name: np.full((*shape, widest), np.nan) for name in ("score", "change", "against_random")}
    text = np.full((*shape, widest), "", dtype=object)
    site, note = np.full(shape, "", dtype=object), np.full(shape, "", dtype=object)
    n = np.zeros(shape, dtype=int)
    for t, one in enumerate(found):
        k = len(one.task.test)
        for m, name in enumerate(rows):
            cells, control = _cells_of(one, methods, name)
            if not cells:
                note[t, m] = _why_not(one, name)
                continue
            score = nan_mean(np.stack([c.score for c in cells]), axis=0)
            change = score - one.plain.score
            each["score"][t, m, :k], each["change"][t, m, :k] = score, change
            if control:
                against = score - nan_mean(np.stack([c.score for c in control]), axis=0)
                each["against_random"][t, m, :k] = against
            text[t, m, :k] = list(cells[0].texts)
            n[t, m] = int(np.isfinite(change).sum())
            for key, value in _numbers(one, cells, control, each, t, m, k, seed).items():
                number[key][t, m] = value
            site[t, m], number["strength"][t, m] = one.site.get(name, ""), one.strength.get(name, np.nan)
            note[t, m] = _note(one, name)
    dims = ("task", "method")
    variables: dict[str, Any] = {
        name: array((*dims, "prompt"), values, long_name=_EACH[name]) for name, values in each.items()
    }
    variables |= {
        name: array(dims, values, long_name=_NUMBERS[name][0], units=_NUMBERS[name][1])
        for name, values in number.items()
    }
    with np.errstate(invalid="ignore"):
        beats, loses = number["against_random_low"] > 0, number["against_random_high"] < 0
    variables["beats_random"] = array(dims, beats, long_name="interval against random lies above 0")
    variables["below_random"] = array(dims, loses, long_name="interval against random lies below 0")
    for name, values in (("text", text), ("site", site), ("note", note)):
        variables[name] = array((*dims, "prompt") if name == "text" else dims, values.astype(str))
    variables["n"] = array(dims, n, long_name="test prompts with a score")
    variables |= _of_tasks(found, widest, seed)
    variables |= _choice(found, methods)
    coords = {
        "task": np.array([t.task.name for t in found]),
        "method": np.array(rows),
        "prompt": np.arange(widest),
        "candidate": np.array(found[0].sites),
        "chosen_method": np.array(methods),
    }
    data = xr.Dataset(variables, coords, {**attrs, "n_methods": len(methods)})
    tokens = [model.encode(p) for t in found for p in t.task.test]
    where_from = provenance(model, tokens=tokens, seed=seed, seconds={"compare_methods": seconds})
    return Result("steering_methods", data, where_from, _summary(data, methods))


_EACH = {
    "score": "score of the continuation (mean over the random directions in their row)",
    "change": "score − unsteered score of the same prompt",
    "against_random": "score − mean of the random directions at the same site and KL",
}
_NUMBERS: dict[str, tuple[str, str]] = {
    "mean_score": ("mean score", ""),
    "mean_change": ("mean change of the score", ""),
    "change_low": (f"{_INTERVAL}, lower end", ""),
    "change_high": (f"{_INTERVAL}, upper end", ""),
    "mean_against_random": ("mean score above that of the random directions", ""),
    "against_random_low": (f"{_INTERVAL}, lower end", ""),
    "against_random_high": (f"{_INTERVAL}, upper end", ""),
    "random_change": ("mean change of the score by its random directions", ""),
    "random_low": ("lowest mean change of its random directions", ""),
    "random_high": ("highest mean change of its random directions", ""),
    "strength": ("strength: norm of what is added", "activation units"),
    "kl": ("KL(unsteered || steered), next token, test prompts", "nats"),
    "kl_along": ("KL(unsteered || steered) along the unsteered continuation, test prompts", "nats per token"),
    "perplexity_ratio": ("perplexity under the unsteered model over that of unsteered continuations", ""),
    "repetition": ("share of repeated 4-grams", ""),
    "distinct_1": ("distinct 1-grams", ""),
    "distinct_2": ("distinct 2-grams", ""),
    "distinct_3": ("distinct 3-grams", ""),
    "length": ("length", "tokens"),
}


def _cells_of(one: TaskOutcome, methods: list[str], name: str) -> tuple[list[Cell], list[Cell]]:
    """What a row is the mean of, and its control."""
    if name == RANDOM:  # each method's own random directions, so that row and controls are the same numbers
        return [c for m in methods for c in one.random.get(m, [])], []
    if name == IN_CONTEXT:
        everyone = [c for m in methods for c in one.random.get(m, [])]
        return ([one.in_context] if one.in_context is not None else []), everyone
    return ([one.cells[name]] if name in one.cells else []), one.random.get(name, [])


def _numbers(
    one: TaskOutcome,
    cells: list[Cell],
    control: list[Cell],
    each: dict[str, np.ndarray],
    t: int,
    m: int,
    k: int,
    seed: int,
) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in ("change", "against_random"):
        values = each[name][t, m, :k]
        low, high = interval(values, seed)
        found |= {
            f"mean_{name}": float(nan_mean(values)),
            f"{name}_low": float(low),
            f"{name}_high": float(high),
        }
    found["mean_score"] = float(nan_mean(each["score"][t, m, :k]))
    if control:
        changes = [float(nan_mean(c.score - one.plain.score)) for c in control]
        found |= {
            "random_change": float(np.mean(changes)),
            "random_low": min(changes),
            "random_high": max(changes),
        }
    found["kl"] = float(np.mean([c.kl.mean() for c in cells]))
    found["kl_along"] = float(np.mean([c.kl_along.mean() for c in cells]))
    entropy = np.mean([nan_mean(c.measures["cross_entropy"]) for c in cells])
    found["perplexity_ratio"] = float(np.exp(entropy - nan_mean(one.plain.measures["cross_entropy"])))
    for name in ("repetition", "distinct_1", "distinct_2", "distinct_3", "length"):
        found[name] = float(nan_mean(np.array([nan_mean(c.measures[name]) for c in cells])))
    return found


def _why_not(one: TaskOutcome, name: str) -> str:
    if name == IN_CONTEXT:
        return "the task has no in-context prompt"
    if name == RANDOM:
        return "no method reached the target KL"
    reasons = {c.note or "its continuations have no score" for _, c in one.selection[name].values()}
    return "; ".join(sorted(reasons))


def _note(one: TaskOutcome, name: str) -> str:
    if name not in one.site:
        return ""
    _, calibration = one.selection[name][one.site[name]]
    few = "" if one.random[name] else "no random direction reached the target KL"
    return "; ".join(part for part in (calibration.note, few) if part)


def _of_tasks(found: list[TaskOutcome], widest: int, seed: int) -> dict[str, Any]:
    """What belongs to a task and not to a method: the unsteered model, the scorer, its sizes."""
    unsteered = np.full((len(found), widest), np.nan)
    texts = np.full((len(found), widest), "", dtype=object)
    for t, one in enumerate(found):
        unsteered[t, : len(one.plain.score)] = one.plain.score
        texts[t, : len(one.plain.score)] = list(one.plain.texts)
    low, high = interval(unsteered, seed)
    quality = {
        name: [float(nan_mean(t.plain.measures[name])) for t in found]
        for name in ("cross_entropy", "repetition", "distinct_2")
    }
    counts = {
        "n_train": [len(t.task.positive) for t in found],
        "n_selection": [len(t.task.selection) for t in found],
        "n_test": [len(t.task.test) for t in found],
        "n_tokens": [t.task.max_new_tokens for t in found],
    }
    names = {"scorer": [t.task.score.name for t in found], "scorer_note": [t.task.scorer_note for t in found]}
    return {
        "unsteered": array(("task", "prompt"), unsteered, long_name="score of the unsteered continuation"),
        "unsteered_text": array(("task", "prompt"), texts.astype(str)),
        "mean_unsteered": array(("task",), nan_mean(unsteered), long_name="mean score without steering"),
        "unsteered_low": array(("task",), low, long_name=f"{_INTERVAL}, lower end"),
        "unsteered_high": array(("task",), high, long_name=f"{_INTERVAL}, upper end"),
        **{f"unsteered_{name}": array(("task",), values) for name, values in quality.items()},
        **{name: array(("task",), values) for name, values in counts.items()},
        **{name: array(("task",), np.array(values, dtype=str)) for name, values in names.items()},
    }


def _choice(found: list[TaskOutcome], methods: list[str]) -> dict[str, Any]:
    """[task, chosen_method, candidate] what the sites gave on the selection prompts."""
    sites = found[0].sites
    pick = lambda what: np.array([[[what(t.selection[m][s]) for s in sites] for m in methods] for t in found])  # noqa: E731
    dims = ("task", "chosen_method", "candidate")
    return {
        "selection_score": array(dims, pick(lambda p: p[0]), long_name="mean score on the selection prompts"),
        "selection_strength": array(
            dims, pick(lambda p: p[1].strength), long_name="strength at the target KL; NaN: not reached"
        ),
        "selection_kl": array(dims, pick(lambda p: p[1].kl), long_name="KL there", units="nats per token"),
        "selection_monotone": array(
            dims, pick(lambda p: p[1].monotone), long_name="KL rose with strength wherever tried"
        ),
    }


def _summary(data: xr.Dataset, methods: list[str]) -> dict[str, Any]:
    """For each task, in how many methods the interval against random lies above 0, and the best of them."""
    found: dict[str, Any] = {"target KL": float(data.attrs["target_kl"])}
    for task in data["task"].values:
        at = data.sel({"task": task, "method": methods})  # `method=` is an argument of xarray's own
        values = at["mean_change"].values
        if not np.isfinite(values).any():
            found[str(task)] = "no method reached the target KL"
            continue
        best = int(np.nanargmax(values))
        cell = at.isel(method=best)
        found[str(task)] = (
            f"{methods[best]} {float(cell['mean_change']):+.3g} [{float(cell['change_low']):.3g}, "
            f"{float(cell['change_high']):.3g}], random {float(cell['random_change']):+.3g}; above random: "
            f"{int(at['beats_random'].sum())} of {len(methods)}"
        )
    return found
