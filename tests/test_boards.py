"""Board states as labels: against a plain replay of the game, and the mazes the prompts were made from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.boards import CODINGS, flip_stones, legal_moves, maze_edges, othello_boards
from workbench.errors import DataError
from workbench.organisms.othello_rules import random_games, square_name

RAYS = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if a or b]


def replay(moves: list[int], size: int = 6):
    """One game by the book, square by square: black, white, whose turn; one entry for each position."""
    board: dict[tuple[int, int], str] = {}
    low, high = size // 2 - 1, size // 2
    board[low, low] = board[high, high] = "white"
    board[low, high] = board[high, low] = "black"
    turn, out = "black", []

    def caught(square, colour):
        found = []
        for dr, dc in RAYS:
            line, at = [], (square[0] + dr, square[1] + dc)
            while at in board and board[at] != colour:
                line.append(at)
                at = (at[0] + dr, at[1] + dc)
            if at in board:
                found += line
        return found

    def moves_of(colour):
        squares = [(r, c) for r in range(size) for c in range(size) if (r, c) not in board]
        return {s for s in squares if caught(s, colour)}

    out.append((dict(board), turn, moves_of(turn)))
    for move in moves:
        square = divmod(move, size)
        for at in caught(square, turn):
            board[at] = turn
        board[square] = turn
        other = "white" if turn == "black" else "black"
        turn = other if moves_of(other) or not moves_of(turn) else turn
        out.append((dict(board), turn, moves_of(turn)))
    return out


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 3), size=st.sampled_from([4, 6]))
def test_labels_are_those_of_a_replay_by_the_book(seed, n, size):
    games = random_games(n, np.random.default_rng(seed), size)
    boards = othello_boards(games, size=size, ended=True)
    row = 0
    for game in range(n):
        moves = [int(m) for m in games.moves[game] if m >= 0]
        for at, (board, turn, allowed) in enumerate(replay(moves, size)):
            assert (boards.game[row], boards.position[row]) == (game, at)
            assert {divmod(int(s), size) for s in np.flatnonzero(boards.legal[row])} == allowed
            assert bool(boards.black_to_move[row]) == (turn == "black")
            for square in range(size * size):
                stone = board.get(divmod(square, size), "empty")
                side = {"empty": "empty", turn: "mine"}.get(stone, "yours")
                assert CODINGS["colour"][boards.colour[row, square]] == stone
                assert CODINGS["side"][boards.side[row, square]] == side
            row += 1
    assert row == len(boards)


def test_texts_and_squares_give_the_same_labels_and_ended_games_have_no_last_row():
    games = random_games(20, np.random.default_rng(1))
    texts = [" ".join(square_name(int(s)) for s in row if s >= 0) for row in games.moves]
    texts[3] = f"<game> {texts[3]}"
    given_games, given_texts = othello_boards(games), othello_boards(texts)
    assert np.array_equal(given_games.side, given_texts.side)
    assert np.array_equal(othello_boards(games.moves).legal, given_games.legal)
    assert given_games.legal.any(1).all()
    assert len(othello_boards(games, ended=True)) == len(given_games) + 20
    some = given_games.take(given_games.game == 3)
    assert np.array_equal(some.position, np.arange(len(some)))


def test_legal_moves_of_a_board_are_those_of_the_rules_and_a_flip_turns_one_stone():
    boards = othello_boards(random_games(30, np.random.default_rng(2)))
    assert np.array_equal(legal_moves(boards.side), boards.legal)
    squares = (boards.side > 0).argmax(1)
    flipped = flip_stones(boards.side, squares)
    differs = flipped != boards.side
    assert (differs.sum(1) == 1).all() and np.array_equal(differs.argmax(1), squares)
    assert np.array_equal(flip_stones(flipped, squares), boards.side)


def test_maze_labels_are_the_passages_the_prompts_were_made_from():
    from workbench.organisms.tasks.mazes import Mazes

    organism = Mazes()
    prompts, _, about = organism.draw(12, np.random.default_rng(0), "train")
    words = organism.words()
    edges = maze_edges([" ".join(words[t] for t in prompt) for prompt in prompts])
    assert np.array_equal(edges, np.stack([a["maze"] for a in about]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: othello_boards(["d5 d5"]), "Move d5 is not legal in game 0.*move 2"),
        (lambda: othello_boards(["z9"]), "no square 'z9'"),
        (lambda: othello_boards([]), "No games"),
        (lambda: othello_boards("d5 e5"), "list of games"),
        (lambda: othello_boards(np.array([[-1, 8]])), "goes on after"),
        (lambda: othello_boards(["d5"]).labels("chess"), "no coding 'chess'"),
        (lambda: legal_moves(np.zeros((2, 35), int)), "16, 36, 64"),
        (lambda: legal_moves(np.full((2, 36), 3)), "0 .empty., 1 .mine."),
        (lambda: flip_stones(np.zeros((1, 36), int), np.array([5])), "Square 5 of board 0 is empty"),
        (lambda: flip_stones(np.ones((1, 36), int), np.array([36])), "one square from 0 to 35"),
        (lambda: maze_edges(["no maze"]), "lists no passages"),
        (lambda: maze_edges(["<ADJLIST_START> (0,0)<-->(4,4) <ADJLIST_END>"]), "no passage"),
    ],
)
def test_bad_input_gets_one_clear_error(make, message):
    with pytest.raises(DataError, match=message):
        make()
