"""Attention knock-out: block edges from some positions to others in a window of layers, and see what the answer does.

Blocking the edge query q -> key k is setting its attention score to minus infinity before the softmax. As a pattern is
p[q, k] = e[q, k] / Σ_j e[q, j], that is the same as zeroing its entry and scaling what is left of the row:

    p'[q, k] = 0                                 k in B(q), the blocked keys
    p'[q, k] = p[q, k] / Σ_{j not in B(q)} p[q, j]       elsewhere         (`renormalise`, the default)

With `renormalise=False` the row is not scaled, so the head writes less. With `to_bos=True` the blocked weight goes to
position 0 instead: p'[q, 0] = p[q, 0] + Σ_{j in B(q)} p[q, j].

    effect = metric(knocked out) - metric(base)          below 0 where the blocked edges help the metric

An edge is one that some layer of the window has: with a sliding window of attention a query does not see all keys
before it. What it sees is read from the base run (keys with attention above 0 in some head).

Control: in each prompt as many other edges of the same queries, drawn by a seed from the keys that query may look at
and that are not blocked. Where a query has fewer of those all of them are taken; `n_control_edges` says how many.

Source: Geva et al. 2023 (2304.14767), attention knockout. There the window stands around a layer and is cut at both
ends of the model; here each is whole, and named by its first and last layer. The control is not in the paper.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.errors import DataError, ModelError, PositionError
from workbench.model.language_model import LanguageModel
from workbench.model.tokens import Prompt, TokenBatch, at_least_one
from workbench.patching.effects import effect_variables, resolved_metrics, strongest
from workbench.patching.metrics import Metric
from workbench.patching.replay import TOKENS_PER_CALL, Entry, Replay
from workbench.progress import Progress, Silent
from workbench.provenance import provenance
from workbench.results import Result, array

Spans = Literal["last", "all"] | int | Sequence[int] | Sequence[Sequence[int]]
"""Positions: the same for all prompts (negative ones count from the end), or one list for each prompt."""


def block_edges(
    pattern: Tensor, blocked: Tensor, *, renormalise: bool = True, to_bos: bool = False
) -> Tensor:
    """A pattern without some of its edges.

    Args:
        pattern: [..., query, key] softmaxed attention; the queries are the last ones of the keys' positions.
        blocked: bool, of the pattern's shape or one that expands to it; True at edges to block.
        renormalise: scale what is left of a row to its old sum (exactly a score of minus infinity).
        to_bos: give the blocked weight to position 0 instead; `renormalise` then has no say.

    Raises:
        PositionError: a row of which nothing is left; the message names the query.
        ModelError: rows that do not sum to 1 (a softmax with sinks), of which the scale cannot be known.

    Example:
        >>> p = torch.tensor([[1.0, 0.0], [0.75, 0.25]])
        >>> block_edges(p, torch.tensor([[False, False], [True, False]]))
        tensor([[1., 0.], [0., 1.]])
    """
    blocked = blocked.to(pattern.device).expand_as(pattern)
    left = pattern.masked_fill(blocked, 0.0)
    if to_bos:
        left[..., 0] += (pattern - left).sum(-1)
        return left
    if not renormalise:
        return left
    touched = blocked.any(-1)
    total, share = pattern.sum(-1), left.sum(-1)
    if ((total - 1).abs() > 0.05)[touched].any():
        raise ModelError(
            "Attention rows do not sum to 1 (a softmax with sinks?), so blocking by renormalising would not be exact. "
            "Use renormalise=False, which only zeroes the blocked edges."
        )
    if ((share <= 0) & touched).any():
        at = int(((share <= 0) & touched).nonzero()[0, -1])
        raise PositionError(
            f"Query {pattern.shape[-1] - pattern.shape[-2] + at} has no attention left: all keys it attends to are "
            "blocked. Block fewer keys, or send the weight to position 0 with to_bos=True."
        )
    return torch.where(touched[..., None], left / share.where(touched, 1.0)[..., None], pattern)


def knockout(
    model: LanguageModel,
    prompts: Prompt | Sequence[Prompt],
    metric: Metric | Sequence[Metric],
    *,
    queries: Spans,
    keys: Spans,
    layers: Literal["windows"] | Sequence[Sequence[int]] = "windows",
    window: int = 1,
    heads: Sequence[int] | None = None,
    renormalise: bool = True,
    to_bos: bool = False,
    control: bool = True,
    seed: int = 0,
    tokens_per_call: int = TOKENS_PER_CALL,
    progress: Progress | None = None,
) -> Result:
    """Block the attention of `queries` to `keys` in each window of layers, and measure what the answer does.

    Args:
        model: the language model.
        prompts: one or several, of any lengths.
        metric: logits -> number (see `metrics`); one for all prompts, or one per prompt.
        queries: who may not look: `"last"`, `"all"`, a position, a list of them, or one list for each prompt.
        keys: what they may not look at, in the same words. Keys after a query are no edges and do not count; a query
            that is its own key loses that edge too.
        layers: `"windows"` (every `window` neighbouring layers, one by one) or the sets of layers, one cell each.
        window: layers in a window; 1 by default, the paper takes about a tenth to a fifth of the layers.
        heads: query heads whose edges are blocked; all by default.
        renormalise: scale what is left of each row to sum 1 (default: as a score of minus infinity); False only zeroes.
        to_bos: the blocked weight goes to position 0, whatever stands there, instead of to what is left of the row.
            So a query may lose all its keys; edges to position 0 stay as they are.
        control: also block random edges (doubles the time).
        seed: of the control's edges and the bootstrap.
        tokens_per_call: tokens in one replayed batch. Results do not depend on it.
        progress: where to report, one item per prompt.

    Returns:
        A `Result` of kind `knockout`: dims `prompt` and `window` (coords `first_layer`, `last_layer`); variables
        `metric`, `effect`, `control_effect`, `base_metric`, `n_edges`, `n_control_edges` (prompt, window), and over
        prompts `mean_effect`, `stderr`, `effect_low`, `effect_high` (95 % bootstrap) and the same of the control.

    Raises:
        PositionError: a position outside a prompt, no edge to block, or a query of which nothing would be left.
        DataError: layers, heads or a window the model does not have.
        PromptError, MetricError: prompts or metrics that cannot be used.

    Example:
        >>> prompt = "When Mary and John went to the store, John gave a drink to"
        >>> metric = wb.LogitDifference(" Mary", " John")
        >>> knockout(model, prompt, metric, queries="last", keys=[1, 3], window=5).summary["strongest"]
    """
    progress, started = progress or Silent(), time.perf_counter()
    batches = [model.batch(prompt) for prompt in at_least_one(prompts)]
    functions, metric_name = resolved_metrics(model, metric, len(batches))
    windows = _windows(layers, window, model.n_layers)
    if heads is not None and (not len(heads) or not all(0 <= h < model.n_heads for h in heads)):
        raise DataError(f"Heads {list(heads)} were asked for, but {model.name} has 0–{model.n_heads - 1}.")
    asks = positions_of(queries, batches, "queries")
    gives = positions_of(keys, batches, "keys")
    edges = [_edges(*item) for item in zip(asks, gives, batches, strict=True)]
    where = torch.zeros(model.n_heads, 1, 1, dtype=torch.bool)
    where[list(range(model.n_heads)) if heads is None else list(heads)] = True

    base, values, counts = [], [], []
    patterns = [f"blocks.{i}.attn.hook_pattern" for i in sorted({i for some in windows for i in some})]
    progress.stage("attention knock-out", len(batches))
    for i, batch in enumerate(batches):
        replay = Replay(model, batch, read=patterns)
        seen = {int(n.split(".")[1]): (replay.activations[n] > 0).any(0).cpu() for n in patterns}
        start = replay.starts(min(asks[i]))
        blocked, others = [], []
        for chosen in windows:
            visible = torch.stack([seen[layer] for layer in chosen])
            blocked.append(edges[i] & visible.any(0))
            if not (to_bos or not renormalise):
                _something_left(blocked[-1], visible, batch)
            others.append(_other_edges(blocked[-1], visible.any(0), np.random.default_rng([seed, i]), to_bos))
        if not any(bool(edge.any()) for edge in blocked):
            raise PositionError(
                f"No edge to block in prompt {i}: in no layer do the queries {asks[i]} see the keys {gives[i]} "
                "(a sliding window of attention?). Give keys nearer to the queries, or other layers."
            )
        counts.append([[int(edge.sum()) for edge in some] for some in (blocked, others)])
        entries = [
            _entry(replay, chosen, edge[start:] & where, start, renormalise, to_bos)
            for some in ([blocked, others] if control else [blocked])
            for edge, chosen in zip(some, windows, strict=True)
        ]
        row = np.empty(len(entries))
        for part, logits in replay.logits_in_parts(entries, start, tokens_per_call=tokens_per_call):
            row[part] = functions[i](logits).float().cpu().numpy()
        base.append(float(functions[i](replay.logits[None])[0]))
        values.append(row.reshape(-1, len(windows)))
        progress.advance()

    stacked = np.stack(values)
    variables = effect_variables(
        np.array(base), stacked[:, 0], stacked[:, 1] if control else None, ("window",), metric_name, seed
    )
    n_edges = np.array(counts)
    variables["n_edges"] = array(("prompt", "window"), n_edges[:, 0])
    if control:
        variables["n_control_edges"] = array(("prompt", "window"), n_edges[:, 1])
    data = xr.Dataset(
        variables,
        coords={
            "prompt": np.arange(len(batches)),
            "window": np.arange(len(windows)),
            "first_layer": ("window", [min(w) for w in windows]),
            "last_layer": ("window", [max(w) for w in windows]),
            "layers": ("window", np.array([" ".join(map(str, w)) for w in windows])),
        },
        attrs={
            "metric": metric_name,
            "queries": str(queries),
            "keys": str(keys),
            "heads": "all" if heads is None else str(list(heads)),
            "blocked": "weight to position 0" if to_bos else "renormalised" if renormalise else "zeroed",
            "control": "random other edges of the same queries" if control else "not run",
            "n_prompts": len(batches),
        },
    )
    summary = {
        "base_metric": round(float(np.mean(base)), 4),
        "n_prompts": len(batches),
        "n_edges": int(data["n_edges"].max("window").sum()),
        "strongest": strongest(data, {"first_layer": "window", "last_layer": "window"}),
    }
    ids = [batch.ids[0].tolist() for batch in batches]
    made = provenance(model, tokens=ids, seed=seed, seconds={"knockout": time.perf_counter() - started})
    return Result("knockout", data, made, summary)


def positions_of(spans: Spans, batches: Sequence[TokenBatch], name: str) -> list[list[int]]:
    """Absolute positions for each prompt. Raises `PositionError`; `name` is what its message calls them."""
    if spans == "last":
        spans = -1
    nested = not isinstance(spans, (str, int, np.integer)) and not all(
        isinstance(item, (int, np.integer)) for item in spans
    )
    if not nested:
        return [sorted(set(batch.resolve(0, spans))) for batch in batches]  # type: ignore[arg-type]
    if len(spans) != len(batches):  # type: ignore[arg-type]
        raise PositionError(
            f"{name} has {len(spans)} lists of positions for {len(batches)} prompts: give one list for each prompt, "  # type: ignore[arg-type]
            "or one list of positions for all."
        )
    return [sorted(set(b.resolve(0, list(s)))) for b, s in zip(batches, spans, strict=True)]  # type: ignore[arg-type]


def _windows(layers: Literal["windows"] | Sequence[Sequence[int]], window: int, n: int) -> list[list[int]]:
    if isinstance(layers, str):
        if layers != "windows":
            raise DataError(f"layers {layers!r} is not known: give 'windows', or lists of layers.")
        if not 1 <= window <= n:
            raise DataError(f"A window of {window} layers does not fit a model of {n}: give 1 to {n}.")
        return [list(range(first, first + window)) for first in range(n - window + 1)]
    if any(isinstance(some, (int, np.integer)) for some in layers):
        raise DataError(
            f"layers {list(layers)} are numbers: give lists of layers, one cell each, such as [[0, 1]]."
        )
    chosen = [sorted({int(i) for i in some}) for some in layers]
    if not chosen or not all(some and some[0] >= 0 and some[-1] < n for some in chosen):
        raise DataError(f"layers {chosen} cannot be blocked: give lists of layers, each from 0 to {n - 1}.")
    return chosen


def _edges(asks: list[int], gives: list[int], batch: TokenBatch) -> Tensor:
    """[query, key] of the whole prompt, True at what is blocked."""
    length = batch.lengths[0]
    blocked = torch.zeros(length, length, dtype=torch.bool)
    for query in asks:
        blocked[query, [key for key in gives if key <= query]] = True
    if not blocked.any():
        raise PositionError(
            f"No edge to block: none of the keys {gives} is at or before one of the queries {asks}. Attention looks "
            "back only; give keys before the queries."
        )
    return blocked


def _something_left(blocked: Tensor, visible: Tensor, batch: TokenBatch) -> None:
    """Raise where a layer ([layer, query, key] of `visible`) would be left with nothing for a query."""
    gone = blocked.any(-1) & ~(visible & ~blocked).any(-1)
    if gone.any():
        query = int(gone.nonzero()[0, -1])
        raise PositionError(
            f"Query {query} ({batch.tokens[0][query]!r}) has nothing left to attend to: all keys up to it that it sees "
            "are blocked. Block fewer keys, or send the weight to position 0 with to_bos=True."
        )


def _other_edges(blocked: Tensor, visible: Tensor, rng: np.random.Generator, to_bos: bool) -> Tensor:
    """As many other edges of the same queries, as far as they have any."""
    chosen = torch.zeros_like(blocked)
    for query in blocked.any(-1).nonzero().flatten().tolist():
        free = (visible[query] & ~blocked[query]).nonzero().flatten().tolist()
        free = [key for key in free if key or not to_bos]
        n = min(len(free), int(blocked[query].sum()))
        chosen[query, rng.choice(free, n, replace=False).astype(int) if n else []] = True
    return chosen


def _entry(
    replay: Replay, layers: Sequence[int], blocked: Tensor, start: int, renormalise: bool, to_bos: bool
) -> Entry:
    """A row that joins at the first layer of its window. `blocked`: [head, query, key]."""

    def edit(pattern: Tensor) -> Tensor:
        return block_edges(pattern, blocked, renormalise=renormalise, to_bos=to_bos)

    first = min(layers)
    return Entry(first, replay.inputs[first][start:], {f"blocks.{i}.attn.hook_pattern": edit for i in layers})
