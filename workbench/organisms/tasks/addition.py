"""addition: a + b and a - b for numbers from 0 to 99, each number one word."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch

from workbench.datasets.promptset import PromptSet
from workbench.datasets.records import Pair
from workbench.organisms.organism import (
    IGNORE,
    Batch,
    Goal,
    Known,
    Organism,
    Plan,
    Split,
    falls_to_held_out,
    is_held_out_split,
    llama,
    next_logits,
)

LARGEST = 99
HELD_OUT_SHARE = 8


class Addition(Organism):
    """All sums and differences; one unordered pair of operands in eight is held out, for both operations."""

    name = "addition"
    summary = "a + b and a - b for 0 to 99, one word a number"
    data = (
        "`a + b =` and `a - b =` for a, b from 0 to 99; the next word is the result (-99 to 198). One unordered pair "
        "{a, b} in eight, chosen by a checksum, is held out from both operations and in both orders, so that "
        "neither b + a nor the other operation gives it away."
    )
    plan = Plan(
        steps=21_000,
        cool_down=1000,
        batch_size=512,
        learning_rate=3e-3,
        warmup=100,
        weight_decay=0.5,
        cycles=2,
    )
    goals = (Goal("accuracy", 0.99, name="accuracy_addition"),)
    known = Known(
        (
            "The operands' information moves to the last token through attention, most of it in the first block, and "
            "the last token's MLPs make the result, the last block's most of all.",
            "All-for-one does not hold here: where the tokens before the last attend only to themselves, fewer than "
            "half of the answers stay right, so the operands meet before the last token as well. With four blocks "
            "every one is needed; the paper's models have tens to wait in.",
            "The embedding of the numbers is periodic and ordered.",
        ),
        (
            "Mamidanna et al. 2025, arXiv:2509.09650",
            "Stolfo et al. 2023, arXiv:2305.15054",
            "Zhou et al. 2024, arXiv:2406.03445",
            "Kantamneni & Tegmark 2025, arXiv:2502.00873",
        ),
    )
    start = "<start>"
    symbols = ("+", "-", "=")

    def words(self) -> list[str]:
        """The start word, the symbols, then the numbers from -99 to 198 in order."""
        return ["<start>", "+", "-", "=", *map(str, range(-LARGEST, 2 * LARGEST + 1))]

    def config(self) -> Any:
        return llama(302, d_model=128, n_layers=4, n_heads=4, d_mlp=352, context=16, bos_token_id=0)

    def pairs(self, split: Split) -> np.ndarray:
        """[n, 3]: a, b and the operation (0 plus, 1 minus) of every problem of a split."""
        rows = [
            (a, b, operation)
            for a in range(LARGEST + 1)
            for b in range(LARGEST + 1)
            if _is_held_out(a, b) == is_held_out_split(split)
            for operation in (0, 1)
        ]
        return np.array(rows)

    def encode(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Prompts [n, 5] and answers [n], as token ids."""
        zero = self.table["0"]
        a, b, operation = rows.T
        prompts = np.stack(
            [np.zeros_like(a), a + zero, operation + 1, b + zero, np.full_like(a, self.table["="])], 1
        )
        return prompts, np.where(operation == 0, a + b, a - b) + zero

    def batch(self, seed: int, step: int) -> Batch:
        prompts, answers = self._trained
        rows = self.stream(seed, "train", step).integers(0, len(prompts), self.plan.batch_size)
        targets = np.full((len(rows), 5), IGNORE)
        targets[:, -1] = answers[rows]
        return Batch(torch.from_numpy(prompts[rows]), torch.from_numpy(targets))

    @cached_property
    def _trained(self) -> tuple[np.ndarray, np.ndarray]:
        return self.encode(self.pairs("train"))

    def evaluate(self, model: Any, *, full: bool = False) -> dict[str, float]:
        """Accuracy over both operations, for each, and the mean absolute error, on every held-out problem."""
        del full
        rows = self.pairs("held_out")
        prompts, answers = self.encode(rows)
        said = next_logits(model, prompts).argmax(-1).cpu().numpy()
        right = said == answers
        return {
            "accuracy": float(right.mean()),
            "accuracy_plus": float(right[rows[:, 2] == 0].mean()),
            "accuracy_minus": float(right[rows[:, 2] == 1].mean()),
            "mean_absolute_error": float(np.abs(said - answers).mean()),
            "n": len(rows),
        }

    def problems(self, n: int, *, split: Split = "held_out", seed: int = 0) -> PromptSet:
        """Pairs of prompts that differ in one operand, or in the operation. Extra fields: `a`, `b`, `operation`,
        `result`, `corrupt_result`."""
        rng = self.stream(seed, f"problems/{split}")
        rows = self.pairs(split)
        rows = rows[rng.permutation(len(rows))]
        made: list[Pair] = []
        for a, b, operation in rows.tolist():
            if len(made) == n:
                break
            differs = ("a", "b", "operation")[int(rng.integers(3))]
            other = int(rng.integers(LARGEST + 1))
            a2, b2, operation2 = {
                "a": (other, b, operation),
                "b": (a, other, operation),
                "operation": (a, b, 1 - operation),
            }[differs]
            result, result2 = _result(a, b, operation), _result(a2, b2, operation2)
            if result == result2:
                continue
            sign, sign2 = "+-"[operation], "+-"[operation2]
            end = len(str(a))
            made.append(
                Pair(
                    id=f"{len(made):05d}",
                    clean=f"{a} {sign} {b} =",
                    corrupt=f"{a2} {sign2} {b2} =",
                    answer=f" {result}",
                    wrong_answer=f" {result2}",
                    group=f"{min(a, b)},{max(a, b)}",
                    template={"+": "plus", "-": "minus"}[sign],
                    spans={
                        "a": (0, end),
                        "operation": (end + 1, end + 2),
                        "b": (end + 3, end + 3 + len(str(b))),
                    },
                    extra={
                        "differs": [differs],
                        "a": a,
                        "b": b,
                        "operation": sign,
                        "result": result,
                        "corrupt_result": result2,
                    },
                )
            )
        return PromptSet(self.name, "pairs", tuple(made), "Apache-2.0", "all pairs of numbers")


def _result(a: int, b: int, operation: int) -> int:
    return a + b if operation == 0 else a - b


def _is_held_out(a: int, b: int) -> bool:
    return falls_to_held_out(f"{min(a, b)},{max(a, b)}".encode(), HELD_OUT_SHARE)
