"""Specs of steering runs: one file a kind (`workbench run spec.yaml`, `workbench steer`, the page Steer)."""
