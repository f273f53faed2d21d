"""Spec of a patchscope: what a model says of a stream that is put into another prompt."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from workbench.patching.specs.places import Place, one_place
from workbench.progress import Progress
from workbench.specs import ModelSpec, Spec

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel
    from workbench.results import Result


class PatchscopeSpec(Spec):
    """Patchscope; fields as in `workbench.patching.patchscope`, without a mapping (a function has no YAML).

    Positions are indices or words (`last`, `match:Eiffel Tower`; of several tokens the last one). Without a `target`
    it is `ENTITY_DESCRIPTION`, which asks which thing the stream stands for. `target_model` is loaded beside the model.
    With `aliases` the result says in which cells the text names one of them (`decodes`).
    """

    kind: ClassVar[str] = "patchscope"

    source: str
    target: str | None = None
    source_position: Place = "last"
    target_position: Place = "last"
    source_layers: list[int] | None = None
    target_layers: list[int] | None = None
    target_model: ModelSpec | None = None
    aliases: list[str] | None = None
    max_new_tokens: int = Field(default=10, ge=1)
    n_tokens_top: int = Field(default=5, ge=1)
    control: bool = True

    def title(self) -> str:
        """The source prompt."""
        return self.source

    def run(self, model: LanguageModel, progress: Progress) -> Result:
        from workbench.patching.patchscopes import ENTITY_DESCRIPTION, patchscope

        target = ENTITY_DESCRIPTION if self.target is None else self.target
        speaker = None if self.target_model is None else self.target_model.load()
        (source_position,) = one_place(model, [self.source], [{}], self.source_position, "source_position")
        (target_position,) = one_place(
            speaker or model, [target], [{}], self.target_position, "target_position"
        )
        result = patchscope(
            model,
            self.source,
            target,
            source_position=source_position,
            target_position=target_position,
            source_layers=self.source_layers,
            target_layers=self.target_layers,
            target_model=speaker,
            max_new_tokens=self.max_new_tokens,
            n_tokens_top=self.n_tokens_top,
            seed=self.seed,
            control=self.control,
            progress=progress,
        )
        return result if self.aliases is None else _with_decoded(result, self.aliases)


def _with_decoded(result: Result, aliases: list[str]) -> Result:
    """The result with `decoded` and `resolved`, and how many cells that are."""
    from workbench.patching.patchscopes import decodes

    found = decodes(result, aliases)
    data = result.data.assign({name: found[name] for name in found.data_vars})
    data.attrs["aliases"] = aliases
    named = {name: found.attrs[name] for name in found.attrs if name.startswith("n_") and name != "n_cells"}
    summary = {**result.summary, **named, "unpatched_decoded": found.attrs["unpatched"]}
    return replace(result, data=data, summary=summary)
