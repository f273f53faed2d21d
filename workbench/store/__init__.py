"""Activations on disk: written once, complete or resumable, read without loading.

| module | what it holds |
| --- | --- |
| `manifest`, `rows` | the format, and what goes in at once |
| `writer` | `StoreWriter`: batches in, shards out; survives a kill at any moment |
| `reader` | `open_store`, `Store`, `concatenate` |
| `site_array`, `index` | the rows of one site as an array; which prompt, position and token each row is |
| `loader` | `ShuffledLoader`: shuffled batches for training, with bounded memory and exact resume |
| `verify`, `merge` | check every byte; several stores into one |
| `values`, `tables`, `records`, `sealed`, `raw` | the files of a shard, and moving rows |
"""

from workbench.store.loader import ShuffledLoader
from workbench.store.manifest import Cursor, Manifest, SiteRecord
from workbench.store.reader import Store, concatenate, open_store
from workbench.store.rows import PromptRecord, RowBlock
from workbench.store.site_array import SiteArray
from workbench.store.writer import StoreWriter

__all__ = [
    "Cursor",
    "Manifest",
    "PromptRecord",
    "RowBlock",
    "ShuffledLoader",
    "SiteArray",
    "SiteRecord",
    "Store",
    "StoreWriter",
    "concatenate",
    "open_store",
]
