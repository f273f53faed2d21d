"""Methods of making a direction, compared over tasks at equal KL, on prompts nothing was chosen on.

For each task:

1. every method makes a direction at every candidate site, from the task's pairs;
2. on the *selection* prompts each gets the strength at which KL along the unsteered continuation is the target;
3. each method keeps the site at which its mean score on the selection prompts is highest;
4. random directions at the kept sites get their strength the same way;
5. on the *test* prompts: continuations of the unsteered model, of each method, of its random directions, and of the
   in-context prompt; score, KL as it is there, perplexity under the unsteered model, distinct n-grams.

    change  = score - unsteered score of the same prompt
    against random = score - mean over the random directions at the same site and KL, of the same prompt

Both with a 95 % bootstrap interval over prompts. Random directions are drawn, not resampled: `random_low` and
`random_high` are the lowest and highest of their mean changes. The in-context row is not at the target KL: its KL
compares the model's reading of the longer prompt with that of the plain one, along the unsteered continuation.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.directions import Direction
from workbench.directions.controls import random_controls
from workbench.errors import DataError
from workbench.model.language_model import LanguageModel
from workbench.progress import Progress, Silent
from workbench.results import Result
from workbench.steering.generate import Generation
from workbench.steering.intervention import Where
from workbench.steering.measure.compare_outcome import Cell, TaskOutcome, outcome
from workbench.steering.measure.iso_kl import Calibration, iso_kl
from workbench.steering.measure.kl import kl_divergence, kl_of_doses
from workbench.steering.measure.methods import METHODS, Method, checked
from workbench.steering.measure.resample import nan_mean
from workbench.steering.measure.rows import TOKENS_PER_BATCH, Dose, for_each_row, generate_rows
from workbench.steering.measure.tasks import SteeringTask
from workbench.steering.measure.texts import measure_texts


def compare_methods(
    model: LanguageModel,
    tasks: Sequence[SteeringTask],
    methods: Mapping[str, Method] | None = None,
    *,
    sites: str | Sequence[str],
    target_kl: float = 0.5,
    n_random: int = 3,
    where: Where = "all",
    tolerance: float = 0.05,
    seed: int = 0,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    progress: Progress | None = None,
) -> Result:
    """Compare methods over tasks at equal KL.

    Args:
        model: the language model.
        tasks: what steering should do; see `SteeringTask`.
        methods: name -> function `(model, examples, site) -> Direction`; by default `METHODS`.
        sites: candidate sites, one or several names or globs; each method keeps the one that is best on the selection
            prompts.
        target_kl: nats per token along the unsteered continuation, on the selection prompts.
        n_random: random directions of the control, at each site kept.
        where: position rule.
        tolerance: relative, of the KL.
        seed: of the random directions and the bootstrap.
        tokens_per_batch: upper limit of one forward pass.
        progress: one stage a task and step; a cancel stops at the next batch.

    Returns:
        A `Result` of kind `steering_methods` with dims `task`, `method` (the methods, `random direction`,
        `in-context prompt`), `prompt`: `score`, `change` with interval, `against_random` with interval and
        `beats_random` (interval above 0), `site`, `strength`, `kl`, `kl_along`, `perplexity_ratio`, `repetition`,
        `distinct_2`, `text`, `unsteered`, `n`, `note`; and of the choice `selection_score`, `selection_strength` (task,
        chosen_method, candidate).

    Raises:
        DataError: no tasks, sites or methods, two tasks of one name, a method that gives no direction.

    Example:
        >>> compare_methods(model, [task], sites=["blocks.10.hook_resid_post", "blocks.16.hook_resid_post"])
    """
    progress = progress or Silent()
    started = time.perf_counter()
    chosen = dict(METHODS if methods is None else methods)
    patterns = [sites] if isinstance(sites, str) else sites
    names = list(dict.fromkeys(site.name for pattern in patterns for site in model.resolve(pattern)))
    _check(tasks, chosen, names, n_random)
    options = {"where": where, "tokens_per_batch": tokens_per_batch, "progress": progress}
    settings = _Settings(model, chosen, names, target_kl, n_random, tolerance, seed, progress, options)
    found = [_one_task(settings, task) for task in tasks]
    attrs = {
        "target_kl": target_kl,
        "n_random": n_random,
        "where": str(where),
        "sites": ", ".join(names),
        "control": f"{n_random} random directions at the same site and KL",
    }
    return outcome(model, found, attrs, seed, time.perf_counter() - started)


def _check(
    tasks: Sequence[SteeringTask], methods: Mapping[str, Method], sites: list[str], n_random: int
) -> None:
    if not tasks or not methods or not sites:
        raise DataError("A comparison needs at least one task, one method and one site.")
    if len({t.name for t in tasks}) < len(tasks):
        raise DataError(f"Two tasks are called the same: {[t.name for t in tasks]}.")
    if n_random < 1:
        raise DataError("A comparison needs at least one random direction as its control.")
    if taken := {"random direction", "in-context prompt"} & set(methods):
        raise DataError(
            f"The name {sorted(taken)[0]!r} is that of a baseline: call the method something else."
        )


@dataclass(frozen=True)
class _Settings:
    """What every task is measured with; `options` go to whatever runs rows."""

    model: LanguageModel
    methods: dict[str, Method]
    sites: list[str]
    target: float
    n_random: int
    tolerance: float
    seed: int
    progress: Progress
    options: dict[str, Any]

    def calibrate(self, said: Generation, directions: list[Direction]) -> list[Calibration]:
        return iso_kl(
            self.model,
            said.prompts,
            said.tokens,
            directions,
            self.target,
            tolerance=self.tolerance,
            force=True,
            **self.options,
        )

    def generate(self, prompts: Sequence[Sequence[int]], doses: list[Dose], n: int) -> Generation:
        """Every dose on every prompt, dose by dose."""
        rows = [p for _ in doses for p in prompts]
        each = [dose for dose in doses for _ in prompts]
        return generate_rows(self.model, rows, each, max_new_tokens=n, **self.options)


def _one_task(s: _Settings, task: SteeringTask) -> TaskOutcome:
    model, names = s.model, list(s.methods)
    s.progress.stage(f"{task.name}: directions", 2 * len(task.examples.positive))
    task.examples.read(model, s.sites, progress=s.progress)
    made = {name: checked(name, method, model, task.examples, s.sites) for name, method in s.methods.items()}
    selection = [model.encode(p) for p in task.selection]
    s.progress.stage(f"{task.name}: choosing", len(selection))
    said = s.generate(selection, [Dose()], task.max_new_tokens)
    pairs = [(name, site) for name in names for site in s.sites]
    found = dict(zip(pairs, s.calibrate(said, [made[n][site] for n, site in pairs]), strict=True))
    reached = [pair for pair in pairs if found[pair].reached]
    scored: dict[tuple[str, str], float] = {}
    if reached:
        doses = [Dose(made[n][site], found[n, site].strength) for n, site in reached]
        texts = s.generate(selection, doses, task.max_new_tokens).texts
        scores = task.score(texts).reshape(len(doses), -1)
        scored = dict(zip(reached, nan_mean(scores).tolist(), strict=True))
    kept = {name: _best({site: scored.get((name, site), np.nan) for site in s.sites}) for name in names}
    used = list(dict.fromkeys(site for site in kept.values() if site is not None))
    random = {site: random_controls(made[names[0]][site], s.n_random, _seed(s, site)) for site in used}
    drawn = [(site, i) for site in used for i in range(s.n_random)]
    strengths = (
        dict(zip(drawn, s.calibrate(said, [random[a][i] for a, i in drawn]), strict=True)) if drawn else {}
    )
    doses = {("method", n, 0): Dose(made[n][at], found[n, at].strength) for n, at in kept.items() if at}
    doses |= {
        ("random", a, i): Dose(random[a][i], c.strength) for (a, i), c in strengths.items() if c.reached
    }
    cells, plain = _test(s, task, doses)
    result = TaskOutcome(task, plain, list(s.sites))
    for name in names:
        site = kept[name]
        result.selection[name] = {at: (scored.get((name, at), np.nan), found[name, at]) for at in s.sites}
        result.site[name] = site or ""
        if site is not None:
            result.cells[name] = cells["method", name, 0]
            result.random[name] = [cells[key] for key in cells if key[:2] == ("random", site)]
            result.strength[name] = doses["method", name, 0].strength
    if task.in_context is not None:
        result.in_context = _in_context(s, task, plain)
    return result


def _seed(s: _Settings, site: str) -> int:
    """Another for every site."""
    return s.seed + 1000 * s.sites.index(site)


def _best(scores: dict[str, float]) -> str | None:
    """The site of the highest score, the first of equals; None where no site has one."""
    known = {site: score for site, score in scores.items() if np.isfinite(score)}
    return max(known, key=lambda site: known[site]) if known else None


def _test(
    s: _Settings, task: SteeringTask, doses: dict[tuple[str, str, int], Dose]
) -> tuple[dict[tuple[str, str, int], Cell], Cell]:
    """The test prompts under every dose, and without any."""
    prompts = [s.model.encode(p) for p in task.test]
    n = len(prompts)
    rows = [Dose(), *doses.values()]
    s.progress.stage(f"{task.name}: test", n * len(rows))
    said = s.generate(prompts, rows, task.max_new_tokens)
    kl = kl_of_doses(s.model, prompts, said.tokens[:n], rows, **s.options)
    cells = _cells(s, task, said, n)
    for j, cell in enumerate(cells):
        cell.kl, cell.kl_along = kl.last[j], kl.along[j]
    return dict(zip(doses, cells[1:], strict=True)), cells[0]


def _cells(s: _Settings, task: SteeringTask, said: Generation, n: int, prompts: Any = None) -> list[Cell]:
    """Scores and measures of generated rows, `n` prompts at a time."""
    asked = prompts or said.prompts
    measures = measure_texts(
        s.model, asked, said.tokens, tokens_per_batch=s.options["tokens_per_batch"], progress=s.progress
    )
    scores = task.score(said.texts)
    found = []
    for at in range(0, len(said.texts), n):
        part = slice(at, at + n)
        found.append(
            Cell(scores[part], {k: v[part] for k, v in measures.items()}, said.tokens[part], said.texts[part])
        )
    return found


def _in_context(s: _Settings, task: SteeringTask, plain: Cell) -> Cell:
    """The model asked in words. Perplexity is that of the plain prompt; KL is along the plain continuation."""
    assert task.in_context is not None
    prompts = [s.model.encode(p) for p in task.test]
    asked = [s.model.encode(task.in_context(p)) for p in task.test]
    s.progress.stage(f"{task.name}: in-context prompt", len(asked))
    said = s.generate(asked, [Dose()], task.max_new_tokens)
    (cell,) = _cells(s, task, said, len(asked), prompts)
    keep = [max(1, len(c)) for c in plain.tokens]
    logits: dict[int, Tensor] = {}
    last, along = np.zeros(len(asked)), np.zeros(len(asked))

    def remember(i: int, one: Tensor) -> None:
        logits[i] = one.clone()

    def against(i: int, one: Tensor) -> None:
        each = kl_divergence(logits[i], one)
        last[i], along[i] = float(each[0]), float(each.double().mean())

    for rows, visit in ((prompts, remember), (asked, against)):
        full = [[*row, *c[:-1]] for row, c in zip(rows, plain.tokens, strict=True)]
        with torch.inference_mode():
            for_each_row(
                s.model,
                full,
                [Dose()] * len(full),
                keep,
                visit,
                tokens_per_batch=s.options["tokens_per_batch"],
            )
    cell.kl, cell.kl_along = last, along
    return cell
