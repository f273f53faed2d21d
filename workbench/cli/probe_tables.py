"""Results of probing as the few rows worth reading in a terminal: score, interval, control."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.cli.cells import number, with_interval

if TYPE_CHECKING:
    import xarray as xr

    from workbench.results import Result

Table = tuple[list[str], list[list[str]]]
N_SHOWN = 120
"""So many rows at most; a table that is cut says "n of N" in its first column."""
INTERVAL = "95 % interval"
"""A value and its interval share a cell, which folds between them: so a table fits a terminal of 80 columns."""


def table(result: Result) -> Table:
    """Columns and cells of one of `KINDS`."""
    return _TABLES[result.kind](result.data)


def _along(data: xr.Dataset) -> str:
    return "layer" if "layer" in data.dims else "site"


def _constant(data: xr.Dataset, name: str) -> str | None:
    """The number that a variable has everywhere, as text; None where it varies."""
    found = np.unique(data[name].values[np.isfinite(data[name].values)])
    return number(found[0], "g") if len(found) == 1 else None


def _or_not_run(at: Any, name: str) -> str:
    return number(at[name]) if name in at else "not run"


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
    several = "majority_accuracy" in data.coords and "label" in dims
    accuracy = "accuracy" if several else f"accuracy\n(majority {number(_majority(data))})"
    more: list[tuple[str, Callable[[Any], str]]] = []
    if "accuracy_low" in data:
        more.append((f"{accuracy}\n{INTERVAL}", lambda at: with_interval(at, "accuracy")))
    else:
        more.append((accuracy, lambda at: number(at["accuracy"])))
    if several:
        more.append(("majority", lambda at: number(at.coords["majority_accuracy"])))
    if "calibration_error" in data:
        more.append(("calib.\nerror", lambda at: number(at["calibration_error"])))
    if "penalty" in data and bool(data["penalty"].notnull().any()) and _constant(data, "penalty") is None:
        more.append(("C", lambda at: number(at["penalty"], "g")))
    columns = [
        *_head(dims, len(cells), n),
        f"AUC\n{INTERVAL}",
        "shuffled\nAUC",
        *(name for name, _ in more),
    ]
    return columns, [
        [*_place(at, dims), with_interval(at, "auc"), _or_not_run(at, "control_auc")]
        + [read(at) for _, read in more]
        for at in cells
    ]


def _place(at: Any, dims: list[str]) -> list[str]:
    """Where a cell is; kinds of probe with a space, at which a narrow column folds."""
    found = {dim: str(at[dim].item()) for dim in dims}
    return [text.replace("_", " ") if dim == "probe" else text for dim, text in found.items()]


def _majority(data: xr.Dataset) -> float:
    return float(data.attrs.get("majority_accuracy", np.nan))


def _numbers(data: xr.Dataset) -> Table:
    dims, cells, n = _cells(data, "r2")
    columns = [*_head(dims, len(cells), n), f"R²\n{INTERVAL}", "permuted\nR²", "mean abs.\nerror", "alpha"]
    return columns, [
        [
            *(str(at[dim].item()) for dim in dims),
            with_interval(at, "r2"),
            _or_not_run(at, "control_r2"),
            number(at["mae"], ".4g"),
            number(at["penalty"], "g"),
        ]
        for at in cells
    ]


def _trust(data: xr.Dataset) -> Table:
    """Every control at the probe's best layer."""
    first = _along(data)
    best = int(np.nanargmax(data["auc"].sel(control="probe").values))
    at = data.isel({first: best})
    columns = [f"at {first} {at[first].item()}", f"AUC\n{INTERVAL}", f"probe − this\n{INTERVAL}", "accuracy"]
    rows = []
    for name in at["control"].values:
        one = at.sel(control=name)
        behind = "" if name == "probe" else with_interval(one, "difference", form="+.3f")
        rows.append([str(name), with_interval(one, "auc"), behind, number(one["accuracy"])])
    return columns, rows


def _transfer(data: xr.Dataset) -> Table:
    dims, cells, n = _cells(data, "auc")
    names, shared = _without_shared([str(name) for name in data["train"].values])
    head = [f"{shared}:\n{name}" if shared and name == "train" else name for name in dims]
    columns = [*_head(head, len(cells), n), f"AUC\n{INTERVAL}", "permuted\nAUC", f"drop\n{INTERVAL}"]
    return [*columns, "cosine", "accu-\nracy", "n"], [
        [
            *(names.get(place, place) for place in _place(at, dims)),
            with_interval(at, "auc"),
            _or_not_run(at, "control_auc"),
            with_interval(at, "drop", form="+.3f") if at["train"].item() != at["test"].item() else "",
            number(at["cosine"], "+.2f"),
            number(at["accuracy"]),
            str(int(at["n"])),
        ]
        for at in cells
    ]


def _without_shared(names: list[str]) -> tuple[dict[str, str], str]:
    """Names without the field they share (`negated=True`, `negated=False` -> `True`, `False`), and that field."""
    fields = {name.partition("=")[0] for name in names if "=" in name}
    if len(fields) != 1 or not all("=" in name for name in names):
        return {}, ""
    return {name: name.partition("=")[2] for name in names}, fields.pop()


def _causal(data: xr.Dataset) -> Table:
    """The change at each strength, along the probe and along random directions."""
    rows = []
    for strength in data["strength"].values:
        at = data.sel(strength=strength)
        probe, random = (at.sel(direction=name) for name in ("probe", "random"))
        rows.append(
            [
                f"{float(strength):+g}" if strength else "0",
                with_interval(probe, "change", "mean_change", "+.3f"),
                with_interval(random, "change", "mean_change", "+.3f"),
                with_interval(at, "difference", form="+.3f"),
            ]
        )
    return ["strength", *(f"{name}\n{INTERVAL}" for name in ("probe", "random", "probe − random"))], rows


def _mil(data: xr.Dataset) -> Table:
    dims, cells, n = _cells(data, "mcc")
    columns = [*_head(dims, len(cells), n), f"MCC\n{INTERVAL}", "shuffled\nMCC", "accuracy", "coverage"]
    columns += ["abstained", "right of\nthe answers"]
    rows = []
    for at in cells:
        every = at.sel(of="all")
        row = [
            str(at[dims[0]].item()),
            with_interval(at, "mcc"),
            _or_not_run(at, "control_mcc"),
        ]
        row += [
            number(at["accuracy"]),
            *(number(every[k]) for k in ("coverage", "abstention", "accuracy_answered")),
        ]
        rows.append(row)
    return columns, rows


def _erasure(data: xr.Dataset) -> Table:
    columns = [
        "rows",
        "eraser",
        f"accuracy\n{INTERVAL}",
        "drop",
        f"AUC\n{INTERVAL}",
        "log-loss\n(nats)",
        "rank",
    ]
    return columns, [
        [
            str(rows),
            str(eraser).replace("_", " "),
            with_interval(at, "accuracy"),
            "" if eraser == "none" else number(at["drop"], "+.3f"),
            (with_interval(at, "auc") if "auc_low" in at else number(at["auc"])) if "auc" in at else "–",
            number(at["log_loss"]),
            number(at["rank"], "g"),
        ]
        for rows in data["rows"].values
        for eraser in data["eraser"].values
        for at in [data.sel(rows=rows, eraser=eraser)]
    ]


def _sparse(data: xr.Dataset) -> Table:
    columns = ["latents", f"AUC\n{INTERVAL}", f"behind the dense probe\n{INTERVAL}", "shuffled\nAUC"]
    rows = [
        [
            str(int(k)),
            with_interval(at, "auc"),
            with_interval(at, "auc_gap", form="+.3f"),
            _or_not_run(at, "control_auc"),
        ]
        for k in data["k"].values
        for at in [data.sel(k=k)]
    ]
    dense = [
        f"all {data.attrs['d_dense']} dimensions",
        with_interval(data, "dense_auc"),
    ]
    return columns, [*rows, [*dense, "", _or_not_run(data, "dense_control_auc")]]


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
        row.append(number(at["probability"].max()))
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
