"""Which tokens a direction promotes and which it suppresses.

Three effects of adding s · v (strength s, by default the natural scale), from the plainest to the truest, each the mean
over reference prompts i at their last token:

    direct       s · M v / σ_i                    logits, with the final norm's scale σ_i held where prompt i has it
    last_stream  log p(x_i + s v) - log p(x_i)    nats; v added to the last residual stream x_i, the norm running
    network      log p(·| add s v at its site) - log p(·)     nats; v added where it belongs, later blocks running

M v is what the final norm's gain (and centring, for a layer norm), an output projection if there is one, and the
unembedding make of v. `direct` is linear in s: it is what a table "W_U v" should show, and it is given without its mean
over the vocabulary, since a number added to all logits changes nothing. The norm is not linear, so a strong v also
takes away from what was there; that, and a soft cap (Gemma 2), is in `last_stream` and `network`. These two are equal
where v belongs to the last block's output. With `reference="mean"` the first two are taken at the mean stream over
prompts instead (one point, no interval; its norm is smaller than that of most prompts).

A table of tokens always shows something. So `n_random` random directions of the same strength stand beside: the k-th
largest value of theirs, and `p_value`, how often their first is at least as large. Intervals are percentile bootstraps
over prompts, of tokens chosen on the same prompts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.directions.checks import checked_seed
from workbench.directions.controls import random_controls
from workbench.directions.direction import Direction
from workbench.errors import DataError, ModelError
from workbench.model.tokens import Prompt, TokenBatch, as_list
from workbench.progress import Progress, Silent
from workbench.provenance import provenance
from workbench.results import Result, array
from workbench.statistics import bootstrap_interval

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel
    from workbench.patching.neurons_readout import Readout

STREAM = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out")
N_PROMPTS, N_WORDS, N_TOKENS = 32, 16, 24
EFFECTS = ("direct", "last_stream", "network")
SIDES = ("promoted", "suppressed")


def top_tokens(
    model: LanguageModel,
    direction: Direction,
    k: int = 20,
    *,
    prompts: Prompt | Sequence[Prompt] | None = None,
    strength: float | None = None,
    where: Literal["last", "all"] = "last",
    reference: Literal["each", "mean"] = "each",
    network: bool = True,
    n_random: int = 20,
    seed: int = 0,
    force: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Promoted and suppressed tokens of a direction in the residual stream.

    Args:
        model: the language model.
        direction: at a site in the stream (`hook_resid_pre`, `_mid`, `_post`, `hook_attn_out`, `hook_mlp_out`).
        k: tokens of each side.
        prompts: reference prompts; by default 32 beginnings (16 words) of the shipped `plain-text` set.
        strength: norm of what is added, in activation units; the direction's scale by default.
        where: for `network`, add it at the last token only or at all.
        reference: take `direct` and `last_stream` at `each` prompt's stream, or at their `mean`.
        network: also run the blocks after its site, for it and for each random direction.
        n_random: random directions of the control.
        seed: for them, the choice of default prompts and the bootstrap.
        force: accept a direction made on another model.
        progress: where to report, one item per prompt, then one per direction.

    Returns:
        A `Result` of kind `direction_tokens`: dims `effect` (`direct` in logits, `last_stream` and `network` in nats),
        `side` (`promoted`, `suppressed`), `k`; variables `token`, `token_id`, `value`, `low`, `high` (95 %),
        `control_mean`, `control_low`, `control_high` (k-th value of random directions, 95 % band), and `p_value` by
        effect and side. `summary` has the first tokens, and how many of the `direct` ones the other effects share.

    Raises:
        DataError: another width, site or model; a site outside the stream; a strength that is not finite or 0; k; seed.
        ModelError: a readout of another form than norm and linear map; a model without a tokenizer.

    Example:
        >>> wb.directions.top_tokens(model, truth, k=10).plot()
    """
    progress, started, seed = progress or Silent(), time.perf_counter(), checked_seed(seed)
    direction = _checked(model, direction, k, strength, n_random, force)
    for name, given, known in (("where", where, ("last", "all")), ("reference", reference, ("each", "mean"))):
        if given not in known:
            raise DataError(f"{name} must be {known[0]!r} or {known[1]!r}, not {given!r}.")
    size = direction.scale if strength is None else float(strength)
    batch = model.batch(default_prompts(model, seed) if prompts is None else as_list(prompts))
    from workbench.patching.neurons_readout import Readout

    readout = Readout(model)
    several = [direction, *random_controls(direction, n_random, seed + 1)]
    effects = EFFECTS if network else EFFECTS[:2]
    plain, steered = _streams(model, readout, batch, several if network else [], size, where, progress)
    work = _Work(readout, plain, steered, size, reference, effects)
    progress.stage("tokens", len(several))
    own: dict[str, Tensor] = {}
    drawn: dict[str, list[np.ndarray]] = {effect: [] for effect in effects}
    for i, one in enumerate(several):
        for effect, change in work.of(i, one):  # [prompt, d_vocab]
            if i == 0:
                own[effect] = change
            else:
                mean = change.mean(0)
                ends = torch.stack([mean.topk(k).values, -(-mean).topk(k).values])
                drawn[effect].append(ends.cpu().numpy())
        progress.advance()
    table = [_listed(own[effect], np.stack(drawn[effect]), k, seed) for effect in effects]
    variables = {name: np.stack([part[name] for part in table]) for name in table[0]}
    seconds = time.perf_counter() - started
    settings = {"where": where, "reference": reference, "strength": size}
    return _result(model, direction, batch, variables, effects, settings, n_random, seed, seconds)


def default_prompts(model: LanguageModel, seed: int = 0) -> list[list[int]]:
    """32 beginnings of the shipped plain text as token ids: 16 words each, cut at 24 tokens.

    Raises:
        PromptError: a model that cannot read that much text (a model organism, say): give `prompts` of your own.
    """
    from workbench import datasets

    texts = datasets.load("plain-text").sample(N_PROMPTS, seed=seed).texts
    longest = min(N_TOKENS, model.context_length or N_TOKENS)
    return [model.encode(" ".join(text.split()[:N_WORDS]))[:longest] for text in texts]


@torch.inference_mode()
def _streams(
    model: LanguageModel,
    readout: Readout,
    batch: TokenBatch,
    directions: Sequence[Direction],
    strength: float,
    where: str,
    progress: Progress,
) -> tuple[Tensor, Tensor]:
    """[prompt, d_model] the last stream at each prompt's last token, and [direction, prompt, d_model] steered ones.

    Each prompt is run once; what a direction changes is run again from its site on, at the last token alone where it
    is added there alone (`workbench.patching.replay`).
    """
    from workbench.patching.replay import Entry, Replay

    progress.stage("prompts", len(batch))
    plain, steered = [], []
    for i, n in enumerate(batch.lengths):
        replay = Replay(model, model.batch([batch.ids[i, batch.columns(i, range(n))].tolist()]))
        plain.append(replay.inputs[-1][-1].to(readout.constant))
        if i == 0:
            readout.check(plain[0], replay.logits)
        start = replay.starts(n - 1) if where == "last" else 0
        entries = []
        for one in directions:
            layer = int(one.site.split(".")[1])
            edits = {one.site: _adding(one.vector.double() * strength, where)}
            entries.append(Entry(layer, replay.inputs[layer][start:], edits))
        if entries:
            steered.append(replay.run(entries, start)[:, -1].to(readout.constant))
        progress.advance()
    return torch.stack(plain), torch.stack(steered, dim=1) if steered else torch.empty(0)


def _adding(added: Tensor, where: str):
    def edit(activation: Tensor) -> Tensor:  # [position, d_model]
        if where == "all":
            return activation + added.to(activation)
        changed = activation.clone()
        changed[-1] += added.to(activation)
        return changed

    return edit


@dataclass
class _Work:
    """What every direction's effects need: readout, streams, and log-probabilities without it."""

    readout: Readout
    plain: Tensor
    steered: Tensor
    strength: float
    reference: str
    effects: Sequence[str]

    def __post_init__(self) -> None:
        self.at = self.plain.mean(0, keepdim=True) if self.reference == "mean" else self.plain
        self.sigma = self.readout.norm.scale(self.at)[:, None]
        self.before = self._log_p(self.plain)
        self.before_at = self._log_p(self.at) if self.reference == "mean" else self.before

    @torch.inference_mode()
    def of(self, i: int, direction: Direction) -> Iterator[tuple[str, Tensor]]:
        """Name and [prompt, d_vocab] of each effect of the i-th direction (one row at the mean stream)."""
        added = direction.vector.to(self.at) * self.strength
        linear = self.readout.direction(added) / self.sigma
        yield "direct", linear - linear.mean(-1, keepdim=True)
        yield "last_stream", self._log_p(self.at + added) - self.before_at
        if "network" in self.effects:
            yield "network", self._log_p(self.steered[i]) - self.before

    @torch.inference_mode()
    def _log_p(self, stream: Tensor) -> Tensor:
        return self.readout.logits(stream, self.readout.norm.scale(stream)).log_softmax(-1)


def _checked(
    model: LanguageModel, direction: Direction, k: int, strength: float | None, n_random: int, force: bool
) -> Direction:
    direction.fits(model, force=force)
    site = model.resolve(direction.site)[0]
    if model.tokenizer is None:
        raise ModelError(f"{model.name} has no tokenizer to show its tokens with: load it with one.")
    if site.part not in STREAM:
        raise DataError(
            f"Tokens are read off directions in the residual stream ({', '.join(STREAM)}); {direction.name!r} is at "
            f"{direction.site!r}."
        )
    if strength is not None and not (np.isfinite(strength) and strength != 0):
        raise DataError(
            f"The strength of a token table is a finite number other than 0, such as 8.0, not {strength!r}."
        )
    if not 1 <= k <= model.vocab_size // 2:
        most = model.vocab_size // 2
        raise DataError(f"k must be 1 to {most} (half of {model.name}'s vocabulary), not {k}.")
    if n_random < 1:
        raise DataError("A token table needs at least one random direction beside it: n_random is 1 or more.")
    return replace(direction, site=site.name)  # `blocks.-1.…` has a number from here on


def _listed(change: Tensor, control: np.ndarray, k: int, seed: int) -> dict[str, np.ndarray]:
    """One effect: [side, k] tokens with mean, interval and control, and [side] p-values."""
    mean = change.mean(0)
    chosen = torch.stack([mean.topk(k).indices, (-mean).topk(k).indices])
    each = change[:, chosen.reshape(-1)].double().cpu().numpy()  # [prompt, side * k]
    low, high = (end.reshape(2, k) for end in bootstrap_interval(each, seed))
    low_control, high_control = np.quantile(control, [0.025, 0.975], axis=0)
    value, first = each.mean(0).reshape(2, k), control[:, :, 0]
    beaten = np.stack([first[:, 0] >= value[0, 0], first[:, 1] <= value[1, 0]])
    return {
        "token_id": chosen.cpu().numpy().astype(np.int32),
        "value": value,
        "low": low,
        "high": high,
        "control_mean": control.mean(0),
        "control_low": low_control,
        "control_high": high_control,
        "p_value": (1 + beaten.sum(1)) / (1 + len(control)),
    }


def _result(model, direction, batch, variables, effects, settings, n_random, seed, seconds) -> Result:
    decode = {int(i): model.tokenizer.decode([int(i)]) for i in np.unique(variables["token_id"])}
    text = np.vectorize(decode.__getitem__, otypes=[object])(variables["token_id"]).astype(str)
    dims, long = ("effect", "side", "k"), "change of log-probability (direct: of the logit)"
    random = "random directions of the same strength"
    names = {
        "token_id": "token id",
        "value": f"mean {long}",
        "low": f"{long}, lower end of the 95 % interval",
        "high": f"{long}, upper end of the 95 % interval",
        "control_mean": f"k-th value of {random}, mean",
        "control_low": f"k-th value of {random}, lower end of their 95 % band",
        "control_high": f"k-th value of {random}, upper end of their 95 % band",
    }
    units = ["logits" if effect == "direct" else "nats" for effect in effects]
    shared = {
        f"shared_with_{effect}": {
            side: len(set(variables["token_id"][0, s]) & set(variables["token_id"][i, s]))
            for s, side in enumerate(SIDES)
        }
        for i, effect in enumerate(effects[1:], 1)
    }
    p = variables["p_value"]
    data = xr.Dataset(
        {
            "token": array(dims, text, long_name="token"),
            **{name: array(dims, variables[name], long_name=words) for name, words in names.items()},
            "p_value": array(dims[:2], p, long_name=f"share of {random} whose first is at least as large"),
        },
        coords={
            "effect": np.array(effects),
            "side": np.array(SIDES),
            "k": np.arange(variables["value"].shape[-1]),
            "units": ("effect", np.array(units)),
        },
        attrs={
            "direction": direction.name,
            "site": direction.site,
            "source": direction.source,
            "scale": direction.scale,
            "n_prompts": len(batch),
            "n_random": n_random,
            "d_vocab": model.vocab_size,
            "control": f"{n_random} {random}",
            **settings,
        },
    )
    best = len(effects) - 1
    summary = {
        "direction": direction.name,
        "strength": round(settings["strength"], 4),
        "n_prompts": len(batch),
        "promoted": text[best, 0, :5].tolist(),
        "suppressed": text[best, 1, :5].tolist(),
        "effect": effects[best],
        "p_value": {
            e: {s: round(float(p[i, j]), 4) for j, s in enumerate(SIDES)} for i, e in enumerate(effects)
        },
        **shared,
    }
    ids = [batch.ids[i, batch.columns(i, range(n))].tolist() for i, n in enumerate(batch.lengths)]
    found = provenance(model, tokens=ids, seed=seed, seconds={"tokens": seconds}, settings=settings)
    return Result("direction_tokens", data, found, summary)
