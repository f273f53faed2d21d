"""Names of `workbench.steering` that the page Steer needs before anything of it (and with it torch) is imported."""

from __future__ import annotations

NORMS = ("add", "add_keeping_norm")
"""`workbench.steering.specs.apply.NORMS`."""
TEXTS = "steered_texts"
"""`workbench.steering.texts.KIND`."""
