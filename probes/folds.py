"""Folds that keep groups together, and the control: labels permuted within them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int64
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

from workbench.errors import DataError


def assign_folds(
    code: Bool[np.ndarray, " row"] | Int64[np.ndarray, " row"],
    groups: Int64[np.ndarray, " row"] | None,
    *,
    n: int,
    seed: int,
    names: Sequence[str] = (),
) -> Int64[np.ndarray, " row"]:
    """The fold in which each row is held out, 0 to n - 1: stratified by label, no group in two folds.

    Args:
        code: class of each row, numbers from 0 or booleans.
        groups: [row] numbers, or None.
        n: folds.
        seed: of the drawing.
        names: of the classes, for messages; "negative" and "positive" by default.

    Raises:
        DataError: a class has fewer rows (or occurs in fewer groups) than there are folds, or some training
            set would lack a class.
    """
    if n < 2:
        raise DataError(f"Cross-validation needs at least 2 folds, not {n}.")
    code = np.asarray(code).astype(np.int64)
    names = list(names) or ["negative", "positive"]
    _enough(code, groups, n, names)
    empty = np.zeros((len(code), 1))
    if groups is None:
        parts = StratifiedKFold(n, shuffle=True, random_state=seed).split(empty, code)
    else:
        parts = StratifiedGroupKFold(n, shuffle=True, random_state=seed).split(empty, code, groups)
    fold = _numbered(parts, len(code))
    _every_class_is_trained(code, fold, n, names)
    return fold


def shared_folds(
    codes: Sequence[Int64[np.ndarray, " row"]],
    groups: Int64[np.ndarray, " row"] | None,
    *,
    n: int,
    seed: int,
    names: Sequence[Sequence[str]],
) -> Int64[np.ndarray, " row"]:
    """One set of folds for several label sets, stratified by the combinations of their labels that are frequent.

    Combinations with fewer than `n` rows (or groups) are stratified as one class. Raises as `assign_folds`, naming
    the label set.
    """
    if len(codes) == 1:
        return assign_folds(codes[0], groups, n=n, seed=seed, names=names[0])
    if n < 2:
        raise DataError(f"Cross-validation needs at least 2 folds, not {n}.")
    for code, some in zip(codes, names, strict=True):
        _enough(code, groups, n, some)
    _, joint = np.unique(np.stack(codes), axis=1, return_inverse=True)
    joint = joint.reshape(-1)
    counts = np.bincount(joint)
    rare = counts[joint] < n
    joint = np.where(rare, joint.max() + 1, joint)
    empty = np.zeros((len(joint), 1))
    kept = np.unique(joint, return_counts=True)[1].min() >= n
    if groups is None:
        maker = StratifiedKFold if kept else KFold
        parts = maker(n, shuffle=True, random_state=seed).split(empty, joint)
    elif kept:
        parts = StratifiedGroupKFold(n, shuffle=True, random_state=seed).split(empty, joint, groups)
    else:
        parts = GroupKFold(n, shuffle=True, random_state=seed).split(empty, joint, groups)
    fold = _numbered(parts, len(joint))
    for code, some in zip(codes, names, strict=True):
        _every_class_is_trained(code, fold, n, some)
    return fold


def _enough(code: np.ndarray, groups: np.ndarray | None, n: int, names: Sequence[str]) -> None:
    of = "rows" if groups is None else "groups"
    for number in range(len(names)):
        members = code == number
        count = int(members.sum()) if groups is None else len(np.unique(groups[members]))
        if count < n:
            do = (
                f"use at most {count} folds, or give more prompts" if count > 1 else "give more prompts of it"
            )
            raise DataError(f"The {names[number]} class has {count} {of}, fewer than the {n} folds: {do}.")


def _numbered(parts, n_rows: int) -> np.ndarray:
    fold = np.full(n_rows, -1, dtype=np.int64)
    for index, (_, held_out) in enumerate(parts):
        fold[held_out] = index
    return fold


def _every_class_is_trained(code: np.ndarray, fold: np.ndarray, n: int, names: Sequence[str]) -> None:
    for index in range(n):
        left = np.bincount(code[fold != index], minlength=len(names))
        if (left == 0).any():
            lost = names[int(np.argmin(left))]
            raise DataError(
                f"Without fold {index} no row of the {lost} class is left: groups are too uneven for {n} folds."
            )


def permute_labels(
    code: Bool[np.ndarray, " row"] | Int64[np.ndarray, " row"],
    fold: Int64[np.ndarray, " row"],
    groups: Int64[np.ndarray, " row"] | None,
    *,
    n: int,
    seed: int,
) -> tuple[Bool[np.ndarray, "n row"] | Int64[np.ndarray, "n row"], str]:
    """`n` permutations of the labels within folds, and what was permuted: `"groups"` or `"rows"`.

    Whole groups are permuted where each group has one label (permuting rows would break up what belongs together,
    and give a control that is too easy to beat).
    """
    random = np.random.default_rng(seed)
    units, level = np.arange(len(code)), "rows"
    if groups is not None:
        _, first, member = np.unique(groups, return_index=True, return_inverse=True)
        if bool((code[first][member] == code).all()):
            units, level = groups, "groups"
    _, first, unit = np.unique(units, return_index=True, return_inverse=True)
    label, home = code[first], fold[first]
    permuted = np.empty((n, len(code)), dtype=code.dtype)
    for row in permuted:
        new = label.copy()
        for index in range(int(fold.max()) + 1):
            members = np.flatnonzero(home == index)
            new[members] = label[random.permutation(members)]
        row[:] = new[unit]
    return permuted, level
