"""Results of patching as the few rows worth reading in a terminal.

A result with `mean_effect` (of whatever dimensions) is shown by its strongest cells; the others have a table of
their own each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

    from workbench.results import Result

Table = tuple[list[str], list[list[str]]]
N_SHOWN = 10
INTERVAL = "95 % interval"
NAMES = ("clean_token", "component_name", "set_name", "span_name", "layers")
"""Coordinates along a dimension that say more than its numbers."""


def table(result: Result) -> Table:
    """Columns and cells; none for a result that is not known here and has no effects."""
    made = _TABLES.get(result.kind)
    if made is not None:
        return made(result.data)
    means = [str(name) for name in result.data.data_vars if str(name).startswith("mean_effect")]
    return effects(result.data, means) if means else ([], [])


def effects(data: xr.Dataset, means: list[str]) -> Table:
    """The strongest cells: effect, interval, control, p-value, exact effect, as far as there are."""
    suffixes = [name.removeprefix("mean_effect") for name in means]
    found = [
        (abs(float(value)), suffix, index)
        for name, suffix in zip(means, suffixes, strict=True)
        for index, value in np.ndenumerate(data[name].values)
        if np.isfinite(value)
    ]
    n = sum(int(np.isfinite(data[name].values).sum()) for name in means)
    found = sorted(found, key=lambda cell: -cell[0])[:N_SHOWN]
    several = len(means) > 1
    over = "pair" if "pair" in data.dims else "prompt"
    n_rows = data.sizes.get(over, 1)
    dims = [] if several else [str(dim) for dim in data[means[0]].dims]
    shown = f"effect, n = {n_rows} {over}{'s' * (n_rows > 1)}"
    if len(found) < n:
        shown += f" ({len(found)} strongest of {n})"
    columns = ["kind", "cell"] if several else ["layers" if dim == "window" else dim for dim in dims]
    columns.append(shown)
    more = [column for column in _COLUMNS if any(column[1](data, suffix) is not None for suffix in suffixes)]
    rows = []
    for _, suffix, index in found:
        mean = data[f"mean_effect{suffix}"]
        labels = {str(dim): _label(data, str(dim), i) for dim, i in zip(mean.dims, index, strict=True)}
        where = (
            [suffix.removeprefix("_"), ", ".join(f"{dim} {label}" for dim, label in labels.items())]
            if several
            else list(labels.values())
        )
        cells = []
        for _, read in more:
            values = read(data, suffix)
            cells.append("–" if values is None else values(index))
        rows.append([*where, f"{float(mean.values[index]):+.3f}", *cells])
    return columns + [name for name, _ in more], rows


Reader = Callable[["xr.Dataset", str], Callable[[Any], str] | None]


def _interval(data: xr.Dataset, suffix: str) -> Callable[[Any], str] | None:
    low, high = (data.get(f"effect_{end}{suffix}") for end in ("low", "high"))
    if low is None or high is None or not np.isfinite(low.values).any():
        return None
    return lambda index: _between(float(low.values[index]), float(high.values[index]))


def _control(data: xr.Dataset, suffix: str) -> Callable[[Any], str] | None:
    control = data.get(f"control_effect{suffix}")
    if control is None:
        return None
    mean = control.mean(next(dim for dim in ("pair", "prompt") if dim in control.dims)).values
    return lambda index: f"{mean[index]:+.3f}"


def _p_value(data: xr.Dataset, suffix: str) -> Callable[[Any], str] | None:
    p = data.get(f"p_value{suffix}")
    if p is None or not np.isfinite(p.values).any():
        return None
    return lambda index: f"{p.values[index]:.3g}"


def _exact(data: xr.Dataset, suffix: str) -> Callable[[Any], str] | None:
    exact = data.get(f"exact_effect{suffix}")
    if exact is None:
        return None
    mean = exact.mean("pair").values
    return lambda index: "–" if np.isnan(mean[index]) else f"{mean[index]:+.3f}"


_COLUMNS: list[tuple[str, Reader]] = [
    (INTERVAL, _interval),
    ("control", _control),
    ("p against control", _p_value),
    ("patched exactly", _exact),
]


def _label(data: xr.Dataset, dim: str, i: int) -> str:
    """What to call a place along a dimension."""
    for name in NAMES:
        if name in data.coords and data[name].dims == (dim,):
            text = str(data[name].values[i])
            if name == "layers":
                return _stretch([int(layer) for layer in text.split()])
            return f"{i} {text!r}" if name == "clean_token" else text
    return str(data[dim].values[i]) if dim in data.coords else str(i)


def _stretch(layers: list[int]) -> str:
    """`3–7` for neighbours, else all of them."""
    if len(layers) > 1 and layers == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}–{layers[-1]}"
    return " ".join(map(str, layers))


def _between(low: float, high: float) -> str:
    return "–" if np.isnan(low) or np.isnan(high) else f"[{low:+.3f}, {high:+.3f}]"


def _share(low: float, high: float) -> str:
    return "–" if np.isnan(low) or np.isnan(high) else f"[{low:.3f}, {high:.3f}]"


def _back_patching(data: xr.Dataset) -> Table:
    """Per group of prompts: the best of all pairs, and the two nulls' best."""
    columns = ["prompts", "n", "right with some pair", INTERVAL]
    nulls = {"other prompt": "control_rate", "forward": "forward_rate"}
    nulls = {name: rate for name, rate in nulls.items() if rate in data}
    columns += list(nulls)
    if nulls:
        columns += ["more than other prompt", INTERVAL]
    rows = []
    for group in data["group"].values:
        one = data.sel(group=group)
        n = int(one["n"])
        if not n:
            rows.append([str(group), "0", *["–"] * (len(columns) - 2)])
            continue
        row = [str(group), str(n), f"{float(one['oracle_rate']):.3f}"]
        row.append(_share(float(one["oracle_rate_low"]), float(one["oracle_rate_high"])))
        row += [f"{float(one[rate]):.3f}" for rate in nulls.values()]
        if nulls:
            row.append(f"{float(one['difference']):+.3f}")
            row.append(_between(float(one["difference_low"]), float(one["difference_high"])))
        rows.append(row)
    return columns, rows


def _patchscope(data: xr.Dataset) -> Table:
    """One row a source block: its text at the same target block, or at the first that names an alias."""
    rows, targets = [], data["target_layer"].values.tolist()
    control = "control_text" in data
    for layer in data["source_layer"].values.tolist():
        target = layer if layer in targets else targets[0]
        one = data.sel(source_layer=layer)
        if "decoded" in data and bool(one["decoded"].any()):
            target = targets[int(np.flatnonzero(one["decoded"].values)[0])]
        cell = one.sel(target_layer=target)
        row = [str(layer), str(target), repr(str(cell["text"].values))]
        row.append(f"{float(cell['top_probability'].values[0]):.3f}")
        row.append(repr(str(cell["control_text"].values)) if control else "not run")
        if "decoded" in data:
            row.append(f"{int(one['decoded'].sum())} of {len(targets)}")
            row.append(f"{int(one['control_decoded'].sum())} of {len(targets)}" if control else "not run")
        rows.append(row)
    shown = f"target block (1 of {len(targets)} each)"
    columns = ["source block", shown, "text", "p of its first token", "other position's"]
    return columns + (["named", "named, other position"] if "decoded" in data else []), rows


def _all_for_one(data: xr.Dataset) -> Table:
    """Per run: the subgraph and its two controls."""
    columns = ["run", f"faithfulness, n = {data.sizes['answered']} answered prompts", INTERVAL]
    return columns, [
        [
            str(run),
            f"{float(one['faithfulness']):.3f}",
            _share(float(one["faithfulness_low"]), float(one["faithfulness_high"])),
        ]
        for run in data["run"].values
        for one in [data.sel(run=run)]
    ]


def _search(data: xr.Dataset) -> Table:
    """For each number of peeking blocks: the longest wait that keeps enough, else the best one."""
    keep = float(data.attrs["keep"])
    rows = []
    for peek in data["peek"].values:
        column = data.sel(peek=peek)
        scores = column["faithfulness"].values
        enough = np.flatnonzero(np.nan_to_num(scores, nan=-1.0) >= keep)
        at = int(enough[-1]) if len(enough) else int(np.nanargmax(scores))
        one = column.isel(wait=at)
        rows.append(
            [
                str(int(peek)),
                str(int(data["wait"].values[at])),
                "yes" if len(enough) else "no",
                f"{float(one['faithfulness']):.3f}",
                _share(float(one["faithfulness_low"]), float(one["faithfulness_high"])),
                f"{float(data['faithfulness'].sel(peek=0).values[at]):.3f}",
            ]
        )
    shown = f"faithfulness, n = {data.sizes['answered']}"
    return ["peek", "longest wait", f"keeps {keep:g}", shown, INTERVAL, "no peek"], rows


def _das(data: xr.Dataset) -> Table:
    """Per subspace: interchange accuracy on held-out pairs."""
    columns = ["subspace", f"accuracy, n = {data.sizes['pair']} held-out pairs", INTERVAL, "ln p (nats)"]
    return columns, [
        [
            str(name),
            f"{float(one['accuracy']):.3f}",
            _share(float(one["accuracy_low"]), float(one["accuracy_high"])),
            f"{float(one['log_probability'].mean()):.3f}",
        ]
        for name in data["subspace"].values
        for one in [data.sel(subspace=name)]
    ]


def _circuit(data: xr.Dataset) -> Table:
    """Per size: what the strongest edges carry, beside random ones."""
    columns = [
        "edges",
        "after pruning",
        f"faithfulness, n = {data.sizes['pair']}",
        INTERVAL,
        "random circuits",
    ]
    columns += ["completeness", "random circuits'"]
    rows = []
    for i, size in enumerate(data["size"].values):
        one = data.isel(size=i)
        row = [str(int(size)), str(int(one["n_edges"])), f"{float(one['mean_faithfulness']):.3f}"]
        row.append(_between(float(one["faithfulness_low"]), float(one["faithfulness_high"])))
        row.append(_or_not_run(one, "mean_random_faithfulness"))
        row += [f"{float(one['mean_completeness']):.3f}", _or_not_run(one, "mean_random_completeness")]
        rows.append(row)
    return columns, rows


def _or_not_run(one: xr.Dataset, name: str) -> str:
    value = float(one[name]) if name in one else np.nan
    return f"{value:.3f}" if np.isfinite(value) else "not run"


def _neurons(data: xr.Dataset) -> Table:
    """The neurons of largest (comparative) importance."""
    of = "comparative" if "comparative" in data else "importance"
    values = data[f"mean_{of}"].values
    order = np.argsort(-np.nan_to_num(values, nan=-np.inf), axis=None)[:N_SHOWN]
    shown = f"{of}, nats, n = {data.sizes['prompt']} ({len(order)} largest of {values.size})"
    control = f"mean_control_{of}"
    columns = ["layer", "neuron", shown, INTERVAL, "control"]
    rows = []
    for layer, neuron in zip(*np.unravel_index(order, values.shape), strict=True):
        one = data.isel(layer=int(layer), neuron=int(neuron))
        row = [str(int(one["layer"])), str(int(one["neuron"])), f"{float(one[f'mean_{of}']):+.3f}"]
        row.append(_between(float(one[f"{of}_low"]), float(one[f"{of}_high"])))
        row.append(f"{float(one[control].mean()):+.3f}" if control in one else "not run")
        rows.append(row)
    return columns, rows


def _input(data: xr.Dataset) -> Table:
    """The tokens of each prompt that got most."""
    rows = []
    draws = np.abs(data["control_attribution"].values).mean(1) if "control_attribution" in data else None
    n = int(data["length"].sum())
    cells = [
        (abs(float(value)), i, p)
        for (i, p), value in np.ndenumerate(data["attribution"].values)
        if np.isfinite(value)
    ]
    for _, i, p in sorted(cells, reverse=True)[:N_SHOWN]:
        row = [str(int(data["prompt"].values[i])), f"{p} {str(data['token'].values[i, p])!r}"]
        row.append(f"{float(data['attribution'].values[i, p]):+.3f}")
        row.append(f"{draws[i, p]:.3f}" if draws is not None else "not run")
        rows.append(row)
    shown = f"attribution ({len(rows)} largest of {n})"
    return ["prompt", "token", shown, "random answers, mean size"], rows


_TABLES: dict[str, Callable[[xr.Dataset], Table]] = {
    "back_patching": _back_patching,
    "patchscope": _patchscope,
    "all_for_one": _all_for_one,
    "all_for_one_search": _search,
    "das": _das,
    "circuit": _circuit,
    "neuron_importance": _neurons,
    "input_attribution": _input,
}
