"""Bags: the tokens of a prompt as instances, without padding.

    bag i = rows offsets[i] to offsets[i + 1] of one [row, d] matrix

Of each prompt the last `max_tokens` tokens are taken. Its last `known_positive` tokens are *assumed positive*: if the
bag has the label, they may carry it (the intra-bag mask of sAwMIL, arXiv:2506.23921). The paper takes those and draws
the others at random; `others="random"` does so too.

A prompt's first token is left out by default (`skip=1`): it is an attention sink, whose activation is far larger than
all others and hardly depends on the statement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from probes.kinds.inputs import plain
from workbench.activations import Activations
from workbench.errors import DataError
from workbench.store.reader import Store


@dataclass(frozen=True, eq=False)
class Bags:
    """Bags of instances, one after another.

    Attributes:
        values: [row, d] activations, float32 or float64; those of a bag are neighbours, by position.
        sizes: [bag] rows of each bag, all above 0.
        known: [row] whether the row is assumed positive if its bag is.
        prompt: [bag] number of the prompt.
        position: [row] absolute position of the token.
        token: [row] its text, or none at all.
        site: where the activations are from; may be empty.

    Raises:
        DataError: an empty bag, sizes that do not add up, NaN, or a bag in which nothing is assumed positive.

    Example:
        >>> bags = Bags.of([np.ones((3, 8)), np.zeros((5, 8))])
        >>> len(bags), bags.sizes
        (2, array([3, 5]))
    """

    values: Float[np.ndarray, "row d"]
    sizes: Int64[np.ndarray, " bag"]
    known: Bool[np.ndarray, " row"]
    prompt: Int64[np.ndarray, " bag"]
    position: Int64[np.ndarray, " row"]
    token: tuple[str, ...] = ()
    site: str = ""

    def __post_init__(self) -> None:
        if len(self.sizes) == 0:
            raise DataError("There are no bags at all.")
        if (empty := np.flatnonzero(self.sizes < 1)).size:
            raise DataError(
                f"{len(empty)} of {len(self.sizes)} bags are empty, the first is bag {empty[0]} (prompt "
                f"{self.prompt[empty[0]]}): a bag needs a token or more."
            )
        n = len(self.values)
        if int(self.sizes.sum()) != n or len(self.known) != n or len(self.position) != n:
            raise DataError(f"Bags of {int(self.sizes.sum())} rows together, but {n} rows were given.")
        if (bad := np.flatnonzero(~np.isfinite(self.values).all(1))).size:
            raise DataError(
                f"{len(bad)} of {n} rows hold NaN or infinite values, the first in bag {self.bag[bad[0]]}: leave those "
                "prompts out, or collect them again."
            )
        none = np.flatnonzero(~self.maximum(self.known.astype(np.float64))[0].astype(bool))
        if none.size:
            raise DataError(
                f"In {len(none)} bags no row is assumed positive, the first is bag {none[0]}: mark one or more."
            )

    @classmethod
    def of(cls, arrays: Sequence[Any], known: Sequence[Any] | None = None) -> Bags:
        """Bags from one [token, d] array or tensor each, and one [token] mask each (by default all are assumed
        positive)."""
        rows = [np.asarray(plain(a)) for a in arrays]
        widths = {a.shape[1:] for a in rows}
        if len(widths) != 1 or any(a.ndim != 2 for a in rows):
            raise DataError(
                f"Bags are [token, d] arrays of one width; given are rows of shape {sorted(widths)[:4]}."
            )
        sizes = np.array([len(a) for a in rows], dtype=np.int64)
        if known is not None and [len(k) for k in known] != sizes.tolist():
            raise DataError("The masks of assumed positives do not have the lengths of the bags.")
        mask = (
            np.ones(int(sizes.sum()), dtype=bool)
            if known is None
            else np.concatenate(list(known)).astype(bool)
        )
        values = np.concatenate(rows)
        position = np.concatenate([np.arange(n) for n in sizes]).astype(np.int64)
        dtype = values.dtype if values.dtype in (np.float32, np.float64) else np.float64
        return cls(values.astype(dtype), sizes, mask, np.arange(len(rows), dtype=np.int64), position)

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def offsets(self) -> Int64[np.ndarray, " edge"]:
        """Row at which each bag begins, and the number of rows."""
        return np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)

    @property
    def bag(self) -> Int64[np.ndarray, " row"]:
        """[row] the bag it is in."""
        return np.repeat(np.arange(len(self)), self.sizes)

    def select(self, bags: Any) -> Bags:
        """The bags with these numbers (negative ones count from the end), or where a mask is true.

        Raises:
            DataError: a number that no bag has, a mask of another length, or none at all.
        """
        chosen, n = np.asarray(plain(bags)), len(self)
        if chosen.dtype == bool:
            if chosen.shape != (n,):
                raise DataError(
                    f"A mask of shape {list(chosen.shape)} for {n} bags: give one value for each."
                )
            chosen = np.flatnonzero(chosen)
        elif chosen.ndim != 1 or (chosen.size and chosen.dtype.kind not in "iu"):
            raise DataError(f"Bags are chosen by a list of their numbers or by a mask, not by {bags!r}.")
        chosen = chosen.astype(np.int64)
        if (bad := chosen[(chosen < -n) | (chosen >= n)]).size:
            raise DataError(f"There is no bag {bad[0]}: the {n} bags have the numbers 0 to {n - 1}.")
        chosen = chosen % n
        starts = self.offsets
        parts = [np.arange(starts[i], starts[i + 1]) for i in chosen]
        rows = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
        token = tuple(self.token[i] for i in rows) if self.token else ()
        return Bags(
            self.values[rows], self.sizes[chosen], self.known[rows], self.prompt[chosen], self.position[rows], token,
            self.site,
        )  # fmt: skip

    def means(self) -> Float64[np.ndarray, "bag d"]:
        """The mean of each bag."""
        return np.add.reduceat(self.values, self.offsets[:-1], axis=0, dtype=np.float64) / self.sizes[:, None]

    def maximum(
        self, scores: Float64[np.ndarray, " row"]
    ) -> tuple[Float64[np.ndarray, " bag"], Int64[np.ndarray, " bag"]]:
        """The highest score of each bag, and the row that has it (the first of equals)."""
        starts = self.offsets[:-1]
        highest = np.maximum.reduceat(scores, starts)
        at_top = np.flatnonzero(scores == highest[self.bag])
        return highest, at_top[np.searchsorted(at_top, starts)]


def make_bags(
    acts: Activations | Store,
    site: str,
    *,
    max_tokens: int = 10,
    known_positive: int = 2,
    skip: int = 1,
    others: str = "last",
    seed: int = 0,
) -> Bags:
    """A bag for each prompt of some activations.

    Args:
        acts: in memory (`wb.collect(model, prompts, positions="all")`) or a store; of every prompt the rows that are
            there count, in the order of their positions.
        site: name or pattern of one site; sites with heads are flattened.
        max_tokens: most tokens of a bag.
        known_positive: tokens at the end that are assumed positive (all of a shorter bag).
        skip: absolute positions below this are left out.
        others: which tokens join those: the `"last"` before them, or `"random"` ones, drawn with `seed`.
        seed: for `others="random"`.

    Returns:
        Bags in the order of the prompts' numbers: bag i is prompt i of `Activations`.

    Raises:
        DataError: a prompt without a token at a position from `skip` on (the first is named), or numbers below 1.
        SiteError: no such site.

    Example:
        >>> acts = wb.collect(model, statements.texts, sites="blocks.20.hook_resid_post", positions="all")
        >>> make_bags(acts, "blocks.20.hook_resid_post").sizes
    """
    if not (max_tokens >= known_positive >= 1 and skip >= 0):
        raise DataError(
            f"Expected max_tokens ≥ known_positive ≥ 1 and skip ≥ 0; given {max_tokens}, {known_positive} and {skip}."
        )
    if others not in ("last", "random"):
        raise DataError(f"others is 'last' or 'random', not {others!r}.")
    if isinstance(acts, Activations):
        prompt, position, token, numbers = acts.prompt, acts.position, acts.token, np.arange(acts.n_prompts)
    else:
        prompt, position, token = acts.index.prompt, acts.index.position, ()
        numbers = np.unique(prompt)
    order = np.lexsort((position, prompt))
    order = order[position[order] >= skip]
    starts, ends = (np.searchsorted(prompt[order], numbers, side=side) for side in ("left", "right"))
    if (empty := np.flatnonzero(starts == ends)).size:
        raise DataError(
            f"{len(empty)} of {len(numbers)} prompts have no token at position {skip} or later, the first is prompt "
            f"{numbers[empty[0]]}: its bag would be empty. Collect positions='all', give longer prompts, or skip fewer."
        )
    random = np.random.default_rng(seed)
    chosen, known, sizes = [], [], []
    for start, end in zip(starts, ends, strict=True):
        first = max(start, end - max_tokens)
        rows = np.arange(first, end)
        if others == "random" and first > start:
            drawn = random.choice(
                np.arange(start, end - known_positive), max_tokens - known_positive, replace=False
            )
            rows = np.concatenate([np.sort(drawn), np.arange(end - known_positive, end)])
        chosen.append(order[rows])
        known.append(rows >= end - known_positive)
        sizes.append(len(rows))
    rows = np.concatenate(chosen)
    name, values = _rows(acts, site, rows)
    return Bags(
        values=values,
        sizes=np.array(sizes, dtype=np.int64),
        known=np.concatenate(known),
        prompt=numbers.astype(np.int64),
        position=position[rows].astype(np.int64),
        token=tuple(token[i] for i in rows) if token else (),
        site=name,
    )


def _rows(acts: Activations | Store, site: str, rows: np.ndarray) -> tuple[str, np.ndarray]:
    if isinstance(acts, Activations):
        tensor = acts.rows(site)
        name = next(s for s in acts.sites if acts.values[s] is tensor)
        return name, tensor[rows].flatten(1).float().numpy()
    name = acts.site_name(site)
    return name, acts[name][rows].flatten(1).float().numpy()
