"""Causal check: does moving along a probe's direction change the model's answer?

With v the probe's unit direction at its site, c its natural scale, s a strength, and m the metric of the logits at
the prompt's last token, at the chosen positions

    move       h' = h + s c v                  change(s) = m(h') − m(h)
    ablate     h' = h − (h · v − a) v          a = 0: v is projected out; a = mean of h · v: its information only
    slope      Σ_s s change(s) / Σ_s s²        change of the metric per natural scale (least squares through 0)

+ is towards the probe's positive class. Beside it stand random directions of the same norm at the same place
(`control`): their mean, each of them, and probe − random with a 95 % interval from resampling prompts (groups
of them, where there are any) *and* random directions. A probe whose interval holds 0 reads something the model may not
use; one with a slope that random directions reach, too, has shown that the place is sensitive, and nothing about the
direction.

Whether the answer moves the right way: over the prompts, the correlation of the probe's projection with the metric of
the unedited model. Where the model uses what the probe reads, slope and correlation have one sign. (Criteria
"manipulation" in Savcisens and Eliassi-Rad 2025, arXiv:2506.23921; controls in Marks and Tegmark 2023,
arXiv:2310.06824.)

All strengths, directions and prompts are rows of few forwards; a row equals the same edit run alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probes.causal.direction import controls, reading, site_of
from probes.causal.outcome import Measured, outcome
from probes.causal.rows import encoded, next_logits, one_site, positions_of, read_at
from probes.trust.labels import group_codes
from workbench.collection.batching import TOKENS_PER_BATCH
from workbench.directions import Direction
from workbench.directions.checks import checked_seed
from workbench.errors import DataError, MetricError
from workbench.model.language_model import LanguageModel
from workbench.model.tokens import Positions, Prompt
from workbench.patching.metrics import KLDivergence, Metric, continuation, function_of, one_each
from workbench.progress import Progress, Silent
from workbench.provenance import provenance
from workbench.results import Result

CONTROLS = {"random": "random directions", "natural": "directions of natural variation"}
STRENGTHS = (-4.0, -2.0, -1.0, 1.0, 2.0, 4.0)


def causal_check(
    model: LanguageModel,
    prompts: Prompt | Sequence[Prompt],
    probe: Any,
    metric: Any,
    *,
    groups: Sequence[Any] | None = None,
    site: str | None = None,
    position: Positions | Sequence[Sequence[int]] = -1,
    strengths: float | int | Sequence[float | int] = STRENGTHS,
    scale: float | int | None = None,
    classes: Sequence[Any] | None = None,
    control: str = "random",
    n_random: int = 10,
    ablate: str = "zero",
    seed: int = 0,
    force: bool = False,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    progress: Progress | None = None,
) -> Result:
    """Move the activations along a probe's direction and see whether the metric follows, beside random directions.

    Args:
        model: the language model.
        prompts: best not those the probe was fitted on.
        probe: a `Direction`, a `FittedProbe`, or a fitted linear estimator (`coef_`; then `site` is needed).
        metric: as in `wb.patching`: `LogitDifference(a, b)` or another, a function [row, d_vocab] -> [row]; or
        one per
            prompt. Of one token.
        groups: one per prompt, where prompts belong together (statements on one country): the intervals then resample
            groups, since prompts of one group are no independent ones.
        site: where an estimator was fitted.
        position: where the edit goes: an index (-1: the last token), several, `"all"`, or one list per prompt.
        strengths: multiples of the scale, or one; 0 is added as the unedited model.
        scale: natural scale in activation units; by default the direction's own, and for an estimator the standard
            deviation of the projection over these prompts (of a `FittedProbe` over its training rows, if it knows).
        classes: (from, to), for a probe of several classes; a `Direction` has none.
        control: `random` (even over the sphere) or `natural` (where activations vary), see `direction.controls`.
        n_random: random directions; 19 or more can reach p = 0.05.
        ablate: `zero` projects the direction out; `mean` sets it to its mean over these prompts and positions.
        seed: of random directions and bootstrap.
        force: accept a direction that was made on other weights.
        tokens_per_batch: tokens in one forward. Results do not depend on it.
        progress: where to report, one item per row.

    Returns:
        A `Result` of kind `probe_causal`, see `probes.causal.outcome`.

    Raises:
        DataError: no strengths, a probe that does not fit site or model, an unknown control.
        MetricError, PositionError, SiteError, PromptError: what was asked for does not exist.

    Example:
        >>> check = causal_check(model, prompts, sweep.direction(layer=14), wb.LogitDifference(" true", " false"))
        >>> check.summary["slope"], check.summary["excludes_zero"]
    """
    progress, started = progress or Silent(), time.perf_counter()
    doses = _doses(strengths)
    if ablate not in ("zero", "mean"):
        raise DataError(f"ablate={ablate!r} is not known: give 'zero' or 'mean'.")
    if classes is not None and isinstance(probe, Direction):
        raise DataError("A direction goes one way: classes=(from, to) are for a probe, leave them out.")
    seed = checked_seed(seed)
    place = one_site(model, site_of(probe, site)).name
    ids = encoded(model, prompts)
    metrics = one_each(metric, model, len(ids), "prompt")
    units = group_codes(groups, len(ids), where="The prompts' groups: ")
    if any(continuation(m, model) for m in metrics):
        raise MetricError(
            "An answer of several tokens cannot be checked here: give the one token that differs."
        )
    where = positions_of(ids, position)
    rows = read_at(model, ids, place, where, tokens_per_batch=tokens_per_batch)
    read = reading(model, probe, rows, site=place, classes=classes, scale=scale, force=force)
    random = controls(read.direction, rows, control=control, n=n_random, seed=seed)
    vectors = torch.stack([d.vector for d in (read.direction, *random)])
    kept = (rows @ vectors.T).mean(0) if ablate == "mean" else torch.zeros(len(vectors))

    # Rows: (unedited), then direction × (strengths, ablation), each × prompts.
    moved = [s for s in doses if s != 0]
    n_cells = len(moved) + 1
    cell = np.arange(len(vectors) * n_cells).repeat(len(ids))
    of_row = np.tile(np.arange(len(ids)), len(vectors) * n_cells)
    which, kind = torch.from_numpy(cell // n_cells), torch.from_numpy(cell % n_cells)
    amount = torch.tensor([*moved, 0.0])[kind] * read.direction.scale
    ablated = kind == len(moved)

    def edit(h: Tensor, row: Tensor) -> Tensor:
        row = row.cpu()
        v = vectors[which[row]].to(h)
        along = (h * v).sum(1)
        gone = torch.where(ablated[row].to(h.device), along - kept[which[row]].to(h), torch.zeros_like(along))
        return h + (amount[row].to(h) - gone)[:, None] * v

    progress.stage("causal check", len(of_row) + len(ids))
    run = {"tokens_per_batch": tokens_per_batch, "progress": progress}
    scored = _Scores(model, metrics, len(ids))
    base = next_logits(model, ids, reduce=scored.first, **run)
    values = next_logits(
        model, ids, {place: edit}, where, of_row=of_row, reduce=lambda x, r: scored(x, of_row[r]), **run
    )
    change = (values.reshape(len(vectors), n_cells, len(ids)) - base).double().numpy()
    named = list(dict.fromkeys(str(m) for m in metrics))
    measured = Measured(
        strengths=np.array(doses),
        change=np.insert(change[:, :-1], doses.index(0.0), 0.0, axis=1),
        ablation=change[:, -1],
        base=base.double().numpy(),
        projection=_per_prompt(rows @ read.direction.vector, where),
        reading=read,
        units=np.arange(len(ids)) if units is None else units,
        metric=named[0] if len(named) == 1 else f"{named[0]} and {len(named) - 1} others",
        settings={
            "position": str(position),
            "control": f"{n_random} {CONTROLS[control]} of the same norm",
            "ablate": ablate,
            "grouped": units is not None,
        },
    )
    texts = [model.tokenizer.decode(row) if model.tokenizer else str(row) for row in ids]
    data, summary = outcome(measured, texts, seed=seed)
    seconds = {"causal_check": time.perf_counter() - started}
    return Result("probe_causal", data, provenance(model, tokens=ids, seed=seed, seconds=seconds), summary)


class _Scores:
    """Logits -> one number per row, each by the metric of its prompt."""

    def __init__(self, model: LanguageModel, metrics: list[Metric], n: int) -> None:
        self.model, self.metrics = model, metrics
        self.functions: list[Any] = [None] * n

    def first(self, logits: Tensor, prompts: np.ndarray) -> Tensor:
        """Scores of the unedited model, which metrics that compare with it are made from."""
        shared: dict[Metric, Any] = {}
        for i, clean in zip(prompts, logits, strict=True):
            metric = self.metrics[i]
            made = function_of(metric, self.model, clean)
            # One function for all prompts of a metric that does not look at the unedited run.
            alone = isinstance(metric, KLDivergence)
            self.functions[i] = made if alone else shared.setdefault(metric, made)
        return self(logits, prompts)

    def __call__(self, logits: Tensor, prompts: np.ndarray) -> Tensor:
        out = torch.empty(len(logits))
        groups: dict[int, list[int]] = {}
        for line, i in enumerate(prompts):
            groups.setdefault(id(self.functions[i]), []).append(line)
        for lines in groups.values():
            out[lines] = self.functions[prompts[lines[0]]](logits[lines]).float()
        return out


def _doses(strengths: float | int | Sequence[float | int]) -> list[float]:
    try:
        given = [float(s) for s in np.atleast_1d(np.asarray(strengths, dtype=np.float64))]
    except (TypeError, ValueError):
        raise DataError(f"Strengths are numbers, for instance [-2, -1, 1, 2], not {strengths!r}.") from None
    if not all(np.isfinite(given)):
        raise DataError(f"Strengths {given} are not all finite.")
    doses = sorted({*given, 0.0})
    if len(doses) < 2:
        raise DataError("No strength other than 0 was given: give some, for instance [-2, -1, 1, 2].")
    return doses


def _per_prompt(values: Tensor, where: list[list[int]]) -> np.ndarray:
    """Mean over the positions of each prompt."""
    return np.array([float(v.mean()) for v in values.double().split([len(w) for w in where])])
