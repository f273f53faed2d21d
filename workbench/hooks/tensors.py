"""Between what a module takes or returns and the tensor a site names.

`take` gives the site's view of a module tensor (columns of a fused projection, heads apart, batch and
position apart); `put` gives a new module tensor with the site's part replaced. Neither writes in place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from workbench.errors import HookError
from workbench.sites.catalog import Site


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any], site: str) -> Tensor:
    """The hidden states a module was called with, positional or by keyword."""
    if args and isinstance(args[0], Tensor):
        return args[0]
    for name in ("hidden_states", "input", "x"):
        if isinstance(kwargs.get(name), Tensor):
            return kwargs[name]
    raise HookError(
        f"Site {site!r}: its module was called without hidden states (arguments: {sorted(kwargs)}). "
        "This architecture calls the module in a way we do not know."
    )


def replace_first(
    args: tuple[Any, ...], kwargs: dict[str, Any], tensor: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same call with other hidden states."""
    if args and isinstance(args[0], Tensor):
        return (tensor, *args[1:]), kwargs
    name = next(n for n in ("hidden_states", "input", "x") if isinstance(kwargs.get(n), Tensor))
    return args, {**kwargs, name: tensor}


def output_tensor(output: Any, site: str) -> Tensor:
    """The hidden states in a module's output: the tensor itself, or the first of a tuple."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return output[0]
    raise HookError(f"Site {site!r}: its module returned {type(output).__name__}, not hidden states.")


def replace_output(output: Any, tensor: Tensor) -> Any:
    """The same output with other hidden states."""
    if isinstance(output, Tensor):
        return tensor
    if isinstance(output, list):
        return [tensor, *output[1:]]
    return (tensor, *output[1:])


def take(tensor: Tensor, site: Site, batch_shape: tuple[int, int] | None) -> Tensor:
    """The site's activation in a module tensor: [batch, position, ...], heads split off."""
    if site.flat and tensor.ndim == 2 and batch_shape is not None:
        tensor = tensor.reshape(*batch_shape, tensor.shape[-1])
    if site.columns:
        tensor = tensor[..., _columns(site, tensor.device)]
    if site.heads:
        tensor = tensor.unflatten(-1, (site.heads, -1))
    if site.part == "hook_pos_embed" and batch_shape is not None and tensor.shape[0] != batch_shape[0]:
        tensor = tensor.expand(batch_shape[0], *tensor.shape[1:])
    return tensor


def put(whole: Tensor, site: Site, new: Tensor) -> Tensor:
    """The module tensor with the site's part replaced by `new`, in a new tensor."""
    if site.heads:
        new = new.flatten(-2)
    if site.columns:
        index = _columns(site, whole.device)
        whole = whole.clone()
        whole[..., index] = new.reshape(*whole.shape[:-1], new.shape[-1])
        return whole
    return new.reshape(whole.shape) if site.flat else new


def _columns(site: Site, device: torch.device) -> slice | Tensor:
    first, last = site.columns[0], site.columns[-1]
    if site.columns == tuple(range(first, last + 1)):
        return slice(first, last + 1)
    return torch.tensor(site.columns, device=device)


def checked_edit(result: Any, before: Tensor, site: str) -> Tensor:
    """What an edit function returned, or an error that says what it should have returned."""
    if not isinstance(result, Tensor):
        raise HookError(
            f"The edit at {site!r} returned {type(result).__name__}: return the edited tensor "
            f"(shape {tuple(before.shape)}); edits are out of place, changing the argument is not enough."
        )
    if result.shape != before.shape:
        raise HookError(
            f"The edit at {site!r} returned shape {tuple(result.shape)}, expected {tuple(before.shape)}."
        )
    return result.to(dtype=before.dtype, device=before.device)
