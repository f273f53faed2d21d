"""Figures of the patching methods: on results of realistic size made by hand, and on those of tiny models."""

from __future__ import annotations

import re
from functools import cache
from html import escape, unescape
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr
from conftest import tiny_model
from fake_results import TOKENS, where_from

import workbench as wb
from dashboards.figures import KINDS, control_statement, describe, figure, figures, theme
from dashboards.figures.tables import tables
from dashboards.report import write_report
from workbench.results import Result, array

LAYERS, HEADS = 30, 9
METRIC = "logit(' Mary') − logit(' John')"
NASTY = ("<b>bold</b>", "%{z}", "$x$", "</script>", "&amp;")


# --- results of realistic size --------------------------------------------------------------------------


def compared(dims, mean, n, rng, *, over="pair", control=True, noise=0.05):
    """Variables of a result with `mean_effect`: effects of n pairs (or prompts) around given means."""
    shape = mean.shape
    effect = mean + rng.normal(0, noise, size=(n, *shape))
    wrong = rng.normal(0, noise, size=(n, *shape)) + 0.1 * mean
    found = {
        "metric": array((over, *dims), 6 * effect - 2, long_name=METRIC),
        "effect": array((over, *dims), effect),
        "mean_effect": array(dims, effect.mean(0)),
    }
    ends = (
        (effect.mean(0) - 2 * noise, effect.mean(0) + 3 * noise) if n > 1 else (np.full(shape, np.nan),) * 2
    )
    found |= {"effect_low": array(dims, ends[0]), "effect_high": array(dims, ends[1])}
    if control:
        found["control_effect"] = array((over, *dims), wrong)
    return found, effect, wrong


def of_pairs(
    kind, dims, mean, /, *, n=4, control=True, coords=None, more=None, noise=0.05, seed=0, **attrs
) -> Result:
    """A result that looks like a sweep's."""
    rng = np.random.default_rng(seed)
    found, effect, _ = compared(dims, mean, n, rng, control=control, noise=noise)
    found |= {
        "clean_metric": array(("pair",), np.full(n, 4.0)),
        "corrupt_metric": array(("pair",), np.full(n, -2.0)),
    }
    if control:
        found["p_value"] = array(dims, rng.uniform(size=mean.shape) if n > 1 else np.full(mean.shape, np.nan))
    found |= (more or (lambda _effect, _rng: {}))(effect, rng)
    places = {"pair": np.arange(n), "layer": np.arange(LAYERS), **(coords or {})}
    coords = {
        name: value for name, value in places.items() if name in ("pair", *dims) or isinstance(value, tuple)
    }
    base = {"metric": METRIC, "direction": "denoising", "n_pairs": n}
    base["control"] = "wrong source: the next pair's run" if control else "not run"
    data = xr.Dataset(found, coords, {**base, **attrs})
    summary = {"strongest": {}, "n_pairs": n}
    return Result(kind, data, where_from(), summary)


def few(shape, *cells, seed=0):
    """Small numbers with some large ones: ((index, value), …)."""
    mean = np.random.default_rng(seed).normal(0, 0.02, size=shape)
    for at, value in cells:
        mean[at] = value
    return mean


def positions():
    clean, corrupt = list(TOKENS), list(TOKENS)
    corrupt[9] = " Mary"
    return {
        "position": np.arange(len(TOKENS)),
        "clean_token": ("position", np.array(clean)),
        "corrupt_token": ("position", np.array(corrupt)),
    }


def heads_at_positions(**more) -> Result:
    """The strongest head is 9.6 at position 13, and 5.2 at position 9 works against."""
    cells = (((9, 6, 13), 0.8), ((5, 2, 9), -0.5), ((20, 0, 3), 0.3))
    dims = ("layer", "head", "position")
    mean = few((LAYERS, HEADS, len(TOKENS)), *cells)
    coords = {"head": np.arange(HEADS), **positions()}
    return of_pairs("patching_sweep", dims, mean, coords=coords, **{"kind": "z", "source": "run", **more})


def unequal() -> Result:
    """A sweep over prompts of different lengths: two positions correspond to nothing."""
    mean = few((LAYERS, len(TOKENS)), ((16, 9), 1.0))
    mean[:, 3:5] = np.nan
    coords = positions()
    coords["clean_token"][1][3:5] = ""
    alignment = "12 of 14 positions of the patched run correspond to one of the other"
    more = {"alignment": alignment, "left_out": "3 tokens that only one of the prompts has"}
    return of_pairs("patching_sweep", ("layer", "position"), mean, coords=coords, kind="resid_pre", **more)


def spans() -> Result:
    mean = few((LAYERS, 3), ((16, 1), 1.0))
    coords = {"span": np.array(["first name", "second name", "the last word before the answer"])}
    return of_pairs("patching_sweep", ("layer", "span"), mean, coords=coords, kind="resid_pre")


def attribution(n=4, recheck=True) -> Result:
    """Heads; the strongest is 9.6. Exact effects of the 40 strongest are 1.2 times the estimate."""

    def exact(effect, _rng):
        strength = np.abs(effect.mean(0)).ravel()
        some = np.argsort(-strength)[:40]
        found = np.full(effect.shape, np.nan)
        found.reshape(n, -1)[:, some] = 1.2 * effect.reshape(n, -1)[:, some]
        return {"exact_effect": array(("pair", "layer", "head"), found)} if recheck else {}

    mean = few((LAYERS, HEADS), ((9, 6), 0.7), ((10, 7), -0.6), ((7, 3), 0.4), ((8, 6), 0.35))
    result = of_pairs(
        "attribution", ("layer", "head"), mean, n=n, coords={"head": np.arange(HEADS)}, more=exact,
        kind="z", by="auto", integrate=5, noise=0.03,
    )  # fmt: skip
    if recheck:
        result.summary["recheck"] = {
            "n": 40, "spearman": 0.97, "spearman_p": 0.001, "spearman_interval": [0.9, 0.99], "pearson": 0.99,
            "pearson_p": 0.001, "pearson_interval": [0.95, 1.0], "rechecked": "40 of 270 cells, of which 0 put in …",
        }  # fmt: skip
    return result


def two_kinds() -> Result:
    """Attribution of queries and of grouped keys, as `attribution` joins them."""
    parts = []
    for name, heads, dim in (("q", HEADS, "head"), ("k", 3, "kv_head")):
        one = attribution().data if name == "q" else None
        if one is None:
            mean = few((LAYERS, heads), ((9, 1), 0.5))
            one = of_pairs("attribution", ("layer", dim), mean, coords={dim: np.arange(heads)}, kind="k").data
        shared = ("clean_metric", "corrupt_metric")
        parts.append(one.rename({v: f"{v}_{name}" for v in one.data_vars if v not in shared}))
    data = xr.merge(parts, combine_attrs="override", compat="equals", join="exact")
    data.attrs |= {"kind": "q, k", "integrate": 0}
    summary = {"q": {"recheck": attribution().summary["recheck"]}, "k": {}}
    return Result("attribution", data, where_from(), summary)


def edges() -> Result:
    """All edges of 30 layers with 9 heads; the strongest is a9.h6 -> logits."""
    senders, written = ["input"], [0]
    receivers, read = [], []
    for layer in range(LAYERS):
        senders += [f"a{layer}.h{h}" for h in range(HEADS)] + [f"m{layer}"]
        written += [2 * layer + 1] * HEADS + [2 * layer + 2]
        receivers += [f"a{layer}", f"m{layer}"]
        read += [2 * layer, 2 * layer + 1]
    receivers.append("logits")
    read.append(2 * LAYERS)
    causal = np.array(written)[:, None] <= np.array(read)[None]
    mean = np.random.default_rng(5).laplace(0, 0.002, size=causal.shape)
    mean[senders.index("a9.h6"), receivers.index("logits")] = 0.31
    mean[senders.index("a5.h2"), receivers.index("a9")] = 0.2
    mean[senders.index("m3"), receivers.index("a5")] = -0.15
    mean[~causal] = np.nan
    score = lambda effect, _rng: {"score": array(("pair", "sender", "receiver"), 6 * effect)}  # noqa: E731
    return of_pairs(
        "edge_attribution", ("sender", "receiver"), mean, noise=0.002, more=score,
        coords={"sender": np.array(senders), "receiver": np.array(receivers)}, kind="edges", integrate=5,
    )  # fmt: skip


def paths() -> Result:
    mean = few((LAYERS, HEADS + 1), ((9, 6), 0.6), ((10, 7), -0.35), ((15, 9), 0.2))
    names = [*(f"head {h}" for h in range(HEADS)), "mlp"]
    coords = {"component": np.arange(HEADS + 1), "component_name": ("component", np.array(names))}
    receivers = "[('blocks.20.attn.hook_q', 6), ('blocks.21.attn.hook_q', 1)]"
    return of_pairs(
        "path_patching",
        ("layer", "component"),
        mean,
        coords=coords,
        kind="path",
        freeze="heads",
        receivers=receivers,
    )


def path_sets() -> Result:
    coords = {"set": np.arange(3), "set_name": ("set", np.array(["9.6+9.7", "10.1", "3.mlp+4.mlp"]))}
    mean = np.array([0.5, -0.1, 0.05])
    return of_pairs(
        "path_patching", ("set",), mean, coords=coords, kind="path", freeze="all", receivers="logits"
    )


def of_prompts(kind, dims, mean, coords, /, *, n=12, control=True, noise=0.2, **attrs) -> Result:
    """A result that compares edited runs with the base run."""
    rng = np.random.default_rng(3)
    found, _, wrong = compared(dims, mean, n, rng, over="prompt", control=control, noise=noise)
    if control:
        ends = (wrong.mean(0) - noise, wrong.mean(0) + noise) if n > 1 else (np.full(mean.shape, np.nan),) * 2
        found["mean_control_effect"] = array(dims, wrong.mean(0))
        found |= {"control_effect_low": array(dims, ends[0]), "control_effect_high": array(dims, ends[1])}
    found["base_metric"] = array(("prompt",), np.full(n, 3.5))
    base = {"metric": METRIC, "n_prompts": n, "control": "a push of the same norm in a random direction"}
    data = xr.Dataset(
        found,
        {"prompt": np.arange(n), **coords},
        {**base, **({} if control else {"control": "not run"}), **attrs},
    )
    return Result(kind, data, where_from(), {"n_prompts": n})


def ablation(parts=("attn.hook_z",), heads=True, **more) -> Result:
    """Sites of one part are those of all layers; the strongest is layer 9 (head 6) of the first part."""
    names = [f"blocks.{layer}.{part}" for layer in range(LAYERS) for part in parts]
    layers = [layer for layer in range(LAYERS) for _ in parts]
    shape = (len(names), HEADS) if heads else (len(names),)
    at = (9 * len(parts), 6) if heads else (9 * len(parts),)
    mean = 5 * few(shape, (at, -0.5), seed=4)
    coords = {"site": np.array(names), "layer": ("site", layers)}
    if heads:
        coords["head"] = np.arange(HEADS)
    dims = ("site", "head") if heads else ("site",)
    about = {"how": "mean", "positions": "all", "reference": "12 prompts (the same)"}
    return of_prompts("ablation", dims, mean, coords, **about, **more)


def knockout(window=5, sets=False, **more) -> Result:
    """Windows of layers; the strongest begins at layer 12."""
    windows = (
        [[1, 2, 9], [12, 13, 14], [25]]
        if sets
        else [[*range(i, i + window)] for i in range(LAYERS - window + 1)]
    )
    first = np.array([w[0] for w in windows])
    mean = np.array([-0.1, -2.0, 0.1]) if sets else -3 * np.exp(-(((first - 12) / 4) ** 2))
    coords = {
        "window": np.arange(len(windows)),
        "first_layer": ("window", first),
        "last_layer": ("window", [w[-1] for w in windows]),
        "layers": ("window", np.array([" ".join(map(str, w)) for w in windows])),
    }
    about = {"queries": "last", "keys": "[1, 3]", "heads": "all", "blocked": "renormalised"}
    result = of_prompts("knockout", ("window",), mean, coords, **{**about, **more})
    n = result.data.sizes["prompt"]
    for name in ("n_edges", *(["n_control_edges"] if "control_effect" in result.data else [])):
        result.data[name] = array(("prompt",), np.full(n, 2))
    return result


def back_patching(n=40, layers=LAYERS, control=True) -> Result:
    """Of prompts first wrong, the best pair is source 20 -> target 5."""
    rng = np.random.default_rng(6)
    right = np.arange(n) < n // 4
    s, t = np.meshgrid(np.arange(layers), np.arange(layers), indexing="ij")
    hit = 0.35 * np.exp(-((s - 20) ** 2 + (t - 5) ** 2) / 30)
    cells = ("prompt", "source_layer", "target_layer")
    kinds = {
        "": (hit + 0.01, s > t),
        "control_": (0.01 + 0 * hit, s > t),
        "forward_": (0.02 + 0 * hit, s < t),
    }
    groups = {"all": np.ones(n, bool), "first wrong": ~right, "first right": right}
    found, best = {}, {}
    for kind, (p, exists) in kinds.items() if control else [("", kinds[""])]:
        success = np.where(exists, rng.uniform(size=(n, layers, layers)) < p, np.nan)
        found[f"{kind}success"] = array(cells, success)
        found[f"{kind}log_probability"] = array(
            cells, np.where(exists, -3.0 * (1 - p), np.nan) - rng.random((n, 1, 1))
        )
        rates = np.stack([success[some].mean(0) for some in groups.values()])
        found[f"{kind}pair_rate"] = array(("group", *cells[1:]), rates)
        best[f"{kind or 'oracle_'}rate"] = (success == 1).any((1, 2)).astype(float)
    if control:
        best["difference"] = best["oracle_rate"] - best["control_rate"]
        best["forward_difference"] = best["oracle_rate"] - best["forward_rate"]
    for name, values in best.items():
        means = np.array([values[some].mean() for some in groups.values()])
        found[name] = array(("group",), means)
        found |= {
            f"{name}_low": array(("group",), means - 0.1),
            f"{name}_high": array(("group",), means + 0.1),
        }
    found["n"] = array(("group",), [int(some.sum()) for some in groups.values()])
    found["first_right"] = array(("prompt",), right)
    numbers = np.arange(layers)
    coords = {
        "prompt": np.arange(n),
        "group": np.array(list(groups)),
        "source_layer": numbers,
        "target_layer": numbers,
    }
    attrs = {
        "n_prompts": n,
        "n_pairs": layers * (layers - 1) // 2,
        "success": "the greedy continuation is the answer",
    }
    attrs["control"] = (
        "other prompt (with another answer); forward (own stream, later blocks)" if control else "not run"
    )
    return Result("back_patching", xr.Dataset(found, coords, attrs), where_from(), {})


def patchscope(n_source=LAYERS, n_target=LAYERS, control=True, decoded=False, steps=10, texts=None) -> Result:
    rng = np.random.default_rng(7)
    said = np.array(
        texts
        or [" a city in France, known for", " the capital of Italy", " x: x is a", " Paris, Paris, Paris\n"]
    )
    shape, found = (n_source, n_target), {}
    for kind in ("", "control_") if control else ("",):
        which = rng.integers(0, len(said), size=shape)
        p = np.sort(rng.dirichlet(np.ones(6), size=shape), axis=-1)[..., ::-1][..., :5]
        found[f"{kind}text"] = array(("source_layer", "target_layer"), said[which])
        tokens = np.array([" a", " the", " Paris", "<b>", "\n"])[rng.integers(0, 5, size=(*shape, 5))]
        found[f"{kind}top_token"] = array(("source_layer", "target_layer", "k"), tokens)
        found[f"{kind}top_probability"] = array(("source_layer", "target_layer", "k"), p.astype(np.float32))
        if decoded:
            found[f"{kind}decoded"] = array(
                ("source_layer", "target_layer"), which == (3 if not kind else -1)
            )
    found["unpatched_text"] = array((), said[2])
    attrs = {
        "source_token": " Tower", "target_position": 30, "target_token": " x", "mapping": "identity",
        "n_cells": n_source * n_target, "control": "the stream of another position of the source prompt" if control else "not run",
    }  # fmt: skip
    if decoded:
        attrs["aliases"] = ["Paris", "France"]
    coords = {"source_layer": np.arange(n_source), "target_layer": np.arange(n_target)}
    return Result("patchscope", xr.Dataset(found, coords, attrs), where_from(), {})


AF1 = {
    "first": "BOS",
    "means": "over 900 prompts",
    "n_prompts": 200,
    "n_answered": 160,
    "n_least": 100,
    "allowed": "all",
}


def all_for_one() -> Result:
    rng = np.random.default_rng(8)
    correct = rng.uniform(size=(3, 160)) < np.array([[0.95], [0.1], [0.3]])
    mean = correct.mean(1)
    data = xr.Dataset(
        {
            "base_correct": array(("prompt",), np.arange(200) < 160),
            "correct": array(("run", "answered"), correct),
            "log_probability": array(("run", "answered"), -rng.random((3, 160))),
            "faithfulness": array(("run",), mean),
            "faithfulness_low": array(("run",), mean - 0.05),
            "faithfulness_high": array(("run",), np.minimum(mean + 0.05, 1)),
        },
        {
            "run": ["all_for_one", "no_peek", "unconditional"],
            "prompt": np.arange(200),
            "answered": np.arange(160),
        },
        {"wait": 15, "peek": 2, **AF1},
    )
    return Result("all_for_one", data, where_from(), {})


def af1_search(n=LAYERS, found=True) -> Result:
    """All cells of wait + peek <= n; the smallest that keeps 0.95 is wait n//2, peek 2."""
    waits = peeks = np.arange(n + 1)
    w, p = np.meshgrid(waits, peeks, indexing="ij")
    mean = np.clip(1 - 0.1 * np.clip(w - n // 2, 0, None) - 0.5 * (p < 2), 0, 1)
    mean = np.where(w + p <= n, mean if found else 0.4 * mean, np.nan)
    data = xr.Dataset(
        {
            "base_correct": array(("prompt",), np.arange(200) < 160),
            "faithfulness": array(("wait", "peek"), mean),
            "faithfulness_low": array(("wait", "peek"), mean - 0.03),
            "faithfulness_high": array(("wait", "peek"), np.minimum(mean + 0.03, 1)),
        },
        {"wait": waits, "peek": peeks, "prompt": np.arange(200)},
        {"keep": 0.95, **AF1},
    )
    smallest = {
        "wait": n // 2, "peek": 2, "faithfulness": 0.98, "interval": [0.95, 1.0], "no_peek": 0.12, "unconditional": 0.3, "n": 80,
    }  # fmt: skip
    return Result(
        "all_for_one_search", data, where_from(), {"keep": 0.95, "smallest": smallest if found else None}
    )


def das() -> Result:
    rng = np.random.default_rng(9)
    names, accuracy = ["trained", "pca", "random", "whole"], np.array([0.86, 0.4, 0.12, 0.9])
    data = xr.Dataset(
        {
            "log_probability": array(("subspace", "pair"), -rng.random((4, 60))),
            "accuracy": array(("subspace",), accuracy),
            "accuracy_low": array(("subspace",), accuracy - 0.08),
            "accuracy_high": array(("subspace",), accuracy + 0.07),
            "loss": array(("step",), 3 * np.exp(-np.arange(200) / 40) + 0.2 * rng.random(200)),
        },
        {"subspace": names, "pair": np.arange(60)},
        {
            "site": "blocks.9.hook_resid_post", "n_train": 140, "n_test": 60, "rank": 4,
            "control": "5 random subspaces of the same rank, averaged",
        },
    )  # fmt: skip
    return Result("das", data, where_from(), {"unpatched": 0.03})


def mediation(n=8, control=True, components=("mlp_out", "attn_out")) -> Result:
    """The strongest is mlp_out of layer 20 at the last position."""
    rng = np.random.default_rng(10)
    dims, shape = ("component", "layer", "position"), (len(components), LAYERS, len(TOKENS))
    mean = 3 * few(shape, ((0, 20, 13), 0.6), ((0, 2, 1), 0.3), seed=10)
    found = {}
    for prefix in ("", "control_") if control else ("",):
        for form, scale in (("effect", 1.0), ("relative_effect", 5.0), ("change", 0.05)):
            each = scale * (mean if not prefix else 0.1 * mean) + rng.normal(0, 0.02, size=(n, *shape))
            low, high = (each.mean(0) - 0.1, each.mean(0) + 0.1) if n > 1 else (np.full(shape, np.nan),) * 2
            found[f"{prefix}{form}"] = array(("pair", *dims), each)
            found[f"mean_{prefix}{form}"] = array(dims, each.mean(0))
            found |= {f"{prefix}{form}_low": array(dims, low), f"{prefix}{form}_high": array(dims, high)}
    if control:
        found["p_value"] = array(dims, rng.uniform(size=shape) if n > 1 else np.full(shape, np.nan))
    found["total_effect"] = array(("pair",), np.full(n, 5.5))
    found |= {name: array(("pair",), np.ones(n, bool)) for name in ("correct", "other_correct")}
    where = positions()
    coords = {
        "pair": np.arange(n), "component": list(components), "layer": np.arange(LAYERS), "position": where["position"],
        "token": where["clean_token"], "other_token": where["corrupt_token"],
    }  # fmt: skip
    attrs = {"n_pairs": n, "control": "other operands, the same result" if control else "not run"}
    return Result("causal_mediation", xr.Dataset(found, coords, attrs), where_from(), {})


def circuits(n=6, drawn=10) -> Result:
    """Faithfulness grows with log size; 0.8 is first reached with 500 edges."""
    rng = np.random.default_rng(11)
    sizes = np.array([1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 9331])
    own = np.clip(np.log10(sizes) / 3.3, 0, 1)
    null = np.clip(np.log10(sizes) / 3.3 - 0.6, 0, 1) * (sizes < 9331) + (sizes == 9331)
    found, first = {}, ("pair", "size")
    for name in ("faithfulness", "completeness"):
        each = own + rng.normal(0, 0.03, size=(n, len(sizes)))
        found[name] = array(first, each)
        found[f"mean_{name}"] = array(("size",), each.mean(0))
        ends = (each.mean(0) - 0.05, each.mean(0) + 0.05) if n > 1 else (np.full(len(sizes), np.nan),) * 2
        found |= {
            f"{name}_{end}": array(("size",), values)
            for end, values in zip(("low", "high"), ends, strict=True)
        }
        if drawn:
            random = null[:, None] + rng.normal(0, 0.04, size=(n, len(sizes), drawn))
            found[f"random_{name}"] = array((*first, "random"), random)
            found[f"mean_random_{name}"] = array(("size",), random.mean((0, 2)))
            found[f"{name}_p"] = array(("size",), np.full(len(sizes), 1 / (1 + drawn)))
    found["n_edges"] = array(("size",), sizes * 9 // 10)
    found["n_nodes"] = array(("size",), np.minimum(sizes, 330))
    found |= {
        "clean_metric": array(("pair",), np.full(n, 4.0)),
        "ablated_metric": array(("pair",), np.full(n, -2.0)),
    }
    attrs = {
        "ablate": "run",
        "by": "abs",
        "null": "uniform",
        "n_random": drawn,
        "metric": METRIC,
        "n_pairs": n,
    }
    coords = {"pair": np.arange(n), "size": sizes, "random": np.arange(drawn)}
    data = xr.Dataset(found, coords, {**attrs, "n_edges_of_graph": 9331})
    area = {"circuit": 0.55, "interval": [0.5, 0.6], **({"random": 0.2, "p_value": 0.0909} if drawn else {})}
    return Result(
        "circuit",
        data,
        where_from(),
        {"area": area if n > 1 else {k: area[k] for k in area if k != "interval"}},
    )


def neurons(n=12, head=False, control_heads=3, width=1536) -> Result:
    """Importance (or comparative importance) of neurons; the first is 20.117."""
    rng = np.random.default_rng(12)
    dims, shape, found = ("layer", "neuron"), (LAYERS, width), {}
    mean = rng.laplace(0, 0.002, size=shape) * np.linspace(0.2, 2, LAYERS)[:, None]
    mean[20, 117], mean[22, 4], mean[21, 50] = 0.4, 0.25, -0.3

    def over(name, values, dims=dims):
        found[f"mean_{name}"] = array(dims, values)
        spread = 0.03 if n > 1 else np.nan
        found[f"{name}_low"], found[f"{name}_high"] = (
            array(dims, values - spread),
            array(dims, values + spread),
        )

    over("importance", mean)
    attrs = {"n_prompts": n, "final_norm_scale": "held at the original run's last stream"}
    coords = {"layer": np.arange(LAYERS), "neuron": np.arange(width)}
    if head:
        over("comparative", 0.5 * mean)
        others = rng.laplace(0, 0.001, size=(control_heads, *shape))
        found["mean_control_comparative"] = array(("control_head", *dims), others)
        over("head_score", few((LAYERS, HEADS), ((17, 2), 0.8), seed=12), ("head_layer", "head"))
        attrs |= {"silenced_head": "17.2", "head_chosen": "largest mean score on these prompts"}
        attrs["control"] = (
            f"{control_heads} other heads of block 17, silenced alike" if control_heads else "not run"
        )
        coords |= {
            "control_head": np.arange(control_heads),
            "head_layer": np.arange(LAYERS),
            "head": np.arange(HEADS),
        }
    else:
        over("control_importance", rng.laplace(0, 0.002, size=shape))
        attrs["control"] = "importance for a random other token"
    found["correct"] = array(("prompt",), np.arange(n) % 4 != 1)
    summary = {"top": "10 of 99", "top_share": 0.1234}
    return Result("neuron_importance", xr.Dataset(found, coords, attrs), where_from(), summary)


def neuron_ablation(n=12, draws=20) -> Result:
    rng = np.random.default_rng(13)
    base = np.stack([rng.uniform(-1, 0, n), np.ones(n)], -1)
    effect = np.stack([rng.normal(-2.0, 0.2, n), -1.0 * (rng.random(n) < 0.7)], -1)
    found = {
        "base": array(("prompt", "measure"), base),
        "ablated": array(("prompt", "measure"), base + effect),
    }
    found["mean_effect"] = array(("measure",), effect.mean(0))
    spread = np.array([0.2, 0.1]) if n > 1 else np.nan
    found |= {
        "effect_low": array(("measure",), effect.mean(0) - spread),
        "effect_high": array(("measure",), effect.mean(0) + spread),
    }
    if draws:
        wrong = np.stack([rng.normal(-0.05, 0.02, (n, draws)), np.zeros((n, draws))], -1)
        found["control"] = array(("prompt", "draw", "measure"), base[:, None] + wrong)
        found["mean_control_effect"] = array(("draw", "measure"), wrong.mean(0))
        found["p_value"] = array(("measure",), np.full(2, 1 / 21))
    control = f"{draws} draws of as many other neurons of the same blocks" if draws else "not run"
    attrs = {"positions": "-1", "n_neurons": "50", "n_prompts": n, "control": control}
    coords = {"measure": ["log_probability", "correct"], "prompt": np.arange(n)}
    return Result("neuron_ablation", xr.Dataset(found, coords, attrs), where_from(), {})


VARIANTS = {
    "sweep, heads at positions": heads_at_positions,
    "sweep, one pair of heads at positions": lambda: heads_at_positions(n=1),
    "sweep, unequal lengths": unequal,
    "sweep, spans": spans,
    "attribution": attribution,
    "attribution, one pair": lambda: attribution(n=1),
    "attribution, two kinds": two_kinds,
    "edges": edges,
    "paths": paths,
    "paths, sets": path_sets,
    "ablation, heads": ablation,
    "ablation, one prompt": lambda: ablation(n=1),
    "ablation, heads of two sites": lambda: ablation(("attn.hook_z", "attn.hook_q")),
    "ablation, sites": lambda: ablation(("hook_attn_out", "hook_mlp_out"), heads=False),
    "ablation, many sites": lambda: ablation(
        ("hook_attn_out", "hook_mlp_out", "hook_resid_pre", "hook_resid_post"), heads=False
    ),
    "ablation, no control": lambda: ablation(control=False),
    "ablation, sites without control": lambda: ablation(("hook_mlp_out",), heads=False, control=False),
    "knockout": knockout,
    "knockout, single layers": lambda: knockout(window=1),
    "knockout, sets": lambda: knockout(sets=True),
    "knockout, one prompt, no control": lambda: knockout(n=1, control=False),
    "back-patching": back_patching,
    "back-patching, no control": lambda: back_patching(control=False),
    "back-patching, small": lambda: back_patching(layers=3),
    "patchscope": patchscope,
    "patchscope, small": lambda: patchscope(8, 8),
    "patchscope, decoded": lambda: patchscope(decoded=True),
    "patchscope, no control": lambda: patchscope(control=False),
    "all for one": all_for_one,
    "all-for-one search": af1_search,
    "all-for-one search, small": lambda: af1_search(8),
    "all-for-one search, nothing found": lambda: af1_search(8, found=False),
    "das": das,
    "mediation": mediation,
    "mediation, one pair, no control": lambda: mediation(1, control=False),
    "circuits": circuits,
    "circuits, one pair, no control": lambda: circuits(1, 0),
    "neurons": neurons,
    "neurons, head silenced": lambda: neurons(head=True),
    "neurons, head silenced, one prompt, no control": lambda: neurons(1, head=True, control_heads=0),
    "neuron ablation": neuron_ablation,
    "neuron ablation, one prompt, no control": lambda: neuron_ablation(1, 0),
}
made = cache(lambda name: VARIANTS[name]())
"""Results, which no test may change."""
drawn_of = cache(lambda name: figures(made(name)))
"""Their figures, likewise."""


@pytest.fixture(params=VARIANTS, ids=str)
def name(request) -> str:
    return request.param


@pytest.fixture
def result(name) -> Result:
    return made(name)


@pytest.fixture
def every(name) -> dict[str, go.Figure]:
    return drawn_of(name)


def main(name: str) -> go.Figure:
    """The main figure of a variant."""
    return next(iter(drawn_of(name).values()))


def under(drawn: go.Figure) -> str:
    """The subtitle as a reader sees it."""
    return unescape(drawn.layout.title.subtitle.text).replace("<br>", " ")


def grids(drawn: go.Figure) -> list[go.Heatmap]:
    """Heat maps without the grey ones."""
    return [trace for trace in drawn.data if trace.type == "heatmap" and trace.meta != "background"]


def named(drawn: go.Figure, name: str):
    (found,) = [trace for trace in drawn.data if trace.name == name]
    return found


# --- every kind -----------------------------------------------------------------------------------------

NAMES = {
    "sweep, heads at positions": ["effect", "control", "positions"],
    "attribution": ["effect", "control", "top", "recheck"],
    "edges": ["effect", "control", "top"],
    "paths": ["effect", "control", "top"],
    "paths, sets": ["top"],
    "ablation, heads": ["effect", "control", "top"],
    "ablation, sites": ["effect"],
    "knockout": ["effect"],
    "back-patching": ["pairs", "oracle"],
    "patchscope": ["texts", "control", "changed"],
    "patchscope, decoded": ["texts", "control", "changed", "decoded"],
    "all for one": ["faithfulness"],
    "all-for-one search": ["grid", "smallest"],
    "das": ["accuracy", "loss"],
    "mediation": ["effect_mlp_out", "effect_attn_out", "control_mlp_out", "control_attn_out"],
    "circuits": ["curves"],
    "neurons": ["layers", "top"],
    "neurons, head silenced": ["layers", "top", "heads"],
    "neuron ablation": ["ablation"],
}


@pytest.mark.parametrize("name", NAMES)
def test_each_kind_has_its_figures_with_the_main_one_first(name):
    assert list(drawn_of(name)) == NAMES[name]


def test_every_kind_that_patching_makes_has_a_figure():
    room = Path(wb.__file__).parent / "patching"
    code = "\n".join(path.read_text() for path in room.glob("*.py"))
    kinds = set(re.findall(r'Result\(\s*"(\w+)"', code)) | set(re.findall(r'kind="(\w+)", data=', code))
    assert {"attribution", "path_patching", "circuit", "neuron_importance"} <= kinds
    assert kinds <= set(KINDS)


def test_numbers_travel_as_float32_and_within_the_budget(every):
    for name, drawn in every.items():
        assert len(drawn.to_json()) < 2_000_000, name
        for trace in drawn.data:
            for key in ("x", "y", "z", "customdata"):
                value = getattr(trace, key, None)
                if value is not None and np.asarray(value).dtype.kind in "fiu":
                    assert value.dtype == np.float32, (name, trace.name, key)


def test_title_and_subtitle_say_what_of_which_model_how_many_and_against_what(every):
    for name, drawn in every.items():
        assert 10 < len(unescape(drawn.layout.title.text)) <= 95, name
        said = under(drawn)
        assert said.startswith("smollm2-135m · n = ") and " · " in said[16:], said
        assert "control: " in said and "nan" not in said.lower() and "None" not in said, said


def test_no_two_cells_have_one_label(every):
    for name, drawn in every.items():
        for trace in grids(drawn):
            for labels in (trace.x, trace.y):
                assert len(set(labels)) == len(labels), name
            assert trace.z.shape == (len(trace.y), len(trace.x))


def test_signed_effects_are_white_at_zero_and_shares_start_there(every):
    for drawn in every.values():
        axis = drawn.layout.coloraxis
        if axis.colorscale is None:
            continue
        largest = max(float(np.nanmax(np.abs(trace.z))) for trace in grids(drawn))
        if axis.cmid == 0:
            assert axis.cmin == -axis.cmax and axis.cmax >= largest - 1e-6
            assert [stop[1] for stop in axis.colorscale][5] == "#f7f7f7"
        else:
            assert axis.cmin == 0 and axis.cmax >= largest - 1e-6


def test_cells_that_do_not_exist_are_grey_and_only_those(every):
    for drawn in every.values():
        for trace in grids(drawn):
            grey = [t for t in drawn.data if t.meta == "background" and t.xaxis == trace.xaxis]
            missing = np.isnan(trace.z)
            assert bool(grey) == bool(missing.any())
            for one in grey:
                np.testing.assert_array_equal(np.isfinite(one.z), missing)


def test_the_scheme_is_in_the_template_alone(every):
    for drawn in every.values():
        light = drawn.to_plotly_json()
        dark = theme.use_scheme(drawn, "dark").to_plotly_json()
        theme.use_scheme(drawn, "light")
        assert dark["layout"].pop("template") != light["layout"].pop("template")
        assert str(light) == str(dark)


def test_words_are_there_for_every_figure_and_for_the_control(result, every):
    words = describe(result)
    assert list(words) == list(every)
    for text in (*words.values(), control_statement(result)):
        assert len(text) > 50 and "nan" not in text.lower().replace("unan", "") and "None" not in text, text
        assert (text[0].isupper() or ": " in text[:8]) and text.endswith("."), text


def test_without_a_control_the_words_say_so():
    for name in VARIANTS:
        if "no control" in name or "without control" in name:
            assert control_statement(made(name)).startswith("No "), name


def test_tables_hold_every_number_that_is_drawn(every):
    for name, drawn in every.items():
        found = tables(drawn)
        assert all(one.rows for one in found), name
        n_cells = sum(len(row) - 1 for one in found for row in one.rows)
        n_grid = sum(trace.z.size for trace in grids(drawn))
        scatters = [t for t in drawn.data if t.type == "scatter" and t.mode != "text"]
        points = [t for t in scatters if t.mode == "markers" and t.text is not None]
        n_others = sum(len(t.y) for t in drawn.data if t.type == "bar")
        n_others += sum(len(t.y) for t in scatters if not (t.mode == "markers" and t.text is not None))
        lines = sum(len(one.rows) * (len(one.columns) - 1) for one in found if " by " in one.caption)
        assert n_others <= lines, name
        assert n_cells == n_grid + 2 * sum(len(t.y) for t in points) + lines, name


def test_figures_of_a_saved_result_are_those_of_the_result(result, every, tmp_path):
    loaded = Result.load(result.save(tmp_path / "result"))
    again = figures(loaded)
    for name, drawn in every.items():
        assert again[name].to_json() == drawn.to_json(), name
    assert describe(loaded) == describe(result)


def nasty() -> dict[str, Result]:
    """Results whose every text of a model or user is markup of some kind."""
    sweep, edge, scope, path = heads_at_positions(), edges(), patchscope(6, 6, texts=list(NASTY)), path_sets()
    for one in ("clean_token", "corrupt_token"):
        sweep.data.coords[one] = ("position", np.array([NASTY[i % len(NASTY)] for i in range(len(TOKENS))]))
    scope.data.attrs |= {"source_token": "<i>%{z} $x$", "target_token": "<i>", "mapping": "<i>"}
    mediated, spanned, ablated = mediation(), spans(), ablation()
    for one in ("token", "other_token"):
        mediated.data.coords[one] = sweep.data["clean_token"].variable
    spanned = Result(spanned.kind, spanned.data.assign_coords(span=list(NASTY[:3])), where_from())
    path.data.coords["set_name"] = ("set", np.array(NASTY[:3]))
    for one in (sweep, edge, path, spanned, ablated):
        one.data.attrs["metric"] = "<i>%{z} $x$"
    return {"sweep": sweep, "edges": edge, "scope": scope, "path": path, "mediation": mediated, "spans": spanned,
            "ablation": ablated}  # fmt: skip


@pytest.mark.parametrize("name", ["sweep", "edges", "scope", "path", "mediation", "spans", "ablation"])
def test_texts_of_a_model_are_never_markup(name):
    for which, drawn in figures(nasty()[name]).items():
        text = drawn.to_json().replace("\\u003c", "<").replace("\\u003e", ">")
        for markup in ("<i>", "<b>bold", "</script>", "$", '&amp;"'):
            assert markup not in text, (which, markup)
        for trace in drawn.data:
            assert "%{z}" not in (trace.hovertemplate or ""), which


# --- sweeps ---------------------------------------------------------------------------------------------


def test_of_heads_at_positions_the_strongest_position_is_drawn_and_named():
    result = made("sweep, heads at positions")
    data = result.data.transpose("pair", "layer", "head", "position")
    mean, control = data["mean_effect"].values, data["control_effect"].mean("pair").values
    drawn = figures(result)
    (cells,) = grids(drawn["effect"])
    at = np.abs(mean).argmax(-1)
    for layer, head in ((9, 6), (5, 2), (0, 0)):
        assert cells.z[layer, head] == pytest.approx(mean[layer, head, at[layer, head]], rel=1e-5)
        assert unescape(cells.hovertext[layer, head]).startswith(f"at position {at[layer, head]} '")
    assert at[9, 6] == 13 and "layer 9, head 6 at position 13 ' to': 0.79" in under(drawn["effect"])
    own, theirs = grids(drawn["control"])
    most = np.abs(control).argmax(-1)
    np.testing.assert_allclose(theirs.z, np.take_along_axis(control, most[..., None], -1)[..., 0], rtol=1e-5)
    np.testing.assert_array_equal(own.z, cells.z)
    names = [line.split(" %")[0] for line in cells.hovertemplate.split("<br>")]
    for word in ("mean effect", "mean metric", "control effect", "p", "largest control over positions"):
        assert word in names, names


def test_the_strongest_heads_have_a_row_by_position_in_the_order_of_layers():
    result = made("sweep, heads at positions")
    drawn = figures(result)["positions"]
    (cells,) = grids(drawn)
    assert len(cells.y) == 24 and "The strongest 24 of 270 heads" in under(drawn)
    for label in ("9.6", "5.2", "20.0"):
        layer, head = map(int, label.split("."))
        row = result.data["mean_effect"].sel(layer=layer, head=head).values
        np.testing.assert_allclose(cells.z[list(cells.y).index(label)], row, rtol=1e-5)
    keys = [tuple(map(int, label.split("."))) for label in cells.y]
    assert keys == sorted(keys)
    assert cells.x[9] == "9 ' John'→' Mary'"


def test_positions_that_correspond_to_nothing_are_grey_and_the_alignment_is_said():
    drawn = main("sweep, unequal lengths")
    (cells,) = grids(drawn)
    assert np.isnan(cells.z[:, 3:5]).all() and np.isfinite(np.delete(cells.z, [3, 4], 1)).all()
    assert cells.x[3] == "3 ∅→' John'" and "12 of 14 positions" in under(drawn) and "Grey" in under(drawn)


def test_spans_are_columns_by_name_and_stay_apart_where_long_names_are_cut():
    (cells,) = grids(main("sweep, spans"))
    assert list(cells.x)[:2] == ["first name", "second name"]
    names = ["the words before the name", "the words before the verb", "the words before the end"]
    same = spans()
    (cells,) = grids(figure(Result(same.kind, same.data.assign_coords(span=names), where_from())))
    assert list(cells.x) == [
        "the words before the na…",
        "the words before the ve…",
        "the words before the end",
    ]
    names = [f"{'the words before'} the verb number {i}" for i in range(3)]
    (cells,) = grids(figure(Result(same.kind, same.data.assign_coords(span=names), where_from())))
    assert len(set(cells.x)) == 3 and cells.x[1] == "the words before the ve… (2)"


# --- bars -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["attribution", "edges", "paths", "ablation, heads"])
def test_bars_are_the_strongest_cells_with_interval_control_and_the_largest_control_of_all(name):
    result = made(name)
    data, drawn = result.data, figures(result)["top"]
    mean = data["mean_effect"].values
    over = "pair" if "pair" in data.dims else "prompt"
    control = data["control_effect"].mean(over).values
    order = np.argsort(-np.abs(np.nan_to_num(mean)), axis=None, kind="stable")[:20]
    at = np.unravel_index(order[::-1], mean.shape)
    bar, marks = named(drawn, "effect"), named(drawn, "control")
    np.testing.assert_allclose(bar.x, mean[at], rtol=1e-5)
    np.testing.assert_allclose(
        bar.x + bar.error_x.array, data["effect_high"].values[at], rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        bar.x - bar.error_x.arrayminus, data["effect_low"].values[at], rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(marks.x, control[at], rtol=1e-4, atol=1e-6)
    most = np.nanmax(np.abs(control))
    assert [shape.x0 for shape in drawn.layout.shapes] == pytest.approx([-most, most])
    assert f"strongest 20 of {np.isfinite(mean).sum():,}" in under(drawn)


def test_all_sets_of_senders_are_bars_and_nothing_is_said_of_a_choice():
    drawn = main("paths, sets")
    bar = named(drawn, "effect")
    assert list(bar.y) == ["3.mlp+4.mlp", "10.1", "9.6+9.7"]  # the first is drawn at the bottom
    assert "All 3 sets of senders" in under(drawn) and "chosen" not in under(drawn)
    assert "into logits" in drawn.layout.title.text


def test_cells_of_no_effect_have_no_bar():
    result = path_sets()
    result.data["mean_effect"][1] = 0
    assert list(named(figure(result), "effect").y) == ["3.mlp+4.mlp", "9.6+9.7"]
    result.data["mean_effect"][:] = 0
    assert len(named(figure(result), "effect").y) == 0 and "None differs from 0" in describe(result)["top"]


# --- attribution, edges, paths --------------------------------------------------------------------------


def test_recheck_draws_the_cells_that_were_patched_and_says_how_well_they_agree():
    result = made("attribution")
    drawn = figures(result)["recheck"]
    (points,) = drawn.data
    data = result.data
    exact = data["exact_effect"].mean("pair").values
    at = np.nonzero(np.isfinite(exact))
    assert len(points.x) == 40
    np.testing.assert_allclose(points.x, data["mean_effect"].values[at], rtol=1e-5)
    np.testing.assert_allclose(points.y, exact[at], rtol=1e-5)
    assert points.text[list(zip(*at, strict=True)).index((9, 6))] == "layer 9, head 6"
    assert "rank correlation 0.97 [0.9, 0.99] (p 0.001)" in under(drawn) and "40 of 270 cells" in under(drawn)
    assert drawn.layout.xaxis.range == drawn.layout.yaxis.range
    ((row, x, y), *_) = tables(drawn)[0].rows
    assert row == points.text[0] and (
        float(x.replace("−", "-")),
        float(y.replace("−", "-")),
    ) == pytest.approx((points.x[0], points.y[0]), rel=1e-2)


def test_correlations_that_do_not_exist_are_said_not_to():
    result = attribution()
    result.summary["recheck"] |= {"spearman": None, "spearman_p": None, "spearman_interval": None}
    assert "rank correlation not defined," in under(figures(result)["recheck"])


def test_each_of_several_kinds_has_its_own_figures_with_the_heads_it_has():
    result = made("attribution, two kinds")
    drawn = figures(result)
    assert list(drawn) == ["effect_q", "control_q", "top_q", "effect_k", "control_k", "top_k", "recheck"]
    (q,), (k,) = grids(drawn["effect_q"]), grids(drawn["effect_k"])
    np.testing.assert_allclose(q.z, result.data["mean_effect_q"], rtol=1e-5)
    np.testing.assert_allclose(k.z, result.data["mean_effect_k"], rtol=1e-5)
    assert len(k.x) == 3 and "key-value head 1" in under(drawn["effect_k"])
    assert [trace.name for trace in drawn["recheck"].data] == ["q"]


def test_estimates_say_that_they_are_and_how_they_were_made():
    drawn = main("attribution")
    assert "estimated effect" in drawn.layout.title.text
    assert "First-order estimate of denoising patches: mean gradient over 5 inputs" in under(drawn)


def test_edges_are_those_of_the_strongest_senders_and_receivers_in_the_order_of_the_pass():
    result = made("edges")
    drawn = figure(result)
    (cells,) = grids(drawn)
    expected = result.data["mean_effect"].sel(sender=list(cells.y), receiver=list(cells.x))
    np.testing.assert_allclose(cells.z, expected, rtol=1e-5)
    order = [list(result.data["sender"].values).index(name) for name in cells.y]
    assert order == sorted(order) and {"a9.h6", "a5.h2", "m3"} <= set(cells.y)
    assert "40 of 301 senders and 40 of 61 receivers" in under(drawn)
    assert "a9.h6 → logits: 0.3" in under(drawn)
    assert "change of the metric %{customdata[1]" in cells.hovertemplate


def test_a_small_graph_is_drawn_whole():
    data = edges().data.isel(sender=slice(0, 12), receiver=slice(0, 5))
    drawn = figure(Result("edge_attribution", data, where_from()))
    assert "All 12 senders and 5 receivers" in under(drawn)


def test_paths_name_senders_and_receivers_in_short():
    drawn = main("paths")
    (cells,) = grids(drawn)
    assert list(cells.x) == [*map(str, range(9)), "mlp"]
    assert unescape(drawn.layout.title.text).startswith("Path patching into 20.6 q, 21.1 q: effect on")
    assert "sender 9.6: 0.6" in under(drawn) and "other heads held, MLPs recomputed" in under(drawn)
    for given, short in (
        ("logits", "logits"), ("blocks.7.hook_mlp_out", "7 mlp_out"), ("blocks.*.attn.hook_v", "* v"),
        ("['blocks.1.attn.hook_q', ('blocks.2.attn.hook_k', 0)]", "1 q, 2.0 k"),
        (str([("blocks.1.attn.hook_q", h) for h in range(4)]), "4 receivers"),
    ):  # fmt: skip
        result = paths()
        result.data.attrs["receivers"] = given
        assert unescape(figure(result).layout.title.text).startswith(f"Path patching into {short}: "), given


# --- ablation, knock-out --------------------------------------------------------------------------------


def test_heads_of_each_kind_of_site_are_layer_by_head():
    result = made("ablation, heads of two sites")
    drawn = figures(result)
    for part in ("z", "q"):
        (cells,) = grids(drawn[f"effect_{part}"])
        sites = [f"blocks.{layer}.attn.hook_{part}" for layer in range(LAYERS)]
        np.testing.assert_allclose(cells.z, result.data["mean_effect"].sel(site=sites), rtol=1e-5)
    assert drawn["effect_z"].layout.coloraxis.colorbar.title.text == "change of the metric"
    assert "layer 9, head 6: −2" in under(drawn["effect_z"]) and "mean metric of the base run 3.5" in under(
        drawn["effect_q"]
    )


def test_rows_are_layers_whatever_the_order_of_the_sites():
    result = made("ablation, heads")
    turned = Result(
        result.kind, result.data.isel(site=slice(None, None, -1)), result.provenance, result.summary
    )
    (one,), (other,) = grids(figure(result)), grids(figure(turned))
    np.testing.assert_array_equal(one.z, other.z)
    np.testing.assert_array_equal(one.y, other.y)


def test_few_kinds_of_site_are_lines_with_interval_and_control():
    result = made("ablation, sites")
    drawn = figure(result)
    for part in ("attn_out", "mlp_out"):
        at = result.data.sel(site=[f"blocks.{layer}.hook_{part}" for layer in range(LAYERS)])
        for end, variable in (
            ("", "mean_effect"), (", low", "effect_low"), (", high", "effect_high"),
            (", control", "mean_control_effect"), (", control, low", "control_effect_low"),
        ):  # fmt: skip
            np.testing.assert_allclose(named(drawn, part + end).y, at[variable], rtol=1e-5)
        assert named(drawn, f"{part}, control").line.dash == "dash"


def test_many_kinds_of_site_are_a_grid():
    result = made("ablation, many sites")
    (cells,) = grids(figure(result))
    assert list(cells.x) == ["attn_out", "mlp_out", "resid_pre", "resid_post"]
    wanted = result.data["mean_effect"].sel(site="blocks.7.hook_resid_pre")
    assert cells.z[7, 2] == pytest.approx(float(wanted), rel=1e-5)


def test_windows_are_a_line_over_their_first_layers():
    result = made("knockout")
    drawn = figure(result)
    line = named(drawn, "knock-out")
    np.testing.assert_array_equal(line.x, np.arange(26))
    np.testing.assert_allclose(line.y, result.data["mean_effect"], rtol=1e-5)
    assert line.text[12] == "layers 12–16" and "window of 5" in drawn.layout.xaxis.title.text
    assert "queries last to keys [1, 3]" in under(drawn) and "2 edges (2 in the control)" in under(drawn)
    assert "strongest at layers 12, 13, 14, 15, 16" in describe(result)["effect"]


def test_sets_of_layers_are_points_side_by_side():
    drawn = main("knockout, sets")
    assert list(named(drawn, "knock-out").x) == ["1 2 9", "12 13 14", "25"]
    assert drawn.layout.scattermode == "group" and named(drawn, "control").error_y.array is not None


# --- back-patching, patchscope --------------------------------------------------------------------------


def test_back_patching_shows_prompts_first_wrong_with_the_forward_null_below_the_diagonal():
    result = made("back-patching")
    drawn, one = figure(result), result.data.sel(group="first wrong")
    own, other = grids(drawn)
    for s, t in ((20, 5), (29, 0), (3, 2)):
        assert own.z[s, t] == pytest.approx(float(one["pair_rate"][s, t]))
        assert own.z[t, s] == pytest.approx(float(one["forward_pair_rate"][t, s]))
        assert other.z[s, t] == pytest.approx(float(one["control_pair_rate"][s, t]))
    assert np.isnan(np.diagonal(own.z)).all() and np.isnan(other.z[np.triu_indices(LAYERS)]).all()
    rate = one["pair_rate"].values
    s, t = np.unravel_index(np.nanargmax(rate), rate.shape)
    assert f"source {s} → target {t}" in under(drawn) and "first wrong, n = 30" in under(drawn)
    boxes = {(b.x0, b.y0) for b in drawn.layout.shapes}
    assert boxes == {(t - 0.5, s - 0.5)}


def test_the_oracle_stands_beside_the_same_maximum_of_both_nulls():
    result = made("back-patching")
    drawn = figures(result)["oracle"]
    assert [label.split("<br>")[0] for label in drawn.data[0].x] == ["first wrong", "all", "first right"]
    for trace, name in zip(drawn.data, ("oracle", "control", "forward"), strict=True):
        values = result.data[f"{name}_rate"].sel(group=["first wrong", "all", "first right"])
        np.testing.assert_allclose(trace.y, values, rtol=1e-6)
    assert "maximum over 435 pairs, the nulls' too" in under(drawn)
    assert "minus other prompt's stream" in under(drawn)


def test_groups_without_prompts_are_left_out_and_all_are_shown_where_none_was_wrong():
    result = back_patching(n=8, layers=4)
    group = result.data["group"].values == "first wrong"
    result.data["n"][group] = 0
    drawn = figures(result)
    assert "Prompts: all, n = 8" in under(drawn["pairs"])
    assert [label.split("<br>")[0] for label in drawn["oracle"].data[0].x] == ["all", "first right"]


def test_where_no_pair_works_nothing_is_outlined():
    result = back_patching(n=8, layers=4)
    for name in ("pair_rate", "forward_pair_rate", "control_pair_rate"):
        result.data[name] = result.data[name] * 0
    assert len(figure(result).layout.shapes) == 0 and "No pair of layers works" in describe(result)["pairs"]


def test_patchscope_has_the_whole_text_in_its_hover_and_the_first_token_where_it_fits():
    result = made("patchscope, small")
    drawn = figure(result)
    (cells,) = grids(drawn)
    said = unescape(cells.hovertext[5, 3]).replace("<br>", "")
    assert said.startswith(repr(str(result.data["text"].values[5, 3])))
    assert f"{result.data['top_probability'].values[5, 3, 0]:.3f}" in said
    (texts,) = [t for t in drawn.data if t.type == "scatter"]
    assert unescape(texts.text[0]).replace("·", " ") == str(result.data["top_token"].values[0, 0, 0]).replace(
        "\n", "\\n"
    )
    wide = main("patchscope")
    assert [t.type for t in wide.data] == ["heatmap"]
    n = int((result.data["text"] != result.data["unpatched_text"]).sum())
    assert f"differs from the unpatched one in {n} of 64 cells" in under(drawn)


def test_long_texts_are_cut_with_an_ellipsis_and_stay_within_the_budget():
    result = patchscope(60, 60, texts=["word " * 200, "other " * 200, "x", "y"])
    for drawn in figures(result).values():
        assert len(drawn.to_json()) < 2_000_000
    assert all(
        text.endswith("…'") or "…'<br>" in text or len(text) < 99
        for text in figure(result).data[0].hovertext.flat
    )


def test_cells_whose_text_names_the_thing_are_outlined_and_counted_beside_the_control():
    result = made("patchscope, decoded")
    drawn = figures(result)
    decoded = result.data["decoded"].values
    boxes = {(int(b.y0 + 0.5), int(b.x0 + 0.5)) for b in drawn["texts"].layout.shapes}
    assert boxes == set(map(tuple, np.argwhere(decoded).tolist()))
    assert f"{decoded.sum()} of 900 cells (control 0): 'Paris' or 'France'" in under(drawn["texts"])
    np.testing.assert_allclose(named(drawn["decoded"], "the stream").y, decoded.mean(1), rtol=1e-6)
    assert not named(drawn["decoded"], "control").y.any()


# --- all for one, subspaces, mediation ------------------------------------------------------------------


def test_a_search_is_a_grid_of_wait_and_peek_with_the_smallest_outlined():
    result = made("all-for-one search, small")
    drawn = figure(result)
    (cells,) = grids(drawn)
    np.testing.assert_allclose(cells.z, result.data["faithfulness"], rtol=1e-6)
    assert {(b.x0, b.y0) for b in drawn.layout.shapes} == {(1.5, 3.5)}  # wait 4, peek 2
    (texts,) = [t for t in drawn.data if t.type == "scatter"]
    assert [t for t in texts.text if t.startswith("<b>")] and all(
        (float(t.strip("<b>/")) >= 0.95) == t.startswith("<b>") for t in texts.text if t
    )
    np.testing.assert_allclose(cells.customdata[..., 2], np.repeat(cells.z[:, :1], 9, 1), rtol=1e-6)
    large = main("all-for-one search")
    (dots,) = [t for t in large.data if t.type == "scatter"]
    assert sum(t == "•" for t in dots.text) == int((np.nan_to_num(grids(large)[0].z) >= 0.95).sum())


def test_where_no_subgraph_keeps_enough_nothing_is_outlined():
    result = made("all-for-one search, nothing found")
    drawn = figures(result)
    assert list(drawn) == ["grid"] and len(drawn["grid"].layout.shapes) == 0
    assert "No cell keeps 0.95" in under(drawn["grid"])


def test_the_smallest_subgraph_is_shown_on_prompts_that_did_not_choose_it():
    drawn = drawn_of("all-for-one search")["smallest"]
    np.testing.assert_allclose(drawn.data[0].y, [0.98, 0.12, 0.3], rtol=1e-6)
    assert "80 answered prompts that did not choose it" in under(drawn)


def test_points_have_their_intervals_and_tables_too():
    for name, values, ends in (
        ("das", "accuracy", ("accuracy_low", "accuracy_high")),
        ("all for one", "faithfulness", ("faithfulness_low", "faithfulness_high")),
    ):
        data, drawn = made(name).data, main(name)
        (points,) = drawn.data
        np.testing.assert_allclose(points.y, data[values], rtol=1e-6)
        np.testing.assert_allclose(points.y - points.error_y.arrayminus, data[ends[0]], rtol=1e-5)
        np.testing.assert_allclose(points.y + points.error_y.array, data[ends[1]], rtol=1e-5)
        assert drawn.layout.yaxis.range == (-0.02, 1.02)
        assert "[" in tables(drawn)[0].rows[0][1]


def test_subspaces_stand_beside_no_intervention_at_all_and_may_be_others():
    drawn = main("das")
    assert [shape.y0 for shape in drawn.layout.shapes] == [0.03] and "random (control)" in drawn.data[0].x
    data = das().data.assign_coords(subspace=["given", "pca", "random", "whole"]).drop_vars("loss")
    given = figures(Result("das", data, where_from(), {}))
    assert list(given) == ["accuracy"] and given["accuracy"].data[0].x[0] == "given"


def test_components_share_one_colour_range():
    result = made("mediation")
    most = float(np.abs(result.data["mean_effect"]).max())
    for drawn in figures(result).values():
        assert drawn.layout.coloraxis.cmax == pytest.approx(most, rel=1e-5)
    (cells,) = grids(figure(result))
    np.testing.assert_allclose(cells.z, result.data["mean_effect"].sel(component="mlp_out"), rtol=1e-5)
    assert "layer 20, position 13 ' to': 1.8" in under(figure(result)) and "total effect 5.5 nats" in under(
        figure(result)
    )
    for word in ("relative form", "|P(r) − P*(r)|", "95 % interval", "p %"):
        assert word in cells.hovertemplate, word


# --- circuits, neurons ----------------------------------------------------------------------------------


def test_circuits_have_both_measures_beside_the_range_of_random_ones():
    result = made("circuits")
    data, drawn = result.data, figure(result)
    for name, axis in (("faithfulness", None), ("completeness", "y2")):
        line, random = named(drawn, name), named(drawn, f"{name}, random circuits")
        np.testing.assert_allclose(line.y, data[f"mean_{name}"], rtol=1e-5)
        np.testing.assert_allclose(named(drawn, f"{name}, high").y, data[f"{name}_high"], rtol=1e-5)
        each = data[f"random_{name}"].mean("pair")
        np.testing.assert_allclose(random.y, each.mean("random"), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(
            named(drawn, f"{name}, random circuits, low").y, each.min("random"), rtol=1e-4, atol=1e-6
        )
        assert (line.yaxis if axis else None) == axis and random.line.dash == "dash"
    assert drawn.layout.xaxis.type == drawn.layout.xaxis2.type == "log"
    assert named(drawn, "faithfulness").text[8] == "450 edges after pruning, 330 nodes, p 0.0909"
    assert "0.8 first at 500 edges (450 after pruning)" in under(drawn)


def test_a_circuit_without_edges_has_a_place_on_the_log_axis():
    data = circuits().data.assign_coords(size=[0, *circuits().data["size"].values[1:]])
    drawn = figure(Result("circuit", data, where_from()))
    assert named(drawn, "faithfulness").x[0] == 0.5
    assert "No random circuits" in control_statement(Result("circuit", data, where_from()))


def test_the_first_neurons_are_those_of_largest_value_beside_each_ones_largest_control():
    result = made("neurons, head silenced")
    drawn, data = figures(result)["top"], result.data
    bar, marks = named(drawn, "effect"), named(drawn, "control")
    mean = data["mean_comparative"].values
    assert bar.y[-1] == "20.117" and bar.y[-2] == "22.4" and "21.50" not in bar.y  # the last is negative
    np.testing.assert_allclose(bar.x, np.sort(mean, axis=None)[-20:], rtol=1e-5)
    control = data["mean_control_comparative"].values
    there = control[:, 20, 117]
    assert marks.x[-1] == pytest.approx(there[np.abs(there).argmax()], rel=1e-5)
    most = np.abs(control).max()
    assert [shape.x0 for shape in drawn.layout.shapes] == pytest.approx([-most, most])
    assert "of 46,080 neurons" in under(drawn)


def test_shares_of_layers_add_up_to_one_and_so_do_those_of_the_control():
    for name in ("neurons", "neurons, head silenced"):
        drawn = main(name)
        for trace in drawn.data:
            assert trace.y.sum() == pytest.approx(1, rel=1e-5)
    share = np.abs(made("neurons").data["mean_importance"]).sum("neuron")
    np.testing.assert_allclose(named(main("neurons"), "importance").y, share / share.sum(), rtol=1e-5)


def test_the_silenced_head_is_outlined_among_the_scores_of_all():
    drawn = drawn_of("neurons, head silenced")["heads"]
    assert {(b.x0, b.y0) for b in drawn.layout.shapes} == {(1.5, 16.5)}
    assert "Silenced: head 17.2 (largest mean score on these prompts)" in under(drawn)


def test_ablated_neurons_stand_beside_random_draws_in_both_measures():
    result = made("neuron ablation")
    given, random, *_ = figure(result).data
    one = result.data.sel(measure="log_probability")
    assert given.y[0] == pytest.approx(float(one["mean_effect"]), rel=1e-5)
    draws = one["mean_control_effect"]
    assert random.y[0] == pytest.approx(float(draws.mean()), rel=1e-5)
    assert random.y[0] - random.error_y.arrayminus[0] == pytest.approx(float(draws.min()), rel=1e-4)
    assert "p 0.0476" in under(figure(result))


# --- results of the methods themselves ------------------------------------------------------------------

CLEAN = [[50, 51, 52, 53, 54, 55], [50, 61, 62, 63, 64, 65]]
CORRUPT = [[50, 51, 72, 53, 54, 75], [50, 61, 82, 63, 84, 65]]
OTHERS = [[50, 40, 52, 53, 41, 55], [50, 61, 42, 63, 43, 65]]
LOGITS = wb.LogitDifference(7, 9)
SUMS = [[1, a, o, b, 12] for a in range(20, 23) for o in (10, 11) for b in range(20, 23)]


def run(name: str) -> Result:
    """A method on a tiny model."""
    from workbench import patching
    from workbench.patching.all_for_one import all_for_one, search
    from workbench.patching.circuit_run import circuit_curves
    from workbench.patching.mediation import mediation
    from workbench.patching.neurons import ablate_neurons, comparative, importance

    model = tiny_model("llama")
    pair = (model, CLEAN, CORRUPT)
    said = model.logits(SUMS)[:, -1].argmax(-1).tolist()
    match name:
        case "sweep":
            return patching.sweep(*pair, LOGITS)
        case "heads at positions":
            return patching.sweep(*pair, LOGITS, kind="z", by="head_position")
        case "attribution":
            return patching.attribution(*pair, LOGITS, kind=["z", "k", "mlp_out"], recheck=5)
        case "attribution, one kind":
            return patching.attribution(
                *pair, LOGITS, kind="z", by="head_position", recheck="all", integrate=2
            )
        case "edges":
            return patching.edges(*pair, LOGITS)
        case "paths":
            return patching.path_patch(*pair, LOGITS, [("blocks.2.attn.hook_q", 1)])
        case "sets":
            return patching.path_patch(*pair, LOGITS, senders=[[(0, 1), (1, "mlp")], [(1, 0)]])
        case "ablation":
            return patching.ablate(model, CLEAN, "blocks.*.attn.hook_z", LOGITS, heads="each", how="zero")
        case "sites":
            return patching.ablate(model, CLEAN, "blocks.*.hook_mlp_out", LOGITS, how="mean")
        case "knockout":
            return patching.knockout(model, CLEAN, LOGITS, queries="last", keys=[1, 2], window=2)
        case "back-patching":
            return patching.back_patch(model, CLEAN, [7, 9], positions=2)
        case "patchscope":
            return patching.patchscope(
                model, CLEAN[0], CORRUPT[0], source_position=3, target_position=-1, max_new_tokens=3
            )
        case "all for one":
            return all_for_one(model, SUMS, said, wait=1, peek=1, n_least=2)
        case "search":
            return search(model, SUMS, said, keep=0.2, n_least=2)
        case "das":
            words = ([*CLEAN, *OTHERS], [*CORRUPT, *CORRUPT], [7, 9, 7, 9])
            return patching.das(model, *words, site="blocks.1.hook_resid_post", steps=3, rank=2)
        case "mediation":
            return mediation(model, CLEAN, CORRUPT, [7, 8], [9, 11], same_result=OTHERS)
        case "circuit":
            return circuit_curves(*pair, LOGITS, patching.edges(*pair, LOGITS), n_random=3)
        case "neurons":
            return importance(model, CLEAN, [7, 8])
        case "comparative":
            return comparative(model, CLEAN, [7, 8])
        case "neuron ablation":
            return ablate_neurons(model, CLEAN, [7, 8], [(1, 3), (2, 5)], n_control=4)
    raise AssertionError(name)


RUNS = [
    "sweep", "heads at positions", "attribution", "attribution, one kind", "edges", "paths", "sets", "ablation", "sites",
    "knockout", "back-patching", "patchscope", "all for one", "search", "das", "mediation", "circuit", "neurons",
    "comparative", "neuron ablation",
]  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_what_the_methods_return_can_be_drawn_and_said(name):
    result = run(name)
    drawn, words = figures(result), describe(result)
    assert list(drawn) == list(words) and control_statement(result)
    for which, one in drawn.items():
        assert "tiny-llama · n = " in under(one), which
        assert all(table.rows for table in tables(one)), which
        assert "nan" not in (under(one) + words[which] + control_statement(result)).lower(), which


@pytest.mark.parametrize("name", ["attribution", "back-patching", "circuits", "neurons", "patchscope"])
def test_a_report_has_every_figure(name, tmp_path):
    report = write_report(tmp_path, made(name), {}, drawn_of(name)).read_text()
    assert report.count('data-figure="figure-') == len(drawn_of(name))
    for text in describe(made(name)).values():
        assert escape(text, quote=False) in report.replace("&#x27;", "'")


@pytest.mark.parametrize("name", ["sweep", "edges", "paths", "ablation", "sites", "knockout", "mediation"])
def test_the_cell_that_a_figure_names_is_the_summarys_strongest(name):
    result = run(name)
    strongest = result.summary["strongest"]
    words = " ".join((under(figure(result)), *describe(result).values()))
    numbers = [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?(?:e-\d+)?", words.replace("−", "-"))]
    assert min(abs(n - strongest["effect"]) for n in numbers) < 1e-3
    for key in ("layer", "head", "position", "sender", "receiver", "first_layer"):
        if key in strongest:
            assert re.search(rf"(?<!\d){strongest[key]}(?!\d)", words), key
