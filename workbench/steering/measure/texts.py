"""Measures of generated text: what steering costs in quality.

    cross-entropy   -1/n sum_t ln p(x_t | prompt, x_<t) of the continuation under the *unsteered* model, in nats per
                    token; perplexity = exp(cross-entropy)
    distinct-n      different n-grams / n-grams of a continuation (after Li et al. 2016, 1510.03055, who divide by the
                    number of tokens; dividing by the number of n-grams makes 1 the largest value for every n)
    repetition      1 - distinct-4: the share of n-grams that were there before (seq-rep-4 of Welleck et al. 2019,
                    1908.04319)
    length          tokens of the continuation, without the end-of-sequence token

All are per continuation, over token ids. What is not defined (a continuation shorter than n tokens) is NaN. Perplexity
alone is no measure of quality: a text that repeats itself is cheap, hence the two together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from workbench.errors import DataError
from workbench.model.language_model import LanguageModel
from workbench.progress import Progress
from workbench.steering.measure.rows import TOKENS_PER_BATCH, Dose, for_each_row

REPEATED = 4
"""Length of the n-grams of `repetition`."""

MEASURES: dict[str, tuple[str, str]] = {
    "cross_entropy": ("cross-entropy under the unsteered model", "nats per token"),
    "repetition": (f"share of repeated {REPEATED}-grams", ""),
    "distinct_1": ("distinct 1-grams", ""),
    "distinct_2": ("distinct 2-grams", ""),
    "distinct_3": ("distinct 3-grams", ""),
    "length": ("length", "tokens"),
}
"""Name of each measure -> what it is, and its unit."""


def distinct(tokens: Sequence[int], n: int) -> float:
    """Share of the n-grams of a continuation that differ from all before them; NaN if it has none.

    Example:
        >>> distinct([1, 2, 1, 2], 2)      # (1 2) (2 1) (1 2): two of three
        0.6666666666666666
    """
    if n < 1:
        raise DataError(f"n-grams of length {n} do not exist: give 1 or more.")
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def repetition(tokens: Sequence[int], n: int = REPEATED) -> float:
    """Share of the n-grams of a continuation that were there before: 1 - distinct-n; NaN if it has none."""
    return 1.0 - distinct(tokens, n)


def cross_entropy(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    *,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    progress: Progress | None = None,
) -> np.ndarray:
    """Cross-entropy of continuations under the model as it is, in nats per token; exp of it is the perplexity.

    Args:
        model: the language model, unsteered.
        prompts: token ids of each prompt.
        continuations: token ids that follow each.
        tokens_per_batch: upper limit of one forward pass.
        progress: one item a continuation that is not empty.

    Returns:
        [continuation] float64; NaN for an empty one.

    Raises:
        DataError: not one continuation for each prompt.
    """
    if len(prompts) != len(continuations):
        raise DataError(f"{len(continuations)} continuations were given for {len(prompts)} prompts.")
    found = np.full(len(prompts), np.nan)
    full = [i for i, c in enumerate(continuations) if len(c)]
    if not full:
        return found

    def visit(n: int, logits: Tensor) -> None:
        wanted = logits.new_tensor(continuations[full[n]]).long()
        picked = logits.log_softmax(-1).gather(-1, wanted[:, None])
        found[full[n]] = -float(picked.double().mean())

    for_each_row(
        model,
        [[*prompts[i], *continuations[i][:-1]] for i in full],
        [Dose()] * len(full),
        [len(continuations[i]) for i in full],
        visit,
        tokens_per_batch=tokens_per_batch,
        progress=progress,
    )
    return found


def measure_texts(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    *,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    progress: Progress | None = None,
) -> dict[str, np.ndarray]:
    """All of `MEASURES` of each continuation, [continuation] float64 each.

    Example:
        >>> said = wb.steering.generate(model, prompts, d, 8.0, max_new_tokens=20)
        >>> measure_texts(model, said.prompts, said.tokens)["repetition"]
    """
    entropy = cross_entropy(
        model, prompts, continuations, tokens_per_batch=tokens_per_batch, progress=progress
    )
    counted = {f"distinct_{n}": [distinct(c, n) for c in continuations] for n in (1, 2, 3)}
    return {
        "cross_entropy": entropy,
        "repetition": np.array([repetition(c) for c in continuations]),
        **{name: np.array(values) for name, values in counted.items()},
        "length": np.array([float(len(c)) for c in continuations]),
    }
