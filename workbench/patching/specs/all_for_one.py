"""Spec of the all-for-one subgraph, and of the search for the smallest one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, model_validator

from workbench.patching.specs.pairs import noted
from workbench.patching.specs.prompts import PromptFields, ReferenceFields
from workbench.progress import Progress
from workbench.specs import Spec

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel
    from workbench.results import Result


class AllForOneSpec(ReferenceFields, PromptFields, Spec):
    """All-for-one; fields as in `workbench.patching.all_for_one` and `search`, without a sampler.

    With `wait` and `peek` that subgraph is run; without both, all of `waits` and `peeks` are searched for the smallest
    that keeps the share `keep` of the answers. Prompts as in `PromptFields` (one length), means as in
    `ReferenceFields`.
    """

    kind: ClassVar[str] = "all_for_one"

    limit: int = Field(default=200, ge=1)
    reference_limit: int = Field(default=20_000, ge=1)
    wait: int | None = Field(default=None, ge=0)
    peek: int | None = Field(default=None, ge=0)
    waits: list[int] | None = None
    peeks: list[int] | None = None
    keep: float = Field(default=0.95, ge=0, le=1)
    allowed: int | None = Field(default=None, ge=1)
    n_least: int = Field(default=100, ge=1)

    @property
    def one_length(self) -> bool:
        """Positions must correspond."""
        return True

    @model_validator(mode="after")
    def _one_subgraph_or_a_search(self) -> Self:
        if (self.wait is None) != (self.peek is None):
            raise ValueError("give both wait and peek (one subgraph), or none of them (a search)")
        if self.wait is not None and (self.waits is not None or self.peeks is not None):
            raise ValueError("give either wait and peek (one subgraph), or waits and peeks (a search)")
        return self

    def run(self, model: LanguageModel, progress: Progress) -> Result:
        from workbench.patching.all_for_one import all_for_one, search

        prompts = self.chosen(model)
        answers = [str(answer) for answer in prompts.answers]
        same = self.where if self.reference_dataset == self.dataset else None
        reference, drawn = self.references(model, self.seed, prompts.texts[0], same)
        shared: dict[str, Any] = {
            "reference": reference,
            "allowed": self.allowed,
            "n_least": self.n_least,
            "seed": self.seed,
            "progress": progress,
        }
        if self.wait is not None and self.peek is not None:
            result = all_for_one(model, prompts.texts, answers, wait=self.wait, peek=self.peek, **shared)
        else:
            chosen = {"waits": self.waits, "peeks": self.peeks, "keep": self.keep}
            result = search(model, prompts.texts, answers, **chosen, **shared)
        return noted(result, prompts.note | drawn)
