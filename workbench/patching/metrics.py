"""Metrics: from logits at the end of the prompt to one number per row.

    LogitDifference(a, b):  logit[a] - logit[b]              > 0 where the model prefers a
    Probability(a):         softmax(logits)[a]
    LogProbability(a):      ln p(a) in nats; of an answer of several tokens, the sum, each after those before it
    Rank(a):                tokens with a higher logit than a; 0: a is the first choice
    Accuracy(a):            1 where a is the first choice
    KLDivergence():         KL(clean run || patched run) over the next token, in nats
    any function            [row, d_vocab] logits -> [row]

A metric is resolved against a model before anything runs, so a token that is not one token is an error at
once. Any object with `resolve(model)` returning a function `[row, d_vocab] -> [row]` will do.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, SupportsIndex, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.errors import MetricError
from workbench.model.language_model import LanguageModel

MetricFunction = Callable[[Tensor], Tensor]
Answer = str | SupportsIndex
"""Text of exactly one token, or a token id (an int, or a whole number of numpy or torch)."""


@runtime_checkable
class Metric(Protocol):
    """Something that turns logits into one number per row."""

    def resolve(self, model: LanguageModel) -> MetricFunction:
        """A function `[row, d_vocab] logits -> [row]`; raises `MetricError` if the model cannot have it."""
        ...


def _plain(given: Any) -> Any:
    """An answer as a text, an int or a tuple of them, whatever numbers and lists it was given as."""
    if isinstance(given, str):
        return given
    try:
        return operator.index(given)
    except TypeError:
        pass
    if isinstance(given, Iterable) and not isinstance(given, (Mapping, bytes)):
        return tuple(_plain(one) for one in given)
    raise MetricError(f"{given!r} is no answer: give a text, or a token id.")


class _OfTokens:
    """What metrics of tokens share: lists and numbers of other packages become tuples and ints."""

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            object.__setattr__(self, field.name, _plain(getattr(self, field.name)))


@dataclass(frozen=True)
class LogitDifference(_OfTokens):
    """Logit of the answer minus logit of the wrong answer, at the last position.

    Args:
        answer: text of exactly one token (words inside a sentence begin with a space), or a token id.
        wrong: the same for the wrong answer.

    Example:
        >>> metric = wb.LogitDifference(" Mary", " John").resolve(model)
        >>> metric(model.logits("When Mary and John went out, John gave a drink to")[:, -1])
    """

    answer: Answer
    wrong: Answer

    def __str__(self) -> str:
        return f"logit({self.answer!r}) − logit({self.wrong!r})"

    def resolve(self, model: LanguageModel) -> MetricFunction:
        """Look both tokens up. Raises `MetricError` if one is not a single token or they are the same."""
        answer, wrong = model.token_id(self.answer), model.token_id(self.wrong)
        if answer == wrong:
            raise MetricError(
                f"The answer {self.answer!r} and the wrong answer {self.wrong!r} are the same token: their logit "
                "difference is 0 whatever the model does. Give two different tokens."
            )

        def difference(logits: Float[Tensor, "row d_vocab"]) -> Float[Tensor, " row"]:
            return (logits[:, answer] - logits[:, wrong]).float()

        difference.tokens = (answer, wrong)  # type: ignore[attr-defined]
        difference.of_tokens = lambda logits: (logits[:, 0] - logits[:, 1]).float()  # type: ignore[attr-defined]
        return difference


@dataclass(frozen=True)
class LogProbability(_OfTokens):
    """Log-probability (nats) of an answer: of one token, or of several, each given those before it.

    The tokens of a longer answer but the last are appended to the prompts, so positions of a sweep go on into it.

    Args:
        answer: text (words inside a sentence begin with a space), a token id, or several.
    """

    answer: Answer | Iterable[SupportsIndex]

    def __str__(self) -> str:
        return f"ln p({self.answer!r})"

    def ids(self, model: LanguageModel) -> list[int]:
        """The token ids of the answer."""
        if isinstance(self.answer, str):
            if model.tokenizer is None:
                raise MetricError(
                    f"The answer {self.answer!r} is text, but {model.name} has no tokenizer: give token ids."
                )
            ids = model.tokenizer(self.answer, add_special_tokens=False)["input_ids"]
        else:
            several: Any = self.answer if isinstance(self.answer, tuple) else [self.answer]
            ids = [model.token_id(i) for i in several]
        if not ids:
            raise MetricError(f"The answer {self.answer!r} has no tokens: give at least one.")
        return list(ids)

    def continuation(self, model: LanguageModel) -> list[int]:
        """What is appended to the prompts: the answer without its last token."""
        return self.ids(model)[:-1]

    def resolve(self, model: LanguageModel) -> MetricFunction:
        """Look the tokens up."""
        ids = torch.tensor(self.ids(model))

        def log_probability(logits: Float[Tensor, "row ... d_vocab"]) -> Float[Tensor, " row"]:
            each = logits.unsqueeze(1) if logits.ndim == 2 else logits
            wanted = ids.to(logits.device)[None, :, None].expand(len(each), -1, 1)
            return each.float().log_softmax(-1).gather(-1, wanted)[..., 0].sum(-1)

        return log_probability


@dataclass(frozen=True)
class Probability(_OfTokens):
    """Probability of one token."""

    answer: Answer

    def __str__(self) -> str:
        return f"p({self.answer!r})"

    def resolve(self, model: LanguageModel) -> MetricFunction:
        """Look the token up. Raises `MetricError` if it is not a single token."""
        answer = model.token_id(self.answer)
        return lambda logits: logits.float().softmax(-1)[:, answer]


@dataclass(frozen=True)
class Rank(_OfTokens):
    """How many tokens have a higher logit than the answer: 0 where it is the first choice."""

    answer: Answer

    def __str__(self) -> str:
        return f"rank of {self.answer!r}"

    def resolve(self, model: LanguageModel) -> MetricFunction:
        """Look the token up. Raises `MetricError` if it is not a single token."""
        answer = model.token_id(self.answer)
        return lambda logits: (logits > logits[:, answer : answer + 1]).sum(-1).float()


@dataclass(frozen=True)
class Accuracy(_OfTokens):
    """1 where the answer has the highest logit, 0 elsewhere."""

    answer: Answer

    def __str__(self) -> str:
        return f"first choice is {self.answer!r}"

    def resolve(self, model: LanguageModel) -> MetricFunction:
        """Look the token up. Raises `MetricError` if it is not a single token."""
        answer = model.token_id(self.answer)
        return lambda logits: (logits.argmax(-1) == answer).float()


@dataclass(frozen=True)
class KLDivergence:
    """KL(clean || patched) of the next token's distribution, in nats: 0 for the clean run itself."""

    def __str__(self) -> str:
        return "KL(clean ‖ patched)"

    def resolve(self, model: LanguageModel) -> MetricFunction:
        """Not without the clean run: see `against`."""
        raise MetricError(
            f"KLDivergence compares with a clean run of {model.name}: use it in a sweep, or call `against(logits)`."
        )

    def against(self, clean: Float[Tensor, " d_vocab"]) -> MetricFunction:
        """The function for a clean run with these logits."""
        expected = clean.float().log_softmax(-1)
        weights = expected.exp()

        def divergence(logits: Float[Tensor, "row d_vocab"]) -> Float[Tensor, " row"]:
            return (weights * (expected - logits.float().log_softmax(-1))).sum(-1)

        return divergence


@dataclass(frozen=True)
class _Function:
    """A function given as a metric."""

    function: MetricFunction

    def __str__(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)

    def resolve(self, model: LanguageModel) -> MetricFunction:
        del model

        def checked(logits: Tensor) -> Tensor:
            values = self.function(logits)
            if not isinstance(values, Tensor) or values.shape != logits.shape[:1]:
                got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
                raise MetricError(
                    f"The metric {self} gave {got}; expected one number per row, shape {tuple(logits.shape[:1])}."
                )
            return values

        return checked


def as_metric(given: Any) -> Metric:
    """A metric, or a function made one.

    Raises:
        MetricError: it is neither.
    """
    if isinstance(given, Metric):
        return given
    if callable(given):
        return _Function(given)  # type: ignore[arg-type]
    raise MetricError(
        f"A {type(given).__name__} is no metric: give LogitDifference(...), another of `workbench.patching`, or a "
        "function [row, d_vocab] -> [row]."
    )


def continuation(metric: Metric, model: LanguageModel) -> list[int]:
    """Tokens to append to the prompts for a metric: none, but for an answer of several tokens."""
    return metric.continuation(model) if isinstance(metric, LogProbability) else []


def function_of(metric: Metric, model: LanguageModel, clean: Tensor) -> MetricFunction:
    """The function of a metric, given the clean run's logits [d_vocab]."""
    return metric.against(clean) if isinstance(metric, KLDivergence) else metric.resolve(model)


def check(metric: Metric, model: LanguageModel) -> None:
    """Raise `MetricError` now where a metric does not suit the model (one that waits for a clean run suits all)."""
    if not isinstance(metric, KLDivergence):
        metric.resolve(model)


def one_each(given: Any, model: LanguageModel, n: int, what: str = "pair") -> list[Metric]:
    """One metric for each of `n` pairs (or whatever `what` is): given once for all, or as many as there are.

    Raises:
        MetricError: another number of them, or one that does not suit the model.
    """
    metrics = [as_metric(m) for m in (given if isinstance(given, Sequence) else [given] * n)]
    if len(metrics) != n:
        raise MetricError(f"{len(metrics)} metrics were given for {n} {what}s: give one, or one per {what}.")
    for one in dict.fromkeys(metrics):
        check(one, model)
    return metrics
