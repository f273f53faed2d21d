"""`RowBlock`: what goes into a store at once, all rows of one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

PHASES = ("prompt", "generated")


@dataclass(frozen=True)
class PromptRecord:
    """A prompt of which rows are stored."""

    number: int
    """Place among all prompts (contexts) that were read, from 0."""
    id: str
    """The id its source gave it; contexts of a longer text carry its id and their place, `doc-7#2`."""
    n_tokens: int
    labels: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the source that are not text, for instance `label`, `group`, `answer`."""


@dataclass(frozen=True)
class RowBlock:
    """Rows of some prompts. Rows of one prompt are next to each other, in the order of their positions."""

    values: Mapping[str, Tensor]
    """Site -> [row, ...] on the CPU."""
    prompt: np.ndarray
    """[row] int64: number of the prompt."""
    position: np.ndarray
    """[row] int32: absolute position in the unpadded prompt."""
    token_id: np.ndarray
    """[row] int32."""
    phase: np.ndarray
    """[row] int8: index into `PHASES`."""
    spans: Sequence[str]
    """[row]: names of the spans the token lies in, joined with `|`; empty where it lies in none."""
    prompts: Sequence[PromptRecord]
    """The prompts, in the order of their rows."""

    def __len__(self) -> int:
        return len(self.prompt)
