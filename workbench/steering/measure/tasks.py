"""A task of a method comparison: pairs to make directions from, prompts to choose on, prompts to judge on, a scorer.

The three sets of prompts must share nothing: directions are made from `positive` and `negative`, site and strength are
chosen on `selection`, and only `test` is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from workbench.errors import DataError
from workbench.model.tokens import Prompt
from workbench.steering.measure.methods import Examples
from workbench.steering.measure.scorers import FunctionScorer, as_scorer


@dataclass(frozen=True, eq=False)
class SteeringTask:
    """One thing that steering should do.

    Args:
        name: for tables.
        positive, negative: prompts that are, and are not, what is wanted; the i-th of both make a pair.
        selection: prompts that site and strength are chosen on.
        test: prompts that are judged.
        scorer: texts -> numbers, higher is more of what is wanted; see `as_scorer`.
        in_context: prompt -> prompt that asks for it in words: the baseline without steering. None: no such row.
        max_new_tokens: length of the continuations.
        scorer_note: what is known of the scorer, say its held-out AUC; kept in the result.

    Raises:
        DataError: an empty set, pairs that do not match, a prompt that is in two sets.

    Example:
        >>> SteeringTask("upper case", positive=[...], negative=[...], selection=[...], test=[...], scorer=UpperCase())
    """

    name: str
    positive: Sequence[Prompt]
    negative: Sequence[Prompt]
    selection: Sequence[Prompt]
    test: Sequence[Prompt]
    scorer: Any
    in_context: Callable[[Any], Prompt] | None = None
    max_new_tokens: int = 20
    scorer_note: str = ""
    examples: Examples = field(init=False, repr=False)
    score: FunctionScorer = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for which in ("selection", "test"):
            if len(getattr(self, which)) < 2:
                raise DataError(f"Task {self.name!r} needs at least two {which} prompts.")
        sets = {
            "training": [*self.positive, *self.negative],
            "selection": list(self.selection),
            "test": list(self.test),
        }
        owner: dict[str, str] = {}
        for which, prompts in sets.items():
            for prompt in prompts:
                if owner.setdefault(repr(prompt), which) != which:
                    raise DataError(
                        f"Task {self.name!r} has {prompt!r} among its {owner[repr(prompt)]} and its {which} prompts: "
                        "what is judged must not be what was chosen on."
                    )
        if self.max_new_tokens < 1:
            raise DataError(f"Task {self.name!r} generates {self.max_new_tokens} tokens: give at least 1.")
        examples = Examples(tuple(self.positive), tuple(self.negative), self.name)
        object.__setattr__(self, "examples", examples)
        object.__setattr__(self, "score", as_scorer(self.scorer))
