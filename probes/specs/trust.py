"""Spec of a trust report: a probe at every layer beside every control."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from probes.specs.prompts import LinearKind, PromptFields, about
from workbench.progress import Progress

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel
    from workbench.results import Result


class TrustSpec(PromptFields):
    """All controls of a probe, layer by layer (`probes.trust.trust_report`).

    Example:
        >>> TrustSpec(dataset="capitals", filter={"negated": False}, probe="mass_mean").run(model, Silent())
    """

    kind: ClassVar[str] = "probe_trust"

    sites: str | list[str] = "blocks.*.hook_resid_post"
    position: int = -1
    probe: LinearKind = "logistic"
    random_position: bool = False
    folds: int = Field(default=5, ge=2)
    penalty: float = Field(default=1.0, gt=0)
    n_control: int = Field(default=3, ge=1)
    n_bootstrap: int = Field(default=1000, ge=1)

    def title(self) -> str:
        return f"{self.described()}: {self.probe} and its controls"

    def run(self, model: LanguageModel, progress: Progress) -> Result:
        from probes.trust.report import trust_report

        prompts, note = self.chosen()
        result = trust_report(
            model,
            prompts.texts,
            prompts.labels,
            groups=self.grouping(prompts),
            sites=self.sites,
            position=self.position,
            kind=self.probe,
            positive=self.positive,
            random_position=self.random_position,
            folds=self.folds,
            penalty=self.penalty,
            n_control=self.n_control,
            n_bootstrap=self.n_bootstrap,
            seed=self.seed,
            progress=progress,
        )
        result.provenance.settings["dataset"] = about(prompts)
        result.data.attrs.update(note)
        result.summary.update(note)
        return result
