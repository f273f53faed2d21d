"""Pure figures: a result goes in, Plotly figures come out. No Dash, no torch, no computation beyond means.

    figures(result)     every figure of a result by name, the main one first
    figure(result)      the main one
    describe(result)    the same figures in words, for screen readers

| kind of result       | figures                                                                    |
| -------------------- | -------------------------------------------------------------------------- |
| `logit_lens`         | `lens`, `layers`                                                           |
| `patching_sweep`     | `effect`, `control`, and `positions` of heads at positions                 |
| `probe_sweep`        | `auc`, `accuracy`; of several labels `labels`, of several C `penalty`, …   |
| `dose_response`      | `score`, `kl`                                                              |
| `attribution`        | as of a sweep, `top` of heads, `recheck`; of several kinds `effect_z`, …   |
| `edge_attribution`   | `effect`, `control`, `top`                                                 |
| `path_patching`      | `effect`, `control`, `top`; of sets of senders `top`                       |
| `ablation`           | `effect`; of heads and of many sites also `control`, `top`                 |
| `knockout`           | `effect`                                                                   |
| `back_patching`      | `pairs`, `oracle`                                                          |
| `patchscope`         | `texts`, `control`, `changed`, and `decoded` where that is known           |
| `all_for_one`        | `faithfulness`                                                             |
| `all_for_one_search` | `grid`, `smallest`                                                         |
| `das`                | `accuracy`, `loss`                                                         |
| `causal_mediation`   | `effect_C` and `control_C` of each component                               |
| `circuit`            | `curves`                                                                   |
| `neuron_importance`  | `layers`, `top`, and `heads` where a head was silenced                     |
| `neuron_ablation`    | `ablation`                                                                 |
| `input_attribution`  | see `tokens`                                                               |
| `probe_numbers`      | `r2`, and `mae` of one quantity                                            |
| `probe_erasure`      | `accuracy`                                                                 |
| `probe_sparse`       | `auc`                                                                      |
| `probe_apply`        | `answers`, or `values`                                                     |
| other probes         | see `alt.OF_PROBES` for the module of each kind                            |

Figures are made in the light scheme; `theme.use_scheme(figure, "dark")` swaps the template and nothing else.
Category labels of a grid begin with the position, head or layer: `int(str(x).split()[0])` is the clicked one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from dashboards.figures import lens, patch, steer
from dashboards.figures.alt import OF_PATCHING, OF_PROBES, control_statement, describe, module_of
from workbench.errors import RunError, did_you_mean

if TYPE_CHECKING:
    from workbench.results import Result

__all__ = ["KINDS", "control_statement", "describe", "figure", "figures", "provide"]


def _later(result: Result) -> dict[str, go.Figure]:
    """By a module that is imported when it is needed."""
    module = module_of(result.kind)
    assert module is not None
    return module.figures(result)


_MAKERS: dict[str, Callable[[Result], dict[str, go.Figure]]] = {
    "logit_lens": lens.figures,
    "patching_sweep": patch.figures,
    "probe_sweep": _later,
    "dose_response": steer.figures,
    **{kind: module.figures for kind, module in OF_PATCHING.items()},
    **dict.fromkeys(OF_PROBES, _later),
}
KINDS = tuple(_MAKERS)


def figures(result: Result) -> dict[str, go.Figure]:
    """Every figure of a result, by name, the main one first.

    Raises:
        RunError: there is no figure for results of this kind; the message lists the known kinds.

    Example:
        >>> list(figures(wb.lens.logit_lens(model, "The capital of France is")))
        ['lens', 'layers']
    """
    if result.kind not in _MAKERS:
        hint = did_you_mean(result.kind, KINDS)
        raise RunError(
            f"There is no figure for results of kind {result.kind!r}: known are {', '.join(KINDS)}.{hint}"
        )
    return _MAKERS[result.kind](result)


def provide(result: Result) -> dict[str, go.Figure]:
    """What the entry point `workbench.figures` gives: no figures for kinds that other packages draw."""
    return figures(result) if result.kind in _MAKERS else {}


def figure(result: Result) -> go.Figure:
    """The main figure of a result. Raises `RunError` for an unknown kind."""
    return next(iter(figures(result).values()))
