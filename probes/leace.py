"""LEACE: the smallest affine change after which no linear probe can read a label.

Let x be activations with mean μ and covariance Σ, z the label (one-hot for classes, a number otherwise) with
cross-covariance Σ_xz. Every linear predictor of z from r(x) is useless (its best loss is that of a constant, for
every convex loss) exactly if Cov(r(x), z) = 0. Among all affine r with that property

    r(x) = x − W⁺ P W (x − μ)        W = (Σ^½)⁺ whitens,  P projects orthogonally onto the columns of W Σ_xz

changes x least: it minimises E‖r(x) − x‖² in every norm ‖·‖_M at once. As two thin factors, with U an orthonormal
basis of the columns of W Σ_xz,

    r(x) = x − left (right (x − μ))      left = W⁺ U [d, rank],  right = Uᵀ W [rank, d],  right · left = 1

`rank` is at most the number of classes − 1 (of label columns, for numbers). Belrose et al. 2023, arXiv:2306.03819,
theorem 4.3. Everything is about the rows that were fitted: on other rows the label is unreadable as far as their
covariances agree, which `probes.erasure.erase_scores` measures.

Numerics: `fit` takes singular vectors of the centred rows, so that the condition number is not squared, and rows may
be fewer than dimensions (then r changes nothing outside their span). `from_moments` starts from streamed moments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg
import torch
from jaxtyping import Float64
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from workbench.errors import DataError

EPSILON = float(np.finfo(np.float64).eps)


class Leace(TransformerMixin, BaseEstimator):
    """Least-squares concept erasure, a scikit-learn transformer.

    Args:
        target: `"classes"` (one-hot), `"values"` (numbers, [row] or [row, k], as they are) or `"auto"`: classes
            where labels are texts, booleans or whole numbers, values where they are fractions or a matrix.
        tol: singular values of the centred rows below `tol` times the largest count as zero. By default
            max(rows, dimensions) · 2.2e-16; `from_moments` takes √(dimensions · 2.2e-16), since squares were added.

    Fitted attributes: `mean_` [d], `proj_left_` [d, rank], `proj_right_` [rank, d], `rank_`, `classes_` (None for
    values). float64. Bad input is a `ValueError`, as in scikit-learn.

    Example:
        >>> eraser = Leace().fit(rows, labels)
        >>> LogisticRegression().fit(eraser.transform(rows), labels).coef_     # zeros
        >>> with model.edit({"blocks.14.hook_resid_post": eraser.edit()}):
        ...     model.logits("The capital of France is")
    """

    def __init__(self, target="auto", tol=None) -> None:
        self.target, self.tol = target, tol

    def fit(self, X: Any, y: Any) -> Leace:
        """Fit to [row, d] activations (numpy or torch) and [row] labels, or [row, k] numbers."""
        found: Any = validate_data(
            self, as_numpy(X), as_numpy(y), dtype=np.float64, multi_output=True, ensure_min_samples=2
        )
        rows, y = found
        z = self._columns(y)
        if not (np.abs(z - z[0]) > 0).any():
            raise ValueError(
                f"Nothing to erase: all {len(z)} labels are the same, so there is only one class."
            )
        self.mean_ = rows.mean(0)
        left, size, right = np.linalg.svd(rows - self.mean_, full_matrices=False)
        tol = max(rows.shape) * EPSILON if self.tol is None else self.tol
        kept = size > tol * size[0]
        sd = size[kept] / np.sqrt(len(rows))
        whitened = left[:, kept].T @ (z - z.mean(0)) / np.sqrt(len(rows))
        return self._solve(right[kept].T, sd, whitened, np.sqrt((z - z.mean(0)) ** 2).mean())

    @classmethod
    def from_moments(cls, mean: Any, cov: Any, cross_cov: Any, *, tol: float | None = None) -> Leace:
        """The eraser of rows that were only seen in passing.

        Args:
            mean: [d] mean of the activations.
            cov: [d, d] their covariance, with any divisor.
            cross_cov: [d, k] (or [d]) covariance with the label columns, with the same divisor.
            tol: as of the class.

        Raises:
            DataError: shapes that do not fit, values that are not finite, or a covariance that is not symmetric.
        """
        mean, cov, cross = (np.asarray(as_numpy(a), dtype=np.float64) for a in (mean, cov, cross_cov))
        cross = cross[:, None] if cross.ndim == 1 else cross
        d = len(mean)
        if mean.ndim != 1 or cov.shape != (d, d) or cross.shape[:1] != (d,) or cross.ndim != 2:
            raise DataError(
                f"Moments of shapes {mean.shape}, {cov.shape}, {cross.shape}: expected [d], [d, d] and [d, k]."
            )
        if not all(np.isfinite(a).all() for a in (mean, cov, cross)):
            raise DataError("The moments hold NaN or infinite values: collect the activations again.")
        if np.abs(cov - cov.T).max() > 1e-8 * max(np.abs(cov).max(), 1e-300):
            raise DataError("The covariance is not symmetric: give Σ (x − μ)(x − μ)ᵀ / n.")
        variance, vectors = scipy.linalg.eigh((cov + cov.T) / 2)
        self = cls(target="values", tol=tol)
        share = np.sqrt(d * EPSILON) if tol is None else tol
        kept = variance > share**2 * variance[-1]
        sd = np.sqrt(variance[kept])
        self.mean_, self.classes_ = mean, None
        vars(self)["n_features_in_"] = d
        whitened = (vectors[:, kept] / sd).T @ cross
        return self._solve(vectors[:, kept], sd, whitened, np.abs(whitened).max(initial=0))

    def _columns(self, y: np.ndarray) -> Float64[np.ndarray, "row k"]:
        if self.target not in ("auto", "classes", "values"):
            raise ValueError(f"target is 'auto', 'classes' or 'values', not {self.target!r}.")
        kind = type_of_target(y)
        values = kind not in ("binary", "multiclass") if self.target == "auto" else self.target == "values"
        self.classes_ = None
        if values:
            z = np.asarray(y, dtype=np.float64)
            if not np.isfinite(z).all():
                raise ValueError("The labels hold NaN or infinite values.")
            return z[:, None] if z.ndim == 1 else z
        if y.ndim > 1:
            raise ValueError(f"Class labels are one per row; these have shape {y.shape}.")
        self.classes_, codes = np.unique(y, return_inverse=True)
        return np.eye(len(self.classes_))[codes]

    def _solve(
        self,
        vectors: Float64[np.ndarray, "d r"],
        sd: Float64[np.ndarray, " r"],
        whitened: Float64[np.ndarray, "r k"],
        scale: Any,
    ) -> Leace:
        """Factors from Σ = V diag(sd²) Vᵀ and W Σ_xz in the basis V; `scale` is that of the labels."""
        basis, strength, _ = np.linalg.svd(whitened, full_matrices=False)
        basis = basis[:, strength > len(sd) * 8 * EPSILON * max(float(scale), float(strength[:1].sum()))]
        self.proj_left_ = (vectors * sd) @ basis
        self.proj_right_ = (basis / sd[:, None]).T @ vectors.T
        self.rank_ = basis.shape[1]
        return self

    def transform(self, X: Any) -> Any:
        """[row, d] with the label erased; torch in, torch out (same dtype and device), else float64 numpy."""
        check_is_fitted(self, "proj_left_")
        if isinstance(X, Tensor):
            return self.edit()(X)
        rows = validate_data(self, X, dtype=np.float64, reset=False)
        return rows - (rows - self.mean_) @ self.proj_right_.T @ self.proj_left_.T

    def edit(self) -> Callable[[Tensor], Tensor]:
        """A function [..., d] -> [..., d] for `model.edit({site: ...})`, of every position.

        It computes in float32 at least, and gives the dtype that came in. Sites with heads ([..., head, d_head]) may
        be given to an eraser that was fitted to flattened rows.
        """
        check_is_fitted(self, "proj_left_")
        parts = [
            torch.from_numpy(np.ascontiguousarray(p)) for p in (self.mean_, self.proj_left_, self.proj_right_)
        ]

        def erase(activation: Tensor) -> Tensor:
            d, shape = len(parts[0]), activation.shape
            flat = (
                activation if shape[-1:] == (d,) else activation.flatten(-2) if len(shape) > 1 else activation
            )
            if flat.shape[-1:] != (d,):
                raise DataError(
                    f"Activations of shape {list(shape)} do not fit this eraser, which was fitted to {d} dimensions."
                )
            dtype = torch.promote_types(activation.dtype, torch.float32)
            mean, left, right = (p.to(activation.device, dtype) for p in parts)
            x = flat.to(dtype)
            return (x - (x - mean) @ right.T @ left.T).to(activation.dtype).reshape(shape)

        return erase

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags


def as_numpy(values: Any) -> Any:
    """A torch tensor as numpy (floats as float64); anything else as it is."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.double() if values.is_floating_point() else values).numpy()
    return values
