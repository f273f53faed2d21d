"""Spec of a transfer: train on one part, test on another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from probes.source import one_site
from probes.specs.prompts import LinearKind, PromptFields, about, same
from workbench.errors import DataError
from workbench.progress import Progress

if TYPE_CHECKING:
    from workbench.activations import Activations
    from workbench.datasets import PromptSet
    from workbench.model.language_model import LanguageModel
    from workbench.results import Result


class TransferSpec(PromptFields):
    """Train on every set, test on every set (`probes.trust.transfer_matrix`).

    The sets are said in one of four ways: `sets`, conditions on fields by name (`{"plain": {"negated": False}}`);
    `by`, a field whose every value is one; `other_datasets`, each whole data set; `across_sites`, the sites that
    `site` stands for.

    Example:
        >>> TransferSpec(dataset="capitals", by="negated", site="blocks.20.hook_resid_post").run(model, Silent())
    """

    kind: ClassVar[str] = "probe_transfer"

    by: str | None = None
    sets: dict[str, dict[str, Any]] = Field(default_factory=dict)
    other_datasets: list[str] = Field(default_factory=list)
    across_sites: bool = False
    site: str = "blocks.14.hook_resid_post"
    position: int = -1
    kinds: list[LinearKind] = Field(default=["mass_mean", "logistic"], min_length=1)
    shared: Literal["held_out", "refuse"] = "held_out"
    folds: int = Field(default=5, ge=2)
    penalty: float = Field(default=1.0, gt=0)
    n_control: int = Field(default=5, ge=1)
    n_bootstrap: int = Field(default=1000, ge=1)

    @model_validator(mode="after")
    def _one_way(self) -> TransferSpec:
        ways = [bool(self.by), bool(self.sets), bool(self.other_datasets), self.across_sites]
        if sum(ways) != 1:
            raise ValueError(
                "say in one way what the sets are: by='negated' (each value of a field), sets={'plain': {'negated': "
                "False}, …}, other_datasets=[…], or across_sites=True"
            )
        if len(self.sets) == 1:
            raise ValueError("one set was given: a transfer needs two or more")
        return self

    def title(self) -> str:
        how = f"by {self.by}" if self.by else ", ".join(self.sets or [self.dataset, *self.other_datasets])
        return f"{self.described()}: {'between sites' if self.across_sites else how}"

    def run(self, model: LanguageModel, progress: Progress) -> Result:
        from probes.trust.sets import by_layer, split_by
        from probes.trust.transfer import transfer_matrix
        from workbench.activations import collect

        seen: list[str] = []

        def read(prompts: PromptSet) -> Activations:
            acts = collect(model, prompts.texts, sites=self.site, positions=self.position, progress=progress)
            seen[:] = acts.sites
            return acts

        names = [self.dataset, *self.other_datasets]
        found = {name: self.chosen(name) for name in names}
        prompts, note = found[self.dataset]
        sets: dict[str, Any]
        if self.other_datasets:
            sets = {name: (read(one), one.labels, self.grouping(one)) for name, (one, _) in found.items()}
            note = {"prompts": "; ".join(said["prompts"] for _, said in found.values())}
        elif self.across_sites:
            sets = dict(by_layer(read(prompts), prompts.labels, self.grouping(prompts)))
        elif self.by:
            values = [str(v) for v in prompts.column(self.by)]
            named = [f"{self.by}={v}" for v in values]
            sets = dict(split_by(read(prompts), prompts.labels, named, self.grouping(prompts)))
        else:
            sets = self._conditions(prompts, read)
        result = transfer_matrix(
            sets,
            kinds=self.kinds,
            positive=self.positive,
            shared=self.shared,
            folds=self.folds,
            penalty=self.penalty,
            n_control=self.n_control,
            n_bootstrap=self.n_bootstrap,
            seed=self.seed,
            progress=progress,
        )
        result.provenance.settings["dataset"] = {name: about(one) for name, (one, _) in found.items()}
        result.provenance.model.update({"name": model.name, "fingerprint": model.fingerprint})
        site = seen[0] if len(seen) == 1 else self.site  # several only across sites
        result.data.attrs.update(note | {"site": site, "position": self.position})
        result.summary.update(note | {"site": site})
        return result

    def _conditions(self, prompts: PromptSet, read: Any) -> dict[str, Any]:
        """One collection, cut into the sets, of which a row may stand in several; an empty set is found before it."""
        rows = {name: self._rows(prompts, name, conditions) for name, conditions in self.sets.items()}
        groups = self.grouping(prompts) or [f"prompt {i}" for i in range(len(prompts))]
        acts = read(prompts)
        x = acts.rows(one_site(self.site, acts.sites)).flatten(1)
        return {
            name: (x[at], [prompts.labels[i] for i in at], [groups[i] for i in at])
            for name, at in rows.items()
        }

    @staticmethod
    def _rows(prompts: PromptSet, name: str, conditions: dict[str, Any]) -> list[int]:
        columns = {field: prompts.column(field) for field in conditions}
        at = [
            i
            for i in range(len(prompts))
            if all(same(columns[field][i], wanted) for field, wanted in conditions.items())
        ]
        if not at:
            asked = ", ".join(f"{k}={v}" for k, v in conditions.items())
            raise DataError(f"Set {name!r} is empty: no prompt of {prompts.name!r} has {asked}.")
        return at
