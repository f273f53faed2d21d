"""Spec of attribution patching: every cell of a sweep estimated at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from workbench.patching.cells import Kind
from workbench.patching.specs.metric import WITH_GRADIENT
from workbench.patching.specs.pairs import PairFields, noted
from workbench.progress import Progress
from workbench.specs import Spec

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel
    from workbench.results import Result


Kinds = Annotated[list[Kind], BeforeValidator(lambda given: [given] if isinstance(given, str) else given)]
"""One kind, or several."""


class AttributionSpec(PairFields, Spec):
    """Attribution patching; fields as in `workbench.patching.attribution`, of which `kind` is called `site` here.

    Prompts as in `PairFields`.
    """

    kind: ClassVar[str] = "attribution"
    metrics: ClassVar[tuple[str, ...]] = WITH_GRADIENT
    why_not: ClassVar[str] = "has no gradient"

    site: Kinds = Field(default=["resid_pre"], min_length=1)
    by: Literal["auto", "head_position"] = "auto"
    direction: Literal["denoising", "noising"] = "denoising"
    integrate: int = Field(default=0, ge=0)
    recheck: Annotated[int, Field(ge=0)] | Literal["all"] = 0
    layers: list[int] | None = None
    control: bool = True

    def run(self, model: LanguageModel, progress: Progress) -> Result:
        from workbench.patching.attribution import attribution

        pairs = self.pairs(model)
        result = attribution(
            model,
            pairs.clean,
            pairs.corrupt,
            pairs.metrics,
            kind=self.site[0] if len(self.site) == 1 else self.site,
            by=self.by,
            direction=self.direction,
            integrate=self.integrate,
            recheck=self.recheck,
            layers=self.layers,
            control=self.control,
            seed=self.seed,
            progress=progress,
        )
        return noted(result, pairs.note)
