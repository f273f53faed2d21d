"""Latent saliency map: which squares a prediction hangs on.

For each square s of a board, flip its state inside the model (`rewrite`) and see what becomes of the probability of
the move the model predicts:

    saliency(s) = p(move) − p(move | s flipped)          > 0: the move hangs on the square being as it is

(Li et al. 2022, arXiv:2210.13382, section 5). A stone becomes one of the other player; an empty square has no
opposite and is NaN, unless `empty` says which stone to put there. Control: for every square, random directions
of the same norms at the same places (`n_random` of them, mean).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from probes.causal.optimise import optimise
from probes.causal.rewrite import Edit, push, rewrite
from probes.causal.rows import encoded, next_logits
from probes.causal.squares import SquareLogits
from workbench.collection.batching import TOKENS_PER_BATCH
from workbench.errors import DataError
from workbench.model.language_model import LanguageModel
from workbench.model.tokens import Prompt
from workbench.progress import Progress, Silent
from workbench.provenance import provenance
from workbench.results import Result, array


def saliency_map(
    model: LanguageModel,
    prompts: Prompt | Sequence[Prompt],
    probes: Mapping[str, SquareLogits],
    boards: np.ndarray,
    *,
    moves: Sequence[str | int] | None = None,
    empty: int | None = None,
    edit: Edit = optimise,
    n_random: int = 3,
    seed: int = 0,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    progress: Progress | None = None,
) -> Result:
    """The saliency of every square for the move that the model predicts.

    Args:
        model: the language model.
        prompts: games; the prediction at their last token is explained.
        probes: site -> probe of the board, classes 0 empty, 1 mine, 2 yours.
        boards: [prompt, square] the boards in these classes (`OthelloBoards.side`).
        moves: token of each prompt whose probability is explained; by default the model's first choice.
        empty: class that an empty square is given (1 or 2), or None to leave it out.
        edit: how the state is written, see `rewrite`.
        n_random: random directions of the same norms, for each square.
        seed: of them.
        tokens_per_batch: tokens in one forward.
        progress: one item per row of a forward.

    Returns:
        A `Result` of kind `latent_saliency`: dims (prompt, row, col); variables `saliency`, `control` (mean of
        the random directions), `written` (the probe of the last site in the forward pass saw the flipped square),
        `norm` (summed over sites), `board`, and `probability`, `move` per prompt.

    Raises:
        DataError: boards that do not fit prompts or are not square, nothing to flip.
    """
    progress, started = progress or Silent(), time.perf_counter()
    ids = encoded(model, prompts)
    boards = np.asarray(boards)
    size = round(boards.shape[-1] ** 0.5) if boards.ndim == 2 else 0
    fits = boards.shape == (len(ids), size * size) and boards.dtype.kind in "iu"
    if not (fits and np.isin(boards, (0, 1, 2)).all()):
        raise DataError(
            f"Expected one square board of classes 0, 1, 2 for each of {len(ids)} prompts, [prompt, square]; got "
            f"{boards.dtype} of shape {boards.shape}."
        )
    if empty not in (None, 1, 2) or n_random < 1:
        raise DataError(f"empty is 1, 2 or None and n_random at least 1; given {empty} and {n_random}.")
    opposite = np.array([0 if empty is None else empty, 2, 1])[boards]
    of_row, square = np.nonzero(opposite != boards)
    if not len(of_row):
        raise DataError(
            "No square can be flipped: these boards are empty. Give empty=1 to put stones on them."
        )
    rows = np.arange(len(of_row))
    wanted, flipped = boards[of_row].copy(), np.zeros((len(of_row), boards.shape[1]), dtype=bool)
    wanted[rows, square], flipped[rows, square] = opposite[of_row, square], True

    progress.stage("saliency", len(ids) + len(of_row) * (1 + n_random))
    run: dict[str, Any] = {"tokens_per_batch": tokens_per_batch, "progress": progress}
    plain = next_logits(model, ids, **run).softmax(-1)
    if moves is None:
        chosen = plain.argmax(-1)
    elif len(moves) != len(ids):
        raise DataError(f"{len(moves)} moves were given for {len(ids)} prompts: give one each.")
    else:
        chosen = torch.tensor([model.token_id(move) for move in moves])
    p = plain.gather(-1, chosen[:, None])[:, 0].double().numpy()
    of_move = lambda logits: logits.softmax(-1)[torch.arange(len(of_row)), chosen[of_row]].double().numpy()  # noqa: E731
    written = rewrite(model, ids, probes, wanted, flipped, edit=edit, of_row=of_row, **run)
    after = of_move(written.logits)
    random = [
        of_move(push(model, ids, written.norm, seed=seed + i, of_row=of_row, **run)) for i in range(n_random)
    ]

    def on_board(values: np.ndarray) -> np.ndarray:
        out = np.full(boards.shape, np.nan)
        out[of_row, square] = values
        return out.reshape(-1, size, size)

    dims, last = ("prompt", "row", "col"), list(written.done)[-1]
    variables = {
        "saliency": (p[of_row] - after, "p(move) − p(move | square flipped)"),
        "control": (p[of_row] - np.mean(random, axis=0), "the same with random directions of the same norms"),
        "written": (written.done[last].float().numpy(), "1 where the last probe sees the flipped square"),
        "norm": (sum(n.numpy() for n in written.norm.values()), "length of the moves, summed over sites"),
    }
    data = xr.Dataset(
        {name: array(dims, on_board(v), long_name=text) for name, (v, text) in variables.items()}
        | {
            "board": array(dims, boards.reshape(-1, size, size), long_name="0 empty, 1 mine, 2 yours"),
            "probability": array(("prompt",), p, long_name="p(move), unedited"),
        },
        coords={
            "prompt": np.arange(len(ids)),
            "row": np.arange(size),
            "col": np.arange(size),
            "move": ("prompt", np.array([model.tokenizer.decode([int(t)]) for t in chosen], dtype=str)),
        },
        attrs={
            "sites": list(written.norm),
            "n_prompts": len(ids),
            "control": f"mean of {n_random} random directions of the same norms",
        },
    )
    seconds = {"saliency": time.perf_counter() - started}
    both = [
        np.abs(data[name].values[np.isfinite(data[name].values)]).mean() for name in ("saliency", "control")
    ]
    summary = {
        "n_prompts": len(ids),
        "n_squares": len(of_row),
        "mean_absolute_saliency": float(both[0]),
        "mean_absolute_control": float(both[1]),
        "written": float(written.done[last].float().mean()),
        "kept": float(written.kept[last].mean()),
    }
    return Result("latent_saliency", data, provenance(model, tokens=ids, seed=seed, seconds=seconds), summary)
