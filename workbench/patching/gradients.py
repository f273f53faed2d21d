"""Gradients of a metric at activations of the untouched model: one forward and one backward for all of them.

A *probe* is a tensor of zeros that a plain hook adds where a tensor passes. Its gradient is d metric / d activation at
that place, that is the effect, per unit, of a patch there:

- at a block's input or output: through everything that reads the stream later, skip connections included;
- at the input of a norm: through what that norm feeds and nothing else, since the skip connection is not probed;
- at `resid_mid`: through the attention's output, as a patch puts it in.

Adding zeros changes no value, so the run is the model's own. Where the caller knows which rows matter (`rows`,
`tokens`), only those are computed (`products`), which changes the last digits. Only the probes are differentiated:
parameters collect no gradients, are neither frozen nor thawed, and a model whose parameters are frozen works as well.

Integrated gradients (Sundararajan et al. 2017, 1703.01365) average the gradient over runs whose input lies on the
straight line between two inputs; here as in EAP-IG "inputs" (Hanna et al. 2024, 2403.17806): only the input
moves, and all activations follow it. The input is the stream that enters block 0 (token and position embeddings, as the
model scales and adds them). The m points are the midpoints (k - 1/2)/m, whose error falls as 1/m² where the function is
smooth; the paper takes k/m, whose error falls as 1/m.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.errors import HookError, MetricError, ModelError
from workbench.hooks.tensors import first_tensor, output_tensor, replace_first, replace_output, take
from workbench.model.language_model import LanguageModel
from workbench.patching.metrics import MetricFunction
from workbench.patching.products import Rows, only_tokens, trimmed
from workbench.sites.catalog import Site

INPUT = "blocks.0.hook_resid_pre"
"""What integrated gradients move."""
TOKENS_PER_BACKWARD = 1024
"""Tokens whose activations are held at once for a backward pass of integrated gradients."""

Activations = dict[str, Tensor]
"""Site -> [position, ...] of one prompt."""


class Forward:
    """One whole forward pass, with the activations and, if asked for, a way to the gradients.

    Args:
        model: the language model.
        ids: [row, position] token ids.
        points: where activations are kept: sites, or places described like one.
        probed: names of the points whose gradients will be asked for; none runs without autograd.
        keep: positions at the end whose logits are kept.
        inputs: [row, position, d_model] stream to enter block 0 instead of the prompt's own.
        rows: which rows of the pass matter (see `products`): others are copied, and have no gradients. None: all do.
        tokens: ids of the tokens whose logits are computed; None: all.

    Attributes:
        logits: [row, d_vocab] at the last position, or with `keep` above 1 [row, kept, d_vocab]; with `tokens`
            [..., token], in their order.
        values: point -> [row, position, ...], detached.

    Raises:
        HookError: a point that this forward passes not once, but never or several times.
    """

    def __init__(
        self,
        model: LanguageModel,
        ids: Int[Tensor, "row position"],
        points: Sequence[Site],
        *,
        probed: Iterable[str] = (),
        keep: int = 1,
        inputs: Float[Tensor, "row position d_model"] | None = None,
        rows: Rows | None = None,
        tokens: Sequence[int] | None = None,
    ) -> None:
        self.values: dict[str, Tensor] = {}
        self._probes: dict[str, Tensor] = dict.fromkeys(probed)  # type: ignore[arg-type]
        self._points = {point.name: point for point in points}
        self._shape = (ids.shape[0], ids.shape[1])
        self._name = model.name
        with (
            torch.inference_mode(False),
            torch.set_grad_enabled(bool(self._probes)),
            nullcontext() if rows is None else trimmed(model, rows),
            nullcontext(True) if tokens is None else only_tokens(model, tokens) as few,
            self._hooked(model, inputs),
        ):
            logits = model.hf(input_ids=ids, use_cache=False, logits_to_keep=keep).logits
        if tokens is not None and not few:
            logits = logits[..., list(tokens)]
        self.logits: Tensor = logits[:, -1] if keep == 1 else logits[:, -keep:]
        missing = [name for name in self._points if name not in self.values]
        if missing:
            raise HookError(
                f"{len(missing)} of {len(self._points)} places were not passed in this forward of {model.name}: "
                f"{', '.join(missing[:5])}. Leave them out."
            )

    def activations(self) -> Activations:
        """Those of the only row."""
        return {name: value[0] for name, value in self.values.items()}

    def gradients(self, metric: MetricFunction) -> Activations:
        """d metric / d activation at every probed point, [row, position, ...]; each row's metric on its own row.

        Raises:
            MetricError: the metric has no gradient.
            ModelError: a point does not reach the logits by autograd, or a gradient is not finite.
        """
        with torch.inference_mode(False), torch.enable_grad():
            value = metric(self.logits)
            if not value.requires_grad:
                raise MetricError(
                    "The metric has no gradient with respect to the logits (a rank, an accuracy and whatever leaves "
                    "torch are steps or constants): use LogitDifference, LogProbability or another smooth function."
                )
            found = torch.autograd.grad(value.sum(), list(self._probes.values()), allow_unused=True)
        gradients = {}
        for name, gradient in zip(self._probes, found, strict=True):
            if gradient is None:
                raise ModelError(
                    f"{name} of {self._name} does not reach the metric by autograd (an attention kernel without a "
                    "backward pass, or a place that is not used): patch it exactly, with `sweep`."
                )
            gradients[name] = take(gradient, self._points[name], self._shape)
        if not _all_finite(found):
            bad = [name for name, g in gradients.items() if not bool(g.isfinite().all())]
            if bad:
                raise ModelError(
                    f"The gradient is not finite at {len(bad)} of {len(gradients)} places, the first is {bad[0]}: load "
                    "the model in float32, or with attn_implementation='eager'."
                )
        return gradients

    @contextmanager
    def _hooked(self, model: LanguageModel, inputs: Tensor | None) -> Iterator[None]:
        handles: list[Any] = []
        before: dict[int, Tensor] = {}

        def other_input(_module: Any, args: Any, kwargs: Any) -> Any:
            own = first_tensor(args, kwargs, INPUT)
            return replace_first(args, kwargs, inputs.to(own))  # type: ignore[union-attr]

        def on_input(point: Site) -> Callable[..., Any]:
            def hook(_module: Any, args: Any, kwargs: Any) -> Any:
                new = self._pass(point, first_tensor(args, kwargs, point.name), before)
                return replace_first(args, kwargs, new)

            return hook

        def on_output(point: Site) -> Callable[..., Any]:
            def hook(_module: Any, _args: Any, output: Any) -> Any:
                return replace_output(output, self._pass(point, output_tensor(output, point.name), before))

            return hook

        def remember(layer: int) -> Callable[..., Any]:
            def hook(_module: Any, args: Any, kwargs: Any) -> None:
                before[layer] = first_tensor(args, kwargs, f"blocks.{layer}").detach()

            return hook

        try:
            if inputs is not None:
                handles.append(model.block(0).register_forward_pre_hook(other_input, with_kwargs=True))
            for point in self._points.values():
                module = model.module(point.module)
                if point.where == "mid":
                    assert point.layer is not None
                    block = model.block(point.layer)
                    handles.append(block.register_forward_pre_hook(remember(point.layer), with_kwargs=True))
                if point.where == "input":
                    handles.append(module.register_forward_pre_hook(on_input(point), with_kwargs=True))
                else:
                    handles.append(module.register_forward_hook(on_output(point)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _pass(self, point: Site, whole: Tensor, before: dict[int, Tensor]) -> Tensor:
        """Keep what passes, and let it pass with its probe."""
        if point.name in self.values:
            raise HookError(f"{point.name} was passed twice in one forward: it cannot be attributed to.")
        value = whole.detach().clone()
        if point.where == "mid":
            value += before[point.layer].to(value.device)  # type: ignore[index]
        self.values[point.name] = take(value, point, self._shape)
        if point.name not in self._probes:
            return whole
        self._probes[point.name] = probe = torch.zeros_like(whole, requires_grad=True)
        return whole + probe


def _all_finite(tensors: Sequence[Tensor]) -> bool:
    """Asked of all tensors of a device at once: one by one, asking takes longer than looking."""
    by_device: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        by_device.setdefault((tensor.device, tensor.dtype), []).append(tensor.reshape(-1))
    return all(bool(torch.cat(some).isfinite().all()) for some in by_device.values())


def integrated(
    model: LanguageModel,
    ids: Int[Tensor, "1 position"],
    points: Sequence[Site],
    metric: MetricFunction,
    ends: tuple[Float[Tensor, "position d_model"], Float[Tensor, "position d_model"]],
    steps: int,
    *,
    keep: int = 1,
    tokens_per_backward: int = TOKENS_PER_BACKWARD,
    first: int = 0,
    tokens: Sequence[int] | None = None,
) -> Activations:
    """Gradients at `points`, averaged over `steps` inputs between `ends` (see the module's text).

    Args:
        model: the language model.
        ids: token ids; they only say how long the prompt is, since the input is replaced.
        points: where gradients are taken.
        metric: logits -> number.
        ends: the input of block 0 in the base run and in the source run.
        steps: number of midpoints.
        keep: positions at the end whose logits the metric takes.
        tokens_per_backward: tokens that go through together; results do not depend on it.
        first: the first position at which gradients are wanted; `ends` are equal before it.
        tokens: ids of the tokens whose logits the metric takes; None: all.

    Returns:
        Point -> [position, ...] in at least single precision.
    """
    base, source = ends
    fractions = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    total: Activations = {}
    for some in fractions.split(max(1, tokens_per_backward // ids.shape[1])):
        weights = some.to(base)[:, None, None]
        run = Forward(
            model,
            ids.expand(len(some), -1),
            points,
            probed=[point.name for point in points],
            keep=keep,
            inputs=base + weights * (source - base),
            rows=Rows.of(
                len(base), [0] * len(some), [0] + [first] * (len(some) - 1), [first] * len(some), model.device
            ),
            tokens=tokens,
        )
        for name, gradient in run.gradients(metric).items():
            part = precise(gradient).sum(0) / steps
            total[name] = total[name] + part if name in total else part
    return total


def precise(value: Tensor) -> Tensor:
    """In single precision where it was in less."""
    return value.to(torch.promote_types(value.dtype, torch.float32))
