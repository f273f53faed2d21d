"""Spec of an ablation: sites, or their heads, taken away one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from workbench.patching.specs.metric import OF_ONE_RUN
from workbench.patching.specs.pairs import noted
from workbench.patching.specs.prompts import MeasuredPrompts, ReferenceFields
from workbench.progress import Progress
from workbench.specs import Spec

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel
    from workbench.results import Result


class AblateSpec(ReferenceFields, MeasuredPrompts, Spec):
    """Ablation; fields as in `workbench.patching.ablate`.

    Prompts as in `PromptFields`; what is put in comes from them, or as in `ReferenceFields`.
    """

    kind: ClassVar[str] = "ablate"
    metrics: ClassVar[tuple[str, ...]] = OF_ONE_RUN
    why_not: ClassVar[str] = "compares two runs, which ablation does not"

    sites: str | list[str] = "blocks.*.hook_attn_out"
    how: Literal["zero", "mean", "mean_over_positions", "resample", "noise"] = "mean"
    positions: Literal["all"] | int | list[int] = "all"
    heads: Literal["each"] | list[int] | None = None
    control: bool = True

    @property
    def one_length(self) -> bool:
        """Means position by position, and another prompt's run, need prompts of one length."""
        return self.how in ("mean", "resample")

    def run(self, model: LanguageModel, progress: Progress) -> Result:
        from workbench.patching.ablation import ablate

        prompts, metrics = self.measured(model)
        like = prompts.texts[0] if self.one_length else None
        same = self.where if self.reference_dataset == self.dataset else None
        reference, drawn = self.references(model, self.seed, like, same)
        result = ablate(
            model,
            prompts.texts,
            self.sites,
            metrics,
            how=self.how,
            reference=reference,
            positions=self.positions,
            heads=self.heads,
            control=self.control,
            seed=self.seed,
            progress=progress,
        )
        return noted(result, prompts.note | drawn)
