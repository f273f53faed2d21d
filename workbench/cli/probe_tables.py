"""Results of probing as the few rows worth reading in a terminal: score, interval, control."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

    from workbench.results import Result

Table = tuple[list[str], list[list[str]]]
N_SHOWN = 120
"""So many rows at most; a table that is cut says "n of N" in its first column."""
INTERVAL = "95 % interval"


def table(result: Result) -> Table:
    """Columns and cells of one of `KINDS`."""
    return _TABLES[result.kind](result.data)


def _along(data: xr.Dataset) -> str:
    return "layer" if "layer" in data.dims else "site"


def _number(value: Any, form: str = ".3f") -> str:
    return f"{float(value):{form}}" if np.isfinite(float(value)) else "–"


def _between(at: Any, name: str) -> str:
    low, high = (float(at[f"{name}_{end}"]) for end in ("low", "high"))
    return f"[{low:.3f}, {high:.3f}]" if np.isfinite([low, high]).all() else "–"


def _or_not_run(at: Any, name: str) -> str:
    return _number(at[name]) if name in at else "not run"


def _cells(data: xr.Dataset, name: str, last: tuple[str, ...] = ()) -> tuple[list[str], list[Any], int]:
    """Dims, cells (with their coordinates in reach) and how many there are; of too many the highest, in order."""
    dims = [str(dim) for dim in data[name].dims if dim not in last]
    sizes = [data.sizes[dim] for dim in dims]
    places = list(np.ndindex(*sizes))
    if len(places) > N_SHOWN:
        values = data[name].values
        best = sorted(places, key=lambda place: -np.nan_to_num(values[place], nan=-np.inf).max())[:N_SHOWN]
        places = sorted(best)
    return dims, [data.isel(dict(zip(dims, place, strict=True))) for place in places], int(np.prod(sizes))


def _head(dims: list[str], shown: int, n: int) -> list[str]:
    return [f"{dims[0]} (best {shown} of {n})" if shown < n else dims[0], *dims[1:]]


def _sweep(data: xr.Dataset) -> Table:
    dims, cells, n = _cells(data, "auc")
    more: list[tuple[str, Callable[[Any], str]]] = [("accuracy", lambda at: _number(at["accuracy"]))]
    if "accuracy_low" in data:
        more.append((INTERVAL, lambda at: _between(at, "accuracy")))
    more.append(("majority", lambda at: _number(at.coords.get("majority_accuracy", _majority(data)))))
    if "calibration_error" in data:
        more.append(("calibration error", lambda at: _number(at["calibration_error"])))
    if "penalty" in data and bool(data["penalty"].notnull().any()):
        more.append(("C", lambda at: _number(at["penalty"], "g")))
    columns = [
        *_head(dims, len(cells), n),
        "AUC",
        INTERVAL,
        "shuffled-label AUC",
        *(name for name, _ in more),
    ]
    return columns, [
        [*_place(at, dims), _number(at["auc"]), _between(at, "auc"), _or_not_run(at, "control_auc")]
        + [read(at) for _, read in more]
        for at in cells
    ]


def _place(at: Any, dims: list[str]) -> list[str]:
    return [str(at[dim].item()) for dim in dims]


def _majority(data: xr.Dataset) -> float:
    return float(data.attrs.get("majority_accuracy", np.nan))


def _numbers(data: xr.Dataset) -> Table:
    dims, cells, n = _cells(data, "r2")
    columns = [*_head(dims, len(cells), n), "R²", INTERVAL, "permuted R²", "mean abs. error", "alpha"]
    return columns, [
        [
            *(str(at[dim].item()) for dim in dims),
            _number(at["r2"]),
            _between(at, "r2"),
            _or_not_run(at, "control_r2"),
            _number(at["mae"], ".4g"),
            _number(at["penalty"], "g"),
        ]
        for at in cells
    ]


def _trust(data: xr.Dataset) -> Table:
    """Every control at the probe's best layer."""
    first = _along(data)
    best = int(np.nanargmax(data["auc"].sel(control="probe").values))
    at = data.isel({first: best})
    columns = [f"at {first} {at[first].item()}", "AUC", INTERVAL, "probe − this", INTERVAL, "accuracy"]
    rows = []
    for name in at["control"].values:
        one = at.sel(control=name)
        behind = (
            ["", ""] if name == "probe" else [_number(one["difference"], "+.3f"), _between(one, "difference")]
        )
        rows.append([str(name), _number(one["auc"]), _between(one, "auc"), *behind, _number(one["accuracy"])])
    return columns, rows


def _transfer(data: xr.Dataset) -> Table:
    dims, cells, n = _cells(data, "auc")
    columns = [
        *_head(dims, len(cells), n),
        "AUC",
        INTERVAL,
        "permuted AUC",
        "drop",
        "cosine",
        "accuracy",
        "n",
    ]
    return columns, [
        [
            *(str(at[dim].item()) for dim in dims),
            _number(at["auc"]),
            _between(at, "auc"),
            _or_not_run(at, "control_auc"),
            _number(at["drop"], "+.3f"),
            _number(at["cosine"], "+.2f"),
            _number(at["accuracy"]),
            str(int(at["n"])),
        ]
        for at in cells
    ]


def _causal(data: xr.Dataset) -> Table:
    """The change at each strength, along the probe and along random directions."""
    rows = []
    for strength in data["strength"].values:
        at = data.sel(strength=strength)
        probe, random = (at.sel(direction=name) for name in ("probe", "random"))
        rows.append(
            [
                f"{float(strength):+g}",
                _number(probe["mean_change"], "+.3f"),
                _between(probe, "change"),
                _number(random["mean_change"], "+.3f"),
                _between(random, "change"),
                _number(at["difference"], "+.3f"),
                _between(at, "difference"),
            ]
        )
    columns = ["strength", f"probe: change of {data.attrs['metric']}", INTERVAL, "random", INTERVAL]
    return [*columns, "probe − random", INTERVAL], rows


def _mil(data: xr.Dataset) -> Table:
    dims, cells, n = _cells(data, "mcc")
    columns = [*_head(dims, len(cells), n), "MCC", INTERVAL, "shuffled MCC", "accuracy", "coverage"]
    columns += ["abstained", "right of the answers"]
    rows = []
    for at in cells:
        every = at.sel(of="all")
        row = [
            str(at[dims[0]].item()),
            _number(at["mcc"]),
            _between(at, "mcc"),
            _or_not_run(at, "control_mcc"),
        ]
        row += [
            _number(at["accuracy"]),
            *(_number(every[k]) for k in ("coverage", "abstention", "accuracy_answered")),
        ]
        rows.append(row)
    return columns, rows


def _erasure(data: xr.Dataset) -> Table:
    columns = ["rows", "eraser", "accuracy", INTERVAL, "drop", "AUC", "log-loss (nats)", "dimensions"]
    return columns, [
        [
            str(rows),
            str(eraser).replace("_", " "),
            _number(at["accuracy"]),
            _between(at, "accuracy"),
            _number(at["drop"], "+.3f"),
            _number(at["auc"]) if "auc" in at else "–",
            _number(at["log_loss"]),
            _number(at["rank"], "g"),
        ]
        for rows in data["rows"].values
        for eraser in data["eraser"].values
        for at in [data.sel(rows=rows, eraser=eraser)]
    ]


def _sparse(data: xr.Dataset) -> Table:
    columns = ["latents", "AUC", INTERVAL, "behind the dense probe", INTERVAL, "shuffled-label AUC"]
    rows = [
        [
            str(int(k)),
            _number(at["auc"]),
            _between(at, "auc"),
            _number(at["auc_gap"], "+.3f"),
            _between(at, "auc_gap"),
            _or_not_run(at, "control_auc"),
        ]
        for k in data["k"].values
        for at in [data.sel(k=k)]
    ]
    dense = [
        f"all {data.attrs['d_dense']} dimensions",
        _number(data["dense_auc"]),
        _between(data, "dense_auc"),
    ]
    return columns, [*rows, [*dense, "", "", _or_not_run(data, "dense_control_auc")]]


def _apply(data: xr.Dataset) -> Table:
    n, shown = data.sizes["prompt"], min(N_SHOWN, data.sizes["prompt"])
    head = f"text (first {shown} of {n})" if shown < n else "text"
    if "value" in data:
        rows = [
            [str(at["prompt_text"].item()), str(np.round(at["value"].values, 4))]
            for at in _prompts(data, shown)
        ]
        return [head, "value"], rows
    columns = [head, "read at", "answer", "probability"] + ["label"] * ("label" in data.coords)
    rows = []
    for at in _prompts(data, shown):
        row = [str(at["prompt_text"].item()), repr(str(at["token"].item())), str(at["answer"].item())]
        row.append(_number(at["probability"].max()))
        rows.append([*row, str(at["label"].item())] if "label" in data.coords else row)
    return columns, rows


def _prompts(data: xr.Dataset, n: int) -> list[Any]:
    return [data.isel(prompt=i) for i in range(n)]


_TABLES: dict[str, Callable[[xr.Dataset], Table]] = {
    "probe_sweep": _sweep,
    "probe_numbers": _numbers,
    "probe_trust": _trust,
    "probe_transfer": _transfer,
    "probe_causal": _causal,
    "probe_mil": _mil,
    "probe_erasure": _erasure,
    "probe_sparse": _sparse,
    "probe_apply": _apply,
}
KINDS = tuple(_TABLES)
