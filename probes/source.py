"""Where a sweep takes its rows from: activations in memory or a store on disk, one site at a time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.special import gammaln
from torch import Tensor

from probes.estimators import ROUNDING
from workbench.activations import Activations
from workbench.errors import DataError
from workbench.provenance import Provenance, provenance
from workbench.sites.names import expand

if TYPE_CHECKING:
    from workbench.store import Store


@dataclass(frozen=True, eq=False)
class Source:
    """Rows of several sites, read when they are asked for.

    Attributes:
        holder: `Activations` or a `Store`.
        sites: names, in the order of the forward pass.
        prompt, position: [row] of every row; prompts are numbered from 0.
        n_prompts: prompts with rows.
        provenance: what made them.
    """

    holder: Activations | Store
    sites: list[str]
    prompt: np.ndarray
    position: np.ndarray
    n_prompts: int
    provenance: Provenance

    def values(self, site: str) -> Any:
        """[row, ...] array-like: a tensor, or rows of a store that slicing and `take` read."""
        return self.holder.rows(site) if isinstance(self.holder, Activations) else self.holder[site]

    def width(self, site: str) -> int:
        """Numbers per row, all trailing dimensions together."""
        return int(np.prod(self.values(site).shape[1:]))

    def bytes(self, site: str, n_rows: int) -> int:
        """Memory that `n_rows` rows of a site take while they are probed: in float64, and a working copy."""
        return 2 * 8 * n_rows * self.width(site)

    def take(self, site: str, index: np.ndarray, device: str | torch.device = "cpu") -> tuple[Tensor, bool]:
        """[row, d] float64 rows of one site, and whether all its features are constant (then all are set to zero).

        Raises:
            DataError: NaN or infinite values, with their number and the first row.
        """
        values = self.values(site)
        if isinstance(values, Tensor):
            whole = len(index) == len(values) and bool((np.diff(index) == 1).all())
            picked = values if whole else values[torch.from_numpy(np.ascontiguousarray(index))]
        else:
            picked = values.take(index)
        x = picked.flatten(1).to(device, torch.float64)
        if not bool(torch.isfinite(x.sum())):
            bad = torch.nonzero(~torch.isfinite(x).all(1)).flatten()
            if len(bad):
                raise not_finite(site, len(bad), len(x), int(index[int(bad[0])]))
        constant = _constant(x[:, :8]) and _constant(x)  # the first features tell nearly always
        return (torch.zeros_like(x) if constant else x), constant

    def labels(self, name: str) -> list[Any]:
        """One label of a store's prompts, by name: one per prompt where each has one row, else one per row.

        A store's rows stand in the order of its batches (by length), prompts in that of their numbers: as many labels
        as prompts are taken in the order of prompts (`probes.labels.arrange`), so that is how they are given here.

        Raises:
            DataError: activations in memory have no labels; no such label.
        """
        if isinstance(self.holder, Activations):
            raise DataError(
                f"labels={name!r} names a label of a store, but these activations are in memory: give the labels "
                "themselves, one per prompt or per row."
            )
        return in_order(self.holder.index.labels(name), self.prompt, self.n_prompts).tolist()

    def row_order_of(self, values: Sequence[Any]) -> str | None:
        """The store's label that `values` repeat row by row where prompts stand in another order, or None.

        Told apart is what cannot be chance: the same values (or the same partition into classes) as that label has
        row by row and not prompt by prompt, where less than one in a million orders would have them.
        """
        order = np.argsort(self.prompt, kind="stable")
        if isinstance(self.holder, Activations) or not len(values) == len(order) == self.n_prompts:
            return None
        if (np.diff(order) == 1).all():
            return None
        records = [json.loads(text) for text in self.holder.prompts["labels"].to_pylist()]
        for name in dict.fromkeys(key for record in records for key in record):
            by_prompt = [record.get(name) for record in records]
            by_row = [by_prompt[p] for p in self.prompt]
            if _equal(values, by_row) and not _equal(values, by_prompt) and _orders(values) > MANY_ORDERS:
                return str(name)
            same = _alike(values, by_row) and not _alike(values, by_prompt)
            if same and _orders(values, named=False) > MANY_ORDERS:
                return str(name)
        return None

    def select(self, sites: str | Iterable[str] | None) -> list[str]:
        """Names or globs -> sites of this source, all of one width.

        Raises:
            SiteError: no such site. DataError: different widths, or attention patterns.
        """
        blocks = [int(s.split(".")[1]) for s in self.sites if s.startswith("blocks.")]
        names = self.sites
        if sites is not None:
            names = expand(
                sites, self.sites, n_layers=max(blocks, default=-1) + 1, model_name="This collection"
            )
        widths = {name: self.width(name) for name in names}
        if len(set(widths.values())) > 1:
            some = ", ".join(f"{name} {width}" for name, width in list(widths.items())[:4])
            raise DataError(
                f"One sweep needs sites of one width, these differ ({some}): sweep them one by one."
            )
        if any(name.endswith("hook_pattern") for name in names):
            raise DataError("hook_pattern holds attention over positions, not a vector: probe another site.")
        return names


MANY_ORDERS = float(np.log(1e6))
"""Log of the number of orders above which two lists do not agree by chance."""


def in_order(per_row: np.ndarray, prompt: np.ndarray, n_prompts: int) -> np.ndarray:
    """Values by row -> by prompt (in the order of their numbers) where each prompt has one row; else as they are."""
    return per_row[np.argsort(prompt, kind="stable")] if len(per_row) == n_prompts else per_row


def _equal(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return all(x == y for x, y in zip(a, b, strict=True))


def _alike(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Whether two lists make the same classes, whatever they are called."""
    one, two = [repr(x) for x in a], [repr(y) for y in b]
    return len(set(zip(one, two, strict=True))) == len(set(one)) == len(set(two))


def _orders(values: Sequence[Any], *, named: bool = True) -> float:
    """Log of the number of ways to order these values (to cut the rows into classes of these sizes)."""
    sizes = list(Counter(map(repr, values)).values())
    same = [] if named else list(Counter(sizes).values())
    return float(gammaln(len(values) + 1) - sum(gammaln(n + 1) for n in [*sizes, *same]))


def one_site(sites: str, known: Sequence[str]) -> str:
    """The one site a name or pattern stands for.

    Raises:
        SiteError: none does. DataError: several do; they are named.
    """
    blocks = [int(s.split(".")[1]) for s in known if s.startswith("blocks.")]
    found = expand(sites, known, n_layers=max(blocks, default=-1) + 1, model_name="This collection")
    if len(found) > 1:
        shown = ", ".join(found[:4]) + (", …" if len(found) > 4 else "")
        raise DataError(f"{sites!r} stands for {len(found)} sites ({shown}): name one.")
    return found[0]


def not_finite(site: str, bad: int, n: int, first: int) -> DataError:
    """The error for rows with NaN or infinite values."""
    return DataError(
        f"{bad} of {n} rows at {site!r} hold NaN or infinite values, the first is row {first}: leave them out, or "
        "collect them again."
    )


def open_source(acts: Any) -> Source:
    """`Activations`, a `Store`, or the folder of one, as a source of rows; a source is one already."""
    if isinstance(acts, Source):
        return acts
    if isinstance(acts, Activations):
        return Source(acts, acts.sites, acts.prompt, acts.position, acts.n_prompts, acts.provenance)
    from workbench.store import Store, open_store

    if not isinstance(acts, Store | str | Path):
        raise DataError(
            f"Activations, a store or the folder of one was expected, not {type(acts).__name__}: collect some "
            "(wb.collect), or fit arrays with an estimator (probes.estimators)."
        )
    store = acts if isinstance(acts, Store) else open_store(acts)
    if not len(store):
        raise DataError(f"{store!r} holds no rows: collect some first.")
    number, prompt = np.unique(store.index.prompt, return_inverse=True)
    made = provenance(None, settings={"store": store.info["folder"], "fingerprint": store.fingerprint})
    model = {"name": store.manifest.model, "fingerprint": store.manifest.model_fingerprint}
    made = replace(made, model=model)
    return Source(store, store.sites, prompt, np.asarray(store.index.position), len(number), made)


def _constant(x: Tensor) -> bool:
    """Whether every feature is; each by itself, as one that is large says nothing of the others."""
    return bool((x.std(0, correction=0) <= ROUNDING * x.abs().mean(0)).all())
