"""Control tasks: labels that mean nothing, to be probed beside those that do.

    shuffle          the labels themselves, permuted as far as their groups and folds leave them exchangeable
    random token     y(v) drawn at random once for every *type* v (a token, a word, a name); a row gets y of its type
    selectivity      accuracy on the task − accuracy on the control task

The second is the control task of Hewitt and Liang 2019 (arXiv:1909.03368, §2): it can be solved by nothing but
remembering which type got which label, so its accuracy says how much a probe can memorise, and a probe is to be
trusted as far as it is selective. Hence its folds must *not* keep types together: a type that is held out
altogether has a label that nothing could predict. Rows whose type occurs once cannot be remembered either;
`TypeTask.repeated` says how many can. `type_folds` deals the rows of every type out over the folds, and a draw that
leaves a training set without one of the labels (its types are rare) is drawn again.

Shuffling: rows of a group whose rows have different labels are permuted within the group; groups of one label swap
their labels with other such groups of the same fold. Both leave the number of positives of every mixed group as it is,
and what is permuted is what the null hypothesis says to be exchangeable.

What differs from the paper: labels are two and stand for equal numbers of types (theirs follow the empirical
distribution of the task's labels), so that the control's chance level is one half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.special import gammaln

from probes.trust.fitting import Scorer, interval
from workbench.errors import DataError

MOST_DRAWS = 200
"""Draws of random labels for types until both labels are in every training set."""


@dataclass(frozen=True, eq=False)
class Exchange:
    """What may be permuted: mixed groups inside themselves, groups of one label among each other.

    Attributes:
        pools: each is a list of units (arrays of rows) that exchange their labels; a unit has one label.
        level: `rows` (no groups), `groups`, `rows within groups`, both of these joined by "and", or `nothing`.
        log_count: natural logarithm of the number of different label vectors.
    """

    pools: list[list[np.ndarray]]
    level: str
    log_count: float


def exchange(
    positive: Bool[np.ndarray, " row"],
    fold: Int64[np.ndarray, " row"] | None = None,
    groups: Int64[np.ndarray, " row"] | None = None,
) -> Exchange:
    """The pools within which labels are exchangeable (see the module); `fold` None is one fold."""
    n = len(positive)
    fold = np.zeros(n, dtype=np.int64) if fold is None else fold
    unit = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    order = np.argsort(unit, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(unit[order])) + 1)
    mixed = [m for m in members if 0 < positive[m].sum() < len(m)]
    pure = [m for m in members if not 0 < positive[m].sum() < len(m)]
    straddling = [m for m in members if len(np.unique(fold[m])) > 1]
    if straddling:
        raise DataError(
            f"{len(straddling)} groups stand in more than one fold: a group is held out as a whole."
        )
    inside = [[m[i : i + 1] for i in range(len(m))] for m in mixed]
    among = [[m for m in pure if fold[m[0]] == index] for index in np.unique(fold)]
    among = [pool for pool in among if len({bool(positive[unit[0]]) for unit in pool}) == 2]
    pools = inside + among
    count = 0.0
    for pool in pools:
        up = sum(int(positive[u[0]]) for u in pool)
        count += float(gammaln(len(pool) + 1) - gammaln(up + 1) - gammaln(len(pool) - up + 1))
    words = ["rows within groups"] * bool(inside) + ["groups"] * bool(among)
    level = "rows" if groups is None else " and ".join(words) or "nothing"
    return Exchange(pools, level, count)


def shuffled_labels(
    positive: Bool[np.ndarray, " row"],
    fold: Int64[np.ndarray, " row"] | None = None,
    groups: Int64[np.ndarray, " row"] | None = None,
    *,
    n: int = 1,
    seed: int = 0,
) -> Bool[np.ndarray, "n row"]:
    """`n` random permutations of the labels, within folds and as groups allow.

    Args:
        positive: labels.
        fold: in which rows are held out; permuting stays inside (None: one fold).
        groups: numbers from 0; None: every row by itself.
        n, seed: how many, and of the permutations.

    Raises:
        DataError: nothing can be permuted (every fold's groups have one label), or a group stands in two folds.

    Example:
        >>> shuffled_labels(np.array([True, True, False, False]), n=3).sum(1)
        array([2, 2, 2])
    """
    if n < 1:
        raise DataError(f"At least one permutation is needed, not {n}.")
    found = exchange(positive, fold, groups)
    if not found.pools:
        raise DataError(
            "No label can be permuted: within every fold all groups have the same label. Use fewer folds, smaller "
            "groups, or more data."
        )
    random = np.random.default_rng(seed)
    out = np.repeat(positive[None], n, axis=0)
    for pool in found.pools:
        label = np.array([positive[unit[0]] for unit in pool])
        drawn = random.permuted(np.repeat(label[None], n, axis=0), axis=1)
        which = np.repeat(np.arange(len(pool)), [len(unit) for unit in pool])
        out[:, np.concatenate(pool)] = drawn[:, which]
    return out


@dataclass(frozen=True, eq=False)
class TypeTask:
    """Random labels by type.

    Attributes:
        labels: [n, row] label vectors, one for each draw.
        type_of: [row] number of the type.
        n_types: how many types there are.
        repeated: share of the rows whose type occurs in another row, too: those that can be remembered.
    """

    labels: Bool[np.ndarray, "n row"]
    type_of: Int64[np.ndarray, " row"]
    n_types: int
    repeated: float


def type_folds(types: Sequence[Any] | np.ndarray, *, n: int = 5, seed: int = 0) -> Int64[np.ndarray, " row"]:
    """[row] fold in which it is held out, 0 to n − 1: the rows of each type are dealt out one fold after the other.

    Example:
        >>> type_folds(["a", "a", "b", "b"], n=2)
        array([0, 1, 0, 1])
    """
    type_of = np.unique(_names(types), return_inverse=True)[1]
    mixed = np.random.default_rng(seed).permutation(len(type_of))
    fold = np.empty(len(type_of), dtype=np.int64)
    fold[mixed[np.argsort(type_of[mixed], kind="stable")]] = np.arange(len(type_of)) % n
    return fold


def random_token_labels(
    types: Sequence[Any] | np.ndarray,
    *,
    n: int = 1,
    seed: int = 0,
    fold: Int64[np.ndarray, " row"] | None = None,
) -> TypeTask:
    """Hewitt and Liang's control task: every type gets a random label, all its rows the same one.

    Args:
        types: [row] what labels are fixed for: token ids (`acts.token_id`), words, names.
        n, seed: draws, and of the drawing. Half of the types (rounded down) are positive in each.
        fold: in which rows are held out (`type_folds`); then both labels are in every training set of every draw, and
            some fold holds both.

    Raises:
        DataError: fewer than two types, or all types but one so rare that no draw has both labels in every training
            set.

    Example:
        >>> random_token_labels(["a", "b", "a", "c"]).labels.shape
        (1, 4)
    """
    given = _names(types)
    names, type_of = np.unique(given, return_inverse=True) if given else ([], np.array([]))
    if len(names) < 2:
        raise DataError(
            f"A control task needs at least two types, but all {len(given)} rows have the same one "
            f"({str(names[0]) if len(names) else 'no rows'!r}): give `types` that differ, such as the name each "
            "prompt is about."
        )
    if n < 1:
        raise DataError(f"At least one control task is needed, not {n}.")
    half = np.arange(len(names)) < len(names) // 2
    random = np.random.default_rng(seed)
    drawn = random.permuted(np.repeat(half[None], n, axis=0), axis=1)
    counts = np.bincount(type_of)
    for row in drawn:
        tries = 0
        while fold is not None and not _can_be_scored(row[type_of], fold):
            if tries == MOST_DRAWS:
                raise DataError(
                    f"Of {len(names)} token types all but the most frequent ({str(names[int(counts.argmax())])!r}, "
                    f"{counts.max()} of {len(given)} rows) are so rare that random labels of types leave a training "
                    "set with one label only: give `types` that occur more evenly, such as the name a prompt is about."
                )
            row[:], tries = random.permutation(half), tries + 1
    return TypeTask(drawn[:, type_of], type_of, len(names), float((counts[type_of] > 1).mean()))


def _names(types: Sequence[Any] | np.ndarray) -> list[str]:
    return [str(value) for value in (types.tolist() if isinstance(types, np.ndarray) else types)]


def _can_be_scored(label: Bool[np.ndarray, " row"], fold: Int64[np.ndarray, " row"]) -> bool:
    """Whether both labels are in the training rows of every fold, and both in the rows of some fold."""
    up, rows = np.bincount(fold, label), np.bincount(fold)
    down = rows - up
    trained = ((up.sum() - up > 0) & (down.sum() - down > 0))[rows > 0].all()
    return bool(trained and ((up > 0) & (down > 0)).any())


def last_varying_tokens(ids: Sequence[Sequence[int]], *, least: int = 1) -> np.ndarray:
    """[prompt] the token nearest to the end at which prompts differ: the types of the rows at the last position.

    The last token itself is often the same everywhere (a full stop), and then no label could be fixed by it. Nor can it
    where few prompts end in another one: a column counts only if at least `least` prompts have another token than its
    most frequent one. Where there is no such column it is the one that comes closest.

    Raises:
        DataError: the prompts do not differ anywhere before the shortest one begins.

    Example:
        >>> last_varying_tokens([[5, 7, 9], [5, 8, 9]])
        array([7, 8])
    """
    shortest = min((len(row) for row in ids), default=0)
    best, most = None, 0
    for back in range(1, shortest + 1):
        column = np.array([row[-back] for row in ids])
        others = len(column) - int(np.unique(column, return_counts=True)[1].max())
        if others > most:
            best, most = column, others
        if others >= least and others > 0:
            return column
    if best is not None:
        return best
    raise DataError("The prompts do not differ in any token counted from their ends: give `types` yourself.")


def random_positions(lengths: Sequence[int], *, exclude: int = -1, seed: int = 0) -> list[list[int]]:
    """For each prompt one random position other than `exclude` (negative counts from the end), for `wb.collect`.

    The same labels read off a random token of the same prompt: how much of a score is the place that was chosen.

    Raises:
        DataError: a prompt has one token only.
    """
    random, chosen = np.random.default_rng(seed), []
    for number, length in enumerate(lengths):
        others = [p for p in range(length) if p != exclude % length]
        if not others:
            raise DataError(f"Prompt {number} has one token: there is no other position to read.")
        chosen.append([int(random.choice(others))])
    return chosen


def selectivity(
    scores: Float64[np.ndarray, " row"],
    positive: Bool[np.ndarray, " row"],
    control_scores: Float64[np.ndarray, "n row"],
    control_labels: Bool[np.ndarray, "n row"],
    scorer: Scorer,
) -> tuple[float, float, float]:
    """Accuracy minus the mean accuracy on the control tasks, and its 95 % interval over the same draws of groups.

    Example:
        >>> selectivity(scores, labels, scores[None], labels[None], Scorer(fold))
        (0.0, 0.0, 0.0)
    """
    both = list(zip(control_scores, control_labels, strict=True))
    chance = float(np.mean([scorer.accuracy(s, y) for s, y in both]))
    draws = scorer.accuracy_draws(scores, positive) - np.mean(
        [scorer.accuracy_draws(s, y) for s, y in both], axis=0
    )
    return scorer.accuracy(scores, positive) - chance, *interval(draws)
