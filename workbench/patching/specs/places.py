"""Positions said in words: `last`, `all`, `-1`, `0,3`, `span:NAME`, `match:REGEX`, `token:TEXT`.

The words are those of collection (`workbench.collection.selection`). Spans are those of a data set's records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from workbench.errors import PositionError

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel

Spans = Mapping[str, tuple[int, int]]
Place = int | str | list[int | str]
"""An index (negative: from the end), a rule, or several of these, which together mean all they find."""
Places = int | str | list[int | str] | list[list[int]]
"""The same, or one list of indices for each prompt."""


def places(
    model: LanguageModel, prompts: Sequence[str], spans: Sequence[Spans], rule: Places, name: str
) -> list[list[int]]:
    """The positions of each prompt that a rule means, from 0, sorted.

    Args:
        model: the language model.
        prompts: texts.
        spans: for each prompt its named stretches of characters.
        rule: what is meant.
        name: what the message calls them.

    Raises:
        PositionError: a rule that is not known, or one that finds nothing in a prompt; the message says which.

    Example:
        >>> places(model, ["When Mary and John went"], [{}], "match:Mary|John", "keys")    # doctest: +SKIP
        [[2, 4]]
    """
    from workbench.collection.contexts import contexts
    from workbench.collection.items import Item
    from workbench.collection.selection import Selection

    selection = Selection.parse(rule)
    items = [Item(str(i), text=text, spans=s) for i, (text, s) in enumerate(zip(prompts, spans, strict=True))]
    made = contexts(model, items, need_texts=selection.needs_texts, answers=False)
    found = [selection.select(context)[0].tolist() for context in made]
    empty = [i for i, some in enumerate(found) if not some]
    if empty:
        raise PositionError(
            f"{name} {rule!r} finds no token in {len(empty)} of {len(found)} prompts, the first is {empty[0]}: "
            f"{prompts[empty[0]]!r}. Words inside a sentence begin with a space as tokens; upper and lower case differ."
        )
    selection.check_used()
    return found


def one_place(
    model: LanguageModel, prompts: Sequence[str], spans: Sequence[Spans], rule: Places, name: str
) -> list[int]:
    """The last of each prompt's positions that a rule means: of a word of several tokens, its end."""
    return [some[-1] for some in places(model, prompts, spans, rule, name)]
