"""The pairs of a data set that a spec asks for."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from workbench.datasets.records import Pair
from workbench.errors import DataError

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel

FIELDS = {"answer": "an answer", "wrong": "a wrong answer"}


def pairs_of(
    dataset: str,
    *,
    limit: int,
    needs: Sequence[str],
    what_for: str,
    split: str | None = None,
    where: Mapping[str, str | bool | int] | None = None,
) -> list[Pair]:
    """All pairs of a data set, of which the caller takes those that fit.

    Args:
        dataset: name of a shipped set or of one made on demand, or a file.
        limit: how many are wanted; a set made on demand is asked for so many where it would make fewer.
        needs: fields that every pair must have: `answer`, `wrong`.
        what_for: who needs them, for the message.
        split, where: which part of the set, and which values fields must have (see `PromptSet.filter`).

    Raises:
        DataError: no such set, a set of another kind, a field no record has, or pairs without what is needed.
    """
    from workbench.datasets import generated, load

    found = load(dataset, split=split)
    if len(found) < limit and dataset in generated():
        found = load(dataset, split=split, limit=limit)
    if found.kind != "pairs":
        raise DataError(
            f"{dataset!r} holds {found.kind}, no pairs: {what_for} needs clean and corrupt prompts with answers."
        )
    if where:
        found = found.filter(**where)
    records = [record for record in found if isinstance(record, Pair)]
    names = {"answer": "answer", "wrong": "wrong_answer"}
    lacking = [r.id for r in records if not all(getattr(r, names[need]) for need in needs)]
    if lacking:
        raise DataError(
            f"{len(lacking)} pairs of {dataset!r} lack {' or '.join(FIELDS[need] for need in needs)}, the first is "
            f"{lacking[0]!r}: {what_for} needs {'both' if len(needs) > 1 else 'it'}."
        )
    return records


Shape = TypeVar("Shape", bound=Hashable)


def like_the_first(
    records: Sequence[Pair], shape: Callable[[Pair], Shape | None], limit: int
) -> tuple[list[Pair], int, Shape | None]:
    """The first `limit` records of the first one's shape, how many have it, and the shape.

    Records whose shape is None are left out; where all are, the shape is None and nothing is found.
    """
    shapes = [shape(record) for record in records]
    wanted = next((one for one in shapes if one is not None), None)
    fitting = [r for r, one in zip(records, shapes, strict=True) if one is not None and one == wanted]
    return fitting[:limit], len(fitting), wanted


def positions_correspond(
    model: LanguageModel, dataset: str, records: Sequence[Pair], limit: int, *, answers_alike: bool = False
) -> tuple[list[Pair], dict[str, str]]:
    """The first `limit` pairs with as many tokens as the first one, and a note on how many there were.

    Args:
        model: the language model.
        dataset: name of the set the records are of.
        records: its pairs.
        limit: how many to take.
        answers_alike: also answers of as many tokens as the first one's.

    Raises:
        DataError: no pair whose clean and corrupt prompt have as many tokens.
    """

    def shape(record: Pair) -> tuple[int, ...] | None:
        n = len(model.encode(record.clean))
        if len(model.encode(record.corrupt)) != n:
            return None
        if not answers_alike:
            return (n,)
        return (n, len(model.tokenizer(record.answer or "", add_special_tokens=False)["input_ids"]))

    used, n_fitting, first = like_the_first(records, shape, limit)
    if first is None:
        raise DataError(
            f"Each pair of {dataset!r} has prompts of different lengths for {model.name}, so positions do not "
            "correspond: give a data set whose clean and corrupt prompts have as many tokens."
        )
    fitting = f"{n_fitting} have {first[0]} tokens"
    if answers_alike:
        fitting += f" and an answer of {first[1]}"
    return used, {"pairs": f"{len(used)} of {len(records)} in {dataset} ({fitting})"}
