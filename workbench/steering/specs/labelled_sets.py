"""The two sides of a direction, from a labelled data set."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field, model_validator

from workbench.errors import DataError
from workbench.specs import Spec


class TwoSides(Spec):
    """Fields of specs that make directions: two labels of a data set.

    Attributes:
        dataset: a labelled set (`workbench data list`), or a file of one.
        positive, negative: labels steered towards and away from.
        pair_by: field that pairs a text of one label with one of the other: both have one value of it (`group`);
            where no two have, it is taken to hold the other's id (`counterpart` of `sentiment`). None: no pairs.
        n_train: texts of each label, drawn with the seed.
    """

    dataset: str = "sentiment"
    positive: str = "positive"
    negative: str = "negative"
    pair_by: str | None = None
    n_train: int = Field(default=60, ge=1)

    @model_validator(mode="after")
    def _two_labels(self) -> Any:
        if self.positive == self.negative:
            raise ValueError(f"both labels are {self.positive!r}: give two that differ")
        return self

    def sides(self) -> tuple[list[str], list[str]]:
        """Texts of the positive and of the negative label, in the order of pairs where there are such.

        Raises:
            DataError: no texts of a label, or texts that cannot be paired by the field.
        """
        from workbench.datasets import load

        loaded = load(self.dataset)
        found = []
        for label in (self.positive, self.negative):
            chosen = loaded.filter(label=label) if label in set(loaded.labels) else None
            if chosen is None or not len(chosen):
                known = sorted(set(loaded.labels))
                raise DataError(f"{self.dataset!r} has no texts labelled {label!r}; its labels are {known}.")
            found.append(chosen)
        if self.pair_by is None:
            drawn = [one.sample(min(self.n_train, len(one)), seed=self.seed).texts for one in found]
            return list(drawn[0]), list(drawn[1])
        first = self._by_pair(found[0], self.positive)
        second = self._partners(first, found[1])
        both = [key for key in first if key is not None and key in second]
        if len(both) < 2:
            raise DataError(
                f"Only {len(both)} values of {self.pair_by!r} have a text of {self.positive!r} and one of "
                f"{self.negative!r}: choose a field that pairs them, or leave pair_by away."
            )
        order = np.random.default_rng(self.seed).permutation(len(both))[: self.n_train]
        return [first[both[i]] for i in order], [second[both[i]] for i in order]

    def _partners(self, first: dict[Any, str], negatives: Any) -> dict[Any, str]:
        """The negatives by the field's value; by id where the field pairs nothing and every value of `first` is one."""
        ids = dict(zip(negatives.column("id"), negatives.texts, strict=True))
        are_ids = set(first) <= set(ids)
        try:
            second = self._by_pair(negatives, self.negative)
        except DataError:
            if are_ids:
                return ids
            raise
        return second if not are_ids or any(key in second for key in first if key is not None) else ids

    def _by_pair(self, prompts: Any, label: str) -> dict[Any, str]:
        """Value of the field -> text."""
        assert self.pair_by is not None
        values = prompts.column(self.pair_by)
        if odd := [v for v in values if isinstance(v, (list, dict))]:
            raise DataError(
                f"{self.pair_by!r} is {odd[0]!r} for a text labelled {label!r}: pairs need a text or number."
            )
        if len(set(values)) < len(values):
            twice = next(v for v in values if values.count(v) > 1)
            raise DataError(
                f"{self.pair_by!r} is {twice!r} for several texts labelled {label!r}: it does not say which text "
                "belongs to which."
            )
        return dict(zip(values, prompts.texts, strict=True))
