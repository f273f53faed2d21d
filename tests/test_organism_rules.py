"""Othello's rules against published counts and a slow second implementation; mazes against two other solvers."""

from __future__ import annotations

import random
import warnings

import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from organism_oracles import SlowGame

from workbench.errors import DataError
from workbench.organisms import maze_grid as grid
from workbench.organisms.othello_rules import (
    Position,
    count_sequences,
    legal,
    play,
    random_games,
    square_name,
    square_of,
    start,
)
from workbench.organisms.tasks.othello import board_after, board_labels

# Perfect play on the 6×6 board (J. Feinstein 1993), in the names of the 8×8 board whose middle it is.
FEINSTEIN = "d3 c5 d6 e3 f5 f4 e2 d2 c2 e6 e7 g5 c4 c3 g4 g3 f3 c7 b5 d7 b7 b3 c6 b6 f7 f6 b4 b2 g6 g7 f2 g2"


def slow_count(moves: list[int], depth: int, size: int) -> int:
    game = SlowGame(size)
    for move in moves:
        game.play(move)
    options = game.legal()
    return len(options) if depth == 1 else sum(slow_count([*moves, s], depth - 1, size) for s in options)


def on_six(names: str) -> list[str]:
    return [f"{chr(ord(name[0]) - 1)}{int(name[1]) - 1}" for name in names.split()]


@pytest.mark.parametrize(
    ("size", "counts"), [(8, [4, 12, 56, 244, 1396, 8200]), (6, [4, 12, 56, 244, 1364, 7604])]
)
def test_the_number_of_move_sequences_is_the_published_one(size, counts):
    assert [count_sequences(depth, size) for depth in range(1, len(counts) + 1)] == counts


def test_the_six_by_six_counts_are_those_of_the_slow_implementation():
    assert [slow_count([], d, 6) for d in range(1, 7)] == [count_sequences(d, 6) for d in range(1, 7)]


def test_four_by_four_has_60060_games():
    position, ended = start(1, 4), 0
    while len(position.mine):
        allowed = legal(position).reshape(-1, 16)
        ended += int((~allowed.any(1)).sum())
        games, moves = np.nonzero(allowed)
        now = Position(position.mine[games], position.yours[games], position.black_to_move[games])
        position = play(now, moves) if len(moves) else now
    assert ended == 60060


def test_feinsteins_perfect_game_ends_16_to_20():
    end = board_after(on_six(FEINSTEIN))
    assert (int(end.black.sum()), int(end.white.sum())) == (16, 20)
    assert not legal(end).any()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.sampled_from([4, 6, 8]))
def test_a_random_game_agrees_with_the_slow_implementation_move_by_move(seed, size):
    game, position, draw = SlowGame(size), start(1, size), random.Random(seed)
    while options := game.legal():
        assert np.flatnonzero(legal(position).reshape(-1)).tolist() == options
        with pytest.raises(DataError, match="not legal"):
            play(position, np.array([draw.choice(sorted(set(range(size**2)) - set(options)))]))
        move = draw.choice(options)
        game.play(move)
        position = play(position, np.array([move]))
        assert position.black.reshape(-1).tolist() == game.squares("b")
        assert position.white.reshape(-1).tolist() == game.squares("w")
        assert bool(position.black_to_move[0]) == (game.to_move == "b") or not game.legal()
    assert not legal(position).any()


def test_games_played_at_once_are_the_slow_implementations_passes_included():
    games = random_games(200, np.random.default_rng(5), 6)
    passes = 0
    for g in range(200):
        slow = SlowGame(6)
        for m in range(int(games.lengths[g])):
            assert np.flatnonzero(games.legal[g, m]).tolist() == slow.legal()
            before = slow.to_move
            slow.play(int(games.moves[g, m]))
            passes += before == slow.to_move
            assert games.black[g, m].tolist() == slow.squares("b")
            assert games.white[g, m].tolist() == slow.squares("w")
            after = np.flatnonzero(games.legal_after[g, m]).tolist()
            assert after == slow.legal()
            assert not after or bool(games.black_to_move[g, m]) == (slow.to_move == "b")
        assert slow.legal() == [] and not games.legal[g, int(games.lengths[g]) :].any()
    assert passes > 20  # otherwise the rule of passing was not tried


def test_random_games_are_those_of_their_seed():
    one, same, other = (random_games(8, np.random.default_rng(seed)).moves for seed in (1, 1, 2))
    assert np.array_equal(one, same) and not np.array_equal(one, other)


@pytest.mark.parametrize("move", ["a1", "c3", "d3", "d2"])
def test_a_move_that_turns_nothing_or_is_occupied_is_refused(move):
    with pytest.raises(DataError, match=f"{move} is not legal in game 0"):
        board_after([move])


@pytest.mark.parametrize("name", ["g1", "a7", "a0", "", "a", "1a", "ab"])
def test_a_square_off_the_board_is_refused(name):
    with pytest.raises(DataError, match="expected a1 to f6"):
        square_of(name)


@pytest.mark.parametrize("size", [2, 5])
def test_a_board_that_cannot_be_is_refused(size):
    with pytest.raises(DataError, match="even size of at least 4"):
        start(1, size)


def test_square_names_go_back_and_forth():
    assert [square_of(square_name(s, 8), 8) for s in range(64)] == list(range(64))
    assert (square_name(square_of("b1")), square_of("b1")) == ("b1", 1)  # columns are letters


def test_board_labels_by_hand_and_their_two_codings():
    # Black's b3 turns c3; then it is white's turn.
    labels = board_labels(["b3"])
    names = ["b3", "c3", "d3", "c4"]
    assert [labels["colour"][0][square_of(n)] for n in names] == ["black"] * 4
    assert labels["colour"][0][square_of("d4")] == "white"
    assert [labels["side"][0][square_of(n)] for n in ("b3", "d4", "a1")] == ["yours", "mine", "empty"]
    moves = on_six(FEINSTEIN)
    labels = board_labels(moves)
    assert len(labels["colour"]) == len(labels["side"]) == len(moves)
    for n in range(1, len(moves) + 1):
        black = bool(board_after(moves[:n]).black_to_move[0])
        mine, yours = ("black", "white") if black else ("white", "black")
        side = [{mine: "mine", yours: "yours", "empty": "empty"}[c] for c in labels["colour"][n - 1]]
        assert side == labels["side"][n - 1]


# -- mazes -------------------------------------------------------------------------------------------------


def as_graph(maze: np.ndarray, size: int) -> networkx.Graph:
    """The maze read straight from the list of passages."""
    graph = networkx.Graph()
    graph.add_nodes_from(range(size * size))
    graph.add_edges_from(pair for pair, there in zip(grid.passages(size), maze, strict=True) if there)
    return graph


def random_mazes(n: int, size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((n, 2 * size * (size - 1))) < 0.6


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.integers(2, 6))
def test_distances_and_paths_are_networkxs(seed, size):
    mazes = random_mazes(3, size, seed)
    joined, steps = grid.adjacency(mazes, size), grid.distances(mazes, size)
    for maze, open_, apart in zip(mazes, joined, steps, strict=True):
        theirs = dict(networkx.all_pairs_shortest_path_length(as_graph(maze, size)))
        for a in range(size * size):
            assert apart[a].tolist() == [theirs[a].get(b, -1) for b in range(size * size)]
        origin, target = 0, int(apart[0].argmax())
        path = grid.shortest_path(open_, apart, origin, target)
        # The promised one of several: the first by row and column, step by step.
        assert path == min(networkx.all_shortest_paths(as_graph(maze, size), origin, target))
        assert grid.is_shortest(path, open_, apart, origin, target)


@pytest.mark.parametrize("kind", ["spanning-tree", "percolation"])
def test_path_lengths_are_those_of_maze_datasets_own_solver(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from maze_dataset import LatticeMaze
    for maze in grid.generate(kind, 12, 5, np.random.default_rng(3)):
        theirs = LatticeMaze(connection_list=grid.to_lattice(maze, 5))
        (steps,), graph = grid.distances(maze[None], 5), as_graph(maze, 5)
        for target in (4, 12, 20, 24):
            if steps[0, target] >= 0:
                path = theirs.find_shortest_path((0, 0), (target // 5, target % 5))
                assert len(path) == steps[0, target] + 1
        assert networkx.is_tree(graph) or kind == "percolation"


def test_what_is_no_shortest_path_is_not_taken_for_one():
    maze = np.ones((1, 4), dtype=bool)  # 2×2, all open: 0 1 / 2 3
    joined, steps = grid.adjacency(maze, 2)[0], grid.distances(maze, 2)[0]
    right = {(0, 1, 3): True, (0, 2, 3): True, (0, 3): False, (0, 1, 0, 2, 3): False, (1, 3): False}
    assert {p: grid.is_shortest(list(p), joined, steps, 0, 3) for p in right} == right
    assert not grid.is_shortest([0, 1, 2], joined, steps, 0, 3)
    with pytest.raises(DataError, match="no path from cell 0 to cell 3"):
        closed = np.zeros((1, 4), dtype=bool)
        grid.shortest_path(grid.adjacency(closed, 2)[0], grid.distances(closed, 2)[0], 0, 3)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.integers(2, 7))
def test_passages_and_maze_datasets_connection_list_are_two_ways_of_one(seed, size):
    maze = random_mazes(1, size, seed)[0]
    lattice = grid.to_lattice(maze, size)
    assert np.array_equal(grid.from_lattice(lattice), maze)
    for (a, b), there in zip(grid.passages(size), maze, strict=True):
        direction = 0 if b - a == size else 1  # maze-dataset: 0 opens downward, 1 to the right
        assert bool(lattice[direction, a // size, a % size]) == there
    assert lattice.sum() == maze.sum()


def images(maze: np.ndarray, size: int) -> list[np.ndarray]:
    """The maze turned and mirrored, by turning a picture of cells and passages."""
    side = 2 * size - 1
    picture = np.zeros((side, side), dtype=bool)
    between = [(a // size + b // size, a % size + b % size) for a, b in grid.passages(size)]
    for (row, column), there in zip(between, maze, strict=True):
        picture[row, column] = there
    turned = [np.rot90(p, k) for p in (picture, picture.T) for k in range(4)]
    return [np.array([p[row, column] for row, column in between]) for p in turned]


def test_a_mazes_rotations_and_mirror_images_have_its_checksum_and_others_do_not():
    mazes = random_mazes(300, 5, 9)
    for maze in mazes[:40]:
        same = np.stack(images(maze, 5))
        assert len(np.unique(same, axis=0)) == 8
        assert len(set(grid.canonical_checksum(same, 5).tolist())) == 1
    assert len(set(grid.canonical_checksum(mazes, 5).tolist())) >= 299


@pytest.mark.parametrize("kind", ["spanning-tree", "percolation"])
def test_mazes_come_from_their_seed_and_leave_the_global_generators_alone(kind):
    random.seed(1)
    np.random.seed(2)
    expected = (random.random(), np.random.random())
    random.seed(1)
    np.random.seed(2)
    one, same, other = (grid.generate(kind, 5, 5, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (random.random(), np.random.random()) == expected
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    assert len(np.unique(one, axis=0)) == 5  # not one maze five times


def test_after_r_steps_is_r_times_one_step():
    from workbench.organisms.tasks import looped

    graphs = looped.Looped().draw(20, np.random.default_rng(0), "train")
    ends, steps = looped.ends_of(graphs)
    for graph, end, far in zip(graphs, ends, steps, strict=True):
        for node in range(len(graph)):
            here = node
            for r in range(10):
                assert looped.after(graph[None], r)[0, node] == here
                assert (here == end[node]) == (r >= far[node])
                here = graph[here]
