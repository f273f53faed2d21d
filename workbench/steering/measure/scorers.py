"""Scores of generated text, and the log-probability of given strings.

A *text scorer* is anything that is called with texts and gives one number for each; `as_scorer` takes the user's own
function and checks what it gives. A text that a scorer has nothing to say of (an empty one) is NaN.

    target log-probability   ln p(string | prompt) = sum_t ln p(s_t | prompt, s_<t), in nats, of each string
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from workbench.errors import MetricError
from workbench.model.language_model import LanguageModel
from workbench.progress import Progress
from workbench.steering.intervention import Where
from workbench.steering.measure.rows import TOKENS_PER_BATCH, Dose, for_each_row


@runtime_checkable
class TextScorer(Protocol):
    """Something that gives each text a number; `name` and `units` are for tables and axes."""

    name: str
    units: str

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """[text] float64; NaN where it has nothing to say."""
        ...


@dataclass(frozen=True)
class FunctionScorer:
    """A user's function as a scorer; see `as_scorer`."""

    function: Callable[[Sequence[str]], object]
    name: str
    units: str = ""

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Call the function and check what it gives. Raises `MetricError`."""
        given = self.function(list(texts))
        try:
            values = np.asarray(given, dtype=float)
        except (TypeError, ValueError):
            raise MetricError(
                f"The scorer {self.name!r} gave a {type(given).__name__} that is not numbers: it must give one "
                "number for each text."
            ) from None
        if values.shape != (len(texts),):
            raise MetricError(
                f"The scorer {self.name!r} gave shape {values.shape} for {len(texts)} texts: it must give one "
                "number for each text."
            )
        if np.isinf(values).any():
            raise MetricError(
                f"The scorer {self.name!r} gave an infinite score: give numbers, or NaN for none."
            )
        return values


def as_scorer(given: object, name: str = "") -> FunctionScorer:
    """A scorer from any callable texts -> numbers (a list, an array, a tensor); what it gives is checked.

    Args:
        given: a function, or an object that is called like one. Its `name` and `units` are kept if it has them.
        name: for tables; the function's own by default.

    Raises:
        MetricError: it cannot be called.

    Example:
        >>> as_scorer(lambda texts: [text.count("!") for text in texts], "exclamation marks")(["Oh!", "No."])
        array([1., 0.])
    """
    if isinstance(given, FunctionScorer) and not name:
        return given
    if not callable(given):
        raise MetricError(
            f"A {type(given).__name__} is no scorer: give a function that takes a list of texts and gives a number "
            "for each."
        )
    own = getattr(given, "name", None) or getattr(given, "__name__", None) or type(given).__name__
    return FunctionScorer(given, name or str(own), str(getattr(given, "units", "")))


def encoded_targets(model: LanguageModel, targets: str | Sequence[str]) -> dict[str, list[int]]:
    """Target -> its token ids, each tokenised on its own.

    Args:
        model: the language model.
        targets: one string or several.

    Raises:
        MetricError: no strings, one twice, one without tokens, or a model without a tokenizer.
    """
    listed = [targets] if isinstance(targets, str) else list(targets)
    if not listed:
        raise MetricError("No targets were given: give strings such as [' good', ' great'].")
    if odd := [t for t in listed if not isinstance(t, str)]:
        raise MetricError(f"The target {odd[0]!r} is no text: give strings such as [' good', ' great'].")
    if len(set(listed)) < len(listed):
        raise MetricError(f"A target is there twice: {listed}. Give each once.")
    if model.tokenizer is None:
        raise MetricError(f"Targets are texts, but {model.name} has no tokenizer.")
    found = {t: list(model.tokenizer(t, add_special_tokens=False)["input_ids"]) for t in listed}
    for target, ids in found.items():
        if not ids:
            raise MetricError(f"The target {target!r} has no tokens: give a text.")
    return found


def target_log_probability(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    targets: Sequence[str],
    doses: Sequence[Dose] = (Dose(),),
    *,
    where: Where = "all",
    tokens_per_batch: int = TOKENS_PER_BATCH,
    progress: Progress | None = None,
) -> np.ndarray:
    """Log-probability of strings as continuations, under every dose.

    Args:
        model: the language model.
        prompts: token ids of each prompt.
        targets: strings of any length, with their leading space; each is tokenised on its own.
        doses: directions and strengths; the steering also acts on the string's tokens where the rule says so.
        where: position rule; the string counts as generated.
        tokens_per_batch: upper limit of one forward pass.
        progress: one item a row (doses x prompts x targets).

    Returns:
        [dose, prompt, target] in nats.

    Raises:
        MetricError: no strings, one twice, or one without tokens.
    """
    if isinstance(targets, str):
        raise MetricError(
            "No targets were given, but one text: give a list of strings such as [' good', ' great']."
        )
    encoded = list(encoded_targets(model, targets).values())
    cells = [(j, i, k) for j in range(len(doses)) for i in range(len(prompts)) for k in range(len(encoded))]
    found = np.zeros((len(doses), len(prompts), len(encoded)))

    def visit(n: int, logits: Tensor) -> None:
        wanted = logits.new_tensor(encoded[cells[n][2]]).long()
        found[cells[n]] = float(logits.log_softmax(-1).gather(-1, wanted[:, None]).double().sum())

    for_each_row(
        model,
        [[*prompts[i], *encoded[k][:-1]] for _, i, k in cells],
        [doses[j] for j, _, _ in cells],
        [len(encoded[k]) for _, _, k in cells],
        visit,
        where=where,
        prompt_lengths=[len(prompts[i]) for _, i, _ in cells],
        tokens_per_batch=tokens_per_batch,
        progress=progress,
    )
    return found
