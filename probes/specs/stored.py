"""Labels and the model of a store on disk: a sweep over it needs no model, only to know which one it was."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pydantic import PrivateAttr

from probes.source import open_source
from probes.specs.prompts import Rule
from workbench.specs import ModelSpec

if TYPE_CHECKING:
    from workbench.store import Store


class StoredModel(ModelSpec):
    """The model of a store: known by name and fingerprint, and not loaded."""

    _store: str = PrivateAttr(default="")

    @classmethod
    def of(cls, model: ModelSpec, store: str) -> StoredModel:
        """The same fields, for the model whose activations `store` holds."""
        made = cls(**model.model_dump())
        made._store = str(Path(store).absolute())
        return made

    def load(self) -> Any:
        """Name and fingerprint, from the store's manifest. Raises `DataError` for no such store."""
        from workbench.store import open_store

        manifest = open_store(self._store).manifest
        return SimpleNamespace(name=manifest.model, fingerprint=manifest.model_fingerprint)


def stored_labels(store: Store, rules: dict[str, Rule]) -> dict[str, list[Any]]:
    """One label per prompt (in their order) where each has one row, else per row, for each rule.

    Raises:
        DataError: no such label (the nearest are named), or prompts without it.
    """
    source = open_source(store)
    return {name: rule.of(source.labels(rule.field), "the store") for name, rule in rules.items()}


def stored_groups(store: Store, group_by: str | None) -> list[Any] | None:
    """One group per prompt or row, as `stored_labels`; None for none (rows of a prompt stay together in any case)."""
    return None if group_by is None else open_source(store).labels(group_by)
