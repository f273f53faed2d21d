"""What a store says about itself, and where its files lie.

    FOLDER/
        manifest.json            what is in it: written when the store is begun, replaced once when it is complete
        shards/00000.safetensors rows of every site: one tensor [row, ...] a site (and checks: `values.py`)
        index/00000.parquet      of each row: prompt, position, token_id, phase, spans
        prompts/00000.parquet    of each prompt whose first row is in the shard: number, id, n_tokens, labels (JSON)
        shards/00000.json        written last: rows, checksums, cursor. A shard without it does not exist.
        lock                     held by the one writer
        log.jsonl                what happened (back-off, resumes), with times; not part of the data
        parts/                   shards that several workers are writing (`parts.py`); gone once they are moved in

Everything but `log.jsonl` and `lock` is a function of model, data and settings: a store that was interrupted and
resumed ends with the same bytes as one that was not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from workbench.errors import DataError
from workbench.store.sealed import read_sealed, write_sealed

SCHEMA = 1
MANIFEST = "manifest.json"
LOG = "log.jsonl"
LOCK = "lock"
PARTS = "parts"
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class SiteRecord:
    """One site of a store."""

    name: str
    shape: tuple[int, ...]
    """Of one row: `(d_model,)`, or `(head, d_head)` for `hook_z`."""
    dtype: str
    """`float32`, `bfloat16` or `float16`."""


@dataclass(frozen=True)
class Cursor:
    """Where in the work a shard ended: what a resume goes on from."""

    batch: int = 0
    """Number of the batch of which rows are still to be written."""
    row: int = 0
    """Rows of that batch that are written already; all of them where the shard ended with the batch."""
    window: int = 0
    """Windows of prompts that were drawn from the source up to that batch."""
    digest: str = ""
    """SHA-256 over token ids, id, labels and spans of those windows' prompts, in order."""
    prompts: int = 0
    """Prompts of which at least one row is written."""


@dataclass(frozen=True)
class ShardRecord:
    """A finished shard."""

    number: int
    rows: int
    first_row: int
    """Rows in the shards before it."""
    sha256: Mapping[str, str]
    """File, relative to the store -> SHA-256 of its bytes; of the values' file, of its header (`values.py`)."""
    cursor: Cursor
    not_finite: Mapping[str, int] = field(default_factory=dict)
    """Site -> rows with NaN or infinite values; sites without any are left out."""


@dataclass(frozen=True)
class Manifest:
    """What a store holds and what made it."""

    sites: tuple[SiteRecord, ...]
    rows_per_shard: int
    model: str
    model_fingerprint: str
    tokenizer_hash: str
    settings: Mapping[str, Any]
    """Everything else that decides the bytes: positions, contexts, batching, generation."""
    n_rows: int | None = None
    """None until the store is complete."""
    n_prompts: int | None = None
    dataset_fingerprint: str | None = None
    """SHA-256 over token ids, id, labels and spans of all prompts, in order."""
    schema: int = SCHEMA

    @property
    def complete(self) -> bool:
        """Whether everything that was asked for is in it."""
        return self.n_rows is not None

    def write(self, folder: Path) -> None:
        """Replace the manifest in `folder` in one step."""
        write_sealed(folder / MANIFEST, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a store.

        Raises:
            DataError: no store, a damaged one, or one of a later schema.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise DataError(f"{str(folder)!r} is no activation store: it has no {MANIFEST}.")
        try:
            given = read_sealed(path)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
        try:
            if given["schema"] != SCHEMA:
                raise DataError(
                    f"{str(folder)!r} has schema {given['schema']}, this version reads {SCHEMA}: update the workbench."
                )
            sites = tuple(SiteRecord(s["name"], tuple(s["shape"]), s["dtype"]) for s in given.pop("sites"))
            return cls(sites=sites, **given)
        except (KeyError, TypeError) as error:
            raise DataError(f"{path} is damaged ({error!r}): restore it from a copy.") from error


def shard_files(number: int) -> dict[str, str]:
    """The files of a shard, relative to the store: `values`, `index`, `prompts`, `record`."""
    return {
        "values": f"shards/{number:05d}.safetensors",
        "index": f"index/{number:05d}.parquet",
        "prompts": f"prompts/{number:05d}.parquet",
        "record": f"shards/{number:05d}.json",
    }
