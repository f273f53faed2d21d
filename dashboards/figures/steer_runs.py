"""Figures of directions that were made, of texts along them, and of vectors that write sentences.

`direction_make`  `auc`         held-out AUC of the direction at each site, its interval, and that of shuffled labels
`steered_texts`   `cost`        what the texts cost under the unsteered model, by strength, beside a random direction
`z_steer`         `likelihood`  log-likelihood of each sentence along the search, thin; the median thick
                  `bleu`        of what was written, beside no vector, a random one and that of another sentence
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from dashboards.figures import theme
from dashboards.figures.lines import HOVER, LABEL, Curve, curve, hover_title, level
from dashboards.figures.points import Series, add_points, say
from dashboards.figures.theme import f32, number, safe

if TYPE_CHECKING:
    from workbench.results import Result

WRITTEN = {
    "bleu": "its own vector",
    "bleu_no_z": "no vector",
    "bleu_random_z": "a random vector",
    "bleu_other_z": "another sentence's",
}
"""Variable -> what stands on the axis."""


def figures(result: Result) -> dict[str, go.Figure]:
    """The figures of one of the three kinds, the main one first."""
    if result.kind == "direction_make":
        return {"auc": auc_figure(result)}
    if result.kind == "steered_texts":
        return {"cost": cost_figure(result)}
    return {"likelihood": likelihood_figure(result), "bleu": bleu_figure(result)}


def _under(result: Result, n: str, control: str, *more: str, units: str = "") -> str:
    return theme.subtitle(model=theme.model_name(result), n=n, units=units, control=control, more=more)


# -- direction_make ----------------------------------------------------------------------------------------


def _sites(result: Result) -> list[str]:
    return [safe(str(s).removeprefix("blocks.").replace(".hook_", " ")) for s in result.data["site"].values]


def auc_figure(result: Result) -> go.Figure:
    """AUC by site."""
    data, figure, names = result.data, go.Figure(), _sites(result)
    made = Series(
        "direction", names, data["auc"].values, data["auc_low"].values, data["auc_high"].values,
        said=[f"p {number(float(p))}" for p in data["p_value"].values],
    )  # fmt: skip
    control = data["control_auc"].values
    highest = data["control_auc_high"].values
    add_points(figure, made)
    add_points(
        figure,
        Series(
            "shuffled labels, mean to 95 %",
            names,
            control,
            control,
            highest,
            colour=1,
            interval="mean and 95 %",
        ),
    )
    attrs = data.attrs
    under = _under(
        result,
        f"{attrs['n_positive']} + {attrs['n_negative']} texts",
        str(attrs["control"]),
        "Each text is scored by a direction made from the other half. Bars: 95 % intervals.",
        units=f"{attrs['method'].replace('_', ' ')}: {attrs['positive']} − {attrs['negative']}",
    )
    figure.update_layout(
        theme.layout("Held-out AUC of directions", under, plot_height=300, bottom=90, legend_rows=1)
    )
    figure.add_hline(y=0.5, line={"dash": "dot", "width": 1})
    figure.update_yaxes(title={"text": "held-out AUC"})
    return figure.update_xaxes(title={"text": "site (block, activation)"}, type="category")


# -- steered_texts -----------------------------------------------------------------------------------------


def cost_figure(result: Result) -> go.Figure:
    """Nats per token by strength."""
    data, figure = result.data, go.Figure()
    for i, direction in enumerate(("steered", "random")):
        at = data.sel(direction=direction)
        name = "steered" if direction == "steered" else "random direction (control)"
        ends = (at["cross_entropy_low"].values, at["cross_entropy_high"].values)
        for trace in curve(Curve(data["strength"].values, at["mean_cross_entropy"].values, name, i, *ends)):
            figure.add_trace(trace)
    shapes, notes = level(
        float(data["mean_cross_entropy"].sel(direction="steered", strength=0.0)), "strength 0"
    )
    attrs, n = data.attrs, data.sizes["prompt"]
    under = _under(
        result,
        f"{n} prompt{'s' if n > 1 else ''}",
        str(attrs["control"]),
        "Shaded: 95 % intervals over prompts. Text that repeats itself is cheap: read the repetition too.",
        units=f"direction: {attrs['direction']} at {attrs['site']}, {attrs['op'].replace('_', ' ')}",
    )
    made = theme.layout("What steered texts cost", under, plot_height=280, legend_rows=1, right=LABEL)
    figure.update_layout(made, shapes=shapes, annotations=notes, **HOVER)
    units = str(data["strength"].attrs.get("units", "")) or "strength"
    figure.update_xaxes(title={"text": f"strength ({safe(units)})"}, **hover_title("strength", ""))
    return figure.update_yaxes(title={"text": "nats per token, unsteered model"})


# -- z_steer -----------------------------------------------------------------------------------------------


def _kept(result: Result) -> Any:
    """Each sentence's best restart."""
    import xarray as xr

    best = xr.DataArray(result.data["best"].values, dims="sentence")
    return result.data.isel(restart=best)


def _z_under(result: Result, *more: str) -> str:
    data = result.data
    n, restarts = data.sizes["sentence"], data.sizes["restart"]
    exact = int(_kept(result)["exact"].values.sum())
    return _under(
        result,
        f"{n} sentence{'s' if n > 1 else ''}, best of {restarts} restart{'s' if restarts > 1 else ''}",
        "no vector, a random one of the same norm" + (", another sentence's" if n > 1 else ""),
        f"Written exactly: {exact} of {n}.",
        *more,
        units=f"added after block {data.attrs['layer']}",
    )


def likelihood_figure(result: Result) -> go.Figure:
    """Log-likelihood by step."""
    curves = _kept(result)["log_likelihood"].transpose("sentence", "step").values
    steps = np.arange(curves.shape[1])
    figure = go.Figure()
    gapped = np.concatenate([curves, np.full((len(curves), 1), np.nan)], axis=1)
    x = np.tile(np.append(steps, np.nan), len(curves))
    figure.add_scatter(
        x=f32(x), y=f32(gapped.reshape(-1)), mode="lines", name="each sentence", hoverinfo="skip",
        line={"color": theme.rgba(theme.SERIES[0], 0.35), "width": 1},
    )  # fmt: skip
    if len(curves) > 1:  # a sentence that is written stays where it was
        held = np.array([_held(row) for row in curves])
        for trace in curve(Curve(steps, np.median(held, axis=0), "median", 0)):
            figure.add_trace(trace.update(marker={"size": 3}))
    under = _z_under(result, "A line ends where greedy decoding writes the sentence.")
    figure.update_layout(
        theme.layout("Search for the vector", under, plot_height=280, legend_rows=1), **HOVER
    )
    figure.update_xaxes(title={"text": "step"}, **hover_title("step"))
    return figure.update_yaxes(title={"text": "log p of the sentence (nats)"})


def _held(row: np.ndarray) -> np.ndarray:
    """A curve whose last value stays."""
    there = np.flatnonzero(np.isfinite(row))
    return np.where(np.arange(len(row)) <= there[-1], row, row[there[-1]]) if len(there) else row


def _bleu(result: Result) -> dict[str, np.ndarray]:
    kept = _kept(result)
    found = {name: kept[name].values for name in WRITTEN if name in kept}
    return {name: values for name, values in found.items() if np.isfinite(values).any()}


def bleu_figure(result: Result) -> go.Figure:
    """Sentence BLEU: every sentence a point, the mean a line."""
    figure, found = go.Figure(), _bleu(result)
    texts = [safe(str(t)) for t in result.data["text"].values]
    spread = np.random.default_rng(0).uniform(-0.15, 0.15, len(texts))
    for i, (name, values) in enumerate(found.items()):
        colour = theme.SERIES[0 if i == 0 else 1]
        figure.add_scatter(
            x=f32(i + spread), y=f32(values), mode="markers", showlegend=False, name=WRITTEN[name], text=texts,
            marker={"color": theme.rgba(colour, 0.5), "size": 7, "symbol": theme.SYMBOLS[min(i, 1)]},
            hovertemplate="%{text}<br>BLEU %{y:.1f}<extra></extra>",
        )  # fmt: skip
        figure.add_scatter(
            x=f32([i - 0.3, i + 0.3]), y=f32([np.nanmean(values)] * 2), mode="lines", showlegend=False,
            name=f"{WRITTEN[name]}, mean",
            line={"color": colour, "width": 3}, hovertemplate="mean BLEU %{y:.1f}<extra></extra>",
        )  # fmt: skip
    under = _z_under(result, "Points: sentences; lines: means. Sentence BLEU-4 of token ids, smoothed.")
    figure.update_layout(theme.layout("What is written", under, plot_height=280))
    ticks = {"tickvals": list(range(len(found))), "ticktext": [WRITTEN[name] for name in found]}
    figure.update_xaxes(title={"text": "vector that is added"}, range=[-0.5, len(found) - 0.5], **ticks)
    return figure.update_yaxes(title={"text": "BLEU"}, range=[-3, 103])


# -- in words ----------------------------------------------------------------------------------------------


def describe(result: Result) -> dict[str, str]:
    """The figures in words."""
    data = result.data
    if result.kind == "direction_make":
        best = int(np.argmax(data["auc"].values))
        ends = [float(data[f"auc{end}"][best]) for end in ("", "_low", "_high")]
        return {
            "auc": (
                f"Points with intervals of the held-out AUC at {data.sizes['site']} sites. Highest at "
                f"{data['site'].values[best]}: {say(*ends)}; shuffled labels there "
                f"{number(float(data['control_auc'][best]))}."
            )
        }
    if result.kind == "steered_texts":
        parts = []
        for direction in ("steered", "random"):
            mean = data["mean_cross_entropy"].sel(direction=direction).values
            parts.append(f"{direction} from {number(float(mean[0]))} to {number(float(mean[-1]))}")
        return {
            "cost": (
                f"Lines of nats per token over {data.sizes['strength']} strengths, from the lowest to the highest: "
                f"{'; '.join(parts)}."
            )
        }
    steps = _kept(result)["steps"].values
    means = [f"{WRITTEN[name]} {number(float(np.nanmean(values)))}" for name, values in _bleu(result).items()]
    return {
        "likelihood": (
            f"Lines of the log-likelihood of {data.sizes['sentence']} sentences over the steps of the search; it took "
            f"{int(steps.min())} to {int(steps.max())} steps."
        ),
        "bleu": f"Points of each sentence's BLEU. Means: {'; '.join(means)}.",
    }


def control_statement(result: Result) -> str:
    """What the result was compared with, and what came out."""
    data = result.data
    if result.kind == "direction_make":
        best = int(np.argmax(data["auc"].values))
        mean, high = (number(float(data[n][best])) for n in ("control_auc", "control_auc_high"))
        return (
            f"Control: {data.attrs['control']}: mean AUC {mean}, 95 % of them up to {high}, at the best site."
        )
    if result.kind == "steered_texts":
        last = data["mean_cross_entropy"].isel(strength=-1)
        steered, random = (number(float(last.sel(direction=d))) for d in ("steered", "random"))
        return f"Control: {data.attrs['control']}: {random} nats per token at the largest strength, steered {steered}."
    means = [
        f"{WRITTEN[name]} {number(float(np.nanmean(v)))}"
        for name, v in _bleu(result).items()
        if name != "bleu"
    ]
    return f"Control: mean BLEU with {', '.join(means)}."
