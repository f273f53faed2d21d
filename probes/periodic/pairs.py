"""Pairs of problems (a, b) and (a', b) that a model both gets right, and what is read from its logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from probes.periodic.numbers import NumberTask, ids_of
from workbench.errors import DataError

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel


@dataclass(frozen=True, eq=False)
class NumberPairs:
    """Pairs that differ in one number.

    Attributes:
        ids: [pair, position] prompts with the old number.
        number, new, other: [pair] a, a' and b.
        old_answer, new_answer: [pair] tokens of the right answers.
        clean: [pair, d_vocab] logits at the end of the prompts with the old number.
        n_drawn: how many were drawn before those that the model gets wrong were left out.
    """

    ids: Int64[np.ndarray, "pair position"]
    number: Int64[np.ndarray, " pair"]
    new: Int64[np.ndarray, " pair"]
    other: Int64[np.ndarray, " pair"]
    old_answer: Int64[np.ndarray, " pair"]
    new_answer: Int64[np.ndarray, " pair"]
    clean: Float[Tensor, "pair d_vocab"]
    n_drawn: int

    def __len__(self) -> int:
        return len(self.number)

    def measure(
        self, logits: Float[Tensor, "source pair d_vocab"]
    ) -> dict[str, Float64[np.ndarray, "source pair"]]:
        """Effect, change of the new answer's logit, its probability, and whether it is the first choice."""
        rows = torch.arange(len(self), device=logits.device)
        old, new = (torch.from_numpy(x).to(logits.device) for x in (self.old_answer, self.new_answer))
        clean = self.clean.to(logits)
        up = logits[:, rows, new] - clean[rows, new]
        down = logits[:, rows, old] - clean[rows, old]
        measured = {
            "effect": up - down,
            "logit_change": up,
            "probability": logits.softmax(-1)[:, rows, new],
            "success": (logits.argmax(-1) == new).double(),
        }
        return {name: values.double().cpu().numpy() for name, values in measured.items()}


def draw_pairs(
    model: LanguageModel, task: NumberTask, n: int, seed: int, batch_size: int = 512
) -> NumberPairs:
    """Draw pairs and keep those whose two problems the model answers rightly, with different answers.

    The new numbers go through all numbers in random order, again and again, so that each is there equally often.

    Raises:
        DataError: none is left.
        MetricError: an answer that is not one token.
    """
    rng = np.random.default_rng([seed, 4])
    numbers = np.array(sorted(set(task.numbers)), dtype=np.int64)
    order = [rng.permutation(numbers) for _ in range(-(-n // len(numbers)))]
    new = np.concatenate(order)[:n]
    # An old number that is not the new one: one of the n − 1 others, by its distance around the list.
    at = np.searchsorted(numbers, new)
    number = numbers[(at + rng.integers(1, len(numbers), n)) % len(numbers)]
    other = rng.choice(np.array(task.others, dtype=np.int64), n)
    answers = [
        np.array(
            [model.token_id(task.answer_text(int(a), int(b))) for a, b in zip(which, other, strict=True)]
        )
        for which in (number, new)
    ]
    ids = [ids_of(model, task, which.tolist(), other.tolist()) for which in (number, new)]
    logits = [_last_logits(model, one, batch_size) for one in ids]
    right = [l.argmax(-1).cpu().numpy() == answer for l, answer in zip(logits, answers, strict=True)]
    kept = right[0] & right[1] & (answers[0] != answers[1])
    if not kept.any():
        raise DataError(
            f"{model.name} gets both problems right in none of {n} pairs (the old one in {right[0].sum()}, the "
            f"new one in {right[1].sum()}): take a task it can do."
        )
    return NumberPairs(
        ids[0][kept],
        number[kept],
        new[kept],
        other[kept],
        answers[0][kept],
        answers[1][kept],
        logits[0][torch.from_numpy(kept)],
        n,
    )


@torch.inference_mode()
def _last_logits(
    model: LanguageModel, ids: Int64[np.ndarray, "pair position"], batch_size: int
) -> Float[Tensor, "pair d_vocab"]:
    given = torch.from_numpy(ids).to(model.device)
    parts = [
        model.hf(input_ids=given[i : i + batch_size], use_cache=False, logits_to_keep=1).logits[:, -1].float()
        for i in range(0, len(given), batch_size)
    ]
    return torch.cat(parts).cpu()
