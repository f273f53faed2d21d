"""A spec as code: the same run from Python or from the command line."""

from __future__ import annotations

import shlex
from typing import Any

from workbench.specs import Spec


def changed(spec: Spec) -> dict[str, Any]:
    """The fields that differ from their defaults, as plain data."""
    asked = spec.model_dump(mode="json", exclude_defaults=True)
    return {name: asked[name] for name in asked}


def python(spec: Spec) -> str:
    """Python that asks for the same run and draws it."""
    kind = type(spec)
    arguments = "".join(f"    {name}={value!r},\n" for name, value in changed(spec).items())
    return (
        "import workbench as wb\n"
        f"from {kind.__module__} import {kind.__name__}\n\n"
        f"spec = {kind.__name__}(\n{arguments})\n"
        "run = wb.run_spec(spec)\n"
        "run.result.plot().show()\n"
    )


def shell(spec: Spec) -> str:
    """A command line that asks for the same run, from the spec as YAML."""
    name = f"{spec.kind}.yaml"
    return f"cat > {name} <<'YAML'\n{spec.to_yaml()}YAML\nworkbench run {shlex.quote(name)}\n"
