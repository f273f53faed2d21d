"""Pairs of prompts whose positions correspond."""

from __future__ import annotations

from collections.abc import Sequence

from workbench.errors import PromptError
from workbench.model.language_model import LanguageModel
from workbench.model.tokens import Prompt, TokenBatch, as_list

Pair = tuple[TokenBatch, TokenBatch]


def as_pairs(
    model: LanguageModel,
    clean: Prompt | Sequence[Prompt],
    corrupt: Prompt | Sequence[Prompt],
    continuations: Sequence[Sequence[int]] = (),
) -> list[Pair]:
    """Clean and corrupt prompts as token batches, all of one length.

    Args:
        model: the language model.
        clean, corrupt: one prompt each, or as many as there are pairs.
        continuations: token ids to append to both prompts of each pair (a longer answer's first tokens).

    Raises:
        PromptError: other numbers of prompts, or lengths that differ; the message shows both prompts' tokens.
    """
    left, right = as_list(clean), as_list(corrupt)
    if len(left) != len(right):
        raise PromptError(
            f"{len(left)} clean and {len(right)} corrupt prompts were given: they come in pairs."
        )
    more = list(continuations) or [[]] * len(left)
    pairs = [
        (_batch(model, a, tail), _batch(model, b, tail)) for a, b, tail in zip(left, right, more, strict=True)
    ]
    for i, (a, b) in enumerate(pairs):
        if a.lengths != b.lengths:
            raise PromptError(
                f"Pair {i}: the clean prompt has {a.lengths[0]} tokens and the corrupt one {b.lengths[0]}, so "
                f"positions do not correspond. Clean: {list(a.tokens[0])}. Corrupt: {list(b.tokens[0])}. Reword one "
                "of them (names of one token each, for instance)."
            )
        if a.lengths != pairs[0][0].lengths:
            raise PromptError(
                f"Pair {i} has {a.lengths[0]} tokens and pair 0 has {pairs[0][0].lengths[0]}: one grid needs pairs of "
                "one length. Sweep them in groups of equal length."
            )
    return pairs


def _batch(model: LanguageModel, prompt: Prompt, tail: Sequence[int]) -> TokenBatch:
    return model.batch(prompt) if not tail else model.batch([[*model.encode(prompt), *tail]])
