"""Spec of a probe sweep over labelled statements."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from workbench.errors import DataError
from workbench.progress import Progress
from workbench.specs import Spec

if TYPE_CHECKING:
    from workbench.datasets import PromptSet
    from workbench.model.language_model import LanguageModel
    from workbench.results import Result

Kind = Literal["logistic", "mass_mean", "mass_mean_whitened"]
"""The names in `probes.estimators.KINDS`, here so that a misspelt one is found before a model is loaded."""


class ProbeSpec(Spec):
    """Collect activations of a set of statements and probe them; the other fields as in `probes.sweep`.

    `labels` are the two labels to tell apart; statements with another label are left out, and the result says
    "n of N". Without it, the two labels of the set, or "true" and "false" where it has more. `filter` keeps
    records whose fields have the given values, then `limit` draws so many with `seed`. Groups are those of the
    set, if it has any, or the values of the field `group_by`. In "capitals" a group is the countries that exchange
    their capitals: every city stands in it once truly and once falsely. Grouped by country instead, a probe that
    has learnt cities scores far *below* one half, which shuffled labels do not show.

    Example:
        >>> ProbeSpec(dataset="capitals", filter={"negated": False}, limit=400).run(model, Silent())
    """

    kind: ClassVar[str] = "probe"

    dataset: str
    labels: tuple[str, str] | None = None
    positive: str | None = None
    filter: dict[str, Any] = Field(default_factory=dict)
    group_by: str | None = None
    limit: int | None = Field(default=None, ge=1)
    sites: str | list[str] = "blocks.*.hook_resid_post"
    position: int = -1
    kinds: list[Kind] = Field(default=["logistic", "mass_mean"], min_length=1)
    folds: int = Field(default=5, ge=2)
    penalty: float = Field(default=1.0, gt=0)
    controls: bool = True
    n_control: int = Field(default=5, ge=1)
    n_bootstrap: int = Field(default=1000, ge=1)

    def title(self) -> str:
        some = [f"{name}={value}" for name, value in self.filter.items()]
        some += [f"{self.limit} prompts"] if self.limit is not None else []
        part = f" ({', '.join(some)})" if some else ""
        return f"{self.dataset}{part}: {', '.join(self.kinds)}"

    def run(self, model: LanguageModel, progress: Progress) -> Result:
        from probes.sweep import sweep
        from workbench.activations import collect

        prompts, note = self._prompts()
        by = self.group_by or "group"
        acts = collect(model, prompts.texts, sites=self.sites, positions=self.position, progress=progress)
        result = sweep(
            acts,
            prompts.labels,
            kinds=self.kinds,
            controls=self.controls,
            groups=prompts.column(by) if by in prompts.field_names or self.group_by else None,
            positive=self.positive,
            folds=self.folds,
            penalty=self.penalty,
            seed=self.seed,
            n_bootstrap=self.n_bootstrap,
            n_control=self.n_control,
            progress=progress,
        )
        about = {"fingerprint": prompts.fingerprint, "licence": prompts.licence, "source": prompts.source}
        result.provenance.settings.update(dataset={"name": prompts.name, **about})
        result.data.attrs.update(note)
        result.summary.update(note)
        return result

    def _prompts(self) -> tuple[PromptSet, dict[str, Any]]:
        from workbench.datasets import load

        every = load(self.dataset)
        if every.kind != "statements":
            raise DataError(
                f"{self.dataset!r} holds {every.kind}: a probe needs statements (text and label)."
            )
        used = every.filter(label=list(self.labels or _two_labels(every)))
        if self.filter:
            used = used.filter(**self.filter)
        if self.limit is not None and self.limit < len(used):
            used = used.sample(self.limit, seed=self.seed)
        steps = f" ({'; '.join(used.selection)})" if len(used) < len(every) else ""
        prompts = f"{len(used)} of {len(every)} in {every.name}{steps}"
        return used, {"prompts": prompts, "position": self.position, "group_by": self.group_by or "group"}


def _two_labels(prompts: PromptSet) -> list[str]:
    found = sorted(set(prompts.labels))
    if len(found) > 2 and {"true", "false"} <= set(found):
        return ["false", "true"]
    if len(found) != 2:
        raise DataError(
            f"{prompts.name!r} has {len(found)} labels ({', '.join(found[:8])}): say which two to tell apart "
            "(labels)."
        )
    return found
