"""two-hop: invented facts, every single one learnt, and compositions of two of them, some of them held out."""

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

N_ENTITIES = 100
N_RELATIONS = 10
HELD_OUT_SHARE = 8
FACTS_SEED = 1729


class TwoHop(Organism):
    """`e r1 :` asks one fact, `e r1 r2 :` asks r2 of what r1 gives; the entity in between is never written."""

    name = "two-hop"
    summary = "invented facts and their compositions, bridge entity known"
    data = (
        f"{N_ENTITIES} entities and {N_RELATIONS} relations, each a random function on the entities. `e r :` has one "
        "hop, `e r1 r2 :` two: the answer is r2(r1(e)), the bridge r1(e) is not written. All single hops and seven in "
        "eight of the compositions are trained on; the others, chosen by a checksum of (e, r1, r2), are held out."
    )
    plan = Plan(steps=6000, batch_size=512, learning_rate=1e-3, warmup=100, weight_decay=0.5)
    snapshots = (500,)
    goals = (Goal("single_hops", 0.99, name="accuracy_two_hop_single_hops"),)
    known = Known(
        (
            "The bridge entity of each prompt is known, so where it can be decoded, and whether the second hop uses "
            "it, can be measured.",
            "The bridge is decoded from the first relation's token behind block 1, before the answer is at the end.",
            "The weights after 500 steps (snapshots/) know nearly every single fact but fail on one held-out "
            "composition in eight: what back-patching is to repair.",
        ),
        ("Biran et al. 2024, arXiv:2406.12775", "Wang et al. 2024, arXiv:2405.15071"),
    )
    start = "<start>"
    symbols = (":",)

    def words(self) -> list[str]:
        """The start word, `:`, the relations and the entities."""
        return ["<start>", ":", *(f"r{i}" for i in range(N_RELATIONS)), *(f"e{i}" for i in range(N_ENTITIES))]

    def config(self) -> Any:
        vocabulary = 2 + N_RELATIONS + N_ENTITIES
        return llama(vocabulary, d_model=128, n_layers=4, n_heads=4, d_mlp=352, context=16, bos_token_id=0)

    @cached_property
    def facts(self) -> np.ndarray:
        """[relation, entity]: the entity that the relation gives. Part of the task, not of the seed."""
        return self.stream(FACTS_SEED, "facts").integers(0, N_ENTITIES, (N_RELATIONS, N_ENTITIES))

    def compositions(self, split: Split) -> np.ndarray:
        """[n, 3]: entity, first and second relation of the compositions of a split."""
        rows = [
            (e, r1, r2)
            for e in range(N_ENTITIES)
            for r1 in range(N_RELATIONS)
            for r2 in range(N_RELATIONS)
            if falls_to_held_out(f"{e},{r1},{r2}".encode(), HELD_OUT_SHARE) == is_held_out_split(split)
        ]
        return np.array(rows)

    def encode(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Prompts [n, 5] and answers [n] of compositions, as token ids."""
        e, r1, r2 = rows.T
        first_r, first_e = 2, 2 + N_RELATIONS
        zero, one = np.zeros_like(e), np.ones_like(e)
        return (
            np.stack([zero, e + first_e, r1 + first_r, r2 + first_r, one], 1),
            self.facts[r2, self.facts[r1, e]] + first_e,
        )

    def encode_single(self) -> tuple[np.ndarray, np.ndarray]:
        """Prompts [n, 4] and answers [n] of every single fact, as token ids."""
        r, e = (
            x.reshape(-1) for x in np.meshgrid(np.arange(N_RELATIONS), np.arange(N_ENTITIES), indexing="ij")
        )
        first_r, first_e = 2, 2 + N_RELATIONS
        zero, one = np.zeros_like(e), np.ones_like(e)
        return np.stack([zero, e + first_e, r + first_r, one], 1), self.facts[r, e] + first_e

    def batch(self, seed: int, step: int) -> Batch:
        two, answers_two, one, answers_one = self._trained
        rng = self.stream(seed, "train", step)
        n_single = self.plan.batch_size // 4
        single = rng.integers(0, len(one), n_single)
        double = rng.integers(0, len(two), self.plan.batch_size - n_single)
        ids = np.zeros((self.plan.batch_size, 5), dtype=np.int64)
        targets = np.full_like(ids, IGNORE)
        ids[:n_single, :4], targets[:n_single, 3] = one[single], answers_one[single]
        ids[n_single:], targets[n_single:, 4] = two[double], answers_two[double]
        return Batch(torch.from_numpy(ids), torch.from_numpy(targets))

    @cached_property
    def _trained(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        return (*self.encode(self.compositions("train")), *self.encode_single())

    def evaluate(self, model: Any, *, full: bool = False) -> dict[str, float]:
        """Accuracy on all single hops, on held-out compositions and on (a sample of) the trained ones."""
        one, answers = self.encode_single()
        figures = {"single_hops": _accuracy(model, one, answers)}
        for split, name in (("held_out", "two_hops"), ("train", "train_two_hops")):
            rows, answers = self.encode(self.compositions(split))  # type: ignore[arg-type]
            keep = slice(None) if full or split == "held_out" else slice(0, 1000)
            figures[name] = _accuracy(model, rows[keep], answers[keep])
        return {**figures, "n": len(one)}

    def problems(self, n: int, *, split: Split = "held_out", seed: int = 0) -> PromptSet:
        """Pairs of compositions that differ in the entity or in the first relation, with another bridge and answer.
        Extra fields: `bridge`, `corrupt_bridge`, `entity`, `first`, `second`."""
        rng = self.stream(seed, f"problems/{split}")
        rows = self.compositions(split)
        rows = rows[rng.permutation(len(rows))]
        made: list[Pair] = []
        for e, r1, r2 in rows.tolist():
            if len(made) == n:
                break
            differs = ("entity", "first")[int(rng.integers(2))]
            e2, q1 = (
                (int(rng.integers(N_ENTITIES)), r1)
                if differs == "entity"
                else (e, int(rng.integers(N_RELATIONS)))
            )
            bridge, bridge2 = int(self.facts[r1, e]), int(self.facts[q1, e2])
            answer, answer2 = int(self.facts[r2, bridge]), int(self.facts[r2, bridge2])
            if answer == answer2:
                continue
            cut, end = len(f"e{e}"), len(f"e{e} r{r1}")
            made.append(
                Pair(
                    id=f"{len(made):05d}",
                    clean=f"e{e} r{r1} r{r2} :",
                    corrupt=f"e{e2} r{q1} r{r2} :",
                    answer=f" e{answer}",
                    wrong_answer=f" e{answer2}",
                    group=f"e{e}",
                    spans={
                        "entity": (0, cut),
                        "first": (cut + 1, end),
                        "second": (end + 1, end + 1 + len(f"r{r2}")),
                    },
                    extra={
                        "differs": [differs],
                        "bridge": f"e{bridge}",
                        "corrupt_bridge": f"e{bridge2}",
                        "entity": f"e{e}",
                        "first": f"r{r1}",
                        "second": f"r{r2}",
                    },
                )
            )
        return PromptSet(
            self.name, "pairs", tuple(made), "Apache-2.0", "random functions on invented entities"
        )


def _accuracy(model: Any, prompts: np.ndarray, answers: np.ndarray) -> float:
    return float((next_logits(model, prompts).argmax(-1).cpu().numpy() == answers).mean())
