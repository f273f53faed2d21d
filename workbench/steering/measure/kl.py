"""How far steering moves the next-token distribution.

    KL_t = sum_x p(x | t) ln( p(x | t) / q(x | t) )      p: unsteered model, q: steered model, in nats

    last    KL at the prompt's last token: what the first new token is drawn from
    along   mean of KL_t over the positions that predict the tokens of the *unsteered* continuation (the prompt's
            last token, and all continuation tokens but the last), both models reading the same tokens

`along` is per token. It sees what steering does once the model has begun to speak, without letting the two texts part
ways; of an empty continuation it is `last`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workbench.errors import DataError
from workbench.model.language_model import LanguageModel
from workbench.progress import Progress
from workbench.steering.intervention import Where
from workbench.steering.measure.rows import LOGITS_PER_BATCH, TOKENS_PER_BATCH, Dose, for_each_row


@dataclass(frozen=True)
class KL:
    """KL(unsteered || steered) in nats.

    Attributes:
        last: [dose, prompt] at the prompt's last token.
        along: [dose, prompt] mean along the unsteered continuation.
    """

    last: np.ndarray
    along: np.ndarray


def kl_divergence(unsteered: Tensor, steered: Tensor) -> Tensor:
    """KL of two sets of logits [..., d_vocab] -> [...] float64, in nats; rounding below 0 is cut off.

    In float64, since weak steering is a small difference of 50,000 terms. A token that the unsteered model cannot say
    (logit -inf) adds nothing.

    Example:
        >>> kl_divergence(torch.zeros(2), torch.tensor([0.0, 0.0]))
        tensor(0., dtype=torch.float64)
    """
    p, q = unsteered.double().log_softmax(-1), steered.double().log_softmax(-1)
    return torch.where(p == -torch.inf, 0.0, p.exp() * (p - q)).sum(-1).clamp(min=0)


def kl_of_doses(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    doses: Sequence[Dose],
    *,
    where: Where = "all",
    also: Callable[[int, int, Tensor], None] | None = None,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    progress: Progress | None = None,
) -> KL:
    """KL of every dose on every prompt.

    Args:
        model: the language model.
        prompts: token ids of each prompt.
        continuations: what the unsteered model says after each (`generate(...).tokens`); may be empty.
        doses: directions and strengths; those of strength 0 give exactly 0.
        where: position rule.
        also: called with (dose, prompt, [d_vocab] logits at the prompt's last token) of every row, so that a metric
            needs no pass of its own.
        tokens_per_batch: upper limit of one forward pass.
        progress: one item a row (prompts x (doses + 1)).

    Raises:
        DataError: not one continuation for each prompt.

    Example:
        >>> said = wb.steering.generate(model, prompts, max_new_tokens=20)
        >>> kl_of_doses(model, said.prompts, said.tokens, [Dose(d, 8.0), Dose(d, 16.0)]).along.mean(1)
    """
    if len(prompts) != len(continuations):
        raise DataError(f"{len(continuations)} continuations were given for {len(prompts)} prompts.")
    rows = [[*p, *c[:-1]] for p, c in zip(prompts, continuations, strict=True)]
    keep = [max(1, len(c)) for c in continuations]
    last = np.zeros((len(doses), len(prompts)))
    along = np.zeros_like(last)
    at_once = max(1, LOGITS_PER_BATCH // (max(keep) * model.vocab_size))
    for start in range(0, len(rows), at_once):
        group = range(start, min(len(rows), start + at_once))
        plain: dict[int, Tensor] = {}

        def run(
            pairs: list[tuple[int, int]], visit: Callable[[int, int, Tensor], None], nothing: bool = False
        ) -> None:
            for_each_row(
                model,
                [rows[i] for _, i in pairs],
                [Dose() if nothing else doses[j] for j, _ in pairs],
                [keep[i] for _, i in pairs],
                lambda n, logits: visit(*pairs[n], logits),
                where=where,
                prompt_lengths=[len(prompts[i]) for _, i in pairs],
                tokens_per_batch=tokens_per_batch,
                progress=progress,
            )

        def remember(_dose: int, i: int, logits: Tensor, plain: dict[int, Tensor] = plain) -> None:
            plain[i] = logits.clone()

        def compare(j: int, i: int, logits: Tensor, plain: dict[int, Tensor] = plain) -> None:
            each = kl_divergence(plain[i], logits)
            last[j, i], along[j, i] = float(each[0]), float(each.double().mean())
            if also is not None:
                also(j, i, logits[0])

        run([(0, i) for i in group], remember, nothing=True)
        if also is not None:
            for j, dose in enumerate(doses):
                if dose.nothing:
                    for i in group:
                        also(j, i, plain[i][0])
        if steered := [(j, i) for i in group for j, dose in enumerate(doses) if not dose.nothing]:
            run(steered, compare)
    return KL(last, along)


def mean_norm(model: LanguageModel, prompts: Sequence[Sequence[int]], site: str) -> float:
    """Mean norm of the activations at a site, over all tokens but the first (whose norm is often far larger)."""
    from workbench.activations import collect

    acts = collect(model, [list(p) for p in prompts], site, "all")
    rows = acts.rows(site).float().flatten(1).norm(dim=1)
    later = torch.from_numpy(acts.position > 0)
    return float(rows[later].mean() if bool(later.any()) else rows.mean())
