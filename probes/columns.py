"""Each kind of probe, fitted to all label columns of one training set at once.

A column is one label vector: true, or permuted for the control. What a kind gives for all of them is a `Fitted`: the
scores of other rows as log-odds, and the weights of any one column over raw activations. The definitions of the kinds
are in `probes.estimators`; here they are the same probes in the eigenbasis of the rows (`probes.solve`), where many
columns cost little more than one. An estimator of scikit-learn's conventions is taken too, and fitted column by column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from probes.estimator_fits import CHECKED_ROWS, classifier, fit_one, log_odds, weights_of
from probes.estimators import KINDS, MIN_VARIANCE, Weights
from probes.solve.cross import cross_logistic
from probes.solve.newton import TOLERANCE
from probes.solve.ridge import platt, ridge
from probes.solve.spectrum import Spectrum
from workbench.errors import DataError, did_you_mean


class Train:
    """The training rows of one fold, and their spectrum once somebody asks for it."""

    def __init__(self, x: Float[Tensor, "row d"], groups: Int64[np.ndarray, " row"] | None = None) -> None:
        self.x, self.groups = x, groups

    @cached_property
    def spectrum(self) -> Spectrum:
        """Of the standardised rows, float64."""
        return Spectrum.of(self.x)


@dataclass(frozen=True, eq=False)
class Fitted:
    """All columns of one kind on one training set.

    Attributes:
        scores: [row, d] raw rows -> [penalty, target, row, class] log-odds (one class column for two classes).
        weights: (penalty index, target index, class index) -> weights over raw activations; None where the kind
            has no such vector.
        penalty: [penalty, target] C (inverse strength) that was used; NaN where there is none.
        gradient_norm: [penalty, target] of the mean objective; 0 for a closed form.
        converged: [penalty, target].
    """

    scores: Callable[[Tensor], Tensor]
    weights: Callable[[int, int, int], Weights | None]
    penalty: Float[Tensor, "penalty target"]
    gradient_norm: Float[Tensor, "penalty target"]
    converged: Bool[Tensor, "penalty target"]


class Columns:
    """A kind of probe. `max_classes` is 2 where it knows two classes only."""

    max_classes: int | None = 2

    def fit(self, train: Train, code: Int[Tensor, "target row"], n_classes: int) -> Fitted:
        """Fit every label vector."""
        raise NotImplementedError


def _closed(scores: Callable, weights: Callable, n_targets: int, penalty: Tensor | None = None) -> Fitted:
    zero = torch.zeros(1, n_targets, dtype=torch.float64)
    used = torch.full_like(zero, torch.nan) if penalty is None else penalty[None].cpu()
    return Fitted(scores, weights, used, zero, torch.ones(1, n_targets, dtype=torch.bool))


def _linear(coef: Tensor, intercept: Tensor) -> tuple[Callable, Callable]:
    """Scores and weights of [target, d] coefficients over raw activations."""

    def scores(x: Tensor) -> Tensor:
        return (x @ coef.T + intercept).T[None, :, :, None]

    def weights(_: int, target: int, __: int) -> Weights:
        return Weights(coef[target].cpu().numpy(), float(intercept[target]))

    return scores, weights


@dataclass(frozen=True)
class LogisticColumns(Columns):
    """`probes.solve.cross`: all folds and penalties in one batch, two classes or softmax."""

    penalties: tuple[float, ...]
    tolerance: float = TOLERANCE
    max_classes = None

    def cross(
        self,
        x: Float[Tensor, "row d"],
        code: Int[Tensor, "target row"],
        n_classes: int,
        fold: Int[Tensor, " row"],
        between: Callable[[], None],
    ) -> tuple[Tensor, Fitted]:
        """[penalty, target, row, class] out-of-fold scores, and the fits to all rows (their norm is over all fits)."""
        found = cross_logistic(
            x, code, n_classes, fold, self.penalties, tolerance=self.tolerance, between=between
        )

        def weights(p: int, t: int, c: int) -> Weights:
            w, b = found.spectrum.weights(found.u[p, :, t, c : c + 1], found.intercept[p, t, c : c + 1])
            return Weights(w[:, 0].cpu().numpy(), float(b), converged=bool(found.converged[p, t]))

        def scores(other: Tensor) -> Tensor:
            placed = found.spectrum.place(other)
            return torch.einsum("nr,prtc->ptnc", placed, found.u) + found.intercept[:, :, None]

        used = torch.tensor(self.penalties, dtype=torch.float64)[:, None].expand(-1, len(code))
        return found.out, Fitted(scores, weights, used, found.gradient_norm.cpu(), found.converged.cpu())


@dataclass(frozen=True)
class RidgeColumns(Columns):
    """Ridge regression of ±1; the penalty by exact leave-one-out, and log-odds from the left-out predictions."""

    penalties: tuple[float, ...]

    def fit(self, train: Train, code: Int[Tensor, "target row"], n_classes: int) -> Fitted:  # noqa: ARG002
        positive = code == 1
        found = ridge(train.spectrum, positive.double() * 2 - 1, [1 / c for c in self.penalties])
        slope, shift = platt(found.left_out, positive)
        w, b = train.spectrum.weights(found.u * slope, found.intercept * slope + shift)
        return _closed(*_linear(w.T, b), len(code), 1 / found.penalty)


@dataclass(frozen=True)
class MassMeanColumns(Columns):
    """Difference of class means (`probes.estimators.MassMeanProbe`)."""

    def fit(self, train: Train, code: Int[Tensor, "target row"], n_classes: int) -> Fitted:  # noqa: ARG002
        x, up = train.x, (code == 1).double()
        n, n_up = up.shape[1], up.sum(1)
        upper = (up @ x) / n_up[:, None]
        lower = ((1 - up) @ x) / (n - n_up)[:, None]
        theta = upper - lower
        along = theta @ x.T
        residual = along - torch.where(
            up > 0, (theta * upper).sum(1)[:, None], (theta * lower).sum(1)[:, None]
        )
        distance = theta.square().sum(1)
        variance = torch.maximum(residual.square().mean(1), MIN_VARIANCE * distance.square())
        ratio = torch.where(distance > 0, distance / variance.clamp_min(1e-300), torch.ones_like(distance))
        coef = theta * ratio[:, None]
        intercept = (n_up / (n - n_up)).log() - (coef * (upper + lower)).sum(1) / 2
        return _closed(*_linear(coef, intercept), len(code))


@dataclass(frozen=True)
class WhitenedColumns(Columns):
    """Mass-mean through the shrunk within-class covariance (`probes.estimators.WhitenedMassMeanProbe`).

    In the eigenbasis the within-class scatter is diag(e) - c δδᵀ, δ the difference of class means and
    c = n₁ n₀ / n, so its inverse is a division and one inner product.
    """

    def fit(self, train: Train, code: Int[Tensor, "target row"], n_classes: int) -> Fitted:  # noqa: ARG002
        spectrum, d = train.spectrum, train.x.shape[1]
        rows, e, up = spectrum.rows, spectrum.eigenvalues, (code == 1).double()
        n, n_up = up.shape[1], up.sum(1)
        upper, lower = (up @ rows) / n_up[:, None], ((1 - up) @ rows) / (n - n_up)[:, None]
        delta, c = upper - lower, n_up * (n - n_up) / n
        distance = delta.square().sum(1)
        own = torch.where(up > 0, (rows @ upper.T).T, (rows @ lower.T).T)
        size = torch.where(up > 0, upper.square().sum(1)[:, None], lower.square().sum(1)[:, None])
        length = rows.square().sum(1)[None] - 2 * own + size
        trace = (e.sum() - c * distance) / n
        squared = (e.square().sum() - 2 * c * (delta.square() @ e) + c**2 * distance**2) / n**2
        far = squared - trace.square() / d
        spread = length.square().mean(1) - squared
        share = torch.where(far > 0, (spread / n / far.clamp_min(1e-300)).clamp(0, 1), torch.ones_like(far))
        floor = torch.maximum(share * trace / d, MIN_VARIANCE * distance).clamp_min(1e-300)
        q = ((1 - share) / n)[:, None] * e + floor[:, None]
        solved = delta / q
        solved = solved / (1 - (1 - share) / n * c * (delta * solved).sum(1)).clamp_min(1e-12)[:, None]
        intercept = (n_up / (n - n_up)).log() - (solved * (upper + lower)).sum(1) / 2
        w, b = spectrum.weights(solved.T, intercept)
        return _closed(*_linear(w.T, b), len(code))


@dataclass(frozen=True, eq=False)
class EstimatorColumns(Columns):
    """Any estimator with scikit-learn's conventions, fitted to one column after the other on the CPU.

    Groups go to a `fit` that takes `groups`. Weights are those of `coef_` where they give the estimator's scores
    (the `coef_` of a support vector machine has a row for every *pair* of classes, which is none).
    """

    estimator: Any
    max_classes = None

    def fit(self, train: Train, code: Int[Tensor, "target row"], n_classes: int) -> Fitted:
        from sklearn.base import clone

        x = train.x.cpu().numpy()
        if bool((x == x[0]).all()):
            return self._of_constant(code, n_classes, x.shape[1])
        fits: list[Any] = []
        for labels in code.cpu().numpy():
            fits.append(fit_one(clone(self.estimator), x, labels, train.groups))
        trained = {
            target: coef
            for target, fit in enumerate(fits)
            if (coef := weights_of(fit, x[:CHECKED_ROWS], n_classes)) is not None
        }

        def scores(other: Tensor) -> Tensor:
            rows = other.cpu().numpy()
            every = np.stack([log_odds(fit, rows, n_classes) for fit in fits])
            return torch.from_numpy(every)[None].to(other.device)

        def weights(_: int, target: int, cls: int) -> Weights | None:
            if target not in trained:
                return None
            coef, intercept = trained[target]
            return Weights(coef[cls], float(intercept[cls]))

        return _closed(scores, weights, len(code))

    def _of_constant(self, code: Int[Tensor, "target row"], n_classes: int, d: int) -> Fitted:
        """Where all rows are the same there is nothing but how frequent the classes are: that is the score."""
        share = torch.stack([(code == c).double().mean(1) for c in range(n_classes)], dim=1).log()
        constant = share[:, 1:] - share[:, :1] if n_classes == 2 else share  # [target, class]
        has_weight = "mlp" not in type(self.estimator).__name__.lower()

        def scores(other: Tensor) -> Tensor:
            return constant.to(other.device)[None, :, None].expand(1, len(code), len(other), -1)

        def weights(_: int, target: int, cls: int) -> Weights | None:
            return Weights(np.zeros(d), float(constant[target, cls])) if has_weight else None

        return _closed(scores, weights, len(code))


FURTHER = {
    "lda": "probes.kinds.lda:LdaProbe",
    "mlp": "probes.kinds.mlp:MlpProbe",
    "pca": "probes.kinds.unsupervised:PcaProbe",
    "kmeans": "probes.kinds.unsupervised:KMeansProbe",
}
"""Kinds that are fitted column by column, and where they are."""


def make_columns(kinds: Any, penalties: Iterable[float], tolerance: float = TOLERANCE) -> dict[str, Columns]:
    """Kind -> columns, in the order asked for: names, or a mapping from names to estimators (or to None).

    Raises:
        DataError: an unknown kind (the nearest are named), or none.
    """
    path = tuple(float(p) for p in penalties)
    if not path or not all(np.isfinite(p) and p > 0 for p in path):
        raise DataError(f"A penalty is a number above 0 (scikit-learn's C), or several, not {list(path)}.")
    fast = {
        "logistic": LogisticColumns(path, tolerance),
        "ridge": RidgeColumns(path),
        "mass_mean": MassMeanColumns(),
        "mass_mean_whitened": WhitenedColumns(),
    }
    assert set(KINDS) <= set(fast)
    given = (
        kinds if isinstance(kinds, Mapping) else dict.fromkeys([kinds] if isinstance(kinds, str) else kinds)
    )
    names = [*fast, *FURTHER]
    found: dict[str, Columns] = {}
    for name, estimator in given.items():
        if estimator is not None:
            found[name] = EstimatorColumns(classifier(str(name), estimator))
        elif name in fast:
            found[name] = fast[name]
        elif name in FURTHER:
            from importlib import import_module

            module, attribute = FURTHER[name].split(":")
            found[name] = EstimatorColumns(getattr(import_module(module), attribute)())
        else:
            hint = did_you_mean(str(name), names)
            raise DataError(f"There is no probe of kind {name!r}; the kinds are {', '.join(names)}.{hint}")
    if not found:
        raise DataError(f"No kind of probe was asked for; the kinds are {', '.join(names)}.")
    return found
