"""The peers of `benchmarks.collect`: TransformerBridge, nnsight and sae-lens, each saving what it read."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import workbench as wb

SITES = ["blocks.4.hook_resid_post", "blocks.8.hook_resid_post", "blocks.12.hook_resid_post"]
TOKENS_PER_BATCH = 2048


def make_bridge(model: wb.LanguageModel) -> Any:
    """A TransformerBridge with its own copy of the weights (it changes the model it is given)."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    hf = copy.deepcopy(model.hf)
    return build_bridge_from_module(hf, type(hf).__name__, hf_config=hf.config, tokenizer=None)


@torch.inference_mode()
def run_bridge(bridge: Any, ids: list[list[int]], batches: list[list[int]], folder: Path) -> None:
    """TransformerLens' way: cache each batch, save its rows."""
    from safetensors.torch import save_file

    names = [site.replace("hook_resid_post", "hook_out") for site in SITES]
    target = folder / "bridge"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    last = max(int(site.split(".")[1]) for site in SITES)
    for number, places in enumerate(batches):
        rows, real = right_padded(ids, places)
        _, cache = bridge.run_with_cache(rows, names_filter=lambda n: n in names, stop_at_layer=last + 1)
        kept = {name: cache[name][real] for name in names}
        save_file(kept, target / f"{number:05d}.safetensors")


def right_padded(ids: list[list[int]], places: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """[batch, position] ids and which of them are real; padding on the right changes nothing before it."""
    longest = max(len(ids[i]) for i in places)
    rows = torch.tensor([ids[i] + [0] * (longest - len(ids[i])) for i in places])
    lengths = torch.tensor([len(ids[i]) for i in places])
    return rows, torch.arange(longest) < lengths[:, None]


def in_order(ids: list[list[int]]) -> list[list[int]]:
    """Prompts in their order, as many at once as fit with padding."""
    batches: list[list[int]] = []
    longest = 0
    for i, row in enumerate(ids):
        longest = max(longest, len(row))
        if batches and (len(batches[-1]) + 1) * longest <= TOKENS_PER_BATCH:
            batches[-1].append(i)
        else:
            batches.append([i])
            longest = len(row)
    return batches


def equal_lengths(ids: list[list[int]]) -> list[list[int]]:
    groups: dict[int, list[list[int]]] = {}
    for i, row in enumerate(ids):
        several = groups.setdefault(len(row), [[]])
        if (len(several[-1]) + 1) * len(row) > TOKENS_PER_BATCH and several[-1]:
            several.append([])
        several[-1].append(i)
    return [places for several in groups.values() for places in several]


def make_nnsight(
    model: wb.LanguageModel,
) -> Callable[[list[list[int]], list[list[int]], Path], None] | None:
    try:
        import nnsight  # pyright: ignore[reportMissingImports, reportMissingModuleSource]
    except ImportError:
        return None
    from safetensors.torch import save_file

    traced = nnsight.NNsight(copy.deepcopy(model.hf))
    layers = [int(site.split(".")[1]) for site in SITES]

    @torch.inference_mode()
    def go(ids: list[list[int]], batches: list[list[int]], folder: Path) -> None:
        target = folder / "nnsight"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for number, places in enumerate(batches):
            kept = {}
            rows, real = right_padded(ids, places)
            with traced.trace(rows) as tracer:
                for layer in layers:
                    kept[f"blocks.{layer}"] = traced.model.layers[layer].output.save()
                tracer.stop()  # pyright: ignore[reportAttributeAccessIssue]
            flat = {k: v[real] for k, v in kept.items()}
            save_file(flat, target / f"{number:05d}.safetensors")

    return go


def make_sae_lens(prompts: list[str], n_tokens: int) -> tuple[Callable[[Path], None], int]:
    """sae-lens' CacheActivationsRunner on the same text, packed into contexts of 128 as it does; the last site only.

    Returns:
        What runs it, and how many tokens it takes: whole buffers of 2,048.
    """
    from datasets import Dataset
    from sae_lens import cache_activations_runner as sae_lens
    from sae_lens.config import CacheActivationsRunnerConfig

    from workbench.model import pull

    buffer, width = 2048, 576
    tokens = n_tokens // buffer * buffer
    config = CacheActivationsRunnerConfig(
        dataset_path="plain-text",
        model_name=str(pull.ensure("smollm2-135m")),
        model_class_name="AutoModelForCausalLM",
        model_batch_size=buffer // 128,
        hook_name="model." + SITES[-1].replace("blocks", "layers").removesuffix(".hook_resid_post"),
        d_in=width,
        training_tokens=tokens,
        context_size=128,
        new_cached_activations_path="set for each run",
        shuffle=False,
        buffer_size_gb=(buffer * width * 4 + 1) / 1e9,
        device="cpu",
        streaming=False,
    )
    text = Dataset.from_dict(
        {"text": [*prompts, *prompts[: len(prompts) // 4]]}
    )  # it drops what fills no context
    runner = sae_lens.CacheActivationsRunner(config, override_dataset=text)

    def go(folder: Path) -> None:
        target = folder / "sae-lens"
        shutil.rmtree(target, ignore_errors=True)
        config.new_cached_activations_path = str(target)
        runner.activations_store = sae_lens._mk_activations_store(runner.model, config, override_dataset=text)
        if (kept := len(runner.run()) * 128) < tokens:
            raise RuntimeError(f"sae-lens kept {kept} of {tokens} tokens")

    return go, tokens
