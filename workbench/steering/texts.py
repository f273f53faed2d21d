"""Steered texts: what a model writes at each strength, beside strength 0 and beside a random direction.

    text[steered, s, i]    continuation of prompt i with the direction applied at strength s
    text[random, s, i]     the same with a random unit direction at the same site (drawn with the seed)
    text[·, 0, i]          unsteered, the same for both

With sampling each prompt draws the same noise in every cell, so that texts differ by the steering alone. What a text
costs is its cross-entropy under the *unsteered* model (nats per token) and its share of repeated 4-grams; means over
prompts carry a 95 % bootstrap interval.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from workbench.directions.algebra import members
from workbench.model.tokens import as_list
from workbench.progress import Progress, Silent

if TYPE_CHECKING:
    from workbench.directions import Direction, DirectionSet
    from workbench.model.language_model import LanguageModel
    from workbench.model.tokens import Prompt
    from workbench.results import Result

KIND = "steered_texts"
COSTS = {"cross_entropy": "nats per token", "repetition": "share of 4-grams", "length": "tokens"}
"""Measures of each text, and their units."""


def steered_texts(
    model: LanguageModel,
    prompts: Prompt | Sequence[Prompt],
    direction: Direction | DirectionSet,
    strengths: float | Sequence[float],
    *,
    op: str = "add",
    parameters: Mapping[str, float] | None = None,
    where: str | Mapping[str, Any] = "all",
    max_new_tokens: int = 30,
    temperature: float = 0.0,
    seed: int = 0,
    force: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Continuations at each strength, steered and along a random direction of the same norm.

    Args:
        model: the language model.
        prompts: one or several to continue.
        direction: a direction, or a set (each member at its site).
        strengths: one or several, of the operation; 0, the unsteered model, is put in.
        op, parameters: the operation, as of `workbench.steering.Operation`.
        where: position rule, as of `workbench.steering.rules.as_rule`.
        max_new_tokens: length of a continuation.
        temperature: 0 is greedy.
        seed: of the sampling, the random direction and the bootstrap.
        force: accept a direction of another model.
        progress: where to report; a cancel takes effect after the token.

    Returns:
        A `Result` of kind `steered_texts`: dims `direction` (steered, random), `strength`, `prompt`; variables `text`,
        `ended`, those of `COSTS`, and `mean_cross_entropy`, `mean_repetition` with `_low` and `_high`.

    Raises:
        As `workbench.steering.generate`.

    Example:
        >>> steered_texts(model, ["I think that"], truth, [-8, 8]).data["text"].sel(direction="steered", strength=8)
    """
    from workbench.provenance import provenance
    from workbench.results import Result, array
    from workbench.steering import OPERATIONS, Operation, generate
    from workbench.steering.asked import with_zero
    from workbench.steering.measure import measure_texts
    from workbench.steering.measure.resample import interval, nan_mean
    from workbench.steering.rules import as_rule

    progress, started = progress or Silent(), time.perf_counter()
    listed = as_list(prompts)
    doses = with_zero(strengths)
    operation = Operation(op, **dict(parameters or {}))
    n, zero = len(listed), doses.index(0.0)
    shape = (2, len(doses), n)
    grids: dict[str, np.ndarray] = {name: np.full(shape, np.nan) for name in COSTS}
    texts, ended = np.empty(shape, dtype=object), np.zeros(shape, dtype=bool)
    ids: list[list[int]] = []
    for side, (along, strong) in enumerate(
        ((direction, doses), (_random_like(direction, seed), [s for s in doses if s != 0]))
    ):
        if not strong:
            continue
        said = generate(
            model, listed * len(strong), along, [s for s in strong for _ in range(n)], op=operation,
            where=as_rule(where), max_new_tokens=max_new_tokens, temperature=temperature, seed=seed,
            row_seeds=list(range(n)) * len(strong), force=force, progress=progress,
        )  # fmt: skip
        ids = ids or [list(row) for row in said.prompts[:n]]
        progress.stage("measure texts", len(said.tokens))
        costs = measure_texts(model, said.prompts, said.tokens, progress=progress)
        rows = [doses.index(s) for s in strong]
        cells = (len(strong), n)
        texts[side, rows] = np.array(said.texts, dtype=object).reshape(cells)
        ended[side, rows] = np.array(said.ended).reshape(cells)
        for name, grid in grids.items():
            grid[side, rows] = np.asarray(costs[name]).reshape(cells)
    for grid in (texts, ended, *grids.values()):
        grid[1, zero] = grid[0, zero]

    dims = ("direction", "strength", "prompt")
    variables: dict[str, Any] = {
        "text": array(dims, texts.astype(str), long_name="continuation"),
        "ended": array(dims, ended, long_name="ended by itself"),
    }
    for name, units in COSTS.items():
        variables[name] = array(dims, grids[name], units=units)
    for name in ("cross_entropy", "repetition"):
        low, high = interval(grids[name], seed)
        mean = array(dims[:2], nan_mean(grids[name]), units=COSTS[name], n=n)
        variables |= {
            f"mean_{name}": mean,
            f"{name}_low": array(dims[:2], low),
            f"{name}_high": array(dims[:2], high),
        }
    coords = {
        "direction": np.array(["steered", "random"]),
        "strength": ("strength", np.array(doses), {"units": OPERATIONS[op].strength}),
        "prompt_text": ("prompt", np.array([str(p) for p in listed])),
    }
    attrs = {
        "direction": getattr(direction, "name", "") or "direction",
        "site": ", ".join(dict.fromkeys(d.site for d in members(direction))),
        "op": op,
        "control": f"a random direction at the same site with the same strengths (seed {seed})",
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
    }
    data = xr.Dataset(variables, coords=coords, attrs=attrs)
    where_from = provenance(
        model,
        tokens=ids,
        seed=seed,
        seconds={"steered texts": time.perf_counter() - started},
        settings={"where": where, "parameters": dict(parameters or {})},
    )
    return Result(KIND, data, where_from, _summary(data, n))


def _random_like(direction: Direction | DirectionSet, seed: int) -> Direction | DirectionSet:
    """The control: each member drawn from the sphere, at its site."""
    from workbench.directions import Direction, DirectionSet
    from workbench.directions.controls import random_controls

    drawn: list[Direction] = []
    for d in members(direction):  # each from where the last one's seed ended, so that no two are the same
        at = seed if not drawn else drawn[-1].settings["seed"] + 1
        drawn += random_controls(d, 1, at)
    if isinstance(direction, Direction):
        return drawn[0]
    own = [
        replace(d, name=f"control {i}") for i, d in enumerate(drawn)
    ]  # a member may itself be a random one
    return DirectionSet(own, name="random")


def _summary(data: xr.Dataset, n: int) -> dict[str, Any]:
    strengths = [float(s) for s in data["strength"].values]
    cost = data["mean_cross_entropy"]
    strongest = max(strengths, key=lambda s: (abs(s), s))
    plain = data["text"].sel(direction="steered", strength=0.0).values
    changed = {
        f"{s:g}": int((data["text"].sel(direction="steered", strength=s).values != plain).sum())
        for s in strengths
        if s != 0
    }

    def nats(side: str, strength: float) -> float | None:
        value = float(cost.sel(direction=side, strength=strength))
        return round(value, 4) if np.isfinite(value) else None

    return {
        "direction": data.attrs["direction"],
        "site": data.attrs["site"],
        "n_prompts": n,
        "strengths": strengths,
        "texts_that_differ_from_unsteered": changed,
        "nats_per_token": {
            "unsteered": nats("steered", 0.0),
            f"steered_at_{strongest:g}": nats("steered", strongest),
            f"random_at_{strongest:g}": nats("random", strongest),
        },
    }
