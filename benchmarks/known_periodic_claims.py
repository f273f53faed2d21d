"""Claims of the papers about periodic codes, with a verdict that follows from the numbers beside it."""

from __future__ import annotations

from typing import Any

import numpy as np


def periods_text(values: np.ndarray) -> str:
    return ", ".join(f"{T:.3g}" for T in values if np.isfinite(T))


def best(data: Any, target: str, at: str, what: str = "r2") -> float:
    """A score at the layer where R² is best."""
    here = data.sel(target=target).isel(position=list(data["at"].values).index(at))
    return float(
        here[what].isel(layer=int(np.nanargmax(here["r2"].values)))
        if "layer" in here[what].dims
        else here[what]
    )


def _verdict(kind: bool, whole: bool = False, testable: bool = True) -> str:
    if not testable:
        return "cannot be tested at this size"
    return "holds" if whole else "holds in kind" if kind else "does not hold"


def claims(found: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a claim; `found` holds the results by name."""
    keys = ("claim", "source", "verdict", "numbers")
    every = (*_helix_claims(found), *_fourier_claims(found), *_sum_claims(found))
    return [{"table": "claim", **dict(zip(keys, one, strict=True))} for one in every]


def _helix_claims(found: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    sweep, decimal, own, last = (found[name] for name in ("sweep", "decimal", "own", "last"))
    r2 = {str(b): float(sweep["r2"].sel(layer=1, basis=b, k=9)) for b in sweep["basis"].values}
    mine, tens = (
        {str(s): float(data["mean_success"].sel(layer=0, source=s)) for s in data["source"].values}
        for data in (own, decimal)
    )
    later = own.sel(layer=1)
    ends = [
        float(own[f"helix_minus_success{end}"].sel(layer=0, source="pca")) for end in ("", "_low", "_high")
    ]
    share = float(own["share"].sel(layer=0, source="helix"))
    followed, null = (
        float(later["mean_success"].sel(source="layer")),
        float(later["share"].sel(source="permuted")),
    )
    end, between = last["r2"].sel(basis="chosen", k=9).values, last["between"].values
    at = int(np.argmax(end / between))
    return [
        (
            "Numbers lie on a helix with the periods 2, 5, 10 and 100",
            "2502.00873",
            _verdict(r2["helix"] > 0.5, whole=r2["helix"] > 0.9),
            f"R² {r2['helix']:.3f} at layer 1: each number is a word of its own, nothing in the data is decimal",
        ),
        (
            "Numbers lie on a helix: a line and a few circles",
            "2502.00873",
            _verdict(r2["chosen"] > 0.9 and r2["chosen"] > r2["polynomial"] + 0.1),
            f"with its own periods R² {r2['chosen']:.3f} at layer 1, polynomial {r2['polynomial']:.3f}, nine "
            "components "
            f"{r2['pca']:.3f}; periods {periods_text(own['period'].values[1, 0])}: a circle of about 38 and "
            "its harmonics",
        ),
        (
            "A helix put in at a does nearly what the true activation does",
            "2502.00873",
            _verdict(mine["helix"] > 0.8 and mine["permuted"] < 0.1, whole=tens["helix"] > 0.8),
            f"layer 0, new numbers held out: right answer {mine['helix']:.2f} (true activation {mine['layer']:.2f}, "
            f"permuted {mine['permuted']:.3f}), share of the effect {share:.2f}; decimal periods {tens['helix']:.2f}",
        ),
        (
            "It does better than as many principal components, a polynomial or a circle",
            "2502.00873",
            _verdict(ends[1] > 0 and mine["helix"] > max(mine["polynomial"], mine["circle"]) + 0.1),
            f"right answer {mine['helix']:.2f}, components {mine['pca']:.2f} (difference {ends[0]:.2f}, "
            f"{ends[1]:.2f} to "
            f"{ends[2]:.2f}), circle {mine['circle']:.2f}, polynomial {mine['polynomial']:.2f}; periods are "
            "the model's own",
        ),
        (
            "Later layers, too, are read through the helix at a",
            "2502.00873",
            _verdict(False, testable=followed > 0.5),
            "the first block has taken a to other tokens: with the true activation at layer 1 the answer follows in "
            f"{followed:.3f}, and permuted numbers have {null:.2f} of its effect",
        ),
        (
            "The last token holds a helix of a + b",
            "2502.00873",
            _verdict(end[at] > 0.7 * between[at], whole=end[at] > 0.9 * between[at]),
            f"after block {at} R² {end[at]:.3f}, where a function of a + b can have {between[at]:.3f}; after the last "
            f"block {end[-1]:.3f} of {between[-1]:.3f}: the answer is written there as the unembedding wants it",
        ),
    ]


def _fourier_claims(found: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    addition, modular = (
        found["spectra"][name].sel(table="embedding", removed="mean")
        for name in ("addition", "modular-addition")
    )
    strongest = [float(addition["period"][i]) for i in np.argsort(-addition["power"].values)[:6]]
    outliers = sum(any(abs(T - p) < 0.05 for T in strongest) for p in (2, 2.5, 5, 10))
    share, null = (float(modular[name].sel(top=6)) for name in ("share", "null_share_high"))
    six, six_null = (float(addition[name].sel(top=6)) for name in ("share", "null_share_high"))
    digits = found["digits"]
    return [
        (
            "Embeddings of numbers have outliers at the periods 2, 2.5, 5 and 10",
            "2406.03445",
            _verdict(outliers > 1, whole=outliers == 4),
            f"addition: {outliers} of them among the strongest six, which are "
            f"{periods_text(np.array(strongest))}; those six "
            f"hold {six:.2f} of the power, permuted at most {six_null:.2f}",
        ),
        (
            "The embedding of modular addition is sparse in frequencies",
            "2301.05217",
            _verdict(share > 0.7, whole=share > 0.9 and null < 0.3),
            f"{share:.3f} of the power in 6 of 56, permuted at most {null:.3f}",
        ),
        (
            "Digits are stored in the Fourier basis of periods 10, 5 and 2",
            "2510.00184",
            _verdict(
                min(d["r2"] for d in digits.values()) > 0.8,
                whole=min(d["r2"] for d in digits.values()) > 0.95,
            ),
            f"multiplication-cot: embedding R² {digits['embedding']['r2']:.2f} (p "
            f"{digits['embedding']['p_value']:.3f}), "
            f"unembedding {digits['unembedding']['r2']:.2f} (p {digits['unembedding']['p_value']:.3f}); any "
            "ten rows have "
            f"{5 / 9:.2f}",
        ),
    ]


def _sum_claims(found: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    cot, direct = found["multiplication-cot"], found["multiplication-direct"]
    places = [str(at) for at in cot["at"].values][:9]
    nexts, beyond, maes = ([best(cot, "next", at, what) for at in places] for what in ("r2", "beyond", "mae"))
    ahead = {k: (best(cot, k, "="), best(cot, k, "=", "visible_r2")) for k in ("c_1", "c_2", "c_3", "c_4")}
    gains = [r2 - seen for r2, seen in ahead.values()]
    middle = best(direct, "c_2", "d1"), best(direct, "c_2", "d1", "visible_r2")
    return [
        (
            "Running sums can be read linearly",
            "2510.00184",
            _verdict(min(nexts) > 0.9 and min(beyond) > 0.3, whole=max(maes) < 1),
            f"multiplication-cot, the next sum before it is written: R² {min(nexts):.3f} to {max(nexts):.3f}, "
            "of what the "
            f"text leaves {min(beyond):.2f} to {max(beyond):.2f}; mean absolute error {min(maes):.2f} to "
            f"{max(maes):.2f} "
            "(the paper: below 1)",
        ),
        (
            "Running sums of later columns are there before they are asked for",
            "2510.00184, whose model writes no steps",
            _verdict(max(gains) > 0.05),
            "multiplication-cot at `=`, against the digits alone: "
            + ", ".join(f"{k} {r2:.2f} and {seen:.2f}" for k, (r2, seen) in ahead.items()),
        ),
        (
            "A model that fails at multiplication has no running sums of the middle columns",
            "2510.00184",
            _verdict(middle[0] < middle[1] + 0.05, whole=middle[0] < middle[1]),
            f"multiplication-direct before digit 2: c_2 {middle[0]:.2f} (digits alone {middle[1]:.2f}); before "
            "digit 0: c_0 "
            f"{best(direct, 'c_0', '#'):.2f}",
        ),
    ]
