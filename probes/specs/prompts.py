"""The prompts of a data set that a spec asks for, and the labels to read from them.

A *rule* says what one label is: a field (its values are the classes), or a field and a value (whether the field has
it). As text: `continent=Africa`, `negated`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from workbench.errors import DataError, did_you_mean
from workbench.specs import Spec

if TYPE_CHECKING:
    from workbench.datasets import PromptSet

Kind = Literal["logistic", "ridge", "mass_mean", "mass_mean_whitened", "lda", "mlp", "pca", "kmeans"]
"""Kinds that `probes.sweep` takes by name, here so that a misspelt one is found before a model is loaded."""
LinearKind = Literal["logistic", "ridge", "mass_mean", "mass_mean_whitened"]
"""Kinds that `probes.trust` fits."""
MANY_CLASSES = ("logistic", "lda", "mlp")
"""Kinds that know more than two classes."""
OTHER = "neither"
"""The label of statements that are of neither class: not taken unless it is asked for."""


class Rule(BaseModel):
    """What one label is: the values of a field, or whether the field has a value. Also from text, `field=value`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    field: str = Field(min_length=1)
    value: str | bool | int | float | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        name, equals, value = given.partition("=")
        return {"field": name.strip(), "value": value if equals else None}

    def __str__(self) -> str:
        return self.field if self.value is None else f"{self.field}={self.value}"

    def of(self, values: list[Any], where: str) -> list[Any]:
        """One label for each value of the field: the value itself, or whether it is the one of the rule.

        Raises:
            DataError: a row without the field, or a value that no row has.
        """
        missing = [i for i, v in enumerate(values) if v is None]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(values)} rows of {where} have no {self.field!r}, the first is row "
                f"{missing[0]}: keep rows that have one (--where FIELD=VALUE, or --labels A,B for the field label)."
            )
        if self.value is None:
            return values
        if not any(same(v, self.value) for v in values):
            known = list(dict.fromkeys(str(v) for v in values))
            shown = ", ".join(known[:12]) + (f", … ({len(known)} in all)" if len(known) > 12 else "")
            hint = did_you_mean(str(self.value), known)
            raise DataError(f"No row of {where} has {self.field}={self.value!s}; there are {shown}.{hint}")
        return [same(v, self.value) for v in values]


def same(value: Any, wanted: Any) -> bool:
    """Whether a field has a value that may be written as text (`true`, `7`, and 7 for 7.0)."""
    if isinstance(value, bool) or isinstance(wanted, bool):
        return str(value).lower() == str(wanted).lower()
    if isinstance(value, int | float) and isinstance(wanted, str):
        try:
            return value == float(wanted)
        except ValueError:
            return False
    return value == wanted or str(value) == str(wanted)


class PromptFields(Spec):
    """Fields that every spec over a data set has.

    `labels` are the classes to tell apart (of the field `label`); statements with another label are left out. Without
    it, the two labels of the set, or "true" and "false" where it has more. `filter` keeps records whose fields have
    the given values (of a list, any), then `limit` draws so many with `seed`. Groups, which no split divides, are
    those of the set, if it has any, or the values of the field `group_by`.
    """

    unused: ClassVar[tuple[str, ...]] = ()
    """Of the fields below, those that a kind of run would not look at; it refuses them."""

    dataset: str
    labels: list[str] | None = Field(default=None, min_length=2)
    positive: str | None = None
    filter: dict[str, Any] = Field(default_factory=dict)
    group_by: str | None = None
    limit: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> PromptFields:
        idle = [name for name in self.unused if getattr(self, name) is not None]
        if idle:
            raise ValueError(f"{idle[0]} has no effect on this kind of run ({self.kind}): leave it out")
        return self

    def described(self) -> str:
        """The data set and what is chosen from it, in a few words."""
        some = [f"{name}={value}" for name, value in self.filter.items()]
        some += [f"{self.limit} prompts"] if self.limit is not None else []
        return self.dataset + (f" ({', '.join(some)})" if some else "")

    def chosen(
        self, dataset: str | None = None, *, labelled: bool = True
    ) -> tuple[PromptSet, dict[str, Any]]:
        """The prompts, and what the result says of them ("n of N").

        Args:
            dataset: another set than `self.dataset`.
            labelled: whether the field `label` is what is read; then the set must hold statements.

        Raises:
            DataError: no such set or value, a set of another kind, labels that must be named.
        """
        every = _load(dataset or self.dataset, self.limit)
        used = every
        if labelled and every.kind != "statements":
            raise DataError(
                f"{every.name!r} holds {every.kind}: a probe needs statements (text and label), or labels made from "
                "a field (--label NAME=FIELD)."
            )
        if labelled or self.labels:
            used = used.filter(label=list(self.labels or two_labels(every)))
        if self.filter:
            used = used.filter(**{name: _as_held(used, name, wanted) for name, wanted in self.filter.items()})
        if self.limit is not None and self.limit < len(used):
            used = used.sample(self.limit, seed=self.seed)
        steps = f" ({'; '.join(used.selection)})" if len(used) < len(every) else ""
        note: dict[str, Any] = {"prompts": f"{len(used)} of {len(every)} in {every.name}{steps}"}
        if self.grouping(used) is not None:
            note["group_by"] = self.group_by or "group"
        return used, note

    def grouping(self, prompts: PromptSet) -> list[Any] | None:
        """The group of every prompt, or None where the set has none and none was asked for."""
        by = self.group_by or "group"
        return prompts.column(by) if self.group_by or by in prompts.field_names else None


def about(prompts: PromptSet) -> dict[str, Any]:
    """A data set in a provenance."""
    return {
        "name": prompts.name,
        "fingerprint": prompts.fingerprint,
        "licence": prompts.licence,
        "source": prompts.source,
    }


def two_labels(prompts: PromptSet) -> list[str]:
    """The labels to tell apart where none were named."""
    found = sorted(set(prompts.labels))
    if len(found) > 2 and {"true", "false"} <= set(found):
        return ["false", "true"]
    if len(found) < 2:
        raise DataError(
            f"Every statement of {prompts.name!r} has the label {found[0] if found else 'none'!r}: a probe tells two "
            "labels apart, give statements of both."
        )
    if len(found) != 2:
        raise DataError(
            f"{prompts.name!r} has {len(found)} labels ({', '.join(found[:8])}): say which to tell apart (--labels)."
        )
    return found


def _load(name: str, limit: int | None) -> PromptSet:
    from workbench.datasets import generated, load

    found = load(name)
    if limit is not None and len(found) < limit and name in generated():
        return load(name, limit=limit)  # made on demand, so there are as many as one wants
    return found


def _as_held(prompts: PromptSet, name: str, wanted: Any) -> Any:
    """A value as the records have it, where it is written as text (`false`, `7`); left alone where none has it."""
    values = prompts.column(name)

    def held(one: Any) -> Any:
        return next((v for v in values if v is not None and same(v, one)), one)

    return [held(one) for one in wanted] if isinstance(wanted, list | tuple) else held(wanted)
