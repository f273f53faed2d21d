"""Spec of a regression: numbers that a data set's fields hold, read at every site."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator

from probes.specs.prompts import PromptFields, about
from workbench.errors import DataError
from workbench.progress import Progress

if TYPE_CHECKING:
    from workbench.datasets import PromptSet
    from workbench.model.language_model import LanguageModel
    from workbench.results import Result

PENALTIES = [10.0**k for k in range(-3, 8)]


class NumbersSpec(PromptFields):
    """Ridge probes of one or several quantities (`probes.regress`), by the names of the fields that hold them.

    Of pairs the clean prompts are read.

    Example:
        >>> NumbersSpec(dataset="addition", model={"name": "addition"}, targets=["a", "b", "result"], limit=600)
    """

    kind: ClassVar[str] = "probe_numbers"
    unused: ClassVar[tuple[str, ...]] = ("positive",)

    targets: list[str] = Field(min_length=1)
    sites: str | list[str] = "blocks.*.hook_resid_post"
    position: int = -1
    folds: int = Field(default=5, ge=2)
    penalties: list[float] = Field(default=PENALTIES, min_length=1)
    controls: bool = True
    n_control: int = Field(default=5, ge=0)
    n_bootstrap: int = Field(default=1000, ge=1)

    @field_validator("penalties")
    @classmethod
    def _positive(cls, given: list[float]) -> list[float]:
        if not all(0 < value < float("inf") for value in given):
            raise ValueError("ridge penalties are numbers above 0")
        return given

    def title(self) -> str:
        return f"{self.described()}: {', '.join(self.targets)}"

    def run(self, model: LanguageModel, progress: Progress) -> Result:
        from probes.regress import regress
        from workbench.activations import collect

        prompts, note = self.chosen(labelled=False)
        targets = {name: _numbers(prompts, name) for name in self.targets}
        acts = collect(model, prompts.texts, sites=self.sites, positions=self.position, progress=progress)
        result = regress(
            acts,
            targets,
            groups=self.grouping(prompts),
            folds=self.folds,
            penalties=self.penalties,
            controls=self.controls,
            n_control=self.n_control,
            n_bootstrap=self.n_bootstrap,
            seed=self.seed,
            progress=progress,
        )
        result.provenance.settings["dataset"] = about(prompts)
        result.data.attrs.update(note | {"position": self.position})
        result.summary.update(note)
        return result


def _numbers(prompts: PromptSet, name: str) -> list[Any]:
    values = prompts.column(name)
    bad = next((v for v in values if isinstance(v, bool) or not isinstance(v, (int, float))), None)
    if bad is not None or None in values:
        first = next(v for v in values if isinstance(v, bool) or not isinstance(v, (int, float)))
        held = [
            field
            for field in prompts.field_names
            if all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in prompts.column(field))
        ]
        raise DataError(
            f"Field {name!r} of {prompts.name!r} holds {first!r}, which is no number. Fields of numbers: "
            f"{', '.join(held) or 'none'}."
        )
    return values
