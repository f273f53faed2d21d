"""Collecting activations on a GPU against the limit, which is the forward pass up to the last block needed.

A Llama of about 1.1 B random bfloat16 parameters, built from its configuration (nothing is downloaded), reads prompts
of 32 to 512 random token ids; three residual sites (after a quarter, half and three quarters of the blocks), all
positions. In one process, in turn, for each size of batch:

a. limit: the bare forward, ended after the last block needed, on padded batches that lie on the device beforehand
   (for orientation also without the attention mask);
b. ours to disk (`wb.collect_to`), which checksums every shard and flushes it to the disk;
c. ours in memory (`wb.collect`);
d. TransformerBridge: `run_with_cache(names_filter=..., stop_at_layer=...)` and a safetensors file a batch, not flushed;
e. nnsight, where it is installed: a trace that stops at the last block, saved likewise.

All sides work on the engine's batches. The peers get them without a mask: padding on the right changes no real token
of a causal model, and attention is faster so. They save no padding. First the values are checked: rows of the store
against transformers' hidden states of the prompt run alone, each peer's rows of one batch against the store's.

Goals, at the size of batch at which the limit is fastest: `gpu_disk_over_limit` (tokens/s of b over a) >= 0.9 and
`gpu_disk_over_best_peer` >= 1.5. Without CUDA it ends with code 3. `--device cpu --tiny 1` tries it out on a CPU.
"""

from __future__ import annotations

import copy
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import workbench as wb
from benchmarks.common import Goal, Report, Timing, alternate, machine, main
from workbench.collection.batching import WINDOW_BATCHES, batches, windows
from workbench.collection.items import Context
from workbench.model.tokens import TokenBatch, from_ids

OURS = "ours to disk"
Rows = dict[str, Tensor]
Read = Callable[[TokenBatch], Rows]
_TINY = {"d_model": 64, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "d_mlp": 128, "vocab": 200}


def run(
    device: str = "cuda",
    d_model: int = 2048,
    n_layers: int = 16,
    n_heads: int = 32,
    n_kv_heads: int = 8,
    d_mlp: int = 8192,
    vocab: int = 32_000,
    tokens: int = 400_000,
    tokens_per_batch: str = "8192,32768",
    repeats: int = 3,
    tiny: int = 0,
) -> Report:
    """All sides at each size of batch.

    Args:
        device, d_model, n_layers, n_heads, n_kv_heads, d_mlp, vocab: of the Llama.
        tokens: of all prompts, about. 400,000 are 5 GB of rows, three times on the disk (ours and two peers).
        tokens_per_batch: sizes of batch, padding included.
        repeats: timed rounds, after one that is not.
        tiny: 1 takes a model and data small enough for a CPU, whatever else is given, and sets no goals.
    """
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        print("benchmarks.gpu_collect needs a CUDA device: torch sees none here.", file=sys.stderr)
        sys.exit(3)
    shape = dict(zip(_TINY, (d_model, n_layers, n_heads, n_kv_heads, d_mlp, vocab), strict=True))
    if tiny:
        shape, tokens, tokens_per_batch = _TINY, 12_000, "2048,4096"
    model = _model(device, **shape)
    sites = [f"blocks.{shape['n_layers'] * k // 4 - 1}.hook_resid_post" for k in (1, 2, 3)]
    prompts = random_prompts(tokens, shape["vocab"])
    report = Report(
        settings={
            **machine(),
            **shape,
            "parameters": f"{sum(p.numel() for p in model.hf.parameters()):,} bfloat16",
            "attention": model.hf.config._attn_implementation,
            "sites": ", ".join(sites),
            "prompts": f"{len(prompts)} of 32 to 512 tokens",
            "tokens": sum(map(len, prompts)),
            "nnsight": version("nnsight") if find_spec("nnsight") is not None else "not installed: not run",
            "repeats": repeats,
        }
    )
    timings: dict[int, Timing] = {}
    with tempfile.TemporaryDirectory(prefix="gpu-collect-") as folder:
        bench = _Bench(model, sites, prompts, Path(folder), report)
        for size in map(int, tokens_per_batch.split(",")):
            timings[size] = bench.compare(size, repeats)
    best = min(timings, key=lambda size: timings[size].median("limit"))
    over = {s: round(statistics.median(timings[best].ratios(s, OURS)), 4) for s in ("limit", *bench.peers)}
    if not tiny:
        report.settings["goals at tokens_per_batch"] = best
        peer = min(over[name] for name in bench.peers)
        report.goals.append(Goal.at_least("gpu_disk_over_limit", over["limit"], 0.9))
        report.goals.append(Goal.at_least("gpu_disk_over_best_peer", peer, 1.5))
    return report


def random_prompts(tokens: int, vocab: int, seed: int = 0) -> list[list[int]]:
    """Prompts of 32 to 512 random ids, until there are so many tokens."""
    draw = random.Random(seed)
    out: list[list[int]] = []
    while tokens > 0:
        out.append([draw.randrange(1, vocab) for _ in range(draw.randint(32, 512))])
        tokens -= len(out[-1])
    return out


def _model(device: str, **shape: int) -> wb.LanguageModel:
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        hidden_size=shape["d_model"],
        num_hidden_layers=shape["n_layers"],
        num_attention_heads=shape["n_heads"],
        num_key_value_heads=shape["n_kv_heads"],
        intermediate_size=shape["d_mlp"],
        vocab_size=shape["vocab"],
    )
    torch.manual_seed(0)
    with torch.device(device):
        hf = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    return wb.load_model((hf, _tokenizer(shape["vocab"])))


def _tokenizer(vocab: int) -> Any:
    """A word for every id: `wb.collect` looks up the text of each token."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, **{f"w{i}": i for i in range(1, vocab)}}
    inner = Tokenizer(models.WordLevel(words, unk_token="w1"))
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>")


def _synchronised(side: Callable[[], Any]) -> Callable[[], None]:
    def go() -> None:
        side()
        if torch.cuda.is_available():  # so that nothing still runs when the next side begins
            torch.cuda.synchronize()

    return go


class _Enough(Exception):
    pass


@dataclass
class _Bench:
    """One model and its prompts, read in every way."""

    model: wb.LanguageModel
    sites: list[str]
    prompts: list[list[int]]
    folder: Path
    report: Report

    def __post_init__(self) -> None:
        self.blocks = [int(site.split(".")[1]) for site in self.sites]
        self.peers: dict[str, Read] = {"TransformerBridge": self._bridge()}
        if find_spec("nnsight") is not None:
            self.peers["nnsight"] = self._nnsight()

    def compare(self, size: int, repeats: int) -> Timing:
        """All sides with batches of so many tokens."""
        plan = self._plan(size)
        on_device = [from_ids(self.model, [self.prompts[i] for i in b], with_texts=False) for b in plan]
        self._agree(size, plan[0], on_device[0])
        given = (self.model, self.prompts, self.sites, "all")
        sides: dict[str, Callable[[], Any]] = {
            "limit": lambda: self._limit(on_device, masked=True),
            "limit, without a mask": lambda: self._limit(on_device, masked=False),
            OURS: lambda: self._to_disk(size),
            "ours in memory": partial(wb.collect, *given, tokens_per_batch=size),
            **{name: partial(self._saved, name, on_device) for name in self.peers},
            "": self._clean,  # in no side's time
        }
        timing = alternate({name: _synchronised(side) for name, side in sides.items()}, repeats=repeats)
        n_tokens, padded = sum(map(len, self.prompts)), sum(b.ids.numel() for b in on_device)
        for side in filter(None, sides):
            speed = round(n_tokens / timing.median(side))
            more = {"tokens_per_second": speed, "padding": f"{1 - n_tokens / padded:.2%}"}
            self.report.rows.append(timing.row(side, "limit", tokens_per_batch=size, **more))
        return timing

    def _plan(self, size: int) -> list[list[int]]:
        """The engine's own batches: windows, then length, then tokens."""
        out: list[list[int]] = []
        stream = (Context(str(i), tuple(row)) for i, row in enumerate(self.prompts))
        for window in windows(stream, size * WINDOW_BATCHES):
            plan = batches([len(c.ids) for c in window.contexts], size)
            out += [[window.first + i for i in places] for places in plan]
        return out

    @torch.inference_mode()
    def _limit(self, on_device: list[TokenBatch], *, masked: bool) -> None:
        def stop(*_: Any) -> None:
            raise _Enough

        handle = self.model.block(max(self.blocks)).register_forward_hook(stop)
        try:
            for batch in on_device:
                inputs = batch.inputs() if masked else {"input_ids": batch.ids}
                with suppress(_Enough):
                    self.model.hf(**inputs, use_cache=False)
        finally:
            handle.remove()

    def _to_disk(self, size: int) -> wb.Store:
        target = self.folder / "ours"
        return wb.collect_to(target, self.model, self.prompts, self.sites, "all", tokens_per_batch=size)

    @torch.inference_mode()
    def _saved(self, peer: str, on_device: list[TokenBatch]) -> None:
        from safetensors.torch import save_file

        (self.folder / peer).mkdir()
        for number, batch in enumerate(on_device):
            rows = {site: value.cpu() for site, value in self.peers[peer](batch).items()}
            save_file(rows, self.folder / peer / f"{number:05d}.safetensors")

    def _clean(self) -> None:
        for written in self.folder.iterdir():
            shutil.rmtree(written)

    def _bridge(self) -> Read:
        from transformer_lens.model_bridge.sources import build_bridge_from_module

        hf = copy.deepcopy(self.model.hf)
        bridge = build_bridge_from_module(hf, type(hf).__name__, hf_config=hf.config, tokenizer=None)
        names = [f"blocks.{block}.hook_out" for block in self.blocks]
        options = {"names_filter": lambda name: name in names, "stop_at_layer": max(self.blocks) + 1}

        def read(batch: TokenBatch) -> Rows:
            _, cache = bridge.run_with_cache(batch.ids, **options)
            real = batch.mask.bool()
            return {site: cache[name][real] for site, name in zip(self.sites, names, strict=True)}

        return read

    def _nnsight(self) -> Read:
        import nnsight  # pyright: ignore[reportMissingImports, reportMissingModuleSource]

        traced: Any = nnsight.NNsight(copy.deepcopy(self.model.hf))

        def read(batch: TokenBatch) -> Rows:
            kept = {}
            with traced.trace(batch.ids) as tracer:
                for site, block in zip(self.sites, self.blocks, strict=True):
                    kept[site] = traced.model.layers[block].output.save()
                tracer.stop()
            real = batch.mask.bool()
            return {site: value[real] for site, value in kept.items()}

        return read

    @torch.inference_mode()
    def _agree(self, size: int, places: list[int], batch: TokenBatch) -> None:
        """Rows of some prompts against the model's hidden states, and the peers' of one batch against the store's."""
        store = self._to_disk(size)
        worst = 0.0
        for i in range(0, len(self.prompts), max(1, len(self.prompts) // 10)):
            ids = torch.tensor([self.prompts[i]], device=self.model.device)
            hidden = self.model.hf(ids, output_hidden_states=True, use_cache=False).hidden_states
            for site, block in zip(self.sites, self.blocks, strict=True):
                worst = max(worst, _apart(store[site][store.rows(prompt=i)], hidden[block + 1][0]))
        found = {"ours, from hidden states, prompt run alone": worst}
        for name, read in self.peers.items():
            rows = read(batch)
            stored = {site: torch.cat([store[site][store.rows(prompt=i)] for i in places]) for site in rows}
            found[f"{name}, from ours, first batch"] = max(_apart(stored[s], rows[s]) for s in rows)
        for what, value in found.items():
            assert value < 0.05, f"{what}: relative difference {value:.1e}"
            row = {"side": what, "tokens_per_batch": size, "relative difference": f"{value:.1e}"}
            self.report.rows.append(row)
        self._clean()


def _apart(ours: Tensor, other: Tensor) -> float:
    ours, other = ours.float(), other.float().cpu()
    return float((ours - other).norm() / other.norm())


if __name__ == "__main__":
    main(run, __doc__ or "", device="cuda", tokens=400_000, tokens_per_batch="8192,32768", repeats=3, tiny=0)
