"""The natural scale of a direction: how far activations of ordinary text spread along it.

    scale = standard deviation of x · v over reference activations x                       (n - 1 below)
    isotropic scale = sqrt(tr Cov(x) / d): what a random direction of the same width has on average (rms)

so scale / isotropic scale says whether v is a direction in which the stream moves much (> 1) or little. The interval
is a percentile bootstrap over prompts (rows of one prompt are not independent); over rows where prompts are unknown.

The first token of a prompt is left out unless asked for: it is where models park an attention sink of enormous norm
(massive activations, Sun et al. 2024, 2402.17762), and one such row would be the whole deviation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from workbench.directions.checks import called, checked_seed
from workbench.errors import DataError

if TYPE_CHECKING:
    from workbench.activations import Activations
    from workbench.directions.direction import Direction
    from workbench.store.reader import Store

ROWS_AT_ONCE = 8192
BOOTSTRAP = 1000
ROUNDING = 1e-6
"""A spread of x · v below this share of Σ |x_i v_i| (rms over rows) is what float32 rounds off, not a scale."""


def natural_scale(
    direction: Direction,
    acts: Tensor | Activations | Store,
    *,
    first_token: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """The natural scale of a direction on reference activations, and what it rests on; JSON-ready.

    Args:
        direction: whose vector is projected on.
        acts: [..., d] activations; or collected ones (in memory, or a store) that hold its site.
        first_token: keep rows at position 0. (Of a plain tensor positions are unknown: every row counts.)
        seed: of the bootstrap.

    Returns:
        `scale`, `low`, `high` (95 % interval), `isotropic_scale`, `mean` (of x · v), `n_rows`, `n_prompts`,
        `first_token`, `n_left_out`, `seed`.

    Raises:
        DataError: fewer than two rows, another width, NaN, activations of another model, none that vary along it by
            more than rounding (as after `project_out`), or a seed that is not a number from 0 on.
        SiteError: these activations do not hold the site.
    """
    seed = checked_seed(seed)
    prompts, left_out, rows = _rows(direction, acts, first_token)
    if len(prompts) < 2:
        left = f" ({left_out} rows at position 0 are left out: use first_token=True)" if left_out else ""
        raise DataError(
            f"A scale needs at least 2 activations at {direction.site!r}, here are {len(prompts)}{left}."
        )
    projected, total, squares = [], torch.zeros(direction.width, dtype=torch.float64), 0.0
    shift: Tensor | None = None
    vector, sizes = direction.vector.double(), 0.0
    for part in rows:
        values = part.detach().cpu().double()  # where the vector is, whatever device they come from
        if not bool(torch.isfinite(values).all()):
            raise DataError(f"Some of the activations at {direction.site!r} are NaN or infinite.")
        sizes += float((values * vector).abs().sum(1).square().sum())
        shift = values[0] if shift is None else shift  # sums about a row, so that nothing cancels
        values = values - shift
        total += values.sum(0)
        squares += float(values.square().sum())
        projected.append(values @ vector)
    assert shift is not None
    c, n = torch.cat(projected).numpy(), len(prompts)
    scale = float(c.std(ddof=1))
    variance = (squares - float(total.square().sum()) / n) / (n - 1)
    if not scale > ROUNDING * np.sqrt(sizes / n):
        raise DataError(
            f"Activations do not vary along {called(direction)}: {n} rows, all the same there but for rounding (a "
            f"spread of {scale:.1e}). Its scale cannot be taken from them: give activations of ordinary text from "
            "which it was not projected out."
        )
    low, high = _interval(c, prompts, seed)
    return {
        "scale": scale,
        "low": low,
        "high": high,
        "isotropic_scale": float(np.sqrt(max(variance, 0.0) / direction.width)),
        "mean": float(c.mean() + float(shift @ vector)),
        "n_rows": n,
        "n_prompts": len(np.unique(prompts)),
        "first_token": first_token,
        "n_left_out": left_out,
        "seed": seed,
    }


def _rows(direction: Direction, acts: Any, first_token: bool) -> tuple[np.ndarray, int, Iterator[Tensor]]:
    """Prompt of each row that counts, how many do not, and the rows in parts of [row, d]."""
    if isinstance(acts, Tensor):
        direction.fits_rows(acts)
        flat = acts.reshape(-1, direction.width)
        return np.arange(len(flat)), 0, iter(flat.split(ROWS_AT_ONCE))
    stored = hasattr(acts, "index")
    made_on = acts.manifest.model_fingerprint if stored else acts.provenance.model.get("fingerprint", "")
    if direction.model_fingerprint and made_on and made_on != direction.model_fingerprint:
        raise DataError(
            f"{called(direction)} was made on a model with fingerprint {direction.model_fingerprint}, "
            f"these activations on one with {made_on}."
        )
    held = acts[direction.site] if stored else acts.rows(direction.site)
    index = acts.index if stored else acts
    kept = np.flatnonzero(np.ones(len(held), bool) if first_token else index.position != 0)

    def parts() -> Iterator[Tensor]:
        for start in range(0, len(kept), ROWS_AT_ONCE):
            part = held[kept[start : start + ROWS_AT_ONCE].tolist()].flatten(1)
            direction.fits_rows(part)
            yield part

    return np.asarray(index.prompt)[kept], len(held) - len(kept), parts()


def _interval(c: np.ndarray, prompts: np.ndarray, seed: int) -> tuple[float | None, float | None]:
    """95 % percentile bootstrap of the standard deviation, resampling prompts (through their sums); None of one."""
    _, owner = np.unique(prompts, return_inverse=True)
    n_prompts = int(owner.max()) + 1
    if n_prompts < 2:
        return None, None
    centred = c - c.mean()
    sums = np.stack([np.bincount(owner, weights=w) for w in (np.ones_like(c), centred, centred**2)], axis=1)
    draw, found = np.random.default_rng(seed), []
    for _ in range(BOOTSTRAP):
        n, first, second = np.bincount(draw.integers(0, n_prompts, n_prompts), minlength=n_prompts) @ sums
        found.append(np.sqrt(max(second - first**2 / n, 0.0) / (n - 1)) if n > 1 else np.nan)
    low, high = np.nanquantile(found, [0.025, 0.975])
    return float(low), float(high)
