"""Folds that keep groups together, and the control: labels permuted within them."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

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
            set would lack a class; folds or seed are no whole numbers.
    """
    n, seed = whole_number(n, "folds", 0), whole_number(seed, "seed", 0)
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
    n, seed = whole_number(n, "folds", 0), whole_number(seed, "seed", 0)
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
    """`n` permutations of the labels within folds, and over what they go.

    What is exchangeable under the null is permuted, as in `probes.trust.control_tasks.exchange`: of each fold the
    groups of one label among each other, as wholes; the rows of a group of several labels within this group. (Permuting
    rows over groups would break up what belongs together, and give a control that is too easy to beat.) Where that
    would leave all rows of a third class as they are ("neither" in groups of its own, the others mixed), rows are
    permuted.

    Returns:
        The label vectors, and `"rows"` (no groups), `"groups"`, `"rows within groups"` (every group has several
        labels), or `"groups (3 mixed groups within themselves)"`.

    Raises:
        DataError: nothing can be permuted, as in every fold all groups have one and the same label.
    """
    random = np.random.default_rng(seed)
    code = np.asarray(code)
    unit, pool, level = np.arange(len(code)), np.asarray(fold), "rows"
    if groups is not None:
        _, member = np.unique(groups, return_inverse=True)
        low, high = np.full(member.max() + 1, code.max()), np.zeros(member.max() + 1, dtype=code.dtype)
        np.minimum.at(low, member, code)
        np.maximum.at(high, member, code)
        mixed = (low != high)[member]
        unit = np.where(mixed, member.max() + 1 + unit, member)
        pool = np.where(mixed, pool.max() + 1 + member, pool)
        n_mixed = int((low != high).sum())
        within = (
            f" ({n_mixed} mixed group{'s' if n_mixed > 1 else ''} within {'them' if n_mixed > 1 else 'it'}"
        )
        within += "selves)" if n_mixed > 1 else "self)"
        level = "rows within groups" if mixed.all() else "groups" + (within if n_mixed else "")
    _, first, unit = np.unique(unit, return_index=True, return_inverse=True)
    label, home = code[first], pool[first]
    pools = [np.flatnonzero(home == index) for index in np.unique(home)]
    moved = {c for members in pools if len(some := np.unique(label[members])) > 1 for c in some.tolist()}
    if moved and len(moved) < len(np.unique(code)):
        return permute_labels(code, fold, None, n=n, seed=seed)
    if n and not any(len(np.unique(label[members])) > 1 for members in pools):
        raise DataError(
            "No label can be permuted: within every fold all groups have the same label. Use fewer folds, smaller "
            "groups, or more data; or controls=False."
        )
    permuted = np.empty((n, len(code)), dtype=code.dtype)
    for row in permuted:
        new = label.copy()
        for members in pools:
            new[members] = label[random.permutation(members)]
        row[:] = new[unit]
    return permuted, level


def whole_number(value: Any, what: str, least: int) -> int:
    """An integer (5.0 counts as one) of at least `least`; else a `DataError` that names the argument."""
    try:
        found = operator.index(value)
    except TypeError:
        is_whole = isinstance(value, float | np.floating) and float(value).is_integer()
        found = int(value) if is_whole else None
    if found is None or isinstance(value, bool) or found < least:
        raise DataError(f"{what} must be at least {least} and a whole number, but is {value!r}.")
    return found
