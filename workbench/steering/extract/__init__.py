"""Where directions come from, one file a method. Each gives a `Direction` (or a `DirectionSet` over sites).

- `mean_difference`      difference of the means of two sets of prompts (contrastive activation addition)
- `pca_of_differences`   first principal axis of paired differences
- `in_context_vector`    one axis through all layers at once, from demonstrations
- `fractional`           the same question under two instructions
- `from_probe`           weights of linear probes, and of a probe sweep
- `from_dictionary`      rows of any named dictionary
- `z_steer`              by optimisation: the vector that makes a frozen model write a sentence
- `ablation`             the difference of means whose removal changes what a model does, chosen on held-out prompts
- `leace`                the least change that leaves a label unreadable by linear probes

Shared: `contrast` (both sets read in one pass), `quality` (how well a direction separates prompts it has not seen,
beside shuffled labels), `above` and `z_optimise` (the search of `z_steer`), `bleu`.
"""

from __future__ import annotations

from workbench.steering.extract.ablation import AblationSearch, ablation_direction
from workbench.steering.extract.fractional import fractional
from workbench.steering.extract.from_dictionary import from_dictionary
from workbench.steering.extract.from_probe import from_probe, from_probe_classes, from_sweep
from workbench.steering.extract.in_context_vector import in_context_vector
from workbench.steering.extract.leace import Eraser, leace
from workbench.steering.extract.mean_difference import mean_difference, mean_differences
from workbench.steering.extract.pca_of_differences import pca_of_differences, pca_of_differences_at
from workbench.steering.extract.z_steer import ZSteer, z_steer

__all__ = [
    "AblationSearch",
    "Eraser",
    "ZSteer",
    "ablation_direction",
    "fractional",
    "from_dictionary",
    "from_probe",
    "from_probe_classes",
    "from_sweep",
    "in_context_vector",
    "leace",
    "mean_difference",
    "mean_differences",
    "pca_of_differences",
    "pca_of_differences_at",
    "z_steer",
]
