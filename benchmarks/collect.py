"""Collecting activations to disk against the limit, which is the forward pass up to the last block needed.

Real text of mixed lengths through smollm2-135m, three residual sites of thirty, all positions. In one process, in turn:
(a) the bare truncated forward on our batches, (b) ours to disk, (c) ours in memory, (d) TransformerBridge
`run_with_cache` and save, (e) nnsight and save where it is installed, (f) sae-lens' CacheActivationsRunner, one site
only. First the values are checked against transformers' own hidden states.

Peers get the prompts in their order, padded on the right, as many at once as ours (so many tokens with padding), and
stop after the last layer needed. None of them sorts by length; what they would reach if the caller did it by hand, with
batches of one length and no padding at all, stands in rows of its own ("sorted by hand") and counts for no goal.

Goals: `disk_over_limit` (tokens/s of b over a, float32) >= 0.95, `disk_over_limit_bf16` >= 0.9,
`disk_over_best_peer` >= 1.5, `memory_growth` (peak of 10x the tokens over the peak) <= 1.1.
"""

from __future__ import annotations

import copy
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import workbench as wb
from benchmarks.common import Goal, Report, Timing, alternate, machine, main

SITES = ["blocks.4.hook_resid_post", "blocks.8.hook_resid_post", "blocks.12.hook_resid_post"]
TOKENS_PER_BATCH = 2048


def run(tokens: int = 40_000, repeats: int = 3, memory: int = 1) -> Report:
    """All sides at both precisions; `memory=0` leaves the memory part away."""
    report = Report(
        settings={
            **machine(),
            "model": "smollm2-135m",
            "sites": ", ".join(SITES),
            "tokens": tokens,
            "repeats": repeats,
        }
    )
    for dtype in ("float32", "bfloat16"):
        _speed(dtype, tokens, repeats, report)
    if memory:
        _memory(report)
    return report


def texts(model: wb.LanguageModel, tokens: int) -> list[str]:
    """Passages of the shipped plain text, cut at sentence ends to mixed lengths, until there are so many tokens."""
    out: list[str] = []
    total = number = 0
    passages = wb.datasets.load("plain-text").texts
    while total < tokens:
        words = passages[number % len(passages)].split()
        keep = 12 + (number * 37) % max(1, len(words) - 11)
        out.append(" ".join(words[:keep]))
        total += len(model.encode(out[-1]))
        number += 1
    return out


def _speed(dtype: str, tokens: int, repeats: int, report: Report) -> None:
    model = wb.load_model("smollm2-135m", device="cpu", dtype=dtype)
    prompts = texts(model, tokens)
    ids = [model.encode(p) for p in prompts]
    n_tokens = sum(map(len, ids))
    folder = Path(tempfile.mkdtemp(prefix="collect-"))
    sides: dict[str, Callable[[], Any]] = {
        "limit": lambda: _limit(model, ids),
        "ours to disk": lambda: _ours(model, prompts, folder),
        "ours in memory": lambda: wb.collect(model, prompts, SITES, "all", tokens_per_batch=TOKENS_PER_BATCH),
    }
    _agree(model, prompts, ids, folder, report, dtype)
    bridge = _bridge(model)
    padded, sorted_by_hand = _in_order(ids), _equal_lengths(ids)
    sides["TransformerBridge"] = lambda: _bridged(bridge, ids, padded, folder)
    sides["TransformerBridge, sorted by hand"] = lambda: _bridged(bridge, ids, sorted_by_hand, folder)
    if (traced := _nnsight(model)) is not None:
        sides["nnsight"] = lambda: traced(ids, padded, folder)
        sides["nnsight, sorted by hand"] = lambda: traced(ids, sorted_by_hand, folder)
    else:
        report.rows.append({"dtype": dtype, "side": "nnsight", "note": "not installed: not run"})
    if dtype == "float32":
        run_sae_lens, sae_lens_tokens = _sae_lens(prompts, n_tokens)
        sides["sae-lens, one site"] = lambda: run_sae_lens(folder)
    timing = alternate(sides, repeats=repeats, warm_up=1)
    for side in sides:
        tokens = sae_lens_tokens if side.startswith("sae-lens") else n_tokens
        rate = round(tokens / timing.median(side))
        report.rows.append(timing.row(side, "limit", dtype=dtype, tokens_per_second=rate, tokens=tokens))
    suffix = "" if dtype == "float32" else "_bf16"
    limit = 0.95 if dtype == "float32" else 0.9
    report.goals.append(
        Goal.at_least(f"disk_over_limit{suffix}", _ratio(timing, "limit", "ours to disk"), limit)
    )
    if dtype == "float32":
        peers = [side for side in ("TransformerBridge", "nnsight") if side in sides]
        best = min(_ratio(timing, peer, "ours to disk") for peer in peers)
        report.goals.append(Goal.at_least("disk_over_best_peer", best, 1.5))
    shutil.rmtree(folder)


def _ratio(timing: Timing, side: str, over: str) -> float:
    return round(statistics.median(timing.ratios(side, over)), 4)


def _plan(ids: list[list[int]]) -> list[list[int]]:
    """The engine's own batches: windows, then length, then tokens."""
    from workbench.collection.batching import WINDOW_BATCHES, batches, windows
    from workbench.collection.items import Context

    out: list[list[int]] = []
    stream = (Context(str(i), tuple(row)) for i, row in enumerate(ids))
    for window in windows(stream, TOKENS_PER_BATCH * WINDOW_BATCHES):
        plan = batches([len(c.ids) for c in window.contexts], TOKENS_PER_BATCH)
        out += [[window.first + i for i in places] for places in plan]
    return out


class _Enough(Exception):
    pass


@torch.inference_mode()
def _limit(model: wb.LanguageModel, ids: list[list[int]]) -> None:
    """The model's own forward on the same padded batches, ended after the last block needed; nothing is kept."""
    from workbench.model.tokens import from_ids

    last = max(int(site.split(".")[1]) for site in SITES)

    def stop(*_: Any) -> None:
        raise _Enough

    handle = model.block(last).register_forward_hook(stop)
    try:
        for places in _plan(ids):
            batch = from_ids(model, [ids[i] for i in places], with_texts=False)
            with suppress(_Enough):
                model.hf(**batch.inputs(), use_cache=False)
    finally:
        handle.remove()


def _ours(model: wb.LanguageModel, prompts: list[str], folder: Path) -> None:
    target = folder / "ours"
    shutil.rmtree(target, ignore_errors=True)
    wb.collect_to(target, model, prompts, SITES, "all", tokens_per_batch=TOKENS_PER_BATCH)


def _bridge(model: wb.LanguageModel) -> Any:
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    hf = copy.deepcopy(model.hf)
    return build_bridge_from_module(hf, type(hf).__name__, hf_config=hf.config, tokenizer=None)


@torch.inference_mode()
def _bridged(bridge: Any, ids: list[list[int]], batches: list[list[int]], folder: Path) -> None:
    """TransformerLens' way: cache each batch, save its rows."""
    from safetensors.torch import save_file

    names = [site.replace("hook_resid_post", "hook_out") for site in SITES]
    target = folder / "bridge"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    last = max(int(site.split(".")[1]) for site in SITES)
    for number, places in enumerate(batches):
        rows, real = _right_padded(ids, places)
        _, cache = bridge.run_with_cache(rows, names_filter=lambda n: n in names, stop_at_layer=last + 1)
        kept = {name: cache[name][real] for name in names}
        save_file(kept, target / f"{number:05d}.safetensors")


def _right_padded(ids: list[list[int]], places: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """[batch, position] ids and which of them are real; padding on the right changes nothing before it."""
    longest = max(len(ids[i]) for i in places)
    rows = torch.tensor([ids[i] + [0] * (longest - len(ids[i])) for i in places])
    lengths = torch.tensor([len(ids[i]) for i in places])
    return rows, torch.arange(longest) < lengths[:, None]


def _in_order(ids: list[list[int]]) -> list[list[int]]:
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


def _equal_lengths(ids: list[list[int]]) -> list[list[int]]:
    groups: dict[int, list[list[int]]] = {}
    for i, row in enumerate(ids):
        several = groups.setdefault(len(row), [[]])
        if (len(several[-1]) + 1) * len(row) > TOKENS_PER_BATCH and several[-1]:
            several.append([])
        several[-1].append(i)
    return [places for several in groups.values() for places in several]


def _nnsight(
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
            rows, real = _right_padded(ids, places)
            with traced.trace(rows) as tracer:
                for layer in layers:
                    kept[f"blocks.{layer}"] = traced.model.layers[layer].output.save()
                tracer.stop()  # pyright: ignore[reportAttributeAccessIssue]
            flat = {k: v[real] for k, v in kept.items()}
            save_file(flat, target / f"{number:05d}.safetensors")

    return go


def _sae_lens(prompts: list[str], n_tokens: int) -> tuple[Callable[[Path], None], int]:
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


def _agree(
    model: wb.LanguageModel,
    prompts: list[str],
    ids: list[list[int]],
    folder: Path,
    report: Report,
    dtype: str,
) -> None:
    """Rows of some prompts against transformers' hidden states of the prompt run alone."""
    _ours(model, prompts, folder)
    store = wb.open_store(folder / "ours")
    worst = 0.0
    for i in range(0, len(prompts), max(1, len(prompts) // 10)):
        with torch.inference_mode():
            hidden = model.hf(
                torch.tensor([ids[i]]), output_hidden_states=True, use_cache=False
            ).hidden_states
        for site in SITES:
            raw = hidden[int(site.split(".")[1]) + 1][0].float()
            rows = store[site][store.rows(prompt=i)].float()
            worst = max(worst, float((rows - raw).norm() / raw.norm()))
    report.rows.append(
        {
            "dtype": dtype,
            "what": "largest relative difference from hidden states, prompt run alone",
            "value": f"{worst:.1e}",
        }
    )


_PEAK = """
import resource, sys, tempfile, torch
import workbench as wb
from benchmarks.collect import texts
model = wb.load_model("smollm2-135m", device="cpu", dtype="bfloat16")
some = texts(model, 40_000)
prompts = some * int(sys.argv[1])
with tempfile.TemporaryDirectory() as folder:
    sites = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    wb.collect_to(folder + "/s", model, (p for p in prompts), sites, "all")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def _memory(report: Report) -> None:
    """Peak resident memory of whole processes that collect 40k and 400k tokens at two early sites."""
    peaks = []
    for times in (1, 10):
        done = subprocess.run(
            [sys.executable, "-c", _PEAK, str(times)], capture_output=True, text=True, check=True
        )
        peaks.append(int(done.stdout.split()[-1]))
    report.rows.append(
        {
            "what": "peak memory (MB) at 40k and 400k tokens",
            "value": " and ".join(f"{p / 1024:.0f}" for p in peaks),
        }
    )
    report.goals.append(Goal.at_most("memory_growth", round(peaks[1] / peaks[0], 4), 1.1))


if __name__ == "__main__":
    main(run, __doc__ or "", tokens=40_000, repeats=3, memory=1)
