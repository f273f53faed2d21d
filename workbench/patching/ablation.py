"""Ablation: take away what a site carries and see what the answer does.

For a site s (or one head of it) at positions P of a prompt, x = the activation there, r = that of reference prompts:

    zero                   x[p] <- 0
    mean                   x[p] <- mean over reference prompts of r[p]             (position by position)
    mean_over_positions    x[p] <- mean over all tokens of all reference prompts   (one vector)
    resample               x[p] <- r[p] of one other reference prompt, drawn by a seed
    noise                  x[p] <- x[p] + σ ε, ε ~ N(0, 1), σ the standard deviation of each dimension over all tokens
                           of all reference prompts

    effect = metric(ablated) - metric(base)          below 0 where the site helps the metric

Each site (or head) is ablated alone; only the blocks from its own on are replayed (see `replay`).

Control: the same push in a random direction. The ablation moves x[p] by δ = new - x; the control moves it by a seeded
random vector of the same norm, at the same site, head and positions. An effect no larger than the control's comes with
any push of this size and says nothing about what is there. (A random other site carries other information and another
norm, so it would be no null; the other heads of a layer stand beside each other in the grid anyway.)

Mean over a reference set is argued for, against zero, in Wang et al. 2022 (2211.00593), section 2; resampling in Chan
et al. 2022 ("Causal scrubbing"); noise follows Meng et al. 2022 (2202.05262), which adds 3 σ to the subject's
embeddings, with one σ for all dimensions.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.errors import DataError, PromptError, SiteError
from workbench.hooks.session import EditFunction
from workbench.model.language_model import LanguageModel
from workbench.model.tokens import Positions, Prompt, TokenBatch, as_list, at_least_one
from workbench.patching.effects import effect_variables, resolved_metrics, strongest
from workbench.patching.metrics import Metric
from workbench.patching.replay import TOKENS_PER_CALL, Entry, Replay
from workbench.progress import Progress, Silent
from workbench.provenance import provenance
from workbench.results import Result, array
from workbench.sites.catalog import Site

How = Literal["zero", "mean", "mean_over_positions", "resample", "noise"]
HOWS = ("zero", "mean", "mean_over_positions", "resample", "noise")


def ablate(
    model: LanguageModel,
    prompts: Prompt | Sequence[Prompt],
    sites: str | Sequence[str],
    metric: Metric | Sequence[Metric],
    *,
    how: How = "mean",
    reference: Sequence[Prompt] | None = None,
    positions: Positions = "all",
    heads: Literal["each"] | Sequence[int] | None = None,
    control: bool = True,
    seed: int = 0,
    tokens_per_call: int = TOKENS_PER_CALL,
    progress: Progress | None = None,
) -> Result:
    """Ablate each site (or each head of it) alone and measure what the answer does.

    Args:
        model: the language model.
        prompts: one or several.
        sites: names or patterns of sites in the blocks (`blocks.*.attn.hook_z`); attention patterns have `knockout`.
        metric: logits -> number (see `metrics`); one for all prompts, or one per prompt.
        how: what is put in, see the module's text. `mean` by default: zero is off the distribution.
        reference: prompts of the same task that mean, noise or another run are taken from; the prompts themselves by
            default, and resampling then never takes a prompt's own run. `mean` and `resample` need as many tokens as
            the prompts have. `zero` needs none.
        positions: which positions of each prompt are ablated (negative ones count from its end).
        heads: `"each"` or a list: every head alone (sites q, k, v, z; k and v have the key-value heads). None: whole.
        control: also run the random pushes of the same norm (doubles the time).
        seed: of resampling, noise, the control and the bootstrap.
        tokens_per_call: tokens in one replayed batch. Results do not depend on it.
        progress: where to report, one item per prompt.

    Returns:
        A `Result` of kind `ablation`: dims `prompt`, `site` and, if asked for, `head`; variables `metric`, `effect`,
        `control_effect`, `base_metric`, and over prompts `mean_effect`, `stderr`, `effect_low`, `effect_high` (95 %
        bootstrap) and the same of the control; `resampled_from` (number of the reference prompt) for resampling.

    Raises:
        SiteError: a site that is not there, lies outside the blocks, or has no heads though they were asked for.
        PromptError: reference prompts of another length (`mean`, `resample`).
        DataError: an unknown `how` or head, or a reference that has nothing to put in.
        PositionError, MetricError: positions or metrics that cannot be.

    Example:
        >>> prompts = ["When Mary and John went to the store, John gave a drink to"]
        >>> metric = wb.LogitDifference(" Mary", " John")
        >>> ablate(model, prompts, "blocks.*.attn.hook_z", metric, how="zero", heads="each").summary["strongest"]
    """
    progress, started = progress or Silent(), time.perf_counter()
    if how not in HOWS:
        raise DataError(f"how={how!r} is not known: give one of {', '.join(HOWS)}.")
    found = _block_sites(model, sites)
    chosen_heads = _heads(found, heads)
    batches = [model.batch(prompt) for prompt in at_least_one(prompts)]
    others = batches if reference is None else [model.batch(prompt) for prompt in as_list(reference)]
    if reference is None and len(batches) == 1 and how in ("mean", "resample"):
        raise DataError(f"how={how!r} over the one prompt itself changes nothing: give reference prompts.")
    functions, metric_name = resolved_metrics(model, metric, len(batches))
    if how in ("mean", "resample"):
        _same_length(batches, others)
    drawn = _drawn(batches, others, seed) if how == "resample" else []
    moments = (
        _moments(model, others, found, per_position=how == "mean") if how not in ("zero", "resample") else {}
    )

    cells = [(site, head) for site in found for head in (chosen_heads or [None])]
    base, values = [], []
    progress.stage(f"ablate ({how})", len(batches))
    for i, batch in enumerate(batches):
        replay = Replay(model, batch)
        at = batch.resolve(0, positions)
        start = replay.starts(min(at))
        taken = _read(model, others[drawn[i]], found) if drawn else {}
        entries = []
        for wrong in (False, True) if control else (False,):
            for c, (site, head) in enumerate(cells):
                new = taken[site.name] if drawn else _put_in(moments.get(site.name), how, replay.length)
                edit = _edit(new, how, at, start, head, [seed, i, c, wrong], wrong)
                entries.append(_entry(replay, site, edit, start))
        row = np.empty(len(entries))
        for part, logits in replay.logits_in_parts(entries, start, tokens_per_call=tokens_per_call):
            row[part] = functions[i](logits).float().cpu().numpy()
        base.append(float(functions[i](replay.logits[None])[0]))
        shape = (len(found), len(chosen_heads)) if chosen_heads else (len(found),)
        values.append(row.reshape(-1, *shape))
        progress.advance()

    stacked, dims = np.stack(values), ("site", "head") if chosen_heads else ("site",)
    variables = effect_variables(
        np.array(base), stacked[:, 0], stacked[:, 1] if control else None, dims, metric_name, seed
    )
    if drawn:
        variables["resampled_from"] = array(("prompt",), drawn, long_name="number of the reference prompt")
    coords: dict[str, object] = {
        "prompt": np.arange(len(batches)),
        "site": np.array([site.name for site in found]),
        "layer": ("site", [site.layer for site in found]),
    }
    if chosen_heads:
        coords["head"] = np.array(chosen_heads)
    attrs = {
        "how": how,
        "metric": metric_name,
        "positions": str(positions),
        "reference": "none" if how == "zero" else f"{len(others)} prompts{' (the same)' * (reference is None)}",
        "control": "a push of the same norm in a random direction" if control else "not run",
        "n_prompts": len(batches),
    }  # fmt: skip
    data = xr.Dataset(variables, coords=coords, attrs=attrs)
    summary = {
        "how": how,
        "base_metric": round(float(np.mean(base)), 4),
        "n_prompts": len(batches),
        "strongest": strongest(data, {dim: dim for dim in dims}),
    }
    ids = [batch.ids[0].tolist() for batch in batches]
    settings = {"reference_tokens": [b.ids[0].tolist() for b in others]} if reference is not None else {}
    seconds = {"ablate": time.perf_counter() - started}
    made = provenance(model, tokens=ids, seed=seed, seconds=seconds, settings=settings)
    return Result("ablation", data, made, summary)


def _block_sites(model: LanguageModel, sites: str | Sequence[str]) -> list[Site]:
    found = model.resolve(sites)
    for site in found:
        if site.layer is None:
            raise SiteError(f"Site {site.name!r} is outside the blocks: ablation replays from a block on.")
        if site.where == "pattern":
            raise SiteError(f"Site {site.name!r} is an attention pattern: block its edges with `knockout`.")
    return found


def _heads(sites: list[Site], heads: Literal["each"] | Sequence[int] | None) -> list[int]:
    if heads is None:
        return []
    counts = {site.heads for site in sites}
    if 0 in counts:
        name = next(site.name for site in sites if not site.heads)
        raise SiteError(f"Site {name!r} has no heads: give sites q, k, v or z, or heads=None.")
    if len(counts) > 1:
        raise SiteError(
            f"The sites have {sorted(counts)} heads (query and key-value heads): ablate them apart."
        )
    (n,) = counts
    chosen = list(range(n)) if isinstance(heads, str) else [int(h) for h in heads]
    if not chosen or not all(0 <= h < n for h in chosen) or (isinstance(heads, str) and heads != "each"):
        raise DataError(f"heads={heads!r} cannot be ablated: give 'each', or a list out of 0–{n - 1}.")
    return chosen


def _same_length(batches: list[TokenBatch], others: list[TokenBatch]) -> None:
    length = batches[0].lengths[0]
    for name, some in (("Prompt", batches), ("Reference prompt", others)):
        for i, batch in enumerate(some):
            if batch.lengths[0] != length:
                raise PromptError(
                    f"{name} {i} has {batch.lengths[0]} tokens and prompt 0 has {length}, so positions do not "
                    "correspond. Give prompts of one length, or use how='mean_over_positions'."
                )


def _drawn(batches: list[TokenBatch], others: list[TokenBatch], seed: int) -> list[int]:
    rng, drawn = np.random.default_rng(seed), []
    for i, batch in enumerate(batches):
        differing = [j for j, other in enumerate(others) if not torch.equal(other.ids, batch.ids)]
        if not differing:
            raise DataError(f"No reference prompt differs from prompt {i}: resampling would change nothing.")
        drawn.append(int(rng.choice(differing)))
    return drawn


@torch.inference_mode()
def _read(model: LanguageModel, batch: TokenBatch, sites: list[Site]) -> dict[str, Tensor]:
    with model.hooks(read=[site.name for site in sites]) as session:
        model.forward(batch, logits_to_keep=1)
    return {site.name: session[site.name][0] for site in sites}


def _moments(
    model: LanguageModel, others: list[TokenBatch], sites: list[Site], *, per_position: bool
) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and standard deviation over reference prompts ([position, ...]) or over all their tokens ([...])."""
    n, sums = 0, {site.name: (torch.zeros(()), torch.zeros(())) for site in sites}
    for batch in others:
        read = _read(model, batch, sites)
        n += 1 if per_position else batch.lengths[0]
        for name, value in read.items():
            x = value.double().cpu()
            first, second = (x, x**2) if per_position else (x.sum(0), (x**2).sum(0))
            sums[name] = (sums[name][0] + first, sums[name][1] + second)
    return {
        name: (first / n, (second / n - (first / n) ** 2).clamp(min=0).sqrt())
        for name, (first, second) in sums.items()
    }


def _put_in(moments: tuple[Tensor, Tensor] | None, how: str, length: int) -> Tensor:
    """[position, ...] (or something that expands to it): what is put in, or for noise its standard deviation."""
    if moments is None:
        return torch.zeros(length)
    mean, deviation = moments
    return mean if how == "mean" else (deviation if how == "noise" else mean).expand(length, *mean.shape)


def _edit(
    new: Tensor, how: str, at: list[int], start: int, head: int | None, seed: list[int], wrong: bool
) -> EditFunction:  # fmt: skip
    """Draws the same each time it is called, as rows are run again where memory was full."""
    here = [p - start for p in at]
    where = (here,) if head is None else (here, head)

    def edit(activation: Tensor) -> Tensor:
        old, rng = activation[where], np.random.default_rng(seed)
        put = new.reshape(-1, *[1] * (activation.ndim - 1)) if new.ndim == 1 else new
        put = put.to(old).expand(len(new), *activation.shape[1:])[at if head is None else (at, head)]
        change = put * _normal(rng, old) if how == "noise" else put - old
        if wrong:
            random = _normal(rng, old)
            scale = change.flatten(1).norm(dim=1) / random.flatten(1).norm(dim=1)
            change = random * scale.reshape(-1, *[1] * (old.ndim - 1))
        activation[where] = old + change if (wrong or how == "noise") else put
        return activation

    return edit


def _entry(replay: Replay, site: Site, edit: EditFunction, start: int) -> Entry:
    assert site.layer is not None
    if site.part in (
        "hook_resid_pre",
        "hook_resid_post",
    ):  # the stream itself: nothing of the block is needed
        first = site.layer + (site.part == "hook_resid_post")
        return Entry(first, edit(replay.inputs[first][start:].clone()))
    return Entry(site.layer, replay.inputs[site.layer][start:], {site.name: edit})


def _normal(rng: np.random.Generator, like: Tensor) -> Tensor:
    return torch.from_numpy(rng.standard_normal(tuple(like.shape))).to(like)
