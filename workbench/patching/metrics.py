"""Metrics: from logits at the last position to one number per row.

    LogitDifference(a, b):  logit[a] - logit[b]          > 0 where the model prefers a
    LogProbability(a):      ln softmax(logits)[a]        in nats

A metric is resolved against a model before anything runs, so a token that is not one token is an error
at once. Any object with `resolve(model)` returning a function `[row, d_vocab] -> [row]` will do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from workbench.errors import MetricError
from workbench.model.language_model import LanguageModel

MetricFunction = Callable[[Tensor], Tensor]


@runtime_checkable
class Metric(Protocol):
    """Something that turns logits into one number per row."""

    def resolve(self, model: LanguageModel) -> MetricFunction:
        """A function `[row, d_vocab] logits -> [row]`; raises `MetricError` if the model cannot have it."""
        ...


@dataclass(frozen=True)
class LogitDifference:
    """Logit of the answer minus logit of the wrong answer, at the last position.

    Args:
        answer: text of exactly one token (words inside a sentence begin with a space), or a token id.
        wrong: the same for the wrong answer.

    Example:
        >>> metric = wb.LogitDifference(" Mary", " John").resolve(model)
        >>> metric(model.logits("When Mary and John went out, John gave a drink to")[:, -1])
    """

    answer: str | int
    wrong: str | int

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

        return difference


@dataclass(frozen=True)
class LogProbability:
    """Log-probability (nats) of one token at the last position."""

    answer: str | int

    def __str__(self) -> str:
        return f"ln p({self.answer!r})"

    def resolve(self, model: LanguageModel) -> MetricFunction:
        """Look the token up. Raises `MetricError` if it is not a single token."""
        answer = model.token_id(self.answer)

        def log_probability(logits: Float[Tensor, "row d_vocab"]) -> Float[Tensor, " row"]:
            return logits.float().log_softmax(-1)[:, answer]

        return log_probability
