"""The rules of Othello on an even board of any size, for many games at once.

A position is a pair of boolean arrays `[game, row, column]`: the stones of the player to move (`mine`) and
of the other (`yours`). A move puts a stone on an empty square and turns every unbroken line of the other's
stones between it and another own stone, in any of the eight directions; it must turn at least one. Who
cannot move passes; the game ends when neither can. Black moves first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workbench.errors import DataError

DIRECTIONS = tuple((dr, dc) for dr in (-1, 0, 1) for dc in (-1, 0, 1) if (dr, dc) != (0, 0))


@dataclass(frozen=True)
class Position:
    """Many positions. All arrays are [game, row, column] or [game]."""

    mine: np.ndarray
    """bool: stones of the player to move."""
    yours: np.ndarray
    """bool: stones of the other player."""
    black_to_move: np.ndarray
    """bool [game]."""

    @property
    def black(self) -> np.ndarray:
        """bool [game, row, column]: black's stones."""
        return np.where(self.black_to_move[:, None, None], self.mine, self.yours)

    @property
    def white(self) -> np.ndarray:
        """bool [game, row, column]: white's stones."""
        return np.where(self.black_to_move[:, None, None], self.yours, self.mine)


def start(n_games: int = 1, size: int = 6) -> Position:
    """The opening position: four stones in the middle, equal colours on a diagonal, black to move.

    >>> int(legal(start(1, 6)).sum())
    4
    """
    if size < 4 or size % 2:
        raise DataError(f"An Othello board has an even size of at least 4, not {size}.")
    mine = np.zeros((n_games, size, size), dtype=bool)
    yours = np.zeros_like(mine)
    low, high = size // 2 - 1, size // 2
    yours[:, low, low] = yours[:, high, high] = True
    mine[:, low, high] = mine[:, high, low] = True
    return Position(mine, yours, np.ones(n_games, dtype=bool))


def _shift(board: np.ndarray, direction: tuple[int, int]) -> np.ndarray:
    """The board moved by one square; what leaves it is lost."""
    size = board.shape[-1]
    out = np.zeros_like(board)
    (dr, dc) = direction
    rows_to, rows_from = slice(max(dr, 0), size + min(dr, 0)), slice(max(-dr, 0), size + min(-dr, 0))
    columns_to, columns_from = slice(max(dc, 0), size + min(dc, 0)), slice(max(-dc, 0), size + min(-dc, 0))
    out[:, rows_to, columns_to] = board[:, rows_from, columns_from]
    return out


def legal(position: Position) -> np.ndarray:
    """bool [game, row, column]: where the player to move may put a stone."""
    empty = ~(position.mine | position.yours)
    found = np.zeros_like(empty)
    for direction in DIRECTIONS:
        line = _shift(position.mine, direction) & position.yours
        for _ in range(position.mine.shape[-1] - 3):
            line |= _shift(line, direction) & position.yours
        found |= _shift(line, direction) & empty
    return found


def turned(position: Position, move: np.ndarray) -> np.ndarray:
    """bool [game, row, column]: the stones that the moves turn. `move` is bool with one square per game."""
    out = np.zeros_like(position.mine)
    for direction in DIRECTIONS:
        line = np.zeros_like(move)
        step = _shift(move, direction) & position.yours
        while step.any():
            line |= step
            step = _shift(step, direction) & position.yours
        out |= line & (_shift(line, direction) & position.mine).any(axis=(1, 2), keepdims=True)
    return out


def play(position: Position, squares: np.ndarray) -> Position:
    """The positions after one move each; a player who cannot move passes without being asked.

    Args:
        position: n games.
        squares: [n] row times size plus column; -1 leaves a game as it is (one that has ended).

    Raises:
        DataError: a move is not legal.
    """
    size = position.mine.shape[-1]
    active = squares >= 0
    move = np.zeros_like(position.mine)
    games = np.flatnonzero(active)
    move[games, squares[games] // size, squares[games] % size] = True
    flips = turned(position, move)
    good = (flips.any(axis=(1, 2)) & ~((position.mine | position.yours) & move).any(axis=(1, 2))) | ~active
    if not good.all():
        game = int(np.flatnonzero(~good)[0])
        raise DataError(f"Move {square_name(int(squares[game]), size)} is not legal in game {game}.")
    mover = position.mine | move | flips
    other = position.yours & ~flips
    switch = active[:, None, None]
    after = Position(
        np.where(switch, other, position.mine),
        np.where(switch, mover, position.yours),
        position.black_to_move ^ active,
    )
    # A player without a legal move passes, where the other has one.
    stuck = active & ~legal(after).any(axis=(1, 2))
    if not stuck.any():
        return after
    passed = Position(after.yours, after.mine, ~after.black_to_move)
    passes = stuck & legal(passed).any(axis=(1, 2))
    swap = passes[:, None, None]
    return Position(
        np.where(swap, passed.mine, after.mine),
        np.where(swap, passed.yours, after.yours),
        np.where(passes, passed.black_to_move, after.black_to_move),
    )


@dataclass(frozen=True)
class Games:
    """Random games, move by move."""

    moves: np.ndarray
    """[game, move] int64: squares; -1 after the end."""
    legal: np.ndarray
    """bool [game, move, square]: what was legal *before* each move."""
    black: np.ndarray
    """bool [game, move, square]: black's stones *after* each move."""
    white: np.ndarray
    """bool [game, move, square]: white's stones after each move."""
    black_to_move: np.ndarray
    """bool [game, move]: whose turn it is after each move (a pass is already taken into account)."""
    legal_after: np.ndarray
    """bool [game, move, square]: what is legal after each move; nothing once the game has ended."""

    @property
    def lengths(self) -> np.ndarray:
        """[game]: number of moves made."""
        return (self.moves >= 0).sum(1)


def random_games(n_games: int, rng: np.random.Generator, size: int = 6) -> Games:
    """Games in which every legal move is equally likely."""
    squares = size * size
    n_moves = squares - 4
    position = start(n_games, size)
    allowed = legal(position).reshape(n_games, squares)
    before, black, white, turn, after = [], [], [], [], []
    moves = np.full((n_games, n_moves), -1, dtype=np.int64)
    for m in range(n_moves):
        going = allowed.any(1)
        draw = np.where(allowed, rng.random((n_games, squares)), -1.0).argmax(1)
        moves[:, m] = np.where(going, draw, -1)
        before.append(allowed)
        position = play(position, moves[:, m])
        allowed = legal(position).reshape(n_games, squares)
        black.append(position.black.reshape(n_games, squares))
        white.append(position.white.reshape(n_games, squares))
        turn.append(position.black_to_move)
        after.append(allowed)
    return Games(
        moves,
        np.stack(before, 1),
        np.stack(black, 1),
        np.stack(white, 1),
        np.stack(turn, 1),
        np.stack(after, 1),
    )


def count_sequences(depth: int, size: int = 6) -> int:
    """How many different sequences of `depth` moves there are from the start (a pass is no move)."""
    position = start(1, size)
    squares = size * size
    for remaining in range(depth, 0, -1):
        allowed = legal(position).reshape(-1, squares)
        if remaining == 1:
            return int(allowed.sum())
        games, moves = np.nonzero(allowed)
        position = play(
            Position(position.mine[games], position.yours[games], position.black_to_move[games]), moves
        )
    return 1


def square_name(square: int, size: int = 6) -> str:
    """Letter of the column and number of the row, counted from one: `a1` is the upper left corner.

    >>> square_name(0), square_name(35)
    ('a1', 'f6')
    """
    return f"{chr(ord('a') + square % size)}{square // size + 1}"


def square_of(name: str, size: int = 6) -> int:
    """The square called `name`. Raises `DataError` for one that is not on the board.

    >>> square_of("f6")
    35
    """
    column, row = ord(name[:1] or " ") - ord("a"), int(name[1:]) - 1 if name[1:].isdigit() else -1
    if not (0 <= column < size and 0 <= row < size):
        last = square_name(size * size - 1, size)
        raise DataError(f"There is no square {name!r} on a {size}×{size} board: expected a1 to {last}.")
    return row * size + column
