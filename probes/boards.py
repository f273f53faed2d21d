"""Board states as labels: Othello boards for every token of a game, the passages of a maze.

With B_t the board after t moves, the token at position t of `<game> m_1 m_2 …` has the labels

    side    per square  0 empty   1 mine    2 yours      mine: stones of the player to move after m_t
    colour  per square  0 empty   1 black   2 white
    legal   per square  what the player to move may play (this is what the model is asked for at t)

Both codings come from the same board: side = colour where black is to move, and 1 and 2 swapped where white is.
Li et al. 2022 (arXiv:2210.13382) used `colour` and needed a nonlinear probe; Nanda et al. 2023 (arXiv:2309.00941)
found `side` to be linear. Rows of one game share `game`: split by it, since positions of a game are nearly alike
(Li et al. split by position, which lets them leak).

A maze of g × g cells has 2 g (g − 1) passages; its labels are 1[open], as `workbench.organisms.maze_grid` numbers
them (Ivanitskiy et al. 2023, arXiv:2312.02566).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Integer

from workbench.errors import DataError
from workbench.organisms import maze_grid
from workbench.organisms.othello_rules import Games, Position, legal, play, square_of, start

CODINGS: dict[str, tuple[str, str, str]] = {
    "side": ("empty", "mine", "yours"),
    "colour": ("empty", "black", "white"),
}
"""Names of the classes 0, 1 and 2 of each coding."""
_SWAPPED = np.array([0, 2, 1], dtype=np.int8)


@dataclass(frozen=True, eq=False)
class OthelloBoards:
    """Boards of many games, one row for each token position.

    Attributes:
        game: [row] number of the game; never split it between training and test.
        position: [row] token position, which is the number of moves made (0: the start word).
        side: [row, square] int8 classes of `CODINGS["side"]`.
        colour: [row, square] int8 classes of `CODINGS["colour"]`.
        legal: [row, square] bool, legal moves.
        black_to_move: [row] bool.
    """

    game: Int[np.ndarray, " row"]
    position: Int[np.ndarray, " row"]
    side: Integer[np.ndarray, "row square"]
    colour: Integer[np.ndarray, "row square"]
    legal: Bool[np.ndarray, "row square"]
    black_to_move: Bool[np.ndarray, " row"]

    def __len__(self) -> int:
        return len(self.game)

    def labels(self, coding: str) -> Integer[np.ndarray, "row square"]:
        """The labels of one coding; another name than `side` and `colour` is a `DataError`."""
        if coding not in CODINGS:
            raise DataError(f"There is no coding {coding!r} of a board: give 'side' or 'colour'.")
        return getattr(self, coding)

    def take(self, rows: np.ndarray) -> OthelloBoards:
        """Some of the rows, by number or mask, in that order."""
        return OthelloBoards(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def othello_boards(
    games: Games | Sequence[str] | np.ndarray, *, size: int = 6, ended: bool = False
) -> OthelloBoards:
    """Labels of every token position of some games, by playing them with the organism's rules.

    Args:
        games: `Games`; texts such as `"d5 e5 f5"` (with or without `<game>`); or an array of squares [game, move], −1
            after the end of a game.
        size: of the board.
        ended: keep the position after the end of a game, which has no legal move and nobody to move.

    Returns:
        Rows in the order of games, then positions from 0 (before the first move).

    Raises:
        DataError: no games, an unknown square, a move that is not legal (with game and move).

    Example:
        >>> boards = othello_boards(["d5 e5"])
        >>> boards.position.tolist(), (boards.side[0] == 1).sum()
        ([0, 1, 2], 2)
    """
    moves = _moves(games, size)
    n_games, n_moves = moves.shape
    position = start(n_games, size)
    states, turns, allowed = [], [], []
    for m in range(n_moves + 1):
        if m:
            try:
                position = play(position, moves[:, m - 1])
            except DataError as error:
                raise DataError(f"{error} It is move {m} of that game (games are counted from 0).") from error
        mine, yours = (stones.reshape(n_games, -1) for stones in (position.mine, position.yours))
        states.append((mine + 2 * yours).astype(np.int8))
        turns.append(position.black_to_move)
        allowed.append(legal(position).reshape(n_games, -1))
    lengths = (moves >= 0).sum(1)
    side, turn, may = (np.stack(part, 1) for part in (states, turns, allowed))
    kept = np.arange(n_moves + 1) <= lengths[:, None]
    if not ended:
        kept &= may.any(-1)
    game, at = np.nonzero(kept)
    side, turn = side[game, at], turn[game, at]
    colour = np.where(turn[:, None], side, _SWAPPED[side])
    return OthelloBoards(game, at, side, colour, may[game, at], turn)


def legal_moves(side: Integer[np.ndarray, "row square"]) -> Bool[np.ndarray, "row square"]:
    """What the player to move may play on boards in the `side` coding, whether or not play can lead there.

    Raises:
        DataError: the number of squares is no even board's, or a class is not 0, 1 or 2.
    """
    mine, yours = _stones(side)
    none = np.zeros(len(side), dtype=bool)
    return legal(Position(mine, yours, none)).reshape(side.shape)


def flip_stones(
    side: Integer[np.ndarray, "row square"], squares: Integer[np.ndarray, " row"]
) -> Integer[np.ndarray, "row square"]:
    """The boards with one stone each turned over (mine ↔ yours).

    Raises:
        DataError: a square is empty or outside the board.
    """
    _stones(side)
    if len(squares) != len(side) or squares.min(initial=0) < 0 or squares.max(initial=0) >= side.shape[1]:
        raise DataError(f"Give one square from 0 to {side.shape[1] - 1} for each of {len(side)} boards.")
    rows = np.arange(len(side))
    empty = np.flatnonzero(side[rows, squares] == 0)
    if len(empty):
        raise DataError(
            f"Square {squares[empty[0]]} of board {empty[0]} is empty: only a stone can be turned over."
        )
    flipped = side.copy()
    flipped[rows, squares] = _SWAPPED[side[rows, squares]]
    return flipped


def maze_edges(prompts: Sequence[str], *, size: int = 5) -> Bool[np.ndarray, "prompt edge"]:
    """1[open] for every passage of the lattice, read from maze prompts.

    Args:
        prompts: texts with `<ADJLIST_START> (0,0)<-->(0,1) … <ADJLIST_END>`.
        size: cells on a side.

    Returns:
        [prompt, 2 · size · (size − 1)], downward passages first (`maze_grid.passages`).

    Raises:
        DataError: no passages listed, or one that the lattice does not have.

    Example:
        >>> int(maze_edges(["<ADJLIST_START> (0,0)<-->(0,1) <ADJLIST_END>"]).sum())
        1
    """
    place: dict[str, int] = {}
    for i, (first, second) in enumerate(maze_grid.passages(size)):
        one, other = maze_grid.cell_name(first, size), maze_grid.cell_name(second, size)
        place[f"{one}<-->{other}"] = place[f"{other}<-->{one}"] = i
    out = np.zeros((len(prompts), 2 * size * (size - 1)), dtype=bool)
    for row, prompt in zip(out, prompts, strict=True):
        words = prompt.split()
        try:
            listed = words[words.index("<ADJLIST_START>") + 1 : words.index("<ADJLIST_END>")]
        except ValueError:
            raise DataError(
                f"This prompt lists no passages between <ADJLIST_START> and <ADJLIST_END>: {prompt[:60]!r}."
            ) from None
        unknown = [word for word in listed if word not in place]
        if unknown:
            raise DataError(f"A lattice of {size}×{size} cells has no passage {unknown[0]!r}.")
        row[[place[word] for word in listed]] = True
    return out


def _moves(games: Games | Sequence[str] | np.ndarray, size: int) -> np.ndarray:
    """[game, move] squares, −1 after the end."""
    if isinstance(games, Games):
        return games.moves
    if isinstance(games, np.ndarray) and games.ndim == 0:
        games = games[None]
    if len(games) == 0:
        raise DataError("No games were given: at least one is needed.")
    if isinstance(games, np.ndarray) and games.ndim == 1 and games.dtype.kind in "UO":
        games = games.tolist()
    if isinstance(games, np.ndarray):
        if games.ndim != 2 or games.dtype.kind not in "iu":
            raise DataError(
                f"Games as numbers are whole numbers [game, move], squares from 0 and −1 after the end; this array has "
                f"shape {list(games.shape)} of {games.dtype}. One game alone is squares[None]."
            )
        if (np.diff((games < 0).astype(int), axis=1) < 0).any():
            raise DataError("A game goes on after −1, which stands for its end.")
        if games.max(initial=-1) >= size * size:
            raise DataError(
                f"Square {games.max()} is not on a {size}×{size} board, whose squares are 0 to {size * size - 1}."
            )
        return games
    if isinstance(games, str):
        raise DataError("Give a list of games; this is one text.")
    given: Any = games
    strange = [game for game in given if not isinstance(game, str)]
    if strange:
        raise DataError(
            f"Games are texts such as 'd5 e5 f5', or an array of squares [game, move]; one of these is {strange[0]!r}."
        )
    listed = [[square_of(w, size) for w in text.split() if w != "<game>"] for text in given]
    moves = np.full((len(listed), max(1, *map(len, listed))), -1, dtype=np.int64)
    for row, squares in zip(moves, listed, strict=True):
        row[: len(squares)] = squares
    return moves


def _stones(side: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """bool [row, size, size] stones of the player to move, and of the other."""
    size = round(side.shape[-1] ** 0.5) if side.ndim == 2 else 0
    if size < 4 or size % 2 or size * size != side.shape[1]:
        raise DataError(
            f"Boards are [row, square] with 16, 36, 64 … squares; this array has shape {side.shape}."
        )
    if not np.isin(side, (0, 1, 2)).all():
        raise DataError("A board in the `side` coding holds 0 (empty), 1 (mine) and 2 (yours) only.")
    boards = side.reshape(-1, size, size)
    return boards == 1, boards == 2
