"""Patching sweep: which activation, moved from one run into another, moves the answer?

For a pair of prompts of equal length (clean: the model answers right; corrupt: one thing changed):

    denoising:  run corrupt, put in the clean activation      effect = (patched - corrupt) / (clean - corrupt)
    noising:    run clean, put in the corrupt activation      effect = (clean - patched) / (clean - corrupt)

0 = nothing moved, 1 = as if the whole prompt had been exchanged; both are kept beside the raw metric. The
grid is layer × position for streams and block outputs (`resid_pre`, `resid_mid`, `resid_post`, `attn_out`,
`mlp_out`) and layer × head over all positions for `z`.

A patch that puts in, bit for bit, what is there already (both prompts begin alike, so the streams do) is not run:
its metric is the base run's. `data.attrs["unchanged"]` says how many cells that was.

Control (wrong source): the same patches with an activation that should not help. With several pairs it comes
from the next pair's source run; with one pair from another position of the source run (a seeded derangement).
With several pairs the mean effect carries a 95 % bootstrap interval over pairs.

Method: Vig et al. 2020 (2004.12265); Meng et al. 2022 (2202.05262); denoising and noising as in Heimersheim
& Nanda 2024 (2404.15255). TransformerLens' `get_act_patch_*` computes the denoising metric by one whole
forward per cell; here only the blocks above the patch are replayed (see `replay`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.errors import MetricError, PromptError
from workbench.model.language_model import LanguageModel
from workbench.model.tokens import Prompt, TokenBatch, as_list
from workbench.patching.grid import fill_grid
from workbench.patching.metrics import Metric
from workbench.patching.replay import TOKENS_PER_CALL, Replay
from workbench.progress import Progress, Silent
from workbench.provenance import provenance
from workbench.results import Result, array
from workbench.statistics import bootstrap_interval

Kind = Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z"]
KINDS: dict[str, str] = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "z": "attn.hook_z",
}


def sweep(
    model: LanguageModel,
    clean: Prompt | Sequence[Prompt],
    corrupt: Prompt | Sequence[Prompt],
    metric: Metric | Sequence[Metric],
    *,
    kind: Kind = "resid_pre",
    direction: Literal["denoising", "noising"] = "denoising",
    layers: Sequence[int] | None = None,
    control: bool = True,
    seed: int = 0,
    skip_unchanged: bool = True,
    tokens_per_call: int = TOKENS_PER_CALL,
    progress: Progress | None = None,
) -> Result:
    """Patch every layer × position (or layer × head) and measure what the answer does.

    Args:
        model: the language model.
        clean, corrupt: one prompt each, or as many as there are pairs. All have the same number of tokens.
        metric: logits -> number (see `metrics`); one for all pairs, or one per pair.
        kind: what to patch; `z` (head outputs) gives layer × head, the others layer × position.
        direction: `denoising` (default: what suffices to restore the answer) or `noising` (what is needed).
        layers: which blocks; all by default.
        control: also run the wrong-source patches (doubles the time).
        seed: for the control's derangement and the bootstrap.
        skip_unchanged: do not run patches that are bit-equal to what they replace; results do not depend on it.
        tokens_per_call: tokens in one replayed batch. Results do not depend on it.
        progress: where to report, one item per position (or head) and pair.

    Returns:
        A `Result` of kind `patching_sweep`: dims `pair`, `layer` and `position` or `head`; variables `metric`,
        `effect`, `control_effect`, `mean_effect` with `effect_low`, `effect_high`, `clean_metric`,
        `corrupt_metric`. `summary["strongest"]` is the cell of largest mean effect.

    Raises:
        PromptError: prompts of different lengths (the message shows both), or numbers of prompts that differ.
        MetricError: a metric token that is not one token, or a pair whose clean and corrupt metric are equal.
        SiteError: this architecture does not have the site.

    Example:
        >>> clean = "When Mary and John went to the store, John gave a drink to"
        >>> corrupt = "When Mary and John went to the store, Mary gave a drink to"
        >>> wb.patching.sweep(model, clean, corrupt, wb.LogitDifference(" Mary", " John")).summary["strongest"]
    """
    progress = progress or Silent()
    started = time.perf_counter()
    if kind not in KINDS:
        raise PromptError(f"kind {kind!r} is not known: give one of {', '.join(KINDS)}.")
    chosen = list(range(model.n_layers)) if layers is None else [int(i) for i in layers]
    sites = [s.name for s in model.resolve([f"blocks.{i}.{KINDS[kind]}" for i in chosen])]
    pairs = _pairs(model, clean, corrupt)
    metrics = list(metric) if isinstance(metric, Sequence) else [metric] * len(pairs)
    if len(metrics) != len(pairs):
        raise MetricError(
            f"{len(metrics)} metrics were given for {len(pairs)} pairs: give one, or one per pair."
        )
    functions = [m.resolve(model) for m in metrics]

    sources = [source if direction == "denoising" else base for source, base in pairs]
    bases = [base if direction == "denoising" else source for source, base in pairs]
    taken = [_source_activations(model, source, sites) for source in sources]
    wrong = _wrong_sources(taken, np.random.default_rng(seed)) if control else None
    grids, wrong_grids, ends, unchanged = [], [], [], 0
    columns = model.n_heads if kind == "z" else bases[0].lengths[0]
    progress.stage(f"patch {kind}", len(pairs) * columns)
    for i, base in enumerate(bases):
        replay = Replay(model, base)
        source_metric = float(functions[i](taken[i]["logits"][None])[0])
        base_metric = float(functions[i](replay.logits[None])[0])
        ends.append((source_metric, base_metric))
        own = _source_activations(model, base, sites) if skip_unchanged else None
        given = [taken[i]] if wrong is None else [taken[i], wrong[i]]
        both, n = fill_grid(replay, given, own, sites, kind, functions[i], tokens_per_call, progress)
        grids.append(both[0])
        wrong_grids += list(both[1:])
        unchanged += n
    return _result(
        model, pairs, chosen, kind, direction, str(metrics[0]), ends, grids, wrong_grids, unchanged, seed,
        time.perf_counter() - started,
    )  # fmt: skip


def _pairs(model: LanguageModel, clean, corrupt) -> list[tuple[TokenBatch, TokenBatch]]:
    left, right = as_list(clean), as_list(corrupt)
    if len(left) != len(right):
        raise PromptError(
            f"{len(left)} clean and {len(right)} corrupt prompts were given: they come in pairs."
        )
    pairs = [(model.batch(a), model.batch(b)) for a, b in zip(left, right, strict=True)]
    for i, (a, b) in enumerate(pairs):
        if a.lengths != b.lengths:
            raise PromptError(
                f"Pair {i}: the clean prompt has {a.lengths[0]} tokens and the corrupt one {b.lengths[0]}, so "
                f"positions do not correspond. Clean: {list(a.tokens[0])}. Corrupt: {list(b.tokens[0])}. Reword one "
                "of them (names of one token each, for instance)."
            )
        if a.lengths != pairs[0][0].lengths:
            raise PromptError(
                f"Pair {i} has {a.lengths[0]} tokens and pair 0 has {pairs[0][0].lengths[0]}: one grid needs pairs of "
                "one length. Sweep them in groups of equal length."
            )
    return pairs


@torch.inference_mode()
def _source_activations(model: LanguageModel, batch: TokenBatch, sites: list[str]) -> dict[str, Tensor]:
    with model.hooks(read=sites) as session:
        logits = model.forward(batch, logits_to_keep=1).logits[0, -1]
    return {"logits": logits, **{name: session[name][0] for name in sites}}


def _wrong_sources(taken: list[dict[str, Tensor]], rng: np.random.Generator) -> list[dict[str, Tensor]]:
    """Sources that should not help: the next pair's run, or with one pair its own at deranged positions."""
    if len(taken) > 1:
        return taken[1:] + taken[:1]
    (only,) = taken
    n = next(v.shape[0] for name, v in only.items() if name != "logits")
    order = np.roll(np.arange(n), 1) if n < 3 else _derangement(n, rng)
    index = torch.from_numpy(order)
    return [{k: v if k == "logits" else v[index.to(v.device)] for k, v in only.items()}]


def _derangement(n: int, rng: np.random.Generator) -> np.ndarray:
    while True:
        order = rng.permutation(n)
        if not (order == np.arange(n)).any():
            return order


def _result(
    model, pairs, layers, kind, direction, metric, ends, grids, wrong_grids, unchanged, seed, seconds
) -> Result:
    raw = np.stack(grids)
    source, base = np.array(ends).T
    span = source - base
    for i, width in enumerate(span):
        if abs(width) < 1e-6:
            raise MetricError(
                f"Pair {i}: {metric} is {source[i]:.4f} in both runs, so there is no effect to normalise by. Choose a "
                "metric or a corrupt prompt that makes a difference."
            )
    normalise = lambda grid: (grid - base[:, None, None]) / span[:, None, None]  # noqa: E731
    effect = normalise(raw)
    mean = effect.mean(0)
    low, high = bootstrap_interval(effect, seed)
    column = "head" if kind == "z" else "position"
    dims = ("layer", column)
    clean_metric, corrupt_metric = (source, base) if direction == "denoising" else (base, source)
    variables = {
        "metric": array(("pair", *dims), raw, long_name=metric),
        "effect": array(("pair", *dims), effect, long_name=f"{direction} effect (0 none, 1 full)"),
        "mean_effect": array(dims, mean, long_name=f"mean {direction} effect (0 none, 1 full)"),
        "effect_low": array(dims, low, long_name="95 % bootstrap interval over pairs, lower end"),
        "effect_high": array(dims, high, long_name="95 % bootstrap interval over pairs, upper end"),
        "clean_metric": array(("pair",), clean_metric, long_name=f"{metric}, clean run"),
        "corrupt_metric": array(("pair",), corrupt_metric, long_name=f"{metric}, corrupt run"),
    }
    if wrong_grids:
        wrong = normalise(np.stack(wrong_grids))
        variables["control_effect"] = array(
            ("pair", *dims), wrong, long_name="effect of wrong-source patches"
        )
    coords: dict[str, object] = {"pair": np.arange(len(pairs)), "layer": np.array(layers)}
    if kind == "z":
        coords["head"] = np.arange(raw.shape[-1])
    else:
        coords["position"] = np.arange(raw.shape[-1])
        coords["clean_token"] = ("position", np.array(pairs[0][0].tokens[0], dtype=str))
        coords["corrupt_token"] = ("position", np.array(pairs[0][1].tokens[0], dtype=str))
    control_kind = "the next pair's run" if len(pairs) > 1 else "the same run at deranged positions"
    attrs = {
        "kind": kind,
        "direction": direction,
        "metric": metric,
        "n_pairs": len(pairs),
        "control": f"wrong source: {control_kind}" if wrong_grids else "not run",
        "unchanged": f"{unchanged} of {raw.size} patches put in what was there already, so they were not run",
    }
    data = xr.Dataset(variables, coords=coords, attrs=attrs)
    ids = [batch.ids[0].tolist() for pair in pairs for batch in pair]
    where = provenance(model, tokens=ids, seed=seed, seconds={"patch": seconds})
    return Result("patching_sweep", data, where, _summary(data, kind, column))


def _summary(data: xr.Dataset, kind: str, column: str) -> dict[str, object]:
    mean = data["mean_effect"].values
    layer, at = np.unravel_index(int(np.nanargmax(np.abs(mean))), mean.shape)
    strongest: dict[str, object] = {"layer": int(data["layer"][layer]), column: int(at)}
    if column == "position":
        strongest["token"] = str(data["clean_token"].values[at])
    strongest["effect"] = round(float(mean[layer, at]), 4)
    summary: dict[str, object] = {
        "kind": kind,
        "clean_metric": round(float(data["clean_metric"].mean()), 4),
        "corrupt_metric": round(float(data["corrupt_metric"].mean()), 4),
        "n_pairs": int(data.sizes["pair"]),
        "strongest": strongest,
    }
    if "control_effect" in data:
        control = data["control_effect"].mean("pair").values
        strongest["control_effect"] = round(float(control[layer, at]), 4)
        summary["control_largest"] = round(float(np.abs(control).max()), 4)
    if data.sizes["pair"] > 1:
        strongest["interval"] = [
            round(float(data[n].values[layer, at]), 4) for n in ("effect_low", "effect_high")
        ]
    return summary
