"""What makes two models the same model: configuration, parameter names, shapes and (sampled) values."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

SAMPLES = 1024
_VOLATILE = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures")


def fingerprint(hf_model: Any) -> str:
    """32 hex digits that change when the architecture, a parameter's shape or dtype, or weights change.

    Of each parameter `SAMPLES` evenly spaced values are hashed bit for bit, so it takes well under a second
    for a model of any size; an edit that misses every sampled value is not seen. Weights that are offloaded (to the
    CPU or the disk) are hashed where they lie.
    """
    digest = hashlib.sha256()
    config = {k: v for k, v in hf_model.config.to_dict().items() if k not in _VOLATILE}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, parameter in sorted(hf_model.state_dict().items()):
        digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
        if parameter.is_meta:
            parameter = _offloaded(hf_model, name)
        if parameter is None or parameter.numel() == 0:
            continue
        flat = parameter.detach().reshape(-1)
        step = max(1, flat.numel() // SAMPLES)
        digest.update(flat[::step].contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def _offloaded(hf_model: Any, name: str) -> torch.Tensor | None:
    """The weight that accelerate keeps elsewhere while its module does not run; None for a model without weights."""
    path, _, own = name.rpartition(".")
    hook = getattr(hf_model.get_submodule(path), "_hf_hook", None)
    for part in (hook, *getattr(hook, "hooks", ())):
        stored = getattr(part, "weights_map", None)
        if stored is not None:
            return stored[own]
    return None


def tokenizer_hash(tokenizer: Any) -> str:
    """32 hex digits over everything that decides how text becomes token ids; `"none"` without a tokenizer.

    A fast tokenizer is hashed as the JSON it saves; a slow one by its vocabulary and special tokens.
    """
    if tokenizer is None:
        return "none"
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = json.loads(backend.to_str())
        state.pop("truncation", None)  # left behind by calls, without effect on later ones
        state.pop("padding", None)
    else:
        state = {"vocabulary": sorted(tokenizer.get_vocab().items())}
    special = {k: str(v) for k, v in sorted(tokenizer.special_tokens_map.items())}
    described = json.dumps([state, special, getattr(tokenizer, "chat_template", None)], sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()[:32]
