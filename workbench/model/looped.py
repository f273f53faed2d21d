"""Depth-recurrent models: a prelude, a core that is run R times, and a coda.

Such a checkpoint is an ordinary one (its layers are prelude, core and coda, once each) whose config has

    "looped": {"prelude": 1, "core": 1, "coda": 1, "loops": 6}

`unroll` makes the deep model of it: the core's blocks are repeated, each repetition a module of its own that
shares its parameters with the others. So the unrolled model is a plain transformers model: every repetition has
its own place among the blocks (`blocks.4.hook_resid_post` is the stream after the fourth block as it is run), its
own entry in the KV cache, and hooks on one repetition do not fire on another.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from torch import nn

from workbench.errors import ModelError


@dataclass(frozen=True)
class Loop:
    """How the blocks of a looped checkpoint are run."""

    prelude: int
    """Blocks run once, before the core."""
    core: int
    """Blocks that are repeated."""
    coda: int
    """Blocks run once, after the core."""
    loops: int
    """How often the core is run."""

    @property
    def n_layers(self) -> int:
        """Number of blocks as they are run."""
        return self.prelude + self.core * self.loops + self.coda

    def loop_of(self, layer: int) -> int | None:
        """Which repetition (from 0) the unrolled block `layer` belongs to; None in prelude and coda."""
        inside = layer - self.prelude
        return inside // self.core if 0 <= inside < self.core * self.loops else None

    def stored_layer(self, layer: int) -> int:
        """The block of the checkpoint that the unrolled block `layer` runs."""
        if not 0 <= layer < self.n_layers:
            raise ModelError(f"Block {layer} is outside the {self.n_layers} unrolled blocks.")
        inside = layer - self.prelude
        if inside < 0:
            return layer
        if inside < self.core * self.loops:
            return self.prelude + inside % self.core
        return self.prelude + self.core + inside - self.core * self.loops


def loop_of(config: Any) -> Loop | None:
    """The loop a config describes, or None for an ordinary model.

    Raises:
        ModelError: the description is incomplete or does not fit the number of layers.
    """
    described = getattr(config, "looped", None)
    if described is None:
        return None
    try:
        loop = Loop(**{name: int(described[name]) for name in ("prelude", "core", "coda", "loops")})
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"The config's 'looped' is {described!r}: expected whole numbers for prelude, core, coda and loops."
        ) from error
    if min(loop.prelude, loop.coda) < 0 or loop.core < 1:
        raise ModelError(f"The config's 'looped' is {described!r}: the core needs at least one block.")
    return loop


def unroll(hf_model: Any, loops: int | None = None) -> Loop:
    """Repeat the core of a looped model in place; may be called again to change the number of loops.

    Args:
        hf_model: a transformers model whose config has `looped` and whose blocks are `model.model.layers`
            (Llama and its kin).
        loops: how often the core is run; None takes the config's.

    Returns:
        The loop as it is now.

    Raises:
        ModelError: not a looped model, or fewer than one loop.

    Example:
        >>> unroll(hf, loops=8).n_layers
        10
    """
    config = hf_model.config
    stored = loop_of(config)
    if stored is None:
        raise ModelError("This model's config has no 'looped' entry: its depth is fixed, leave `loops` away.")
    wanted = stored.loops if loops is None else loops
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
        raise ModelError(f"loops is {wanted!r}: the core of a looped model is run at least once.")
    body = hf_model.model
    current = list(body.layers)
    loop = Loop(stored.prelude, stored.core, stored.coda, wanted)
    if is_folded(hf_model):
        originals = current
    elif len(current) == stored.n_layers:  # unrolled: the first repetition and the ends are the originals
        originals = current[: stored.prelude + stored.core] + current[len(current) - stored.coda :]
    else:
        raise ModelError(
            f"The config describes {stored.prelude} + {stored.core} + {stored.coda} blocks, but the model has "
            f"{len(current)}."
        )
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:  # which mask a block gets: that of the block it repeats
        own = dict(zip(map(id, current), kinds, strict=True))
        config.layer_types = [own[id(originals[loop.stored_layer(place)])] for place in range(loop.n_layers)]
    used: set[int] = set()
    layers = []
    for place in range(loop.n_layers):
        index = loop.stored_layer(place)
        layer = originals[index] if index not in used else _twin(originals[index])
        used.add(index)
        _renumber(layer, place)
        layers.append(layer)
    body.layers = nn.ModuleList(layers)
    config.num_hidden_layers = loop.n_layers
    config.looped = {**config.looped, "loops": wanted}
    return loop


def fold(hf_model: Any, loops: int | None = None) -> None:
    """Bring a looped model back, in place, to the form in which it is stored: each block once.

    Args:
        hf_model: a looped model, unrolled or not.
        loops: what its config is to state for the next `unroll`; None keeps what it states.

    Raises:
        ModelError: not a looped model.
    """
    before = loop_of(hf_model.config)
    unroll(hf_model, 1)
    if loops is None and before is not None:
        loops = before.loops
    hf_model.config.looped = {**hf_model.config.looped, "loops": loops}


def is_folded(hf_model: Any) -> bool:
    """Whether each block of a looped model is there once, as in its checkpoint. With one loop both forms are one."""
    loop = loop_of(hf_model.config)
    return loop is not None and len(hf_model.model.layers) == loop.prelude + loop.core + loop.coda


def _twin(layer: nn.Module) -> nn.Module:
    """A module of its own with the same parameter, buffer and config objects."""
    shared: dict[int, Any] = {id(t): t for t in (*layer.parameters(), *layer.buffers())}
    shared |= {id(m.config): m.config for m in layer.modules() if hasattr(m, "config")}
    return copy.deepcopy(layer, memo=shared)


def _renumber(layer: nn.Module, place: int) -> None:
    for module in layer.modules():
        if hasattr(module, "layer_idx"):
            module.layer_idx = place  # type: ignore[assignment]
