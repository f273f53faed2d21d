"""Comparative neuron analysis (CNA): which neurons turn what a head brings into the answer?

    Imp(l,k)   = log p(t | r_l + v_{l,k}) - log p(t | r_l)        importance of neuron k of block l, in nats
    s_h        = (p(t) - p_h(t)) / p(t)                           score of head h: p_h with its output zeroed
    CNA(l,k)   = Imp(l,k) - Imp_{without h}(l,k)                  comparative importance

r_l is the stream after the attention of block l at the last token, v_{l,k} the neuron's value there (input of the down
projection times its column). Neurons are sorted by CNA: first those that add most to the answer, and only while the
head is there. In blocks below the head's CNA is 0.

How p is read off a stream that is not the last is a choice. The reference holds the scale of the final norm at that of
the original run's last stream, in both runs and in all blocks (`freeze=True`, the default): early streams are short, so
they are read as if they were nearly nothing, and values of all blocks are on one scale. With `freeze=False` each stream
is normed by its own scale, as in a logit lens; importances of early blocks are then larger. The two agree on neither
sizes nor order.

Control of the comparison: other heads of the same block, drawn by a seed, silenced alike. A neuron whose CNA is no
larger than theirs depends on the block's attention at large or on any disturbance there. Control of the importance
alone: the same neuron's importance for a random other token.

Yu & Ananiadou 2024 (2409.14144, EMNLP 2024) and, for Imp, 2024 (2312.12141). What differs: biases of the final norm
and of the unembedding count; with parallel blocks and with norms behind the MLP, too, r_l + Σ_k v_{l,k} + bias is the
stream after the block. How all neurons are worked out at once: `neurons_importance`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

import numpy as np

from workbench.errors import DataError
from workbench.model.language_model import LanguageModel
from workbench.model.tokens import Prompt
from workbench.patching.mediation_answers import Tokens
from workbench.patching.neurons_ablation import ablate_neurons
from workbench.patching.neurons_heads import Head, check_head, log_p_without_heads, log_probability
from workbench.patching.neurons_importance import NEURONS_PER_CALL, Run, importances
from workbench.patching.neurons_outcome import listed, over_prompts, overlaps, top_neurons
from workbench.patching.neurons_work import Work
from workbench.patching.replay import TOKENS_PER_CALL, Replay
from workbench.progress import Progress, Silent
from workbench.results import Result, array

__all__ = ["ablate_neurons", "comparative", "importance", "top_neurons"]

TOP = 99
"""Neurons that a summary takes together; as many as the paper ablates (unverified)."""
DIMS = ("layer", "neuron")


def importance(
    model: LanguageModel,
    prompts: Prompt | Sequence[Prompt],
    answers: Tokens,
    *,
    freeze: bool = True,
    layers: Sequence[int] | int | None = None,
    top: int | None = None,
    seed: int = 0,
    neurons_per_call: int = NEURONS_PER_CALL,
    progress: Progress | None = None,
) -> Result:
    """Importance of every neuron for the answer, at the last token.

    Args:
        model: the language model; each block has one MLP (no routed experts).
        prompts: one or several, of any lengths.
        answers: exactly one token each; one for all prompts, or one per prompt.
        freeze: hold the final norm's scale at that of the run's last stream; see the module's text.
        layers: which blocks; all by default.
        top: how many neurons the summary takes together; None: 99, or all where there are fewer.
        seed: of the control's token and the bootstrap.
        neurons_per_call: rows of d_vocab numbers held at once. Results do not depend on it.
        progress: one item a prompt, then one a block.

    Returns:
        A `Result` of kind `neuron_importance`: `importance` [prompt, layer, neuron] in nats, float32 (float64 where the
        model is), with `mean_importance`, `importance_se`, `importance_low`, `importance_high` over prompts; the same
        of `control_importance`, for a random token that is not the answer; `log_p` [prompt] of the answer and
        `correct`. `summary["top_neurons"]` are the first ones, `summary["top_share"]` is the share of the summed |mean|
        that the first `top` hold.

    Raises:
        SiteError: routed experts, or blocks whose outputs are not what is added to the stream.
        ModelError: a norm, unembedding or down projection that is not known to be what it seems (quantised weights).
        MetricError: an answer that is not one token. DataError: unknown layers, or fewer neurons than `top`.

    Example:
        >>> result = importance(model, "The capital of France is", " Paris")
        >>> result.data["mean_importance"].sel(layer=20, neuron=117)
    """
    progress, started = progress or Silent(), time.perf_counter()
    work = Work(model, prompts, answers, layers, freeze)
    rng = np.random.default_rng(seed)
    also = [int((t + rng.integers(1, model.vocab_size)) % model.vocab_size) for t in work.targets]
    runs = []
    progress.stage("run prompts", len(work.batches))
    for i in range(len(work.batches)):
        runs.append(work.base(i, Replay(model, work.batches[i])))
        progress.advance()
    progress.stage("neurons", len(work.blocks))
    own, other = importances(
        work.readout, work.blocks, runs, neurons_per_call=neurons_per_call, progress=progress, also=also
    )
    assert other is not None
    what = "log p(answer) with the neuron's value − without, nats"
    variables = over_prompts("importance", own.numpy(), DIMS, what, seed)
    variables |= over_prompts(
        "control_importance", other.numpy(), DIMS, f"control, a random token: {what}", seed
    )
    data = work.dataset(variables, {"control": "importance for a random other token"})
    n = min(TOP, data["mean_importance"].size) if top is None else top
    summary = work.summary() | listed(data, "importance", n, ["control_importance"])
    return work.result(data, summary, seed, started, {"control_tokens": also})


def comparative(
    model: LanguageModel,
    prompts: Prompt | Sequence[Prompt],
    answers: Tokens,
    *,
    head: Head | Literal["strongest"] = "strongest",
    control_heads: int = 3,
    freeze: bool = True,
    layers: Sequence[int] | int | None = None,
    top: int | None = None,
    seed: int = 0,
    neurons_per_call: int = NEURONS_PER_CALL,
    tokens_per_call: int = TOKENS_PER_CALL,
    progress: Progress | None = None,
) -> Result:
    """How much each neuron's importance depends on one attention head.

    Args:
        model, prompts, answers, freeze, layers, top, neurons_per_call: as in `importance`.
        head: `(block, head)`; or the one of largest mean score s_h, chosen on these very prompts (so its own score is a
            maximum over all heads; the others' stand beside it).
        control_heads: how many other heads of its block are silenced for comparison; fewer where there are fewer. Each
            costs about as much as the head itself. 0: no control.
        seed: of the control heads and the bootstrap.
        tokens_per_call: tokens in one replayed batch. Results do not depend on it.
        progress: one item a prompt for the heads, one a prompt for the runs, then one a block.

    Returns:
        A `Result` of kind `neuron_importance`. [prompt, layer, neuron]: `importance`, `importance_without_head` and
        their difference `comparative`, each with `mean_X`, `X_se`, `X_low`, `X_high` over prompts. [prompt,
        control_head, layer, neuron]: `control_comparative`, with its mean. [prompt, head_layer, head]: `head_score`,
        with the same four. [prompt]: `log_p` of the answer and `correct`. `summary`: `head` with its mean score and
        rank, the first neurons, the share of the summed |mean comparative| in the first `top`; of the control heads
        that share in their own first `top`, and how many of those are the same neurons (with what chance would give).

    Raises:
        As `importance`. DataError: a head that does not exist, or no head of the block that could be the control.

    Example:
        >>> result = comparative(model, prompts, answers, head=(17, 2))
        >>> ablate_neurons(model, prompts, answers, top_neurons(result, 50)).summary
    """
    progress, started = progress or Silent(), time.perf_counter()
    work = Work(model, prompts, answers, layers, freeze)
    given = None if isinstance(head, str) and head == "strongest" else check_head(model, head)  # type: ignore[arg-type]
    every = [(layer, h) for layer in range(model.n_layers) for h in range(model.n_heads)]
    scores = []
    progress.stage("heads", len(work.batches))
    for batch, target in zip(work.batches, work.targets, strict=True):
        replay = Replay(model, batch)
        without = log_p_without_heads(replay, every, target, tokens_per_call)
        own = log_probability(replay.logits, target)
        scores.append(-np.expm1((without - own).numpy()).reshape(model.n_layers, model.n_heads))
        progress.advance()
    score = np.stack(scores)
    ranked = np.argsort(-score.mean(0), axis=None, kind="stable")
    layer, number = given if given is not None else every[int(ranked[0])]
    if all(block.layer < layer for block in work.blocks):
        raise DataError(
            f"All layers asked for lie below block {layer} of head {layer}.{number}, where neurons do not depend "
            f"on it. Give layers from {layer} on, or None for all."
        )
    others = _other_heads(model, (layer, number), control_heads, seed)
    silent = [(layer, number), *((layer, h) for h in others)]
    runs: list[Run] = []
    progress.stage("silence heads", len(work.batches))
    for i, batch in enumerate(work.batches):
        replay = Replay(model, batch)  # once more, rather than to keep those of all prompts
        base = work.base(i, replay)
        runs += [base, *work.without(replay, silent, base, tokens_per_call)]
        progress.advance()
    progress.stage("neurons", len(work.blocks))
    flat, _ = importances(
        work.readout, work.blocks, runs, neurons_per_call=neurons_per_call, progress=progress
    )
    found = flat.reshape(len(work.batches), 1 + len(silent), *flat.shape[1:]).numpy()
    below = np.array([block.layer < layer for block in work.blocks])
    found[:, 1:, below] = found[:, :1, below]
    drop = found[:, :1] - found[:, 1:]

    what = "log p(answer) with the neuron's value − without, nats"
    score_what = "(p − p without the head) / p"
    variables = over_prompts("importance", found[:, 0], DIMS, what, seed)
    variables |= over_prompts("importance_without_head", found[:, 1], DIMS, f"without the head: {what}", seed)
    variables |= over_prompts(
        "comparative", drop[:, 0], DIMS, "importance − importance without the head", seed
    )
    dims = ("control_head", *DIMS)
    label = "control: importance − importance without the control head"
    variables["control_comparative"] = array(("prompt", *dims), drop[:, 1:], long_name=label)
    variables["mean_control_comparative"] = array(dims, drop[:, 1:].mean(0), long_name=f"mean {label}")
    variables |= over_prompts("head_score", score, ("head_layer", "head"), score_what, seed)
    attrs: dict[str, object] = {
        "silenced_head": f"{layer}.{number}",
        "head_chosen": "largest mean score on these prompts" if given is None else "given",
        "control": f"{len(others)} other heads of block {layer}, silenced alike" if others else "not run",
    }
    data = work.dataset(variables, attrs).assign_coords(
        control_head=np.array(others, dtype=int),
        head_layer=np.arange(model.n_layers),
        head=np.arange(model.n_heads),
    )
    possible = int((~below).sum()) * found.shape[-1]
    n = min(TOP, possible) if top is None else top
    mean = data["mean_comparative"].values
    summary = work.summary() | {
        "head": [layer, number],
        "head_score": round(float(score.mean(0)[layer, number]), 4),
        "head_rank": f"{1 + int(np.flatnonzero(ranked == layer * model.n_heads + number)[0])} of {len(every)}",
        "control_heads": others,
        "control_head_scores": [round(float(score.mean(0)[layer, h]), 4) for h in others],
        **listed(data, "comparative", n, ["importance", *(["control_comparative"] if others else [])]),
    }
    if others:
        summary |= overlaps(mean, data["mean_control_comparative"].values, n, possible)
    return work.result(data, summary, seed, started, {})


def _other_heads(model: LanguageModel, head: Head, n: int, seed: int) -> list[int]:
    free = [h for h in range(model.n_heads) if h != head[1]]
    if n < 0 or (n and not free):
        raise DataError(
            f"{n} control heads were asked for, and block {head[0]} has {len(free)} others: give control_heads=0 for "
            "none."
        )
    rng = np.random.default_rng(seed)
    return sorted(int(h) for h in rng.choice(free, min(n, len(free)), replace=False)) if n else []
