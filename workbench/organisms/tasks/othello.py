"""othello-6x6: which moves are legal next, from the moves of a game alone."""

from __future__ import annotations

from typing import Any, ClassVar

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
    gpt2,
    is_held_out_split,
)
from workbench.organisms.othello_rules import (
    Games,
    legal,
    play,
    random_games,
    square_name,
    square_of,
    start,
)

SIZE = 6
_MIDDLE = {14, 15, 20, 21}
HELD_OUT_SHARE = 16
"""One game in so many is held out, by a checksum of its moves."""


class Othello(Organism):
    """Random games; after each move the model is to spread its probability over the legal next moves."""

    name = "othello-6x6"
    summary = "legal moves of 6×6 Othello from the list of moves"
    data = (
        "Games of 6×6 Othello in which every legal move is equally likely, as a list of squares (`<game> d2 "
        "c2 …`); passes are not written. The target after each move is the even distribution over the legal "
        "moves, which the rules give: fewer games are needed than with the one move that was played. A game is "
        "held out when the checksum of its moves says so (1 in 16), so none is seen in training."
    )
    plan = Plan(steps=18000, cycles=2, batch_size=128, learning_rate=1.5e-3, warmup=300, weight_decay=0.05)
    goals = (Goal("legal_rate", 0.99, name="legal_rate_othello_6x6"),)
    known = Known(
        (
            "The moves determine the board; nothing tells the model so. Whether it computes the board can be "
            "probed: labels are given as black/white/empty and as mine/yours/empty.",
            "Expected: mine/yours is read out linearly, black/white is not (colour alternates with the move).",
        ),
        ("Li et al. 2022, arXiv:2210.13382", "Nanda et al. 2023, arXiv:2309.00941"),
    )
    start: ClassVar[str | None] = "<game>"

    def words(self) -> list[str]:
        """The start word and the 32 squares that are empty at the beginning, row by row."""
        return ["<game>", *(square_name(s, SIZE) for s in range(SIZE * SIZE) if s not in _MIDDLE)]

    def config(self) -> Any:
        return gpt2(33, d_model=128, n_layers=6, n_heads=4, d_mlp=512, context=33, bos_token_id=0)

    def batch(self, seed: int, step: int) -> Batch:
        rng = self.stream(seed, "train", step)
        drawn = random_games(self.plan.batch_size + self.plan.batch_size // 4, rng, SIZE)
        kept = np.flatnonzero(~held_out(drawn.moves))[: self.plan.batch_size]
        ids, allowed = self.encode(drawn, kept)
        count = allowed.sum(-1, keepdims=True)
        likely = torch.from_numpy(allowed / np.maximum(count, 1)).float()
        learnt = count[..., 0] > 0
        return Batch(torch.from_numpy(ids), torch.from_numpy(np.where(learnt, 0, IGNORE)), likely)

    def encode(self, games: Games, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Token ids [game, 32] (start word, then all moves but the last) and what is legal after each,
        bool [game, 32, vocabulary]."""
        token = np.zeros(SIZE * SIZE, dtype=np.int64)
        squares = [s for s in range(SIZE * SIZE) if s not in _MIDDLE]
        token[squares] = np.arange(1, 33)
        moves = games.moves[which]
        ids = np.where(moves >= 0, token[np.maximum(moves, 0)], 0)
        ids = np.concatenate([np.zeros((len(which), 1), dtype=np.int64), ids[:, :-1]], axis=1)
        allowed = np.zeros((*ids.shape, 33), dtype=bool)
        allowed[:, 1:, 1:] = games.legal_after[which][:, :-1][:, :, squares]
        allowed[:, 0, 1:] = games.legal[which][:, 0][:, squares]
        return ids, allowed

    def held_out_games(self, n: int, seed: int = 0) -> Games:
        """`n` games that training never sees."""
        found: list[Games] = []
        total, number = 0, 0
        while total < n:
            drawn = random_games(1024, self.stream(seed, "held_out", number), SIZE)
            kept = np.flatnonzero(held_out(drawn.moves))
            found.append(_take(drawn, kept))
            total, number = total + len(kept), number + 1
        fields = Games.__dataclass_fields__
        joined = Games(**{name: np.concatenate([getattr(g, name) for g in found]) for name in fields})
        return _take(joined, np.arange(n))

    def evaluate(self, model: Any, *, full: bool = False) -> dict[str, float]:
        """`legal_rate`: share of positions whose most likely move is legal. `legal_mass`: mean probability
        on legal moves. `set_errors`: legal moves missed and others taken in, per position, when as many
        moves are taken as are legal (Li et al.'s measure)."""
        games = self.held_out_games(2000 if full else 128)
        ids, allowed = self.encode(games, np.arange(len(games.moves)))
        device = next(model.parameters()).device
        right, mass, errors, n = 0, 0.0, 0.0, 0
        with torch.no_grad():
            for i in range(0, len(ids), 128):
                there = torch.from_numpy(allowed[i : i + 128]).to(device)
                rows = torch.from_numpy(ids[i : i + 128]).to(device)
                logits = model(input_ids=rows, use_cache=False).logits.float()
                count = there.sum(-1)
                going = count > 0
                right += int(there.gather(-1, logits.argmax(-1, keepdim=True))[..., 0][going].sum())
                mass += float((logits.softmax(-1) * there).sum(-1)[going].sum())
                rank = logits.argsort(-1, descending=True).argsort(-1)
                taken = rank < count[..., None]
                errors += float((taken ^ there).sum(-1)[going].sum())
                n += int(going.sum())
        return {"legal_rate": right / n, "legal_mass": mass / n, "set_errors": errors / n, "n": n}

    def problems(self, n: int, *, split: Split = "held_out", seed: int = 0) -> PromptSet:
        """Pairs of games that differ in the last move only, with a move that is legal after one of them.

        Extra fields: `legal` and `corrupt_legal` (squares), `black`, `white` (stones after the last move of the
        clean game), `mine`, `yours` (from the player to move), `to_move`.
        """
        rng = self.stream(seed, f"problems/{split}")
        pairs: list[Pair] = []
        while len(pairs) < n:
            drawn = random_games(512, rng, SIZE)
            for game in np.flatnonzero(held_out(drawn.moves) == is_held_out_split(split)):
                length = int(rng.integers(6, 27))
                pair = self._pair(drawn.moves[game], length, rng, len(pairs))
                if pair is not None:
                    pairs.append(pair)
                if len(pairs) == n:
                    break
        return PromptSet(self.name, "pairs", tuple(pairs), "Apache-2.0", "random games, own rules module")

    def _pair(self, moves: np.ndarray, length: int, rng: np.random.Generator, number: int) -> Pair | None:
        if (moves[:length] < 0).any():
            return None
        before = board_after([square_name(int(m), SIZE) for m in moves[: length - 1]])
        last = int(moves[length - 1])
        others = [int(s) for s in np.flatnonzero(legal(before).reshape(-1)) if s != last]
        rng.shuffle(others)
        clean = play(before, np.array([last]))
        allowed = {int(s) for s in np.flatnonzero(legal(clean).reshape(-1))}
        for other in others:
            corrupt = play(before, np.array([other]))
            allowed_corrupt = {int(s) for s in np.flatnonzero(legal(corrupt).reshape(-1))}
            # Not the two last moves themselves: that an occupied square is not legal needs no board.
            only, only_corrupt = (
                sorted(allowed - allowed_corrupt - {other}),
                sorted(allowed_corrupt - allowed - {last}),
            )
            if only and only_corrupt:
                shared = "".join(square_name(int(m), SIZE) + " " for m in moves[: length - 1])
                stones = {
                    name: [
                        square_name(int(s), SIZE) for s in np.flatnonzero(getattr(clean, name).reshape(-1))
                    ]
                    for name in ("black", "white", "mine", "yours")
                }
                return Pair(
                    id=f"{number:05d}",
                    clean=shared + square_name(last, SIZE),
                    corrupt=shared + square_name(other, SIZE),
                    answer=" " + square_name(only[0], SIZE),
                    wrong_answer=" " + square_name(only_corrupt[0], SIZE),
                    group=f"game {number}",
                    spans={"last_move": (len(shared), len(shared) + 2)},
                    extra={
                        "differs": ["last_move"],
                        "legal": [square_name(s, SIZE) for s in sorted(allowed)],
                        "corrupt_legal": [square_name(s, SIZE) for s in sorted(allowed_corrupt)],
                        "to_move": "black" if bool(clean.black_to_move[0]) else "white",
                        **stones,
                    },
                )
        return None


def board_after(moves: list[str], size: int = SIZE) -> Any:
    """The position after a list of squares from the start. Raises `DataError` for an illegal move.

    >>> int(board_after(["d2"]).black.sum())
    4
    """
    position = start(1, size)
    for move in moves:
        position = play(position, np.array([square_of(move, size)]))
    return position


def board_labels(moves: list[str]) -> dict[str, list[list[str]]]:
    """Labels of all 36 squares after each move, two codings: `colour` (black, white, empty) and `side`
    (mine, yours, empty, for the player to move)."""
    colour: list[list[str]] = []
    side: list[list[str]] = []
    position = start(1, SIZE)
    for move in moves:
        position = play(position, np.array([square_of(move, SIZE)]))
        for out, names in ((colour, ("black", "white")), (side, ("mine", "yours"))):
            first, second = (getattr(position, name).reshape(-1) for name in names)
            out.append(
                [names[0] if a else names[1] if b else "empty" for a, b in zip(first, second, strict=True)]
            )
    return {"colour": colour, "side": side}


def held_out(moves: np.ndarray) -> np.ndarray:
    """bool [game]: which games belong to the held-out part."""
    rows = moves.astype(np.int8)
    return np.array([falls_to_held_out(row.tobytes(), HELD_OUT_SHARE) for row in rows], dtype=bool)


def _take(games: Games, which: np.ndarray) -> Games:
    return Games(**{name: getattr(games, name)[which] for name in Games.__dataclass_fields__})
