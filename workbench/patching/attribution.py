"""Attribution patching: a first-order estimate of a whole patching sweep, from two forwards and one backward.

With a the activation that a patch replaces in the base run, a' the one it puts in from the source run (see `sweep` for
which is which), and m the metric:

    estimate of  m(base run with a -> a') - m(base run)   =   sum over the cell of  (a' - a) · dm/da

The derivative is taken at the base run; `integrate=n` averages it over n inputs between base and source (see
`gradients`), which helps where the model is curved between them. All kinds and all cells come from the same passes.
As in `sweep`, `effect` is the estimate divided by m(source) - m(base), and `metric` is m(base) + estimate.

Nanda 2023, "Attribution Patching"; Syed et al. 2023 (2310.10348); Hanna et al. 2024 (2403.17806).

It is an estimate, and errs where the metric is not linear in the activation over the whole step: at queries and keys of
a saturated softmax, before norms whose input changes much, and where a direct and an indirect effect cancel (Kramár et
al. 2024, 2403.00745). A cell that is 0 here may matter. So `recheck` patches exactly, and says how well the
estimate agreed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr

from workbench.errors import PromptError
from workbench.model.language_model import LanguageModel
from workbench.model.tokens import Prompt
from workbench.patching.alignment import Alignment
from workbench.patching.cells import HEADS, KINDS, By, Cells, Kind, check_layers
from workbench.patching.first_order import Direction, Runs
from workbench.patching.gradients import TOKENS_PER_BACKWARD, Activations, precise
from workbench.patching.metrics import Metric, MetricFunction
from workbench.patching.recheck import agreement, patched_metric
from workbench.patching.replay import Replay
from workbench.patching.sources import read
from workbench.progress import Progress, Silent
from workbench.results import Result, array
from workbench.sites.catalog import Site

ATTRIBUTED = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", *HEADS)
"""Kinds whose tensors lie on the model's own path to the logits (a pattern is worked out beside it)."""


@torch.inference_mode(False)
def attribution(
    model: LanguageModel,
    clean: Prompt | Sequence[Prompt],
    corrupt: Prompt | Sequence[Prompt],
    metric: Metric | MetricFunction | Sequence[Metric],
    *,
    kind: Kind | Sequence[Kind] = "resid_pre",
    by: By = "auto",
    direction: Direction = "denoising",
    integrate: int = 0,
    recheck: int | Literal["all"] = 0,
    alignment: Alignment | Mapping[int, int] | Sequence[Alignment | Mapping[int, int]] | None = None,
    layers: Sequence[int] | int | None = None,
    control: bool = True,
    seed: int = 0,
    tokens_per_backward: int = TOKENS_PER_BACKWARD,
    progress: Progress | None = None,
) -> Result:
    """Estimate every cell of a sweep at once.

    Args:
        model: the language model, with frozen parameters or not.
        clean, corrupt: one prompt each, or as many as there are pairs. All have the same number of tokens.
        metric: logits -> number, differentiable (see `metrics`); one for all pairs, or one per pair.
        kind: what is patched, as in `sweep` (not `pattern`, `neurons`); several kinds take the same passes.
        by: `head_position` gives heads (`z`, `q`, `k`, `v`) at each position instead of over all; `span` the
            spans of an `alignment` instead of positions, where all pairs' patched runs have one length.
        direction: `denoising` (base: corrupt run, source: clean run) or `noising` (the reverse).
        integrate: 0: gradient of the base run; m: mean gradient over m inputs between base and source. The paper takes
            5 steps; midpoints are used here. With `control` the wrong source's path is not followed: its difference
            meets the same gradients.
        recheck: how many cells of each kind, the strongest ones, are patched exactly; or "all".
        alignment: which positions correspond where prompts differ in length, as in `sweep`.
        layers: which blocks (each once, in order); all by default.
        control: also estimate wrong-source patches, as in `sweep` (costs no pass).
        seed: for the control's derangement, the bootstrap and the permutations.
        tokens_per_backward: with `integrate`, tokens in one backward pass. Results do not depend on it.
        progress: where to report, one item per pair (and one per pair rechecked).

    Returns:
        A `Result` of kind `attribution` with the variables of `sweep`, float64: `metric` [pair, layer, ...] (estimated,
        in the metric's units), `effect`, `control_effect`, `mean_effect` with `effect_se`, `effect_low`, `effect_high`,
        `p_value`, and `exact_effect` (NaN where not rechecked). With several kinds each name ends in `_kind`, and heads
        of `k` and `v` are along `kv_head` where they are fewer. `summary["recheck"]` has n cells of how many, and the
        correlations of estimate and exact effect over those whose patch changes anything (see `recheck.agreement`).

    Raises:
        PromptError: prompts of different lengths, or a kind or `by` that cannot be.
        MetricError: a metric without gradient, or one that is equal in both runs of a pair.
        SiteError: this architecture does not have the site.
        DataError: layers that do not exist.

    Example:
        >>> result = attribution(model, clean, corrupt, metric, kind=["z", "mlp_out"], recheck=10)
        >>> result.data["mean_effect_z"].sel(layer=7);  result.summary["z"]["recheck"]["spearman"]
    """
    progress, started = progress or Silent(), time.perf_counter()
    kinds = [kind] if isinstance(kind, str) else list(dict.fromkeys(kind))
    _check(kinds, recheck)
    runs = Runs.to_expand(model, clean, corrupt, metric, direction, integrate, alignment)
    chosen = check_layers(layers, model.n_layers, model.name)
    found = model.resolve([f"blocks.{i}.{KINDS[k]}" for k in kinds for i in chosen])
    order = {site.name: site for site in found}
    sites = {k: [order[name] for name in (f"blocks.{i}.{KINDS[k]}" for i in chosen)] for k in kinds}
    points = list({site.name: site for some in sites.values() for site in some}.values())
    estimates: dict[str, list[np.ndarray]] = {k: [] for k in kinds}
    wrong: dict[str, list[np.ndarray]] = {k: [] for k in kinds}
    cells: dict[str, Cells] = {}
    ends, any_heads = [], any(k in HEADS for k in kinds)
    spans = [
        [base for _, base, _ in runs.groups(i)] if alignment is not None else [] for i in range(len(runs))
    ]
    progress.stage("attribute", len(runs))
    for i, one in enumerate(
        runs.expand(points, [p.name for p in points], control, seed, tokens_per_backward)
    ):
        ends.append(one.ends)
        for k in kinds:
            names = [site.name for site in sites[k]]
            cells[k] = Cells.of(
                k, by if k in HEADS or not any_heads or by == "span" else "auto", one.base[names[0]],
                runs.bases[i].lengths[0], 1, spans[i],
            )  # fmt: skip
            estimates[k].append(_first_order(one.delta, one.gradients, names, cells[k]))
            if one.wrong is not None:
                wrong[k].append(_first_order(one.wrong, one.gradients, names, cells[k]))
        progress.advance()
    seconds = time.perf_counter() - started
    results = {}
    for k in kinds:
        for i, grids in enumerate(zip(estimates[k], wrong[k] if control else estimates[k], strict=True)):
            if "position" in cells[k].axes:
                nowhere = sorted(set(range(runs.length)) - set(runs.aligned(i)))
                for grid in grids:
                    grid[..., nowhere] = np.nan
    for k in kinds:
        results[k] = runs.outcome(
            ends, estimates[k], wrong[k] if control else None, settings={"kind": k, "by": by},
            layers=[s.layer for s in sites[k] if s.layer is not None], axes=tuple(cells[k].axes),
            seed=seed, seconds=seconds,
        ).result(model)  # fmt: skip
        results[k].data["metric"].attrs["long_name"] += ", estimated to first order"
    if recheck:
        progress.stage("recheck", len(runs.bases))
        _recheck(runs, sites, cells, results, recheck, seed, progress)
    return _joined(results, fewer_kv=model.n_kv_heads < model.n_heads)


def _check(kinds: Sequence[str], recheck: Any) -> None:
    for kind in kinds or ("none",):
        if kind not in ATTRIBUTED:
            raise PromptError(
                f"kind {kind!r} has no attribution: give one of {', '.join(ATTRIBUTED)}, or sweep it exactly."
            )
    if recheck != "all" and (not isinstance(recheck, Integral) or recheck < 0):
        raise PromptError(f"recheck is {recheck!r}; expected a number of cells, 0 or more, or 'all'.")


def _first_order(
    delta: Activations, gradients: Activations, names: Sequence[str], cells: Cells
) -> np.ndarray:
    """[layer, *axes] of (a' - a) · dm/da."""
    grid = []
    for name in names:
        each = (precise(delta[name]) * precise(gradients[name])).sum(-1)
        match tuple(cells.axes):
            case ("head",):
                each = each.sum(0)
            case ("head", "position"):
                each = each.T
            case ("span",):
                each = torch.stack([each[list(span)].sum() for span in cells.spans])
        grid.append(each)
    return torch.stack([each.to(grid[0].device) for each in grid]).double().cpu().numpy()


def _recheck(
    runs: Runs,
    sites: Mapping[str, Sequence[Site]],
    cells: Mapping[str, Cells],
    results: Mapping[str, Result],
    recheck: int | Literal["all"],
    seed: int,
    progress: Progress,
) -> None:
    """Patch the strongest cells of each kind exactly: adds `exact_effect` and `summary["recheck"]`."""
    which, exact, changed = {}, {}, {}
    for k, result in results.items():
        strength = np.abs(result.data["mean_effect"].values)
        order = np.argsort(-strength, axis=None, kind="stable")[: int(np.isfinite(strength).sum())]
        some = order if recheck == "all" else order[:recheck]
        which[k] = list(zip(*(i.tolist() for i in np.unravel_index(some, strength.shape)), strict=True))
        exact[k] = np.full(result.data["effect"].shape, np.nan)
        changed[k] = np.zeros((len(runs.pairs), len(some)), bool)
    names = list(dict.fromkeys(site.name for some in sites.values() for site in some))
    for i, (source, base) in enumerate(zip(runs.sources, runs.bases, strict=True)):
        replay = Replay(runs.model, base, read=names)
        own = replay.activations
        there = read(runs.model, source, names, runs.keep)
        taken = runs.moved(i, there, own)
        logits = (there["logits"], replay.end_logits(runs.keep))
        metric = runs.function(i, *logits)
        ends = [float(metric(one[None])[0]) for one in logits]
        for k, some in which.items():
            of = [site.name for site in sites[k]]
            values, changed[k][i] = patched_metric(
                replay, taken, own, of, cells[k], some, metric, keep=runs.keep
            )
            at = np.array(some, int).reshape(-1, exact[k].ndim - 1)
            exact[k][(i, *at.T)] = (values - ends[1]) / (ends[0] - ends[1])
        progress.advance()
    for k, result in results.items():
        dims = tuple(map(str, result.data["effect"].dims))
        label = f"{runs.direction} effect, patched exactly (NaN: not rechecked)"
        result.data["exact_effect"] = array(dims, exact[k], long_name=label)
        moved = [cell for cell, any_pair in zip(which[k], changed[k].any(0), strict=True) if any_pair]
        at = (slice(None), *np.array(moved, int).reshape(-1, len(dims) - 1).T)
        result.summary["recheck"] = {
            **agreement(result.data["effect"].values[at], exact[k][at], seed),
            "rechecked": f"{len(which[k])} of {result.data['mean_effect'].size} cells, of which "
            f"{len(which[k]) - len(moved)} put in what was there already",
        }


def _joined(results: Mapping[str, Result], *, fewer_kv: bool) -> Result:
    """One result of kind `attribution`; with several kinds, names end in the kind."""
    first = next(iter(results.values()))
    if len(results) == 1:
        return Result("attribution", first.data, first.provenance, first.summary)
    parts: list[xr.Dataset] = []
    summary = {}
    shared = ("clean_metric", "corrupt_metric")
    for k, result in results.items():
        data = result.data.rename(
            {name: f"{name}_{k}" for name in result.data.data_vars if name not in shared}
        )
        if fewer_kv and k in ("k", "v"):
            data = data.rename(head="kv_head")
        parts.append(data)
        summary[k] = {
            n: v
            for n, v in result.summary.items()
            if n in ("strongest", "note", "control_largest", "recheck")
        }
    data = xr.merge(parts, combine_attrs="override", compat="equals", join="exact")
    data.attrs["kind"] = ", ".join(results)
    common = {name: first.summary[name] for name in (*shared, "n_pairs")}
    return Result("attribution", data, first.provenance, {"kind": list(results), **common, **summary})
