"""What makes a probe worth trusting: controls, baselines, transfer and corrected p-values.

    from probes import trust

    report = trust.trust_report(model, statements)       # every control beside the probe, layer by layer
    trust.table(report);  report.plot()
    trust.transfer_matrix({"plain": (a, la, ga), "negated": (b, lb, gb)}).data["auc"]
    trust.permutation_test(acts, labels, groups=groups).data["p_max"]

- `control_tasks`   shuffled labels, random labels by token (Hewitt and Liang), selectivity
- `text_baselines`  what can be known without the model
- `untrained`       the same architecture with random weights
- `transfer`, `sets`  train on one set, test on another
- `undefined`       where rows fall whose label is neither of the two
- `permutation`     p-values, corrected over the cells of a sweep
- `report`          all of it in one call
- `fitting`         the fits and scores they share (a faster solver goes in there)

Names are imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_NAMES = {
    "trust_report": "report",
    "table": "report",
    "transfer_matrix": "transfer",
    "split_by": "sets",
    "by_layer": "sets",
    "undefined_rows": "undefined",
    "permutation_test": "permutation",
    "p_values": "permutation",
    "text_only": "text_baselines",
    "untrained_model": "untrained",
    "collect_untrained": "untrained",
    "shuffled_labels": "control_tasks",
    "random_token_labels": "control_tasks",
    "selectivity": "control_tasks",
}

__all__ = [
    "by_layer",
    "collect_untrained",
    "p_values",
    "permutation_test",
    "random_token_labels",
    "selectivity",
    "shuffled_labels",
    "split_by",
    "table",
    "text_only",
    "transfer_matrix",
    "trust_report",
    "undefined_rows",
    "untrained_model",
]

if TYPE_CHECKING:
    from probes.trust.control_tasks import random_token_labels, selectivity, shuffled_labels
    from probes.trust.permutation import p_values, permutation_test
    from probes.trust.report import table, trust_report
    from probes.trust.sets import by_layer, split_by
    from probes.trust.text_baselines import text_only
    from probes.trust.transfer import transfer_matrix
    from probes.trust.undefined import undefined_rows
    from probes.trust.untrained import collect_untrained, untrained_model


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'probes.trust' has no attribute {name!r}")
    return getattr(import_module(f"probes.trust.{_NAMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
