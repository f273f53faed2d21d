"""modular-addition: a + b modulo 113 with one layer, trained through grokking."""

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
    gpt2,
    is_held_out_split,
    next_logits,
)

MODULUS = 113
TRAIN_SHARE = 0.27


class ModularAddition(Organism):
    """All 12,769 pairs; a fixed random part is trained on until the rest is solved too."""

    name = "modular-addition"
    summary = "a + b mod 113, one layer, through grokking"
    data = (
        f"`a b =` with a, b from 0 to {MODULUS - 1}; the next word is (a + b) mod {MODULUS}. {TRAIN_SHARE:.0%} of the "
        "12,769 pairs, drawn with the seed, are trained on; all the others are held out."
    )
    plan = Plan(
        steps=10_000,
        batch_size=512,
        learning_rate=2e-3,
        warmup=10,
        decay="late",
        weight_decay=0.5,
        precision="float32",
        evaluate_every=100,
    )
    snapshots = tuple(range(0, 10_001, 500))
    weight_statistics = True
    trained_with = 1
    goals = (Goal("accuracy", 0.99, name="accuracy_modular_addition"),)
    known = Known(
        (
            "The embedding of the numbers becomes sparse in the Fourier basis: a few key frequencies hold nearly all "
            "its power; the logits are sums of cos(w(a + b - c)).",
            "The training pairs are remembered within some hundred steps; the held-out accuracy rises much later, "
            "while weight decay removes what was merely remembered.",
        ),
        ("Power et al. 2022, arXiv:2201.02177", "Nanda et al. 2023, arXiv:2301.05217"),
    )

    def words(self) -> list[str]:
        """The numbers, so that a number's token id is its value, and `=`."""
        return [*map(str, range(MODULUS)), "="]

    def config(self) -> Any:
        # The large epsilon makes the layer norms almost linear. With the usual one the size of the embedding means
        # nothing, so that weight decay shrinks the key frequencies and the remains of what was remembered alike,
        # and a fifth of the power stays outside six frequencies; here only what the task needs is held up.
        # The wide MLP and the large initial weights let the pairs be remembered before the rule is found.
        return gpt2(
            MODULUS + 1,
            d_model=32,
            n_layers=1,
            n_heads=4,
            d_mlp=512,
            context=3,
            activation_function="relu",
            initializer_range=0.15,
            layer_norm_epsilon=1.0,
        )

    def pairs(self, seed: int, split: Split) -> np.ndarray:
        """[n, 2]: the pairs of a split; which they are depends on the training's seed."""
        every = np.stack(np.meshgrid(np.arange(MODULUS), np.arange(MODULUS), indexing="ij"), -1).reshape(
            -1, 2
        )
        order = self.stream(seed, "split").permutation(len(every))
        n = round(TRAIN_SHARE * len(every))
        return every[order[n:] if is_held_out_split(split) else order[:n]]

    def batch(self, seed: int, step: int) -> Batch:
        pairs = self._pairs(seed, "train")
        rows = pairs[self.stream(seed, "train", step).integers(0, len(pairs), self.plan.batch_size)]
        targets = np.full((len(rows), 3), IGNORE)
        targets[:, 2] = rows.sum(1) % MODULUS
        return Batch(torch.from_numpy(_prompts(rows)), torch.from_numpy(targets))

    def _pairs(self, seed: int, split: Split) -> np.ndarray:
        if (seed, split) not in self._kept:
            self._kept[seed, split] = self.pairs(seed, split)
        return self._kept[seed, split]

    @cached_property
    def _kept(self) -> dict[tuple[int, Split], np.ndarray]:
        return {}

    def evaluate(self, model: Any, *, full: bool = False, seed: int | None = None) -> dict[str, float]:
        """Accuracy and loss (nats) on the held-out and the training pairs of the training with `seed`, and the
        share of the embedding's power in its six strongest frequencies."""
        del full  # all pairs are few
        seed = self.trained_with if seed is None else seed
        figures: dict[str, float] = {}
        for split, mark in (("held_out", ""), ("train", "train_")):
            pairs = self._pairs(seed, split)  # type: ignore[arg-type]
            logits = next_logits(model, _prompts(pairs), batch_size=4096)
            right = torch.from_numpy(pairs.sum(1) % MODULUS).to(logits.device)
            figures[f"{mark}accuracy"] = float((logits.argmax(-1) == right).float().mean())
            figures[f"{mark}loss_nats"] = float(torch.nn.functional.cross_entropy(logits, right))
        figures["power_in_6_frequencies"] = float(spectral_power(embedding(model))[:6].sum())
        return {**figures, "n": len(self._pairs(seed, "held_out"))}

    def problems(self, n: int, *, split: Split = "held_out", seed: int = 0) -> PromptSet:
        """Pairs of prompts that differ in one operand only. Extra fields: `a`, `b`, `sum`, `corrupt_sum`."""
        rng = self.stream(seed, f"problems/{split}")
        rows = self.pairs(self.trained_with, split)
        rows = rows[rng.permutation(len(rows))[: min(n, len(rows))]]
        made = []
        for i, (a, b) in enumerate(rows.tolist()):
            operand = "ab"[int(rng.integers(2))]
            other = (int(rng.integers(1, MODULUS)) + (a if operand == "a" else b)) % MODULUS
            a2, b2 = (other, b) if operand == "a" else (a, other)
            spans = {"a": (0, len(str(a))), "b": (len(str(a)) + 1, len(f"{a} {b}"))}
            made.append(
                Pair(
                    id=f"{i:05d}",
                    clean=f"{a} {b} =",
                    corrupt=f"{a2} {b2} =",
                    answer=f" {(a + b) % MODULUS}",
                    wrong_answer=f" {(a2 + b2) % MODULUS}",
                    group=f"{min(a, b)},{max(a, b)}",
                    spans=spans,
                    extra={
                        "differs": [operand],
                        "a": a,
                        "b": b,
                        "sum": (a + b) % MODULUS,
                        "corrupt_sum": (a2 + b2) % MODULUS,
                    },
                )
            )
        return PromptSet(self.name, "pairs", tuple(made), "Apache-2.0", "all pairs of numbers")


def embedding(model: Any) -> torch.Tensor:
    """[number, d_model] float32: the embedding of the numbers."""
    return model.get_input_embeddings().weight.detach()[:MODULUS].float()


def spectral_power(table: torch.Tensor) -> torch.Tensor:
    """Share of the power of a table [number, d_model] at each frequency 1 … (n-1)/2 over the numbers, strongest
    first. The mean over the numbers (frequency 0) is left out.

    The discrete Fourier transform is along the numbers; power is the squared modulus, summed over columns
    (Nanda et al. 2023, section 4).
    """
    spectrum = torch.fft.rfft(table.double(), dim=0)[1:]
    power = spectrum.abs().square().sum(-1)
    return (power / power.sum()).sort(descending=True).values


def _prompts(pairs: np.ndarray) -> np.ndarray:
    return np.concatenate([pairs, np.full((len(pairs), 1), MODULUS)], axis=1).astype(np.int64)
