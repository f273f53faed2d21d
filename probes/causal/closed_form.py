"""The least change of an activation that gives a linear probe the output that is wanted.

One probe f(x) = w · x + b and a target t: the nearest point of the hyperplane f = t,

    x = h + (t − f(h)) w / ‖w‖²

Many probes f(x) = W x + b and targets t [k], of which most are the outputs they have already (those are *kept*):

    x = h + W⁺ (t − f(h))          W⁺ the pseudo-inverse

which meets every target where W has full row rank and else has the least squared error, and of all such x is the one
nearest to h. `turn` asks this of a board: the logits of two classes of one square change places, all others stay.
Li et al. 2022 (arXiv:2210.13382) optimise instead; adding a probe's direction is how Nanda et al. 2023
(arXiv:2309.00941) edit.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.causal.edited import Edited, checked, finish
from probes.causal.squares import LinearSquares, SquareLogits
from workbench.errors import DataError


def least_move(
    h: Float[Tensor, "row d"],
    weight: Float[Tensor, " width"],
    bias: float | int,
    target: float | int | Float[Tensor, " row"],
) -> Float[Tensor, "row d"]:
    """The nearest activations at which one linear probe says `target`.

    Args:
        h: [row, d] activations.
        weight, bias: of the probe.
        target: logit wanted, one for all rows or one each.

    Raises:
        DataError: the widths differ, or the weight is zero.

    Example:
        >>> least_move(torch.zeros(1, 2), torch.tensor([0.0, 2.0]), 0.0, 1.0)
        tensor([[0.0000, 0.5000]])
    """
    if h.ndim != 2 or weight.shape != h.shape[1:]:
        raise DataError(f"Activations {list(h.shape)} do not fit a weight of shape {list(weight.shape)}.")
    size = weight.double().square().sum()
    if not float(size) > 0:
        raise DataError("The weight of the probe is zero: no move changes what it says.")
    now = h.double() @ weight.double() + bias
    return (h.double() + ((torch.as_tensor(target) - now) / size)[:, None] * weight.double()).to(h)


def least_squares_move(
    h: Float[Tensor, "row d"],
    weight: Float[Tensor, "probe width"],
    bias: Float[Tensor, " biases"],
    target: Float[Tensor, "rows targets"],
    *,
    rank_tolerance: float = 1e-6,
) -> Float[Tensor, "row d"]:
    """The nearest activations at which many linear probes come closest to their targets.

    Args:
        h: [row, d] activations.
        weight, bias: of the probes.
        target: [row, probe] outputs wanted; put in `h @ weight.T + bias` for the probes that shall not change.
        rank_tolerance: singular values below this share of the largest count as 0.

    Raises:
        DataError: shapes that do not match.
    """
    if h.ndim != 2 or weight.shape != (len(bias), h.shape[1]) or target.shape != (len(h), len(bias)):
        raise DataError(
            f"Shapes do not match: activations {list(h.shape)}, weights {list(weight.shape)}, biases "
            f"{list(bias.shape)}, targets {list(target.shape)}."
        )
    missing = target.double() - (h.double() @ weight.double().T + bias.double())
    back = torch.linalg.pinv(weight.double(), rtol=rank_tolerance)
    return (h.double() + missing @ back.T).to(h)


def turn(
    probe: SquareLogits,
    h: Float[Tensor, "row d"],
    labels: Int[Tensor, "rows square"],
    flipped: Bool[Tensor, "rows square"],
    *,
    keep: bool = True,
    strength: float | int = 1.0,
) -> Edited:
    """Move activations until a linear probe sees the flipped squares as `labels`, in closed form.

    On a flipped square the logits of the wanted class and of the best other one change places (where the wanted one
    is below), times `strength`. It is not done again where the probe sees the wanted class already.

    Args:
        probe: linear, over all squares.
        h: activations.
        labels: wanted classes; only those of flipped squares are used.
        flipped: the squares to change.
        keep: hold the logits of all other squares and classes (differences within a square, by least squares). False:
            only the difference of the two classes counts, which adds a multiple of the probe's direction.
        strength: 1 puts the logit difference to its negative, 0 to nothing, 2 further.

    Returns:
        `Edited`; `done` says where the probe now sees what is wanted.

    Raises:
        DataError: not a linear probe of squares, shapes that do not match.
    """
    if not isinstance(probe, LinearSquares):
        raise DataError(
            f"A closed form needs a linear probe of squares, not a {type(probe).__name__}: optimise instead."
        )
    checked(h, labels, flipped, probe(h[:1]))
    logits = probe(h).double()
    away = logits.scatter(-1, labels[..., None], -torch.inf).argmax(-1)
    gap = logits.gather(-1, labels[..., None])[..., 0] - logits.gather(-1, away[..., None])[..., 0]
    wanted = torch.where(flipped & (gap < 0), -(1 + strength) * gap, torch.zeros_like(gap))  # [row, square]
    up = torch.nn.functional.one_hot(labels, logits.shape[-1]) - torch.nn.functional.one_hot(
        away, logits.shape[-1]
    )
    if keep:  # within a square only differences of logits mean anything
        centre = lambda w: (w - w.mean(1, keepdim=True)).flatten(0, 1).double()  # noqa: E731
        weight, bias = centre(probe.weight), centre(probe.bias[..., None])[:, 0]
        target = h.double() @ weight.T + bias + (0.5 * wanted[..., None] * up).flatten(1)
        x = least_squares_move(h, weight, bias, target.to(weight))
    else:
        x = h.double().clone()
        for square in flipped.any(0).nonzero()[:, 0].tolist():
            w = torch.einsum("rc,cd->rd", up[:, square].double(), probe.weight[square].double())
            size = w.square().sum(1).clamp(min=1e-300)
            x += (wanted[:, square] / size)[:, None] * w
        x = x.to(h)
    return finish(probe, h, x, labels, flipped)
