"""Causal patching: replace an activation by that of another run and see what the output does.

- `metrics`    logits -> one number per row
- `recording`, `replay`  re-run only what a patch can change, many patches at once
- `cells`, `sources`     what a patch replaces, and by what
- `alignment`  which positions correspond in prompts of different lengths
- `sweep`      grids with controls, intervals and p-values
- `attribution`, `edge_attribution`  first-order estimates of all cells and edges at once
- `path`       path patching from senders to receivers
- `ablation`, `knockout` take away a site's content, or attention edges
- `cama`, `all_for_one`  context-aware mean ablation and the subgraph search built on it
- `back_patching`, `patchscopes`  a later stream in an earlier block, or in another prompt
- `circuit`, `circuit_run`, `circuit_export`  few edges that carry the behaviour: choose, run, compare with random ones
- `mediation`, `neurons`  indirect effects of components; comparative neuron analysis
- `input_attribution`  which tokens of the prompt carry the answer
- `subspace`   interchange interventions in a subspace, distributed alignment search
"""

from workbench.patching.ablation import ablate
from workbench.patching.alignment import Alignment, align
from workbench.patching.all_for_one import all_for_one, search
from workbench.patching.attribution import attribution
from workbench.patching.back_patching import back_patch
from workbench.patching.cama import cama
from workbench.patching.circuit import Circuit, prune, select
from workbench.patching.circuit_export import load as load_circuit
from workbench.patching.circuit_export import save as save_circuit
from workbench.patching.circuit_export import to_graph
from workbench.patching.circuit_run import circuit_curves, run_circuit
from workbench.patching.edge_attribution import edges
from workbench.patching.input_attribution import input_attribution
from workbench.patching.input_deletion import deletion_insertion
from workbench.patching.knockout import knockout
from workbench.patching.mediation import mediation, relative_importance
from workbench.patching.metrics import (
    Accuracy,
    KLDivergence,
    LogitDifference,
    LogProbability,
    Metric,
    Probability,
    Rank,
)
from workbench.patching.neurons import ablate_neurons, comparative, importance, top_neurons
from workbench.patching.patchscopes import ENTITY_DESCRIPTION, decodes, patchscope
from workbench.patching.path import path_patch
from workbench.patching.subspace import das, interchange
from workbench.patching.sweep import sweep

__all__ = [
    "ENTITY_DESCRIPTION",
    "Accuracy",
    "Alignment",
    "Circuit",
    "KLDivergence",
    "LogProbability",
    "LogitDifference",
    "Metric",
    "Probability",
    "Rank",
    "ablate",
    "ablate_neurons",
    "align",
    "all_for_one",
    "attribution",
    "back_patch",
    "cama",
    "circuit_curves",
    "comparative",
    "das",
    "decodes",
    "deletion_insertion",
    "edges",
    "importance",
    "input_attribution",
    "interchange",
    "knockout",
    "load_circuit",
    "mediation",
    "patchscope",
    "path_patch",
    "prune",
    "relative_importance",
    "run_circuit",
    "save_circuit",
    "search",
    "select",
    "sweep",
    "to_graph",
    "top_neurons",
]
