"""Structural probes for numbers: is a number stored as angles, as a line, as a polynomial, or as nothing of the kind?

    from probes import periodic

    task = periodic.NumberTask("{a} + {b} =", numbers=range(100), others=range(100))
    acts = periodic.read_numbers(model, task)
    periodic.helix_sweep(acts.rows, acts.numbers).data["r2"]        # how much of the activation a basis explains
    periodic.helix_patch(model, task).data["mean_effect"]           # and whether the model uses that part
    periodic.number_spectrum({"embedding": table})                  # power by frequency
    periodic.running_sum_probe(model)                               # running sums of long multiplication

The bases themselves are in `probes.periodic.basis`. Names are imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_NAMES = {
    "PERIODS": "basis",
    "Basis": "basis",
    "BasisProbe": "helix",
    "HelixProbe": "helix",
    "helix_sweep": "sweep",
    "PeriodChoice": "periods",
    "choose_periods": "periods",
    "NumberTask": "numbers",
    "read_numbers": "numbers",
    "helix_patch": "causal",
    "digit_fit": "spectrum",
    "number_spectrum": "spectrum",
    "regression_probe": "regression",
    "running_sum_probe": "running_sum",
    "running_sums": "running_sum",
}
__all__ = [
    "PERIODS",
    "Basis",
    "BasisProbe",
    "HelixProbe",
    "NumberTask",
    "PeriodChoice",
    "choose_periods",
    "digit_fit",
    "helix_patch",
    "helix_sweep",
    "number_spectrum",
    "read_numbers",
    "regression_probe",
    "running_sum_probe",
    "running_sums",
]

if TYPE_CHECKING:
    from probes.periodic.basis import PERIODS, Basis
    from probes.periodic.causal import helix_patch
    from probes.periodic.helix import BasisProbe, HelixProbe
    from probes.periodic.numbers import NumberTask, read_numbers
    from probes.periodic.periods import PeriodChoice, choose_periods
    from probes.periodic.regression import regression_probe
    from probes.periodic.running_sum import running_sum_probe, running_sums
    from probes.periodic.spectrum import digit_fit, number_spectrum
    from probes.periodic.sweep import helix_sweep


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'probes.periodic' has no attribute {name!r}")
    return getattr(import_module(f"probes.periodic.{_NAMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
