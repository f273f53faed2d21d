"""A probe with one hidden layer: what can be read when the reading need not be linear.

    z = (x − m) / s            hidden = relu(W₁ z + b₁)            scores = W₂ hidden + b₂
    p(class | x) = softmax(scores)            loss = mean cross-entropy

Trained by AdamW on mini-batches, with early stopping: part of the rows (whole groups, where groups are given) is held
out, and the weights of the epoch with the least loss there are kept. The held-out part has no say but that; scores on
it are not test scores.

An MLP reads more than the model need use. Beside a linear probe it shows whether a property is there in a form that is
not linear (Li et al. 2022, arXiv:2210.13382); its selectivity must be looked at with it (Hewitt and Liang 2019,
arXiv:1909.03368): a wide one learns shuffled labels, too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from torch.nn.functional import cross_entropy

from probes.estimators import Features
from probes.kinds.inputs import InputError, checked_rows, labelled_rows, plain, same_number, seed_of
from probes.kinds.linear import probabilities


class MlpProbe(ClassifierMixin, BaseEstimator):
    """One hidden layer, two classes or more.

    Args:
        width: hidden units. 64 is far more than a two-way interaction needs and, on the activations of a small model
            (d = 576, 37,000 weights), still small enough for a thousand rows; Othello's 64 squares at once used 512.
        learning_rate, weight_decay: of AdamW.
        batch_size: rows per step.
        max_epochs: most passes over the rows.
        patience: epochs without a lower held-out loss after which training stops.
        held_out: share of the rows held out for early stopping (nearest whole number of folds: 0.2 is one of 5).
        random_state: seed of the split, the first weights and the order of batches.

    Fitted attributes:
        classes_.
        state_: the weights as a torch `state_dict` (`hidden.weight` [width, d], `hidden.bias`, `out.weight` [class,
            width], `out.bias`), float64, over standardised rows; `mean_`, `std_` [d] of the training rows.
        n_iter_: epochs run; best_epoch_: the one whose weights are kept; loss_: its held-out loss in nats.
        n_held_out_: rows held out. 0 where the smallest class has fewer than two rows (groups): then training runs
            for `max_epochs` without early stopping, and `loss_` is that of the training rows.

    Raises (in `fit`):
        InputError: one class only, NaN rows, labels or groups that do not match the rows, settings out of range, or a
            loss that is not finite (learning_rate too large).

    Example:
        >>> MlpProbe(width=32).fit(acts, labels, groups=games).score(test_acts, test_labels)
    """

    def __init__(
        self,
        width=64,
        learning_rate=3e-3,
        weight_decay=1e-2,
        batch_size=64,
        max_epochs=200,
        patience=20,
        held_out=0.2,
        random_state=0,
    ) -> None:
        self.width, self.learning_rate, self.weight_decay = width, learning_rate, weight_decay
        self.batch_size, self.max_epochs, self.patience = batch_size, max_epochs, patience
        self.held_out, self.random_state = held_out, random_state

    def fit(self, X: Any, y: Any, groups: Any = None) -> MlpProbe:
        """Fit to [row, d] activations and [row] labels; a group is never on both sides of the inner split."""
        rows, self.classes_, index = labelled_rows(self, X, y)
        self._check_settings()
        codes = None
        if groups is not None:
            groups = plain(groups)
            same_number(rows, groups, "groups")
            codes = np.unique([str(g) for g in groups], return_inverse=True)[1]
        seed = seed_of(self.random_state)
        features = Features.of(rows)
        self.mean_, self.std_ = features.mean, features.std
        held = _held_out(index, codes, self.held_out, seed)
        self._train((rows - self.mean_) / self.std_, index, held, torch.Generator().manual_seed(seed))
        self.n_held_out_ = int(held.sum())
        return self

    @torch.inference_mode(False)  # within it nothing has gradients, whatever is enabled
    def _train(
        self, rows: np.ndarray, index: np.ndarray, held_out: np.ndarray, generator: torch.Generator
    ) -> None:
        z, label, held = (torch.from_numpy(values) for values in (rows, index, held_out))
        state = _first_weights(z.shape[1], int(self.width), len(self.classes_), generator)
        decayed = [state["hidden.weight"], state["out.weight"]]
        plain_terms = [state["hidden.bias"], state["out.bias"]]
        optimiser = torch.optim.AdamW(
            [{"params": decayed}, {"params": plain_terms, "weight_decay": 0.0}],
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
        )
        judge = held if bool(held.any()) else torch.ones_like(held)
        stopping = bool(held.any())
        train = torch.nonzero(~held)[:, 0]
        best, since, epoch = float("inf"), 0, 0
        for epoch in range(1, int(self.max_epochs) + 1):
            order = train[torch.randperm(len(train), generator=generator)]
            with torch.enable_grad():
                for chosen in order.split(int(self.batch_size)):
                    optimiser.zero_grad()
                    cross_entropy(_scores(state, z[chosen]), label[chosen]).backward()
                    optimiser.step()
            with torch.no_grad():
                loss = float(cross_entropy(_scores(state, z[judge]), label[judge]))
            since += 1
            if not stopping or loss < best:
                best, since, self.best_epoch_ = loss, 0, epoch
                self.state_ = {name: value.detach().clone() for name, value in state.items()}
            if since >= self.patience:
                break
        if not np.isfinite(best):
            raise InputError(
                f"Training diverged: the loss was not finite in any of {epoch} epochs. Use a learning_rate below "
                f"{self.learning_rate:g} (default 0.003)."
                if stopping
                else f"Training diverged: the loss is not finite after {epoch} epochs. Use a learning_rate below "
                f"{self.learning_rate:g} (default 0.003)."
            )
        self.n_iter_, self.loss_ = epoch, best

    def decision_function(self, X: Any) -> np.ndarray:
        """[row] log-odds of the second class, or [row, class] scores with more than two classes."""
        check_is_fitted(self)
        z = torch.from_numpy((checked_rows(self, X) - self.mean_) / self.std_)
        with torch.no_grad():
            scores = _scores(self.state_, z).numpy()
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> np.ndarray:
        """[row] most probable class."""
        decision = self.decision_function(X)
        return self.classes_[(decision > 0).astype(int) if decision.ndim == 1 else decision.argmax(1)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """[row, class] probabilities."""
        return probabilities(self.decision_function(X))

    def _check_settings(self) -> None:
        least = {"width": 1, "batch_size": 1, "max_epochs": 1, "patience": 1}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise InputError(f"{name} must be at least {smallest}, not {getattr(self, name)}.")
        if not (self.learning_rate > 0 and self.weight_decay >= 0 and 0 < self.held_out <= 0.5):
            given = f"{self.learning_rate}, {self.weight_decay} and {self.held_out}"
            raise InputError(
                "learning_rate must be above 0, weight_decay at least 0 and held_out above 0 and at most one half, "
                f"but they are {given}."
            )


def _first_weights(d: int, width: int, n_classes: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Uniform within ±1/√(number of inputs), as torch's own linear layers."""

    def uniform(inputs: int, *shape: int) -> Tensor:
        drawn = torch.rand(*shape, generator=generator, dtype=torch.float64)
        return ((2 * drawn - 1) / inputs**0.5).requires_grad_()

    return {
        "hidden.weight": uniform(d, width, d),
        "hidden.bias": uniform(d, width),
        "out.weight": uniform(width, n_classes, width),
        "out.bias": uniform(width, n_classes),
    }


def _scores(state: dict[str, Tensor], z: Tensor) -> Tensor:
    hidden = torch.relu(z @ state["hidden.weight"].T + state["hidden.bias"])
    return hidden @ state["out.weight"].T + state["out.bias"]


def _held_out(
    label: Int64[np.ndarray, " row"], groups: np.ndarray | None, share: float, seed: int
) -> np.ndarray:
    """[row] whether a row is held out; none where a class is in one row (group) only."""
    folds = max(2, round(1 / share))
    nothing: Float64[np.ndarray, "row one"] = np.zeros((len(label), 1))
    units = [
        len(np.unique(np.flatnonzero(label == k) if groups is None else groups[label == k]))
        for k in set(label)
    ]
    folds = min(folds, min(units))
    held = np.zeros(len(label), dtype=bool)
    if folds < 2:
        return held
    if groups is None:
        parts = StratifiedKFold(folds, shuffle=True, random_state=seed).split(nothing, label)
    else:
        parts = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(nothing, label, groups)
    for train, test in parts:
        if set(label[train]) == set(
            label
        ):  # uneven groups: a split whose training rows miss a class is no use
            held[test] = True
            break
    return held
