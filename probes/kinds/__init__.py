"""Further kinds of probes, one file each; all are scikit-learn estimators and save with `probes.saving`.

| class | what it is | labels |
| --- | --- | --- |
| `RidgeProbe` | linear regression, penalty by exact leave-one-out | numbers, one or several |
| `MultinomialProbe` | softmax regression | two classes or more |
| `LdaProbe` | linear discriminant analysis, shrunk covariance | two classes or more |
| `MlpProbe` | one hidden layer | two classes or more |
| `SparseProbe` | logistic regression on k features | two classes |
| `PcaProbe`, `KMeansProbe` | a direction found without labels | none (two classes, for the sign alone) |
| `CcsProbe`, `CrcProbe` | contrast pairs | none (two classes, for the sign alone) |

`sparse_beside_dense` compares a sparse probe on latents with the dense one on the activations. Names are imported when
first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probes.kinds.beside_dense import sparse_beside_dense
    from probes.kinds.ccs import CcsProbe, CrcProbe
    from probes.kinds.inputs import InputError
    from probes.kinds.lda import LdaProbe
    from probes.kinds.mlp import MlpProbe
    from probes.kinds.multinomial import MultinomialProbe
    from probes.kinds.ridge import RidgeProbe
    from probes.kinds.sparse import SparseProbe
    from probes.kinds.unsupervised import KMeansProbe, PcaProbe

_NAMES = {
    "RidgeProbe": "ridge",
    "MultinomialProbe": "multinomial",
    "LdaProbe": "lda",
    "PcaProbe": "unsupervised",
    "KMeansProbe": "unsupervised",
    "CcsProbe": "ccs",
    "CrcProbe": "ccs",
    "MlpProbe": "mlp",
    "SparseProbe": "sparse",
    "InputError": "inputs",
    "sparse_beside_dense": "beside_dense",
}

__all__ = [
    "CcsProbe",
    "CrcProbe",
    "InputError",
    "KMeansProbe",
    "LdaProbe",
    "MlpProbe",
    "MultinomialProbe",
    "PcaProbe",
    "RidgeProbe",
    "SparseProbe",
    "sparse_beside_dense",
]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'probes.kinds' has no attribute {name!r}")
    return getattr(import_module(f"probes.kinds.{_NAMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
