"""Each figure in words: for screen readers, captions and logs. The numbers come from the result itself."""

from __future__ import annotations

from html import unescape
from typing import TYPE_CHECKING

import numpy as np

from dashboards.figures import grid, patch, probe, steer
from dashboards.figures.lens import control_name
from dashboards.figures.theme import number

if TYPE_CHECKING:
    from workbench.results import Result


def describe(result: Result) -> dict[str, str]:
    """Text summary of each figure, under the names of `figures(result)`; empty for an unknown kind."""
    makers = {
        "logit_lens": _lens,
        "patching_sweep": _patch,
        "probe_sweep": _probe,
        "dose_response": _steer,
    }
    return makers[result.kind](result) if result.kind in makers else {}


def control_statement(result: Result) -> str:
    """What the result was compared with, and what came out."""
    data = result.data
    if result.kind == "logit_lens":
        rank, control = (number(float(data[n].values[-1, -1])) for n in ("target_rank", "control_rank"))
        target = repr(str(data.attrs["target"]))
        return f"After the last layer {target} has rank {rank}; {control_name(result)}: {control}."
    if result.kind == "patching_sweep":
        control = patch.mean_control(data)
        if control is None:
            return "No control was run: the size of these effects cannot be judged."
        effect, largest = _largest(data["mean_effect"].values), _largest(control)
        return (
            f"Control: {data.attrs['control']}. Largest |effect| {effect}; "
            f"largest |control effect| {largest}."
        )
    if result.kind == "probe_sweep":
        at = probe.at_best_position(data)
        parts = [_probe_against_control(at, name) for name in probe.probe_names(result)]
        return f"Control: {data.attrs.get('control', 'not run')}. " + " ".join(parts)
    if result.kind == "dose_response":
        if len(steer.directions(result)) < 2:
            return "No control direction was run: part of this effect may be that of any push of this size."
        return f"Control: {steer.control_text(result)}. {_range_of_scores(result)}"
    control = data.attrs.get("control")
    return f"Control: {control}." if control else "This result names no control."


def _largest(values: np.ndarray) -> str:
    return number(float(np.nanmax(np.abs(values))))


def _lens(result: Result) -> dict[str, str]:
    data = result.data
    p = data["top_probability"].values[:, :, 0]
    target = repr(str(data.attrs["target"]))
    layers = data["layer"].values
    last = f"position {int(data['position'].values[-1])} ({str(data['token'].values[-1])!r})"
    start = grid.last_runs(data["target_rank"].values == 1)[-1]
    top, top_p = str(data["top_token"].values[-1, -1, 0]), p[-1, -1]
    stays = "is not top-1 there" if start is None else f"stays top-1 there from layer {int(layers[start])} on"
    here = data.isel(position=-1)
    ends = {n: [number(float(here[n].values[i])) for i in (0, -1)] for n in _LENS_LINES}
    return {
        "lens": (
            f"Heatmap of {p.shape[0]} layers by {p.shape[1]} positions with the top token of each "
            f"cell; colour is its probability, from {number(p.min())} to {number(p.max())}. "
            f"At {last} the last layer says {top!r} with probability {number(top_p)}. "
            f"The target {target} {stays}."
        ),
        "layers": (
            f"Lines over layers {int(layers[0])} to {int(layers[-1])} at {last}: entropy goes from "
            f"{ends['entropy'][0]} to {ends['entropy'][1]} nats, KL to the final distribution from "
            f"{ends['kl_to_final'][0]} to {ends['kl_to_final'][1]} nats, the rank of {target} from "
            f"{ends['target_rank'][0]} to {ends['target_rank'][1]}; the control ({control_name(result)}) "
            f"from {ends['control_rank'][0]} to {ends['control_rank'][1]}."
        ),
    }


_LENS_LINES = ("entropy", "kl_to_final", "target_rank", "control_rank")


def _patch(result: Result) -> dict[str, str]:
    data = result.data
    mean = data["mean_effect"].values
    row, at = patch.strongest(mean)
    column = patch.column_of(data)
    label = unescape(patch.column_labels(data)[at])
    n = int(data.attrs["n_pairs"])
    interval = ""
    if n > 1:
        low, high = (number(float(data[name].values[row, at])) for name in ("effect_low", "effect_high"))
        interval = f", 95 % interval {low} to {high}"
    effect = (
        f"Heatmap of {mean.shape[0]} layers by {mean.shape[1]} {column}s: {data.attrs['direction']} effect "
        f"of patching {data.attrs['kind']} on {data.attrs['metric']}, {n} pair{'s' if n > 1 else ''}, 0 for "
        "none and 1 for full. "
        f"Largest |effect| at layer {int(data['layer'].values[row])}, {column} {label}: "
        f"{number(float(mean[row, at]))}{interval}. Range {number(float(np.nanmin(mean)))} to "
        f"{number(float(np.nanmax(mean)))}."
    )
    control = patch.mean_control(data)
    if control is None:
        return {"effect": effect + " No control was run."}
    return {
        "effect": f"{effect} Control in that cell: {number(float(control[row, at]))}.",
        "control": (
            f"The effect heatmap beside its control ({data.attrs['control']}) on one colour range. Largest "
            f"|effect| {_largest(mean)}, largest |control effect| {_largest(control)}."
        ),
    }


def _probe_against_control(data, name: str) -> str:
    """Best AUC of one probe with interval and control, at one position."""
    at, first = data.sel(probe=name), probe.along(data)
    best = int(np.nanargmax(at["auc"].values))
    low, high = (number(float(at[n].values[best])) for n in ("auc_low", "auc_high"))
    text = (
        f"{probe.pretty(name)}: best AUC {number(float(at['auc'].values[best]))} (95 % interval {low} to "
        f"{high}) at {first} {data[first].values[best]}"
    )
    if "control_auc" in at:
        text += f", control there {number(float(at['control_auc'].values[best]))}"
    if "control_auc_high" in at:
        text += f" (highest {number(float(at['control_auc_high'].values[best]))})"
    return text + "."


def _probe(result: Result) -> dict[str, str]:
    data = probe.at_best_position(result.data)
    first, names = probe.along(data), probe.probe_names(result)
    span = f"{data.sizes[first]} {first}s, {data[first].values[0]} to {data[first].values[-1]}"
    several = result.data.sizes.get("position", 1) > 1
    where = f" at position {int(data['position'])}, that of the best AUC" if several else ""
    parts = " ".join(_probe_against_control(data, name) for name in names)
    majority = data.attrs.get("majority_accuracy")
    best = []
    for name in names:
        accuracy = data["accuracy"].sel(probe=name).values
        at = int(np.nanargmax(accuracy))
        best.append(f"{probe.pretty(name)} {number(float(accuracy[at]))} at {first} {data[first].values[at]}")
    against = f" The majority class gives {number(float(majority))}." if majority is not None else ""
    n = data.attrs.get("n", "an unknown number of")
    described = {
        "auc": f"Lines of the AUC over {span}{where}; {n} examples; chance is 0.5. {parts}",
        "accuracy": f"Lines of the accuracy over {span}{where}. Best: {', '.join(best)}.{against}",
    }
    if several:
        auc = result.data["auc"].values
        described["positions"] = (
            f"Heatmaps of the AUC of {', '.join(map(probe.pretty, names))} over {data.sizes[first]} {first}s "
            f"and {result.data.sizes['position']} positions, from {number(float(np.nanmin(auc)))} to "
            f"{number(float(np.nanmax(auc)))}."
        )
    return described


def _range_of_scores(result: Result) -> str:
    data, parts = result.data, []
    strengths = data["strength"].values
    for direction in steer.directions(result):
        mean = data["mean_score"].sel(direction=direction).values
        parts.append(
            f"{direction}: mean {number(float(mean[0]))} at strength {number(float(strengths[0]))}, "
            f"{number(float(mean[-1]))} at {number(float(strengths[-1]))}."
        )
    return " ".join(part[0].upper() + part[1:] for part in parts)


def _steer(result: Result) -> dict[str, str]:
    data = result.data
    n = data.sizes.get("prompt", 1)
    zero = steer.baseline(result)
    without = f" Without steering: {number(zero)}." if zero is not None else ""
    described = {
        "score": (
            f"Lines of the mean {steer.score_name(result)} over {data.sizes['strength']} strengths, {n} "
            f"prompt{'s' if n > 1 else ''}. {_range_of_scores(result)}{without}"
        )
    }
    if "kl" in data:
        parts = []
        for direction in steer.directions(result):
            kl = data["kl"].sel(direction=direction).transpose("strength", ...).values
            mean = np.nanmean(kl.reshape(len(kl), -1), axis=1)
            at = number(float(data["strength"].values[int(np.nanargmax(mean))]))
            parts.append(f"{direction} at most {number(float(np.nanmax(mean)))} nats (strength {at})")
        described["kl"] = (
            "Lines of the mean KL divergence from the unsteered to the steered next-token distribution by "
            f"strength: {'; '.join(parts)}."
        )
    return described
