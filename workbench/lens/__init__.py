"""Lenses: what intermediate layers would say if they were read out now."""

from workbench.lens.logit_lens import logit_lens

__all__ = ["logit_lens"]
