"""Labels, groups and rows: what a probe sweep is asked to read, matched to the rows it is read from.

A *label set* is one thing to be read: a boolean, a text or a number per row (two classes, or more). Several label
sets share rows, folds and factorisations; their names are the dimension `label` of the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from probes.source import Source, open_source
from workbench.errors import DataError


@dataclass(frozen=True, eq=False)
class LabelSet:
    """One thing to be read from every row.

    Attributes:
        name: of the label set; empty where only one was given, without a name.
        code: [row] class of each row, 0 … n_classes - 1. With two classes 1 is the positive one.
        classes: the labels of the classes, as given.
    """

    name: str
    code: Int64[np.ndarray, " row"]
    classes: tuple[Any, ...]

    @property
    def positive(self) -> Bool[np.ndarray, " row"]:
        """[row] whether the label is the positive one (two classes)."""
        return self.code == 1

    @property
    def majority(self) -> float:
        """Accuracy of always giving the most frequent class."""
        return float(np.bincount(self.code).max() / len(self.code))


@dataclass(frozen=True, eq=False)
class Rows:
    """Which rows of the activations make a cell, and what is known of them.

    Attributes:
        index: [cell, row] rows of the activations; several cells where every position is its own.
        labels: the label sets, at least one.
        groups: [row] numbers from 0, or None.
        positions: coordinate of the cells, or None where there is one cell.
    """

    index: Int64[np.ndarray, "cell row"]
    labels: tuple[LabelSet, ...]
    groups: Int64[np.ndarray, " row"] | None
    positions: np.ndarray | None = None

    @property
    def positive(self) -> Bool[np.ndarray, " row"]:
        """[row] whether the only label set's label is the positive one."""
        return self.labels[0].positive

    @property
    def classes(self) -> tuple[Any, ...]:
        """Classes of the first label set."""
        return self.labels[0].classes


def arrange(source: Source | Any, labels: Any, groups: Any = None, positive: Any = None) -> Rows:
    """Match labels and groups to the rows of `source`; what may be given is in `probes.sweep`.

    Where every prompt has one row, lists are one per prompt, in the order of prompt numbers. Groups that are given per
    row are joined where a prompt connects them: rows of a prompt, and of a group, stay together.
    """
    source = open_source(source)
    named = labels if isinstance(labels, Mapping) else {"": labels}
    if not named:
        raise DataError(
            "No labels were given: expected one per prompt or per row, or a dict of such lists by name."
        )
    given = {str(name): read(source, values, _called(name)) for name, values in named.items()}
    if len(given) < len(named):
        raise DataError(f"Label sets need names that differ as texts, not {list(named)}.")
    counts = {len(values) for values in given.values()}
    if len(counts) > 1:
        said = ", ".join(f"{name} {len(values)}" for name, values in given.items())
        raise DataError(f"All label sets need one label for each of the same rows, but there are: {said}.")
    count, n_rows, n_prompts = counts.pop(), len(source.prompt), source.n_prompts
    if count not in (n_prompts, n_rows):
        raise DataError(f"{count} labels for {n_prompts} prompts ({n_rows} rows): give one for each.")
    index, positions, codes = np.arange(n_rows)[None], None, None
    if count == n_prompts:
        index, positions = _by_prompt(source)
    elif groups is None:
        codes = source.prompt  # rows of one prompt are no independent rows
    if groups is not None:
        names = read(source, groups, "groups")
        if len(names) == n_prompts < count:
            names = [names[i] for i in source.prompt]
        if len(names) != count:
            raise DataError(f"{len(names)} groups for {count} labels: give one for each.")
        codes = np.unique([str(name) for name in names], return_inverse=True)[1]
        if count != n_prompts:
            codes = _joined(codes, source.prompt)
    sets = tuple(_label_set(name, values, positive) for name, values in given.items())
    if len(sets) > 1 and any(len(s.classes) > 2 for s in sets):
        many = next(s for s in sets if len(s.classes) > 2)
        raise DataError(
            f"Label set {many.name!r} has {len(many.classes)} classes: sweep it by itself; several label sets in one "
            "sweep need two classes each."
        )
    return Rows(index, sets, codes, positions)


def _joined(groups: np.ndarray, prompt: np.ndarray) -> np.ndarray:
    """[row] numbers of what holds together: rows of one group or of one prompt, and what these connect."""
    n_groups, n = int(groups.max()) + 1, int(groups.max()) + int(prompt.max()) + 2
    edges = coo_array((np.ones(len(groups)), (groups, n_groups + prompt)), shape=(n, n))
    found = connected_components(edges, directed=False)[1][groups]
    if len(np.unique(found)) == 1:
        raise DataError(
            "The groups, given per row, connect all prompts with each other, and rows of one prompt are not "
            "independent: nothing could be held out. Give groups of whole prompts."
        )
    return np.unique(found, return_inverse=True)[1]


def read(source: Source, given: Any, what: str) -> list[Any]:
    """A flat list without gaps; of a text the label of the store's prompts that has this name.

    Raises:
        DataError: no list, gaps, or the labels of a store row by row where one per prompt is meant.
    """
    if isinstance(given, str):
        return values_of(source.labels(given), what)
    values = values_of(given, what)
    if (name := source.row_order_of(values)) is not None:
        raise DataError(
            f"These {what} are the label {name!r} of the store's rows, which stand in another order than its prompts: "
            f"give the name itself ({name!r}), or one value per prompt, in the order of prompt numbers "
            "(those of store.index.labels, at np.argsort(store.index.prompt))."
        )
    return values


def _called(name: object) -> str:
    return f"labels {name!r}" if name else "labels"


def _by_prompt(source: Source) -> tuple[np.ndarray, np.ndarray | None]:
    per_prompt = np.bincount(source.prompt, minlength=source.n_prompts)
    if per_prompt.min() != per_prompt.max():
        raise DataError(
            f"Prompts have between {per_prompt.min()} and {per_prompt.max()} positions here: give one "
            "label per row, such as `np.array(labels)[acts.prompt]`, or collect equally many positions."
        )
    index = np.argsort(source.prompt, kind="stable").reshape(source.n_prompts, -1).T
    if len(index) == 1:
        return index, None
    absolute = source.position[index]
    same = bool((absolute == absolute[:, :1]).all())
    return index, absolute[:, 0] if same else np.arange(len(index))


def values_of(given: Any, what: str) -> list[Any]:
    """A flat list without gaps, of any sequence or array; else a `DataError` that says what is wrong."""
    plain = given.tolist() if hasattr(given, "tolist") else given
    if isinstance(plain, str | bytes | Mapping) or not isinstance(plain, Iterable):
        raise DataError(f"The {what} must be a list with one value per prompt or row, not {given!r}.")
    values = [v.item() if hasattr(v, "item") and not getattr(v, "ndim", 0) else v for v in plain]
    if any(isinstance(v, (list, tuple, dict)) or getattr(v, "ndim", 0) for v in values):
        raise DataError(f"The {what} must be a flat list with one value per prompt or row.")
    missing = [i for i, v in enumerate(values) if _is_missing(v)]
    if missing:
        raise DataError(f"{len(missing)} of {len(values)} {what} are None or NaN, the first at {missing[0]}.")
    return values


def _is_missing(value: Any) -> bool:
    """None, NaN, and pandas' NA (which is neither equal to itself nor not)."""
    try:
        return value is None or bool(value != value)
    except TypeError:
        return True


MOST_CLASSES = 100
"""More classes than this are taken for numbers, which are not classes."""


def _label_set(name: str, labels: list[Any], positive: Any) -> LabelSet:
    try:
        found = sorted(set(labels))
    except TypeError:
        found = sorted(set(labels), key=str)
    shown = ", ".join(repr(c) for c in found[:8]) + (", …" if len(found) > 8 else "")
    of = f" of {name!r}" if name else ""
    if len(found) < 2:
        raise DataError(
            f"Two classes expected, found {len(found)} in {len(labels)} labels{of}: {shown}. A label that is the same "
            "in every row cannot be probed."
        )
    if len(found) > MOST_CLASSES:
        raise DataError(
            f"Found {len(found)} classes in {len(labels)} labels{of}: {shown}. For numbers use probes.regress."
        )
    if positive is not None:
        chosen = [c for c in found if c == positive or str(c) == str(positive)]
        if not chosen:
            raise DataError(
                f"The positive class {positive!r} is not among the labels{of}, which are {shown}."
            )
        if len(found) > 2:
            raise DataError(
                f"A positive class is for two classes, but the labels{of} have {len(found)}: {shown}."
            )
        found = [next(c for c in found if c != chosen[0]), chosen[0]]
    place = {value: i for i, value in enumerate(found)}
    return LabelSet(name, np.array([place[v] for v in labels], dtype=np.int64), tuple(found))
