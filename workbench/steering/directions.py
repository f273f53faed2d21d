"""Directions from prompts, by the names they have had from the start; see `workbench.steering.extract` for all."""

from __future__ import annotations

from workbench.steering.extract.mean_difference import mean_difference, mean_differences

__all__ = ["mean_difference", "mean_differences"]
