"""Spec of comparative neuron analysis: which neurons turn what a head brings into the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from workbench.patching.specs.pairs import noted
from workbench.patching.specs.prompts import PromptFields
from workbench.progress import Progress
from workbench.specs import Spec

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel
    from workbench.results import Result


class NeuronsSpec(PromptFields, Spec):
    """Comparative neuron analysis; fields as in `workbench.patching.comparative`, prompts as in `PromptFields`.

    `head` is `strongest` (that whose silence costs the answer most), `[layer, head]`, or `none` for the importance
    of the neurons alone.
    """

    kind: ClassVar[str] = "neurons"

    head: Literal["strongest", "none"] | tuple[int, int] = "strongest"
    control_heads: int = Field(default=3, ge=0)
    freeze: bool = True
    layers: list[int] | None = None

    def run(self, model: LanguageModel, progress: Progress) -> Result:
        from workbench.patching.neurons import comparative, importance

        prompts = self.chosen(model)
        answers = [str(answer) for answer in prompts.answers]
        options = {"freeze": self.freeze, "layers": self.layers, "seed": self.seed, "progress": progress}
        if self.head == "none":
            result = importance(model, prompts.texts, answers, **options)  # type: ignore[arg-type]
        else:
            result = comparative(
                model,
                prompts.texts,
                answers,
                head=self.head,
                control_heads=self.control_heads,
                **options,  # type: ignore[arg-type]
            )
        return noted(result, prompts.note)
