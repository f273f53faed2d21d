"""Patching sweeps against TransformerLens' loop, nnsight and the least that has to be computed.

smollm2-135m, float32, one process, in turn, without controls:

1. The layer x position residual grid of a 14-token indirect-object pair and of a 40-token pair: ours, TransformerLens'
   `get_act_patch_resid_pre`, nnsight with one trace per layer and position. Ours as it is (patches that are bit-equal
   to what they replace are not run) and with every cell run.
2. Floor: the floating-point operations of every cell's replay, counted by torch, at the rate of this machine's matrix
   product in the shapes of a block with 512 rows.
3. The layer x head grid: ours and `get_act_patch_attn_head_out_all_pos`.
4. Attribution patching of all heads and MLPs: ours and `transformer_lens.tools.analysis.attribution_patching`, and the
   rank correlation of the estimate with the exact grid.

Goals: `residual_grid_over_transformerlens` >= 20, `residual_grid_40_over_transformerlens` >= 9, `flops_over_loop`
<= 0.30 (every cell run, over whole forwards), `grid_over_floor` >= 0.6 (floor seconds over ours, every cell run),
`grid_max_abs_diff` <= 1e-4, `head_grid_over_transformerlens` >= 10, `attribution_over_transformerlens` >= 10.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import workbench as wb
from benchmarks.common import Goal, Report, Timing, alternate, machine, main

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"
BEFORE = (
    "It was a long and rainy afternoon in the middle of the week, and nobody in the small town had anything else "
    "to do. "
)
METRIC = wb.LogitDifference(" Mary", " John")


def run(repeats: int = 3, model: str = "smollm2-135m", nnsight: int = 1) -> Report:
    """All parts; `nnsight=0` leaves its loop away."""
    lm = wb.load_model(model, dtype="float32", device="cpu")
    bridge = _bridge(lm)
    _quiet()
    long = [_cut(lm, BEFORE + text) for text in (CLEAN, CORRUPT)]
    report = Report(
        settings={
            **machine(),
            "model": model,
            "dtype": "float32",
            "tokens": f"{len(lm.encode(CLEAN))} and {len(long[0])}",
            "repeats": repeats,
        }
    )
    short = [lm.encode(text) for text in (CLEAN, CORRUPT)]
    timing = _residual_grid(lm, bridge, short, "", 20, repeats, report, with_nnsight=bool(nnsight))
    _floor(lm, short, timing, report)
    _residual_grid(lm, bridge, long, "_40", 9, max(1, repeats // 3), report, with_nnsight=False)
    _head_grid(lm, bridge, short, repeats, report)
    _attribution(lm, bridge, short, repeats, report)
    return report


def _cut(lm: wb.LanguageModel, text: str) -> list[int]:
    """The last 40 tokens."""
    return lm.encode(text)[-40:]


def _bridge(lm: wb.LanguageModel) -> Any:
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    hf = copy.deepcopy(lm.hf)
    return build_bridge_from_module(hf, type(hf).__name__, hf_config=hf.config, tokenizer=None)


def _quiet() -> None:
    from transformer_lens import patching as tl_patching

    # Its progress bar would mix with what is printed.
    tl_patching.tqdm = lambda items, **_: items  # pyright: ignore[reportPrivateImportUsage]


def _ours(lm: wb.LanguageModel, pair: list[list[int]], **options: Any) -> np.ndarray:
    return wb.patching.sweep(lm, pair[0], pair[1], METRIC, control=False, **options).data["metric"].values[0]


def _residual_grid(
    lm: wb.LanguageModel,
    bridge: Any,
    pair: list[list[int]],
    suffix: str,
    wanted: float,
    repeats: int,
    report: Report,
    *,
    with_nnsight: bool,
) -> Timing:
    from transformer_lens import patching as tl_patching

    resolved = METRIC.resolve(lm)
    clean, corrupt = (torch.tensor([ids]) for ids in pair)
    grids: dict[str, np.ndarray] = {}

    @torch.inference_mode()
    def loop() -> None:
        _, cache = bridge.run_with_cache(clean)
        grid = tl_patching.get_act_patch_resid_pre(bridge, corrupt, cache, lambda x: resolved(x[:, -1])[0])
        grids["loop"] = grid.cpu().numpy()

    def ours() -> None:
        grids["ours"] = _ours(lm, pair)

    def every_cell() -> None:
        grids["every"] = _ours(lm, pair, skip_unchanged=False)

    every_cell()
    sides: dict[str, Callable[[], None]] = {
        "TransformerLens": loop,
        "ours": ours,
        "ours, every cell": every_cell,
    }
    traced = _nnsight_loop(lm, pair, resolved) if with_nnsight else None
    timing = alternate(sides, repeats=repeats, warm_up=0)
    what = f"{lm.n_layers} x {clean.shape[1]} residual grid"
    for side in ("ours", "ours, every cell"):
        report.rows.append(timing.row("TransformerLens", side, what=what))
        report.rows.append({"side": side, "seconds": round(timing.median(side), 4), "what": what})
    if traced is not None:
        began = time.perf_counter()
        difference = float(np.abs(traced() - grids["every"]).max())
        seconds = round(time.perf_counter() - began, 2)
        report.rows.append(
            {
                "side": "nnsight, one round",
                "seconds": seconds,
                "what": what,
                "largest difference": f"{difference:.1e}",
            }
        )
    differences = [float(np.abs(grids[name] - grids["loop"]).max()) for name in ("ours", "every")]
    value = statistics.median(timing.ratios("TransformerLens", "ours"))
    name = f"residual_grid{suffix}_over_transformerlens"
    report.goals.append(Goal.at_least(name, round(value, 2), wanted))
    report.goals.append(Goal.at_most(f"grid{suffix}_max_abs_diff", max(differences), 1e-4))
    return timing


def _nnsight_loop(lm: wb.LanguageModel, pair: list[list[int]], metric: Any) -> Any:
    try:
        import nnsight  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    model = nnsight.NNsight(copy.deepcopy(lm.hf))
    clean, corrupt = (torch.tensor([ids]) for ids in pair)

    @torch.inference_mode()
    def go() -> np.ndarray:
        grid = np.zeros((lm.n_layers, clean.shape[1]))
        for layer in range(lm.n_layers):
            with model.trace(clean):
                source = model.model.layers[layer].input.save()
            for position in range(clean.shape[1]):
                with model.trace(corrupt):
                    model.model.layers[layer].input[:, position] = source[:, position]
                    logits = model.output.logits.save()
                grid[layer, position] = float(metric(logits[:, -1])[0])
        return grid

    return go


def _floor(lm: wb.LanguageModel, pair: list[list[int]], timing: Timing, report: Report) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as ours:
        _ours(lm, pair, skip_unchanged=False)
    with FlopCounterMode(display=False) as forward, torch.inference_mode():
        lm.hf(input_ids=torch.tensor([pair[1]]), use_cache=False)
    loop = forward.get_total_flops() * (lm.n_layers * len(pair[0]) + 1)
    rate = _rate(lm)
    floor = ours.get_total_flops() / rate
    report.rows.append(
        {
            "side": "floor",
            "seconds": round(floor, 4),
            "what": f"{ours.get_total_flops() / 1e9:.0f} GFLOP (loop of whole forwards {loop / 1e9:.0f}) at "
            f"{rate / 1e9:.0f} GFLOP/s",
        }
    )
    report.goals.append(Goal.at_most("flops_over_loop", round(ours.get_total_flops() / loop, 4), 0.30))
    report.goals.append(
        Goal.at_least("grid_over_floor", round(floor / timing.median("ours, every cell"), 4), 0.6)
    )


@torch.inference_mode()
def _rate(lm: wb.LanguageModel, rows: int = 512) -> float:
    """Floating-point operations a second of the products of one block, as one chain."""
    width, inner = lm.d_model, int(lm.config.intermediate_size)
    up, down = torch.randn(inner, width), torch.randn(width, inner)
    x = torch.randn(rows, width)

    def chain() -> None:
        torch.nn.functional.linear(torch.nn.functional.linear(x, up), down)

    timing = alternate({"chain": chain}, repeats=60, warm_up=10)
    return 2 * 2 * rows * width * inner / timing.median("chain")


def _head_grid(
    lm: wb.LanguageModel, bridge: Any, pair: list[list[int]], repeats: int, report: Report
) -> None:
    from transformer_lens import patching as tl_patching

    resolved = METRIC.resolve(lm)
    clean, corrupt = (torch.tensor([ids]) for ids in pair)
    grids: dict[str, np.ndarray] = {}

    @torch.inference_mode()
    def loop() -> None:
        _, cache = bridge.run_with_cache(clean)
        patch = tl_patching.get_act_patch_attn_head_out_all_pos
        grids["loop"] = patch(bridge, corrupt, cache, lambda x: resolved(x[:, -1])[0]).cpu().numpy()

    def ours() -> None:
        grids["ours"] = _ours(lm, pair, kind="z")

    ours()
    timing = alternate({"TransformerLens": loop, "ours": ours}, repeats=repeats, warm_up=0)
    what = f"{lm.n_layers} x {lm.n_heads} head grid"
    difference = float(np.abs(grids["ours"] - grids["loop"]).max())
    report.rows.append(
        timing.row("TransformerLens", "ours", what=what, **{"largest difference": f"{difference:.1e}"})
    )
    value = statistics.median(timing.ratios("TransformerLens", "ours"))
    report.goals.append(Goal.at_least("head_grid_over_transformerlens", round(value, 2), 10))


def _attribution(
    lm: wb.LanguageModel, bridge: Any, pair: list[list[int]], repeats: int, report: Report
) -> None:
    from transformer_lens.tools.analysis.attribution_patching import attribution_patch

    from workbench.patching.attribution import attribution

    resolved = METRIC.resolve(lm)
    clean, corrupt = (torch.tensor([ids]) for ids in pair)
    kept: dict[str, Any] = {}

    def theirs() -> None:
        kept["theirs"] = attribution_patch(bridge, clean, corrupt, lambda x: resolved(x[:, -1])[0])

    def ours() -> None:
        options = {"kind": ["z", "mlp_out"], "by": "head_position", "control": False}
        kept["ours"] = attribution(lm, pair[0], pair[1], METRIC, **options)

    ours()
    timing = alternate({"TransformerLens": theirs, "ours": ours}, repeats=max(5, repeats), warm_up=1)
    report.rows.append(
        timing.row(
            "TransformerLens",
            "ours",
            what=f"attribution of heads and MLPs at each position ({len(kept['theirs'].node_scores)} nodes)",
            **{"largest difference": f"{_node_difference(**kept):.1e}"},
        )
    )
    for kind in ("mlp_out", "z"):
        checked = attribution(lm, pair[0], pair[1], METRIC, kind=kind, control=False, recheck="all").summary[
            "recheck"
        ]
        report.rows.append({"what": f"estimate and exact grid, {kind}", **checked})
    with torch.inference_mode():
        ids = torch.tensor([pair[1]])
        plain = alternate({"plain": lambda: lm.hf(input_ids=ids, use_cache=False)}, repeats=10, warm_up=2)
    least = 2 * plain.median("plain")
    report.rows.append(
        {
            "side": "plain",
            "seconds": round(least, 4),
            "what": "two plain forwards of one prompt, all positions and all logits: "
            f"{timing.median('TransformerLens') / least:.1f} times as fast as TransformerLens",
        }
    )
    value = statistics.median(timing.ratios("TransformerLens", "ours"))
    report.goals.append(Goal.at_least("attribution_over_transformerlens", round(value, 2), 10))


def _node_difference(theirs: Any, ours: Any) -> float:
    """The largest difference between both sides' estimates, over all heads and MLPs at all positions."""
    base = float(ours.data["corrupt_metric"][0])
    heads, mlps = (ours.data[f"metric_{kind}"].values[0] - base for kind in ("z", "mlp_out"))
    own = {
        "attn_head_out": lambda n: heads[n.layer, n.head, n.position],
        "mlp_out": lambda n: mlps[n.layer, n.position],
    }
    nodes = [(node, score) for node, score in theirs.node_scores.items() if node.kind in own]
    return max(abs(score - own[node.kind](node)) for node, score in nodes)


if __name__ == "__main__":
    main(run, __doc__ or "", repeats=3, model="smollm2-135m", nnsight=1)
