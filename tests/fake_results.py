"""Results of every kind with made-up numbers: the shapes and sizes of real ones, no model needed."""

from __future__ import annotations

import numpy as np
import xarray as xr

from workbench.provenance import Provenance
from workbench.results import Result, array

PROMPT = "When| Mary| and| John| went| to| the| store|,| John| gave| a| drink| to"
TOKENS = PROMPT.split("|")
AWKWARD = ["<b>bold</b>", " &amp;", "\n", "%{z}", "</script><script>alert(1)</script>", " $x$", "é", " "]
NAMES = (" Mary", " John", " the", " store", ",", " a", "\n", " drink", "<|im_end|>", " unbelievably")


def where_from(**more: object) -> Provenance:
    """Provenance as an analysis writes it."""
    return Provenance(
        model={
            "name": "smollm2-135m",
            "fingerprint": "f1e2d3c4",
            "n_layers": 30,
            "dtype": "float32",
            "device": "cpu",
        },
        inputs={"sha256": "0" * 64, "n_prompts": 1, "n_tokens": 14},
        seed=7,
        versions={"torch": "2.13.0", "latent-workbench": "0.1.0"},
        created="2026-11-22T01:45:12+00:00",
        seconds={"analysis": 1.234},
        python="3.11.7",
        processor="Linux x86_64",
        **more,
    )


def lens(
    n_layers: int = 30,
    tokens: list[str] | None = None,
    depth: int | None = 24,
    top_k: int = 5,
    awkward: bool = False,
) -> Result:
    """A logit lens whose target is top-1 at the last position from layer `depth` on."""
    tokens = tokens or TOKENS
    rng = np.random.default_rng(0)
    n = len(tokens)
    dims = ("layer", "position")
    p = np.sort(rng.dirichlet(np.full(top_k + 1, 0.5), size=(n_layers, n)), axis=-1)[:, :, ::-1][:, :, :top_k]
    names = np.array(AWKWARD if awkward else NAMES)
    top = names[rng.integers(0, len(names), size=(n_layers, n, top_k))]
    rank = rng.integers(2, 3_000, size=(n_layers, n))
    rank[3, -1] = 1  # on top once, but not to stay
    if depth is not None:
        rank[depth:, -1] = 1
        rank[depth - 1, -1] = 2
        top[depth:, -1, 0] = " Mary"
    data = xr.Dataset(
        {
            "top_token": array((*dims, "k"), top.astype(str)),
            "top_id": array((*dims, "k"), rng.integers(0, 49_152, size=top.shape).astype(np.int32)),
            "top_probability": array((*dims, "k"), p.astype(np.float32)),
            "entropy": array(
                dims, np.linspace(9, 0.5, n_layers)[:, None] + rng.random((n_layers, n)), units="nats"
            ),
            "kl_to_final": array(dims, np.linspace(12, 0, n_layers)[:, None] * rng.random((n_layers, n))),
            "target_rank": array(dims, rank.astype(np.int32)),
            "target_probability": array(dims, rng.random((n_layers, n))),
            "control_rank": array(dims, rng.uniform(15_000, 30_000, size=(n_layers, n))),
        },
        coords={
            "layer": np.arange(n_layers),
            "position": np.arange(n),
            "token": ("position", np.array(tokens, dtype=str)),
        },
        attrs={"target": " Mary", "target_id": 6, "d_vocab": 49_152, "n_control": 32},
    )
    summary = {"target": " Mary", "position": n - 1, "depth": depth, "n_layers": n_layers}
    return Result("logit_lens", data, where_from(), summary)


def patching(kind: str = "resid_pre", n_pairs: int = 1, control: bool = True, n_columns: int = 14) -> Result:
    """A patching sweep; the strongest cell is layer 8, column 9 with -1.25."""
    rng = np.random.default_rng(1)
    column = "head" if kind == "z" else "position"
    n_columns = 9 if kind == "z" else n_columns
    dims, shape = ("layer", column), (30, n_columns)
    effect = np.clip(rng.normal(0, 0.15, size=(n_pairs, *shape)), -0.9, 0.9)
    at = min(9, n_columns - 1)
    effect[:, 8, at] = -1.25
    mean = effect.mean(0)
    low, high = (mean - 0.1, mean + 0.1) if n_pairs > 1 else (np.full(shape, np.nan),) * 2
    variables = {
        "metric": array(("pair", *dims), 6 * effect - 2, long_name="logit(' Mary') − logit(' John')"),
        "effect": array(("pair", *dims), effect),
        "mean_effect": array(dims, mean),
        "effect_low": array(dims, low),
        "effect_high": array(dims, high),
        "clean_metric": array(("pair",), np.full(n_pairs, 4.0)),
        "corrupt_metric": array(("pair",), np.full(n_pairs, -2.0)),
    }
    if control:
        variables["control_effect"] = array(("pair", *dims), rng.normal(0, 0.1, size=effect.shape))
    coords: dict[str, object] = {"pair": np.arange(n_pairs), "layer": np.arange(30)}
    if kind == "z":
        coords["head"] = np.arange(n_columns)
    else:
        clean = (TOKENS * (n_columns // len(TOKENS) + 1))[:n_columns]
        corrupt = [" Mary" if i == at else token for i, token in enumerate(clean)]
        coords |= {"position": np.arange(n_columns), "clean_token": ("position", np.array(clean))}
        coords["corrupt_token"] = ("position", np.array(corrupt))
    attrs = {
        "kind": kind,
        "direction": "denoising",
        "metric": "logit(' Mary') − logit(' John')",
        "n_pairs": n_pairs,
        "control": "wrong source: the same run at deranged positions" if control else "not run",
    }
    summary = {"kind": kind, "strongest": {"layer": 8, column: at, "effect": -1.25}, "n_pairs": n_pairs}
    return Result("patching_sweep", xr.Dataset(variables, coords, attrs), where_from(), summary)


def probes(first: str = "layer", n_positions: int = 0, controls: bool = True) -> Result:
    """A probe sweep over 30 layers (or 6 named sites), best in the middle."""
    rng = np.random.default_rng(2)
    n = 30 if first == "layer" else 6
    shape = (n, n_positions, 2) if n_positions else (n, 2)
    dims = (first, "position", "probe") if n_positions else (first, "probe")
    rise = 0.5 + 0.45 * np.sin(np.linspace(0.1, 2.6, n)) ** 2
    auc = rise.reshape(-1, *[1] * (len(shape) - 1)) - np.array([0, 0.04]) + rng.normal(0, 0.01, size=shape)
    if n_positions:
        auc -= 0.02 * np.abs(np.arange(n_positions) - 1)[None, :, None]
    accuracy = 0.55 * auc + 0.4
    variables = {
        "auc": array(dims, auc),
        "auc_low": array(dims, auc - 0.04),
        "auc_high": array(dims, np.minimum(auc + 0.03, 1)),
        "accuracy": array(dims, accuracy),
        "log_loss": array(dims, 1 - auc),
    }
    if controls:
        variables["control_auc"] = array(dims, 0.5 + rng.normal(0, 0.015, size=shape))
        variables["control_auc_high"] = array(dims, variables["control_auc"][1] + 0.05)
        variables["selectivity"] = array(
            dims, accuracy - 0.51, long_name="accuracy minus that on permuted labels"
        )
    coords: dict[str, object] = {"probe": ["logistic", "mass_mean"]}
    coords[first] = np.arange(n) if first == "layer" else [f"blocks.{i}.hook_mlp_out" for i in range(n)]
    if n_positions:
        coords["position"] = np.arange(n_positions) + 3
    attrs = {
        "n": 480,
        "n_positive": 240,
        "positive": "true",
        "majority_accuracy": 0.5,
        "folds": 5,
        "grouped": True,
        "n_groups": 120,
        "control": "labels permuted over groups within folds, 5 times" if controls else "none",
    }
    return Result("probe_sweep", xr.Dataset(variables, coords, attrs), where_from(), {"n": 480})


def steering(n_prompts: int = 12, random: bool = True, text: bool = False) -> Result:
    """A dose–response over seven strengths; steered moves the score by 0.4 per unit, random does not."""
    rng = np.random.default_rng(3)
    strengths = np.array([-8.0, -4.0, -2.0, 0.0, 2.0, 4.0, 8.0])
    names = ["steered", "random"] if random else ["steered"]
    slopes = np.array([0.4, 0.02])[: len(names)]
    dims = ("direction", "strength", "prompt")
    score = slopes[:, None, None] * strengths[None, :, None] - 1 + rng.normal(0, 0.5, size=(1, 1, n_prompts))
    score = score + rng.normal(0, 0.1, size=(len(names), len(strengths), n_prompts))
    score[:, 3] = score[:1, 3]
    kl = (
        (strengths[None, :, None] ** 2)
        * (slopes[:, None, None] + 0.05)
        * rng.uniform(0.05, 0.2, size=n_prompts)
    )
    mean = score.mean(-1)
    variables = {
        "score": array(dims, score, long_name="logit(' good') − logit(' bad')", units="nats"),
        "kl": array(dims, kl, units="nats"),
        "mean_score": array(dims[:2], mean),
        "score_low": array(dims[:2], mean - 0.3),
        "score_high": array(dims[:2], mean + 0.3),
    }
    if text:
        texts = np.array([f"<i>said</i> {i}" for i in range(score.size)]).reshape(score.shape)
        variables["text"] = array(dims, texts)
    coords = {
        "direction": names,
        "strength": strengths,
        "prompt": np.arange(n_prompts),
        "prompt_text": ("prompt", np.array([f"The film was {i}" for i in range(n_prompts)])),
    }
    attrs = {
        "direction": "positive (vs negative)",
        "site": "blocks.14.hook_resid_post",
        "control": "mean of 5 random directions of the same norm",
        "n_prompts": n_prompts,
    }
    return Result(
        "dose_response", xr.Dataset(variables, coords, attrs), where_from(), {"n_prompts": n_prompts}
    )


def of_every_kind() -> dict[str, Result]:
    """One typical result of each kind."""
    return {r.kind: r for r in (lens(), patching(), probes(), steering())}
