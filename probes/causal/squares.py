"""Probes of many squares at once: one solve for a whole board.

With rows h (activations), squares s, classes c and labels B_s, both probes give logits f(h) [row, square, class]:

    linear   f(h)_s = W_s h + b_s                    min  mean_row Σ_s −ln softmax(f_s)[B_s] + λ/2 ‖W_z‖²
    mlp      f(h)_s = V_s max(0, U z + u) + v_s      the same loss, Adam with mini-batches (Li et al. 2022)

W_z are the weights over standardised features z (training mean and deviation); what is kept is over raw activations.

The linear probe is one problem for all squares: L-BFGS in coordinates in which the Hessian is bounded by the
identity. From softmax's Hessian ≼ ½ I (Böhning 1992, 10.1007/BF00048682), that is W_z = A W_u with
A = (½ ZᵀZ/n + λ I)^(−1/2): one eigendecomposition, shared by all squares, penalties and label sets. Of several
penalties the one with the least loss on validation rows is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.optimize
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.directions import Direction
from workbench.errors import DataError

SquareLogits = Callable[[Tensor], Tensor]
"""Any differentiable function [row, d] activations -> [row, square, class] logits."""
PENALTIES = (1e-2, 1e-3, 1e-4)


@dataclass(frozen=True, eq=False)
class LinearSquares:
    """A linear probe of many squares, called as a function.

    Attributes:
        weight: [square, class, d] over raw activations.
        bias: [square, class].
        penalty: λ that was chosen.
        gradient: largest component of the gradient of the objective at the solution (preconditioned).
        steps: of L-BFGS.
    """

    weight: Float[Tensor, "square class d"] = field(repr=False)
    bias: Float[Tensor, "square class"] = field(repr=False)
    penalty: float = 0.0
    gradient: float = 0.0
    steps: int = 0

    def __call__(self, rows: Float[Tensor, "row d"]) -> Float[Tensor, "row square class"]:
        flat = rows.to(self.weight.dtype) @ self.weight.flatten(0, 1).T
        return flat.unflatten(-1, self.bias.shape) + self.bias

    def direction(self, square: int, towards: int, away: int, *, site: str, **more: Any) -> Direction:
        """The direction along which one square goes from class `away` to class `towards`.

        `more` goes to `Direction.from_vector`; by default the scale is the move that raises the difference of the
        two logits by 1.

        Raises:
            DataError: the probe has no such square or class, or both classes are one.
        """
        known = self.bias.shape
        if not (0 <= square < known[0] and 0 <= towards < known[1] and 0 <= away < known[1]):
            raise DataError(
                f"This probe has squares 0 to {known[0] - 1} and classes 0 to {known[1] - 1}; given square {square}, "
                f"classes {away} and {towards}."
            )
        vector = self.weight[square, towards] - self.weight[square, away]
        norm = float(vector.double().norm())
        named: dict[str, Any] = {
            "name": f"square {square}: class {away} to {towards}",
            "source": "probe:squares",
            "scale": 1 / norm if norm > 0 else None,
        }
        return Direction.from_vector(vector, site=site, **(named | more))


@dataclass(frozen=True, eq=False)
class MLPSquares:
    """A probe with one hidden layer (ReLU) of many squares, called as a function. Weights over raw activations."""

    hidden_weight: Float[Tensor, "hidden d"] = field(repr=False)
    hidden_bias: Float[Tensor, " hidden"] = field(repr=False)
    weight: Float[Tensor, "square class hidden"] = field(repr=False)
    bias: Float[Tensor, "square class"] = field(repr=False)
    epochs: int = 0

    def __call__(self, rows: Float[Tensor, "row d"]) -> Float[Tensor, "row square class"]:
        hidden = torch.relu(rows.to(self.weight.dtype) @ self.hidden_weight.T + self.hidden_bias)
        return (hidden @ self.weight.flatten(0, 1).T).unflatten(-1, self.bias.shape) + self.bias


def fit_linear(
    rows: Float[Tensor, "row d"],
    labels: np.ndarray,
    validation: Bool[np.ndarray, " row"],
    *,
    n_classes: int,
    penalties: Sequence[float | int] = PENALTIES,
    tolerance: float = 1e-4,
    max_steps: int = 500,
) -> LinearSquares:
    """Multinomial regression of every square on the same rows, in one solve.

    Args:
        rows: activations.
        labels: [row, square] classes from 0.
        validation: rows that choose the penalty and are not fitted; keep games on one side of it.
        n_classes: of every square; a class that a square never has gets no probability.
        penalties: λ, tried from the strongest to the weakest, each starting from the one before.
        tolerance: L-BFGS ends where no component of the preconditioned gradient is larger.
        max_steps: of L-BFGS, for each penalty. `gradient` and `steps` of the probe say how it ended.

    Raises:
        DataError: shapes that do not match, NaN, labels that are no classes, nothing to train or validate on.

    Example:
        >>> probe = fit_linear(acts, boards.side, boards.game % 5 == 0, n_classes=3)
        >>> probe(acts).argmax(-1)
    """
    y = _checked(rows, labels, validation, n_classes)
    if not penalties or not all(0 < penalty < np.inf for penalty in penalties):
        raise DataError(
            f"Penalties must be numbers above 0, not {list(penalties)}: without one W may have no minimum."
        )
    test = torch.from_numpy(validation)
    z, mean, std = _standard(rows[~test])
    held = (rows[test].float() - mean) / std
    n, n_squares = len(z), y.shape[1]
    width = n_squares * n_classes
    onehot = torch.nn.functional.one_hot(y[~test], n_classes).flatten(1).float()
    values, vectors = torch.linalg.eigh((z.double().T @ z.double()) / n)
    prior = ((onehot.mean(0) * n + 1) / (n + n_classes)).log()
    weight, bias = torch.zeros(z.shape[1], width), prior
    best: tuple[float, LinearSquares] | None = None
    for penalty in sorted(penalties, reverse=True):
        root = (0.5 * values.clamp(min=0) + penalty).sqrt()
        inner = ((vectors / root) @ vectors.T).float()
        back = ((vectors * root) @ vectors.T).float()
        features = z @ inner

        def objective(flat: np.ndarray, features=features, inner=inner, penalty=penalty) -> Any:
            both = torch.from_numpy(flat).float().reshape(-1, width)
            weight = inner @ both[:-1]
            log_p = (features @ both[:-1] + both[-1]).unflatten(1, (n_squares, -1)).log_softmax(-1)
            loss = -(onehot * log_p.flatten(1)).sum(dtype=torch.float64) / n
            loss = loss + 0.5 * penalty * weight.double().square().sum()
            error = (log_p.exp_().flatten(1) - onehot).div_(n)
            slope = torch.cat([features.T @ error + inner @ (penalty * weight), error.sum(0)[None]])
            return float(loss), slope.double().reshape(-1).numpy()

        first = torch.cat([back @ weight, bias[None]]).double().reshape(-1).numpy()
        found = scipy.optimize.minimize(
            objective, first, jac=True, method="L-BFGS-B",
            options={"maxiter": max_steps, "gtol": tolerance, "ftol": 0.0, "maxcor": 20},
        )  # fmt: skip
        both = torch.from_numpy(found.x).float().reshape(-1, width)
        weight, bias = inner @ both[:-1], both[-1]
        raw = weight / std[:, None]
        made = LinearSquares(
            raw.T.unflatten(0, (n_squares, n_classes)).contiguous(),
            (bias - mean @ raw).unflatten(0, (n_squares, n_classes)),
            float(penalty),
            float(np.abs(found.jac).max()),
            int(found.nit),
        )
        logits = (held @ weight + bias).unflatten(1, (n_squares, n_classes))
        loss = float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), y[test].flatten()))
        if best is None or loss < best[0]:
            best = loss, made
    assert best is not None
    return best[1]


def fit_mlp(
    rows: Float[Tensor, "row d"],
    labels: np.ndarray,
    validation: Bool[np.ndarray, " row"],
    *,
    n_classes: int,
    hidden: int = 128,
    epochs: int = 20,
    learning_rate: float = 3e-3,
    batch_size: int = 256,
    seed: int = 0,
) -> MLPSquares:
    """A probe with one hidden layer over all squares; the epoch with the least validation loss is kept.

    Hidden units are those of Li et al.'s code; rate and batch are larger (theirs: 1e-3 and 128, 16 epochs),
    since they had millions of rows and thousands are enough here.

    Args:
        rows, labels, validation, n_classes: as `fit_linear`.
        hidden: units of the hidden layer.
        epochs, learning_rate, batch_size: of Adam; the rate falls to 0 along a cosine.
        seed: of the first weights and the order of the rows.

    Raises:
        DataError: as `fit_linear`; no epochs, or a fit that diverges.
    """
    y = _checked(rows, labels, validation, n_classes)
    if hidden < 1 or epochs < 1 or batch_size < 1 or not learning_rate > 0:
        raise DataError(
            f"hidden, epochs and batch_size are at least 1 and learning_rate is above 0; given {hidden}, {epochs}, "
            f"{batch_size} and {learning_rate}."
        )
    test = torch.from_numpy(validation)
    z, mean, std = _standard(rows[~test])
    held, train, n_squares = (rows[test].float() - mean) / std, y[~test], y.shape[1]
    random = torch.Generator().manual_seed(seed)
    shapes = [(hidden, z.shape[1]), (hidden,), (n_squares * n_classes, hidden), (n_squares * n_classes,)]
    parameters = [
        (torch.randn(s, generator=random) * (2 / s[-1]) ** 0.5 if len(s) > 1 else torch.zeros(s)).requires_grad_()
        for s in shapes
    ]  # fmt: skip
    optimiser = torch.optim.Adam(parameters, lr=learning_rate)
    batches = [torch.arange(len(z)).split(batch_size)] * epochs
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, sum(map(len, batches)))

    def loss_of(x: Tensor, wanted: Tensor) -> Tensor:
        u, a, v, b = parameters
        logits = torch.relu(x @ u.T + a) @ v.T + b
        return torch.nn.functional.cross_entropy(logits.reshape(-1, n_classes), wanted.flatten())

    best, kept, at = np.inf, [p.detach().clone() for p in parameters], 0
    for epoch, parts in enumerate(batches):
        order = torch.randperm(len(z), generator=random)
        for part in parts:
            optimiser.zero_grad()
            loss_of(z[order[part]], train[order[part]]).backward()
            optimiser.step()
            schedule.step()
        with torch.no_grad():
            loss = float(loss_of(held, y[test]))
        if loss < best:
            best, kept, at = loss, [p.detach().clone() for p in parameters], epoch + 1
    if not at:
        raise DataError(
            f"The loss on validation rows was finite after none of {epochs} epochs: the fit diverges, take a smaller "
            f"learning_rate than {learning_rate:g}."
        )
    u, a, v, b = kept
    raw = u / std
    shape = (n_squares, n_classes)
    return MLPSquares(raw, a - raw @ mean, v.unflatten(0, shape), b.unflatten(0, shape), at)


@torch.no_grad()
def wrong_squares(probe: SquareLogits, rows: Float[Tensor, "row d"], labels: np.ndarray) -> np.ndarray:
    """bool [row, square]: where the probe's first choice is not the label."""
    return (probe(rows).argmax(-1) != torch.from_numpy(np.asarray(labels, dtype=np.int64))).numpy()


def _standard(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows = rows.float()
    mean, std = rows.mean(0), rows.std(0, correction=0)
    std = torch.where(std <= 1e-6 * mean.abs().clamp(min=1e-20), torch.ones(()), std)
    return (rows - mean) / std, mean, std


def _checked(rows: Tensor, labels: np.ndarray, validation: np.ndarray, n_classes: int) -> Tensor:
    labels = np.asarray(labels)
    if rows.ndim != 2 or labels.ndim != 2 or not len(rows) == len(labels) == len(validation):
        raise DataError(
            f"Expected [row, d] activations, [row, square] labels and one entry of `validation` per row; got shapes "
            f"{list(rows.shape)}, {list(labels.shape)} and {list(validation.shape)}."
        )
    bad = int((~torch.isfinite(rows).all(1)).sum())
    if bad:
        raise DataError(f"{bad} of {len(rows)} rows hold NaN or infinite values: leave them out.")
    if not np.issubdtype(labels.dtype, np.integer) and labels.dtype != bool:
        raise DataError(f"Labels are class numbers from 0, not {labels.dtype}.")
    if labels.min(initial=0) < 0 or labels.max(initial=0) >= n_classes:
        raise DataError(
            f"Labels go from {labels.min()} to {labels.max()}; with {n_classes} classes 0 to {n_classes - 1}."
        )
    if validation.dtype != bool or not 0 < validation.sum() < len(rows):
        raise DataError(
            "`validation` is a boolean mask with some rows to train on and some to choose the penalty on."
        )
    return torch.from_numpy(labels.astype(np.int64))
