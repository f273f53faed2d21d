"""Write another state into a model: edits by probes at one site, and again at later ones.

    at each site in the order of the forward pass     h ← edit(probe of this site, h, labels, flipped)
    read out                                          logits at the prompt's last token

Later blocks recompute part of what an edit took away (they read the same tokens), so the edit is repeated at
later sites with their own probes (Li et al. 2022, arXiv:2210.13382, from one layer to the last). Each edit
starts from what the earlier ones have made of the activation.

Control: `push` adds vectors of the same norms in random directions at the same places; a change it makes too
says that the place is sensitive, not that the probe's state was written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from probes.causal.edited import Edited
from probes.causal.optimise import optimise
from probes.causal.rows import encoded, next_logits, one_site, positions_of
from probes.causal.squares import SquareLogits
from workbench.collection.batching import TOKENS_PER_BATCH
from workbench.errors import DataError
from workbench.model.language_model import LanguageModel
from workbench.model.tokens import Positions, Prompt
from workbench.progress import Progress

Edit = Callable[..., Edited]
"""`fn(probe, h, labels, flipped) -> Edited`: `optimise`, `turn`, or either with other settings by
`functools.partial`."""


@dataclass(frozen=True, eq=False)
class Rewritten:
    """What came of an edit, one row for each state that was written.

    Attributes:
        logits: [row, d_vocab] float32 at the last token.
        norm: site -> [row] length of the move there.
        size: site -> [row] norm of the activation it was made from.
        done: site -> [row] the site's probe sees what is wanted.
        kept: site -> [row] share of the other squares it sees as before.
    """

    logits: Float[Tensor, "row d_vocab"] = field(repr=False)
    norm: dict[str, Float[Tensor, " row"]]
    size: dict[str, Float[Tensor, " row"]]
    done: dict[str, Tensor]
    kept: dict[str, Tensor]


def rewrite(
    model: LanguageModel,
    prompts: Prompt | Sequence[Prompt],
    probes: Mapping[str, SquareLogits],
    labels: np.ndarray,
    flipped: np.ndarray,
    *,
    edit: Edit = optimise,
    position: int = -1,
    of_row: np.ndarray | None = None,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    progress: Progress | None = None,
) -> Rewritten:
    """Run the model with a state written into its activations.

    Args:
        model: the language model.
        prompts: token ids or texts.
        probes: site -> probe of that site, on the model's device.
        labels: [row, square] the whole state that is wanted.
        flipped: [row, square] bool: which squares are to change.
        edit: how; `optimise` by default.
        position: token that is edited, of each prompt (-1: the last, which is also the one read out).
        of_row: prompt of each row, for several states of one prompt; by default one row per prompt.
        tokens_per_batch: tokens in one forward.
        progress: one item per row.

    Raises:
        DataError: no probes, two for one site, labels that are not one line of whole numbers per row, or another
            shape of `flipped`.
        SiteError, PositionError: what was asked for does not exist.

    Example:
        >>> wanted = flip_stones(boards.side, squares)
        >>> rewrite(model, games, {"blocks.3.hook_resid_post": probe}, wanted, wanted != boards.side).logits
    """
    labels, flipped = np.asarray(labels), np.asarray(flipped, bool)
    if labels.ndim != 2 or flipped.shape != labels.shape or labels.dtype.kind not in "iub":
        raise DataError(
            f"Expected class numbers and `flipped`, both must be [row, square]; got {labels.dtype} of shape "
            f"{list(labels.shape)} and {list(flipped.shape)}."
        )
    ids, of_row, sites = _prepared(model, prompts, list(probes), len(labels), of_row)
    where = _one_position(ids, position)
    wanted, turned = torch.from_numpy(labels.astype(np.int64)), torch.from_numpy(flipped)
    noted: dict[str, dict[str, Tensor]] = {
        name: {site: torch.zeros(len(of_row), dtype=kind) for site in sites}
        for name, kind in (
            ("norm", torch.float32),
            ("size", torch.float32),
            ("done", torch.bool),
            ("kept", torch.float32),
        )
    }

    def at(site: str, probe: SquareLogits) -> Callable[[Tensor, Tensor], Tensor]:
        def change(h: Tensor, row: Tensor) -> Tensor:
            here = row.cpu()
            edited = edit(probe, h, wanted[here].to(h.device), turned[here].to(h.device))
            noted["size"][site][here] = h.norm(dim=1).cpu()
            for name in ("norm", "done", "kept"):
                noted[name][site][here] = getattr(edited, name).cpu()
            return edited.x

        return change

    logits = next_logits(
        model, ids, {site: at(site, probes[name]) for site, name in sites.items()}, where,
        of_row=of_row, tokens_per_batch=tokens_per_batch, progress=progress,
    )  # fmt: skip
    return Rewritten(logits, **noted)


def push(
    model: LanguageModel,
    prompts: Prompt | Sequence[Prompt],
    norms: Mapping[str, Float[Tensor, " row"]],
    *,
    seed: int,
    position: int = -1,
    of_row: np.ndarray | None = None,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    progress: Progress | None = None,
) -> Float[Tensor, "row d_vocab"]:
    """The control of `rewrite`: random directions of the given norms, each row and site its own.

    Args:
        model, prompts, position, of_row, tokens_per_batch, progress: as `rewrite`.
        norms: site -> [row] length of what is added, for instance `rewritten.norm`.
        seed: of the directions (even over the sphere).

    Returns:
        [row, d_vocab] logits at the last token.
    """
    sizes = {len(length) for length in norms.values()}
    if len(sizes) > 1:
        raise DataError(f"Every site needs one norm for each row, but there are {sorted(sizes)}.")
    ids, of_row, sites = _prepared(model, prompts, list(norms), sizes.pop() if sizes else 0, of_row)

    def at(number: int, length: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        drawn: dict[str, Tensor] = {}

        def add(h: Tensor, row: Tensor) -> Tensor:
            if not drawn:
                generator = torch.Generator().manual_seed(seed * 1000 + number)
                unit = torch.randn(len(of_row), h.shape[1], generator=generator)
                drawn["v"] = unit / unit.norm(dim=1, keepdim=True) * length[:, None]
            return h + drawn["v"][row.cpu()].to(h)

        return add

    edits = {site: at(i, norms[name].float()) for i, (site, name) in enumerate(sites.items())}
    return next_logits(
        model,
        ids,
        edits,
        _one_position(ids, position),
        of_row=of_row,
        tokens_per_batch=tokens_per_batch,
        progress=progress,
    )


def _prepared(
    model: LanguageModel,
    prompts: Prompt | Sequence[Prompt],
    names: list[str],
    n_rows: int,
    of_row: np.ndarray | None,
) -> tuple[list[list[int]], np.ndarray, dict[str, str]]:
    """Token ids, prompt of each row, and the given name of each site, in the order of the forward pass."""
    ids = encoded(model, prompts)
    if not names:
        raise DataError("No probes were given: give at least one, as {site: probe}.")
    of_row = np.arange(len(ids)) if of_row is None else np.asarray(of_row)
    if len(of_row) != n_rows:
        raise DataError(f"There are {n_rows} states for {len(of_row)} rows: give one for each row.")
    if not n_rows:
        raise DataError("No states were given: at least one row is needed.")
    if of_row.min() < 0 or of_row.max() >= len(ids):
        raise DataError(f"Rows name prompts {of_row.min()} to {of_row.max()}; there are {len(ids)}, from 0.")
    sites: dict[str, str] = {}
    for name in names:
        site = one_site(model, name).name
        if site in sites:
            raise DataError(f"{sites[site]!r} and {name!r} are one site: give it once.")
        sites[site] = name
    return ids, of_row, {site: sites[site] for site in model.catalog.names if site in sites}


def _one_position(ids: list[list[int]], position: Positions) -> list[list[int]]:
    """The token that is edited, in each prompt; `DataError` for several, of which a row could note one only."""
    where = positions_of(ids, position)
    if any(len(some) != 1 for some in where):
        raise DataError(
            f"A state is written at one token of each prompt, position=-1 or alike, not {position!r}."
        )
    return where
