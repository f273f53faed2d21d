"""`Selection`: which tokens of a prompt are kept, said in words.

| rule | tokens |
| --- | --- |
| `"all"` | every one |
| `"last"`, `-1`, `0`, `[0, 3, -2]`, `"0,3"` | by place; negative ones count from the prompt's end |
| `"span:NAME"` | those of a named stretch of the text; a prompt without it is an error |
| `"answer"` | those of the answer |
| `"match:REGEX"` | those that overlap a match of the regular expression in the text |
| `"token:TEXT"` | those that are exactly this text (mind the leading space) |
| `"role:assistant"` | those that messages of this role wrote, in a chat |
| `[[0, 3], [1], …]` | by place, one list for each prompt |

A list of rules means any of them; each token is taken once, in order. `special="drop"` leaves special tokens (BOS,
EOS, those a chat template writes) out of whatever the rules give; `"keep"` has no effect on the rules.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

import numpy as np

from workbench.collection.items import Context
from workbench.collection.rules import KNOWN, Rule, places_of, rules_of
from workbench.errors import PositionError, did_you_mean
from workbench.model.offsets import covered

__all__ = ["Selection"]


@dataclass(frozen=True)
class Selection:
    """Which tokens are kept. Made by `Selection.parse`; equal ones describe themselves equally.

    A selection notes which of its rules have found a token, so that a pattern which matches nothing in all of the
    data does not pass for a result: use a new one for each run and end it with `check_used`.
    """

    rules: tuple[Rule, ...]
    """In canonical order, none twice. Empty where there is one list for each prompt."""
    lists: tuple[tuple[int, ...], ...] | None = None
    """One list of places for each prompt."""
    special: Literal["keep", "drop"] = "keep"
    _found: set[Rule] = field(default_factory=set, init=False, repr=False, compare=False)
    _roles: set[str] = field(default_factory=set, init=False, repr=False, compare=False)
    _counts: dict[str, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def parse(cls, positions: Any, *, special: str = "keep") -> Selection:
        """A selection from a rule, a list of rules, or one list of places for each prompt.

        Of a `Selection` a new one is made, which has found nothing yet; it drops special tokens where either says so.

        Raises:
            PositionError: no such rule (the nearest is named), a regular expression that cannot be read, nothing
                asked for, or `special` neither `"keep"` nor `"drop"`.

        Example:
            >>> Selection.parse(["last", "span:io", 0]).describe()
            {'rules': [-1, 0, 'span:io'], 'special': 'keep'}
        """
        if special not in ("keep", "drop"):
            near = did_you_mean(special, ("keep", "drop")) if isinstance(special, str) else ""
            raise PositionError(f"special is {special!r}; expected 'keep' or 'drop'.{near}")
        if isinstance(positions, Selection):
            special = "drop" if positions.special == "drop" else special
            return cls(positions.rules, positions.lists, special)  # type: ignore[arg-type]
        given: Any = positions.tolist() if hasattr(positions, "tolist") else positions
        if isinstance(given, str) or not isinstance(given, Iterable):
            given = [given]
        listed = [g.tolist() if hasattr(g, "tolist") else g for g in given]
        if not listed:
            raise PositionError(f"No positions were asked for: give {KNOWN}, or a list of these.")
        nested = [isinstance(g, list | tuple | range) for g in listed]
        if all(nested):
            lists = tuple(places_of(g, prompt) for prompt, g in enumerate(listed))
            return cls((), lists, special)  # type: ignore[arg-type]
        if any(nested):
            raise PositionError(
                "Positions mix lists with single rules: give rules, or one list of places for each prompt."
            )
        rules = {rule for g in listed for rule in rules_of(g)}
        ordered = sorted(rules, key=lambda r: (isinstance(r.plain(), str), r.plain()))
        return cls(tuple(ordered), None, special)  # type: ignore[arg-type]

    @property
    def needs_texts(self) -> bool:
        """Whether contexts must be made with the texts of their tokens."""
        return any(rule.kind in ("match", "token") for rule in self.rules)

    def describe(self) -> dict[str, Any]:
        """Plain JSON for a manifest, the same for selections that mean the same. Lists for each prompt are hashed."""
        if self.lists is not None:
            digest = hashlib.sha256(json.dumps(self.lists).encode()).hexdigest()
            return {"lists": len(self.lists), "sha256": digest, "special": self.special}
        return {"rules": [rule.plain() for rule in self.rules], "special": self.special}

    def select(self, context: Context, *, n_prompt_tokens: int | None = None) -> tuple[np.ndarray, list[str]]:
        """The tokens of one context that are kept.

        Args:
            context: the prompt. Rules for texts need one made with `need_texts`.
            n_prompt_tokens: how many of its tokens are the prompt, where the model wrote the others. Places and
                `last` count in the prompt, whatever was written after it.

        Returns:
            [row] int32 positions, sorted, none twice; and for each the names of the spans it lies in, joined by `|`.

        Raises:
            PositionError: a place outside the prompt, a span, answer or role that it does not have, or no list for
                it; the message names the prompt.
        """
        n = len(context.ids) if n_prompt_tokens is None else n_prompt_tokens
        if self.lists is not None:
            if context.number >= len(self.lists):
                raise PositionError(
                    f"{len(self.lists)} lists of positions were given, but there are more prompts: {context.id!r} is "
                    f"number {context.number} from 0. Give one list for each."
                )
            chosen = {_place(context, place, n) for place in self.lists[context.number]}
        else:
            chosen = set()
            for rule in self.rules:
                found = self._tokens(rule, context, n)
                if len(found):
                    self._found.add(rule)
                chosen.update(found)
        if self.special == "drop":
            chosen.difference_update(context.special)
        self._counts["rows"] = self._counts.get("rows", 0) + len(chosen)
        self._counts["prompts"] = max(self._counts.get("prompts", 0), context.number + 1)
        positions = sorted(chosen)
        return np.array(positions, dtype=np.int32), _span_names(context, positions)

    def check_used(self, *, resumed: bool = False) -> None:
        """At the end of a run: has every rule found a token, and every list a prompt?

        Args:
            resumed: this run went on with an earlier one, whose prompts were not seen here. Nothing can be said then.

        Raises:
            PositionError: a rule that found no token in any prompt, lists that are left over, or no token at all.
        """
        if resumed:
            return
        for rule in self.rules:
            if rule not in self._found:
                self._not_used(rule)
        n = self._counts.get("prompts", 0)
        if self.lists is not None and n < len(self.lists):
            raise PositionError(
                f"{len(self.lists)} lists of positions were given for {n} prompts: give one for each."
            )
        if not self._counts.get("rows"):
            raise PositionError(
                "Not one token was selected: all that the positions gave were special tokens. Use special='keep'."
            )

    def _not_used(self, rule: Rule) -> NoReturn:
        hint = ""
        if rule.kind == "role":
            there = sorted(self._roles)
            hint = f"{did_you_mean(str(rule.value), there)} The roles are {', '.join(there) or 'none'}."
        elif rule.kind == "token":
            hint = " Words inside a sentence begin with a space, and a word may be several tokens."
        elif rule.kind == "match":
            hint = " It is looked for in the text as it was given, upper and lower case told apart; (?i) ignores case."
        raise PositionError(f"Positions {rule.plain()!r} found no token in any prompt.{hint}")

    def _tokens(self, rule: Rule, context: Context, n: int) -> Collection[int]:
        match rule.kind:
            case "all":
                return range(len(context.ids))
            case "index":
                return (_place(context, int(rule.value), n),)
            case "span" | "answer":
                return _span(context, str(rule.value) if rule.kind == "span" else "answer")
            case "role":
                return self._role(context, str(rule.value))
            case "token":
                texts = _required(context, "texts")
                return [i for i, text in enumerate(texts) if text == rule.value]
            case "match":
                text, offsets = _required(context, "text"), _required(context, "offsets")
                stretches = [m.span() for m in re.finditer(str(rule.value), text) if m.end() > m.start()]
                return [p for found in covered(text, offsets, stretches) for p in found] if stretches else []

    def _role(self, context: Context, role: str) -> list[int]:
        if context.roles is None:
            raise PositionError(
                f"Prompt {context.id!r} has no roles, so there is no 'role:{role}': it is not a chat, or it is one "
                "whose template changes what the messages say, or whose tokenizer does not tell characters. Give "
                "'messages' with 'role' and 'content', or other positions."
            )
        self._roles.update(r for r in context.roles if r)
        return [i for i, r in enumerate(context.roles) if r == role]


def _place(context: Context, place: int, n: int) -> int:
    if not -n <= place < n:
        raise PositionError(
            f"Position {place} is outside prompt {context.id!r} of {n} tokens (0 to {n - 1}, or -1 to {-n} from its "
            "end)."
        )
    return place % n


def _span(context: Context, name: str) -> tuple[int, ...]:
    if name not in context.spans:
        if name == "answer":
            raise PositionError(
                f"Prompt {context.id!r} has no answer to read: give it an 'answer', or other positions."
            )
        there = ", ".join(map(repr, context.spans)) or "none"
        raise PositionError(
            f"Prompt {context.id!r} has no span {name!r}.{did_you_mean(name, context.spans)} Its spans: {there}."
        )
    return context.spans[name]


def _required(context: Context, what: str) -> Any:
    value = getattr(context, what)
    if value is None:
        raise PositionError(
            f"Prompt {context.id!r} was made without the texts of its tokens: use contexts(..., need_texts=True)."
        )
    return value


def _span_names(context: Context, positions: list[int]) -> list[str]:
    if not context.spans:
        return [""] * len(positions)
    names: dict[int, list[str]] = {p: [] for p in positions}
    for name, tokens in context.spans.items():
        for token in tokens:
            if token in names:
                names[token].append(name)
    return ["|".join(names[p]) for p in positions]
