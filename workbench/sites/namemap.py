"""The name map: which submodule plays which part, as plain data.

Working it out means importing transformer_lens, which takes several seconds; the answer depends only on
the configuration and the versions, so it is kept as a small JSON file in the cache folder.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from workbench.files import publish_file
from workbench.model.cache import cache_folder

SCHEMA = 1


@dataclass(frozen=True)
class FusedColumns:
    """Columns of a fused query-key-value output, per part, in head-major order. Empty if not fused."""

    q: tuple[int, ...] = ()
    k: tuple[int, ...] = ()
    v: tuple[int, ...] = ()


@dataclass(frozen=True)
class NameMap:
    """Which submodule plays which part of a transformer.

    `paths` maps parts to module paths: `embed`, `pos_embed`, `blocks`, `ln_final`, `unembed` from the
    model's root, and `block.*` (for instance `block.attn.o`) from the block. `kinds` gives
    TransformerLens' component class for each part, `parallel` whether attention and MLP read the same input.
    """

    architecture: str
    transformer_lens: str
    paths: dict[str, str] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    parallel: bool = False
    fused: FusedColumns = FusedColumns()
    fused_problem: str = ""


def _key(hf_model: Any) -> str:
    config = hf_model.config.to_dict()
    config.pop("_name_or_path", None)
    text = json.dumps(
        [SCHEMA, type(hf_model).__name__, config, version("transformer-lens"), version("transformers")],
        sort_keys=True,
        default=str,
    )
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def name_map(hf_model: Any) -> NameMap:
    """The name map of a model, from the cache folder or worked out anew (and then kept)."""
    path = cache_folder() / "name-maps" / f"{_key(hf_model)}.json"
    stored = _read(path)
    if stored is not None:
        return stored
    from workbench.sites.adapter import build_name_map

    built = build_name_map(hf_model)
    with publish_file(path) as temporary:
        temporary.write_text(json.dumps(asdict(built)))
    return built


def _read(path: Path) -> NameMap | None:
    """A stored map, or None if there is none or it is not whole: then it is simply made again."""
    try:
        raw = json.loads(path.read_text())
        fused = FusedColumns(**{part: tuple(columns) for part, columns in raw.pop("fused").items()})
        return NameMap(**raw, fused=fused)
    except (OSError, ValueError, KeyError, TypeError):
        return None
