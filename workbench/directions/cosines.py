"""Cosines between directions, beside what random directions would have.

    cos(a, b) = v_a · v_b                                                   in -1 … 1

Of two directions drawn uniformly from the sphere in d dimensions, cos² ~ Beta(1/2, (d - 1)/2). Hence

    root mean square   1 / √d
    mean |cos|         Γ(d/2) / (√π Γ((d + 1)/2))  ≈ √(2 / (π d)) = 0.80 / √d
    95 % band          √(quantile 0.95 of that Beta)      |cos| of one pair given beforehand
    band of all pairs  √(quantile 0.95^(1/m))             the largest |cos| among m pairs (independent ones: Šidák)

Activations are far from isotropic: two directions made of them share the few dimensions in which the stream moves most,
whatever they stand for. With `reference` activations there is a second null, `reference`: directions drawn from a
normal distribution with the covariance of these activations (what differences of unrelated groups of rows look like).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
import xarray as xr
from scipy.special import gammaln
from scipy.stats import beta
from torch import Tensor

from workbench.directions import algebra
from workbench.directions.checks import checked_seed, same_model, same_width
from workbench.directions.direction import Direction
from workbench.errors import DataError
from workbench.provenance import provenance
from workbench.results import Result, array

ROWS_AT_ONCE = 8192
MOST_DRAWN = 2000
"""Directions drawn on each side of the second null at most: their cosines are as many as the square of it."""


def random_cosine(d: int, n_pairs: int = 1) -> dict[str, float]:
    """Exact figures of |cos| between random directions in d dimensions: `rms`, `mean`, `band`, `band_of_all`.

    >>> round(random_cosine(576)["rms"], 4), round(random_cosine(576)["band"], 4)
    (0.0417, 0.0817)
    """
    if d == 1:
        return {"rms": 1.0, "mean": 1.0, "band": 1.0, "band_of_all": 1.0}
    mean = math.exp(float(gammaln(d / 2) - gammaln((d + 1) / 2))) / math.sqrt(math.pi)
    band, band_of_all = (
        float(np.sqrt(beta.ppf(q, 0.5, (d - 1) / 2))) for q in (0.95, 0.95 ** (1 / max(1, n_pairs)))
    )
    return {"rms": 1 / math.sqrt(d), "mean": mean, "band": band, "band_of_all": band_of_all}


def p_values(cosines: np.ndarray, d: int) -> np.ndarray:
    """Chance that |cos| of two random directions is at least as large, for each cosine."""
    if d == 1:
        return np.ones_like(cosines)
    return beta.sf(np.clip(cosines**2, 0, 1), 0.5, (d - 1) / 2)


def direction_cosines(
    directions: Direction | Iterable[Direction],
    *,
    reference: Tensor | None = None,
    n_null: int = 1000,
    seed: int = 0,
    force: bool = False,
) -> Result:
    """Cosine of every pair of some directions.

    Args:
        directions: a `DirectionSet` or several directions, all of one width and model; sites may differ.
        reference: [..., d] activations of ordinary text for the second null.
        n_null: directions drawn on each side for the second null (at most 2,000); it rests on the cosines of all of
            one side with all of the other.
        seed: for drawing them.
        force: compare directions of different models.

    Returns:
        A `Result` of kind `direction_cosines`: dims `direction`, `other`, `null` (`isotropic`, and `reference` if
        given); variables `cosine`, `p_value` (isotropic), and of |cos| under each null `null_rms`, `null_mean`,
        `null_band` (95 %, one pair), `null_band_of_all` (95 %, largest of all pairs). `summary["outside"]` counts pairs
        beyond the band of all pairs of each null.

    Raises:
        DataError: fewer than two directions, other widths or models, reference activations that are of another width,
            fewer than two, NaN or infinite, or a seed that is not a number from 0 on.

    Example:
        >>> wb.directions.DirectionSet([truth, sentiment, length]).cosines().plot()
    """
    started = time.perf_counter()
    members, seed = algebra.members(directions), checked_seed(seed)
    if len(members) < 2:
        raise DataError(f"Cosines need at least two directions; {len(members)} was given.")
    same_width(members, "A cosine")
    fingerprint = same_model(members, "A cosine", force=force)
    d, n = members[0].width, len(members)
    stacked = torch.stack([one.vector for one in members]).double()
    cosines = np.clip((stacked @ stacked.T).numpy(), -1, 1)
    np.fill_diagonal(cosines, 1.0)
    pairs = np.triu_indices(n, 1)
    nulls = {"isotropic": random_cosine(d, len(pairs[0]))}
    if reference is not None:
        reference = torch.as_tensor(reference).detach()
        members[0].fits_rows(reference)
        nulls["reference"] = _reference_null(reference.reshape(-1, d), len(pairs[0]), n_null, seed)
    p = p_values(cosines, d)
    np.fill_diagonal(p, np.nan)
    dims, long = ("direction", "other"), "|cos| of random directions"
    variables = {
        "cosine": array(dims, cosines, long_name="cosine"),
        "p_value": array(dims, p, long_name="chance of |cos| at least as large between random directions"),
    }
    meaning = {
        "rms": f"root mean square {long}",
        "mean": f"mean {long}",
        "band": f"95 % of {long}",
        "band_of_all": f"95 % of the largest {long} among all pairs",
    }
    for key, words in meaning.items():
        variables[f"null_{key}"] = array(("null",), [null[key] for null in nulls.values()], long_name=words)
    labels = labels_of(members)
    data = xr.Dataset(
        variables,
        coords={
            "direction": np.array(labels),
            "other": np.array(labels),
            "null": np.array(list(nulls)),
            "site": ("direction", np.array([one.site for one in members])),
            "source": ("direction", np.array([one.source for one in members])),
            "scale": ("direction", np.array([one.scale for one in members])),
        },
        attrs={
            "d": d,
            "n_directions": n,
            "n_pairs": len(pairs[0]),
            "control": f"random directions in {d} dimensions (exact)"
            + (
                f"; {min(n_null, MOST_DRAWN)}² pairs with the covariance of {reference.numel() // d} activations"
                if reference is not None
                else ""
            ),
        },
    )
    flat = np.abs(cosines[pairs])
    top = int(flat.argmax())
    i, j = int(pairs[0][top]), int(pairs[1][top])
    summary = {
        "n_directions": n,
        "d": d,
        "n_pairs": len(flat),
        "largest": {"pair": [labels[i], labels[j]], "cosine": round(float(cosines[i, j]), 4)},
        "band": {name: round(null["band"], 4) for name, null in nulls.items()},
        "band_of_all": {name: round(null["band_of_all"], 4) for name, null in nulls.items()},
        "outside": {name: int((flat > null["band_of_all"]).sum()) for name, null in nulls.items()},
    }
    where = provenance(
        None,
        seed=seed if reference is not None else None,
        seconds={"cosines": time.perf_counter() - started},
        settings={"fingerprint": fingerprint},
    )
    return Result("direction_cosines", data, where, summary)


def labels_of(directions: Sequence[Direction]) -> list[str]:
    """A label for each: its name, with the site where several sites or equal names are present."""
    names = [d.name or d.source or "direction" for d in directions]
    if len({d.site for d in directions}) > 1:
        names = [f"{name} @ {d.site}" for name, d in zip(names, directions, strict=True)]
    found: list[str] = []
    for name in names:
        label, number = name, 2
        while label in found or (label != name and label in names):  # no label that is another's name
            label, number = f"{name} ({number})", number + 1
        found.append(label)
    return found


def _parts(rows: Tensor) -> Iterator[Tensor]:
    """The rows as float64 on the CPU, `ROWS_AT_ONCE` at a time: as many random numbers a draw are held at once."""
    return (part.cpu().double() for part in rows.split(ROWS_AT_ONCE))


def _reference_null(rows: Tensor, n_pairs: int, n_null: int, seed: int) -> dict[str, float]:
    """|cos| between vectors drawn with the covariance of rows: Xᵀ g, with X centred and g standard normal."""
    if len(rows) < 2 or n_null < 20:
        raise DataError(
            f"The reference null needs at least 2 activations and 20 draws, not {len(rows)} and {n_null}."
        )
    total = torch.zeros(rows.shape[1], dtype=torch.float64)
    for part in _parts(rows):
        if not bool(torch.isfinite(part).all()):
            raise DataError("Some of the reference activations are NaN or infinite: leave those rows out.")
        total += part.sum(0)
    mean, generator = total / len(rows), torch.Generator().manual_seed(seed)
    n_null = min(n_null, MOST_DRAWN)
    drawn = [torch.zeros(n_null, rows.shape[1], dtype=torch.float64) for _ in "ab"]
    for side in drawn:
        for part in _parts(rows):
            normal = torch.randn(n_null, len(part), generator=generator, dtype=torch.float64)
            side += normal @ (part - mean)
    a, b = (x / x.norm(dim=1, keepdim=True).clamp(min=1e-300) for x in drawn)
    sizes = (
        (a @ b.T).abs().flatten().numpy()
    )  # every a with every b: the quantile below lies far out in the tail
    of_all = float(np.quantile(sizes, 0.95 ** (1 / n_pairs)))
    return {
        "rms": float(np.sqrt((sizes**2).mean())),
        "mean": float(sizes.mean()),
        "band": float(np.quantile(sizes, 0.95)),
        "band_of_all": of_all,
    }
