"""What an edit by a probe gives back, and the checks all of them share."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.causal.squares import SquareLogits
from workbench.errors import DataError


@dataclass(frozen=True, eq=False)
class Edited:
    """Activations after an edit.

    Attributes:
        x: [row, d] edited activations.
        norm: [row] ‖x − h‖, in the units of the activations.
        done: [row] the probe now sees the wanted class on every flipped square.
        kept: [row] share of the other squares on which the probe's first choice is what it was (1 if there are none).
        steps: [row] of the optimiser; 0 for a closed form.
        loss: [row] at the end; NaN for a closed form.
    """

    x: Float[Tensor, "row d"] = field(repr=False)
    norm: Float[Tensor, " row"]
    done: Bool[Tensor, " row"]
    kept: Float[Tensor, " row"]
    steps: Int[Tensor, " row"]
    loss: Float[Tensor, " row"]


def finish(
    probe: SquareLogits,
    h: Tensor,
    x: Tensor,
    labels: Tensor,
    flipped: Tensor,
    *,
    steps: Tensor | None = None,
    loss: Tensor | None = None,
) -> Edited:
    """Measure an edit."""
    with torch.no_grad():
        before, after = (squares(probe(rows)).argmax(-1) for rows in (h, x))
    done = ((after == labels) | ~flipped).all(1)
    others = (~flipped).sum(1)
    same = ((after == before) & ~flipped).sum(1)
    return Edited(
        x,
        (x - h).float().norm(dim=1),
        done,
        torch.where(others > 0, same / others.clamp(min=1), torch.ones(len(h), device=h.device)),
        torch.zeros(len(h), dtype=torch.long, device=h.device) if steps is None else steps,
        torch.full((len(h),), torch.nan, device=h.device) if loss is None else loss.float(),
    )


def squares(logits: Tensor) -> Tensor:
    """[row, class] of a probe of one thing -> [row, 1, class]."""
    return logits[:, None] if logits.ndim == 2 else logits


def checked(h: Tensor, labels: Tensor, flipped: Tensor, sample: Tensor) -> None:
    """Raise `DataError` where rows, labels and squares do not go together, given the logits of one row."""
    if h.ndim != 2 or not bool(torch.isfinite(h).all()):
        raise DataError(f"Expected finite activations [row, d], got shape {list(h.shape)}.")
    if sample.ndim not in (2, 3):
        raise DataError(
            f"The probe gave shape {list(sample.shape)}: expected logits [row, square, class] or [row, class]."
        )
    n_squares, n_classes = squares(sample).shape[1:]
    if labels.shape != (len(h), n_squares) or flipped.shape != labels.shape:
        raise DataError(
            f"Labels {list(labels.shape)} and flipped squares {list(flipped.shape)} must be [row, square] = "
            f"{[len(h), n_squares]}, as the probe's logits are."
        )
    if labels.dtype != torch.long or flipped.dtype != torch.bool:
        raise DataError(f"Labels are int64 and `flipped` is boolean, not {labels.dtype} and {flipped.dtype}.")
    if int(labels.min()) < 0 or int(labels.max()) >= n_classes:
        raise DataError(
            f"Labels go from {int(labels.min())} to {int(labels.max())}; the probe has {n_classes} classes."
        )
    if not bool(flipped.any(1).all()):
        row = int((~flipped.any(1)).nonzero()[0])
        raise DataError(f"Row {row} has no flipped square: there is nothing to change.")
