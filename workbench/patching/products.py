"""Products with weights in a gradient pass, only for the rows that matter.

A pass over few tokens spends four fifths of its time in products with weights, y = x Wᵀ + b forwards and dx = dy W
backwards. Three things about them are known beforehand:

1. *What is equal.* In a causal model, runs that begin with the same tokens have the same activations there. Those
   positions' y are computed in one of the runs and copied into the others, so they are equal in every bit.
2. *Whose gradient is asked for.* Where source and base run are equal, (a' - a) is 0 whatever the gradient is, and the
   source run's own gradient is never used. Positions before the first difference reach the metric through later
   ones, not the other way round: dx of the rows wanted needs dy of the rows wanted alone. The others' is 0.
3. *Which metric.* A logit difference takes two columns of the unembedding forwards, and two backwards.

The weights are not differentiated, so no pass keeps x. In float32 on a CPU the products are oneDNN's, where torch has
it and `torch.backends.mkldnn.enabled` is left on: torch's own choice, MKL, packs the weight anew for every product and
does not use a CPU of another maker to the full (on an AMD EPYC with AVX-512 oneDNN takes half its time, from 5 rows to
1024). Sums are taken in another order then, which changes their last digits (relatively, some 1e-7).

Weights of other kinds than `nn.Linear` and GPT-2's `Conv1D` (experts, quantised ones), and modules whose tokens are not
[row, position, ...], do as they always do: correct, with nothing saved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from workbench.model.language_model import LanguageModel


@dataclass(frozen=True)
class Rows:
    """Which rows of a pass are computed, and whose gradients are wanted; rows are counted over [row, position].

    Attributes:
        shape: rows and positions of the pass.
        computed: rows whose products are computed, in order.
        copied: for each row, which of the computed ones it equals.
        wanted: rows whose gradients are wanted, in order.
    """

    shape: tuple[int, int]
    computed: slice | Int[Tensor, " computed"]
    copied: Int[Tensor, " all"]
    wanted: slice | Int[Tensor, " wanted"]

    @classmethod
    def of(
        cls, length: int, like: Sequence[int], equal: Sequence[int], wanted: Sequence[int], device: Any = None
    ) -> Rows:
        """From what is known of each row of the pass.

        Args:
            length: number of positions.
            like: for each row, the row whose first positions it shares (itself: none); that one shares none.
            equal: how many positions those are.
            wanted: from which position on its gradient is wanted (`length`: nowhere).
            device: where the model is.

        Example:
            >>> rows = Rows.of(3, like=[1, 1], equal=[2, 0], wanted=[3, 2])  # source and base, which differ at the end
            >>> rows.computed, rows.copied.tolist(), rows.wanted
            (slice(2, 6, None), [1, 2, 0, 1, 2, 3], slice(5, 6, None))
        """
        shared = torch.arange(length) < torch.tensor(equal)[:, None]
        index = torch.arange(len(like) * length).view(len(like), length)
        computed = index[~shared]
        place = torch.empty(index.numel(), dtype=torch.long)
        place[computed] = torch.arange(len(computed))
        copied = place[torch.where(shared, index[torch.tensor(like)], index).flatten()]
        some = index[torch.arange(length) >= torch.tensor(wanted)[:, None]]
        index = (_slice(computed.to(device)), _slice(some.to(device)))
        return cls((len(like), length), index[0], copied.to(device), index[1])


@contextmanager
def trimmed(model: LanguageModel, rows: Rows) -> Iterator[None]:
    """For one pass, the products in the model's blocks are computed for `rows` only; values are the model's own."""
    swapped: list[nn.Module] = []
    one_dnn = _has_one_dnn()
    try:
        module: Any
        for module in model.module(model.catalog.blocks_path).modules():
            if (weight := _weight_of(module)) is not None:
                of = _Product(weight, module.bias, rows, product_of(weight, one_dnn))
                module.__dict__["forward"] = _forward(module, of)
                swapped.append(module)
        yield
    finally:
        for module in swapped:
            module.__dict__.pop("forward", None)


@contextmanager
def only_tokens(model: LanguageModel, tokens: Sequence[int]) -> Iterator[bool]:
    """For one pass, the model unembeds these tokens only; gives whether it does, which other unembeddings do not."""
    unembed: Any = model.module(model.catalog.map.paths["unembed"])
    fits = type(unembed) is nn.Linear and "forward" not in unembed.__dict__
    if not fits or unembed.weight.dtype not in (torch.float32, torch.float64):
        yield False  # in lower precision one token's product may be rounded otherwise than among all
        return
    index = torch.tensor(list(tokens), device=unembed.weight.device)
    weight = unembed.weight.detach()[index]
    bias = None if unembed.bias is None else unembed.bias.detach()[index]
    unembed.__dict__["forward"] = lambda hidden: linear(hidden, weight, bias)
    try:
        yield True
    finally:
        unembed.__dict__.pop("forward", None)


def product_of(weight: Tensor, one_dnn: bool) -> Callable[..., Tensor]:
    """x, W, b -> x Wᵀ + b for [row, d_in] and weights like this one, outside autograd."""
    fits = one_dnn and weight.dtype == torch.float32 and weight.device.type == "cpu"
    return _one_dnn if fits else linear


def _one_dnn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _has_one_dnn() -> bool:
    """Whether this torch is built with oneDNN, and has it switched on."""
    mkldnn = torch.backends.mkldnn
    return bool(mkldnn.is_available() and mkldnn.enabled and hasattr(torch.ops.mkldnn, "_linear_pointwise"))


def _weight_of(module: nn.Module) -> Tensor | None:
    """[d_out, d_in], detached; None where the module is no plain product, or somebody replaced its forward."""
    linear_layer = type(module) is nn.Linear
    if not linear_layer and not (type(module).__name__ == "Conv1D" and type(module) is _conv1d()):
        return None
    weight: Any = module.weight
    if "forward" in module.__dict__ or type(weight) is not nn.Parameter:
        return None
    return weight.detach() if linear_layer else weight.detach().t()


def _conv1d() -> type[nn.Module]:
    from transformers.pytorch_utils import Conv1D

    return Conv1D


def _forward(module: nn.Module, of: _Product) -> Callable[[Tensor], Tensor]:
    own, shape, dtype = module.forward, of.rows.shape, of.weight.dtype

    def forward(x: Tensor) -> Tensor:
        if (
            x.ndim != 3
            or tuple(x.shape[:2]) != shape
            or x.dtype != dtype
            or torch.is_autocast_enabled(x.device.type)
        ):
            return own(x)
        return _Apply.apply(x, of)  # type: ignore[no-any-return]

    return forward


class _Product:
    """One weight, and the rows its products are computed for."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, rows: Rows, product: Callable[..., Tensor]
    ) -> None:
        self.weight, self.bias, self.rows = weight, None if bias is None else bias.detach(), rows
        self._product = product
        self._all = rows.shape[0] * rows.shape[1]

    def forward(self, x: Float[Tensor, "row position d_in"]) -> Float[Tensor, "row position d_out"]:
        rows = self.rows
        made = self._product(_some(x.flatten(0, 1), rows.computed), self.weight, self.bias)
        if made.shape[0] != self._all:
            made = made.index_select(0, rows.copied.to(made.device))
        return made.view(*rows.shape, -1)

    def backward(self, gradient: Float[Tensor, "row position d_out"]) -> Float[Tensor, "row position d_in"]:
        part = self._product(_some(gradient.flatten(0, 1), self.rows.wanted), self.weight.t())
        whole = part.new_zeros((self._all, part.shape[1]))
        if isinstance(self.rows.wanted, slice):
            whole[self.rows.wanted] = part
        else:
            whole.index_copy_(0, self.rows.wanted.to(part.device), part)
        return whole.view(*self.rows.shape, -1)


class _Apply(torch.autograd.Function):
    """A product that is differentiated with respect to x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, of: _Product) -> Tensor:
        ctx.of = of
        return of.forward(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        return ctx.of.backward(gradients[0]), None


def _slice(index: Int[Tensor, " some"]) -> slice | Tensor:
    """The same rows as a slice, where they lie one behind the other."""
    if len(index) and int(index[-1]) - int(index[0]) + 1 == len(index):
        return slice(int(index[0]), int(index[-1]) + 1)
    return index


def _some(flat: Tensor, index: slice | Tensor) -> Tensor:
    return flat[index] if isinstance(index, slice) else flat.index_select(0, index.to(flat.device))
