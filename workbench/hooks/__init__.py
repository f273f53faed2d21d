"""Reading and editing activations of an untouched model: one context manager, out of place, fire-checked."""

from workbench.hooks.session import HookContext, HookSession

__all__ = ["HookContext", "HookSession"]
