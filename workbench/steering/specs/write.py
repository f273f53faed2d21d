"""Spec of z_steer: vectors that make the frozen model write given sentences."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from workbench.progress import Progress
from workbench.specs import Spec

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel
    from workbench.results import Result


class WriteSpec(Spec):
    """One vector a sentence, found by optimisation, and what generation writes with it.

    Attributes:
        sentences: texts to be written.
        layer: block after which the vector is added.
        prefix: what stands before the sentence; None: the beginning-of-sequence token (position 0 is an attention sink
            in many models: a few tokens of prefix work much better).
        where: `all` positions, or the `last` of the prefix alone.
        restarts, steps, learning_rate, init: of the search, see `workbench.steering.extract.z_steer`.
    """

    kind: ClassVar[str] = "z_steer"

    sentences: list[str] = Field(min_length=1)
    layer: int = Field(ge=0)
    prefix: str | None = "<|im_start|>assistant\n"
    where: Literal["all", "last"] = "all"
    restarts: int = Field(default=2, ge=1)
    steps: int = Field(default=300, ge=1)
    learning_rate: float = Field(default=1.0, gt=0)
    init: float = Field(default=1.0, ge=0)

    def title(self) -> str:
        first = self.sentences[0] if len(self.sentences) == 1 else f"{len(self.sentences)} sentences"
        return f"write {first!r} from block {self.layer}" if len(self.sentences) == 1 else f"write {first}"

    def run(self, model: LanguageModel, progress: Progress) -> Result:
        from workbench.directions.carried import with_direction
        from workbench.steering.extract.z_steer import z_steer

        found = z_steer(
            model, self.sentences, self.layer, prefix=self.prefix, where=self.where, restarts=self.restarts,
            steps=self.steps, learning_rate=self.learning_rate, init=self.init, seed=self.seed, progress=progress,
        )  # fmt: skip
        return replace(found.result, data=with_direction(found.result.data, found.directions))
