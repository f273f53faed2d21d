"""Cells: what one patch replaces, for every kind of grid.

| kind | site | a cell is |
|---|---|---|
| `resid_pre`, `resid_mid`, `resid_post` | the residual stream | a position |
| `attn_out`, `mlp_out` | what a sublayer adds to it | a position |
| `z`, `q`, `k`, `v` | output, queries, keys, values of a head | a head everywhere, or at a position |
| `pattern` | attention pattern of a head | a head, all queries and keys |
| `neurons` | input of the MLP's down projection | a group of neighbouring neurons over all positions |

With `by="span"` a cell of a stream or a sublayer is a span: several positions at once (`alignment`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from numbers import Integral
from typing import Literal

from torch import Tensor

from workbench.errors import DataError, PromptError

Kind = Literal[
    "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern", "neurons"
]
By = Literal["auto", "position", "span", "head", "head_position", "group"]
KINDS: dict[str, str] = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "z": "attn.hook_z",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "pattern": "attn.hook_pattern",
    "neurons": "mlp.hook_post",
}
"""Kind -> site in its block."""
HEADS = ("z", "q", "k", "v")

Cell = tuple[int, ...]
Index = tuple[int | slice | list[int], ...]


@dataclass(frozen=True)
class Cells:
    """The cells of one site.

    Attributes:
        kind: what is patched.
        axes: name -> size of the grid's axes behind the layers: `position`, `span`, `head`, `head` and `position`, or
            `group`.
        group_size: neurons in a group (the last may have fewer).
        spans: positions of each span.
    """

    kind: str
    axes: dict[str, int]
    group_size: int = 1
    spans: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def of(
        cls,
        kind: str,
        by: str,
        activation: Tensor,
        length: int,
        group_size: int,
        spans: Sequence[Sequence[int]] = (),
    ) -> Cells:
        """The cells of an activation of one prompt: [position, ...], of `pattern` [head, query, key].

        Raises:
            PromptError: the kind has no such cells.
        """
        fitting = _fitting(kind)
        chosen = fitting[0] if by == "auto" else by
        if chosen not in fitting:
            raise PromptError(
                f"by={by!r} does not go with kind {kind!r}: give {' or '.join(map(repr, fitting))}."
            )
        heads = activation.shape[0 if kind == "pattern" else 1]
        match chosen:
            case "position":
                return cls(kind, {"position": length})
            case "span":
                if not spans:
                    raise PromptError(
                        "by='span' needs spans: give alignment=Alignment.of_spans(model, clean, corrupt, {...}), for "
                        "each pair."
                    )
                return cls(kind, {"span": len(spans)}, spans=tuple(tuple(sorted(span)) for span in spans))
            case "head":
                return cls(kind, {"head": heads})
            case "head_position":
                return cls(kind, {"head": heads, "position": length})
        if group_size < 1:
            raise PromptError(f"group_size is {group_size}; expected 1 or more neurons.")
        return cls(kind, {"group": -(-activation.shape[-1] // group_size)}, group_size)

    @property
    def columns(self) -> Iterator[tuple[int | None, list[Cell]]]:
        """Cells that are run together, and the position at which they begin; None: at the first."""
        if "span" in self.axes:
            yield from ((span[0], [(i,)]) for i, span in enumerate(self.spans))
            return
        if "position" not in self.axes:
            yield from ((None, [cell]) for cell in product(*map(range, self.axes.values())))
            return
        others = [range(size) for name, size in self.axes.items() if name != "position"]
        for position in range(self.axes["position"]):
            yield position, [(*cell, position) for cell in product(*others)]

    @property
    def n_columns(self) -> int:
        """How many of those there are."""
        return next(iter(reversed(self.axes.values())))

    def index(self, cell: Cell, start: int = 0) -> Index:
        """Where a cell lies in an activation whose first position is `start`."""
        match tuple(self.axes):
            case ("position",):
                return (cell[0] - start,)
            case ("span",):
                return ([p - start for p in self.spans[cell[0]]],)
            case ("head", "position"):
                return (cell[1] - start, cell[0])
            case ("group",):
                first = cell[0] * self.group_size
                return (slice(None), slice(first, first + self.group_size))
        return (cell[0],) if self.kind == "pattern" else (slice(None), cell[0])


def _fitting(kind: str) -> tuple[str, ...]:
    """The cells a kind can be cut into, the usual first."""
    if kind not in KINDS:
        raise PromptError(f"kind {kind!r} is not known: give one of {', '.join(KINDS)}.")
    if kind in HEADS:
        return ("head", "head_position")
    return {"pattern": ("head",), "neurons": ("group",)}.get(kind, ("position", "span"))


def check_layers(layers: Sequence[int] | int | None, n_layers: int, name: str) -> list[int]:
    """The blocks asked for, in order, each once; negative ones count from the last. One number is one block.

    Raises `DataError` for blocks that do not exist, and for none.
    """
    listed = [layers] if isinstance(layers, (int, Integral)) else layers
    wanted = range(n_layers) if listed is None else [int(layer) for layer in listed]
    outside = [layer for layer in wanted if not -n_layers <= layer < n_layers]
    if outside or not wanted:
        problem = f"Layer {outside[0]} does not exist" if outside else "No layers were asked for"
        raise DataError(f"{problem}: {name} has blocks 0–{n_layers - 1}. Give some of them, or None for all.")
    return sorted({layer % n_layers for layer in wanted})
