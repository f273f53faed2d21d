"""Spec of a steering run: a mean-difference direction from a labelled set, and its dose–response."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from workbench.progress import Progress
from workbench.steering.specs.labelled_sets import TwoSides
from workbench.steering.specs.rule import Rule

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel
    from workbench.results import Result


class SteerSpec(TwoSides):
    """Mean difference between two labels of a set, added to prompts at several strengths.

    The direction is made from `n_train` texts of each label, drawn with `seed`; `prompts` are what it is tried on.
    """

    kind: ClassVar[str] = "steer"

    site: str = "blocks.14.hook_resid_post"
    prompts: list[str] = Field(
        default_factory=lambda: [
            "I watched the film yesterday. It was",
            "We ate at the new restaurant. The food was",
            "My sister read the book. She said it was",
            "They stayed at the hotel by the station. The room was",
            "He bought a new phone last week. He thinks it is",
            "She went to the concert on Friday. The band was",
        ],
        min_length=1,
    )
    answer: str = " good"
    wrong: str = " bad"
    strengths: list[float] = Field(default_factory=lambda: [-20.0, -10.0, -5.0, 5.0, 10.0, 20.0])
    where: Rule = "all"
    n_random: int = Field(default=5, ge=1)
    show_text: int = Field(default=0, ge=0)

    def title(self) -> str:
        return f"{self.positive} − {self.negative} ({self.dataset}) at {self.site}"

    def run(self, model: LanguageModel, progress: Progress) -> Result:
        from workbench.patching.metrics import LogitDifference
        from workbench.steering.directions import mean_difference
        from workbench.steering.dose_response import dose_response
        from workbench.steering.rules import as_rule

        sides = self.sides()
        direction = mean_difference(
            model, sides[0], sides[1], self.site, name=f"{self.positive} − {self.negative}", progress=progress
        )
        return dose_response(
            model,
            self.prompts,
            direction,
            self.strengths,
            LogitDifference(self.answer, self.wrong),
            n_random=self.n_random,
            where=as_rule(self.where),
            show_text=self.show_text,
            seed=self.seed,
            progress=progress,
        )
