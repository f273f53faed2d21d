"""Dose–response: what a direction does as it gets stronger, and what it costs, beside random directions.

For each strength s and each prompt, with the direction added at `where`:

    score    metric(logits at the prompt's last token), or a text scorer of the continuation
    KL       KL(p_unsteered || p_steered) in nats: `kl` at the prompt's last token, `kl_along` mean over the tokens of
             the unsteered continuation (see `measure.kl`)
    measures of the greedy continuation: cross-entropy under the unsteered model, repeated 4-grams, distinct n-grams,
             length (see `measure.texts`), and any text scorers

The control is `n_random` random unit directions at the same site with the same strengths: their mean per prompt is
`random` in every variable, and `random_score` has each. A direction that moves the score no more than they do has
shown nothing: `difference` is steered minus random, with its interval. Strength 0 is the unsteered model. Means over
prompts carry a 95 % bootstrap interval. With texts comes the strength at which quality breaks (`measure.breaking`).

Rows are prompts x strengths x directions: one batched generation and two batched forward passes, cut only by memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from workbench.directions import Direction, DirectionSet
from workbench.directions.controls import random_controls
from workbench.errors import DataError, PositionError
from workbench.model.language_model import LanguageModel
from workbench.model.tokens import Prompt, as_list, batch
from workbench.patching.metrics import Metric, MetricFunction, as_metric, continuation
from workbench.progress import Progress, Silent
from workbench.results import Result
from workbench.steering.asked import with_zero
from workbench.steering.generate import spelled
from workbench.steering.measure.breaking import Quality
from workbench.steering.measure.dose_outcome import Measured, outcome
from workbench.steering.measure.kl import kl_of_doses
from workbench.steering.measure.rows import TOKENS_PER_BATCH, Dose, for_each_row, generate_rows
from workbench.steering.measure.scorers import (
    FunctionScorer,
    TextScorer,
    as_scorer,
    encoded_targets,
    target_log_probability,
)
from workbench.steering.measure.texts import measure_texts
from workbench.steering.rules import Where, as_rule, stretches


def dose_response(
    model: LanguageModel,
    prompts: Prompt | Sequence[Prompt],
    direction: Direction,
    strengths: float | Sequence[float],
    metric: Metric | TextScorer | Any,
    *,
    n_random: int = 5,
    where: Where = "all",
    show_text: int = 0,
    scorers: Mapping[str, Any] | Sequence[Any] | Any = (),
    targets: str | Sequence[str] = (),
    quality: Quality | None = None,
    seed: int = 0,
    force: bool = False,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    progress: Progress | None = None,
) -> Result:
    """Score and side effects of a direction against its strength, with a random-direction control.

    Args:
        model: the language model.
        prompts: prompts whose continuation is scored; best not those the direction was made from.
        direction: what is added, at its own site (a set of one is one).
        strengths: one or several norms of what is added, in the units of the activation; 0 is put in if missing.
        metric: what `score` is: a metric of the logits, for instance `wb.LogitDifference(" good", " bad")`, or a text
            scorer (see `measure.scorers.as_scorer` for your own function), which needs `show_text`.
        n_random: random directions of the control, at least 1.
        where: position rule, see `steering.rules`.
        show_text: generate this many tokens of each continuation, greedily, and measure them. 0: no texts, hence no
            perplexity, repetition or break of quality.
        scorers: text scorers that are measured besides: one, a list or name -> scorer.
        targets: one or several strings whose log-probability as continuations is measured besides.
        quality: what counts as broken; by default `Quality()`: twice the perplexity, or 0.2 more repeated 4-grams.
        seed: for random directions and bootstrap.
        force: accept a direction made with another model.
        tokens_per_batch: upper limit of one forward pass; what comes out does not depend on it.
        progress: where to report, one item a row; a cancel stops at the next batch.

    Returns:
        A `Result` of kind `dose_response`: dims `direction` (steered, random), `strength`, `prompt`, and `random`,
        `measure`, `side`, `target` where there are such. Variables `score`, `kl`, `mean_score` with `score_low`,
        `score_high`; `random_score`, `random_kl` (random, strength); `difference` with its interval (strength); and
        with texts `text`, `kl_along`, `value` of each measure with `mean_value`, `value_low`, `value_high`, and
        `break_strength` with its interval and cause for each side. `target_log_probability` if asked for.

    Raises:
        DataError: no strengths, a strength that is not finite, a direction that does not fit the model, no random
            direction, text scorers without texts, or a text of the rule that a prompt has not.
        PositionError: a rule that steers no position that is measured.
        MetricError: a metric, scorer or target that does not suit.

    Example:
        >>> wb.steering.dose_response(model, prompts, d, [-8, -4, 4, 8], wb.LogitDifference(" good", " bad"))
    """
    progress = progress or Silent()
    started = time.perf_counter()
    direction = _one(direction)
    direction.fits(model, force=force)
    doses = _doses(strengths)
    if n_random < 1:
        raise DataError(
            "A dose–response needs at least one random direction as its control: give n_random=1 or more."
        )
    by_text = None if _is_metric(metric) else as_scorer(metric)
    named = _named(scorers)
    if (named or by_text) and show_text < 1:
        raise DataError(
            "Text scorers need texts: give show_text, the number of tokens to generate (say, 20)."
        )
    logits_metric = as_metric(metric) if by_text is None else None
    function = logits_metric.resolve(model) if logits_metric else None
    tokens = batch(model, as_list(prompts))
    ids = [tokens.ids[i, :n].tolist() for i, n in enumerate(tokens.lengths)]
    extra = continuation(logits_metric, model) if logits_metric else []
    rule = as_rule(where)
    wanted = encoded_targets(model, targets) if len(targets) else {}
    _steers_something(rule, model, ids, max([show_text, len(extra) + 1, *map(len, wanted.values())]) - 1)
    everyone = [direction, *random_controls(direction, n_random, seed)]
    cells = [(k, s) for k in range(len(everyone)) for s in range(len(doses)) if doses[s] != 0]
    steered = [Dose(everyone[k], doses[s]) for k, s in cells]
    shape = (len(everyone), len(doses), len(ids))
    options: dict[str, Any] = {"where": rule, "tokens_per_batch": tokens_per_batch, "progress": progress}

    said = None
    if show_text:
        rows = [(dose, i) for dose in [Dose(), *steered] for i in range(len(ids))]
        progress.stage("generate", len(rows))
        said = generate_rows(
            model, [ids[i] for _, i in rows], [d for d, _ in rows], max_new_tokens=show_text, **options
        )

    scores = np.zeros(shape)

    def score(j: int, i: int, logits: Tensor) -> None:
        assert function is not None
        _put(scores, [(0, doses.index(0.0)), *cells][j], i, float(function(logits[None])[0]), doses)

    progress.stage("dose–response", len(ids) * (len(steered) + 1))
    unsteered = said.tokens[: len(ids)] if said else [()] * len(ids)
    kl = kl_of_doses(
        model, ids, unsteered, [Dose(), *steered], also=score if function and not extra else None, **options
    )
    if function and extra:
        _longer_answers(
            model, ids, extra, [Dose(), *steered], function, score_into=(scores, cells, doses), **options
        )

    measured = Measured(scores, _spread(kl.last, cells, shape), np.array(doses))
    if said:
        measured.kl_along = _spread(kl.along, cells, shape)
        progress.stage("measure texts", len(said.tokens))
        values = measure_texts(
            model, said.prompts, said.tokens, tokens_per_batch=tokens_per_batch, progress=progress
        )
        units = dict.fromkeys(values, "")
        for name, scorer in {**({"score": by_text} if by_text else {}), **named}.items():
            values[name], units[name] = scorer(said.texts), scorer.units
        grids = {name: _spread(v.reshape(len(steered) + 1, -1), cells, shape) for name, v in values.items()}
        if by_text:
            measured.scores = grids.pop("score")
        measured.values = grids
        measured.units = units
        texts = np.array(said.texts, dtype=object).reshape(len(steered) + 1, -1)
        measured.texts = _spread(texts, cells, shape)[:2]
    if wanted:
        progress.stage("targets", len(ids) * len(wanted) * (len(steered) + 1))
        found = target_log_probability(model, ids, list(wanted), [Dose(), *steered], **options)
        each = [_spread(found[..., t], cells, shape) for t in range(len(wanted))]
        measured.targets = dict(zip(wanted, each, strict=True))
    shown = [
        spelled(model, row) if not isinstance(p, str) else p
        for p, row in zip(as_list(prompts), ids, strict=True)
    ]
    return outcome(
        model, shown, ids, direction, measured, by_text or logits_metric, quality or Quality(), n_random, rule, seed,
        time.perf_counter() - started,
    )  # fmt: skip


def _steers_something(rule: Where, model: LanguageModel, ids: list[list[int]], more: int) -> None:
    """Raise where the rule finds no position in what is read: each prompt and `more` tokens after it."""
    if rule == "generated" and more < 1:
        raise PositionError(
            "Position rule 'generated' steers nothing that is measured here: the metric is read at the last token of "
            "the prompt, as are targets of one token. Steer at 'all' or 'last', or look at texts too (show_text=20)."
        )
    lengths = [len(row) for row in ids]
    stretches(rule, lengths, ids, model, [n + more for n in lengths])


def _one(direction: Any) -> Direction:
    if isinstance(direction, DirectionSet) and len(direction) == 1:
        return direction[0]
    if not isinstance(direction, Direction):
        what = (
            f"a set of {len(direction)}" if isinstance(direction, DirectionSet) else type(direction).__name__
        )
        raise DataError(
            f"A dose–response takes one direction, not {what}: give a Direction, for instance one member of a set "
            "(set[0]). For a whole set look at the texts (steered_texts, generate)."
        )
    return direction


def _doses(strengths: float | Sequence[float]) -> list[float]:
    doses = with_zero(strengths)
    if len(doses) < 2:
        raise DataError("No strengths other than 0 were given: give some, for instance [-8, -4, 4, 8].")
    return doses


def _is_metric(given: Any) -> bool:
    """Logit metrics resolve against a model; text scorers have a name. A bare function is a metric, as elsewhere."""
    return isinstance(given, Metric) or not (isinstance(given, TextScorer) and callable(given))


def _named(scorers: Any) -> dict[str, FunctionScorer]:
    if isinstance(scorers, Mapping):
        return {name: as_scorer(one, name) for name, one in scorers.items()}
    several = isinstance(scorers, Iterable) and not callable(scorers) and not isinstance(scorers, str)
    listed = [as_scorer(one) for one in (scorers if several else [scorers])]
    if len({one.name for one in listed}) < len(listed):
        raise DataError(
            f"Two scorers are called the same: {[one.name for one in listed]}. Give a dict name -> scorer."
        )
    return {one.name: one for one in listed}


def _put(grid: np.ndarray, cell: tuple[int, int], i: int, value: float, doses: list[float]) -> None:
    """A value of one direction and strength; strength 0 is the same for all directions."""
    k, s = cell
    if doses[s] == 0:
        grid[:, s, i] = value
    else:
        grid[k, s, i] = value


def _spread(values: np.ndarray, cells: Sequence[tuple[int, int]], shape: tuple[int, ...]) -> np.ndarray:
    """[dose, prompt] -> [direction, strength, prompt]; the first dose is strength 0, the same for all directions."""
    grid = np.zeros(shape, dtype=values.dtype)
    (zero,) = set(range(shape[1])) - {s for _, s in cells}
    grid[:, zero] = values[0]
    for cell, row in zip(cells, values[1:], strict=True):
        grid[cell] = row
    return grid


def _longer_answers(
    model: LanguageModel,
    ids: list[list[int]],
    extra: list[int],
    doses: list[Dose],
    function: MetricFunction,
    *,
    score_into: tuple[np.ndarray, list[tuple[int, int]], list[float]],
    **options: Any,
) -> None:
    """Scores of an answer of several tokens: its tokens but the last stand after the prompt."""
    scores, cells, strengths = score_into
    rows = [(j, i) for j in range(len(doses)) for i in range(len(ids))]
    order = [(0, strengths.index(0.0)), *cells]

    def visit(n: int, logits: Tensor) -> None:
        j, i = rows[n]
        _put(scores, order[j], i, float(function(logits[None])[0]), strengths)

    options["progress"].stage("answers", len(rows))
    for_each_row(
        model, [[*ids[i], *extra] for _, i in rows], [doses[j] for j, _ in rows], [len(extra) + 1] * len(rows), visit,
        prompt_lengths=[len(ids[i]) for _, i in rows], **options,
    )  # fmt: skip
