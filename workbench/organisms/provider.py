"""The organisms' problems as prompt sets: `datasets.load("addition", split="test", limit=100)`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.organisms.registry import get, names

if TYPE_CHECKING:
    from workbench.datasets.promptset import PromptSet

DEFAULT_SIZE = 500
"""Pairs made where no limit is given. The tasks have many more; a larger limit makes more."""


class OrganismPrompts:
    """Makes prompt sets out of the organisms' tasks."""

    def names(self) -> list[str]:
        """The organisms."""
        return names()

    def load(self, name: str, *, split: str | None, limit: int | None, seed: int) -> PromptSet:
        """Pairs of one split: `"train"` from problems that were trained on, otherwise held-out ones."""
        wanted = limit or DEFAULT_SIZE
        part = "train" if split == "train" else "held_out"
        made = get(name).problems(wanted, split=part, seed=seed)
        return made


PROVIDER = OrganismPrompts()
