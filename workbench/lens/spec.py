"""Spec of a logit lens run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from workbench.progress import Progress
from workbench.specs import Spec

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel
    from workbench.results import Result


class LensSpec(Spec):
    """Logit lens on one prompt; fields as in `workbench.lens.logit_lens`."""

    kind: ClassVar[str] = "lens"

    prompt: str | list[dict[str, str]]
    target: str | None = None
    positions: Literal["all"] | int | list[int] = "all"
    top_k: int = Field(default=5, ge=1, le=100)
    n_control: int = Field(default=32, ge=1)

    def title(self) -> str:
        return self.prompt if isinstance(self.prompt, str) else str(self.prompt[-1].get("content", ""))

    def run(self, model: LanguageModel, progress: Progress) -> Result:
        from workbench.lens.logit_lens import logit_lens

        arguments: dict[str, Any] = self.model_dump(exclude={"model", "prompt"})
        return logit_lens(model, self.prompt, progress=progress, **arguments)
