"""Principal angles between the spans of two sets of directions.

    cos θ_k = k-th singular value of Q_Aᵀ Q_B        0 ≤ θ_1 ≤ θ_2 ≤ …, as many as the smaller span has dimensions

θ_1 is the smallest angle between a direction of one span and one of the other (0: they share a direction), the last is
the largest that is left. (Björck and Golub 1973; `scipy.linalg.subspace_angles`, exact for small angles too.) In high
dimensions even random spans come near each other when they are large, so random spans of the same dimensions stand
beside: mean and 95 % band over `n_null` draws.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np
import xarray as xr
from scipy.linalg import subspace_angles

from workbench.directions.algebra import members, span
from workbench.directions.checks import checked_seed, together
from workbench.directions.direction import Direction
from workbench.errors import DataError
from workbench.provenance import provenance
from workbench.results import Result, array


def principal_angles(
    a: Direction | Iterable[Direction],
    b: Direction | Iterable[Direction],
    *,
    n_null: int = 200,
    seed: int = 0,
    force: bool = False,
) -> Result:
    """Angles between two spans, the smallest first.

    Args:
        a, b: directions or sets of them, all of one width, site and model.
        n_null: pairs of random spans of the same dimensions.
        seed: for drawing them.
        force: compare directions of different models.

    Returns:
        A `Result` of kind `direction_angles`: dim `angle`; variables `degrees`, `null_mean`, `null_low`, `null_high`
        (95 % band of random spans). `summary` has the dimensions of both spans and the smallest and largest angle.

    Raises:
        DataError: an empty set, directions that do not go together, or a seed that is not a number from 0 on.

    Example:
        >>> DirectionSet(personas).principal_angles(DirectionSet(emotions)).summary
    """
    started = time.perf_counter()
    first, second, seed = members(a), members(b), checked_seed(seed)
    if not first or not second or n_null < 20:
        raise DataError(
            f"Principal angles need a direction on each side and 20 draws of the null: {len(first)}, {len(second)} "
            f"directions and {n_null} draws were given."
        )
    fingerprint = together([*first, *second], "A principal angle", force=force)
    spans = [span([d.vector for d in group]).numpy() for group in (first, second)]
    angles = _angles(*spans)
    d, sizes = first[0].width, [len(s) for s in spans]
    draw = np.random.default_rng(seed)
    null = np.stack([_angles(*(draw.standard_normal((k, d)) for k in sizes)) for _ in range(n_null)])
    low, high = np.quantile(null, [0.025, 0.975], axis=0)
    units = {"units": "degrees"}
    data = xr.Dataset(
        {
            "degrees": array(("angle",), angles, long_name="principal angle", **units),
            "null_mean": array(("angle",), null.mean(0), long_name="mean of random spans", **units),
            "null_low": array(("angle",), low, long_name="95 % band of random spans, lower end", **units),
            "null_high": array(("angle",), high, long_name="95 % band of random spans, upper end", **units),
        },
        coords={"angle": np.arange(1, len(angles) + 1)},
        attrs={
            "d": d,
            "site": first[0].site,
            "dimensions": sizes,
            "n_directions": [len(first), len(second)],
            "control": f"{n_null} pairs of random spans of {sizes[0]} and {sizes[1]} dimensions",
        },
    )
    summary = {
        "dimensions": sizes,
        "d": d,
        "smallest": round(float(angles[0]), 2),
        "largest": round(float(angles[-1]), 2),
        "random_smallest": [round(float(low[0]), 2), round(float(high[0]), 2)],
    }
    where = provenance(
        None,
        seed=seed,
        seconds={"angles": time.perf_counter() - started},
        settings={"fingerprint": fingerprint},
    )
    return Result("direction_angles", data, where, summary)


def _angles(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Degrees, ascending, between the row spans."""
    return np.degrees(np.sort(subspace_angles(a.T, b.T)))
