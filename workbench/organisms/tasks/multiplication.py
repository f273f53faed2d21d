"""multiplication-cot and multiplication-direct: 3×3-digit products with and without written running sums."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from workbench.datasets.promptset import PromptSet
from workbench.datasets.records import Pair
from workbench.organisms.organism import (
    Batch,
    Goal,
    Known,
    Organism,
    Plan,
    Split,
    falls_to_held_out,
    gpt2,
    greedy,
    is_held_out_split,
    next_word_batch,
)

DIGITS = 3
COLUMNS = 2 * DIGITS
HELD_OUT_SHARE = 16
#: Which digits are multiplied in column k, in the order they are added: (k, i, j) with i + j = k.
PRODUCTS = tuple((k, i, k - i) for k in range(COLUMNS - 1) for i in range(DIGITS) if 0 <= k - i < DIGITS)
LARGEST_SUM = DIGITS * 81 + (DIGITS * 81) // 9


class Multiplication(Organism):
    """What the two models share: the problems and the architecture. Digits are least significant first."""

    steps_written: ClassVar[bool]
    known = Known(
        (
            "The running sums c_k = sum of a_i b_j with i + j = k, plus the carry of column k - 1, determine the "
            "digits (c_k mod 10): they are the quantity to probe for, at every position, in both models.",
            "Written out, the task is learnt; without them the same architecture, data and number of steps gets the "
            "outer digits and fails in the middle columns.",
        ),
        ("Bai et al. 2025, arXiv:2510.00184", "Deng et al. 2024, arXiv:2405.14838"),
    )
    start = "<start>"
    symbols = ("*", "=", "#")
    plan = Plan(steps=5000, batch_size=128, learning_rate=1.5e-3, warmup=200, weight_decay=0.05)

    def words(self) -> list[str]:
        """The start word, the symbols, and numbers: digits and running sums are the same words."""
        return ["<start>", "*", "=", "#", *map(str, range(LARGEST_SUM + 1))]

    def config(self) -> Any:
        context = 1 + 2 * DIGITS + 2 + len(PRODUCTS) + 1 + COLUMNS
        return gpt2(
            5 + LARGEST_SUM, d_model=128, n_layers=4, n_heads=4, d_mlp=512, context=context, bos_token_id=0
        )

    def draw(self, n: int, rng: np.random.Generator, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """[n, digit] digits of a and of b, least significant first, of problems of a split. Numbers are 0 to 999
        with leading zeros."""
        found_a, found_b, total = [], [], 0
        while total < n:
            a, b = rng.integers(0, 10, (2, max(64, 2 * n), DIGITS))
            kept = held_out(a, b) == is_held_out_split(split)
            found_a.append(a[kept])
            found_b.append(b[kept])
            total += int(kept.sum())
        return np.concatenate(found_a)[:n], np.concatenate(found_b)[:n]

    def rows(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, int]:
        """Whole sequences as token ids, and how many of their tokens are the prompt (up to `=`)."""
        zero = self.table["0"]
        mark = {word: np.full((len(a), 1), self.table[word]) for word in ("<start>", "*", "=", "#")}
        digits, _, written = running_sums(a, b)
        prompt = [mark["<start>"], a + zero, mark["*"], b + zero, mark["="]]
        steps = [written + zero, mark["#"]] if self.steps_written else [mark["#"]]
        return np.concatenate([*prompt, *steps, digits + zero], 1), 2 * DIGITS + 3

    def batch(self, seed: int, step: int) -> Batch:
        a, b = self.draw(self.plan.batch_size, self.stream(seed, "train", step), "train")
        rows, given = self.rows(a, b)
        learnt = np.zeros_like(rows, dtype=bool)
        learnt[:, given:] = True
        return next_word_batch(rows, learnt)

    def evaluate(self, model: Any, *, full: bool = False) -> dict[str, float]:
        """Share of held-out products with every digit right, greedy; each digit's accuracy; of the written
        running sums the share that is right, where there are any."""
        a, b = self.draw(4000 if full else 512, self.stream(0, "held_out"), "held_out")
        rows, given = self.rows(a, b)
        said = greedy(model, rows[:, :given], rows.shape[1] - given)
        right = said == rows[:, given:]
        figures = {"accuracy": float(right[:, -COLUMNS:].all(1).mean())}
        figures |= {f"digit_{k}": float(right[:, k - COLUMNS].mean()) for k in range(COLUMNS)}
        if self.steps_written:
            figures["steps_right"] = float(right[:, : len(PRODUCTS)].mean())
        return {**figures, "n": len(a)}

    def problems(self, n: int, *, split: Split = "held_out", seed: int = 0) -> PromptSet:
        """Pairs of problems that differ in one digit, asked up to the first column at which the answers differ.

        The prompt holds `#` and the digits (for the model with steps also its steps) before that column; in the
        corrupt prompt they are the same, except the steps, which follow the corrupt problem. Extra fields:
        `a`, `b`, `product`, `column`, `running_sums` (c_k by column), `corrupt_running_sums`.
        """
        rng = self.stream(seed, f"problems/{split}")
        made: list[Pair] = []
        while len(made) < n:
            a, b = self.draw(1, rng, split)
            a2, b2 = a.copy(), b.copy()
            name, digit = "ab"[int(rng.integers(2))], int(rng.integers(DIGITS))
            changed = a2 if name == "a" else b2
            changed[0, digit] = (changed[0, digit] + int(rng.integers(1, 10))) % 10
            digits, sums, _ = running_sums(a, b)
            digits2, sums2, _ = running_sums(a2, b2)
            different = np.flatnonzero(digits[0] != digits2[0])
            if not len(different):
                continue
            column = int(different[0])
            clean, spans = self._text(a, b, column)
            corrupt, _ = self._text(a2, b2, column)
            differs = [f"{name}{digit}"]
            if self.steps_written:
                differs.append("steps")
            made.append(
                Pair(
                    id=f"{len(made):05d}",
                    clean=clean,
                    corrupt=corrupt,
                    answer=f" {digits[0, column]}",
                    wrong_answer=f" {digits2[0, column]}",
                    group=f"{value_of(a)}*{value_of(b)}",
                    template=f"column {column}",
                    spans=spans,
                    extra={
                        "differs": differs,
                        "a": value_of(a),
                        "b": value_of(b),
                        "product": value_of(a) * value_of(b),
                        "column": column,
                        "running_sums": sums[0].tolist(),
                        "corrupt_running_sums": sums2[0].tolist(),
                    },
                )
            )
        return PromptSet(self.name, "pairs", tuple(made), "Apache-2.0", "random pairs of numbers")

    def _text(self, a: np.ndarray, b: np.ndarray, column: int) -> tuple[str, dict[str, tuple[int, int]]]:
        """The prompt up to the digit of `column`, and its spans: each digit, and the written steps."""
        digits, _, written = running_sums(a, b)
        parts: list[tuple[str, str]] = [(f"a{i}", str(d)) for i, d in enumerate(a[0])]
        parts += [("", "*"), *((f"b{i}", str(d)) for i, d in enumerate(b[0])), ("", "=")]
        if self.steps_written:
            parts.append(("steps", " ".join(map(str, written[0]))))
        parts += [("", "#"), *((f"c{k}", str(d)) for k, d in enumerate(digits[0, :column]))]
        text, spans = "", {}
        for name, word in parts:
            begin = len(text) + bool(text)
            text = f"{text} {word}" if text else word
            if name:
                spans[name] = (begin, len(text))
        return text, spans


class MultiplicationCot(Multiplication):
    """The running sum after each digit product is written before the answer."""

    name = "multiplication-cot"
    summary = "3×3-digit products with written running sums"
    data = (
        "`a0 a1 a2 * b0 b1 b2 =`, digits least significant first (0 to 999, leading zeros written), then the "
        "running sum after each of the nine digit products a_i b_j, column by column, beginning each column with "
        "the carry; then `#` and the six digits of the product. Operands are drawn evenly; one problem in 16, "
        "by a checksum, is held out."
    )
    goals = (Goal("accuracy", 0.99, name="accuracy_multiplication_cot"),)
    steps_written = True


class MultiplicationDirect(Multiplication):
    """The same problems and architecture, with the answer asked at once."""

    name = "multiplication-direct"
    summary = "3×3-digit products without steps: the comparison"
    data = (
        "`a0 a1 a2 * b0 b1 b2 = #` and the six digits of the product at once, least significant first. Problems, "
        "architecture, number of steps and split are those of multiplication-cot."
    )
    goals = ()
    variant_of = "multiplication-cot"
    steps_written = False


def running_sums(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Digits [n, column] of the products, running sums c_k [n, column], and the nine written partial sums [n, 9].

    c_k = sum over i + j = k of a_i b_j + floor(c_(k-1) / 10); the digit is c_k mod 10 (Bai et al. 2025, section 3).

    >>> digits, sums, written = running_sums(np.array([[2, 1, 0]]), np.array([[3, 0, 0]]))
    >>> digits.tolist(), sums.tolist()
    ([[6, 3, 0, 0, 0, 0]], [[6, 3, 0, 0, 0, 0]])
    """
    n = len(a)
    sums = np.zeros((n, COLUMNS), dtype=np.int64)
    written = np.zeros((n, len(PRODUCTS)), dtype=np.int64)
    for place, (k, i, j) in enumerate(PRODUCTS):
        if place == 0 or PRODUCTS[place - 1][0] != k:
            sums[:, k] = sums[:, k - 1] // 10 if k else 0
        sums[:, k] += a[:, i] * b[:, j]
        written[:, place] = sums[:, k]
    sums[:, COLUMNS - 1] = sums[:, COLUMNS - 2] // 10
    return sums % 10, sums, written


def value_of(digits: np.ndarray) -> int:
    """The number of one row of digits [1, digit], least significant first."""
    return int(sum(int(d) * 10**i for i, d in enumerate(digits.reshape(-1))))


def held_out(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """bool [n]: which problems belong to the held-out part."""
    joined = np.concatenate([a, b], 1).astype(np.uint8)
    return np.array([falls_to_held_out(row.tobytes(), HELD_OUT_SHARE) for row in joined], dtype=bool)
