"""Input attribution: which tokens of a prompt carry the answer.

With x the stream that enters block 0, x' a baseline's (`input_baselines`) and m the metric, token p gets a_p:

    gradient_x_input       (x_p - x'_p) · dm/dx_p at x
    integrated_gradients   the mean of that over the straight line from x' to x
    expected_gradients     the mean over baselines of a set and over points of the lines to them
    samp                   the integral along a greedy path, coordinate by coordinate       (see `input_paths`)

in the metric's units: a_p > 0 where the token, put in the baseline's place, raises the metric. But for the first method
Σ a_p = m(x) - m(x'), up to the quadrature's error, which stands in the result (completeness).

The baseline says what "without the token" means, and the attribution explains the difference to it. The sharpest is
a *corrupt prompt* of the same length, since only what differs can get anything. A zero or mean embedding is no token,
and where a norm reads the token embedding alone (Llama and its kin) the line from zero does all its turning where it
is next to nothing: no number of midpoints is enough from zero, and many are needed from the mean. The completeness
error shows it, as it does where the metric is no continuous function of the stream (experts chosen by a router).

Control: the same attribution for other answers. The vocabulary of the logits is permuted at random, so that random
tokens stand in the answer's place; prompt, baseline, path and arithmetic stay. A token whose attribution does not stand
out from a few such draws moves the output, but not towards this answer in particular. (Shuffled embeddings would be
another null: they change the token and keep the answer. Here the question is who carries the *answer*.)
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Literal

import numpy as np
import torch

from workbench.errors import DataError
from workbench.model.language_model import LanguageModel
from workbench.model.tokens import at_least_one
from workbench.patching.gradients import TOKENS_PER_BACKWARD
from workbench.patching.input_baselines import Baselines, Given, groups
from workbench.patching.input_outcome import One, Outcome
from workbench.patching.input_paths import Inputs, end_point, greedy, sampled, straight_line
from workbench.patching.metrics import Metric, MetricFunction, one_each
from workbench.progress import Progress, Silent
from workbench.results import Result

Method = Literal["gradient_x_input", "integrated_gradients", "expected_gradients", "samp"]
METHODS = ("gradient_x_input", "integrated_gradients", "expected_gradients", "samp")
FIRST_STEPS = 16
"""Where `steps="auto"` begins."""


@torch.inference_mode(False)
def input_attribution(
    model: LanguageModel,
    prompts: Given,
    metric: Metric | MetricFunction | Sequence[Metric],
    *,
    method: Method = "integrated_gradients",
    baseline: Given | None = None,
    steps: int | Literal["auto"] = "auto",
    tolerance: float = 0.02,
    max_steps: int = 512,
    n_random: int = 8,
    keep_special: bool = True,
    control: bool = True,
    n_control: int = 8,
    seed: int = 0,
    tokens_per_backward: int = TOKENS_PER_BACKWARD,
    progress: Progress | None = None,
) -> Result:
    """Attribute a metric to the tokens of each prompt.

    Args:
        model: the language model, with frozen parameters or not.
        prompts: one or several, of any lengths. Those of one length go through together, which changes no result.
        metric: logits -> number, differentiable; one for all, or one per prompt. The first tokens of a longer answer
            are appended to prompt and baseline alike and get nothing.
        method: see the module's text.
        baseline: `mean` or `zero` (that token embedding everywhere), `pad`, a token id, `random` (prompts of random
            tokens), or prompts of as many tokens: one for each prompt, for expected gradients a set for all of them.
            None: `mean`, for expected gradients `random`. Over several baselines of a prompt is averaged.
        steps: midpoints of the line; samples of expected gradients; parts of the greedy path (up to two steps each,
            both ways). `auto` doubles them, from 16, for each prompt until its completeness error (of samples: or the
            standard error of their sum, if that is larger) is at most `tolerance` times |m(x) - m(x')|, or more than
            `max_steps` would be needed.
        tolerance, max_steps: for `auto`; `tolerance` also for `converged`.
        n_random: number of `random` prompts.
        keep_special: the baseline keeps special tokens (beginning of sequence, chat marks), which then get 0: a model
            without them is not itself.
        control: also attribute `n_control` metrics with random tokens in the answer's place, with the steps that were
            enough. They share one more forward at each point and take a backward each; with `samp` both.
        seed: of random baselines, samples, controls and the bootstrap.
        tokens_per_backward: tokens that go through together. Results do not depend on it.
        progress: where to report, one item per prompt.

    Returns:
        A `Result` of kind `input_attribution`, float64, dims `prompt` and `position`; NaN behind a prompt's end.
        Coordinates `token`, `token_id` (-1 behind the end), `length`, and `moved`: False where prompt and baseline are
        the same, whose attribution is 0. Variables `attribution`, `control_attribution` (with `draw`), `metric`,
        `baseline_metric` (mean over baselines), `completeness_error` = Σ attribution - (metric - baseline_metric),
        `relative_error` (its size over that of metric - baseline_metric), `steps`, `converged`, `baseline_id` [prompt,
        baseline, position] where the baseline is tokens, and `attribution_se` of expected gradients (of the mean over
        samples). For several prompts of one length also, over prompts, `mean_attribution` with `mean_attribution_se`,
        `attribution_low`, `attribution_high` (95 % bootstrap) and `p_value` (against the mean of the controls).

    Raises:
        DataError: an unknown method, a baseline that cannot be, or numbers that cannot.
        PromptError: no prompts, baseline prompts of another length or number, or a baseline that changes nothing.
        MetricError: a metric without gradient.
        ModelError: a model whose input is not the stream into block 0 alone.

    Example:
        >>> clean = "When Mary and John went to the store, John gave a drink to"
        >>> corrupt = "When Mary and John went to the store, Mary gave a drink to"
        >>> result = input_attribution(model, clean, wb.LogitDifference(" Mary", " John"), baseline=corrupt)
        >>> result.summary["strongest"];  result.data["relative_error"]
    """
    progress, started = progress or Silent(), time.perf_counter()
    asked = _Asked(method, steps, tolerance, max_steps, seed)
    asked.check(n_random=n_random, n_control=n_control)
    draws = n_control if control else 0
    rows = [model.encode(prompt) for prompt in at_least_one(prompts)]  # type: ignore[arg-type]
    metrics = one_each(metric, model, len(rows), "prompt")
    as_set = method == "expected_gradients"
    given = baseline if baseline is not None else ("random" if as_set else "mean")
    baselines = Baselines.of(
        model, given, rows, as_set=as_set, n_random=n_random, keep_special=keep_special, seed=seed
    )
    names = sorted({str(m) for m in metrics})
    outcome = Outcome(
        rows=rows,
        metric=names[0] if len(names) == 1 else f"{len(names)} metrics",
        baselines=baselines,
        draws=draws,
        settings={
            "method": method,
            "steps": str(steps) if method != "gradient_x_input" else "none",
            "keep_special": str(keep_special),
        },
        tolerance=tolerance,
        seed=seed,
    )
    progress.stage(f"attribute ({method})", len(rows))
    for group in groups(
        model, rows, metrics, baselines, n_control=draws, seed=seed, tokens_per_backward=tokens_per_backward
    ):
        for number, one in asked.run(group.inputs, group.which, draws):
            outcome.put(number, one)
            progress.advance()
    return outcome.result(model, time.perf_counter() - started)


@dataclass(frozen=True)
class _Asked:
    """How to attribute."""

    method: Method
    steps: int | Literal["auto"]
    tolerance: float
    max_steps: int
    seed: int

    def check(self, **numbers: object) -> None:
        if self.method not in METHODS:
            raise DataError(f"method {self.method!r} is not known: give one of {', '.join(METHODS)}.")
        if self.steps != "auto" and self.method == "gradient_x_input":
            raise DataError(f"steps={self.steps!r}: gradient_x_input has no steps. Leave them out.")
        steps = 1 if self.steps == "auto" else self.steps
        for name, number in {**numbers, "max_steps": self.max_steps, "steps": steps}.items():
            if isinstance(number, bool) or not isinstance(number, Integral) or number < 1:
                raise DataError(f"{name} is {number!r}; expected a whole number, 1 or more.")

    def run(self, inputs: Inputs, which: Sequence[int], draws: int) -> Iterator[tuple[int, One]]:
        """Each prompt of a group with its number, as soon as it is done."""
        own, others = inputs.ends()
        base = others.mean(1)
        auto = self.steps == "auto" and self.method != "gradient_x_input"
        steps = int(self.steps) if self.steps != "auto" else (FIRST_STEPS if auto else 1)
        steps = min(steps, self.max_steps) if auto else steps
        pending = list(range(len(inputs)))
        while pending:
            values, error, of_sum = self._path(inputs, which, pending, steps, [0])
            gap = np.fmax(np.abs(values[0].sum(-1) - (own - base)[pending]), of_sum)
            enough = gap <= self.tolerance * np.abs(own - base)[pending]
            done = enough | (not auto or 2 * steps > self.max_steps)
            some = [i for i, ready in zip(pending, done, strict=True) if ready]
            if some and draws:
                control, _, _ = self._path(inputs, which, some, steps, range(1, draws + 1))
                every = np.concatenate([values[:, done], control])
            else:
                every = values[:, done]
            for j, i in enumerate(some):
                ends = float(own[i]), float(base[i])
                yield which[i], One(every[:, j], error[done][j], ends, steps)
            pending = [i for i, ready in zip(pending, done, strict=True) if not ready]
            steps *= 2

    def _path(
        self, inputs: Inputs, which: Sequence[int], some: Sequence[int], steps: int, draws: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """[draw, prompt, position], and standard errors over samples [prompt, position] and of the sum [prompt]."""
        if self.method == "expected_gradients":
            return sampled(inputs, some, steps, draws, [(self.seed, 2, which[i]) for i in some])
        if self.method == "gradient_x_input":
            values = end_point(inputs, some, draws)
        else:
            values = (straight_line if self.method == "integrated_gradients" else greedy)(
                inputs, some, steps, draws
            )
        nothing = np.full(values.shape[1:], np.nan)
        return values, nothing, nothing[:, 0]
