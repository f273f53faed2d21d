"""Which positions are steered. Positions are absolute in the unpadded text, so a rule means the same with and without
KV cache, alone or in a batch, with padding on either side. With a prompt of n tokens:

    all          [0, ∞)            every token
    prompt       [0, n)            the tokens of the prompt
    generated    [n, ∞)            the tokens after it
    last         [n - 1, n)        the prompt's last token
    From(k)      [k, ∞)            from position k on (negative: counted from the prompt's end), or from the first
                                   occurrence of a text or token in the prompt

Every rule is one stretch [first, end) per row. A `Condition` narrows it further, to where a probe fires.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from workbench.directions import Direction
from workbench.errors import DataError, PositionError, SiteError, did_you_mean
from workbench.hooks.context import HookContext
from workbench.model.offsets import covered, spell
from workbench.model.tokens import resolve_positions, token_texts

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel

NAMED = ("all", "prompt", "generated", "last")
END = 2**31 - 1
"""A stretch without an end."""


@dataclass(frozen=True)
class From:
    """From one token of each prompt on, through prompt and generation. Give exactly one of the three.

    Attributes:
        index: its position; negative counts from the prompt's end (`From(-1)`: the prompt's last token and all that
            is generated). One beyond the prompt is a position of the continuation.
        text: the first token that carries the first occurrence of this text in the prompt.
        token: the first occurrence of this token (an id, or a text that is one token).

    Example:
        >>> Steering(d, 8.0, where=From(text="Mary"))
    """

    index: int | None = None
    text: str | None = None
    token: int | str | None = None

    def __post_init__(self) -> None:
        given = [x for x in (self.index, self.text, self.token) if x is not None]
        if len(given) != 1 or (isinstance(given[0], str) and not given[0]) or isinstance(given[0], bool):
            raise DataError("From takes one of index=, text= and token=, for instance From(text='Mary').")
        if self.text is not None and not isinstance(self.text, str):
            raise DataError(f"From(text={self.text!r}): give a text, such as From(text='Mary'), or a token=.")
        for name, value in (("index", self.index), ("token", self.token)):
            if value is None or (name == "token" and isinstance(value, str)):
                continue
            try:
                object.__setattr__(self, name, operator.index(value))  # type: ignore[arg-type]
            except TypeError:
                raise DataError(
                    f"From({name}={value!r}): give a whole number, such as From({name}=3)"
                    f"{', or a text that is one token' if name == 'token' else ''}."
                ) from None

    def settings(self) -> dict[str, Any]:
        """JSON-ready: `{"from": 3}`, `{"from_text": "Mary"}` or `{"from_token": 17}`."""
        if self.index is not None:
            return {"from": self.index}
        return {"from_text": self.text} if self.text is not None else {"from_token": self.token}


Where = Literal["all", "prompt", "generated", "last"] | From
"""A position rule."""


def as_rule(where: Any) -> Where:
    """A position rule from itself or from its settings (`{"from_text": "Mary"}`). Raises `DataError`."""
    if isinstance(where, From):
        return where
    if isinstance(where, str) and where in NAMED:
        return where  # type: ignore[return-value]
    if isinstance(where, Mapping) and len(where) == 1:
        ((key, value),) = where.items()
        name = {"from": "index", "from_text": "text", "from_token": "token"}.get(key)
        if name:
            return From(**{name: value})
    raise DataError(
        f"Position rule {where!r} is not known: give one of {', '.join(NAMED)}, or workbench.steering.From(...)."
        f"{did_you_mean(str(where), NAMED)}"
    )


def rule_settings(where: Where) -> str | dict[str, Any]:
    """A rule as JSON."""
    return where.settings() if isinstance(where, From) else where


def stretches(
    where: Where,
    lengths: Sequence[int],
    ids: Sequence[Sequence[int]] | None = None,
    model: LanguageModel | None = None,
    limit: Sequence[int] | None = None,
) -> list[tuple[int, int]]:
    """The stretch [first, end) of absolute positions of each row.

    Args:
        where: the rule.
        lengths: tokens of each row's prompt.
        ids: token ids of each prompt, and the `model`, needed by rules that look for a text or token.
        limit: how many positions of each row the model will see at most, if known; a stretch that begins behind is an
            error.

    Raises:
        PositionError: an index outside the text.
        DataError: a prompt without the text or token that was asked for.
    """
    if not isinstance(where, From):
        named = {"all": (0, END), "prompt": (0, None), "generated": (None, END)}
        if where == "last":
            return [(n - 1, n) for n in lengths]
        first, end = named[where]
        return [(n if first is None else first, n if end is None else end) for n in lengths]
    known: dict[tuple[int, ...], int] = {}
    found = []
    for row, n in enumerate(lengths):
        if where.index is not None:
            first = where.index if where.index >= 0 else resolve_positions(where.index, n)[0]
        else:
            if ids is None or model is None:
                raise DataError(
                    f"Position rule {where!r} needs the token ids of the prompts: use Steering(...)."
                )
            key = tuple(ids[row])
            first = known.setdefault(key, -1)
            if first < 0:
                first = known[key] = _first(where, key, model, row, len(lengths))
        if limit is not None and first >= limit[row]:
            raise PositionError(
                f"Position rule {where!r} begins at position {first}, but the model reads positions 0 to "
                f"{limit[row] - 1} of row {row}: nothing would be steered. Give an earlier one or generate more tokens."
            )
        found.append((first, END))
    return found


def _first(where: From, ids: tuple[int, ...], model: LanguageModel, row: int, n_rows: int) -> int:
    """Position of the first token that carries the text or is the token."""
    if where.token is not None:
        wanted = model.token_id(where.token)
        if wanted in ids:
            return ids.index(wanted)
        what = f"Token {where.token!r}"
    else:
        assert where.text is not None
        if model.tokenizer is None:
            raise DataError(
                f"Position rule {where!r} looks for a text, but {model.name} has no tokenizer: steer from a token id "
                "or by position."
            )
        text, offsets = spell(model.tokenizer, ids)
        at = text.find(where.text)
        if at >= 0:
            hit = covered(text, offsets, [(at, at + len(where.text))])[0]
            if hit:
                return hit[0]
        what = f"Text {where.text!r}"
    texts = ids[:40] if model.tokenizer is None else token_texts(model.tokenizer, ids[:40])
    shown = " ".join(repr(t) for t in texts)
    which = f"prompt {row}" if n_rows > 1 else "the prompt"
    raise DataError(
        f"{what} does not occur in {which}, whose tokens are {shown}{' …' if len(ids) > 40 else ''}. Mind spaces and "
        "capitals, or steer by position: From(index=...)."
    )


@dataclass(frozen=True, eq=False)
class Condition:
    """Steer only where a probe fires.

    Attributes:
        probe: a direction (it fires by its coefficient x · v), or a function of the activation [batch, position, ...]
            and the `HookContext` that gives a bool [batch, position]. A function must look at each position alone, or
            at earlier ones, for generation to be the same with and without cache.
        threshold: coefficient at which a direction fires, in activation units.
        site: where it reads; by default the direction's own site. It must not come after the steered one. At the same
            site it reads what steerings that stand before its own have made of the activation.
        fires: `above` (coefficient > threshold) or `below` (<).
        holds: `here` (default) steers the very positions at which it fires; `onward` all positions from the first one
            on; `last` decides once, at the prompt's last token, for that position and all after it (conditional
            activation steering, 2409.05907, decides on the prompt).

    Raises:
        DataError: a function without a site, a threshold that is not finite, an unknown word.

    Example:
        >>> Steering(refusal, 8.0, condition=Condition(harmful, threshold=2.5, holds="onward"))
    """

    probe: Direction | Callable[[Tensor, HookContext], Tensor]
    threshold: float = 0.0
    site: str | None = None
    fires: Literal["above", "below"] = "above"
    holds: Literal["here", "onward", "last"] = "here"

    def __post_init__(self) -> None:
        if not isinstance(self.probe, Direction) and not callable(self.probe):
            raise DataError(f"A condition takes a Direction or a function, not {type(self.probe).__name__}.")
        if not isinstance(self.probe, Direction) and self.site is None:
            raise DataError(
                "A condition that is a function needs the site it reads: Condition(fn, site=...)."
            )
        if not math.isfinite(self.threshold):
            raise DataError(f"The threshold of a condition is {self.threshold!r}: give a finite number.")
        for word, known in ((self.fires, ("above", "below")), (self.holds, ("here", "onward", "last"))):
            if word not in known:
                raise DataError(f"A condition does not know {word!r}: give one of {', '.join(known)}.")
        if isinstance(self.probe, Direction):
            moved = self.probe if self.site in (None, self.probe.site) else self.probe.at(self.site)
            object.__setattr__(self, "probe", moved)
            object.__setattr__(self, "site", moved.site)

    @property
    def at(self) -> str:
        """The site it reads."""
        assert self.site is not None
        return self.site

    def fits(self, model: LanguageModel, steered: Sequence[str], *, force: bool = False) -> None:
        """Refuse a model without the probe's site, and a probe that reads after a steered site."""
        if isinstance(self.probe, Direction):
            self.probe.fits(model, force=force)
        order = model.catalog.names
        own = model.resolve(self.at)
        if len(own) != 1:
            raise SiteError(f"A condition reads one site; {self.at!r} stands for {len(own)}.")
        if own[0].part == "unembed.hook_out":
            raise DataError(
                "A condition cannot read 'unembed.hook_out': while generating only the logits of the last position are "
                "computed, so what it finds would depend on the KV cache. Read at 'ln_final.hook_out' or before."
            )
        early = [s for s in steered if order.index(s) < order.index(own[0].name)]
        if early:
            raise DataError(
                f"The condition reads {own[0].name!r}, which comes after the steered site {early[0]!r}: it cannot know "
                "there whether it fires. Read at that site or before it."
            )

    def settings(self) -> dict[str, Any]:
        """JSON-ready; a function is kept by its name alone."""
        if isinstance(self.probe, Direction):
            probe: Any = {"name": self.probe.name, "source": self.probe.source}
        else:
            probe = {"function": getattr(self.probe, "__qualname__", type(self.probe).__name__)}
        return {
            "probe": probe,
            "site": self.at,
            "threshold": self.threshold,
            "fires": self.fires,
            "holds": self.holds,
        }
