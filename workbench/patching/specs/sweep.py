"""Spec of a patching sweep, over one pair of prompts or a set of pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from workbench.patching.cells import HEADS, Kind
from workbench.patching.sources import Source
from workbench.patching.specs.pairs import PairFields, noted
from workbench.progress import Preview, Progress, preview
from workbench.specs import Spec

if TYPE_CHECKING:
    import numpy as np

    from workbench.model.language_model import LanguageModel
    from workbench.results import Result


class PatchSpec(PairFields, Spec):
    """Patching sweep; fields as in `workbench.patching.sweep`, of which `kind` is called `site` here.

    Prompts as in `PairFields`: `clean`, `corrupt`, `answer` and `wrong`, or `dataset` and `limit`.
    """

    kind: ClassVar[str] = "patch"

    site: Kind = "resid_pre"
    direction: Literal["denoising", "noising"] = "denoising"
    source: Source = "run"
    layers: list[int] | None = None
    control: bool = True

    def run(self, model: LanguageModel, progress: Progress) -> Result:
        from workbench.patching.sweep import sweep

        pairs = self.pairs(model)
        columns = {"neurons": "group"}.get(
            self.site, "head" if self.site in (*HEADS, "pattern") else "position"
        )

        def paint(pair: int, grid: np.ndarray) -> None:
            title = f"{self.site}, pair {pair + 1} of {len(pairs.clean)}"
            preview(progress, Preview(title, grid, "layer", columns))

        result = sweep(
            model,
            pairs.clean,
            pairs.corrupt,
            pairs.metrics,
            kind=self.site,
            direction=self.direction,
            source=self.source,
            layers=self.layers,
            control=self.control,
            seed=self.seed,
            watch=paint,
            progress=progress,
        )
        return noted(result, pairs.note)
