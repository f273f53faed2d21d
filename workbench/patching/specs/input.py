"""Spec of input attribution: which tokens of a prompt carry the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from workbench.patching.specs.metric import WITH_GRADIENT
from workbench.patching.specs.pairs import noted
from workbench.patching.specs.prompts import MeasuredPrompts
from workbench.progress import Progress
from workbench.specs import Spec

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel
    from workbench.results import Result


class InputSpec(MeasuredPrompts, Spec):
    """Input attribution; fields as in `workbench.patching.input_attribution`, prompts as in `MeasuredPrompts`.

    `baseline` is `mean`, `zero`, `pad`, `random`, or a list of prompts of as many tokens, one for each prompt (for
    expected gradients: a set for all of them).
    """

    kind: ClassVar[str] = "input_attribution"
    metrics: ClassVar[tuple[str, ...]] = tuple(name for name in WITH_GRADIENT if name != "kl")
    why_not: ClassVar[str] = "has no gradient here"

    method: Literal["gradient_x_input", "integrated_gradients", "expected_gradients", "samp"] = (
        "integrated_gradients"
    )
    baseline: Literal["mean", "zero", "pad", "random"] | list[str] | None = None
    steps: int | Literal["auto"] = "auto"
    tolerance: float = Field(default=0.02, gt=0)
    max_steps: int = Field(default=512, ge=1)
    control: bool = True

    def run(self, model: LanguageModel, progress: Progress) -> Result:
        from workbench.patching.input_attribution import input_attribution

        prompts, metrics = self.measured(model)
        result = input_attribution(
            model,
            prompts.texts,
            metrics,
            method=self.method,
            baseline=self.baseline,
            steps=self.steps,
            tolerance=self.tolerance,
            max_steps=self.max_steps,
            control=self.control,
            seed=self.seed,
            progress=progress,
        )
        return noted(result, prompts.note)
