"""Labelled rows from several sources, joined for a transfer: `{name: (activations, labels, groups)}`.

`join` checks them and gives one matrix with the places of each set; `split_by` cuts one collection by a field
(template, language, negated), `by_layer` takes its sites as sets.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from sklearn.model_selection import StratifiedGroupKFold

from probes.source import one_site, open_source
from probes.trust.fitting import rows_at
from probes.trust.labels import two_classes, values_of
from workbench.activations import Activations
from workbench.errors import DataError
from workbench.provenance import Provenance


@dataclass(frozen=True, eq=False)
class Joined:
    """The rows of all sets, one below the other.

    Attributes:
        names: of the sets, as texts.
        x: [row, d] activations.
        positive: [row] labels.
        group: [row] numbers from 0, equal wherever the group is the same, also in different sets.
        rows: for each set the places of its rows.
        classes: the negative and the positive label.
        grouped: whether some group has several rows of one set.
        site: where the activations were read, if that is one place.
        provenances: one a set; empty where it was an array.
    """

    names: list[str]
    x: Float64[np.ndarray, "row d"]
    positive: Bool[np.ndarray, " row"]
    group: Int64[np.ndarray, " row"]
    rows: list[np.ndarray]
    classes: tuple[Any, Any]
    grouped: bool
    site: str
    provenances: list[Provenance]

    def shared_groups(self) -> Int64[np.ndarray, "set set"]:
        """How many groups stand in both of two sets (on the diagonal: in the set)."""
        inside = np.zeros((len(self.rows), int(self.group.max()) + 1), dtype=np.int64)
        for i, rows in enumerate(self.rows):
            inside[i, self.group[rows]] = 1
        return inside @ inside.T

    def folds(self, n: int, *, seed: int) -> Int64[np.ndarray, " row"]:
        """The fold of every row: one for each group over all sets, stratified by set and label.

        Raises:
            DataError: a class of a set occurs in fewer groups than there are folds, or lacks in a training set.
        """
        kind = self.positive.astype(np.int64)
        for i, rows in enumerate(self.rows):
            kind[rows] += 2 * i
            for label, wanted in zip(self.classes, (False, True), strict=True):
                count = len(np.unique(self.group[rows[self.positive[rows] == wanted]]))
                if count < n:
                    raise DataError(
                        f"Set {self.names[i]!r}: label {label!r} occurs in {count} groups, fewer than the {n} folds: "
                        "use fewer folds, or give more prompts."
                    )
        fold = np.full(len(kind), -1, dtype=np.int64)
        parts = StratifiedGroupKFold(n, shuffle=True, random_state=seed).split(self.x, kind, self.group)
        for index, (_, held_out) in enumerate(parts):
            fold[held_out] = index
        for i, rows in enumerate(self.rows):
            for index in range(n):
                kept = self.positive[rows][fold[rows] != index]
                if kept.all() or not kept.any():
                    raise DataError(
                        f"Set {self.names[i]!r}: without fold {index} one class is left, groups are too uneven for {n} "
                        "folds."
                    )
        return fold


def join(sets: Mapping[Any, Any], *, site: str | None = None, positive: Any = None) -> Joined:
    """Check and join labelled sets; what may be given is in `transfer.transfer_matrix`.

    Raises:
        DataError: fewer than two sets, an entry that is no (activations, labels, groups), different widths or labels.
    """
    if not isinstance(sets, Mapping) or len(sets) < 2:
        raise DataError("A transfer needs at least two sets: {name: (activations, labels, groups), …}.")
    names = [str(name) for name in sets]
    if len(set(names)) < len(names):
        raise DataError(f"Sets need names that differ as texts, these do not: {', '.join(names)}.")
    parts, labels, classes, groups, made, sites = [], [], None, [], [], []
    for name, given in zip(names, sets.values(), strict=True):
        where = f"Set {name!r}: "
        if not isinstance(given, tuple | list) or not 2 <= len(given) <= 3:
            raise DataError(f"{where}expected (activations, labels) or (activations, labels, groups).")
        acts, label, group = given[0], given[1], given[2] if len(given) == 3 else None
        x, read, prompts = _matrix(acts, site, where)
        up, both = two_classes(label, len(x), positive, where=where)
        if classes is not None and {str(c) for c in both} != {str(c) for c in classes}:
            raise DataError(
                f"{where}its labels are {both[0]!r} and {both[1]!r}, those of {names[0]!r} are {classes[0]!r} and "
                f"{classes[1]!r}: a probe carries over only where labels mean the same."
            )
        classes = classes or both
        parts.append(x)
        labels.append(up if str(both[1]) == str(classes[1]) else ~up)  # 2 and 10 sort otherwise as texts
        groups.append(_groups(group, name, len(x), prompts, where))
        made.append(acts.provenance if isinstance(acts, Activations) else Provenance())
        sites.append(read)
    widths = {name: x.shape[1] for name, x in zip(names, parts, strict=True)}
    if len(set(widths.values())) > 1:
        some = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise DataError(f"A probe fits one width, but the sets have {some}: take sites of one width.")
    assert classes is not None
    code = np.unique([g for one in groups for g in one], return_inverse=True)[1].astype(np.int64)
    ends = np.cumsum([0, *(len(x) for x in parts)])
    rows = [np.arange(a, b) for a, b in itertools.pairwise(ends)]
    grouped = any(len(np.unique(code[r])) < len(r) for r in rows)
    one_site = sites[0] if len(set(sites)) == 1 else ""
    return Joined(
        names, np.concatenate(parts), np.concatenate(labels), code, rows, classes, grouped, one_site, made
    )


def _matrix(acts: Any, site: str | None, where: str) -> tuple[np.ndarray, str, Activations | None]:
    """[row, d], the name of the site, and the collection it is from."""
    if not isinstance(acts, Activations):
        x = acts.detach().cpu().double().numpy() if isinstance(acts, torch.Tensor) else np.asarray(acts)
        if x.ndim != 2 or not len(x) or x.dtype.kind not in "fiu":
            raise DataError(
                f"{where}activations are a collection or a [row, d] array, not {x.dtype} of {list(x.shape)}."
            )
        x = x.astype(np.float64)
        if not np.isfinite(x).all():
            raise DataError(
                f"{where}{int((~np.isfinite(x).all(1)).sum())} of {len(x)} rows hold NaN or infinite values."
            )
        return x, "", None
    if site is None and len(acts.sites) > 1:
        raise DataError(
            f"{where}it holds {len(acts.sites)} sites: say which one (site='{acts.sites[-1]}'), or take them as sets "
            "(`by_layer`)."
        )
    name = acts.sites[0] if site is None else one_site(site, acts.sites)
    return rows_at(acts, name), name, acts


def _groups(group: Any, name: str, n: int, acts: Activations | None, where: str) -> list[str]:
    if group is not None:
        given = [str(value) for value in values_of(group, "groups")]
        if len(given) != n:
            raise DataError(f"{where}{len(given)} groups for {n} rows: give one for each.")
        return [f"group {value}" for value in given]
    if acts is not None and acts.provenance.inputs.get("sha256"):
        return [f"prompt {acts.provenance.inputs['sha256']} {p}" for p in acts.prompt]
    return [f"row {name} {i}" for i in range(n)]


def split_by(
    acts: Activations, labels: Any, field: Sequence[Any], groups: Any = None, *, site: str | None = None
) -> dict[str, tuple[np.ndarray, list[Any], list[Any]]]:
    """One collection cut into sets by a field of its rows (template, language, negated).

    Args:
        acts: one row a prompt (or labels, field and groups for every row).
        labels, groups: one per row. Without groups every prompt is one.
        field: one value per row; each value becomes a set, in the order they occur.
        site: which site, where there are several.

    Example:
        >>> transfer_matrix(split_by(acts, statements.labels, statements.column("template"), statements.groups))
    """
    x, _, _ = _matrix(acts, site, "")
    values, given = values_of(field, "values to split by"), values_of(labels, "labels")
    group = [f"prompt {p}" for p in acts.prompt] if groups is None else values_of(groups, "groups")
    if not len(values) == len(given) == len(group) == len(x):
        raise DataError(
            f"{len(given)} labels, {len(values)} values to split by and {len(group)} groups for {len(x)} rows: give "
            "one of each a row."
        )
    found = {}
    for value in dict.fromkeys(values):
        at = [i for i, v in enumerate(values) if v == value]
        found[str(value)] = (x[at], [given[i] for i in at], [group[i] for i in at])
    return found


def by_layer(
    acts: Activations, labels: Any, groups: Any = None, *, sites: str | Sequence[str] | None = None
) -> dict[str, tuple[np.ndarray, Any, Any]]:
    """The sites of one collection as sets: trained at one layer, tested at another (same prompts, held out together).

    `sites` are names or globs, of one width; by default all of `acts`.

    Example:
        >>> transfer_matrix(by_layer(acts, statements.labels, statements.groups), kinds="mass_mean")
    """
    group = [f"prompt {p}" for p in acts.prompt] if groups is None else groups
    found = {}
    for name in open_source(acts).select(sites):
        x, site, _ = _matrix(acts, name, "")
        pieces = (site or name).split(".")
        short = pieces[1] if len(pieces) > 2 and pieces[0] == "blocks" else site or name
        found[short if short not in found else site] = (x, labels, group)
    return found
