"""Methods of making a direction from pairs of prompts, as plain functions that a comparison can be given.

    mean difference       v = mean_i h(p_i+) - mean_i h(p_i-)             Rimsky et al. 2023 (2312.06681)
    PCA of differences    first right singular vector of the rows h(p_i+) - h(p_i-), not centred, so that it is the line
                          the differences lie along; sign by their mean   after Zou et al. 2023 (2310.01405), Liu et al.
                          2023 (2311.06668)
    probe weight          w of an L2-penalised logistic regression of + against -, on standardised activations, carried
                          back to the units of the activation
    random direction      uniform on the sphere: the control

h is the activation at one site and the last token of each prompt. A method is any function
`(model, examples, site) -> Direction`, so those of other rooms and packages plug in by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from workbench.activations import collect
from workbench.directions import Direction
from workbench.errors import DataError
from workbench.model.language_model import LanguageModel
from workbench.model.tokens import Prompt
from workbench.progress import Progress


@dataclass(eq=False)
class Examples:
    """Pairs of prompts, with their activations once those are read.

    Attributes:
        positive, negative: as many of each; the i-th of both make a pair.
        name: what positive means.
    """

    positive: tuple[Prompt, ...]
    negative: tuple[Prompt, ...]
    name: str = ""
    _read: dict[tuple[str, str], Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.positive or len(self.positive) != len(self.negative):
            raise DataError(
                f"{len(self.positive)} positive and {len(self.negative)} negative prompts were given: pairs need as "
                "many of each, and at least one."
            )

    def read(self, model: LanguageModel, sites: Iterable[str], *, progress: Progress | None = None) -> None:
        """Read the last token's activations at several sites in one pass; they are kept, for each model its own."""
        of = model.fingerprint
        if missing := [s for s in sites if (of, s) not in self._read]:
            acts = collect(model, [*self.positive, *self.negative], missing, -1, progress=progress)
            self._read |= {(of, site): acts.rows(site).float().flatten(1) for site in acts.sites}

    def at(self, model: LanguageModel, site: str) -> tuple[Tensor, Tensor]:
        """([pair, d], [pair, d]) float32 activations of the positive and the negative prompts."""
        self.read(model, [site])
        rows = self._read[model.fingerprint, site]
        return rows[: len(self.positive)], rows[len(self.positive) :]


Method = Callable[[LanguageModel, Examples, str], Direction]
"""`(model, examples, site) -> Direction`, positive towards `examples.positive`."""


def mean_difference(model: LanguageModel, examples: Examples, site: str) -> Direction:
    """Difference of the means."""
    positive, negative = examples.at(model, site)
    return _direction(model, examples, site, positive.mean(0) - negative.mean(0), "mean_difference")


def pca_of_differences(model: LanguageModel, examples: Examples, site: str) -> Direction:
    """The line along which paired differences lie, its scale the mean difference's length along it."""
    positive, negative = examples.at(model, site)
    differences = (positive - negative).double()
    first = torch.linalg.svd(differences, full_matrices=False).Vh[0]
    along = float(differences.mean(0) @ first)
    if along == 0:
        raise DataError("The differences have no side: their mean is orthogonal to their first component.")
    return _direction(model, examples, site, (first * along).float(), "pca_of_differences")


def probe_weight(model: LanguageModel, examples: Examples, site: str, *, C: float = 0.01) -> Direction:
    """Weight of a logistic probe; its scale is the distance of the class means along it."""
    from sklearn.linear_model import LogisticRegression

    positive, negative = (rows.double().numpy() for rows in examples.at(model, site))
    x = np.concatenate([positive, negative])
    y = np.repeat([1, 0], [len(positive), len(negative)])
    spread = x.std(0)
    spread = np.where(spread > 1e-12 * max(spread.max(), 1e-30), spread, 1.0)
    fitted = LogisticRegression(C=C, max_iter=5000).fit((x - x.mean(0)) / spread, y)
    weight = fitted.coef_[0] / spread
    unit = weight / np.linalg.norm(weight)
    apart = abs(float((positive.mean(0) - negative.mean(0)) @ unit))
    return _direction(
        model, examples, site, torch.from_numpy(unit * max(apart, 1e-6)).float(), "probe_weight"
    )


METHODS: dict[str, Method] = {
    "mean difference": mean_difference,
    "PCA of differences": pca_of_differences,
    "probe weight": probe_weight,
}
"""The methods compared by default."""


def checked(
    name: str, method: Method, model: LanguageModel, examples: Examples, sites: Sequence[str]
) -> dict[str, Direction]:
    """A method's direction at each site. Raises `DataError` where it gives something else."""
    found = {}
    for site in sites:
        made = method(model, examples, site)
        if not isinstance(made, Direction):
            raise DataError(f"The method {name!r} gave a {type(made).__name__}: it must give a Direction.")
        if made.site != site:
            raise DataError(f"The method {name!r} gave a direction at {made.site!r} when asked for {site!r}.")
        made.fits(model)
        found[site] = made
    return found


def _direction(model: LanguageModel, examples: Examples, site: str, vector: Tensor, source: str) -> Direction:
    return Direction.from_vector(
        vector,
        site=site,
        name=examples.name or source,
        source=source,
        model_fingerprint=model.fingerprint,
        settings={"n_pairs": len(examples.positive), "position": -1},
    )
