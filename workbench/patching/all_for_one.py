"""All-for-one: does the last token alone do the work, with what it is told in a few layers?

The subgraph AF1(wait, peek) of a model with L blocks, on prompts of one length:

    blocks 0 .. wait-1             run as they are; then the stream behind them is overwritten, at every position but
                                   the first, by the context-aware mean of the token there (`cama`)
    blocks wait .. wait+peek-1     attention-based peeking: a query attends to position 0 and to itself only; the last
                                   one to all, or to position 0 and the last `allowed` keys
    blocks wait+peek .. L-1        self-peeking: the last query, too, attends to position 0 and to itself only

    faithfulness = accuracy of this run on the prompts that the whole model answers correctly

`wait` counts blocks: what is overwritten is resid_post of block wait-1, which is resid_pre of block wait. The authors'
script names that block, from 0: its `wait_until_layer` 14 with 2 layers of peeking (15 and 16) is wait=15, peek=2 here.
With wait=0 the mean is the token's own embedding and nothing changes.

Position 0 is where blocked attention goes, and is never overwritten. In a model without a BOS token what stands first
takes its place (`data.attrs["first"]`); it must be the same in all prompts, or it would tell every token what it is.

Controls: `no_peek` is AF1(wait, 0), in which the last position knows nothing but its own token, so that all prompts
with that last token get one answer; `unconditional` overwrites with the mean of the prompts' context-aware means, which
is the plain mean at that position: the identity goes, too.

Source: Mamidanna et al. 2025 (2509.09650), sections on CAMA, ABP and AF1, and the masks of the authors' script.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import xarray as xr

from workbench.errors import DataError
from workbench.model.language_model import LanguageModel
from workbench.model.tokens import Prompt
from workbench.patching.cama import Sampler
from workbench.patching.replay import TOKENS_PER_CALL
from workbench.patching.subgraph import Task, check_sizes
from workbench.progress import Progress, Silent
from workbench.results import Result, array
from workbench.statistics import bootstrap_interval

RUNS = ("all_for_one", "no_peek", "unconditional")


def all_for_one(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    answers: Sequence[str | int],
    *,
    wait: int,
    peek: int,
    reference: Sequence[Prompt] | None = None,
    sampler: Sampler | None = None,
    allowed: int | None = None,
    n_least: int = 100,
    seed: int = 0,
    tokens_per_call: int = TOKENS_PER_CALL,
    progress: Progress | None = None,
) -> Result:
    """Accuracy of one all-for-one subgraph on the prompts that the whole model answers correctly.

    Args:
        model: the language model.
        prompts: of one length, with the same first token (BOS, or what stands in its place).
        answers: the right next token of each: its id, or a text of exactly one token.
        wait: how many blocks run before the stream is overwritten, 0 to `n_layers`.
        peek: in how many blocks after that the last token looks at others; wait + peek is at most `n_layers`.
        reference, sampler, n_least: where the means come from, see `cama`. With wait=0 they are not used.
        allowed: keys, counted from the end, that the last token sees while peeking; None: all.
        seed: of the sampler and the bootstrap.
        tokens_per_call: tokens in one batch. Results do not depend on it.
        progress: where to report, one item per run.

    Returns:
        A `Result` of kind `all_for_one`: dims `run` (`all_for_one`, `no_peek`, `unconditional`), `prompt`, and
        `answered` (numbers of the prompts the model answers); variables `base_correct`, `correct`, `log_probability`
        (of the answer, in nats), and `faithfulness` with its 95 % bootstrap interval over answered prompts.

    Raises:
        DataError: wait, peek or allowed that cannot be; no prompt answered; too few examples (see `cama`).
        PromptError: prompts of several lengths or first tokens, or another number of answers.
        MetricError: an answer that is not one token.

    Example:
        >>> all_for_one(model, ["1 + 2 =", "3 + 4 ="], ["3", "7"], wait=1, peek=1, reference=sums).summary
    """
    progress, started = progress or Silent(), time.perf_counter()
    check_sizes(model, [wait], [peek], allowed)
    task = Task(model, prompts, answers, [wait], reference, sampler, n_least, seed, tokens_per_call)
    stream = task.stream(wait)
    average = stream.mean(0, keepdim=True).expand_as(stream)
    progress.stage("all for one", len(RUNS))
    correct, log_probability = [], []
    for given, n in ((stream, peek), (stream, 0), (average, peek)):
        right, log_p = task.judged(given, wait, n, allowed)
        correct.append(right)
        log_probability.append(log_p)
        progress.advance()
    scores = np.stack(correct)
    low, high = bootstrap_interval(scores.T.astype(float), seed)
    data = xr.Dataset(
        {
            "base_correct": array(("prompt",), task.base_correct, long_name="the whole model is right"),
            "correct": array(("run", "answered"), scores, long_name="right, of answered prompts"),
            "log_probability": array(("run", "answered"), np.stack(log_probability), units="nats"),
            "faithfulness": array(("run",), scores.mean(1), long_name="share of answered prompts"),
            "faithfulness_low": array(("run",), low, long_name="95 % bootstrap interval, lower end"),
            "faithfulness_high": array(("run",), high, long_name="95 % bootstrap interval, upper end"),
        },
        coords={"run": list(RUNS), "prompt": np.arange(len(task.ids)), "answered": task.answered},
        attrs={"wait": wait, "peek": peek, "allowed": "all" if allowed is None else allowed, **task.attrs},
    )
    summary = {
        "wait": wait,
        "peek": peek,
        **task.base_summary(),
        "faithfulness": {run: round(float(x), 4) for run, x in zip(RUNS, scores.mean(1), strict=True)},
        "interval": [round(float(low[0]), 4), round(float(high[0]), 4)],
    }
    return Result("all_for_one", data, task.provenance(started), summary)


def search(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    answers: Sequence[str | int],
    *,
    waits: Sequence[int] | None = None,
    peeks: Sequence[int] | None = None,
    keep: float = 0.95,
    reference: Sequence[Prompt] | None = None,
    sampler: Sampler | None = None,
    allowed: int | None = None,
    n_least: int = 100,
    seed: int = 0,
    tokens_per_call: int = TOKENS_PER_CALL,
    progress: Progress | None = None,
) -> Result:
    """Faithfulness over a grid of (wait, peek), and the smallest subgraph that keeps a given share.

    Smallest: of the cells with faithfulness >= `keep` the one with the fewest peeking blocks, among those the one that
    waits longest. It is chosen on a random half of the answered prompts; what the summary says of it comes from the
    other half, as the best of many cells would look too good on the prompts it was chosen by.

    Args:
        waits, peeks: the grid; all that fit the model by default. Cells with wait + peek above `n_layers` are NaN.
            peek=0, the control, is always run.
        keep: share of the answered prompts that must stay right, 0 to 1.
        seed: of the sampler, the halves and the bootstrap.
        progress: where to report, one item per cell.
        model, prompts, answers, reference, sampler, allowed, n_least, tokens_per_call: as in `all_for_one`.

    Returns:
        A `Result` of kind `all_for_one_search`: dims `wait`, `peek`, `prompt`, `answered`; variables `correct`
        (1, 0, NaN), `faithfulness` with interval (all answered prompts), `base_correct`, and `for_choice` (the half
        that chose). `summary["smallest"]` has wait, peek, and of the other half faithfulness, interval and controls;
        None where no cell keeps enough.

    Raises:
        DataError, PromptError, MetricError: as `all_for_one`; waits or peeks that are empty, a peek that fits no wait;
            fewer than two answered prompts.

    Example:
        >>> search(model, ["1 + 2 =", "3 + 4 ="], ["3", "7"], reference=sums).summary["smallest"]
    """
    progress, started = progress or Silent(), time.perf_counter()
    rows = sorted(set(range(model.n_layers + 1) if waits is None else waits))
    columns = sorted({0, *(range(model.n_layers + 1) if peeks is None else peeks)})
    asked = [0] if peeks is None else sorted(set(peeks))  # all that fit, or these
    if not rows or not asked or asked[-1] > model.n_layers - min(rows):
        raise DataError(
            f"waits {rows} and peeks {asked} have no cell, or a peek that fits none: give one or more of each, with "
            f"wait + peek at most {model.n_layers}, the blocks of {model.name}."
        )
    check_sizes(model, rows, [0], allowed)
    if not 0 <= keep <= 1 or columns[0] < 0:
        raise DataError(
            f"keep={keep} and peeks {columns} cannot be: give a share from 0 to 1, and peeks from 0."
        )
    task = Task(model, prompts, answers, rows, reference, sampler, n_least, seed, tokens_per_call)
    n = len(task.answered)
    if n < 2:
        raise DataError(
            "The model answers only one prompt: a search needs one to choose by and one to judge by."
        )
    cells = [(w, p) for w in rows for p in columns if w + p <= model.n_layers]
    correct = np.full((len(rows), len(columns), n), np.nan)
    progress.stage("all-for-one search", len(cells))
    for w, p in cells:
        correct[rows.index(w), columns.index(p)] = task.judged(task.stream(w), w, p, allowed)[0]
        progress.advance()
    chooses = np.zeros(n, dtype=bool)
    chooses[np.random.default_rng(seed).permutation(n)[: n // 2]] = True
    score = {(w, p): correct[rows.index(w), columns.index(p)] for w, p in cells}
    good = [cell for cell in cells if score[cell][chooses].mean() >= keep]
    smallest: dict[str, object] | None = None
    if good:
        w, p = min(good, key=lambda cell: (cell[1], -cell[0]))
        judged = score[w, p][~chooses]
        stream = task.stream(w)
        average, _ = task.judged(stream.mean(0, keepdim=True).expand_as(stream), w, p, allowed)
        smallest = {
            "wait": w,
            "peek": p,
            "faithfulness": round(float(judged.mean()), 4),
            "interval": [round(float(x), 4) for x in bootstrap_interval(judged, seed)],
            "no_peek": round(float(score[w, 0][~chooses].mean()), 4),
            "unconditional": round(float(average[~chooses].mean()), 4),
            "n": len(judged),
        }
    low, high = bootstrap_interval(np.moveaxis(correct, 2, 0), seed)
    dims = ("wait", "peek")
    data = xr.Dataset(
        {
            "base_correct": array(("prompt",), task.base_correct, long_name="the whole model is right"),
            "correct": array((*dims, "answered"), correct, long_name="right, of answered prompts"),
            "faithfulness": array(dims, correct.mean(2), long_name="share of answered prompts"),
            "faithfulness_low": array(dims, low, long_name="95 % bootstrap interval, lower end"),
            "faithfulness_high": array(dims, high, long_name="95 % bootstrap interval, upper end"),
            "for_choice": array(("answered",), chooses, long_name="in the half that chooses"),
        },
        coords={"wait": rows, "peek": columns, "prompt": np.arange(len(task.ids)), "answered": task.answered},
        attrs={"keep": keep, "allowed": "all" if allowed is None else allowed, **task.attrs},
    )
    summary = {"keep": keep, **task.base_summary(), "n_cells": len(cells), "smallest": smallest}
    return Result("all_for_one_search", data, task.provenance(started), summary)
