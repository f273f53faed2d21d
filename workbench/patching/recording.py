"""`Recording`: everything of one run that a replay needs.

One base run keeps, for every block, the hidden states it was given, all its other arguments (masks, rotary tables, …)
and the keys and values it left behind. So a replay can begin at any block and at any position: what is below and what
is before stays as it was.

The arguments for a replay from position p on are those that the model itself makes for the tokens from p on after a
cache of the tokens before; they are asked of the model, with its blocks switched to pass their input through, once for
each p. So every architecture's own masks and position codes are right, whatever they are called.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.errors import ModelError
from workbench.hooks.tensors import first_tensor, output_tensor
from workbench.model.language_model import LanguageModel
from workbench.model.tokens import TokenBatch

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments of a block."""


class Recording:
    """One recorded run of one prompt.

    Args:
        model: the language model.
        batch: exactly one prompt, hence no padding.
        read: names of sites whose activations are kept as well.

    Attributes:
        logits: [d_vocab] at the last position.
        activations: site -> [position, ...], of those that were to be read.
        length: number of tokens.
        inputs: residual stream before each block, and after the last one: [layer] of [position, d_model].
        suffixes: whether replays may begin at another position than the first. False where the model keeps no keys
            and values that could be given back to it.
    """

    def __init__(self, model: LanguageModel, batch: TokenBatch, read: Sequence[str] = ()) -> None:
        if len(batch) != 1:
            raise ModelError(f"A replay records one prompt, not {len(batch)}: record them one by one.")
        from transformers import DynamicCache

        self.model, self.length, self._ids = model, batch.lengths[0], batch.ids
        self.inputs: list[Float[Tensor, "position d_model"]] = []
        self._calls: dict[int, list[Call]] = {}
        session = model.hooks(read=read)  # may run the model to learn its sites: before anything is recorded
        last: list[Any] = []
        name = f"blocks.{model.n_layers - 1}.hook_resid_post"
        end = model.block(model.n_layers - 1).register_forward_hook(
            lambda _module, _args, output: last.append(output)
        )
        cache = DynamicCache()
        try:
            with torch.inference_mode(), _recorded(model) as calls, session:
                out = model.hf(**batch.inputs(), use_cache=True, past_key_values=cache, logits_to_keep=1)
        finally:
            end.remove()
        self.logits: Float[Tensor, " d_vocab"] = out.logits[0, -1]
        self.activations: dict[str, Tensor] = {site: session[site][0] for site in read}
        self._calls[0] = [(_without(args), _without(kwargs)) for args, kwargs in calls]
        self.inputs = [
            first_tensor(args, kwargs, f"blocks.{layer}.hook_resid_pre")[0]
            for layer, (args, kwargs) in enumerate(calls)
        ]
        self.inputs.append(output_tensor(last[0], name)[0])
        self._as_tuple = not isinstance(last[0], Tensor)
        self._cache = _keys_and_values(cache, model.n_layers, self.length)
        self.suffixes = self._cache is not None

    def call(
        self, layer: int, start: int, rows: tuple[Sequence[Recording], Int[Tensor, " row"]] | None = None
    ) -> Call:
        """What to call a block with (all but the hidden states) for rows of positions `start` and after.

        The keys and values before `start` are given back by a cache: this run's for as many rows as there are, or with
        `rows` (runs that are `called_like` this one, and which of them each row is of) each row's own.
        """
        args, kwargs = self._calls_from(start)[layer]
        if start == 0 or self._cache is None:
            return args, kwargs
        prefix = Prefix(*_before(start, layer, *(rows or ([self], None))))
        swap = lambda value: prefix if value is _CACHE else value  # noqa: E731
        return tuple(map(swap, args)), {name: swap(value) for name, value in kwargs.items()}

    def called_like(self, other: Recording, start: int) -> bool:
        """Whether the blocks of another run are called with the same masks and position codes (bit for bit)."""
        if other is self:
            return True
        if (self.model, self.length, self.suffixes) != (other.model, other.length, other.suffixes):
            return False
        mine, others = self._calls_from(start), other._calls_from(start)
        seen: set[tuple[int, int]] = set()
        return all(_same(a, b, seen) for a, b in zip(mine, others, strict=True))

    def _calls_from(self, start: int) -> list[Call]:
        if start not in self._calls:
            self._calls[start] = self._suffix(start)
        return self._calls[start]

    @torch.inference_mode()
    def _suffix(self, start: int) -> list[Call]:
        assert self._cache is not None
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self._cache):
            cache.update(keys[:, :, :start], values[:, :, :start], layer)
        with _passing_through(self.model, as_tuple=self._as_tuple), _recorded(self.model) as calls:
            self.model.hf(
                input_ids=self._ids[:, start:], past_key_values=cache, use_cache=True, logits_to_keep=1
            )
        return [(_marked(args), _marked(kwargs)) for args, kwargs in calls]


def _before(start: int, layer: int, runs: Sequence[Recording], which: Tensor | None) -> tuple[Tensor, Tensor]:
    """[row, head, position, d_head] keys and values of positions before `start`; one row where there is one run."""
    caches = [run._cache[layer] for run in runs if run._cache is not None]
    if which is None:
        keys, values = caches[0]
        return keys[:, :, :start], values[:, :, :start]
    keys, values = (torch.cat([cache[i][:, :, :start] for cache in caches]) for i in (0, 1))
    return keys[which.to(keys.device)], values[which.to(values.device)]


def _same(a: Any, b: Any, seen: set[tuple[int, int]]) -> bool:
    """Whether two arguments are equal. Tensors that every block is given are compared once."""
    if a is b or (id(a), id(b)) in seen:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        equal = a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    elif isinstance(a, dict) and isinstance(b, dict):
        equal = a.keys() == b.keys() and all(_same(a[k], b[k], seen) for k in a)
    elif isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        equal = len(a) == len(b) and all(_same(x, y, seen) for x, y in zip(a, b, strict=True))
    else:
        equal = type(a) is type(b) and (isinstance(a, _Mark) or bool(a == b))
    if equal:
        seen.add((id(a), id(b)))
    return equal


class Prefix:
    """Stands in for the model's cache in one block: gives the base run's keys and values before what is new."""

    is_compileable = False

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self._keys, self._values = keys, values

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """[row, head, position, d_head] of all positions; the row's own after the base run's."""
        rows = len(keys)
        return (
            torch.cat([self._keys.expand(rows, -1, -1, -1), keys], dim=2),
            torch.cat([self._values.expand(rows, -1, -1, -1), values], dim=2),
        )

    def get_seq_length(self, *_: Any, **__: Any) -> int:
        """Positions before what is new."""
        return self._keys.shape[2]


class _Mark:
    """Stands where the model gave its cache."""


_CACHE = _Mark()


def _is_cache(value: Any) -> bool:
    from transformers import Cache

    return isinstance(value, Cache)


def _marked(given: Any) -> Any:
    if isinstance(given, dict):
        return {k: _CACHE if _is_cache(v) else v for k, v in given.items()}
    return tuple(_CACHE if _is_cache(v) else v for v in given)


def _without(given: Any) -> Any:
    """The arguments with no cache: nothing was before."""
    if isinstance(given, dict):
        return {k: None if _is_cache(v) else v for k, v in given.items()}
    return tuple(None if _is_cache(v) else v for v in given)


@contextmanager
def _recorded(model: LanguageModel) -> Iterator[list[Call]]:
    """The arguments of every block, in order."""
    calls: list[Call] = []
    handles = [
        model.block(layer).register_forward_pre_hook(
            lambda _module, args, kwargs: calls.append((args, dict(kwargs))), with_kwargs=True
        )
        for layer in range(model.n_layers)
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
    if len(calls) != model.n_layers:
        raise ModelError(
            f"{model.name} called its blocks {len(calls)} times in one pass, expected {model.n_layers}: "
            "blocks that are skipped or repeated cannot be replayed."
        )


@contextmanager
def _passing_through(model: LanguageModel, *, as_tuple: bool) -> Iterator[None]:
    """Blocks give back what they are given, so that a pass costs next to nothing."""
    blocks = [model.block(layer) for layer in range(model.n_layers)]

    def pass_on(*args: Any, **kwargs: Any) -> Any:
        hidden = first_tensor(args, kwargs, "blocks.L.hook_resid_pre")
        return (hidden,) if as_tuple else hidden

    try:
        for block in blocks:
            block.forward = pass_on  # type: ignore[method-assign]
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)


def _keys_and_values(cache: Any, n_layers: int, length: int) -> list[tuple[Tensor, Tensor]] | None:
    """[layer] of keys and values of all positions; None where the model kept none, or not all."""
    layers = getattr(cache, "layers", [])
    if len(layers) != n_layers:
        return None
    found = []
    for layer in layers:
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if not (isinstance(keys, Tensor) and isinstance(values, Tensor)):
            return None
        if keys.ndim != 4 or keys.shape[2] != length:
            return None
        found.append((keys, values))
    return found
