"""Back-patching: what a later block has worked out, given to an earlier one.

For each prompt, one position p and every pair of blocks t < s:

    h_t[p] <- h_s[p]        h_l = blocks.l.hook_resid_post, both of the same prompt

and the blocks above t run on. A pair works if the greedy continuation is then the answer (all of its tokens). The
paper's reading: the model had worked out what was needed, only too late for the blocks that use it.

    oracle rate = share of prompts for which at least one pair works,
                  separately for prompts that were first right and first wrong

This is the best of n(n - 1)/2 trials, so it is above 0 for any change that moves the answer around. Two nulls take
the same maximum over equally many trials:

    other prompt    h_t[p] <- h_s[p'] of another prompt with another answer, at its own position p', the same pairs
    forward         h_t[p] <- h_s[p] of the same prompt with t > s: p skips the blocks between. (Where p is not the
                    last position, pairs into the last block cannot change the answer.)

The rate of each single pair, which has no such maximum, is kept too.

Biran et al. 2024, "Hopping Too Late" (2406.12775). Added here: both nulls, intervals and log-probabilities.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.errors import DataError, MetricError, PositionError, PromptError
from workbench.model.language_model import LanguageModel
from workbench.model.tokens import Prompt, TokenBatch, at_least_one
from workbench.patching.cells import check_layers
from workbench.patching.replay import TOKENS_PER_CALL, Entry, Replay
from workbench.progress import Progress, Silent
from workbench.provenance import provenance
from workbench.results import Result, array
from workbench.statistics import bootstrap_interval

Answer = str | int | Sequence[int]
"""Text of one or several tokens (words inside a sentence begin with a space), a token id, or token ids."""
Trial = tuple[int, Tensor]
"""Target block, and the stream that is put in, [d_model]."""
GROUPS = ("all", "first wrong", "first right")


def back_patch(
    model: LanguageModel,
    prompts: Prompt | Sequence[Prompt],
    answers: Answer | Sequence[Answer],
    *,
    positions: int | Sequence[int] | Literal["last"],
    layers: Sequence[int] | int | None = None,
    seed: int = 0,
    control: bool = True,
    progress: Progress | None = None,
) -> Result:
    """Put the stream after each block in place of that after each earlier block, at one position of each prompt.

    Args:
        model: the language model.
        prompts: one or many, of any lengths.
        answers: one per prompt. For several tokens the greedy continuation must match all of them.
        positions: token index (negative counts from the end), the same for all prompts or one per prompt, or
            `"last"`. In the paper: the end of the first hop's words, or the last token.
        layers: blocks to pair; all by default.
        seed: of the other prompts and of the bootstrap.
        control: also run both nulls, which makes it three times as many runs.
        progress: where to report, one item per prompt.

    Returns:
        A `Result` of kind `back_patching` with dims `prompt`, `source_layer`, `target_layer` and `group`.
        `success` (0, 1) and `log_probability` (nats, of the whole answer) per prompt and pair, NaN where t >= s; the
        same with `control_` (other prompt) and with `forward_` (NaN where t <= s). `first_right`,
        `first_log_probability`, `position`, `control_prompt` per prompt. `oracle_rate`, `control_rate`,
        `forward_rate`, `difference` (oracle - control) and `forward_difference` per group, each with `_low` and
        `_high` (95 % bootstrap over prompts; NaN for fewer than two prompts, and of no width where all prompts
        agree). `n` prompts per group. `pair_rate`, `control_pair_rate`, `forward_pair_rate` per group and pair.

    Raises:
        PromptError: no prompts, answers or positions that are not one per prompt, or prompts with which the control
            cannot be run.
        PositionError: a position outside its prompt, or several for one prompt.
        MetricError: an answer without tokens.
        DataError: layers that do not exist, or fewer than two.

    Example:
        >>> pairs = wb.datasets.load("two-hop", limit=50)
        >>> prompts, answers = [p.clean for p in pairs], [p.answer for p in pairs]
        >>> result = wb.patching.back_patch(wb.load_model("two-hop"), prompts, answers, positions=2)
        >>> result.summary["first wrong"]
    """
    progress, started = progress or Silent(), time.perf_counter()
    batches = [model.batch([prompt]) for prompt in at_least_one(prompts)]
    expected = _answers(model, answers, len(batches))
    at = _positions(batches, positions)
    chosen = check_layers(layers, model.n_layers, model.name)
    if len(chosen) < 2:
        raise DataError(f"Back-patching pairs two blocks, and `layers` has only {chosen}: give at least two.")
    other = _other_prompts(expected, seed) if control else None

    streams = [streams_at(model, batch, p, chosen) for batch, p in zip(batches, at, strict=True)]
    n = len(chosen)
    backward = [(s, t) for s in range(n) for t in range(s)]
    kinds = ("", "control_", "forward_") if control else ("",)
    runs: dict[str, np.ndarray] = {kind: np.full((2, len(batches), n, n), np.nan) for kind in kinds}
    first = []
    progress.stage("back-patching", len(batches))
    for i, batch in enumerate(batches):
        cells = [("", s, t, streams[i][s]) for s, t in backward]
        if other is not None:
            cells += [("control_", s, t, streams[other[i]][s]) for s, t in backward]
            cells += [("forward_", s, t, streams[i][s]) for t, s in backward]
        trials = [(chosen[t], vector) for _, _, t, vector in cells]
        base, right, log_p = _continuations(model, batch, expected[i], at[i], trials)
        first.append(base)
        for (kind, s, t, _), *values in zip(cells, right, log_p, strict=True):
            runs[kind][:, i, s, t] = values
        progress.advance()
    data = _data(runs, np.array(first), seed).assign_coords(source_layer=chosen, target_layer=chosen)
    data["position"] = array(("prompt",), np.array(at), long_name="patched position")
    if other is not None:
        data["control_prompt"] = array(("prompt",), other, long_name="prompt whose stream is the control's")
    data.attrs = {
        "n_prompts": len(batches),
        "n_pairs": len(backward),
        "site": "hook_resid_post",
        "success": "the greedy continuation is the answer",
        "control": "other prompt (with another answer); forward (own stream, later blocks)"
        if control
        else "not run",
    }
    ids, settings = [batch.ids[0].tolist() for batch in batches], {"answers": [list(a) for a in expected]}
    seconds = {"back_patching": time.perf_counter() - started}
    where = provenance(model, tokens=ids, seed=seed, seconds=seconds, settings=settings)
    return Result("back_patching", data, where, _summary(data))


def streams_at(model: LanguageModel, batch: TokenBatch, at: int | slice, layers: Sequence[int]) -> Tensor:
    """[layer, d_model] of one prompt after the given blocks; [layer, position, d_model] of a slice of positions."""
    sites = [f"blocks.{layer}.hook_resid_post" for layer in layers]
    with model.hooks(read=sites, select=lambda value, _site: value[0, at].clone()) as session:
        model.forward(batch, logits_to_keep=1)
    return torch.stack([session[site].to(model.device) for site in sites])


@torch.inference_mode()
def _continuations(
    model: LanguageModel, batch: TokenBatch, answer: Sequence[int], position: int, trials: Sequence[Trial]
) -> tuple[tuple[bool, float], np.ndarray, np.ndarray]:
    """Is the greedy continuation the answer, and the answer's log-probability: unpatched, and of each trial.

    Greedy decoding says the whole answer exactly if each of its tokens is the top one after those before it, so every
    token is one replay of the prompt with the tokens before.
    """
    base_right, base_log_p = True, 0.0
    right, log_p = np.ones(len(trials), dtype=bool), np.zeros(len(trials))
    order = sorted(range(len(trials)), key=lambda i: trials[i][0])
    for k, token in enumerate(answer):
        replay = Replay(model, model.batch([[*batch.ids[0].tolist(), *answer[:k]]]))
        start = replay.starts(position)
        top, value = _top_and_log_p(replay.logits[None], token)
        base_right, base_log_p = base_right and bool(top[0]), base_log_p + float(value[0])
        size = max(1, TOKENS_PER_CALL // (replay.length - start))
        for begin in range(0, len(order), size):
            some = order[begin : begin + size]
            logits = replay.logits_of([_entry(replay, position, start, *trials[i]) for i in some], start)
            top, value = _top_and_log_p(logits, token)
            right[some] &= top
            log_p[some] += value
    return (base_right, base_log_p), right, log_p


def _entry(replay: Replay, position: int, start: int, target: int, vector: Tensor) -> Entry:
    stream = replay.inputs[target + 1][start:].clone()
    stream[position - start] = vector.to(stream)
    return Entry(target + 1, stream)


def _top_and_log_p(logits: Tensor, token: int) -> tuple[np.ndarray, np.ndarray]:
    log_p = logits.float().log_softmax(-1)[:, token]
    return (logits.argmax(-1) == token).cpu().numpy(), log_p.double().cpu().numpy()


def _one_each(given: Any, n: int, what: str) -> list[Any]:
    if given is None or isinstance(given, float):
        raise PromptError(f"{given!r} was given for the {what}: give one for each of {n} prompts.")
    listed = [given] if isinstance(given, (str, Integral)) else list(given)
    if len(listed) != n:
        raise PromptError(f"{len(listed)} {what} were given for {n} prompts: give one for each.")
    return [int(one) if isinstance(one, Integral) else one for one in listed]


def _answers(model: LanguageModel, answers: Answer | Sequence[Answer], n: int) -> list[tuple[int, ...]]:
    found = []
    for i, answer in enumerate(_one_each(answers, n, "answers")):
        if isinstance(answer, str):
            if model.tokenizer is None:
                raise PromptError(f"Answer {i} is text, but {model.name} has no tokenizer: give token ids.")
            ids = model.tokenizer(answer, add_special_tokens=False)["input_ids"]
        else:
            ids = [answer] if isinstance(answer, int) else answer
        if not len(ids):
            raise MetricError(f"Answer {i}, {answer!r}, has no tokens: give at least one.")
        found.append(tuple(model.token_id(int(token)) for token in ids))
    return found


def _positions(batches: Sequence[TokenBatch], positions: int | Sequence[int] | str) -> list[int]:
    if isinstance(positions, str) and positions != "last":
        raise PositionError(
            f"Positions {positions!r} are not known: give 'last', an index, or one per prompt."
        )
    one: Any = -1 if isinstance(positions, str) else positions
    each: list[Any] = (
        [one] * len(batches) if isinstance(one, Real) else _one_each(one, len(batches), "positions")
    )
    return [
        batch.resolve_one(0, p, f"The position of prompt {i}")
        for i, (batch, p) in enumerate(zip(batches, each, strict=True))
    ]


def _other_prompts(answers: Sequence[tuple[int, ...]], seed: int) -> np.ndarray:
    """A seeded derangement: for each prompt another one with another answer, each prompt used once."""
    rng, n, kinds = np.random.default_rng(seed), len(answers), sorted(set(answers))
    largest = max(answers.count(kind) for kind in kinds)
    if 2 * largest > n:
        raise PromptError(
            f"The control gives each prompt the stream of one with another answer, but {largest} of {n} prompts have "
            "the same answer (at most half may): add prompts with other answers, or give control=False."
        )
    # With the prompts of one answer side by side, a rotation by the largest group leads everyone out of their own.
    place = dict(zip(kinds, rng.permutation(len(kinds)), strict=True))
    order = sorted(rng.permutation(n).tolist(), key=lambda i: place[answers[i]])
    other = np.empty(n, dtype=int)
    other[order] = np.roll(order, -largest)
    return other


def _data(runs: dict[str, np.ndarray], first: np.ndarray, seed: int) -> xr.Dataset:
    """Arrays per prompt and pair, and per group the rates with their intervals."""
    right, cells = first[:, 0].astype(bool), ("prompt", "source_layer", "target_layer")
    members = [np.ones_like(right), ~right, right]
    mean = lambda each: each.mean(0) if len(each) else np.full(each.shape[1:], np.nan)  # noqa: E731
    spoken = {"": "back-patched", "control_": "other prompt's stream", "forward_": "patched forward"}
    variables = {
        "first_right": array(("prompt",), right, long_name="answered right without a patch"),
        "first_log_probability": array(("prompt",), first[:, 1], units="nats", long_name="unpatched ln p(answer)"),
        "n": array(("group",), np.array([group.sum() for group in members]), long_name="prompts"),
    }  # fmt: skip
    best: dict[str, np.ndarray] = {}
    for kind, (success, log_p) in runs.items():
        how = spoken[kind]
        rates = np.stack([mean(success[group]) for group in members])
        variables |= {
            f"{kind}success": array(cells, success, long_name=f"answered right, {how}"),
            f"{kind}log_probability": array(cells, log_p, units="nats", long_name=f"ln p(answer), {how}"),
            f"{kind}pair_rate": array(("group", *cells[1:]), rates, long_name=f"share of prompts, {how}"),
        }
        best[f"{kind or 'oracle_'}rate"] = (success == 1).any((1, 2)).astype(float)
    if len(runs) > 1:
        best["difference"] = best["oracle_rate"] - best["control_rate"]
        best["forward_difference"] = best["oracle_rate"] - best["forward_rate"]
    for name, values in best.items():
        low, high = np.array([bootstrap_interval(values[group], seed) for group in members], dtype=float).T
        means = np.array([mean(values[group]) for group in members])
        variables[name] = array(("group",), means, long_name=f"{name}, best of all pairs")
        variables[f"{name}_low"] = array(("group",), low, long_name="95 % bootstrap interval, lower end")
        variables[f"{name}_high"] = array(("group",), high, long_name="95 % bootstrap interval, upper end")
    return xr.Dataset(variables, coords={"prompt": np.arange(len(right)), "group": np.array(GROUPS)})


def _summary(data: xr.Dataset) -> dict[str, object]:
    summary: dict[str, object] = {name: data.attrs[name] for name in ("n_prompts", "n_pairs")}
    names = ("oracle_rate", "control_rate", "difference", "forward_rate", "forward_difference")
    for group in GROUPS:
        one = data.sel(group=group)
        found: dict[str, object] = {"n": int(one["n"])}
        summary[group] = found
        if not found["n"]:
            continue
        for name in (name for name in names if name in one):
            found[name] = round(float(one[name]), 4)
            ends = [round(float(one[f"{name}_{end}"]), 4) for end in ("low", "high")]
            found[f"{name}_interval"] = None if np.isnan(ends).any() else ends
        rate = one["pair_rate"].values
        s, t = np.unravel_index(int(np.nanargmax(rate)), rate.shape)
        pair = [int(one["source_layer"][s]), int(one["target_layer"][t])]
        found["best_pair"] = {"source_to_target": pair, "rate": round(float(rate[s, t]), 4)}
    return summary
