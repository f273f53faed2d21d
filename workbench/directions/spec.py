"""Spec of the tokens that a named direction promotes and suppresses."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from workbench.progress import Progress
from workbench.specs import Spec

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel
    from workbench.results import Result


class DirectionTokensSpec(Spec):
    """Promoted and suppressed tokens of one direction of the library, beside random directions of its strength.

    Attributes:
        direction: its name in the library, or a file.
        k: tokens of each side.
        strength: norm of what is added; the direction's scale by default.
        network: also with the blocks after its site running.
        n_random: random directions of the control.
        force: accept a direction that was made on another model.
    """

    kind: ClassVar[str] = "direction_tokens"

    direction: str = Field(min_length=1)
    k: int = Field(default=10, ge=1)
    strength: float | None = None
    network: bool = True
    n_random: int = Field(default=20, ge=1)
    force: bool = False

    def title(self) -> str:
        return f"tokens of {self.direction}"

    def run(self, model: LanguageModel, progress: Progress) -> Result:
        from workbench.directions import top_tokens
        from workbench.directions.named import one_named

        found = one_named(self.direction)
        return top_tokens(
            model, found, self.k, strength=self.strength, network=self.network, n_random=self.n_random,
            seed=self.seed, force=self.force, progress=progress,
        )  # fmt: skip
