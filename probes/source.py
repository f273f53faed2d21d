"""Where a sweep takes its rows from: activations in memory or a store on disk, one site at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
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
        """[row, d] float64 rows of one site, and whether they are constant (then all are set to zero).

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
        bad = torch.nonzero(~torch.isfinite(x).all(1)).flatten()
        if len(bad):
            raise not_finite(site, len(bad), len(x), int(index[int(bad[0])]))
        constant = float((x - x.mean(0)).norm()) <= ROUNDING * float(x.norm())
        return (torch.zeros_like(x) if constant else x), constant

    def labels(self, name: str) -> list[Any]:
        """One label of a store's prompts, by name, per row.

        Raises:
            DataError: activations in memory have no labels; no such label.
        """
        if isinstance(self.holder, Activations):
            raise DataError(
                f"labels={name!r} names a label of a store, but these activations are in memory: give the labels "
                "themselves, one per prompt or per row."
            )
        return self.holder.index.labels(name).tolist()

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


def not_finite(site: str, bad: int, n: int, first: int) -> DataError:
    """The error for rows with NaN or infinite values."""
    return DataError(
        f"{bad} of {n} rows at {site!r} hold NaN or infinite values, the first is row {first}: leave them out, or "
        "collect them again."
    )


def open_source(acts: Any) -> Source:
    """`Activations`, a `Store`, or the folder of one, as a source of rows."""
    if isinstance(acts, Activations):
        return Source(acts, acts.sites, acts.prompt, acts.position, acts.n_prompts, acts.provenance)
    from workbench.store import Store, open_store

    store = acts if isinstance(acts, Store) else open_store(acts)
    if not len(store):
        raise DataError(f"{store!r} holds no rows: collect some first.")
    number, prompt = np.unique(store.index.prompt, return_inverse=True)
    made = provenance(None, settings={"store": store.info["folder"], "fingerprint": store.fingerprint})
    model = {"name": store.manifest.model, "fingerprint": store.manifest.model_fingerprint}
    made = replace(made, model=model)
    return Source(store, store.sites, prompt, np.asarray(store.index.position), len(number), made)
