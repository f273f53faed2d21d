"""Logit lens: decode the residual stream after every block with the model's own readout.

    logits_l[t] = W_U N(h_l[t])            N = the model's final norm, W_U = its unembedding

with h_l = `blocks.l.hook_resid_post`, followed by whatever the model does to its logits (Gemma 2's soft
cap). For the last block these are the model's own logits, which is checked on every call. Reported per
layer and position:

    top-k tokens and probabilities          p = softmax(logits_l[t])
    entropy                                  -sum p ln p                                   in nats
    KL to the final distribution             KL(p_final || p_l) = sum p_final ln(p_final / p_l)   in nats
    rank of a chosen token                   1 + #{v : logit_v > logit_token}              1 = top
    control: median rank of random tokens    the same for `n_control` different tokens drawn with `seed`

The lens is nostalgebraist's (2020), "interpreting GPT: the logit lens". A rank without the control says
little: with a biased readout any frequent token may rank high.
"""

from __future__ import annotations

import time

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from workbench.errors import MetricError, ModelError, PromptError
from workbench.model.language_model import LanguageModel
from workbench.model.tokens import Positions, Prompt, token_texts
from workbench.progress import Progress, Silent
from workbench.provenance import provenance
from workbench.results import Result, array


def logit_lens(
    model: LanguageModel,
    prompt: Prompt,
    *,
    target: str | int | None = None,
    positions: Positions = "all",
    top_k: int = 5,
    n_control: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """Decode every layer at every position of one prompt.

    Args:
        model: the language model.
        prompt: text, chat or token ids.
        target: token whose rank and probability are followed (text of exactly one token, or its id). Without
            it, the model's own top token at the last of the decoded positions.
        positions: which positions to decode; all by default.
        top_k: how many tokens to keep per cell.
        n_control: random tokens whose median rank is the control; of a smaller vocabulary all.
        seed: for drawing them.
        progress: where to report, one item per layer.

    Returns:
        A `Result` of kind `logit_lens` with dims `layer`, `position`, `k` and variables `top_token`,
        `top_id`, `top_probability`, `entropy`, `kl_to_final`, `target_rank`, `target_probability`,
        `control_rank` (the attribute `n_control` says of how many tokens). `summary["depth"]` is the first
        layer from which the target stays top-1 at the last decoded position (None if it never does).

    Raises:
        PromptError, PositionError, MetricError: bad prompt (or several), position, target, `top_k` or `n_control`.
        ModelError: the readout does not reproduce the model's logits on this architecture, or these are not numbers.

    Example:
        >>> lens = wb.lens.logit_lens(model, "The capital of France is", target=" Paris")
        >>> lens.summary["depth"]
    """
    progress = progress or Silent()
    started = time.perf_counter()
    for option, value, most in (("top_k", top_k, model.vocab_size), ("n_control", n_control, None)):
        if value < 1 or (most is not None and value > most):
            raise MetricError(
                f"{option} is {value}: give at least 1"
                + (f", at most the {most} tokens there are." if most else ".")
            )
    batch = model.batch(prompt)
    if len(batch) > 1:
        raise PromptError(
            f"The logit lens decodes one prompt, but {len(batch)} were given: call it for each."
        )
    chosen = batch.resolve(0, positions)
    target_id = model.token_id(target) if target is not None else None
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(model.n_layers)]
    with model.hooks(read=names, select=lambda value, _site: value[0, chosen]) as session:
        final_logits = model.forward(batch).logits[0, chosen].float()
    _check_readout(model, session[names[-1]], final_logits)
    if target_id is None:
        target_id = int(final_logits[-1].argmax())
    final = final_logits.log_softmax(-1)
    generator = torch.Generator().manual_seed(seed)
    control = torch.randperm(model.vocab_size, generator=generator)[:n_control].to(final.device)

    progress.stage("logit lens", model.n_layers)
    columns: dict[str, list[Tensor]] = {}
    for name in names:
        for key, value in _decode(model, session[name], final, target_id, control, top_k).items():
            columns.setdefault(key, []).append(value.cpu())
        progress.advance()
    layers = {key: torch.stack(values) for key, values in columns.items()}
    return _result(
        model, batch, chosen, layers, target_id, target, len(control), seed, time.perf_counter() - started
    )


def _decode(
    model: LanguageModel,
    resid: Float[Tensor, "position d_model"],
    final: Float[Tensor, "position d_vocab"],
    target: int,
    control: Tensor,
    top_k: int,
) -> dict[str, Tensor]:
    """One layer: what its residual stream decodes to, at each position."""
    logits = model.readout(resid).float().to(final.device)
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    top = log_p.topk(top_k, dim=-1)
    target_logit = logits[:, target]
    control_logits = logits[:, control]
    ranks = torch.stack([(logits > control_logits[:, [i]]).sum(-1) + 1 for i in range(len(control))], dim=-1)
    return {
        "top_id": top.indices,
        "top_probability": top.values.exp(),
        "entropy": -(p * log_p).sum(-1),
        "kl_to_final": (final.exp() * (final - log_p)).sum(-1).clamp(min=0),
        "target_rank": (logits > target_logit[:, None]).sum(-1) + 1,
        "target_probability": p[:, target],
        "control_rank": _median(ranks),
    }


def _median(ranks: Tensor) -> Tensor:
    """Over the last axis; of an even number the mean of the two in the middle (torch's own takes the lower)."""
    n, ordered = ranks.shape[-1], ranks.sort(dim=-1).values.float()
    return (ordered[..., (n - 1) // 2] + ordered[..., n // 2]) / 2


def _check_readout(model: LanguageModel, resid: Tensor, own: Tensor) -> None:
    """The last layer's lens must be the model's own output."""
    decoded = model.readout(resid).float().to(own.device)
    scale = own.abs().max().clamp(min=1.0)
    if not bool(own.isfinite().all()):
        raise ModelError(
            f"The logits of {model.name} are not finite (NaN or infinity) on this prompt: look for broken weights, or "
            "load it with dtype='float32' where float16 is too narrow."
        )
    error = float((decoded - own).abs().max() / scale)
    tolerance = 1e-4 if model.dtype in (torch.float32, torch.float64) else 3e-2
    if not error <= tolerance:
        raise ModelError(
            f"The readout of {model.name} ({model.catalog.map.architecture}) does not give its own logits from the "
            f"last residual stream (relative difference {error:.1e}): this architecture changes the stream after "
            "its last block in a way we do not know, so a lens would mislead."
        )


def _result(model, batch, chosen, layers, target_id, target, n_control, seed, seconds) -> Result:
    tokens = [batch.tokens[0][p] for p in chosen]
    dims = ("layer", "position")
    shown = sorted({target_id, *layers["top_id"].unique().tolist()})
    texts = [str(i) for i in shown] if model.tokenizer is None else token_texts(model.tokenizer, shown)
    vocabulary = dict(zip(shown, texts, strict=True))
    top_token = np.vectorize(vocabulary.__getitem__, otypes=[object])(layers["top_id"].numpy())
    target_token = vocabulary[target_id]
    ids = batch.ids[0, : batch.lengths[0]].tolist()
    data = xr.Dataset(
        {
            "top_token": array((*dims, "k"), top_token.astype(str), long_name="decoded token"),
            "top_id": array((*dims, "k"), layers["top_id"].to(torch.int32), long_name="token id"),
            "top_probability": array((*dims, "k"), layers["top_probability"], long_name="probability"),
            "entropy": array(dims, layers["entropy"], units="nats", long_name="entropy"),
            "kl_to_final": array(dims, layers["kl_to_final"], units="nats", long_name="KL(final || layer)"),
            "target_rank": array(
                dims, layers["target_rank"].to(torch.int32), long_name=f"rank of {target_token!r}"
            ),
            "target_probability": array(dims, layers["target_probability"], long_name=f"p({target_token!r})"),
            "control_rank": array(
                dims, layers["control_rank"], long_name=f"median rank of {n_control} random tokens"
            ),
        },
        coords={
            "layer": np.arange(model.n_layers),
            "position": np.array(chosen),
            "token": ("position", np.array(tokens, dtype=str)),
        },
        attrs={
            "target": target_token,
            "target_id": target_id,
            "target_chosen_by": "user"
            if target is not None
            else "the model's own top token at the last of the decoded positions",
            "d_vocab": model.vocab_size,
            "n_control": n_control,
        },
    )
    ranks = layers["target_rank"][:, -1]
    depth = _depth(ranks)
    summary = {
        "target": target_token,
        "position": chosen[-1],
        "depth": depth,
        "n_layers": model.n_layers,
        "final_rank": int(ranks[-1]),
        "final_probability": round(float(layers["target_probability"][-1, -1]), 4),
        "control_rank_last_layer": float(layers["control_rank"][-1, -1]),
    }
    where = provenance(model, tokens=[ids], seed=seed, seconds={"logit_lens": seconds})
    return Result("logit_lens", data, where, summary)


def _depth(ranks: Tensor) -> int | None:
    """First layer from which on the rank is 1 in every layer."""
    is_top = (ranks == 1).tolist()
    if not is_top[-1]:
        return None
    depth = len(is_top) - 1
    while depth > 0 and is_top[depth - 1]:
        depth -= 1
    return depth
