"""Spec of a comparison of methods at equal KL, over tasks that ship or one of your own labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from workbench.progress import Progress
from workbench.specs import Spec

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel
    from workbench.results import Result


class CompareSpec(Spec):
    """Methods of making a direction, compared at equal KL on prompts nothing was chosen on.

    Attributes:
        tasks: names of `workbench.steering.measure.shipped_tasks.SHIPPED`.
        sites: candidates; each method keeps the best on the selection prompts.
        target_kl: nats per token along the unsteered continuation.
        n_test: prompts that are judged.
        n_random: random directions of the control.
        tolerance: of the KL, relative.
    """

    kind: ClassVar[str] = "steer_compare"

    tasks: list[str] = Field(default_factory=lambda: ["sentiment", "language"], min_length=1)
    sites: list[str] = Field(
        default_factory=lambda: ["blocks.14.hook_resid_post", "blocks.18.hook_resid_post"], min_length=1
    )
    target_kl: float = Field(default=1.0, gt=0)
    n_test: int = Field(default=24, ge=2)
    n_random: int = Field(default=3, ge=1)
    tolerance: float = Field(default=0.1, gt=0, lt=1)

    def title(self) -> str:
        return f"methods at KL {self.target_kl:g}: {', '.join(self.tasks)}"

    def run(self, model: LanguageModel, progress: Progress) -> Result:
        from workbench.steering.measure import compare_methods
        from workbench.steering.measure.shipped_tasks import shipped_task

        made = [shipped_task(model, name, n_test=self.n_test, seed=self.seed) for name in self.tasks]
        return compare_methods(
            model,
            made,
            sites=self.sites,
            target_kl=self.target_kl,
            n_random=self.n_random,
            tolerance=self.tolerance,
            seed=self.seed,
            progress=progress,
        )
