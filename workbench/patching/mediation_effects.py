"""The forms of a mediated effect, and how much of it lies in a set of components.

With P the probabilities of a base run, P* those of the same run patched, r its result and r' the other one:

    a = log P*(r') - log P(r')          how much more likely r' became
    b = log P(r) - log P*(r)            how much less likely r became

    effect     = ½ [a + b]                                   in nats
    relative   = ½ [(e^a - 1) + (e^b - 1)]                   = ½ [(P*(r') - P(r')) / P(r') + (P(r) - P*(r)) / P*(r)]
    change     = |P(r) - P*(r)|                              of the probability of the base run's own result

`relative` is Stolfo et al.'s (2023, arXiv:2305.15054). It divides by probabilities, so a pair whose r' was out of
question (P(r') = 1e-9, say) counts a million times as much as one where it was likely, and a mean over pairs is the
value of one of them. `effect` is the same to first order (e^x - 1 = x + x²/2 + …), never larger, and does not explode:
since both logarithms of a run have one normaliser, it is exactly half the change of the logit difference r' - r, the
same whatever set of candidates probabilities are normalised over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from workbench.errors import DataError
from workbench.results import Result
from workbench.statistics import bootstrap_interval

FORMS = {
    "effect": "½ [log P*(r') − log P(r') + log P(r) − log P*(r)], nats",
    "relative_effect": "½ [(P*(r') − P(r')) / P(r') + (P(r) − P*(r)) / P*(r)]",
    "change": "|P(r) − P*(r)|",
}
"""Name of a form -> what it is."""


def forms(base: np.ndarray, patched: np.ndarray) -> dict[str, np.ndarray]:
    """All forms of an effect, from log-probabilities.

    Args:
        base: [..., 2] log P(r) and log P(r').
        patched: [..., 2] log P*(r) and log P*(r'); the leading axes broadcast against those of `base`.

    Returns:
        Name of the form -> [...].

    Example:
        >>> forms(np.log([0.5, 0.1]), np.log([0.25, 0.2]))["relative_effect"]
        1.0
    """
    with np.errstate(over="ignore"):  # infinite where it is beyond float64
        a = patched[..., 1] - base[..., 1]
        b = base[..., 0] - patched[..., 0]
        return {
            "effect": (a + b) / 2,
            "relative_effect": (np.expm1(a) + np.expm1(b)) / 2,
            "change": np.abs(np.exp(base[..., 0]) - np.exp(patched[..., 0])),
        }


def relative_importance(
    result: Result,
    *,
    components: str | Sequence[str] | None = None,
    layers: int | Sequence[int] | None = None,
    positions: int | Sequence[int] | None = None,
    of: str = "effect",
) -> dict[str, Any]:
    """Relative importance (RI) of a set of cells: their share of the summed |effect|.

        RI = Σ_{set} |IE| / Σ_{all} |IE|                    for each pair

    Args:
        result: what `mediation` returned.
        components, layers, positions: which cells; None for all. The set is every combination of them. Negative layers
            and positions count from the last of the model and of the prompt.
        of: `effect` or `relative_effect` (the paper's, on which one pair or cell may hold all of the sum), or `change`.

    Returns:
        `share`, the mean over pairs of RI, with `interval` (95 % bootstrap over pairs; None with one) and `shares` of
        the pairs; `share_of_mean`, the same of |mean effect over pairs|, in which noise that differs between pairs
        cancels; `share_of_cells`, what it would be if all cells counted alike; `control_share` of the control's
        effects, None where none was run; `cells` ("n of N"), `n_pairs`, `of`.

    Raises:
        DataError: another kind of result, a cell or form that is not in it, or effects that are 0 everywhere.

    Example:
        >>> relative_importance(result, components="mlp_out", layers=range(14, 21), positions=-1)["share"]
    """
    if result.kind != "causal_mediation":
        raise DataError(f"The result is of kind {result.kind!r}: give one of `mediation` (causal_mediation).")
    if of not in FORMS:
        raise DataError(f"of={of!r} is no form of the effect: give one of {', '.join(FORMS)}.")
    data = result.data
    chosen = {
        "component": _labels(data, "component", components, 0),
        "layer": _labels(data, "layer", layers, int(data.attrs["n_layers"])),
        "position": _labels(data, "position", positions, int(data.attrs["n_tokens"])),
    }
    size = [np.abs(data[of])]
    size += [np.abs(data[f"control_{of}"])] if f"control_{of}" in data else []
    shares = [_share(one, chosen) for one in size]
    low, high = bootstrap_interval(shares[0], result.provenance.seed or 0)
    n_cells = np.prod([len(labels) for labels in chosen.values()])
    total = np.prod([data.sizes[name] for name in chosen])
    return {
        "share": float(shares[0].mean()),
        "interval": None if len(shares[0]) < 2 else [float(low), float(high)],
        "shares": [float(s) for s in shares[0]],
        "share_of_mean": float(_share(np.abs(data[of].mean("pair")), chosen)),
        "share_of_cells": float(n_cells / total),
        "control_share": float(shares[1].mean()) if len(shares) > 1 else None,
        "cells": f"{n_cells} of {total}",
        "n_pairs": int(data.sizes["pair"]),
        "of": of,
    }


def _labels(data: xr.Dataset, dim: str, wanted: Any, count: int) -> list[Any]:
    known = data[dim].values.tolist()
    if wanted is None:
        return known
    listed = [wanted] if isinstance(wanted, (str, int)) else list(wanted)
    listed = [one if isinstance(one, str) else int(one) for one in listed]
    listed = [one + count if isinstance(one, int) and one < 0 else one for one in listed]
    outside = [one for one in listed if one not in known]
    if outside or not listed:
        problem = f"{dim} {outside[0]!r} is not in the result" if outside else f"No {dim} was asked for"
        raise DataError(f"{problem}: it has {', '.join(map(str, known))}.")
    return list(dict.fromkeys(listed))


def _share(size: Any, chosen: dict[str, list[Any]]) -> np.ndarray:
    dims = list(chosen)
    total = size.sum(dims).values
    if not np.all((total > 0) & np.isfinite(total)):
        raise DataError(
            "The effects of a pair are 0 everywhere or beyond what a float holds, so no set of cells has a share of "
            "them. Take of='effect', and pairs whose prompts differ in what the components carry."
        )
    return size.sel(chosen).sum(dims).values / total
