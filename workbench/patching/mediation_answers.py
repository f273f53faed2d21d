"""Answers of one token: their ids, and their log-probabilities over the vocabulary or over candidates.

    log P(t) = logit_t - log sum_{c in C} exp(logit_c)          C: the whole vocabulary, or the candidates

Renormalising over candidates (the numbers a task can have as results, for instance) leaves every ratio P(t) / P(u) of
two candidates as it is, hence also what is a difference of two log-probabilities of one run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.errors import MetricError
from workbench.model.language_model import LanguageModel
from workbench.patching.metrics import Answer

Tokens = Answer | Sequence[Answer]
"""The same for all prompts, or one for each."""


def token_ids(model: LanguageModel, given: Tokens, n: int, name: str = "answers") -> list[int]:
    """The token ids of `n` prompts' answers.

    Args:
        model: the language model.
        given: one answer for all prompts, or one for each.
        n: number of prompts.
        name: what a message calls them.

    Raises:
        MetricError: an answer of several tokens, an id outside the vocabulary, or another number of them.

    Example:
        >>> token_ids(model, " Paris", 2)
        [7042, 7042]
    """
    several: Any = given if isinstance(given, Iterable) and not isinstance(given, str) else None
    listed: list[Any] = (
        [given] * n if several is None else list(several)
    )  # what is no token, `token_id` refuses
    if len(listed) != n:
        raise MetricError(
            f"{name} has {len(listed)} items for {n} prompts: give one, or one for each prompt."
        )
    return [model.token_id(answer) for answer in listed]


class Vocabulary:
    """What probabilities are normalised over.

    Args:
        model: the language model.
        candidates: tokens; None for the whole vocabulary.

    Raises:
        MetricError: a candidate that is not one token, fewer than two, or one that is there twice.
    """

    def __init__(self, model: LanguageModel, candidates: Sequence[Answer] | None = None) -> None:
        self.ids: list[int] | None = None
        if candidates is None:
            return
        if isinstance(candidates, str):
            raise MetricError(
                f"candidates is the text {candidates!r}: give a list of tokens, or None for all."
            )
        self.ids = [model.token_id(one) for one in candidates]
        if len(self.ids) < 2:
            raise MetricError(f"{len(self.ids)} candidates were given: a probability needs two or more.")
        for at, one in enumerate(self.ids):
            if one in self.ids[:at]:
                raise MetricError(
                    f"Candidate {candidates[at]!r} (token {one}) was given twice: give each once."
                )

    def __len__(self) -> int:
        return len(self.ids or [])

    def __str__(self) -> str:
        return "the whole vocabulary" if self.ids is None else f"{len(self.ids)} candidates"

    def check(self, tokens: Sequence[int], name: str) -> None:
        """Raise `MetricError` where one of these answers is no candidate."""
        missing = [t for t in tokens if self.ids is not None and t not in self.ids]
        if missing:
            raise MetricError(
                f"{name} has token {missing[0]}, which is not among the {len(self)} candidates, so it has no "
                "probability. Add it to the candidates, or give candidates=None for the whole vocabulary."
            )

    def log_probabilities(
        self, logits: Float[Tensor, "row d_vocab"], tokens: Sequence[int]
    ) -> Float[Tensor, "row token"]:
        """Natural logarithms of the tokens' probabilities, float64 on the CPU.

        The normaliser is worked out in single precision at least; it is the same number for all tokens of a row, so
        their differences are those of the logits.
        """
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        over = wide if self.ids is None else wide[:, self.ids]
        picked = wide[:, list(tokens)].double() - over.logsumexp(-1, keepdim=True).double()
        return picked.cpu()

    def first_choice(self, logits: Float[Tensor, "row d_vocab"]) -> Int[Tensor, " row"]:
        """The most probable token of each row."""
        if self.ids is None:
            return logits.argmax(-1).cpu()
        return torch.tensor(self.ids)[logits[:, self.ids].argmax(-1).cpu()]
