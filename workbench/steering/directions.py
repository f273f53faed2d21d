"""Mean difference (contrastive activation addition): where two sets of prompts differ on average.

    v = mean_i h(p_i+)[t] - mean_i h(p_i-)[t]        direction = v / ||v||, scale = ||v||

with h the activation at one site and t one position of each prompt, by default its last token.
Rimsky et al. 2023 (2312.06681) take the answer token of A/B questions; any two sets will do.
"""

from __future__ import annotations

from collections.abc import Sequence

from workbench.activations import collect
from workbench.directions import Direction
from workbench.errors import DataError
from workbench.model.language_model import LanguageModel
from workbench.model.tokens import Prompt, as_list
from workbench.progress import Progress


def mean_difference(
    model: LanguageModel,
    positive: Prompt | Sequence[Prompt],
    negative: Prompt | Sequence[Prompt],
    site: str,
    *,
    position: int = -1,
    name: str = "mean difference",
    progress: Progress | None = None,
) -> Direction:
    """The unit direction from the mean of `negative` to the mean of `positive` at `site`.

    Args:
        model: the language model.
        positive, negative: prompts of each kind; numbers may differ.
        site: one site of width d, for instance `blocks.14.hook_resid_post`.
        position: token position of each prompt that is averaged (-1: its last).
        name: shown in tables and figures.
        progress: where to report.

    Returns:
        A `Direction` whose `scale` is the norm of the difference: adding it with `strength=d.scale` moves the
        mean of one set onto the other's.

    Raises:
        DataError: an empty set, or sets whose means do not differ.
        SiteError, PositionError, PromptError: as in `collect`.

    Example:
        >>> d = wb.steering.mean_difference(model, ["I love it"], ["I hate it"], "blocks.14.hook_resid_post")
    """
    sets = {"positive": as_list(positive), "negative": as_list(negative)}
    for which, prompts in sets.items():
        if not prompts:
            raise DataError(
                f"The {which} set has no prompts: a mean difference needs at least one on each side."
            )
    (resolved,) = model.resolve(site)[:1]
    n_positive = len(sets["positive"])
    acts = collect(model, [*sets["positive"], *sets["negative"]], resolved.name, position, progress=progress)
    rows = acts.rows(resolved.name).float()
    difference = rows[:n_positive].mean(0) - rows[n_positive:].mean(0)
    if float(difference.norm()) == 0.0:
        raise DataError(
            "The positive and the negative set have the same mean: there is no direction between them."
        )
    return Direction.from_vector(
        difference.flatten(),
        site=resolved.name,
        name=name,
        source="mean_difference",
        model_fingerprint=model.fingerprint,
        settings={"n_positive": n_positive, "n_negative": len(sets["negative"]), "position": position},
        provenance=acts.provenance.to_dict(),
    )
