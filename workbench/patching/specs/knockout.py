"""Spec of an attention knock-out: edges from some positions to others, blocked in windows of layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from workbench.patching.specs.metric import OF_ONE_RUN
from workbench.patching.specs.pairs import noted
from workbench.patching.specs.places import Places, places
from workbench.patching.specs.prompts import MeasuredPrompts
from workbench.progress import Progress
from workbench.specs import Spec

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel
    from workbench.results import Result


class KnockoutSpec(MeasuredPrompts, Spec):
    """Attention knock-out; fields as in `workbench.patching.knockout`, prompts as in `PromptFields`.

    Queries and keys are indices, one list of them for each prompt, or words (`workbench.patching.specs.places`):
    `last`, `all`, `span:io` (a span of the data set's records), `match:Mary|John`.
    """

    kind: ClassVar[str] = "knockout"
    metrics: ClassVar[tuple[str, ...]] = OF_ONE_RUN
    why_not: ClassVar[str] = "compares two runs, which knock-out does not"

    queries: Places = "last"
    keys: Places
    layers: Literal["windows"] | list[list[int]] = "windows"
    window: int = Field(default=1, ge=1)
    heads: list[int] | None = None
    renormalise: bool = True
    to_bos: bool = False
    control: bool = True

    def run(self, model: LanguageModel, progress: Progress) -> Result:
        from workbench.patching.knockout import knockout

        prompts, metrics = self.measured(model)
        result = knockout(
            model,
            prompts.texts,
            metrics,
            queries=places(model, prompts.texts, prompts.spans, self.queries, "queries"),
            keys=places(model, prompts.texts, prompts.spans, self.keys, "keys"),
            layers=self.layers,
            window=self.window,
            heads=self.heads,
            renormalise=self.renormalise,
            to_bos=self.to_bos,
            control=self.control,
            seed=self.seed,
            progress=progress,
        )
        return noted(result, {"queries": str(self.queries), "keys": str(self.keys), **prompts.note})
