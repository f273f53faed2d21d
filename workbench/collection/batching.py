"""Which prompts go through the model together, and reading their rows.

Prompts are drawn from the source in *windows*, sorted by length inside a window, and cut into batches of so many
tokens, padding included. Which batch a prompt falls into depends on the prompts and the two sizes only, so a run
that is resumed makes the same batches again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from workbench.collection.items import Context
from workbench.errors import PositionError
from workbench.model.language_model import LanguageModel
from workbench.model.tokens import TokenBatch
from workbench.sites.catalog import Site

T = TypeVar("T")

TOKENS_PER_BATCH = 2048
WINDOW_BATCHES = 32
"""A window holds so many batches' worth of tokens: enough to find prompts of like length."""


@dataclass(frozen=True)
class Window:
    """Some prompts in the order of their source."""

    number: int
    first: int
    """Number of its first prompt."""
    contexts: tuple[Context, ...]
    digest: str
    """SHA-256 over token ids, id, labels and spans of all prompts up to the end of this window."""


def windows(contexts: Iterable[Context], tokens: int) -> Iterator[Window]:
    """Draw prompts until a window holds at least `tokens` tokens."""
    running = hashlib.sha256()
    held: list[Context] = []
    size = number = first = 0
    for context in contexts:
        held.append(context)
        size += len(context.ids)
        running.update(np.array([len(context.ids), *context.ids], dtype="<i4").tobytes())
        about = [context.id, dict(context.labels), {k: list(v) for k, v in context.spans.items()}]
        running.update(json.dumps(about, sort_keys=True, default=str).encode())
        if size >= tokens:
            yield Window(number, first, tuple(held), running.hexdigest())
            number, first, held, size = number + 1, first + len(held), [], 0
    if held:
        yield Window(number, first, tuple(held), running.hexdigest())


def batches(lengths: Sequence[int], tokens_per_batch: int) -> list[list[int]]:
    """Places of prompts of like length together; each batch holds at most `tokens_per_batch` (or one prompt).

    >>> batches([3, 9, 3, 4], 9)
    [[0, 2], [3], [1]]
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if groups and (len(groups[-1]) + 1) * lengths[i] <= tokens_per_batch:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def read_rows(
    model: LanguageModel,
    part: TokenBatch,
    sites: Sequence[Site],
    wanted: Sequence[Sequence[int]],
    longest: int,
) -> dict[str, Tensor]:
    """Activations at the wanted positions, site -> [row, ...], still on their devices.

    The forward pass ends with the last site; only the wanted rows are gathered, where they were computed.

    Args:
        wanted: absolute positions for each prompt of the batch; rows come in that order.
        longest: keys that an attention pattern's rows are padded to with zeros.
    """
    whole = not part.padded and all(
        list(w) == list(range(n)) for w, n in zip(wanted, part.lengths, strict=True)
    )
    counts = [len(w) for w in wanted]
    offsets = (
        part.ids.shape[1] - np.array(part.lengths) if part.side == "left" else np.zeros(len(counts), int)
    )
    at = [np.repeat(np.arange(len(counts)), counts)]
    at += [np.concatenate([np.asarray(w, dtype=np.int64) for w in wanted]) + np.repeat(offsets, counts)]
    pinned = model.device.type == "cuda"  # from there the copy does not wait for the batch before
    places = [torch.from_numpy(a).pin_memory() if pinned else torch.from_numpy(a) for a in at]
    rows, columns = (place.to(model.device, non_blocking=True) for place in places)

    def gather(value: Tensor, site: Site) -> Tensor:
        if site.where == "pattern":  # [batch, head, query, key] -> rows of queries
            picked = value[rows.to(value.device), :, columns.to(value.device)]
            return torch.nn.functional.pad(picked, (0, longest - picked.shape[-1]))
        if whole:  # every token of every prompt, in order: nothing to pick
            return value.reshape(-1, *value.shape[2:])
        return value[rows.to(value.device), columns.to(value.device)]

    with model.hooks(read=[s.name for s in sites], stop=True, select=gather) as session:
        model.forward(part)
    return {site.name: session[site.name] for site in sites}


def positions_per_prompt(encoded: TokenBatch, positions: Any) -> list[list[int]]:
    """[prompt][row] absolute positions.

    Args:
        encoded: the prompts.
        positions: `"all"`, an index, some indices, or one list of them for each prompt; arrays are as good as lists.

    Raises:
        PositionError: something else, a position outside its prompt, or more or fewer lists than prompts.
    """
    given = _plain(positions)
    if isinstance(given, Iterable) and not isinstance(given, str):
        given = [_plain(p) for p in given]
        nested = [isinstance(p, list | tuple | range) for p in given]
        if any(nested):
            if not all(nested):
                raise PositionError(
                    "Positions mix lists with single indices: give indices, or one list of them for each prompt."
                )
            if len(given) != len(encoded):
                raise PositionError(f"{len(given)} lists of positions were given for {len(encoded)} prompts.")
            return [encoded.resolve(i, _indices(p)) for i, p in enumerate(given)]
        given = _indices(given)
    elif given != "all":
        given = _indices([given])
    return [encoded.resolve(i, given) for i in range(len(encoded))]


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def _indices(given: Iterable[Any]) -> list[int]:
    """Whole numbers, none of them a bool or a float."""
    found = [_plain(p) for p in given]
    wrong = next((p for p in found if isinstance(p, bool) or not isinstance(p, int)), found)
    if wrong is not found:
        raise PositionError(
            f"Position {wrong!r} is no index: give 'all', whole numbers such as 0 or -1, or one list of them for each "
            "prompt. `collect_to` knows other rules, such as 'last' and 'span:NAME'."
        )
    return found


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the device, or the machine, has no memory left."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def with_back_off(
    places: list[int], run: Callable[[list[int]], T], note: Callable[[int, BaseException], None]
) -> list[T]:
    """`run(places)`, or where memory runs out the two halves one after the other, as often as needed.

    Args:
        places: what one batch consists of.
        run: computes a batch.
        note: told how many places the failed batch had, and the error.

    Returns:
        The outcomes, in the order of `places`.
    """
    try:
        return [run(places)]
    except (RuntimeError, MemoryError) as error:
        if len(places) == 1 or not out_of_memory(error):
            raise
        note(len(places), error)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = len(places) // 2
    return [*with_back_off(places[:half], run, note), *with_back_off(places[half:], run, note)]
