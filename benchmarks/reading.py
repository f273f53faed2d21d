"""What reading costs, and how much faster a replayed patching sweep is than TransformerLens' loop.

1. A forward pass of smollm2-135m with 30 residual reads over a plain one; TransformerBridge's
   `run_with_cache` on the same sites as a row. Goal: `reads_over_plain` <= 1.05.
2. The full layer x position residual grid on a 14-token indirect-object pair: TransformerLens' own
   `get_act_patch_resid_pre` over `wb.patching.sweep`, without controls on either side.
   Goals: `sweep_over_transformerlens` >= 8, `grid_max_abs_diff` <= 1e-4 (agreement is checked first).

float32 on both sides; TransformerBridge gets its own copy of the weights (it changes the model it is given).
"""

from __future__ import annotations

import copy
import statistics
from typing import Any

import torch

import workbench as wb
from benchmarks.common import Goal, Report, alternate, machine, main

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"


def run(repeats: int = 40, sweeps: int = 3, model: str = "smollm2-135m") -> Report:
    """Both parts; `repeats` pairs of forwards, `sweeps` pairs of grids."""
    lm = wb.load_model(model, dtype="float32")
    bridge = _bridge(lm)
    report = Report(
        settings={
            **machine(),
            "model": model,
            "dtype": "float32",
            "tokens": len(lm.encode(CLEAN)),
            "repeats": repeats,
            "sweeps": sweeps,
        }
    )
    _reads(lm, bridge, repeats, report)
    _sweep(lm, bridge, sweeps, report)
    return report


def _bridge(lm: wb.LanguageModel) -> Any:
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    hf = copy.deepcopy(lm.hf)
    return build_bridge_from_module(hf, type(hf).__name__, hf_config=hf.config, tokenizer=None)


def _reads(lm: wb.LanguageModel, bridge: Any, repeats: int, report: Report) -> None:
    batch = lm.batch(CLEAN)
    sites = [f"blocks.{i}.hook_resid_post" for i in range(lm.n_layers)]
    kept: dict[str, Any] = {}

    @torch.inference_mode()
    def plain() -> None:
        lm.hf(input_ids=batch.ids, use_cache=False)

    def ours() -> None:
        with lm.hooks(read=sites) as seen:
            lm.forward(batch)
        kept["ours"] = [seen[site] for site in sites]

    @torch.inference_mode()
    def cached() -> None:
        _, cache = bridge.run_with_cache(batch.ids, names_filter=lambda name: name.endswith("hook_out"))
        kept["bridge"] = [cache[f"blocks.{i}.hook_out"] for i in range(lm.n_layers)]

    ours()
    cached()
    difference = max(float((a - b).abs().max()) for a, b in zip(kept["ours"], kept["bridge"], strict=True))
    timing = alternate(
        {"plain": plain, "ours": ours, "TransformerBridge": cached}, repeats=repeats, warm_up=3
    )
    report.rows.append(timing.row("ours", "plain", what="forward with 30 residual reads"))
    report.rows.append(
        timing.row(
            "TransformerBridge", "plain", what="run_with_cache, the same sites", largest_difference=difference
        )
    )
    value = statistics.median(timing.ratios("ours", "plain"))
    report.goals.append(Goal.at_most("reads_over_plain", round(value, 4), 1.05))


def _sweep(lm: wb.LanguageModel, bridge: Any, sweeps: int, report: Report) -> None:
    from transformer_lens import patching as tl_patching

    # Its progress bar would mix with what is printed.
    tl_patching.tqdm = lambda items, **_: items  # pyright: ignore[reportPrivateImportUsage]
    metric = wb.LogitDifference(" Mary", " John")
    resolved = metric.resolve(lm)
    clean, corrupt = lm.batch(CLEAN).ids, lm.batch(CORRUPT).ids
    grids: dict[str, torch.Tensor] = {}
    unchanged: dict[str, str] = {}

    def ours() -> None:
        result = wb.patching.sweep(lm, CLEAN, CORRUPT, metric, kind="resid_pre", control=False)
        grids["ours"] = torch.from_numpy(result.data["metric"].values[0])
        unchanged["ours"] = result.data.attrs["unchanged"]

    def every_cell() -> None:
        wb.patching.sweep(lm, CLEAN, CORRUPT, metric, kind="resid_pre", control=False, skip_unchanged=False)

    @torch.inference_mode()
    def loop() -> None:
        _, cache = bridge.run_with_cache(clean)
        grids["loop"] = tl_patching.get_act_patch_resid_pre(
            bridge, corrupt, cache, lambda logits: resolved(logits[:, -1])[0]
        )

    ours()  # warm up ours; the loop's many forwards warm themselves
    timing = alternate(
        {"TransformerLens": loop, "ours": ours, "ours, every cell": every_cell}, repeats=sweeps, warm_up=0
    )
    difference = float((grids["ours"] - grids["loop"].cpu()).abs().max())
    report.rows.append(timing.row("TransformerLens", "ours", what="30 x 14 residual grid"))
    report.rows.append(timing.row("TransformerLens", "ours, every cell", what="30 x 14 residual grid"))
    report.rows.append(
        {"side": "ours", "seconds": round(timing.median("ours"), 4), "what": unchanged["ours"]}
    )
    value = statistics.median(timing.ratios("TransformerLens", "ours"))
    report.goals.append(Goal.at_least("sweep_over_transformerlens", round(value, 3), 8))
    report.goals.append(Goal.at_most("grid_max_abs_diff", difference, 1e-4))


if __name__ == "__main__":
    main(run, __doc__ or "", repeats=40, sweeps=3, model="smollm2-135m")
