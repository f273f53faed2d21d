"""looped: which end node a node leads to, by a core block that is run again and again.

It is taught to go one step further with every loop: after r loops the answer is the node r + 1 steps on, or the end
node if that comes first. Taught the end node alone, with a random number of loops, it learns one step and a guess
(accuracy 0.76 after 2,500 steps), since nothing says what a loop is for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.datasets.promptset import PromptSet
from workbench.datasets.records import Pair
from workbench.model.looped import fold, is_folded, unroll
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

NODES = tuple("abcdefghijklmnop")
N_SINKS = 3
QUERIES = 13
HELD_OUT_SHARE = 16
LOOPS = 7
MOST_LOOPS = 8


class Looped(Organism):
    """Reachability in a forest: every node points to one other, but for three end nodes."""

    name = "looped"
    summary = "graph reachability by a depth-recurrent transformer"
    data = (
        f"{len(NODES)} nodes, {N_SINKS} of them end nodes; every other node has one edge `a>b`, and following the "
        "edges leads to an end node in 1 to 8 steps. The 13 edges come in random order, then `?` and a node: the next "
        "word is the end node that can be reached from it. In training all 13 nodes are asked, one after the "
        "other, each answered by itself. One graph in 16, by a checksum, is held out. Each training step runs "
        "the core r = 1 to 8 times, at random, and the answer is the node r + 1 steps on (the end node if that is "
        "nearer); a graph has no node farther than 8 steps from its end."
    )
    plan = Plan(steps=2500, batch_size=128, learning_rate=1e-3, warmup=200, weight_decay=0.05)
    goals = (Goal("accuracy", 0.99, name="accuracy_looped"),)
    known = Known(
        (
            "What every loop should compute is known for every prompt: after r loops the node r + 1 steps on the path.",
            "How far a node is from its end node is known, and more loops reach further: accuracy by distance and "
            "number of loops shows the computation growing with depth.",
            "The unrolled blocks share their weights, so what differs between loops is the state alone.",
        ),
        ("Geiping et al. 2025, arXiv:2502.05171", "Dehghani et al. 2018, arXiv:1807.03819"),
    )
    start = "<start>"
    symbols = ("?",)

    def words(self) -> list[str]:
        """The start word, `?`, the nodes, and every possible edge."""
        return ["<start>", "?", *NODES, *(f"{u}>{v}" for u in NODES for v in NODES if u != v)]

    def config(self) -> Any:
        return llama(
            258,
            d_model=128,
            n_layers=3,
            n_heads=4,
            d_mlp=352,
            context=32,
            bos_token_id=0,
            looped={"prelude": 1, "core": 1, "coda": 1, "loops": LOOPS},
        )

    def forward(self, model: Any, ids: Tensor, step: int | None = None) -> Tensor:
        """Logits with a number of loops that changes from step to step."""
        unroll(model, self.loops_at(step or 0))
        try:
            return model(input_ids=ids, use_cache=False).logits
        finally:
            fold(model, LOOPS)

    def loops_at(self, step: int) -> int:
        """How often the core is run in a step of training."""
        return int(self.stream(0, "loops", step).integers(1, MOST_LOOPS + 1))

    def draw(self, n: int, rng: np.random.Generator, split: Split) -> np.ndarray:
        """[n, node]: the node each one points to, itself for end nodes."""
        found: list[np.ndarray] = []
        while len(found) < n:
            graph = _random_forest(rng)
            if _is_held_out(graph) == is_held_out_split(split):
                found.append(graph)
        return np.array(found)

    def rows(self, graphs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """[n, 15] token ids: the start word, the edges in random order, `?`."""
        out = np.zeros((len(graphs), len(NODES) - N_SINKS + 2), dtype=np.int64)
        table = self.table
        for i, graph in enumerate(graphs):
            sources = rng.permutation(np.flatnonzero(graph != np.arange(len(NODES))))
            out[i, 1:-1] = [table[f"{NODES[u]}>{NODES[graph[u]]}"] for u in sources]
        out[:, -1] = table["?"]
        return out

    def batch(self, seed: int, step: int) -> Batch:
        rng = self.stream(seed, "train", step)
        graphs = self.draw(self.plan.batch_size, rng, "train")
        answers = after(graphs, self.loops_at(step) + 1)
        asked = np.stack([rng.permutation(np.flatnonzero(g != np.arange(len(NODES)))) for g in graphs])
        first = self.table[NODES[0]]
        ids = np.concatenate([self.rows(graphs, rng), asked + first], 1)
        targets = np.full_like(ids, IGNORE)
        targets[:, -asked.shape[1] :] = np.take_along_axis(answers, asked, 1) + first
        return Batch(torch.from_numpy(ids), torch.from_numpy(targets))

    def evaluate(self, model: Any, *, full: bool = False) -> dict[str, float]:
        """Accuracy on held-out graphs, one query a prompt, with the default number of loops; by distance to the end
        node; with other numbers of loops (`accuracy_1_loops` …); and how often the answer after r loops is the node
        r + 1 steps on (`step_accuracy_1_loops` …)."""
        rng = self.stream(0, "held_out")
        graphs = self.draw(1000 if full else 300, rng, "held_out")
        ends, steps = ends_of(graphs)
        inner = [np.flatnonzero(g != np.arange(len(NODES))) for g in graphs]
        asked = np.array([int(rng.choice(nodes)) for nodes in inner])
        first = self.table[NODES[0]]
        prompts = np.concatenate([self.rows(graphs, rng), asked[:, None] + first], 1)
        answers, far = ends[np.arange(len(graphs)), asked], steps[np.arange(len(graphs)), asked]
        figures: dict[str, float] = {}
        before, folded = model.config.looped["loops"], is_folded(model)
        for loops in (1, 2, 3, 4, LOOPS, MOST_LOOPS):
            unroll(model, loops)
            said = next_logits(model, prompts).argmax(-1).cpu().numpy() - first
            right = said == answers
            there = after(graphs, loops + 1)[np.arange(len(graphs)), asked]
            figures[f"accuracy_{loops}_loops"] = float(right.mean())
            figures[f"step_accuracy_{loops}_loops"] = float((said == there).mean())
            if loops == LOOPS:
                figures["accuracy"] = float(right.mean())
                figures |= {
                    f"accuracy_distance_{d}": float(right[far == d].mean()) for d in sorted(set(far.tolist()))
                }
        (fold if folded else unroll)(model, before)
        return {**figures, "n": len(graphs)}

    def problems(self, n: int, *, split: Split = "held_out", seed: int = 0) -> PromptSet:
        """Pairs of prompts that differ in the asked node only, with another end node at the same distance where there
        is one. Extra fields: `distance`, `path`, `corrupt_path`, `edges`."""
        rng = self.stream(seed, f"problems/{split}")
        vocabulary = self.words()
        made: list[Pair] = []
        while len(made) < n:
            graph = self.draw(1, rng, split)
            ends, steps = (x[0] for x in ends_of(graph))
            inner = np.flatnonzero(graph[0] != np.arange(len(NODES)))
            node = int(rng.choice(inner))
            others = [int(m) for m in inner if ends[m] != ends[node]]
            if not others:
                continue
            rng.shuffle(others)
            other = min(others, key=lambda m: abs(int(steps[m]) - int(steps[node])))
            shared = " ".join(vocabulary[t] for t in self.rows(graph, rng)[0][1:]) + " "
            made.append(
                Pair(
                    id=f"{len(made):05d}",
                    clean=shared + NODES[node],
                    corrupt=shared + NODES[other],
                    answer=f" {NODES[ends[node]]}",
                    wrong_answer=f" {NODES[ends[other]]}",
                    group=f"graph {len(made)}",
                    template=f"distance {steps[node]}",
                    spans={"node": (len(shared), len(shared) + 1)},
                    extra={
                        "differs": ["node"],
                        "distance": int(steps[node]),
                        "path": _path(graph[0], node),
                        "corrupt_path": _path(graph[0], other),
                        "edges": shared.split()[:-1],
                    },
                )
            )
        return PromptSet(self.name, "pairs", tuple(made), "Apache-2.0", "random forests")


def ends_of(graphs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For every node [n, node] the end node it leads to, and in how many steps (0 for end nodes)."""
    here = np.broadcast_to(np.arange(graphs.shape[1]), graphs.shape).copy()
    steps = np.zeros_like(graphs)
    for _ in range(graphs.shape[1]):
        following = np.take_along_axis(graphs, here, 1)
        steps += following != here
        here = following
    return here, steps


def after(graphs: np.ndarray, steps: int) -> np.ndarray:
    """For every node [n, node] the node so many steps on; an end node leads to itself."""
    here = np.broadcast_to(np.arange(graphs.shape[1]), graphs.shape).copy()
    for _ in range(steps):
        here = np.take_along_axis(graphs, here, 1)
    return here


def _random_forest(rng: np.random.Generator) -> np.ndarray:
    """Nodes in random order; each but the first three points to one of the four before it, so that trees are deep;
    none is farther than eight steps from its end."""
    order = rng.permutation(len(NODES))
    graph = np.arange(len(NODES))
    depth = np.zeros(len(NODES), dtype=np.int64)
    for place in range(N_SINKS, len(NODES)):
        low = max(0, place - 4)
        allowed = [p for p in range(low, place) if depth[p] < 8] or list(range(N_SINKS))
        target = allowed[int(rng.integers(len(allowed)))]
        graph[order[place]] = order[target]
        depth[place] = depth[target] + 1
    return graph


def _path(graph: np.ndarray, node: int) -> list[str]:
    path = [NODES[node]]
    while graph[node] != node:
        node = int(graph[node])
        path.append(NODES[node])
    return path


def _is_held_out(graph: np.ndarray) -> bool:
    return falls_to_held_out(graph.astype(np.int8).tobytes(), HELD_OUT_SHARE)
