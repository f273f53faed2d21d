"""The peers of `benchmarks.steering`: each adds a vector while it generates, at every position or after the prompt.

"After the prompt" is written as their users write it: a slice of the tensor the hook is given. Whether that means the
same with a KV cache, where the hook is given one position at a time, is what is asked.
"""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import workbench as wb

Peer = Callable[[Tensor, Tensor, bool, int, bool], list[int]]
"""(ids [1, position], added [d], steer the prompt too, new tokens, KV cache) -> new tokens."""


def transformer_bridge(model: wb.LanguageModel, layer: int) -> Peer:
    """TransformerLens' TransformerBridge, with its own copy of the weights (it changes the model it is given)."""
    from benchmarks.collect_peers import make_bridge

    bridge = make_bridge(model)

    @torch.inference_mode()
    def go(ids: Tensor, added: Tensor, prompt_too: bool, new: int, cache: bool) -> list[int]:
        first = 0 if prompt_too else ids.shape[1]

        def hook(tensor: Tensor, hook: Any) -> Tensor:  # noqa: ARG001 - TransformerLens calls it with both
            tensor = tensor.clone()
            tensor[:, first:] += added
            return tensor

        with bridge.hooks(fwd_hooks=[(f"blocks.{layer}.hook_out", hook)]):
            out = bridge.generate(
                ids,
                max_new_tokens=new,
                do_sample=False,
                stop_at_eos=False,
                use_past_kv_cache=cache,
                verbose=False,
                return_type="tokens",
            )
        return out[0, ids.shape[1] :].tolist()

    return go


def nnsight(model: wb.LanguageModel, layer: int) -> Peer | None:
    """nnsight's generation tracing; None where it is not installed."""
    if importlib.util.find_spec("nnsight") is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nnsight import LanguageModel  # pyright: ignore[reportMissingImports]

        traced = LanguageModel(copy.deepcopy(model.hf), tokenizer=model.tokenizer)

    @torch.inference_mode()
    def go(ids: Tensor, added: Tensor, prompt_too: bool, new: int, cache: bool) -> list[int]:
        first = 0 if prompt_too else ids.shape[1]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with traced.generate(
                ids, max_new_tokens=new, min_new_tokens=new, do_sample=False, use_cache=cache
            ) as tracer:
                for _ in tracer.iter[:new]:
                    steered = traced.model.layers[layer].output.clone()
                    steered[:, first:] += added
                    traced.model.layers[layer].output = steered
                out = traced.generator.output.save()
        return out[0, ids.shape[1] :].tolist()

    return go


def not_installed() -> list[str]:
    """Names of the peers that could stand here and are not importable."""
    known = {"nnsight": "nnsight", "steering-vectors": "steering_vectors", "repeng": "repeng"}
    return [name for name, module in known.items() if importlib.util.find_spec(module) is None]
