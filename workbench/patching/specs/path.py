"""Spec of path patching: what goes from senders to receivers directly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from workbench.patching.specs.pairs import PairFields, noted
from workbench.progress import Progress
from workbench.specs import Spec

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel
    from workbench.results import Result

Sender = tuple[int, int | Literal["mlp"]]
"""Block and head, or block and `mlp`."""
Receiver = str | tuple[str, int]
"""A site (or pattern of sites), or a site and one of its heads."""


class PathPatchSpec(PairFields, Spec):
    """Path patching; fields as in `workbench.patching.path_patch`, prompts as in `PairFields`.

    Receivers are `logits`, sites, or `[site, head]`; senders lists of `[block, head]` or `[block, mlp]`.
    """

    kind: ClassVar[str] = "path_patch"

    receivers: str | Annotated[list[Receiver], Field(min_length=1)] = "logits"
    senders: Annotated[list[Annotated[list[Sender], Field(min_length=1)]], Field(min_length=1)] | None = None
    freeze: Literal["heads", "all"] = "heads"
    direction: Literal["denoising", "noising"] = "denoising"
    control: bool = True

    def run(self, model: LanguageModel, progress: Progress) -> Result:
        from workbench.patching.path import path_patch

        pairs = self.pairs(model)
        result = path_patch(
            model,
            pairs.clean,
            pairs.corrupt,
            pairs.metrics,
            self.receivers,
            senders=self.senders,
            freeze=self.freeze,
            direction=self.direction,
            control=self.control,
            seed=self.seed,
            progress=progress,
        )
        return noted(result, pairs.note)
