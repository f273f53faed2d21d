"""`Request`: everything a collection is asked for but the model, the data and the folder.

The same request makes the same store, computed here or by many workers; its settings stand in the manifest.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from workbench.collection.batching import TOKENS_PER_BATCH, WINDOW_BATCHES
from workbench.collection.contexts import contexts
from workbench.collection.engine import Engine
from workbench.collection.fields import whole_number
from workbench.collection.generation import Generation, GenerationEngine, without_said
from workbench.collection.items import Context, Item
from workbench.collection.selection import Selection
from workbench.errors import DataError, PromptError, SiteError
from workbench.model.language_model import LanguageModel
from workbench.model.text_side import TextSide
from workbench.model.tokens import from_ids
from workbench.sites.catalog import Site
from workbench.store.manifest import Manifest, SiteRecord
from workbench.store.values import DTYPE

ROWS_PER_SHARD = 32_768


@dataclass(frozen=True)
class Request:
    """See `collect_to` for what each field means."""

    sites: str | Iterable[str] = "blocks.*.hook_resid_post"
    positions: Any = "all"
    dtype: str = "auto"
    special: str = "keep"
    context: int | None = None
    overlap: int = 0
    pack: bool = False
    generate: Generation | None = None
    limit: int | None = None
    rows_per_shard: int = ROWS_PER_SHARD
    tokens_per_batch: int = TOKENS_PER_BATCH
    strict: bool = False
    selection: Selection = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raises what is wrong with any field before anything is loaded or written."""
        object.__setattr__(self, "sites", _sites(self.sites))
        object.__setattr__(self, "selection", Selection.parse(self.positions, special=self.special))
        if self.dtype not in (*DTYPE, "auto"):
            raise DataError(f"dtype {self.dtype!r} cannot be stored: give auto, {', '.join(DTYPE)}.")
        for name in ("context", "limit", "rows_per_shard", "tokens_per_batch"):
            value = getattr(self, name)
            if value is not None or name not in ("context", "limit"):
                object.__setattr__(self, name, _count(value, name, 1))
        object.__setattr__(self, "overlap", _count(self.overlap, "overlap", 0))
        for name in ("pack", "strict"):
            if not isinstance(getattr(self, name), bool):
                raise DataError(f"{name} is {getattr(self, name)!r}; expected True or False.")
        if self.generate is not None and not isinstance(self.generate, Generation):
            raise DataError(
                f"generate is {self.generate!r}; expected a Generation, such as Generation(max_new_tokens=32)."
            )

    def stored(self, model: LanguageModel) -> str:
        """Name of the rows' dtype."""
        name = str(model.dtype).removeprefix("torch.") if self.dtype == "auto" else self.dtype
        if name not in DTYPE:
            raise DataError(f"dtype {name!r} cannot be stored: give {', '.join(DTYPE)}.")
        return name

    def manifest(self, model: LanguageModel) -> Manifest:
        """What the store says of itself. Runs the model on one token to know the shapes."""
        resolved, dtype = model.resolve(self.sites), self.stored(model)
        self._refuse_without_tokenizer(model)
        shapes = site_shapes(model, resolved)
        self._refuse_huge_shards(sum(math.prod(shape) for shape in shapes.values()) * DTYPE[dtype].itemsize)
        settings = {
            "positions": self.selection.describe(),
            "context": self.context,
            "overlap": self.overlap,
            "pack": self.pack,
            "limit": self.limit,
            "tokens_per_batch": self.tokens_per_batch,
            "window_tokens": self.tokens_per_batch * WINDOW_BATCHES,
            "model_dtype": str(model.dtype).removeprefix("torch."),
            "generate": self.generate.describe() if self.generate is not None else None,
        }
        return Manifest(
            sites=tuple(SiteRecord(s.name, shapes[s.name], dtype) for s in resolved),
            rows_per_shard=self.rows_per_shard,
            model=model.name,
            model_fingerprint=model.fingerprint,
            tokenizer_hash=model.tokenizer_hash,
            settings=settings,
        )

    def contexts(self, model: LanguageModel | TextSide, items: Iterable[Item]) -> Iterator[Context]:
        """The prompts as token ids."""
        made = contexts(
            model,
            items,
            context=self.context,
            overlap=self.overlap,
            pack=self.pack,
            need_texts=self.selection.needs_texts,
            answers=self.generate is None,
        )
        return made if self.generate is None else without_said(made)

    def engine(self, model: LanguageModel, on_event: Any = lambda _event: None) -> Engine:
        """What computes the rows."""
        options: dict[str, Any] = {
            "model": model,
            "sites": model.resolve(self.sites),
            "selection": self.selection,
            "dtype": DTYPE[self.stored(model)],
            "tokens_per_batch": self.tokens_per_batch,
            "on_event": on_event,
        }
        if self.generate is None:
            return Engine(**options)
        return GenerationEngine(**options, generation=self.generate)

    @property
    def selects_prompts(self) -> bool:
        """Whether positions of prompts are asked for, so that each rule must find a token somewhere."""
        return self.generate is None or self.generate.prompt_rows

    def _refuse_without_tokenizer(self, model: LanguageModel) -> None:
        if model.tokenizer is None and (self.generate is not None or self.selection.needs_texts):
            what = "generate=" if self.generate is not None else "positions that go by text"
            raise PromptError(
                f"{model.name} has no tokenizer, which {what} needs: load the model with one, or read token ids at "
                "positions given by number."
            )

    def _refuse_huge_shards(self, bytes_a_row: int) -> None:
        """A shard is held in memory until it is written."""
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if self.rows_per_shard * bytes_a_row > there:
            raise DataError(
                f"rows_per_shard is {self.rows_per_shard}: a shard of that many rows at these sites takes "
                f"{self.rows_per_shard * bytes_a_row / 1e9:,.1f} GB, more than this machine's memory of "
                f"{there / 1e9:,.1f} GB. Give fewer rows ({ROWS_PER_SHARD} is usual) or fewer sites."
            )


def _sites(given: Any) -> str | tuple[str, ...]:
    """Names or patterns that can be gone through again and again."""
    if isinstance(given, str):
        return given
    listed = tuple(given) if isinstance(given, Iterable) else (given,)
    wrong = next((site for site in listed if not isinstance(site, str)), None)
    if wrong is not None:
        raise SiteError(
            f"Site {wrong!r} is no text: give a name such as 'blocks.0.hook_resid_post', or a list."
        )
    return listed


def _count(given: Any, name: str, least: int) -> int:
    number = whole_number(given)
    if number is None or number < least:
        raise DataError(f"{name} is {given!r}; expected a whole number, at least {least}.")
    return number


def site_shapes(model: LanguageModel, sites: list[Site]) -> dict[str, tuple[int, ...]]:
    """Shape of one row at each site, found by reading one token at all of them."""
    for site in sites:
        if site.where == "pattern":
            raise DataError(
                f"{site.name!r} has rows as long as their prompt, which do not make a table: collect it in memory "
                "with `wb.collect`, or store q and k."
            )
    ids = [model.tokenizer.bos_token_id or 0] if model.tokenizer is not None else [0]
    names = [site.name for site in sites]
    with model.hooks(read=names, stop=True) as session:
        model.forward(from_ids(model, [ids], with_texts=False))
    return {name: tuple(session[name].shape[2:]) for name in names}
