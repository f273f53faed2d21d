"""What every kind of probe asks of its rows and labels: one clear error where they cannot be used.

scikit-learn expects a `ValueError` from `fit`, this project a `WorkbenchError`; `InputError` is both, so that a
pipeline, the command line and the dashboard each see what they know. What scikit-learn itself notices first
(a table of the wrong shape, another number of features than in `fit`, an estimator that is not fitted) keeps its own
message.
"""

from __future__ import annotations

import operator
from typing import Any, cast

import numpy as np
from jaxtyping import Float, Int64
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from workbench.errors import DataError


class InputError(DataError, ValueError):
    """Rows, labels or settings that a probe cannot use; also a `ValueError`, as scikit-learn's conventions ask."""


def plain(values: Any) -> Any:
    """A torch tensor as an array on the CPU (half precisions become float32, exactly); all else as it came."""
    if not hasattr(values, "detach"):
        return values
    tensor = values.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() and tensor.itemsize < 4 else tensor).numpy()


def checked_rows(
    estimator: Any, X: Any, *, reset: bool = False, at_least: int = 1, keep_float32: bool = False
) -> Float[np.ndarray, "row d"]:
    """[row, d] finite float64 rows (float32 stays as it is with `keep_float32`).

    Raises:
        InputError: NaN or infinite rows, with their number and the first.
        ValueError: scikit-learn's own: not a table, too few rows, another width than in `fit`.
    """
    dtype = [np.float64, np.float32] if keep_float32 else np.float64
    rows: Any = validate_data(
        estimator, plain(X), dtype=dtype, reset=reset, ensure_all_finite=False, ensure_min_samples=at_least
    )
    finite(rows)
    return rows


def labelled_rows(
    estimator: Any, X: Any, y: Any, *, classes: int | None = None, keep_float32: bool = False
) -> tuple[Float[np.ndarray, "row d"], np.ndarray, Int64[np.ndarray, " row"]]:
    """Rows, the sorted classes and each row's number among them.

    Args:
        estimator: what is being fitted; told its number of features.
        X: [row, d] activations.
        y: [row] labels of two classes or more.
        classes: how many there may be at most.
        keep_float32: see `checked_rows`.

    Raises:
        InputError: labels not matching the rows in number, one class only, too many classes, NaN rows.
    """
    X, y = plain(X), plain(y)
    same_number(X, y, "labels")
    dtype = [np.float64, np.float32] if keep_float32 else np.float64
    rules: Any = {"dtype": dtype, "ensure_all_finite": False, "ensure_min_samples": 2}
    rows, labels = checked_pair(estimator, X, y, **rules)
    check_classification_targets(labels)
    found, index = np.unique(labels, return_inverse=True)
    if len(found) < 2:
        raise InputError(
            f"Two classes are needed, but all {len(labels)} labels are of one class, "
            f"{found.tolist()[0]!r}: give rows of both."
        )
    if classes is not None and len(found) > classes:
        raise InputError(
            f"Only binary classification is supported. The labels hold {len(found)} classes: leave the rows of the "
            "others out, or use MultinomialProbe, LdaProbe or MlpProbe."
        )
    return rows, found, index.astype(np.int64)


def checked_pair(estimator: Any, X: Any, y: Any, **rules: Any) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's check of rows with labels or targets, and ours for NaN rows."""
    rows, labels = cast(tuple[np.ndarray, np.ndarray], validate_data(estimator, X, y, **rules))
    finite(rows)
    return rows, labels


def same_number(X: Any, y: Any, what: str) -> None:
    """`InputError` where there are not as many labels (or groups, targets) as rows."""
    rows, labels = _count(X), _count(y)
    if rows is not None and labels is not None and rows != labels:
        raise InputError(f"{labels} {what} for {rows} rows: give one for each.")


def _count(values: Any) -> int | None:
    """Number of rows, where it can be told without looking further (the rest is scikit-learn's to judge)."""
    shape = getattr(values, "shape", None)
    if shape is not None:
        return int(shape[0]) if len(shape) else None
    return len(values) if isinstance(values, (list, tuple)) else None


def no_gaps(labels: Any, what: str = "labels") -> None:
    """`InputError` where labels are None or NaN, which would count as a class."""
    values = np.asarray(labels)
    if values.dtype.kind not in "fcO":
        return
    missing = [i for i, v in enumerate(values.ravel().tolist()) if v is None or v != v]
    if missing:
        raise InputError(
            f"{len(missing)} of {values.size} {what} are None or NaN, the first at {missing[0]}: leave those rows out."
        )


def seed_of(random_state: Any) -> int:
    """A seed as a whole number; `InputError` for None and for generators, of which nothing could be repeated."""
    try:
        return operator.index(random_state)
    except TypeError:
        raise InputError(f"random_state is a whole number, the seed, not {random_state!r}.") from None


def finite(rows: np.ndarray, what: str = "") -> None:
    """`InputError` where rows hold NaN or infinite values."""
    if np.isfinite(rows.sum()):  # one pass; a sum that overflows is looked at again below
        return
    bad = np.flatnonzero(~np.isfinite(rows).all(1))
    of = f" of the {what}" if what else ""
    if len(bad):
        raise InputError(
            f"{len(bad)} of {len(rows)} rows{of} hold NaN or infinite values (inf), the first is row {bad[0]}: leave "
            "them out, or collect them again."
        )
