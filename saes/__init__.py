"""Sparse autoencoders and other dictionaries: load one, read features, take a feature as a direction.

import saes
sae = saes.load("path/to/sae-lens-folder")
features = sae.encode(acts.rows(sae.site))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saes.autoencoder import SparseAutoencoder
    from saes.saelens import load

__all__ = ["SparseAutoencoder", "load"]

_NAMES = {"load": "saes.saelens", "SparseAutoencoder": "saes.autoencoder"}


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'saes' has no attribute {name!r}")
