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

import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

import workbench as wb
from benchmarks.collect_peers import (
    SITES,
    TOKENS_PER_BATCH,
    equal_lengths,
    in_order,
    make_bridge,
    make_nnsight,
    make_sae_lens,
    run_bridge,
)
from benchmarks.common import Goal, Report, Timing, alternate, machine, main

Side = Callable[[list[str], list[list[int]]], Any]
"""Runs prompts, given as texts and as token ids."""


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
    _agree(model, prompts, ids, folder, report, dtype)
    bridge, traced = make_bridge(model), make_nnsight(model)
    in_memory = {"sites": SITES, "positions": "all", "tokens_per_batch": TOKENS_PER_BATCH}
    sides: dict[str, Side] = {
        "limit": lambda _texts, rows: _limit(model, rows),
        "ours to disk": lambda some, _rows: _ours(model, some, folder),
        "ours in memory": lambda some, _rows: wb.collect(model, some, **in_memory),
        "TransformerBridge": lambda _texts, rows: run_bridge(bridge, rows, in_order(rows), folder),
    }
    by_hand: dict[str, Side] = {
        "TransformerBridge, sorted by hand": lambda _t, rows: run_bridge(
            bridge, rows, equal_lengths(rows), folder
        )
    }
    if traced is not None:
        sides["nnsight"] = lambda _texts, rows: traced(rows, in_order(rows), folder)
        by_hand["nnsight, sorted by hand"] = lambda _t, rows: traced(rows, equal_lengths(rows), folder)
    else:
        report.rows.append({"dtype": dtype, "side": "nnsight", "note": "not installed: not run"})
    for side in (*sides.values(), *by_hand.values()):
        side(prompts[:20], ids[:20])  # warm up
    timing = alternate(
        {name: partial(run, prompts, ids) for name, run in sides.items()}, repeats=repeats, warm_up=0
    )
    # One round of those that count for no goal, beside the limit.
    more: dict[str, Callable[[], Any]] = {"limit": partial(sides["limit"], prompts, ids)}
    more |= {name: partial(run, prompts, ids) for name, run in by_hand.items()}
    sae_lens_tokens = 0
    if dtype == "float32":
        run_sae_lens, sae_lens_tokens = make_sae_lens(prompts, n_tokens)
        more["sae-lens, one site"] = partial(run_sae_lens, folder)
    once = alternate(more, repeats=1, warm_up=0)
    for timed, names in ((timing, sides), (once, [name for name in more if name != "limit"])):
        for side in names:
            tokens = sae_lens_tokens if side.startswith("sae-lens") else n_tokens
            rate = round(tokens / timed.median(side))
            report.rows.append(timed.row(side, "limit", dtype=dtype, tokens_per_second=rate, tokens=tokens))
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
import sys, tempfile, torch
import workbench as wb
from benchmarks.collect import texts
model = wb.load_model("smollm2-135m", device="cpu", dtype="bfloat16")
some = texts(model, 40_000)
prompts = some * int(sys.argv[1])
with tempfile.TemporaryDirectory() as folder:
    sites = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    wb.collect_to(folder + "/s", model, (p for p in prompts), sites, "all")
# Not ru_maxrss: a process begins with the largest size of the one that started it.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
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
