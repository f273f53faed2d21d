"""The direction whose removal changes what a model does: difference-in-means candidates, chosen on held-out prompts.

    candidate   w_{l,p} = mean h_l(positive)[p] - mean h_l(negative)[p]      at layers l and end positions p (-1, -2, …)
    ablate      x ← x - (x · v) v                wherever something is written to the stream: embedding, attention, MLP
    induce      x ← x + w_{l,p}                   at layer l, every position

With a metric m (higher: more of the behaviour, refusal for instance), on prompts that no candidate was made from:

    ablated     mean m on positives, with v ablated everywhere         wanted: low
    induced     mean m on negatives, with w added at its layer         wanted: above `induced_at_least`
    kl          mean KL(plain ‖ ablated) of the next token on negatives, in nats      wanted: at most `kl_at_most`

The candidate with the lowest `ablated` among those that pass both tests and lie below `layers_below` of the depth is
taken. Arditi et al. 2024, 2406.11717 (refusal; KL ≤ 0.1, induced > 0, l < 0.8 L). Control: random directions ablated
and added in the same way, of the candidate's norm. Since the best of many is chosen, its scores are taken once more on
prompts that played no part in the choice (`test`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from workbench.directions import Direction
from workbench.errors import DataError, MetricError, SiteError
from workbench.model.tokens import Prompt, as_list
from workbench.patching.metrics import Metric, as_metric, continuation
from workbench.progress import Silent
from workbench.provenance import provenance
from workbench.results import Result, array
from workbench.statistics import bootstrap_interval
from workbench.steering.extract.contrast import contrast, negligible, whole_layers

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel
    from workbench.progress import Progress

ROWS_PER_CALL = 32


@dataclass(frozen=True, eq=False)
class AblationSearch:
    """Attributes: `direction`, the one that was chosen, and `result`, all candidates with their scores."""

    direction: Direction
    result: Result


def ablation_direction(
    model: LanguageModel,
    positive: Sequence[Prompt],
    negative: Sequence[Prompt],
    metric: Metric | Any,
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] = (-1,),
    kl_at_most: float = 0.1,
    induced_at_least: float = 0.0,
    layers_below: float = 0.8,
    n_random: int = 4,
    seed: int = 0,
    name: str = "ablation direction",
    progress: Progress | None = None,
) -> AblationSearch:
    """Find the difference of means whose removal takes a behaviour away.

    Args:
        model: the language model.
        positive: prompts that show the behaviour, at least 6: half make the candidates, a quarter chooses, the rest
            tests.
        negative: prompts that do not, at least 6; used likewise.
        metric: at the last position, higher is more of the behaviour (`LogitDifference("I", "Sure")`), or a function of
            logits [row, d_vocab].
        layers: blocks whose stream gives candidates, negative from the last; all below `layers_below` of the depth by
            default.
        positions: negative token positions, counted from each prompt's end.
        kl_at_most, induced_at_least, layers_below: the tests; see the module.
        n_random: random directions for the control.
        seed: of the split and the control.
        name: of the direction.
        progress: stage "candidates", one item each.

    Returns:
        The direction (scale: norm of the difference; in `settings` its scores on `test`, beside plain and random), and
        a `Result` of kind `ablation_candidates` with dims `layer`, `position`: `ablated`, `induced`, `kl` and `passes`.

    Raises:
        DataError: too few prompts, positions that are not negative, no candidate passes (the message has the nearest).
        SiteError: a model without attention or MLP outputs that are added to the stream.
        MetricError: also an answer of several tokens. PositionError, PromptError: as elsewhere.

    Example:
        >>> found = ablation_direction(model, harmful, harmless, LogitDifference(" cannot", " will"))
        >>> with model.edit(ablate_everywhere(model, found.direction)):
        ...     model.logits(harmful[0])
    """
    started, progress = time.perf_counter(), progress or Silent()
    sets = [as_list(positive), as_list(negative)]
    for which, prompts in zip(("positive", "negative"), sets, strict=True):
        if len(prompts) < 6:
            raise DataError(
                f"The {which} set has {len(prompts) or 'no'} prompts: an ablation direction needs at least 6 "
                "on each side, to make candidates, choose one and test it on prompts that are not the same."
            )
    if not positions or any(p >= 0 for p in positions):
        raise DataError(f"Positions {list(positions)} must be negative: they count from each prompt's end.")
    limit = model.n_layers if layers is not None else max(1, int(layers_below * model.n_layers))
    asked = list(range(limit)) if layers is None else whole_layers(layers)
    if not asked:
        raise DataError(
            "No layers were given: leave `layers` away for all below `layers_below` of the depth."
        )
    metric = as_metric(metric)
    of = metric.resolve(model)
    if continuation(metric, model):
        raise MetricError(
            f"{metric} needs tokens after the prompt, but an ablation direction is chosen at each prompt's last token: "
            "give an answer of one token."
        )
    found_at = model.resolve(
        [f"blocks.{layer}.hook_resid_post" for layer in asked]
    )  # in the order of the model
    sites, chosen = [site.name for site in found_at], [site.layer for site in found_at]
    random = np.random.default_rng(seed)
    parts = [_split(prompts, random) for prompts in sets]
    (train_pos, choose_pos, test_pos), (train_neg, choose_neg, test_neg) = parts
    plain = {key: _logits(model, p, {}) for key, p in (("pos", choose_pos), ("neg", choose_neg))}
    progress.stage("candidates", len(chosen) * len(positions))
    shape = (len(chosen), len(positions))
    scores = {key: np.full(shape, np.nan) for key in ("ablated", "induced", "kl", "norm")}
    vectors: dict[tuple[int, int], Tensor] = {}
    for j, position in enumerate(positions):
        rows = contrast(model, train_pos, train_neg, sites, position=position, what="An ablation direction")
        for i, site in enumerate(sites):
            difference = rows.positive[i].mean(0) - rows.negative[i].mean(0)
            if not negligible(difference, rows.positive[i]):
                vectors[i, j] = difference
                found = _scores(model, site, difference, of, choose_pos, choose_neg, plain["neg"])
                for key, value in found.items():
                    scores[key][i, j] = value.mean()
                scores["norm"][i, j] = float(difference.norm())
            progress.advance()
    passes = (scores["kl"] <= kl_at_most) & (scores["induced"] > induced_at_least)
    passes &= np.isfinite(scores["ablated"])
    if not passes.any():
        raise DataError(
            f"None of {passes.size} candidates passes: the least KL is "
            f"{np.nanmin(scores['kl'], initial=np.inf):.3g} (at most {kl_at_most}), the highest induced metric "
            f"{np.nanmax(scores['induced'], initial=-np.inf):.3g} (above {induced_at_least}). "
            "Give more prompts or layers, or loosen kl_at_most or induced_at_least."
        )
    i, j = np.unravel_index(np.where(passes, scores["ablated"], np.inf).argmin(), shape)
    vector, site = vectors[int(i), int(j)], sites[int(i)]
    base = [_logits(model, prompts, {}) for prompts in (test_pos, test_neg)]
    test = _described(_scores(model, site, vector, of, test_pos, test_neg, base[1]), seed)
    draws = []
    for _ in range(n_random):
        drawn = torch.from_numpy(random.standard_normal(len(vector)))
        drawn = drawn / drawn.norm() * vector.norm()
        draws.append(_scores(model, site, drawn, of, test_pos, test_neg, base[1]))
    control = (
        {key: float(np.mean([d[key].mean() for d in draws])) for key in ("ablated", "induced", "kl")}
        if draws
        else {}
    )
    settings: dict[str, Any] = {
        "layer": chosen[int(i)],
        "position": positions[int(j)],
        "kl_at_most": kl_at_most,
        "induced_at_least": induced_at_least,
        "n": {key: [len(p[k]) for p in parts] for k, key in enumerate(("candidates", "choice", "test"))},
        "metric": str(metric),
    }
    measured = {
        "test": test,
        "plain": {"positive": float(of(base[0]).mean()), "negative": float(of(base[1]).mean())},
        "random": {**control, "n": n_random},
    }
    made = provenance(
        model, tokens=[model.encode(p) for s in sets for p in s], seed=seed,
        seconds={"search": time.perf_counter() - started}, settings=settings,
    )  # fmt: skip
    meaning = {
        "ablated": "metric on positives, direction ablated everywhere",
        "induced": "metric on negatives, difference added at its layer",
        "kl": "KL(plain || ablated) on negatives",
        "norm": "norm of the difference",
    }
    units = {"kl": "nats", "norm": "activation"}
    dims = ("layer", "position")
    data = xr.Dataset(
        {
            key: array(dims, scores[key], long_name=text, units=units.get(key, str(metric)))
            for key, text in meaning.items()
        }
        | {"passes": array(dims, passes, long_name="passes the tests")},
        coords={"layer": chosen, "position": list(positions)},
        attrs={**settings, "control": f"{n_random} random directions of the same norm"},
    )
    direction = Direction.from_vector(
        vector, site=site, name=name, source="ablation", model_fingerprint=model.fingerprint,
        settings={**settings, **measured}, provenance=made.to_dict(),
    )  # fmt: skip
    summary = {
        "layer": settings["layer"],
        "position": settings["position"],
        "passing": int(passes.sum()),
        "of": passes.size,
        **measured,
    }
    return AblationSearch(direction, Result("ablation_candidates", data, made, summary))


def ablate_everywhere(
    model: LanguageModel, direction: Direction | Tensor
) -> dict[str, Callable[[Float[Tensor, "*rows d"]], Float[Tensor, "*rows d"]]]:
    """Edits for `model.edit` that keep a direction out of the stream: what enters block 0 and all that is added to it.

    Raises:
        SiteError: the architecture has no outputs that add up to the stream, so it cannot be kept out this way.
    """
    vector = direction.vector if isinstance(direction, Direction) else direction
    unit = vector.double() / vector.double().norm()

    def edit(activation: Tensor) -> Tensor:
        x = activation.to(torch.promote_types(activation.dtype, torch.float32))
        u = unit.to(x)
        return (x - (x @ u)[..., None] * u).to(activation.dtype)

    names = ["blocks.0.hook_resid_pre"]
    for layer in range(model.n_layers):
        names += [f"blocks.{layer}.hook_attn_out", f"blocks.{layer}.hook_mlp_out"]
    try:
        return {site.name: edit for site in model.resolve(names)}
    except SiteError as error:
        raise SiteError(
            f"A direction is kept out of the stream at everything that is added to it. {error}"
        ) from error


def _scores(
    model: LanguageModel,
    site: str,
    difference: Tensor,
    metric: Callable[[Tensor], Tensor],
    positive: Sequence[Prompt],
    negative: Sequence[Prompt],
    plain_negative: Tensor,
) -> dict[str, np.ndarray]:
    """Per prompt: metric on ablated positives, on negatives with the difference added, and KL on ablated negatives."""
    ablate = ablate_everywhere(model, difference)
    added = {site: lambda x: x + difference.to(x)}
    kept = _logits(model, negative, ablate).double().log_softmax(-1)
    before = plain_negative.double().log_softmax(-1)
    return {
        "ablated": metric(_logits(model, positive, ablate)).double().numpy(),
        "induced": metric(_logits(model, negative, added)).double().numpy(),
        "kl": (before.exp() * (before - kept)).sum(-1).clamp(min=0).numpy(),
    }


@torch.inference_mode()
def _logits(
    model: LanguageModel, prompts: Sequence[Prompt], edits: dict[str, Any]
) -> Float[Tensor, "row d_vocab"]:
    """At each prompt's last token, on the CPU."""
    out = []
    for start in range(0, len(prompts), ROWS_PER_CALL):
        batch = model.batch(prompts[start : start + ROWS_PER_CALL], side="left")
        with model.edit(edits):
            out.append(model.forward(batch, logits_to_keep=1).logits[:, -1].float().cpu())
    return torch.cat(out)


def _split(
    prompts: list[Prompt], random: np.random.Generator
) -> tuple[list[Prompt], list[Prompt], list[Prompt]]:
    order = random.permutation(len(prompts)).tolist()
    half, quarter = len(prompts) // 2, len(prompts) // 4
    cut = (order[:half], order[half : half + max(1, quarter)], order[half + max(1, quarter) :])
    return tuple([prompts[i] for i in part] for part in cut)  # type: ignore[return-value]


def _described(found: dict[str, np.ndarray], seed: int) -> dict[str, Any]:
    """Means with 95 % intervals over prompts."""
    out: dict[str, Any] = {}
    for key, values in found.items():
        low, high = bootstrap_interval(values, seed)
        out[key] = {
            "mean": float(values.mean()),
            "low": _or_none(low),
            "high": _or_none(high),
            "n": len(values),
        }
    return out


def _or_none(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)
