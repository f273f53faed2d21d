"""`open_store`: a folder of shards as labelled arrays, without loading it.

store = open_store("acts")
acts = store["blocks.15.hook_resid_post"]          # array-like; slices are views of the files
acts[store.rows(span="answer", label={"label": True})]
both = concatenate([store, open_store("more")])
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from workbench.errors import DataError, SiteError, did_you_mean
from workbench.sites.names import expand
from workbench.store.index import Index
from workbench.store.joined import joined_manifest
from workbench.store.manifest import Manifest, ShardRecord
from workbench.store.records import check_files, read_records
from workbench.store.shard import Shard, Verify
from workbench.store.site_array import SiteArray

_FROM_THE_END = re.compile(r"blocks\.(-|\{[^}]*-)\d")


@dataclass(frozen=True)
class Part:
    """One folder of a store."""

    folder: Path
    manifest: Manifest
    records: tuple[ShardRecord, ...]
    shards: tuple[Shard, ...]

    @property
    def n_prompts(self) -> int:
        """By how much the prompts of the next part are renumbered: all that were read, or of which rows are known."""
        if self.manifest.n_prompts is not None:
            return self.manifest.n_prompts
        numbers = [s.table("prompts", ["number"])["number"].to_numpy() for s in self.shards]
        return max((int(n.max()) + 1 for n in numbers if len(n)), default=0)


class Store:
    """Activations on disk: rows of some sites, and which prompt, position and token each row is.

    It shows what was there when it was opened; a store that is still being written is read up to its last finished
    shard (`complete` is false).

    Example:
        >>> store = open_store("acts")
        >>> store
        Store('acts', 40,213 rows of 512 prompts, 3 sites, complete)
        >>> store["blocks.15.hook_resid_post"][store.rows(position=-1)].shape
        torch.Size([512, 576])
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        """Made by `open_store` and `concatenate`."""
        self.parts = tuple(parts)
        self._shards = [shard for part in self.parts for shard in part.shards]
        self._sites = {site.name: site for site in self.parts[0].manifest.sites}

    @property
    def sites(self) -> list[str]:
        """The sites, in the order of the forward pass."""
        return list(self._sites)

    def __len__(self) -> int:
        return sum(shard.rows for shard in self._shards)

    def __getitem__(self, site: str) -> SiteArray:
        """The rows at a site, given by its name or a pattern that stands for one.

        Raises:
            DataError: the site is not in this store (the nearest are named), or several are meant.
        """
        return SiteArray(self._sites[self.site_name(site)], self._shards)

    def __repr__(self) -> str:
        folders = " + ".join(repr(str(part.folder)) for part in self.parts)
        prompts = f" of {self.manifest.n_prompts:,} prompts" if self.complete else ""
        state = "complete" if self.complete else "incomplete: still being written or interrupted"
        return f"Store({folders}, {len(self):,} rows{prompts}, {len(self.sites)} sites, {state})"

    def site_name(self, site: str) -> str:
        """The one site a name or pattern stands for (without negative block numbers); raises like `store[site]`."""
        known = self.sites
        try:
            found = expand(site, known, n_layers=0, model_name="This store")
        except SiteError as error:
            held = ", ".join(known[:4]) + (", …" if len(known) > 4 else "")
            if _FROM_THE_END.match(site):
                raise DataError(
                    f"{site!r} counts blocks from the model's last, and a store does not know how many there are: "
                    f"give the block's number. There are {held}."
                ) from error
            raise DataError(
                f"Site {site!r} is not in this store, which has {len(known)}: {held}.{did_you_mean(site, known)}"
            ) from error
        if len(found) > 1:
            raise DataError(
                f"{site!r} stands for {len(found)} sites of this store ({', '.join(found[:4])}): name one."
            )
        return found[0]

    @cached_property
    def index(self) -> Index:
        """Prompt, position, token, phase and spans of every row; columns are read when asked for."""
        offsets = self._offsets() if len(self.parts) > 1 else [0]
        per_shard = [o for o, part in zip(offsets, self.parts, strict=True) for _ in part.shards]
        return Index(self._shards, per_shard)

    @property
    def prompts(self) -> pa.Table:
        """The prompts with rows here, by number: number, id, n_tokens, labels (a JSON object)."""
        return self.index.prompts

    def rows(
        self,
        *,
        prompt: int | Iterable[int] | None = None,
        position: int | Iterable[int] | None = None,
        token: int | Iterable[int] | None = None,
        phase: str | None = None,
        span: str | None = None,
        label: Mapping[str, Any] | None = None,
    ) -> np.ndarray:
        """Numbers (int64, increasing) of the rows for which everything that is given holds.

        Args:
            prompt: number of a prompt, or several.
            position: absolute position; negative counts from the end of each prompt; or several.
            token: token id, or several.
            phase: `"prompt"` or `"generated"`.
            span: name of a span the token lies in.
            label: label -> value that the row's prompt has, for instance `{"label": True}`.

        Raises:
            DataError: a prompt, phase, span, label or value of a label that does not occur.

        Example:
            >>> store["blocks.15.hook_resid_post"][store.rows(span="answer", position=-1)]
        """
        return self.index.rows(
            prompt=prompt, position=position, token=token, phase=phase, span=span, label=label
        )

    def of_prompt(self, number: int) -> dict[str, Tensor]:
        """Site -> [position, ...] the rows of one prompt."""
        rows = self.rows(prompt=number)
        return {site: self[site].take(rows) for site in self.sites}

    @property
    def complete(self) -> bool:
        """Whether everything that was asked for is there."""
        return all(part.manifest.complete for part in self.parts)

    @cached_property
    def manifest(self) -> Manifest:
        """What the store holds and what made it; of several stores, what a merge of them would say."""
        manifests = [part.manifest for part in self.parts]
        return manifests[0] if len(manifests) == 1 else joined_manifest(manifests)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the checksums of all shards: changes with any row."""
        sums = [value for part in self.parts for r in part.records for value in r.sha256.values()]
        return hashlib.sha256("".join(sums).encode()).hexdigest()

    @property
    def not_finite(self) -> dict[str, int]:
        """Site -> rows with NaN or infinite values; sites without any are left out."""
        records = [r for part in self.parts for r in part.records]
        return {s: n for s in self.sites if (n := sum(r.not_finite.get(s, 0) for r in records))}

    @property
    def info(self) -> dict[str, Any]:
        """Everything about the store that fits on a page, as plain JSON values."""
        m = self.manifest
        return {
            "folder": " + ".join(str(part.folder) for part in self.parts),
            "complete": self.complete,
            "n_rows": len(self),
            "n_prompts": m.n_prompts,
            "n_shards": len(self._shards),
            "rows_per_shard": m.rows_per_shard,
            "gigabytes": round(sum(len(self) * self[s].row_bytes for s in self.sites) / 1e9, 3),
            "sites": {s.name: {"shape": list(s.shape), "dtype": s.dtype} for s in m.sites},
            "not_finite": self.not_finite,
            "model": m.model,
            "model_fingerprint": m.model_fingerprint,
            "tokenizer_hash": m.tokenizer_hash,
            "dataset_fingerprint": m.dataset_fingerprint,
            "settings": dict(m.settings),
        }

    def _offsets(self) -> list[int]:
        ends = np.cumsum([0, *(part.n_prompts for part in self.parts)])
        return ends[:-1].tolist()


def open_store(folder: Path | str, *, verify: Verify = "first") -> Store:
    """Open a store for reading. Files are mapped when they are first touched; their presence and size is checked now.

    Args:
        folder: of the store.
        verify: `"first"` checks each block of 64 rows and each table when it is first read; `"never"` does not.

    Raises:
        DataError: no store, or a damaged one; the message names the shard and the file.
    """
    folder = Path(folder)
    if verify not in ("first", "never"):
        raise DataError(f"verify={verify!r} is not known: choose 'first' or 'never'.")
    manifest = Manifest.read(folder)
    records = read_records(folder, manifest)
    for record in records:
        check_files(folder, manifest, record)
    shards = tuple(Shard(folder, manifest, record, verify) for record in records)
    return Store([Part(folder, manifest, records, shards)])


def concatenate(stores: Iterable[Store]) -> Store:
    """Several stores as one, without copying: rows one after the other, prompts numbered on.

    Raises:
        DataError: no stores, or they differ in sites, shapes, dtypes, model or tokenizer (both are named).
    """
    parts = [part for store in stores for part in store.parts]
    joined_manifest([part.manifest for part in parts])
    return Store(parts)
