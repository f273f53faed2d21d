"""Results of steering as a few rows for a terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from workbench.cli.cells import between, number

if TYPE_CHECKING:
    import xarray as xr

    from workbench.results import Result

Table = tuple[list[str], list[list[str]]]
N_SHOWN = 20


def table(result: Result) -> Table:
    """Columns and rows of one of `KINDS`."""
    return _TABLES[result.kind](result.data)


def _dose(data: xr.Dataset) -> Table:
    rows = [
        [
            str(d),
            f"{float(s):g}",
            f"{float(cell['mean_score']):+.3f}",
            f"[{float(cell['score_low']):+.3f}, {float(cell['score_high']):+.3f}]",
            f"{float(cell['kl'].mean()):.3f}",
        ]
        for d in data["direction"].values
        for s in data["strength"].values
        for cell in [data.sel(direction=d, strength=s)]
    ]
    return ["direction", "strength", "score", "95 % interval", "KL (nats)"], rows


def _texts(data: xr.Dataset) -> Table:
    rows = []
    for i in range(data.sizes["prompt"]):
        for s in data["strength"].values:
            at = data.isel(prompt=i).sel(strength=s)
            both = [at.sel(direction=d) for d in ("steered", "random")]
            texts = [" ".join(str(one["text"].item()).split()) for one in both]
            costs = [number(one["cross_entropy"], ".2f") for one in both]
            prompt = str(at["prompt_text"].item()) if float(s) == float(data["strength"].values[0]) else ""
            rows.append(
                [
                    prompt,
                    f"{float(s):g}",
                    texts[0],
                    costs[0],
                    *(["=", ""] if float(s) == 0 else [texts[1], costs[1]]),
                ]
            )
    return ["prompt", "strength", "steered", "nats/token", "random direction", "nats/token"], rows


def _methods(data: xr.Dataset) -> Table:
    columns = [
        "task",
        "method",
        "score",
        "change [95 %]",
        "above random [95 %]",
        "KL",
        "perplexity ×",
        "site",
        "n",
    ]
    rows = []
    for task in data["task"].values:
        for method in data["method"].values:
            at = data.sel({"task": task, "method": method})
            itself = str(method) == "random direction"
            row = [str(task), str(method)]
            row.append(f"{number(at['mean_unsteered'], '.2f')} → {number(at['mean_score'], '.2f')}")
            row.append(f"{number(at['mean_change'], '+.2f')} {between(at, 'change')}")
            above = f"{number(at['mean_against_random'], '+.2f')} {between(at, 'against_random')}"
            row += [
                "" if itself else above,
                number(at["kl_along"], ".2f"),
                number(at["perplexity_ratio"], ".2f"),
            ]
            rows.append([*row, str(at["site"].item()), str(int(at["n"]))])
    return columns, rows


def _made(data: xr.Dataset) -> Table:
    rows = [
        [
            str(site),
            number(at["auc"]),
            between(at, "auc"),
            number(at["control_auc"]),
            number(at["p_value"]),
            number(at["p_value_best"]) if "p_value_best" in at else "",
            number(at["accuracy"]),
            number(at["scale"], ".3g"),
        ]
        for site in data["site"].values
        for at in [data.sel(site=site)]
    ]
    columns = [
        "site",
        "held-out AUC",
        "95 % interval",
        "shuffled labels",
        "p (this site)",
        "p (max over sites)",
    ]
    return [*columns, "accuracy", "scale"], rows


def _written(data: xr.Dataset) -> Table:
    shown = min(N_SHOWN, data.sizes["sentence"])
    head = (
        "sentence"
        if shown == data.sizes["sentence"]
        else f"sentence (first {shown} of {data.sizes['sentence']})"
    )
    rows = []
    for i in range(shown):
        at = data.isel(sentence=i)
        one = at.isel(restart=int(at["best"]))
        rows.append([
            str(at["text"].item()), str(at["written"].item()), "yes" if bool(one["exact"]) else "no",
            number(one["bleu"], ".1f"), str(int(one["steps"])), number(one["norm"], ".3g"),
            number(at["bleu_no_z"], ".1f"), number(at["bleu_random_z"], ".1f"),
        ])  # fmt: skip
    return [head, "written", "exact", "BLEU", "steps", "‖z‖", "BLEU without z", "with a random z"], rows


def _tokens(data: xr.Dataset) -> Table:
    effect = data["effect"].values[-1]
    at = data.sel(effect=effect)
    rows: list[list[str]] = [[str(i + 1)] for i in range(data.sizes["k"])]
    columns = [f"k ({str(effect).replace('_', ' ')}, {at['units'].item()})"]
    for side in data["side"].values:
        columns += [str(side), "change", "random"]
        for i, row in enumerate(rows):
            cell = at.sel(side=side).isel(k=i)
            row += [
                repr(str(cell["token"].item())),
                number(cell["value"], "+.3f"),
                number(cell["control_mean"], "+.3f"),
            ]
    return columns, rows


_TABLES: dict[str, Callable[[xr.Dataset], Table]] = {
    "dose_response": _dose,
    "steered_texts": _texts,
    "steering_methods": _methods,
    "direction_make": _made,
    "z_steer": _written,
    "direction_tokens": _tokens,
}
KINDS = tuple(_TABLES)
