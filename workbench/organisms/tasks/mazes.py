"""mazes-5x5: the shortest path through a maze, cell by cell."""

from __future__ import annotations

from typing import Any

import numpy as np

from workbench.datasets.promptset import PromptSet
from workbench.datasets.records import Pair
from workbench.organisms import maze_grid as grid
from workbench.organisms.organism import (
    Batch,
    Goal,
    Known,
    Organism,
    Plan,
    Split,
    greedy,
    is_held_out_split,
    llama,
    next_word_batch,
)

SIZE = 5
KINDS: tuple[grid.MazeKind, grid.MazeKind] = ("spanning-tree", "percolation")
HELD_OUT_SHARE = 16
_PAD = "<PADDING>"


class Mazes(Organism):
    """Half spanning trees, half percolation mazes, with origin and target anywhere in one component."""

    name = "mazes-5x5"
    summary = "shortest paths through 5×5 mazes"
    data = (
        "Mazes of maze-dataset, half depth-first spanning trees and half percolation (each passage open with "
        "probability 0.6), in its words (`<ADJLIST_START> … <PATH_END>`), with two changes that make a prompt "
        "half as long: a passage is one word, `(0,0)<-->(0,1)`, and there is no `;`. The passages come in random "
        "order. Origin and target are two cells of one component. Where several paths are shortest, the model is "
        "shown the one whose next cell comes first by row and column. A maze is held out with its rotations and mirror "
        "images by a checksum (1 in 16)."
    )
    plan = Plan(steps=9000, cycles=2, batch_size=128, learning_rate=1e-3, warmup=300, weight_decay=0.05)
    goals = (Goal("exact_path", 0.95, name="exact_path_mazes_5x5"),)
    known = Known(
        (
            "The passages determine the path; every passage's state (40 labels) can be probed at <PATH_START>.",
            "In a spanning tree the passages depend on each other, so the majority baseline is high; percolation mazes "
            "have independent passages.",
        ),
        ("Ivanitskiy et al. 2023, arXiv:2312.02566 and 2309.10498",),
    )

    def words(self) -> list[str]:
        """maze-dataset's special words, the cells, the passages, and the padding last."""
        marks = [
            f"<{part}_{end}>" for part in ("ADJLIST", "ORIGIN", "TARGET", "PATH") for end in ("START", "END")
        ]
        cells = [grid.cell_name(c, SIZE) for c in range(SIZE * SIZE)]
        return [*marks, *cells, *(passage_word(i) for i in range(len(grid.passages(SIZE)))), _PAD]

    def config(self) -> Any:
        return llama(74, d_model=128, n_layers=6, n_heads=4, d_mlp=352, context=80)

    def batch(self, seed: int, step: int) -> Batch:
        rng = self.stream(seed, "train", step)
        prompts, paths, _ = self.draw(self.plan.batch_size, rng, "train")
        longest = max(len(p) + len(q) for p, q in zip(prompts, paths, strict=True))
        rows = np.full((len(prompts), longest), self.table[_PAD])
        learnt = np.zeros_like(rows, dtype=bool)
        for i, (prompt, path) in enumerate(zip(prompts, paths, strict=True)):
            rows[i, : len(prompt) + len(path)] = prompt + path
            # The first cell of the path is the origin: said, not asked.
            learnt[i, len(prompt) : len(prompt) + len(path)] = True
        return next_word_batch(rows, learnt)

    def draw(
        self, n: int, rng: np.random.Generator, split: Split, kinds: tuple[grid.MazeKind, ...] = KINDS
    ) -> tuple[list[list[int]], list[list[int]], list[dict[str, Any]]]:
        """`n` problems of a split: prompts up to `<PATH_START>`, paths with `<PATH_END>`, and what they are."""
        prompts, paths, about = [], [], []
        table = self.table
        passage = np.array([table[passage_word(i)] for i in range(len(grid.passages(SIZE)))])
        cell = np.array([table[grid.cell_name(c, SIZE)] for c in range(SIZE * SIZE)])
        while len(prompts) < n:
            wanted = n - len(prompts)
            factor = HELD_OUT_SHARE * 1.2 if is_held_out_split(split) else 1.15
            for kind in kinds:
                mazes = grid.generate(kind, int(wanted / len(kinds) * factor) + 2, SIZE, rng)
                mazes = mazes[held_out(mazes) == is_held_out_split(split)]
                steps, joined = grid.distances(mazes, SIZE), grid.adjacency(mazes, SIZE)
                quota = (wanted + 1) // len(kinds)
                for maze, apart, open_ in list(zip(mazes, steps, joined, strict=True))[:quota]:
                    starts, ends = np.nonzero(apart > 0)
                    if not len(starts):
                        continue
                    chosen = int(rng.integers(len(starts)))
                    origin, target = int(starts[chosen]), int(ends[chosen])
                    path = grid.shortest_path(open_, apart, origin, target)
                    order = rng.permutation(np.flatnonzero(maze))
                    prompts.append(
                        [
                            table["<ADJLIST_START>"],
                            *passage[order],
                            table["<ADJLIST_END>"],
                            table["<ORIGIN_START>"],
                            cell[origin],
                            table["<ORIGIN_END>"],
                            table["<TARGET_START>"],
                            cell[target],
                            table["<TARGET_END>"],
                            table["<PATH_START>"],
                        ]
                    )
                    paths.append([*cell[path], table["<PATH_END>"]])
                    about.append(
                        {
                            "kind": kind,
                            "maze": maze,
                            "joined": open_,
                            "steps": apart,
                            "origin": origin,
                            "target": target,
                            "path": path,
                            "order": order,
                        }
                    )
        return prompts[:n], paths[:n], about[:n]

    def evaluate(self, model: Any, *, full: bool = False) -> dict[str, float]:
        """`exact_path`: share of held-out problems whose greedy path is a shortest path, over both kinds;
        `exact_path_tree`, `exact_path_percolation` for each; `same_path`: equal to the labelled path."""
        figures: dict[str, float] = {}
        good_all: list[bool] = []
        same_all: list[bool] = []
        for kind, short in zip(KINDS, ("tree", "percolation"), strict=True):
            prompts, paths, about = self.draw(
                1000 if full else 128, self.stream(0, f"held_out/{kind}"), "held_out", (kind,)
            )
            said = self._complete(model, prompts)
            good = [self._is_right(words, a) for words, a in zip(said, about, strict=True)]
            same_all += [words[: len(p)] == p for words, p in zip(said, paths, strict=True)]
            good_all += good
            figures[f"exact_path_{short}"] = float(np.mean(good))
        return {
            "exact_path": float(np.mean(good_all)),
            "same_path": float(np.mean(same_all)),
            **figures,
            "n": len(good_all),
        }

    def _complete(self, model: Any, prompts: list[list[int]]) -> list[list[int]]:
        """Greedy paths; prompts of one length go together, so nothing is padded."""
        by_length: dict[int, list[int]] = {}
        for i, prompt in enumerate(prompts):
            by_length.setdefault(len(prompt), []).append(i)
        out: list[list[int]] = [[] for _ in prompts]
        for which in by_length.values():
            made = greedy(model, np.array([prompts[i] for i in which]), SIZE * SIZE + 1)
            for i, row in zip(which, made, strict=True):
                out[i] = row.tolist()
        return out

    def _is_right(self, words: list[int], about: dict[str, Any]) -> bool:
        end, first = self.table["<PATH_END>"], self.table[grid.cell_name(0, SIZE)]
        if end not in words:
            return False
        path = [word - first for word in words[: words.index(end)]]
        if any(not 0 <= c < SIZE * SIZE for c in path):
            return False
        return grid.is_shortest(path, about["joined"], about["steps"], about["origin"], about["target"])

    def problems(self, n: int, *, split: Split = "held_out", seed: int = 0) -> PromptSet:
        """Pairs of prompts that differ in the target only and, as their answers, in the first step of the path; half
        of the mazes are spanning trees (one more where `n` is odd), in mixed order.

        The prompt ends with the origin, the first cell of the path. Extra fields: `maze_kind`, `open` (the open
        passages), `path`, `corrupt_path`.
        """
        rng = self.stream(seed, f"problems/{split}")
        vocabulary = self.words()
        pairs: list[Pair] = []
        left = dict(zip(KINDS, ((n + 1) // 2, n // 2), strict=True))
        while len(pairs) < n:
            prompts, _, about = self.draw(max(16, n), rng, split)
            # `draw` gives one kind after the other.
            for i in rng.permutation(len(prompts)):
                prompt, a = prompts[i], about[i]
                other = self._other_target(a, rng) if left[a["kind"]] else None
                if other is None:
                    continue
                left[a["kind"]] -= 1
                words = [vocabulary[t] for t in prompt] + [grid.cell_name(a["origin"], SIZE)]
                place = words.index("<TARGET_START>") + 1
                begin = len(" ".join(words[:place])) + 1
                corrupt = [*words[:place], grid.cell_name(other, SIZE), *words[place + 1 :]]
                second = grid.shortest_path(a["joined"], a["steps"], a["origin"], other)
                pairs.append(
                    Pair(
                        id=f"{len(pairs):05d}",
                        clean=" ".join(words),
                        corrupt=" ".join(corrupt),
                        answer=" " + grid.cell_name(a["path"][1], SIZE),
                        wrong_answer=" " + grid.cell_name(second[1], SIZE),
                        group=f"maze {len(pairs)}",
                        spans={"target": (begin, begin + len(words[place]))},
                        extra={
                            "differs": ["target"],
                            "maze_kind": a["kind"],
                            "open": [passage_word(int(i)) for i in np.flatnonzero(a["maze"])],
                            "path": [grid.cell_name(c, SIZE) for c in a["path"]],
                            "corrupt_path": [grid.cell_name(c, SIZE) for c in second],
                        },
                    )
                )
        return PromptSet(self.name, "pairs", tuple(pairs), "Apache-2.0", "mazes generated by maze-dataset")

    def _other_target(self, a: dict[str, Any], rng: np.random.Generator) -> int | None:
        """A target whose labelled path begins with another step, so that the answers differ."""
        for cell in rng.permutation(SIZE * SIZE):
            if cell != a["origin"] and a["steps"][a["origin"], cell] > 0:
                path = grid.shortest_path(a["joined"], a["steps"], a["origin"], int(cell))
                if path[1] != a["path"][1]:
                    return int(cell)
        return None


def passage_word(number: int) -> str:
    """`(0,0)<-->(0,1)`: a passage as one word."""
    first, second = grid.passages(SIZE)[number]
    return f"{grid.cell_name(first, SIZE)}<-->{grid.cell_name(second, SIZE)}"


def held_out(mazes: np.ndarray) -> np.ndarray:
    """bool [n]: which mazes belong, with their rotations and mirror images, to the held-out part."""
    return grid.canonical_checksum(mazes, SIZE) % np.uint64(HELD_OUT_SHARE) == 0
