"""Results of patching methods made by hand, of realistic size and with all that a figure may meet."""

from __future__ import annotations

from functools import cache
from html import unescape

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from fake_results import TOKENS, where_from

from dashboards.figures import figures
from workbench.results import Result, array

LAYERS, HEADS = 30, 9
METRIC = "logit(' Mary') − logit(' John')"


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
