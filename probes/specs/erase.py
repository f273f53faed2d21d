"""Spec of an erasure: how much of a label a probe reads at a site after LEACE has erased it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from probes.specs.prompts import PromptFields, Rule, about
from workbench.errors import DataError
from workbench.progress import Progress

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel
    from workbench.results import Result


class EraseSpec(PromptFields):
    """Scores of a logistic probe before and after erasing a label (`probes.erasure.erase_scores`).

    The label is the field `label`, or what `erase` says (`continent`, `continent=Africa`).

    Example:
        >>> EraseSpec(dataset="sentiment", site="blocks.14.hook_resid_post").run(model, Silent())
    """

    kind: ClassVar[str] = "probe_erase"
    unused: ClassVar[tuple[str, ...]] = ("positive",)

    erase: Rule | None = None
    site: str = "blocks.14.hook_resid_post"
    position: int = -1
    folds: int = Field(default=5, ge=2)
    penalty: float = Field(default=1.0, gt=0)
    n_bootstrap: int = Field(default=1000, ge=1)

    def title(self) -> str:
        return f"{self.described()}: {self.erase or 'label'} erased at {self.site}"

    def run(self, model: LanguageModel, progress: Progress) -> Result:
        from probes.erasure import erase_scores
        from workbench.activations import collect

        prompts, note = self.chosen(labelled=self.erase is None)
        labels = prompts.labels if self.erase is None else self.erase.of(
            prompts.column(self.erase.field), repr(prompts.name)
        )  # fmt: skip
        acts = collect(model, prompts.texts, sites=self.site, positions=self.position, progress=progress)
        if len(acts.sites) != 1:
            raise DataError(f"{self.site!r} stands for {len(acts.sites)} sites: erase at one.")
        progress.stage("erase", 1)
        result = erase_scores(
            acts.rows(acts.sites[0]).flatten(1).float().numpy(),
            labels,
            groups=self.grouping(prompts),
            folds=self.folds,
            penalty=self.penalty,
            seed=self.seed,
            n_bootstrap=self.n_bootstrap,
        )
        progress.advance()
        made = acts.provenance
        result.provenance.model.update(made.model)
        result.provenance.inputs.update(made.inputs)
        result.provenance.settings["dataset"] = about(prompts)
        note |= {"site": acts.sites[0], "erased": str(self.erase or "label"), "position": self.position}
        result.data.attrs.update(note)
        result.summary.update(note)
        return result
