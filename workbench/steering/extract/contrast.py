"""Two sets of prompts read at some sites: the rows that every contrastive method starts from.

    h_s(p)      activation of prompt p at site s: at one position, or the mean over several
    D_i         h(p_i+) - h(p_i-), where prompts come in pairs

All prompts of both sets and all sites are read in one pass (`workbench.collect`); sums are taken in float64.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from workbench.activations import Activations, collect
from workbench.directions import Direction
from workbench.errors import DataError, PositionError
from workbench.model.language_model import LanguageModel
from workbench.model.tokens import Prompt, as_list
from workbench.progress import Progress

Position = int | Sequence[int] | Sequence[Sequence[int]] | Literal["last", "all", "not_first"]
"""`-1` or "last": the last token; an index or indices; "all"; "not_first": all but position 0, where models park an
attention sink; or a list of indices for each prompt, positives first. Several positions of a prompt are averaged."""


@dataclass(frozen=True, eq=False)
class Contrast:
    """Activations of a positive and a negative set.

    Attributes:
        sites: names, in the order of the forward pass.
        positive, negative: [site, prompt, d] float64.
        paired: prompt i of one set belongs to prompt i of the other.
        fingerprint: of the model.
        provenance: of the collection, JSON-ready.
        settings: what was read, JSON-ready.
    """

    sites: tuple[str, ...]
    positive: Float64[Tensor, "site prompt d"] = field(repr=False)
    negative: Float64[Tensor, "site prompt d"] = field(repr=False)
    paired: bool
    fingerprint: str
    provenance: dict[str, Any] = field(repr=False)
    settings: dict[str, Any]

    @property
    def differences(self) -> Float64[Tensor, "site pair d"]:
        """Positive minus negative of each pair."""
        return self.positive - self.negative

    def direction(
        self, site: int, vector: Tensor, *, scale: float, name: str, source: str, **settings: Any
    ) -> Direction:
        """A direction at one of the sites, with the provenance of these activations."""
        return Direction.from_vector(
            vector,
            site=self.sites[site],
            scale=scale,
            name=name,
            source=source,
            model_fingerprint=self.fingerprint,
            settings={**self.settings, **settings},
            provenance=self.provenance,
        )


def contrast(
    model: LanguageModel,
    positive: Prompt | Sequence[Prompt],
    negative: Prompt | Sequence[Prompt],
    sites: str | Iterable[str],
    *,
    position: Position = -1,
    paired: bool = False,
    what: str = "A mean difference",
    progress: Progress | None = None,
) -> Contrast:
    """Read both sets.

    Args:
        model: the language model.
        positive, negative: prompts of each kind.
        sites: names or globs; of one width (sites of several dimensions are flattened).
        position: which token or tokens of each prompt; see `Position`.
        paired: the sets are pairs, in order.
        what: who asks, for messages.
        progress: where to report.

    Raises:
        DataError: an empty set, sets of different sizes where pairs are needed, sets of the same prompts, sites of
            different widths.
        SiteError, PositionError, PromptError: as in `collect`.
    """
    sets = {"positive": as_list(positive), "negative": as_list(negative)}
    for which, prompts in sets.items():
        if not prompts:
            raise DataError(
                f"The {which} set has no prompts: {what[0].lower()}{what[1:]} needs some on each side."
            )
    first, second = sets["positive"], sets["negative"]
    if paired and len(first) != len(second):
        raise DataError(
            f"{what} needs pairs: {len(first)} positive and {len(second)} negative prompts were given. Give as many of "
            "each, in the same order."
        )
    names = [site.name for site in model.resolve(sites)]
    both = [*first, *second]
    acts = collect(model, both, names, _positions(model, both, position), progress=progress)
    values = [_means(acts, name) for name in names]
    widths = {name: value.shape[1] for name, value in zip(names, values, strict=True)}
    if len(set(widths.values())) > 1:
        shown = ", ".join(f"{name}: {d}" for name, d in list(widths.items())[:4])
        raise DataError(
            f"{what} is taken at sites of one width; these differ ({shown}). Take them one by one."
        )
    rows = torch.stack(values)
    positive_rows, negative_rows = rows[:, : len(first)], rows[:, len(first) :]
    if _same(model, first, second):
        raise DataError(
            "The positive and the negative set have the same prompts, hence the same mean: there is no direction "
            "between them."
        )
    return Contrast(
        sites=tuple(names),
        positive=positive_rows,
        negative=negative_rows,
        paired=paired,
        fingerprint=model.fingerprint,
        provenance=acts.provenance.to_dict(),
        settings={
            "n_positive": len(first),
            "n_negative": len(second),
            "position": _plain(position),
            "paired": paired,
        },
    )


def whole_layers(layers: Iterable[int]) -> list[int]:
    """Numbers of blocks as plain ints, in the order given; a numpy array will do. Raises `DataError`."""
    try:
        listed = [operator.index(layer) for layer in layers]
    except TypeError:
        listed = []
    if not listed:
        raise DataError(
            f"No layers were given ({layers!r}): give whole numbers of blocks, such as [10, 14] (negative ones "
            "count from the last block), or leave them away."
        )
    return listed


def one_site(model: LanguageModel, site: str, plural: str) -> str:
    """The name of the one site a text stands for. Raises `DataError` where it stands for several."""
    found = [s.name for s in model.resolve(site)]
    if len(found) != 1:
        raise DataError(
            f"{site!r} stands for {len(found)} sites of {model.name}: name one, or use `{plural}` for a direction "
            "at each."
        )
    return found[0]


def with_reference(
    model: LanguageModel, directions: Sequence[Direction], reference: Any, progress: Progress | None = None
) -> list[Direction]:
    """The directions, each with the natural scale it has on reference text (None: as they are).

    Args:
        reference: prompts, read at every token; or activations or a store that hold the sites.
    """
    if reference is None:
        return list(directions)
    if isinstance(reference, Tensor) and len(directions) > 1:
        raise DataError(
            f"One tensor cannot be the reference of {len(directions)} sites: give prompts, or activations by site."
        )
    held = isinstance(reference, (Tensor, Activations)) or hasattr(reference, "manifest")
    acts: Any = reference
    if not held:
        acts = collect(model, acts, [d.site for d in directions], "all", progress=progress)
    return [d.with_scale_from(acts) for d in directions]


def root_mean_square(differences: Float64[Tensor, "pair d"], vector: Tensor) -> float:
    """sqrt(mean_i (D_i · v)²) for the unit vector along `vector`: how far pairs lie apart along it."""
    unit = vector.double() / vector.double().norm()
    return float((differences @ unit).square().mean().sqrt())


def negligible(vector: Tensor, among: Tensor) -> bool:
    """Whether a vector is nothing but the rounding of float32 activations of this size."""
    return float(vector.norm()) <= 1e-6 * float(among.norm(dim=-1).mean())


def _positions(model: LanguageModel, prompts: Sequence[Prompt], position: Position) -> Any:
    if isinstance(position, str):
        if position == "last":
            return -1
        if position == "all":
            return "all"
        if position != "not_first":
            raise PositionError(
                f"Position {position!r} is not known: give an index such as -1, a list of them, 'last', 'all' or "
                "'not_first'."
            )
        lengths = [len(model.encode(prompt)) for prompt in prompts]
        if 1 in lengths:
            raise PositionError(
                f"Prompt {lengths.index(1)} has one token, so nothing is left of it without the first: "
                "give longer prompts, or another position."
            )
        return [list(range(1, n)) for n in lengths]
    return position


def _means(acts: Activations, site: str) -> Float64[Tensor, "prompt d"]:
    """The mean over each prompt's rows."""
    rows = acts.rows(site).flatten(1).double()
    owner = torch.from_numpy(np.asarray(acts.prompt))
    counts = torch.bincount(owner, minlength=acts.n_prompts)
    return rows.new_zeros(acts.n_prompts, rows.shape[1]).index_add_(0, owner, rows) / counts[:, None]


def _same(model: LanguageModel, first: Sequence[Prompt], second: Sequence[Prompt]) -> bool:
    a, b = (sorted(tuple(model.encode(p)) for p in prompts) for prompts in (first, second))
    return a == b


def _plain(position: Position) -> Any:
    if isinstance(position, (int, str)):
        return position
    nested = [list(p) if not isinstance(p, int) else p for p in position]
    return nested if len(nested) <= 16 else f"{len(nested)} lists of positions"
