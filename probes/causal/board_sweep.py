"""Probing a whole board at every site: error per square, beside majority, shuffled labels and an untrained model.

Rows are split by group (game, maze) into training, validation and test. For every site, label set and kind of probe

    error[s] = share of test rows in which the probe's first choice for square s is not the label
    exact    = share of test rows with no error on any square

Baselines: the majority class of each square among the training rows; the same for each square *and* position
(what one knows from the number of moves alone). Controls: labels of another group at the same position (whole
boards change places, so their structure stays); the same probe on the activations of another model, as a rule
one with random weights. Intervals: 95 %, from resampling test groups (wrong rows over rows of the groups drawn).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from probes.causal.squares import SquareLogits, fit_linear, fit_mlp, wrong_squares
from workbench.errors import DataError
from workbench.progress import Progress, Silent
from workbench.provenance import provenance
from workbench.results import Result, array

KINDS = {"linear": fit_linear, "mlp": fit_mlp}
TEST_SHARE, VALIDATION_SHARE = 0.25, 0.1


def board_sweep(
    rows: Mapping[str, Tensor],
    labels: Mapping[str, np.ndarray],
    groups: np.ndarray,
    position: np.ndarray,
    *,
    n_classes: int,
    kinds: Sequence[str] = ("linear",),
    controls: bool = True,
    untrained: Mapping[str, Tensor] | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    model: Any = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Result, dict[tuple[str, str, str], SquareLogits]]:
    """Fit probes of all squares at every site and measure them on groups they have not seen.

    Args:
        rows: site -> [row, d] activations.
        labels: name (a coding, for instance) -> [row, square] classes from 0.
        groups: [row] game or maze; never on both sides of the split.
        position: [row] token position (or anything that is the same in comparable rows).
        n_classes: of every square.
        kinds: `linear`, `mlp`.
        controls: also fit the linear probe to labels of other groups.
        untrained: site -> [row, d] of the same rows through a model with random weights; the linear probe is fitted.
        settings: kind -> arguments of `fit_linear` or `fit_mlp`; those of `linear` are also the controls'.
        model: for the provenance.
        seed: of the split, the shuffling and the resampling.
        progress: one item per fit.

    Returns:
        A `Result` of kind `probe_board` with dims (site, labels, kind, square), kinds `shuffled` and `untrained`
        beside those asked for, and the probes by (site, labels, kind).

    Raises:
        DataError: numbers of rows that differ, too few groups, an unknown kind, settings of a kind that is not fitted,
            NaN activations, labels that are no classes.
    """
    progress, started = progress or Silent(), time.perf_counter()
    labels = {name: np.asarray(y) for name, y in labels.items()}
    groups, position = np.asarray(groups), np.asarray(position)
    n, n_squares = _checked(rows, labels, groups, position, kinds, untrained, n_classes)
    fitted = {*kinds, *(["linear"] if controls or untrained is not None else [])}
    idle = [kind for kind in settings or {} if kind not in fitted]
    if idle:
        raise DataError(f"There are settings for {idle[0]!r}, but fitted are {', '.join(sorted(fitted))}.")
    test, validation = split_groups(groups, seed=seed)
    fit = ~test
    fit_rows = torch.from_numpy(fit)
    wanted: list[tuple[str, str, Mapping[str, Tensor], bool]] = [(k, k, rows, False) for k in kinds]
    wanted += [("shuffled", "linear", rows, True)] if controls else []
    wanted += [("untrained", "linear", untrained, False)] if untrained is not None else []
    progress.stage("probe boards", len(rows) * len(labels) * len(wanted))
    shape = (len(rows), len(labels), len(wanted))
    error, wrong_rows = np.zeros((*shape, n_squares)), np.zeros((*shape, int(test.sum()), 2))
    probes: dict[tuple[str, str, str], SquareLogits] = {}
    partner = shuffle_boards(groups, position, test, seed=seed)
    for i, site in enumerate(rows):
        for j, (name, y) in enumerate(labels.items()):
            for k, (called, kind, source, shuffled) in enumerate(wanted):
                target = y[partner] if shuffled else y
                more = (settings or {}).get(kind, {})
                x = source[site]
                probe = KINDS[kind](x[fit_rows], target[fit], validation[fit], n_classes=n_classes, **more)
                wrong = wrong_squares(probe, x[~fit_rows], target[test])
                error[i, j, k] = wrong.mean(0)
                wrong_rows[i, j, k] = np.stack([wrong.mean(1), ~wrong.any(1)], 1)
                probes[site, name, called] = probe
                progress.advance()
    data = _dataset(
        error, wrong_rows, list(rows), labels, [w[0] for w in wanted], groups, position, fit, seed
    )
    own = float((groups[partner] == groups).mean())
    data.attrs |= {
        "shuffled_in_own_group": own,
        "n_rows": n,
        "n_test": int(test.sum()),
        "n_groups": len(np.unique(groups)),
        "n_classes": n_classes,
    }
    seconds = {"board_sweep": time.perf_counter() - started}
    return Result("probe_board", data, provenance(model, seed=seed, seconds=seconds), _summary(data)), probes


def split_groups(groups: np.ndarray, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """bool [row] test and validation rows; no group is in two parts."""
    known = np.random.default_rng(seed).permutation(np.unique(groups))
    n_test, n_validation = round(len(known) * TEST_SHARE), max(1, round(len(known) * VALIDATION_SHARE))
    if n_test < 2 or len(known) - n_test - n_validation < 1:
        raise DataError(f"{len(known)} groups are too few to train, validate and test on: give at least 8.")
    test, validation = known[:n_test], known[n_test : n_test + n_validation]
    return np.isin(groups, test), np.isin(groups, validation)


def shuffle_boards(groups: np.ndarray, position: np.ndarray, test: np.ndarray, *, seed: int) -> np.ndarray:
    """[row] the row whose label each row gets: another group's at the same position, of the same part of the split.

    A position that one group fills more than half of has not enough others; some of its rows then keep their own
    group.
    """
    rank = np.argsort(np.random.default_rng(seed + 1).permutation(len(np.unique(groups))))
    _, number = np.unique(groups, return_inverse=True)
    partner = np.arange(len(groups))
    for part in (test, ~test):
        for at in np.unique(position[part]):
            here = np.flatnonzero(part & (position == at))
            order = here[np.argsort(rank[number[here]], kind="stable")]
            partner[order] = np.roll(order, int(np.bincount(number[here]).max()))
    return partner


def _checked(rows, labels, groups, position, kinds, untrained, n_classes) -> tuple[int, int]:
    if not rows or not labels:
        raise DataError("Give at least one site and one set of labels.")
    unknown = [kind for kind in kinds if kind not in KINDS]
    missing = [] if untrained is None else [site for site in rows if site not in untrained]
    if missing:
        raise DataError(
            f"The untrained model's activations lack the site {missing[0]!r}: give the same rows at all of "
            f"{', '.join(map(repr, rows))}."
        )
    if unknown or not kinds or len(set(kinds)) < len(kinds):
        raise DataError(f"Kinds of probe are {', '.join(KINDS)}, each once; given {list(kinds)}.")
    sizes = {"groups": len(groups), "position": len(position)}
    sizes |= {name: len(x) for name, x in (*rows.items(), *labels.items())}
    sizes |= {f"{site} (untrained)": len(untrained[site]) for site in rows} if untrained is not None else {}
    if len(set(sizes.values())) > 1:
        raise DataError(f"All must have one entry per row, but there are {sizes}.")
    for name, y in labels.items():  # of all rows: a fit sees those of its part only
        if y.ndim != 2 or y.dtype.kind not in "iub":
            raise DataError(
                f"Labels {name!r} must be class numbers [row, square], not {y.dtype} of shape {list(y.shape)}."
            )
        if y.min(initial=0) < 0 or y.max(initial=0) >= n_classes:
            raise DataError(
                f"Labels {name!r} go from {y.min()} to {y.max()}; with {n_classes} classes 0 to {n_classes - 1}."
            )
    for site in rows:
        for x in (rows[site], *([] if untrained is None else [untrained[site]])):
            bad = int((~torch.isfinite(x).flatten(1).all(1)).sum())
            if bad:
                raise DataError(
                    f"{bad} of {len(x)} rows at {site!r} hold NaN or infinite values: leave them out."
                )
    widths = {y.shape[1] for y in labels.values()}
    if len(widths) > 1:
        raise DataError(f"Sets of labels have {sorted(widths)} squares: give those of one board.")
    return len(groups), widths.pop()


def _dataset(error, per_row, sites, labels, kinds, groups, position, fit, seed) -> xr.Dataset:
    low, high = _interval(per_row, groups[~fit], seed)
    mean = per_row.mean(-2)
    majority, by_position, exact = [], [], []
    for y in labels.values():
        guess = _majority(y[fit])
        at = {p: _majority(y[fit & (position == p)]) for p in np.unique(position[fit]).tolist()}
        each = np.stack([at.get(p, guess) for p in position[~fit].tolist()])
        majority.append((y[~fit] != guess).mean(0))
        by_position.append((y[~fit] != each).mean(0))
        exact.append((y[~fit] == each).all(1).mean())
    dims = ("site", "labels", "kind")
    variables = {
        "error": array((*dims, "square"), error, long_name="share of test rows with this square wrong"),
        "majority_error": array(
            ("labels", "square"), majority, long_name="error of each square's majority class"
        ),
        "position_error": array(
            ("labels", "square"), by_position, long_name="error of the majority of each square and position"
        ),
        "position_exact": array(("labels",), exact, long_name="exact boards by that majority"),
    }
    for i, name in enumerate(("mean_error", "exact")):
        text = ("mean error over squares", "share of boards without an error")[i]
        variables[name] = array(dims, mean[..., i], long_name=text)
        variables[f"{name}_low"] = array(dims, low[..., i], long_name=f"{text}, lower end (95 %, groups)")
        variables[f"{name}_high"] = array(dims, high[..., i], long_name=f"{text}, upper end")
    coords = {"site": sites, "labels": list(labels), "kind": kinds, "square": np.arange(error.shape[-1])}
    return xr.Dataset(variables, coords)


def _interval(
    per_row: np.ndarray, groups: np.ndarray, seed: int, n: int = 1000
) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of the share over rows [..., row, number]: groups are drawn, and so is how many rows they have."""
    _, where, counts = np.unique(groups, return_inverse=True, return_counts=True)
    sums = np.stack([per_row[..., where == g, :].sum(-2) for g in range(len(counts))])
    drawn = np.random.default_rng(seed).multinomial(
        len(counts), np.full(len(counts), 1 / len(counts)), size=n
    )
    shares = np.tensordot(drawn, sums, axes=1) / (drawn @ counts).reshape(-1, *[1] * (sums.ndim - 1))
    low, high = np.quantile(shares, [0.025, 0.975], axis=0)
    return low, high


def _majority(y: np.ndarray) -> np.ndarray:
    counts = np.stack([(y == c).sum(0) for c in range(int(y.max(initial=0)) + 1)])
    return counts.argmax(0)


def _summary(data: xr.Dataset) -> dict[str, Any]:
    found: dict[str, Any] = {"n_test": data.attrs["n_test"], "n_groups": data.attrs["n_groups"]}
    for name in data["labels"].values:
        for kind in data["kind"].values:
            one = data.sel(labels=name, kind=kind)
            at = int(one["mean_error"].values.argmin())
            found[f"{name}, {kind}"] = {
                "error": round(float(one["mean_error"][at]), 4),
                "interval": [round(float(one[f"mean_error_{end}"][at]), 4) for end in ("low", "high")],
                "exact": round(float(one["exact"][at]), 4),
                "site": str(one["site"].values[at]),
            }
        found[f"{name}, majority"] = round(float(data["majority_error"].sel(labels=name).mean()), 4)
        found[f"{name}, majority by position"] = round(
            float(data["position_error"].sel(labels=name).mean()), 4
        )
    return found
