"""Spec of edge attribution patching: which node's output matters to which later node."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from workbench.patching.specs.metric import WITH_GRADIENT
from workbench.patching.specs.pairs import PairFields, noted
from workbench.progress import Progress
from workbench.specs import Spec

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel
    from workbench.results import Result


class EdgesSpec(PairFields, Spec):
    """Edge attribution; fields as in `workbench.patching.edges`, prompts as in `PairFields`."""

    kind: ClassVar[str] = "edges"
    metrics: ClassVar[tuple[str, ...]] = WITH_GRADIENT
    why_not: ClassVar[str] = "has no gradient"

    heads: bool = True
    direction: Literal["denoising", "noising"] = "denoising"
    integrate: int = Field(default=0, ge=0)
    control: bool = True

    def run(self, model: LanguageModel, progress: Progress) -> Result:
        from workbench.patching.edge_attribution import edges

        pairs = self.pairs(model)
        result = edges(
            model,
            pairs.clean,
            pairs.corrupt,
            pairs.metrics,
            heads=self.heads,
            direction=self.direction,
            integrate=self.integrate,
            control=self.control,
            seed=self.seed,
            progress=progress,
        )
        return noted(result, pairs.note)
