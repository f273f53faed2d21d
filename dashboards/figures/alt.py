"""Each figure in words: for screen readers, captions and logs. The numbers come from the result itself."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from dashboards.figures import (
    ablation,
    all_for_one,
    attribution,
    back_patching,
    circuit,
    edge_attribution,
    grid,
    knockout,
    mediation,
    neuron_ablation,
    neurons,
    patch,
    patchscope,
    path,
    steer,
    steer_words,
    subspace,
)
from dashboards.figures.lens import control_name
from dashboards.figures.theme import number

if TYPE_CHECKING:
    from workbench.results import Result


OF_PATCHING: dict[str, ModuleType] = {
    "patching_sweep": patch,
    "attribution": attribution,
    "edge_attribution": edge_attribution,
    "path_patching": path,
    "ablation": ablation,
    "knockout": knockout,
    "back_patching": back_patching,
    "patchscope": patchscope,
    "all_for_one": all_for_one,
    "all_for_one_search": all_for_one,
    "das": subspace,
    "causal_mediation": mediation,
    "circuit": circuit,
    "neuron_importance": neurons,
    "neuron_ablation": neuron_ablation,
}
"""Kind of result -> the module with its `figures`, their words (`describe`), and its `control_statement`."""


OF_PROBES: dict[str, str] = {
    "probe_sweep": "probe",
    "probe_numbers": "probe_numbers",
    "probe_sparse": "probe_sparse",
    "probe_erasure": "probe_erasure",
    "probe_apply": "probe_applied",
    "probe_mil": "probe_mil",
    "probe_periodic": "probe_periodic",
    "probe_periodic_patch": "probe_periodic",
    "probe_causal": "probe_causal",
    "probe_board": "probe_board",
    "latent_saliency": "probe_board",
    "probe_transfer": "probe_transfer",
    "probe_undefined": "probe_transfer",
    "probe_trust": "probe_controls",
    "probe_permutation": "probe_controls",
    "probe_text_baselines": "probe_controls",
    "direction_cosines": "directions",
    "direction_tokens": "directions",
    "direction_angles": "directions",
    "direction_make": "steer_runs",
    "steered_texts": "steer_runs",
    "z_steer": "steer_runs",
    "steering_methods": "steer_methods",
    "input_attribution": "tokens",
}
"""The same for probes, directions, steering and tokens: names of modules here, imported when they are needed."""


def module_of(kind: str) -> ModuleType | None:
    """The module that draws a kind and says it in words; None for those said here, and for unknown ones."""
    if kind in OF_PROBES:
        return import_module(f"dashboards.figures.{OF_PROBES[kind]}")
    return OF_PATCHING.get(kind)


def describe(result: Result) -> dict[str, str]:
    """Text summary of each figure, under the names of `figures(result)`; empty for an unknown kind."""
    if (module := module_of(result.kind)) is not None:
        return module.describe(result)
    makers = {"logit_lens": _lens, "dose_response": lambda r: _steer(r) | steer_words.describe(r)}
    return makers[result.kind](result) if result.kind in makers else {}


def control_statement(result: Result) -> str:
    """What the result was compared with, and what came out."""
    data = result.data
    if (module := module_of(result.kind)) is not None:
        return module.control_statement(result)
    if result.kind == "logit_lens":
        rank, control = (number(float(data[n].values[-1, -1])) for n in ("target_rank", "control_rank"))
        target = repr(str(data.attrs["target"]))
        return f"After the last layer {target} has rank {rank}; {control_name(result)}: {control}."
    if result.kind == "dose_response":
        if len(steer.directions(result)) < 2:
            return "No control direction was run: part of this effect may be that of any push of this size."
        return f"Control: {steer.control_text(result)}. {_range_of_scores(result)}"
    control = data.attrs.get("control")
    return f"Control: {control}." if control else "This result names no control."


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
