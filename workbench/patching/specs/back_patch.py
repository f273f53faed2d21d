"""Spec of back-patching: the stream of later blocks given to earlier ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from workbench.patching.specs.pairs import noted
from workbench.patching.specs.places import Places, one_place
from workbench.patching.specs.prompts import PromptFields
from workbench.progress import Progress
from workbench.specs import Spec

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel
    from workbench.results import Result


class BackPatchSpec(PromptFields, Spec):
    """Back-patching; fields as in `workbench.patching.back_patch`, prompts as in `PromptFields`.

    `positions` is one index or word for all prompts (`last`, `-1`, `span:first`, `match:…`; of several tokens the
    last one), or a list with one list of a single index for each prompt. Answers may have several tokens.
    """

    kind: ClassVar[str] = "back_patch"

    limit: int = Field(default=50, ge=1)
    positions: Places = "last"
    layers: list[int] | None = None
    control: bool = True

    def run(self, model: LanguageModel, progress: Progress) -> Result:
        from workbench.patching.back_patching import back_patch

        prompts = self.chosen(model)
        result = back_patch(
            model,
            prompts.texts,
            [str(answer) for answer in prompts.answers],
            positions=one_place(model, prompts.texts, prompts.spans, self.positions, "positions"),
            layers=self.layers,
            seed=self.seed,
            control=self.control,
            progress=progress,
        )
        return noted(result, {"positions": str(self.positions), **prompts.note})
