"""Mazes on a square lattice as plain arrays: which passages are open, distances, shortest paths.

A maze is a row of booleans, one for each of the `2 * size * (size - 1)` passages of the lattice; `passages`
lists their two cells. Generation is maze-dataset's; distances and paths are worked out here for many mazes at
once (its own solver is the oracle in the tests).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from workbench.errors import DataError

MazeKind = Literal["spanning-tree", "percolation"]


@cache
def passages(size: int) -> tuple[tuple[int, int], ...]:
    """The two cells (row times size plus column) of every passage: downward ones first, then rightward."""
    down = [(r * size + c, (r + 1) * size + c) for r in range(size - 1) for c in range(size)]
    right = [(r * size + c, r * size + c + 1) for r in range(size) for c in range(size - 1)]
    return tuple(down + right)


def cell_name(cell: int, size: int) -> str:
    """`(row,column)`, as maze-dataset writes it."""
    return f"({cell // size},{cell % size})"


def from_lattice(connections: np.ndarray) -> np.ndarray:
    """maze-dataset's connection list, bool [2, size, size] (down, right), as open passages, bool [passage]."""
    return np.concatenate([connections[0, :-1, :].reshape(-1), connections[1, :, :-1].reshape(-1)])


def to_lattice(maze: np.ndarray, size: int) -> np.ndarray:
    """Open passages as maze-dataset's connection list, bool [2, size, size]."""
    out = np.zeros((2, size, size), dtype=bool)
    half = size * (size - 1)
    out[0, :-1, :] = maze[:half].reshape(size - 1, size)
    out[1, :, :-1] = maze[half:].reshape(size, size - 1)
    return out


def generate(kind: MazeKind, n: int, size: int, rng: np.random.Generator, p: float = 0.6) -> np.ndarray:
    """`n` mazes from maze-dataset, bool [n, passage]: depth-first spanning trees, or every passage open with
    probability `p`.

    Raises:
        DataError: maze-dataset is not installed.
    """
    generators = _generators()
    shape = np.array([size, size])
    with _seeded(int(rng.integers(2**32))):
        if kind == "spanning-tree":
            made = [generators.gen_dfs(shape) for _ in range(n)]
        else:
            made = [generators.gen_percolation(shape, p=p) for _ in range(n)]
    return np.stack([from_lattice(maze.connection_list) for maze in made])


def adjacency(mazes: np.ndarray, size: int) -> np.ndarray:
    """bool [n, cell, cell]: which cells an open passage joins."""
    out = np.zeros((len(mazes), size * size, size * size), dtype=bool)
    first, second = np.array(passages(size)).T
    out[:, first, second] = mazes
    out[:, second, first] = mazes
    return out


def distances(mazes: np.ndarray, size: int) -> np.ndarray:
    """[n, cell, cell] int: steps of the shortest path; -1 where there is none."""
    joined = adjacency(mazes, size).astype(np.float32)
    cells = size * size
    out = np.full(joined.shape, -1, dtype=np.int64)
    out[:, np.arange(cells), np.arange(cells)] = 0
    reached = np.broadcast_to(np.eye(cells, dtype=np.float32), joined.shape).copy()
    for step in range(1, cells):
        reached = np.minimum(reached @ joined + reached, 1.0)
        new = (reached > 0) & (out < 0)
        if not new.any():
            break
        out[new] = step
    return out


def shortest_path(joined: np.ndarray, steps: np.ndarray, origin: int, target: int) -> list[int]:
    """Cells of a shortest path, both ends with it; of several, the one whose next cell comes first by row and
    column at every step.

    Args:
        joined: bool [cell, cell] of one maze.
        steps: [cell, cell] distances of the same maze.
    """
    if steps[origin, target] < 0:
        raise DataError(f"There is no path from cell {origin} to cell {target}.")
    path = [origin]
    while path[-1] != target:
        nearer = joined[path[-1]] & (steps[:, target] == steps[path[-1], target] - 1)
        path.append(int(np.flatnonzero(nearer)[0]))
    return path


def is_shortest(path: list[int], joined: np.ndarray, steps: np.ndarray, origin: int, target: int) -> bool:
    """Whether `path` goes from origin to target through open passages in as few steps as there can be."""
    return (
        len(path) == steps[origin, target] + 1
        and path[0] == origin
        and path[-1] == target
        and all(joined[a, b] for a, b in pairwise(path))
    )


def canonical_checksum(mazes: np.ndarray, size: int) -> np.ndarray:
    """[n] uint64: equal for mazes that are rotations or mirror images of each other."""
    weights = np.uint64(1) << np.arange(mazes.shape[1], dtype=np.uint64)
    images = [(mazes[:, turn].astype(np.uint64) * weights).sum(1) for turn in _symmetries(size)]
    smallest = np.minimum.reduce(images)
    mixed = smallest * np.uint64(0x9E3779B97F4A7C15)  # spreads neighbours, modulo 2^64
    return mixed >> np.uint64(32)


@cache
def _symmetries(size: int) -> tuple[np.ndarray, ...]:
    """For each of the eight symmetries of the square: the passage that lands on each passage."""
    place = {frozenset(pair): i for i, pair in enumerate(passages(size))}
    grid = np.arange(size * size).reshape(size, size)
    out = []
    for mirrored in (grid, grid[:, ::-1]):
        for quarter in range(4):
            image = np.rot90(mirrored, quarter).reshape(-1)
            out.append(np.array([place[frozenset((image[a], image[b]))] for a, b in passages(size)]))
    return tuple(out)


def _generators() -> Any:
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about optional tokenisers we do not use
            from maze_dataset.generation import LatticeMazeGenerators
    except ImportError as error:
        raise DataError(
            f"Mazes are generated by the package maze-dataset, which cannot be imported here ({error}): "
            "install it with `pip install 'latent-workbench[mazes]'`."
        ) from error
    return LatticeMazeGenerators


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """maze-dataset draws from the global generators: seed them, and put them back as they were."""
    state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)
