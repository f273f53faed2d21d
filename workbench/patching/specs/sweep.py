"""Spec of a patching sweep, over one pair of prompts or a set of pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import model_validator

from workbench.patching.cells import HEADS, By, Kind
from workbench.patching.sources import Source
from workbench.patching.specs.pairs import PairFields, noted
from workbench.progress import Preview, Progress, preview
from workbench.specs import Spec

if TYPE_CHECKING:
    import numpy as np

    from workbench.model.language_model import LanguageModel
    from workbench.patching.alignment import Alignment
    from workbench.results import Result


class PatchSpec(PairFields, Spec):
    """Patching sweep; fields as in `workbench.patching.sweep`, of which `kind` is called `site` here.

    Prompts as in `PairFields`: `clean`, `corrupt`, `answer` and `wrong`, or `dataset` and `limit`.

    For one pair of different lengths `alignment` says what corresponds: `diff` (by comparing tokens), or named spans,
    `{"name": ["Mary Ann", "John"]}` (their text in the clean and in the corrupt prompt; of spans of unequal length the
    last tokens). `checkpoint` is a file for what is done when the sweep is stopped; the same spec goes on from there.
    """

    kind: ClassVar[str] = "patch"

    site: Kind = "resid_pre"
    direction: Literal["denoising", "noising"] = "denoising"
    source: Source = "run"
    by: By = "auto"
    alignment: Literal["diff"] | dict[str, tuple[str, str]] | None = None
    layers: list[int] | None = None
    control: bool = True
    checkpoint: str | None = None

    @model_validator(mode="after")
    def _one_pair_is_aligned(self) -> Self:
        if self.alignment is not None and self.dataset is not None:
            raise ValueError("alignment is of one pair: of a dataset, pairs of one length are taken")
        return self

    def run(self, model: LanguageModel, progress: Progress) -> Result:
        from workbench.patching.sweep import sweep

        pairs = self.pairs(model)
        columns = {"neurons": "group"}.get(
            self.site, "head" if self.site in (*HEADS, "pattern") else "position"
        )

        def paint(pair: int, grid: np.ndarray) -> None:
            if grid.ndim == 2:
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
            by=self.by,
            alignment=self._aligned(model),
            checkpoint=self.checkpoint,
            layers=self.layers,
            control=self.control,
            seed=self.seed,
            watch=paint,
            progress=progress,
        )
        return noted(result, pairs.note)

    def _aligned(self, model: LanguageModel) -> Alignment | None:
        from workbench.patching.alignment import Alignment, align

        if self.alignment is None or self.clean is None or self.corrupt is None:
            return None
        if self.alignment == "diff":
            return align(model, self.clean, self.corrupt)
        return Alignment.of_spans(model, self.clean, self.corrupt, self.alignment, unequal="last")  # type: ignore[arg-type]
