"""Specs of the patching methods: one file a method, named as the Python function.

A spec has the fields of its function, but for two: what a function calls `kind` is `site` here (a spec's kind says
which spec it is), and prompts come in as themselves or from a data set.

- `metric`, `pairs`, `prompts`, `places`  what several of them share: the metric by name, clean and corrupt prompts,
  prompts with answers, positions said in words
- `records`  the pairs of a data set

To add a method: its spec here, its command in `workbench/cli/patch_NAME.py`, a line for each where they are listed
(`workbench.specs` in pyproject.toml, `workbench/cli/patch.py`).
"""
