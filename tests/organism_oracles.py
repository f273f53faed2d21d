"""What should come next in each organism's task, worked out from the words of the prompt alone.

Plain Python and networkx, none of the organisms' own code, so that both can be compared; only the tables that
define a task (two-hop's facts) and the checksums that say what is held out are taken from it.
"""

from __future__ import annotations

import networkx
import numpy as np

from workbench.organisms import maze_grid
from workbench.organisms.tasks import addition, chains, looped, mazes, multiplication, othello, two_hop


class SlowGame:
    """Othello once more, square by square on plain lists: "b", "w" or "." for each."""

    def __init__(self, size: int) -> None:
        low, high = size // 2 - 1, size // 2
        self.size, self.to_move = size, "b"
        self.board = [["."] * size for _ in range(size)]
        self.board[low][low] = self.board[high][high] = "w"
        self.board[low][high] = self.board[high][low] = "b"

    def turned(self, row: int, column: int, player: str) -> list[tuple[int, int]]:
        if self.board[row][column] != ".":
            return []
        found = []
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                run, r, c = [], row + down, column + right
                while 0 <= r < self.size and 0 <= c < self.size and self.board[r][c] not in (".", player):
                    run.append((r, c))
                    r, c = r + down, c + right
                if 0 <= r < self.size and 0 <= c < self.size and self.board[r][c] == player:
                    found += run
        return found

    def legal(self, player: str | None = None) -> list[int]:
        squares = range(self.size**2)
        return [s for s in squares if self.turned(s // self.size, s % self.size, player or self.to_move)]

    def play(self, square: int) -> None:
        row, column = divmod(square, self.size)
        for r, c in [*self.turned(row, column, self.to_move), (row, column)]:
            self.board[r][c] = self.to_move
        other = "w" if self.to_move == "b" else "b"
        if self.legal(other) or not self.legal():  # whoever cannot move passes, unless the game is over
            self.to_move = other

    def squares(self, colour: str) -> list[bool]:
        return [value == colour for row in self.board for value in row]


def expected(name: str, words: list[str], facts: np.ndarray | None = None) -> set[str]:
    """The right next words after `words` (without a start word): one, but for othello all legal moves."""
    match name:
        case "modular-addition":
            return {str((int(words[0]) + int(words[1])) % 113)}
        case "addition":
            a, sign, b, equals = words
            assert sign in "+-" and equals == "="
            return {str(int(a) + int(b) if sign == "+" else int(a) - int(b))}
        case "multiplication-cot" | "multiplication-direct":
            return {_next(product_words(words, steps=name.endswith("cot")), words[words.index("=") + 1 :])}
        case "chains":
            return {_next(trace_words(words), words[words.index(":") + 1 :])}
        case "mazes-5x5":
            return {_next(maze_words(words), words[words.index("<PATH_START>") + 1 :])}
        case "othello-6x6":
            game = othello_after(words)
            return {f"{'abcdef'[s % 6]}{s // 6 + 1}" for s in game.legal()}
        case "two-hop":
            assert facts is not None and words[-1] == ":"
            entity = int(words[0][1:])
            for relation in words[1:-1]:
                entity = int(facts[int(relation[1:]), entity])
            return {f"e{entity}"}
        case "looped":
            return {looped_path(words)[-1]}
    raise ValueError(name)


def _next(whole: list[str], written: list[str]) -> str:
    """The word after what is written, which must be the beginning of the right whole."""
    assert written == whole[: len(written)]
    return whole[len(written)]


def product_words(words: list[str], *, steps: bool) -> list[str]:
    """The right continuation of `a0 a1 a2 * b0 b1 b2 =`, with Python's whole numbers.

    Of all digit products so far, in their places, 10^k fit into the running sum of column k so many times.
    """
    a, b = ([int(w) for w in part] for part in (words[:3], words[4:7]))
    assert (words[3], words[7]) == ("*", "=")
    total, written = 0, []
    for k in range(5):
        for i in range(3):
            if 0 <= k - i < 3:
                total += a[i] * b[k - i] * 10**k
                written.append(str(total // 10**k))
    product = int("".join(words[2::-1])) * int("".join(words[6:3:-1]))
    assert total == product
    return [*(written if steps else []), "#", *reversed(f"{product:06d}")]


def chain_values(words: list[str]) -> tuple[dict[str, int], str]:
    """Every variable's value and the asked variable, of `a = 7 ; b = a + 5 ; ask b :`."""
    lines = " ".join(words[: words.index(":")]).split(" ; ")
    values: dict[str, int] = {}
    for line in lines[:-1]:
        name, equals, *terms = line.split()
        assert equals == "=" and name not in values
        first = int(terms[0]) if terms[0].isdigit() else values[terms[0]]
        number = int(terms[2]) if terms[1:] else 0
        sign = terms[1] if terms[1:] else "+"
        values[name] = {"+": first + number, "-": first - number, "*": first * number}[sign]
    ask, asked = lines[-1].split()
    assert ask == "ask"
    return values, asked


def trace_words(words: list[str]) -> list[str]:
    """The right trace of a program."""
    values, asked = chain_values(words)
    return [
        *(w for name, value in values.items() for w in (name, str(value), ";")),
        "so",
        str(values[asked]),
        ".",
    ]


def maze_parts(words: list[str]) -> tuple[networkx.Graph, str, str]:
    """The maze that the words describe, its origin and its target."""
    passages = words[words.index("<ADJLIST_START>") + 1 : words.index("<ADJLIST_END>")]
    graph = networkx.Graph(tuple(passage.split("<-->")) for passage in passages)
    assert graph.number_of_edges() == len(passages)
    return graph, words[words.index("<ORIGIN_START>") + 1], words[words.index("<TARGET_START>") + 1]


def maze_words(words: list[str]) -> list[str]:
    """Of the shortest paths the first by row and column (one digit each, so the order of the words), and its end."""
    graph, origin, target = maze_parts(words)
    return [*min(networkx.all_shortest_paths(graph, origin, target)), "<PATH_END>"]


def othello_after(words: list[str]) -> SlowGame:
    game = SlowGame(6)
    for word in words:
        square = "abcdef".index(word[0]) + 6 * (int(word[1]) - 1)
        assert square in game.legal()
        game.play(square)
    return game


def looped_path(words: list[str]) -> list[str]:
    """From the last asked node along the edges to an end node."""
    edges = [edge.split(">") for edge in words[: words.index("?")]]
    following = dict(edges)
    assert len(following) == len(edges) == 13
    path = [words[-1]]
    while path[-1] in following:
        path.append(following[path[-1]])
        assert len(path) <= 9
    return path


def is_held_out(name: str, words: list[str], organism) -> bool:
    """Whether the problem in the words belongs to what training must not see."""
    match name:
        case "modular-addition":
            return [int(w) for w in words[:2]] in organism.pairs(organism.trained_with, "held_out").tolist()
        case "addition":
            return addition._is_held_out(int(words[0]), int(words[2]))
        case "multiplication-cot" | "multiplication-direct":
            a, b = (np.array([[int(w) for w in part]]) for part in (words[:3], words[4:7]))
            return bool(multiplication.held_out(a, b)[0])
        case "chains":
            return chains._is_held_out(" ".join(words[: words.index(":") + 1]))
        case "mazes-5x5":
            graph, _, _ = maze_parts(words)
            names = [f"({c // 5},{c % 5})" for c in range(25)]
            maze = [graph.has_edge(names[a], names[b]) for a, b in maze_grid.passages(5)]
            return bool(mazes.held_out(np.array([maze]))[0])
        case "othello-6x6":  # whole games only
            moves = np.full((1, 32), -1)
            moves[0, : len(words)] = ["abcdef".index(w[0]) + 6 * (int(w[1]) - 1) for w in words]
            return bool(othello.held_out(moves)[0])
        case "two-hop":
            rows = [int(w[1:]) for w in words[:-1]]
            return len(rows) == 3 and rows in two_hop.TwoHop().compositions("held_out").tolist()
        case "looped":
            graph = np.arange(16)
            for edge in words[: words.index("?")]:
                graph["abcdefghijklmnop".index(edge[0])] = "abcdefghijklmnop".index(edge[2])
            return looped._is_held_out(graph)
    raise ValueError(name)
