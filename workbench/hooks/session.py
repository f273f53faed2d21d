"""One context manager for reading and editing.

    with model.hooks(read=["blocks.3.hook_resid_post"], edit={"blocks.1.hook_mlp_out": fn}) as session:
        model.hf(**inputs)
    session["blocks.3.hook_resid_post"]

1. Site names are resolved before anything runs; an unknown one is an error.
2. Edits are registered before reads, in the order of the forward pass: a read sees what the model goes on with.
3. An edit function gets a copy and returns the new tensor: nothing the model or another reader holds changes.
4. On a normal exit every hook must have fired; one that did not is an error, never a silent no-op.
5. All hooks are removed on every way out.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.errors import HookError
from workbench.hooks.context import HookContext, PositionTracker
from workbench.hooks.pattern import PatternTap
from workbench.hooks.tensors import (
    checked_edit,
    first_tensor,
    output_tensor,
    put,
    replace_first,
    replace_output,
    take,
)
from workbench.sites.catalog import Site

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel

EditFunction = Callable[..., Tensor]
"""`fn(activation)` or `fn(activation, context)` -> tensor of the same shape."""


class StopForward(Exception):
    """Ends a forward pass early, once everything asked for has been read."""


@dataclass
class _Tap:
    """What is done at one site: the edit, if any, and whether its value is kept."""

    site: Site
    edit: EditFunction | None = None
    keep: bool = False
    fired: int = 0


class HookSession:
    """Hooks of one `with` block. Made by `LanguageModel.hooks`; see the module's text.

    Args:
        model: the language model.
        read: sites whose activations are kept, per call of the model.
        edit: pattern -> edit function. A pattern that matches several sites applies to each.
        stop: end the forward pass (with `StopForward`) as soon as every read has fired.
        select: applied to each activation before it is kept, for instance to gather positions on the device.
    """

    def __init__(
        self,
        model: LanguageModel,
        read: str | Iterable[str] = (),
        edit: Mapping[str, EditFunction] | None = None,
        *,
        stop: bool = False,
        select: Callable[[Tensor, Site], Tensor] | None = None,
    ) -> None:
        self.model = model
        self._taps: list[_Tap] = []
        for pattern, function in (edit or {}).items():
            self._taps += [_Tap(site, edit=_with_context(function)) for site in model.resolve(pattern)]
        reads = model.resolve(read) if read else []
        order = {name: i for i, name in enumerate(model.catalog.names)}
        self._taps.sort(key=lambda tap: order[tap.site.name])
        self._taps += [_Tap(site, keep=True) for site in reads]
        self._waiting = len(reads) if stop else -1
        self._select = select
        self._values: dict[str, list[Tensor]] = {site.name: [] for site in reads}
        self._handles: list[Any] = []
        self._block_inputs: dict[int, Tensor] = {}
        self._tracker = PositionTracker()
        self._pattern = PatternTap(model)

    # -- what was read ---------------------------------------------------------------------------------

    def __getitem__(self, site: str) -> Tensor:
        """The activation read at `site` in the one call of the model that was made."""
        values = self.calls(site)
        if len(values) != 1:
            raise HookError(
                f"Site {site!r} was read in {len(values)} calls of the model; use `session.calls({site!r})`."
            )
        return values[0]

    def calls(self, site: str) -> list[Tensor]:
        """The activations read at `site`, one for each call of the model (generation makes many)."""
        found = [site] if site in self._values else [s.name for s in self.model.resolve(site)]
        if len(found) > 1:
            raise HookError(
                f"{site!r} stands for {len(found)} sites ({found[0]}, {found[1]}, …): give one of them."
            )
        (name,) = found
        if name not in self._values:
            raise HookError(f"Site {name!r} was not asked for; this session reads {list(self._values)}.")
        return self._values[name]

    # -- life ------------------------------------------------------------------------------------------

    def __enter__(self) -> HookSession:
        try:
            self._register()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: Any) -> bool:
        self._remove()
        if kind is None or kind is StopForward:
            silent = [tap.site.name for tap in self._taps if not tap.fired]
            if silent:
                raise HookError(
                    f"{len(silent)} of {len(self._taps)} hooks did not fire: {', '.join(silent[:5])}. "
                    "Was the model called inside the `with` block, and does this forward reach these sites?"
                )
        return kind is StopForward

    def _register(self) -> None:
        hf = self.model.hf
        self._handles.append(hf.register_forward_pre_hook(self._tracker.before_forward, with_kwargs=True))
        for tap in self._taps:
            module = self.model.module(tap.site.module)
            match tap.site.where:
                case "input":
                    handle = module.register_forward_pre_hook(self._on_input(tap), with_kwargs=True)
                case "output" | "mid":
                    handle = module.register_forward_hook(self._on_output(tap))
                case "pattern":
                    handle = self._pattern.add(module, self._on_pattern(tap))
            self._handles.append(handle)
        self._handles += self._watch_blocks()  # the last: a block's input as it is after edits of it

    def _watch_blocks(self) -> list[Any]:
        """Keep block inputs where a site needs them: for resid_mid, and for modules that see flat rows."""
        layers = {tap.site.layer for tap in self._taps if tap.site.where == "mid" or tap.site.flat}
        handles = []
        for layer in layers:
            assert layer is not None

            def remember(_module: Any, args: Any, kwargs: Any, layer: int = layer) -> None:
                self._block_inputs[layer] = first_tensor(args, kwargs, f"blocks.{layer}")

            block = self.model.block(layer)
            handles.append(block.register_forward_pre_hook(remember, with_kwargs=True))
        return handles

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._block_inputs.clear()

    # -- firing ----------------------------------------------------------------------------------------

    def _on_input(self, tap: _Tap) -> Callable[..., Any]:
        def hook(_module: Any, args: Any, kwargs: Any) -> Any:
            whole = first_tensor(args, kwargs, tap.site.name)
            new = self._apply(tap, whole)
            return None if new is None else replace_first(args, kwargs, new)

        return hook

    def _on_output(self, tap: _Tap) -> Callable[..., Any]:
        def hook(_module: Any, _args: Any, output: Any) -> Any:
            whole = output_tensor(output, tap.site.name)
            if tap.site.where == "mid":
                before = self._block_inputs[tap.site.layer]  # type: ignore[index]
                mid = before + whole
                edited = self._apply(tap, mid)
                new = None if edited is None else edited - before
                if new is not None and not new.requires_grad:
                    # What was left alone stays as it is, bit for bit: (before + whole) - before is rounded.
                    new = torch.where(edited == mid, whole, new)
            else:
                new = self._apply(tap, whole)
            return None if new is None else replace_output(output, new)

        return hook

    def _on_pattern(self, tap: _Tap) -> Callable[[Tensor], Tensor | None]:
        return lambda pattern: self._apply(tap, pattern)

    def _apply(self, tap: _Tap, whole: Tensor) -> Tensor | None:
        """Read or edit; gives the new module tensor, or None where nothing changed."""
        site = tap.site
        tap.fired += 1
        shape = self._batch_shape(site)
        if tap.edit is None:
            value = take(whole, site, shape).detach()
            self._values[site.name].append(self._select(value, site) if self._select else value)
            if self._waiting > 0 and tap.fired == 1:
                self._waiting -= 1
                if self._waiting == 0:
                    raise StopForward
            return None
        current = take(whole, site, shape)
        new = tap.edit(current.clone(), HookContext(site, self._tracker))
        return put(whole, site, checked_edit(new, current, site.name))

    def _batch_shape(self, site: Site) -> tuple[int, int] | None:
        if site.flat and site.layer in self._block_inputs:
            before = self._block_inputs[site.layer]
            return before.shape[0], before.shape[1]
        return self._tracker.shape


def _with_context(function: EditFunction) -> EditFunction:
    """Let an edit function take one argument (activation) or two (activation, context)."""
    try:
        parameters = [
            p
            for p in inspect.signature(function).parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)
            and (p.default is p.empty or p.kind is p.VAR_POSITIONAL)
        ]
    except (TypeError, ValueError):
        return lambda activation, _context: function(activation)
    if len(parameters) >= 2 or any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return function
    return lambda activation, _context: function(activation)
