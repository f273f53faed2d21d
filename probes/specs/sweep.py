"""Spec of a probe sweep over a data set or a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator, model_validator

from probes.specs.prompts import MANY_CLASSES, Kind, PromptFields, Rule, about
from probes.specs.stored import StoredModel, stored_groups, stored_labels
from workbench.errors import DataError
from workbench.progress import Progress

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel
    from workbench.results import Result

STREAM = "blocks.*.hook_resid_post"
"""Sites where none are named; of a store: all that it holds."""


class ProbeSpec(PromptFields):
    """Collect activations of a set of prompts and probe them; the other fields as in `probes.sweep`.

    Read is the field `label` (of the classes in `labels`), or what `label_sets` says: rules by name, `field=value` or
    `field`, which share one sweep. In "capitals" a group is the countries that exchange their capitals: every city
    stands in it once truly and once falsely. Grouped by country instead, a probe that has learnt cities scores far
    *below* one half, which shuffled labels do not show.

    With `store` the rows of a store on disk are probed as they are; `label_sets` and `group_by` then name labels of
    its prompts, and no model is loaded. `sites` are by default the stream after every block, of a store all it holds.

    `penalty` is C, one or several; of several the one with the least held-out log-loss is taken.

    Example:
        >>> ProbeSpec(dataset="capitals", filter={"negated": False}, limit=400).run(model, Silent())
        >>> ProbeSpec(dataset="capitals", label_sets={"truth": "label=true", "africa": "continent=Africa"})
    """

    kind: ClassVar[str] = "probe"

    dataset: str = ""
    store: str | None = None
    label_sets: dict[str, Rule] = Field(default_factory=dict)
    sites: str | list[str] = STREAM
    position: int = -1
    kinds: list[Kind] = Field(default=["logistic", "mass_mean"], min_length=1)
    folds: int = Field(default=5, ge=2)
    penalty: float | list[float] = 1.0
    controls: bool = True
    n_control: int = Field(default=5, ge=1)
    n_bootstrap: int = Field(default=1000, ge=1)
    keep_scores: bool = False

    @field_validator("penalty")
    @classmethod
    def _positive(cls, given: float | list[float]) -> float | list[float]:
        values = given if isinstance(given, list) else [given]
        if not values or not all(0 < v < float("inf") for v in values):
            raise ValueError("C is a number above 0, or several")
        return given

    @model_validator(mode="after")
    def _data_set_or_store(self) -> ProbeSpec:
        if bool(self.dataset) == bool(self.store):
            raise ValueError("give a data set or a store (not both): dataset='capitals', or store='acts/'")
        if not self.store:
            return self
        if "sites" not in self.model_fields_set:
            self.sites = ["*"]  # what is not asked for is all; the stream that is asked for is the stream
        if not self.label_sets:
            raise ValueError(
                "name the labels of the store's prompts that are read: label_sets={'truth': 'truth'}"
            )
        extra = [name for name in ("labels", "filter", "limit") if getattr(self, name)]
        if extra or self.position != -1:
            raise ValueError(
                f"the rows of a store are probed as they are: leave {(extra or ['position'])[0]} out (collect what "
                "you want to probe)"
            )
        if not isinstance(self.model, StoredModel):
            self.model = StoredModel.of(self.model, self.store)
        return self

    def title(self) -> str:
        what = self.described() if self.dataset else str(self.store)
        names = f" · {', '.join(self.label_sets)}" if self.label_sets else ""
        return f"{what}{names}: {', '.join(self.kinds)}"

    def run(self, model: LanguageModel, progress: Progress) -> Result:
        from probes.sweep import sweep

        acts, labels, groups, note, source = (
            self._stored() if self.store else self._collected(model, progress)
        )
        result = sweep(
            acts,
            labels,
            kinds=self.kinds,
            controls=self.controls,
            groups=groups,
            sites=self.sites if self.store else None,  # collected is what was asked for
            positive=self.positive,
            folds=self.folds,
            penalty=self.penalty,
            seed=self.seed,
            n_bootstrap=self.n_bootstrap,
            n_control=self.n_control,
            keep_scores=self.keep_scores,
            progress=progress,
        )
        result.provenance.settings.update(dataset=source)
        result.data.attrs.update(note)
        result.summary.update(note)
        return result

    def _collected(self, model: LanguageModel, progress: Progress) -> tuple[Any, Any, Any, dict, dict]:
        from workbench.activations import collect

        prompts, note = self.chosen(labelled=not self.label_sets)
        labels: Any = prompts.labels if not self.label_sets else self._from_fields(prompts)
        self._check_classes(labels)
        acts = collect(model, prompts.texts, sites=self.sites, positions=self.position, progress=progress)
        return (
            acts,
            labels,
            self.grouping(prompts),
            note | self._reading() | {"position": self.position},
            about(prompts),
        )

    def _stored(self) -> tuple[Any, Any, Any, dict, dict]:
        from workbench.store import open_store

        store = open_store(str(self.store))
        labels = stored_labels(store, self.label_sets)
        self._check_classes(labels)
        note = self._reading() | {
            "prompts": f"{len(store)} rows of {len(store.prompts)} prompts in {self.store}"
        }
        note |= {"group_by": self.group_by} if self.group_by else {}
        return store, labels, stored_groups(store, self.group_by), note, {"store": str(self.store)}

    def _from_fields(self, prompts: Any) -> dict[str, list[Any]]:
        return {
            name: rule.of(prompts.column(rule.field), repr(prompts.name))
            for name, rule in self.label_sets.items()
        }

    def _reading(self) -> dict[str, Any]:
        """What the labels are, for the attributes; none where it is the field `label`."""
        return (
            {"reads": {name: str(rule) for name, rule in self.label_sets.items()}} if self.label_sets else {}
        )

    def _check_classes(self, labels: Any) -> None:
        """Found before anything is collected: a kind that does not know so many classes."""
        sets = labels if isinstance(labels, dict) else {"": labels}
        most = max(len(set(map(str, values))) for values in sets.values())
        few = [kind for kind in self.kinds if kind not in MANY_CLASSES]
        if most > 2 and few:
            raise DataError(
                f"Kind {few[0]!r} tells two classes apart, but the labels have {most}: choose two labels, or kinds of "
                f"{', '.join(MANY_CLASSES)}."
            )
