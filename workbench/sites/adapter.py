"""TransformerLens' architecture adapter, turned into plain data. The one module that imports transformer_lens.

TransformerLens knows for some 140 architectures which submodule plays which part. We ask its adapter
for the component tree of a configuration and keep only paths and kinds. Nothing is wrapped, moved or
folded: the model stays as transformers made it.

Fused query-key-value projections have no submodule for q, k or v. The adapter knows how to split such a
*weight*; to learn which output *columns* belong to whom, we hand it a copy of the attention module whose
fused weight holds its own row numbers, and read the numbers off the three parts it returns.
"""

from __future__ import annotations

import copy
import logging
import warnings
from importlib.metadata import version
from typing import Any

import torch

from workbench.errors import ModelError
from workbench.sites.namemap import FusedColumns, NameMap


def build_name_map(hf_model: Any) -> NameMap:
    """Ask TransformerLens which submodules of `hf_model` play which part.

    Args:
        hf_model: a transformers causal language model; only its config, class name and module tree are used.

    Raises:
        ModelError: TransformerLens has no adapter for the architecture.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformer_lens.factories.architecture_adapter_factory import (
            ArchitectureAdapterFactory,
        )
        from transformer_lens.model_bridge.sources._bridge_builder import (
            build_bridge_config_from_hf,
        )

    architecture = type(hf_model).__name__
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # the adapter comments on attention settings that we do not use
    adapter, problem = None, "no adapter"
    try:
        for known in _names_to_try(hf_model):
            try:
                config = build_bridge_config_from_hf(hf_model.config, known, known, torch.float32)
                adapter = ArchitectureAdapterFactory.select_architecture_adapter(config)
                break
            except ValueError as error:
                problem = str(error) if known == architecture else problem
    finally:
        logging.disable(level)
    if adapter is None:
        raise ModelError(
            f"Architecture {architecture!r} is not known to TransformerLens {version('transformer-lens')} "
            f"({problem}), so its sites have no names. Known are the causal language models listed by "
            "`transformer_lens.supported_models`; a newer transformer-lens below 4 may add it."
        )

    paths: dict[str, str] = {}
    kinds: dict[str, str] = {}
    components = dict(adapter.component_mapping or {})
    if "blocks" not in components:
        raise ModelError(f"TransformerLens names no transformer blocks in {architecture}.")
    _flatten(components, "", paths, kinds)
    blocks = components["blocks"]
    fused, why = FusedColumns(), ""
    if "block.attn.qkv" in paths:
        fused, why = _fused_columns(hf_model, paths, blocks.submodules["attn"])
    return NameMap(
        architecture=architecture,
        transformer_lens=version("transformer-lens"),
        paths=paths,
        kinds=kinds,
        parallel=bool(getattr(adapter.cfg, "parallel_attn_mlp", False))
        or "Parallel" in kinds.get("blocks", ""),
        fused=fused,
        fused_problem=why,
    )


def _names_to_try(hf_model: Any) -> list[str]:
    """The model's class and the transformers classes it derives from: a user's subclass keeps its sites."""
    own, *bases = (c.__name__ for c in type(hf_model).__mro__)
    return [own, *(name for name in bases if name.endswith(("LM", "LMHeadModel", "Model")))]


def _flatten(components: Any, prefix: str, paths: dict[str, str], kinds: dict[str, str]) -> None:
    """Component tree -> `{"block.attn.q": "self_attn.q_proj", ...}`, paths relative to the block."""
    for name, component in components.items():
        key = f"{prefix}{name}"
        kinds[key] = type(component).__name__
        base = paths.get(prefix[:-1], "") if prefix not in ("", "block.") else ""
        if component.name is not None:
            paths[key] = f"{base}.{component.name}" if base else str(component.name)
        children = getattr(component, "submodules", None) or {}
        if children:
            _flatten(children, "block." if key == "blocks" else f"{key}.", paths, kinds)


def _fused_columns(hf_model: Any, paths: dict[str, str], attention: Any) -> tuple[FusedColumns, str]:
    """Which columns of the fused projection's output are q, k and v, in head order."""
    block = hf_model.get_submodule(paths["blocks"])[0]
    module = copy.deepcopy(block.get_submodule(attention.name))
    projection = module.get_submodule(attention.submodules["qkv"].name)
    weight = projection.weight
    rows_first = type(projection).__name__ != "Conv1D"  # GPT-2's Conv1D stores [in, out]
    n_out = weight.shape[0 if rows_first else 1]
    numbers = torch.arange(n_out, dtype=torch.float32)
    shape = tuple(weight.shape)
    numbered = (numbers[:, None] if rows_first else numbers[None, :]).expand(shape).clone()
    try:
        projection.weight = torch.nn.Parameter(numbered, requires_grad=False)
        parts = attention.split_qkv_matrix(module)
        q, k, v = (tuple(int(x) for x in part.weight[:, 0].tolist()) for part in parts)
    except (RuntimeError, ValueError, AttributeError, TypeError, AssertionError) as error:
        return FusedColumns(), f"TransformerLens' adapter cannot split its fused projection: {error}"
    if sorted(q + k + v) != list(range(n_out)):
        return FusedColumns(), "the parts of its fused projection do not add up to the whole"
    return FusedColumns(q=q, k=k, v=v), ""
