"""Patching sweep: which activation, moved from one run into another, moves the answer?

For a pair of prompts (clean: the model answers right; corrupt: one thing changed):

    denoising:  run corrupt, put in the clean activation      effect = (patched - corrupt) / (clean - corrupt)
    noising:    run clean, put in the corrupt activation      effect = (clean - patched) / (clean - corrupt)

0 = nothing moved, 1 = as if the whole prompt had been exchanged; both are kept beside the raw metric. What a patch
replaces (a position of a stream, a head, …) is in `cells`, what it puts in (the other run, a mean, …) in `sources`.

A patch that puts in, bit for bit, what is there already (both prompts begin alike, so the streams do) is not run:
its metric is the base run's. `data.attrs["unchanged"]` says how many cells that was.

Control (wrong source): the same patches with an activation that should not help. With several pairs it comes
from the next pair's source run (the one after it where `resample` puts that in already); with one pair, or two that are
resampled, from other positions of the run that is put in (a seeded derangement).
With several pairs the mean effect carries its standard error, a 95 % bootstrap interval over pairs, and the p-value of
a permutation test against the wrong-source patches.

Method: Vig et al. 2020 (2004.12265); Meng et al. 2022 (2202.05262); denoising and noising as in Heimersheim
& Nanda 2024 (2404.15255). TransformerLens' `get_act_patch_*` computes the denoising metric by one whole
forward per cell; here only what the patch can change is run again (see `replay`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from workbench.errors import PromptError
from workbench.model.language_model import LanguageModel
from workbench.model.tokens import Prompt
from workbench.patching.alignment import Alignment
from workbench.patching.cells import HEADS, KINDS, By, Cells, Kind, check_layers
from workbench.patching.checkpoint import Checkpoint
from workbench.patching.grid import Grid, fill
from workbench.patching.metrics import Metric, MetricFunction
from workbench.patching.outcome import Outcome
from workbench.patching.pairs import Pairs
from workbench.patching.replay import TOKENS_PER_CALL, Replay
from workbench.patching.sources import PutIn, Reader, Source, deranged
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
    alignment: Alignment | Mapping[int, int] | Sequence[Alignment | Mapping[int, int]] | None = None,
    layers: Sequence[int] | int | None = None,
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
        clean, corrupt: one prompt each, or as many as there are pairs. All have the same number of tokens, unless an
            `alignment` is given.
        metric: logits -> number (see `metrics`), or a function; one for all pairs, or one per pair.
        kind: what to patch (`cells`): streams and sublayers give layer × position, heads (`z`, `q`, `k`, `v`,
            `pattern`) layer × head, `neurons` layer × group.
        by: `head_position` for a head at one position: layer × head × position; `span` for the spans of an alignment
            instead of positions, which pairs of any lengths share. `auto` as said.
        direction: `denoising` (default: what suffices to restore the answer) or `noising` (what is needed).
        source: what is put in (`sources`): the other run's activation, or `zero`, `mean`, `resample`, `noise`.
        alignment: which positions correspond where prompts differ in length (`Alignment.of_spans`, `of_tokens`,
            `align`, or a map of clean to corrupt positions); one for all pairs or one per pair. Positions are those of
            the patched run; where nothing corresponds, there is no patch and the grid has NaN.
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
        PromptError: prompts of different lengths without an alignment (the message shows both), or numbers of prompts
            that differ.
        MetricError: a metric token that is not one token, or a pair whose clean and corrupt metric are equal.
        SiteError: this architecture does not have the site.
        DataError: the checkpoint is of another sweep.

    Example:
        >>> clean = "When Mary and John went to the store, John gave a drink to"
        >>> corrupt = "When Mary and John went to the store, Mary gave a drink to"
        >>> wb.patching.sweep(model, clean, corrupt, wb.LogitDifference(" Mary", " John")).summary["strongest"]
    """
    progress, started = progress or Silent(), time.perf_counter()
    by_span = by == "span"
    pairs = Pairs.of(
        model, clean, corrupt, metric, direction,
        alignment=alignment, one_grid=by == "head_position" or not (by_span or kind in (*HEADS, "neurons")),
    )  # fmt: skip
    chosen = check_layers(layers, model.n_layers, model.name)
    suffix = KINDS.get(kind, kind)
    if kind not in KINDS:
        Cells.of(kind, by, None, 0, group_size)  # type: ignore[arg-type]
    sites = [s.name for s in model.resolve([f"blocks.{i}.{suffix}" for i in chosen])]
    runs = Reader(model, pairs.sources, sites, pairs.keep)
    rng = np.random.default_rng(seed)
    put = PutIn(runs, source, rng, kind)
    like = runs[0][sites[0]]
    if by_span:
        same_spans(pairs)

    def cells_of(i: int) -> Cells:
        spans = [base for _, base, _ in pairs.groups(i)] if by_span and alignment is not None else ()
        return Cells.of(kind, by, like, pairs.bases[i].lengths[0], group_size, spans)

    about = [
        model.fingerprint, [b.ids.tolist() for pair in pairs.pairs for b in pair], [str(m) for m in pairs.metrics],
        kind, cells_of(0).axes, direction, source, chosen, group_size, control, seed, str(pairs.alignments),
    ]  # fmt: skip
    progress.stage(f"patch {kind}", len(pairs) * cells_of(0).n_columns)
    done: list[Grid] = []
    ends: list[tuple[float, float]] = []
    with Checkpoint(checkpoint, about) as kept:
        for some in _together(pairs, cells_of(0), len(sites) * (1 + control), tokens_per_call):
            grids = []
            for i in some:
                replay = Replay(model, pairs.bases[i], read=sites)
                own, taken = replay.activations, runs[i]
                function = pairs.function(i, taken["logits"], replay.end_logits(pairs.keep))
                ends.append(_two(function, taken["logits"], replay.end_logits(pairs.keep)))
                kept.same_metric(i, ends[-1])
                sources = [pairs.moved(i, put[i], own, put.of(i))]
                if control:
                    other = put.other_than(i)
                    wrong = pairs.moved(i, runs[other], own, other)
                    sources.append(
                        deranged(wrong, rng, kind) if put.of(i) == other or len(pairs) == 1 else wrong
                    )
                grids.append(
                    Grid(
                        replay,
                        sources,
                        own if skip_unchanged else None,
                        cells_of(i),
                        function,
                        done=_teller(i, kept, watch),
                        begun=kept.begun(i),
                    )
                )
            fill(grids, sites, keep=pairs.keep, tokens_per_call=tokens_per_call, progress=progress)
            for grid in grids:
                grid.replay, grid.sources, grid.own = None, (), None  # type: ignore[assignment]
            done += grids
            runs.forget(some[-1] + 1)
    values = np.stack([grid.values for grid in done])
    if "position" in done[0].cells.axes:
        for i in range(len(pairs)):
            values[i][..., sorted(set(range(values.shape[-1])) - set(pairs.aligned(i)))] = np.nan
    n_unchanged = sum(grid.left_out for grid in done)
    alone = len(pairs) == 1 or (source == "resample" and len(pairs) == 2)
    control_kind = "the same run at deranged positions" if alone else put.control
    return Outcome(
        pairs=pairs,
        layers=chosen,
        axes=tuple(done[0].cells.axes),
        settings={
            "kind": kind,
            "source": source,
            "unchanged": f"{n_unchanged} of {values[:, 0].size} patches put in what was there already, so they were "
            "not run",
        },
        ends=np.array(ends),
        raw=values[:, 0],
        wrong=values[:, 1] if control else None,
        control=f"wrong source: {control_kind}" if control else "not run",
        seed=seed,
        seconds=time.perf_counter() - started,
    ).result(model)


def _two(metric: MetricFunction, source: Tensor, base: Tensor) -> tuple[float, float]:
    return float(metric(source[None])[0]), float(metric(base[None])[0])


def same_spans(pairs: Pairs) -> None:
    """Raise `PromptError` unless all pairs have spans of the same names, in one order."""
    names = [[name for name, _, _ in pairs.groups(i)] for i in range(len(pairs))]
    for i, one in enumerate(names):
        if pairs.alignments is not None and one != names[0]:
            raise PromptError(
                f"Pair {i} has the spans {one} and pair 0 has {names[0]}: one grid needs the same names in one order."
            )


def _together(pairs: Pairs, cells: Cells, rows: int, tokens_per_call: int) -> Iterator[list[int]]:
    """Pairs whose grids are filled at once: as many as keep a batch busy, of one length; one where spans differ."""
    per_pair = rows * max(len(column) for _, column in cells.columns) * pairs.length / 2
    size = max(1, int(tokens_per_call // per_pair))
    batch: list[int] = []
    for i, base in enumerate(pairs.bases):
        differs = batch and base.lengths[0] != pairs.bases[batch[0]].lengths[0]
        if batch and (len(batch) == size or differs or "span" in cells.axes):
            yield batch
            batch = []
        batch.append(i)
    yield batch


def _teller(
    i: int, kept: Checkpoint, watch: Callable[[int, np.ndarray], None] | None
) -> Callable[[np.ndarray, int], None]:
    """Tells the checkpoint and whoever watches of pair i's grid."""

    def tell(grid: np.ndarray, columns: int) -> None:
        kept.keep(i, grid, columns)
        if watch is not None:
            watch(i, grid[0])

    return tell
