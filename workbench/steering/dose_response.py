"""Dose–response: what a direction does to the next token as it gets stronger, beside random directions.

For each strength s and each prompt, with the direction added at `where`:

    score = metric(logits at the prompt's last token)
    KL    = KL(p_unsteered || p_steered) of the next-token distribution, in nats: how much else has changed

The control adds random unit directions at the same site with the same strengths (mean over `n_random` of them,
per prompt). A direction that moves the score no more than they do has shown nothing. Strength 0 is the
unsteered model. Means over prompts carry a 95 % bootstrap interval.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.directions import Direction
from workbench.errors import DataError
from workbench.model.language_model import LanguageModel
from workbench.model.tokens import Prompt, as_list, batch
from workbench.patching.metrics import Metric
from workbench.progress import Progress, Silent
from workbench.provenance import provenance
from workbench.results import Result, array
from workbench.statistics import bootstrap_interval
from workbench.steering.generate import generate
from workbench.steering.intervention import Where, add_direction


def dose_response(
    model: LanguageModel,
    prompts: Prompt | Sequence[Prompt],
    direction: Direction,
    strengths: Sequence[float],
    metric: Metric,
    *,
    n_random: int = 5,
    where: Where = "all",
    show_text: int = 0,
    seed: int = 0,
    force: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Score and side effects of a direction against its strength, with a random-direction control.

    Args:
        model: the language model.
        prompts: prompts whose next token is scored; best not those the direction was made from.
        direction: what is added, at its own site.
        strengths: norms of what is added, in the units of the activation; 0 is put in if missing.
        metric: logits -> number, for instance `wb.LogitDifference(" good", " bad")`.
        n_random: random directions of the control.
        where: position rule, see `steering.intervention`.
        show_text: generate this many tokens of each steered continuation, to be read beside the numbers.
        seed: for random directions and bootstrap.
        force: accept a direction made with another model.
        progress: where to report, one item per strength and direction.

    Returns:
        A `Result` of kind `dose_response`: dims `direction` (steered, random), `strength`, `prompt`; variables
        `score`, `kl`, `mean_score` with `score_low`, `score_high`, and `text` if asked for.

    Raises:
        DataError: no strengths, a strength that is not finite, a direction that does not fit the model.

    Example:
        >>> wb.steering.dose_response(model, prompts, d, [-8, -4, 4, 8], wb.LogitDifference(" good", " bad"))
    """
    progress = progress or Silent()
    started = time.perf_counter()
    direction.fits(model, force=force)
    listed = as_list(prompts)
    doses = _doses(strengths)
    function = metric.resolve(model)
    tokens = batch(model, listed)
    random = [Direction.random(direction, seed=seed + i) for i in range(n_random)]
    progress.stage("dose–response", len(doses) * (1 + n_random))
    plain = _next_logits(model, tokens, direction, 0.0, where)
    scores = np.zeros((2, len(doses), len(listed)))
    kls = np.zeros_like(scores)
    for j, dose in enumerate(doses):
        for i, group in enumerate(([direction], random)):
            for one in group:
                logits = _next_logits(model, tokens, one, dose, where)
                scores[i, j] += function(logits).cpu().numpy() / len(group)
                kls[i, j] += _kl(plain, logits).cpu().numpy() / len(group)
                progress.advance()
    texts = (
        _texts(model, listed, direction, random[0], doses, where, show_text, progress) if show_text else None
    )
    return _result(
        model, listed, tokens, direction, doses, str(metric), scores, kls, texts, n_random, where, seed,
        time.perf_counter() - started,
    )  # fmt: skip


def _doses(strengths: Sequence[float]) -> list[float]:
    doses = sorted({float(s) for s in strengths} | {0.0})
    if len(doses) < 2:
        raise DataError("No strengths other than 0 were given: give some, for instance [-8, -4, 4, 8].")
    if not all(np.isfinite(doses)):
        raise DataError(f"Strengths {list(strengths)!r} are not all finite.")
    return doses


@torch.inference_mode()
def _next_logits(model, tokens, direction: Direction, dose: float, where: Where) -> Tensor:
    """[prompt, d_vocab] logits at each prompt's last token."""
    edit = add_direction(direction, dose, where=where, prompt_lengths=tokens.lengths)
    with model.edit({direction.site: edit}):
        logits = model.forward(tokens).logits
    last = torch.tensor([tokens.columns(i, [n - 1])[0] for i, n in enumerate(tokens.lengths)])
    return logits[torch.arange(len(tokens)), last].float()


def _kl(plain: Tensor, steered: Tensor) -> Tensor:
    p, q = plain.log_softmax(-1), steered.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).clamp(min=0)


def _texts(model, prompts, direction, random, doses, where, n_tokens, progress) -> np.ndarray:
    progress.stage("generate", 2 * len(doses))
    texts = np.empty((2, len(doses), len(prompts)), dtype=object)
    for i, one in enumerate((direction, random)):
        for j, dose in enumerate(doses):
            texts[i, j] = generate(
                model, prompts, one, dose, max_new_tokens=n_tokens, where=where, force=True
            ).texts
            progress.advance()
    return texts


def _result(
    model, prompts, tokens, direction, doses, metric, scores, kls, texts, n_random, where, seed, seconds
) -> Result:
    n_prompts = len(prompts)
    low, high = bootstrap_interval(np.moveaxis(scores, -1, 0), seed)
    dims = ("direction", "strength")
    variables = {
        "score": array((*dims, "prompt"), scores, long_name=metric, units="nats"),
        "kl": array((*dims, "prompt"), kls, long_name="KL(unsteered || steered), next token", units="nats"),
        "mean_score": array(dims, scores.mean(-1), long_name=f"mean {metric}", units="nats"),
        "score_low": array(dims, low, long_name="95 % bootstrap interval over prompts, lower end"),
        "score_high": array(dims, high, long_name="95 % bootstrap interval over prompts, upper end"),
    }
    if texts is not None:
        variables["text"] = array((*dims, "prompt"), texts.astype(str), long_name="continuation")
    shown = [p if isinstance(p, str) else model.tokenizer.decode(model.encode(p)) for p in prompts]
    data = xr.Dataset(
        variables,
        coords={
            "direction": np.array(["steered", "random"]),
            "strength": np.array(doses),
            "prompt": np.arange(n_prompts),
            "prompt_text": ("prompt", np.array(shown, dtype=str)),
        },
        attrs={
            "metric": metric,
            "site": direction.site,
            "direction": direction.name,
            "source": direction.source,
            "scale": direction.scale,
            "where": where,
            "n_prompts": n_prompts,
            "n_random": n_random,
            "control": f"mean of {n_random} random directions of the same norm",
        },
    )
    ids = [tokens.ids[i, tokens.columns(i, range(n))].tolist() for i, n in enumerate(tokens.lengths)]
    where_from = provenance(model, tokens=ids, seed=seed, seconds={"dose_response": seconds})
    return Result("dose_response", data, where_from, _summary(data))


def _summary(data: xr.Dataset) -> dict[str, object]:
    """The largest strength each way: how far the score moved, beside the random directions."""
    mean = data["mean_score"]
    base = float(mean.sel(direction="steered", strength=0.0))
    rows: dict[str, object] = {
        "metric": data.attrs["metric"],
        "n_prompts": int(data.sizes["prompt"]),
        "unsteered": round(base, 3),
    }
    for strength in (float(data["strength"].min()), float(data["strength"].max())):
        if strength == 0.0:
            continue
        rows[f"strength {strength:+g}"] = {
            which: round(float(mean.sel(direction=which, strength=strength)) - base, 3)
            for which in ("steered", "random")
        }
    return rows
