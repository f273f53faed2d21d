"""The field of a spec that says which positions are steered."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator


def _known(where: str | dict[str, Any]) -> str | dict[str, Any]:
    from workbench.steering.rules import as_rule

    as_rule(where)
    return where


Rule = Annotated[str | dict[str, Any], AfterValidator(_known)]
"""A position rule: a name (`all`, `prompt`, `generated`, `last`), `{"from": 3}` or `{"from_text": "Mary"}`. Others are
refused when the spec is read."""
