"""Mean difference (contrastive activation addition): where two sets of prompts differ on average.

    w = mean_i h(p_i+) - mean_j h(p_j-)        direction = w / ‖w‖, scale = ‖w‖

with h the activation at a site, at one position of each prompt (by default its last token) or averaged over several.
Sign: towards the positive set. Adding `strength=d.scale` moves one mean onto the other.

Rimsky et al. 2023 (2312.06681) take pairs and the answer token of A/B questions (`position=-2` where the prompt ends in
"(A)"); the mean of paired differences is the difference of means, so pairs change nothing but the held-out quality,
where pairs stay together. Any two sets will do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from jaxtyping import Float64
from torch import Tensor

from workbench.directions import Direction, DirectionSet
from workbench.errors import DataError
from workbench.model.tokens import Prompt
from workbench.steering.extract.contrast import Position, contrast, negligible, one_site, with_reference
from workbench.steering.extract.quality import held_out

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel
    from workbench.progress import Progress


def mean_difference(
    model: LanguageModel,
    positive: Prompt | Sequence[Prompt],
    negative: Prompt | Sequence[Prompt],
    site: str,
    *,
    position: Position = -1,
    paired: bool = False,
    reference: Any = None,
    shuffles: int = 50,
    seed: int = 0,
    name: str = "mean difference",
    progress: Progress | None = None,
) -> Direction:
    """The unit direction from the mean of `negative` to the mean of `positive` at `site`.

    Args:
        model: the language model.
        positive, negative: prompts of each kind; numbers may differ unless `paired`.
        site: one site, for instance `blocks.14.hook_resid_post`.
        position: which token of each prompt: an index (-1, the default: its last), several (averaged), "last", "all",
            "not_first", or a list for each prompt.
        paired: prompt i of one set belongs to prompt i of the other.
        reference: prompts of ordinary text (or activations that hold the site): the scale is then the standard
            deviation along the direction there, `settings["difference_norm"]` keeps the norm of the difference.
        shuffles: runs of the label-shuffled control of the held-out quality; 0 leaves the quality away.
        seed: of halves, control and bootstrap.
        name: shown in tables and figures.
        progress: where to report.

    Returns:
        A `Direction` whose `scale` is the norm of the difference. `settings["held_out"]` says how well the method
        separates prompts it has not seen (`quality.held_out`).

    Raises:
        DataError: an empty set, sets of different sizes that should be pairs, sets whose means do not differ.
        SiteError, PositionError, PromptError: as in `collect`.

    Example:
        >>> d = wb.steering.mean_difference(model, ["I love it"], ["I hate it"], "blocks.14.hook_resid_post")
    """
    where = one_site(model, site, "mean_differences")
    return mean_differences(
        model, positive, negative, where, position=position, paired=paired, reference=reference, shuffles=shuffles,
        seed=seed, name=name, progress=progress,
    )[0]  # fmt: skip


def mean_differences(
    model: LanguageModel,
    positive: Prompt | Sequence[Prompt],
    negative: Prompt | Sequence[Prompt],
    sites: str | Iterable[str] = "blocks.*.hook_resid_post",
    *,
    position: Position = -1,
    paired: bool = False,
    reference: Any = None,
    shuffles: int = 50,
    seed: int = 0,
    name: str = "mean difference",
    progress: Progress | None = None,
) -> DirectionSet:
    """A mean difference at each of many sites, from one pass over the prompts.

    Arguments and errors as `mean_difference`; `sites` are names or globs of one width.

    Example:
        >>> found = mean_differences(model, good, bad, "blocks.*.hook_resid_post")
        >>> max(found, key=lambda d: d.settings["held_out"]["auc"]).site
    """
    rows = contrast(
        model,
        positive,
        negative,
        sites,
        position=position,
        paired=paired,
        what="A mean difference",
        progress=progress,
    )
    quality = held_out(
        difference_of_means, rows.positive, rows.negative, paired=paired, seed=seed, shuffles=shuffles
    )
    made = []
    for s, vector in enumerate(difference_of_means(rows.positive, rows.negative)):
        if negligible(vector, rows.positive[s]):
            raise DataError(
                f"The positive and the negative set have the same mean at {rows.sites[s]!r}: there is no direction "
                "between them."
            )
        norm = float(vector.norm())
        found = {"difference_norm": norm, "held_out": quality[s]}
        made.append(rows.direction(s, vector, scale=norm, name=name, source="mean_difference", **found))
    return DirectionSet(with_reference(model, made, reference, progress), name=name, settings=rows.settings)


def difference_of_means(
    positive: Float64[Tensor, "site prompt d"], negative: Float64[Tensor, "site prompt d"]
) -> Float64[Tensor, "site d"]:
    """Mean of the positive rows minus mean of the negative ones, at each site."""
    return positive.mean(1) - negative.mean(1)
