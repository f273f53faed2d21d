"""Patching sweep: which activation, moved from one run into another, moves the answer?

For a pair of prompts of equal length (clean: the model answers right; corrupt: one thing changed):

    denoising:  run corrupt, put in the clean activation      effect = (patched - corrupt) / (clean - corrupt)
    noising:    run clean, put in the corrupt activation      effect = (clean - patched) / (clean - corrupt)

0 = nothing moved, 1 = as if the whole prompt had been exchanged; both are kept beside the raw metric. What a patch
replaces (a position of a stream, a head, …) is in `cells`, what it puts in (the other run, a mean, …) in `sources`.

A patch that puts in, bit for bit, what is there already (both prompts begin alike, so the streams do) is not run:
its metric is the base run's. `data.attrs["unchanged"]` says how many cells that was.

Control (wrong source): the same patches with an activation that should not help. With several pairs it comes
from the next pair's source run; with one pair from another position of the source run (a seeded derangement).
With several pairs the mean effect carries its standard error, a 95 % bootstrap interval over pairs, and the p-value of
a permutation test against the wrong-source patches.

Method: Vig et al. 2020 (2004.12265); Meng et al. 2022 (2202.05262); denoising and noising as in Heimersheim
& Nanda 2024 (2404.15255). TransformerLens' `get_act_patch_*` computes the denoising metric by one whole
forward per cell; here only what the patch can change is run again (see `replay`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from workbench.errors import MetricError
from workbench.model.language_model import LanguageModel
from workbench.model.tokens import Prompt, as_list
from workbench.patching.cells import KINDS, By, Cells, Kind, check_layers
from workbench.patching.checkpoint import Checkpoint
from workbench.patching.grid import fill_grid
from workbench.patching.metrics import Metric, MetricFunction, continuation, function_of, one_each
from workbench.patching.outcome import Outcome
from workbench.patching.pairs import as_pairs
from workbench.patching.replay import TOKENS_PER_CALL, Replay
from workbench.patching.sources import Source, put_in, read, wrong_sources
from workbench.progress import Progress, Silent
from workbench.results import Result

__all__ = ["KINDS", "sweep"]


def sweep(
    model: LanguageModel,
    clean: Prompt | Sequence[Prompt],
    corrupt: Prompt | Sequence[Prompt],
    metric: Metric | MetricFunction | Sequence[Metric],
    *,
    kind: Kind = "resid_pre",
    by: By = "auto",
    direction: Literal["denoising", "noising"] = "denoising",
    source: Source = "run",
    layers: Sequence[int] | None = None,
    group_size: int = 128,
    control: bool = True,
    seed: int = 0,
    skip_unchanged: bool = True,
    tokens_per_call: int = TOKENS_PER_CALL,
    checkpoint: Path | str | None = None,
    watch: Callable[[int, np.ndarray], None] | None = None,
    progress: Progress | None = None,
) -> Result:
    """Patch every cell of a grid and measure what the answer does.

    Args:
        model: the language model.
        clean, corrupt: one prompt each, or as many as there are pairs. All have the same number of tokens.
        metric: logits -> number (see `metrics`), or a function; one for all pairs, or one per pair.
        kind: what to patch (`cells`): streams and sublayers give layer × position, heads (`z`, `q`, `k`, `v`,
            `pattern`) layer × head, `neurons` layer × group.
        by: `head_position` for a head at one position: layer × head × position. `auto` as said.
        direction: `denoising` (default: what suffices to restore the answer) or `noising` (what is needed).
        source: what is put in (`sources`): the other run's activation, or `zero`, `mean`, `resample`, `noise`.
        layers: which blocks; all by default.
        group_size: neurons in a group.
        control: also run the wrong-source patches (doubles the time).
        seed: for the control's derangement, the bootstrap and the permutations.
        skip_unchanged: do not run patches that are bit-equal to what they replace; results do not depend on it.
        tokens_per_call: tokens in one replayed batch. Results do not depend on it.
        checkpoint: a file for what is done when the sweep is stopped; the same call goes on from there.
        watch: called with the pair's number and its grid ([layer, ...] metric, NaN where not yet known) after each
            position (or head).
        progress: where to report, one item per position (or head) and pair.

    Returns:
        A `Result` of kind `patching_sweep`: dims `pair`, `layer` and those of the cells; variables `metric`,
        `effect`, `control_effect`, `mean_effect` with `effect_se`, `effect_low`, `effect_high`, `p_value`,
        `clean_metric`, `corrupt_metric`. `summary["strongest"]` is the cell of largest mean effect.

    Raises:
        PromptError: prompts of different lengths (the message shows both), or numbers of prompts that differ.
        MetricError: a metric token that is not one token, or a pair whose clean and corrupt metric are equal.
        SiteError: this architecture does not have the site.
        DataError: the checkpoint is of another sweep.

    Example:
        >>> clean = "When Mary and John went to the store, John gave a drink to"
        >>> corrupt = "When Mary and John went to the store, Mary gave a drink to"
        >>> wb.patching.sweep(model, clean, corrupt, wb.LogitDifference(" Mary", " John")).summary["strongest"]
    """
    progress = progress or Silent()
    started = time.perf_counter()
    if direction not in ("denoising", "noising"):
        raise MetricError(f"direction is {direction!r}; expected 'denoising' or 'noising'.")
    metrics = _metrics(model, metric, len(as_list(clean)))
    tails = [continuation(m, model) for m in metrics]
    keep = len(tails[0]) + 1
    pairs = as_pairs(model, clean, corrupt, tails)
    chosen = check_layers(layers, model.n_layers, model.name)
    suffix = KINDS.get(kind, kind)
    if kind not in KINDS:
        Cells.of(kind, by, None, 0, group_size)  # type: ignore[arg-type]
    sites = [s.name for s in model.resolve([f"blocks.{i}.{suffix}" for i in chosen])]
    given = [a if direction == "denoising" else b for a, b in pairs]
    bases = [b if direction == "denoising" else a for a, b in pairs]

    taken = [read(model, batch, sites, keep) for batch in given]
    own = [read(model, batch, sites, keep) for batch in bases]
    cells = Cells.of(kind, by, taken[0][sites[0]], bases[0].lengths[0], group_size)
    rng = np.random.default_rng(seed)
    wrong = wrong_sources(taken, rng, kind) if control else None
    put = put_in(taken, source, rng)
    about = [
        model.fingerprint, [b.ids.tolist() for pair in pairs for b in pair], [str(m) for m in metrics], kind,
        cells.axes, direction, source, chosen, group_size, control, seed,
    ]  # fmt: skip
    grids, ends, unchanged = [], [], 0
    progress.stage(f"patch {kind}", len(pairs) * sum(1 for _ in cells.columns))
    with Checkpoint(checkpoint, about) as kept:
        for i, base in enumerate(bases):
            first = taken[i] if direction == "denoising" else own[i]
            function = function_of(metrics[i], model, first["logits"])
            ends.append([float(function(one["logits"][None])[0]) for one in (taken[i], own[i])])

            def done(grid: np.ndarray, columns: int, i: int = i) -> None:
                kept.keep(i, grid, columns)
                if watch is not None:
                    watch(i, grid[0])

            grid, left_out = fill_grid(
                Replay(model, base),
                [put[i]] if wrong is None else [put[i], wrong[i]],
                own[i] if skip_unchanged else None,
                sites,
                cells,
                function,
                keep=keep,
                tokens_per_call=tokens_per_call,
                progress=progress,
                begun=kept.begun(i),
                done=done,
            )
            grids.append(grid)
            unchanged += left_out
    raw = np.stack([grid[0] for grid in grids])
    control_kind = "the next pair's run" if len(pairs) > 1 else "the same run at deranged positions"
    settings: dict[str, Any] = {
        "kind": kind,
        "source": source,
        "unchanged": f"{unchanged} of {raw.size} patches put in what was there already, so they were not run",
    }
    return Outcome(
        pairs=pairs,
        layers=chosen,
        axes=tuple(cells.axes),
        metric=str(metrics[0]),
        direction=direction,
        settings=settings,
        ends=np.array(ends),
        raw=raw,
        wrong=np.stack([grid[1] for grid in grids]) if control else None,
        control=f"wrong source: {control_kind}" if control else "not run",
        seed=seed,
        seconds=time.perf_counter() - started,
    ).result(model)


def _metrics(model: LanguageModel, metric: Any, n_pairs: int) -> list[Metric]:
    """One metric a pair, each known to suit the model."""
    metrics = one_each(metric, model, n_pairs)
    lengths = {len(continuation(one, model)) for one in metrics}
    if len(lengths) > 1:
        raise MetricError(
            f"The answers have {sorted(n + 1 for n in lengths)} tokens: one grid needs answers of one length. Sweep "
            "them in groups."
        )
    return metrics
