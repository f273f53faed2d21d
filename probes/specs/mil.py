"""Spec of the three-way multiple-instance probe: true, false or neither, with conformal sets."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from probes.specs.prompts import OTHER, PromptFields, about
from workbench.progress import Progress

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel
    from workbench.results import Result


class MilSpec(PromptFields):
    """Stacked multiple-instance probes over the last tokens of statements (`probes.mil.three_way`).

    `labels` are the classes; by default "true", "false" and "neither".

    Example:
        >>> MilSpec(dataset="capitals", filter={"negated": False}, limit=300, sites="blocks.20.hook_resid_post")
    """

    kind: ClassVar[str] = "probe_mil"
    unused: ClassVar[tuple[str, ...]] = ("positive",)

    labels: list[str] | None = Field(default=["true", "false", OTHER], min_length=2)
    sites: str | list[str] = "blocks.14.hook_resid_post"
    max_tokens: int = Field(default=10, ge=1)
    known_positive: int = Field(default=2, ge=1)
    skip: int = Field(default=1, ge=0)
    folds: int = Field(default=5, ge=3)
    alpha: float = Field(default=0.1, gt=0, lt=1)
    per_class: bool = False
    n_control: int = Field(default=1, ge=0)
    n_bootstrap: int = Field(default=1000, ge=1)

    def title(self) -> str:
        return f"{self.described()}: {' / '.join(self.labels or [])} over token bags"

    def run(self, model: LanguageModel, progress: Progress) -> Result:
        from probes.mil.three_way import three_way
        from workbench.activations import collect

        prompts, note = self.chosen()
        acts = collect(model, prompts.texts, sites=self.sites, positions="all", progress=progress)
        result = three_way(
            acts,
            prompts.labels,
            classes=self.labels,
            groups=self.grouping(prompts),
            max_tokens=self.max_tokens,
            known_positive=self.known_positive,
            skip=self.skip,
            folds=self.folds,
            alpha=self.alpha,
            per_class=self.per_class,
            n_control=self.n_control,
            n_bootstrap=self.n_bootstrap,
            seed=self.seed,
            progress=progress,
        )
        result.provenance.settings["dataset"] = about(prompts)
        result.data.attrs.update(note)
        result.summary.update(note)
        return result
