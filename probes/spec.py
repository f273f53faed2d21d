"""Spec of a probe sweep; it and those of the other analyses are in `probes.specs`, one a file."""

from __future__ import annotations

from probes.specs.prompts import Kind
from probes.specs.sweep import ProbeSpec

__all__ = ["Kind", "ProbeSpec"]
