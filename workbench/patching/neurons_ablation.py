"""Ablation of single neurons: silence some, and see whether the answer goes.

    m_{l,k} <- 0        for the given neurons (l, k), at the given positions; m: input of the down projection
    effect = measure(silenced) - measure(base)

measured twice: the log-probability of the answer, and whether it is the first choice. Blocks above follow.

Control: as many neurons of the same blocks, drawn at random from the others, several times. The effect of the given
neurons should lie outside what those draws give; `p_value` = (1 + draws whose |mean effect| is as large) / (1 + draws).

Yu & Ananiadou 2024 (2409.14144) silence the neurons that comparative analysis puts first, and compare accuracies.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.errors import DataError, SiteError
from workbench.hooks.session import EditFunction
from workbench.model.language_model import LanguageModel
from workbench.model.tokens import Positions, Prompt, at_least_one
from workbench.patching.mediation_answers import Tokens, token_ids
from workbench.patching.neurons_heads import log_probability
from workbench.patching.neurons_outcome import Neuron, over_prompts
from workbench.patching.replay import TOKENS_PER_CALL, Entry, Replay
from workbench.progress import Progress, Silent
from workbench.provenance import provenance
from workbench.results import Result, array

MEASURES = ("log_probability", "correct")


def ablate_neurons(
    model: LanguageModel,
    prompts: Prompt | Sequence[Prompt],
    answers: Tokens,
    neurons: Sequence[Neuron] | Sequence[Sequence[Neuron]],
    *,
    positions: Positions = -1,
    n_control: int = 20,
    seed: int = 0,
    tokens_per_call: int = TOKENS_PER_CALL,
    progress: Progress | None = None,
) -> Result:
    """Zero neurons and measure the answer, beside random neurons of the same blocks.

    Args:
        model: the language model.
        prompts: one or several, of any lengths.
        answers: exactly one token each; one for all prompts, or one per prompt.
        neurons: `(block, number)` of each, silenced together; or one such list for each prompt.
        positions: where they are silenced: the last token by default, as they are found there; "all" is what taking
            them out of the weights does.
        n_control: draws of random neurons; the smallest possible p-value is 1 / (1 + n_control). 0: no control.
        seed: of the draws and the bootstrap.
        tokens_per_call: tokens in one replayed batch. Results do not depend on it.
        progress: one item a prompt.

    Returns:
        A `Result` of kind `neuron_ablation`, float64. `measure` is `log_probability` (nats) or `correct` (1 or 0).
        [prompt, measure]: `base`, `ablated`, `effect`; over prompts `mean_effect`, `effect_se`, `effect_low`,
        `effect_high`. [prompt, draw, measure]: `control`, `control_effect`; [draw, measure] `mean_control_effect`;
        [measure] `p_value`. `summary` has accuracy and log-probability before, after, and with random neurons.

    Raises:
        SiteError: this architecture has no neurons in its blocks.
        PromptError: no prompts.
        DataError: a neuron that does not exist, is no (block, number) or is given twice, none at all, another number
            of lists, or a block with too few others to draw from.
        MetricError, PositionError: answers or positions that cannot be.

    Example:
        >>> ablate_neurons(model, ["2+3=", "4+1="], ["5", "5"], [(17, 402), (19, 33)]).summary
    """
    progress, started = progress or Silent(), time.perf_counter()
    batches = [model.batch(prompt) for prompt in at_least_one(prompts)]
    targets = token_ids(model, answers, len(batches))
    if n_control < 0:
        raise DataError(f"n_control is {n_control}: give how many random draws, or 0 for none.")
    given = _lists(neurons, len(batches))
    widths = _check(model, given)
    shared = all(one == given[0] for one in given)
    found = np.empty((len(batches), 2 + n_control, len(MEASURES)))
    progress.stage("ablate neurons", len(batches))
    for i, batch in enumerate(batches):
        replay, at = Replay(model, batch), batch.resolve(0, positions)
        start = replay.starts(min(at))
        rng = np.random.default_rng([seed, 0 if shared else i])
        sets = [given[i], *(_drawn(given[i], widths, rng) for _ in range(n_control))]
        entries = [_entry(replay, one, at, start) for one in sets]
        found[i, 0] = _measured(replay.logits[None], targets[i])[0]
        for part, logits in replay.logits_in_parts(entries, start, tokens_per_call=tokens_per_call):
            found[i, 1 + np.array(part)] = _measured(logits, targets[i])
        progress.advance()
    data = _dataset(found, seed).assign_coords(
        prompt=np.arange(len(batches)), measure=np.array(MEASURES), draw=np.arange(n_control)
    )
    data.attrs = {
        "positions": str(positions),
        "n_neurons": str(sorted({len(one) for one in given}))[1:-1],
        "control": f"{n_control} draws of as many other neurons of the same blocks"
        if n_control
        else "not run",
        "n_prompts": len(batches),
    }
    ids = [batch.ids[0].tolist() for batch in batches]
    listed = [[list(one) for one in some] for some in (given[:1] if shared else given)]
    settings = {"answers": targets, "neurons": listed[0] if shared else listed}
    seconds = {"ablate_neurons": time.perf_counter() - started}
    made = provenance(model, tokens=ids, seed=seed, seconds=seconds, settings=settings)
    return Result("neuron_ablation", data, made, _summary(data))


def _lists(neurons: Sequence, n: int) -> list[list[Neuron]]:
    """One list of neurons for each prompt."""
    listed = list(neurons)
    lists = (list, tuple, np.ndarray)
    nested = bool(listed) and all(
        isinstance(one, lists) and (len(one) == 0 or isinstance(one[0], lists)) for one in listed
    )
    each = [list(one) for one in listed] if nested else [listed] * n
    if len(each) != n:
        raise DataError(
            f"{len(each)} lists of neurons were given for {n} prompts: give one list for all, or one for each prompt."
        )
    found = [[_neuron(one) for one in some] for some in each]
    for one in found:
        if not one:
            raise DataError("No neurons were given: give (block, number) of one or more.")
        if len(set(one)) < len(one):
            raise DataError(f"A neuron was given twice: {max(one, key=one.count)}. Give each once.")
    return found


def _neuron(given: Sequence[int]) -> Neuron:
    try:
        layer, k = (operator.index(number) for number in given)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{given!r} is no neuron: give a list of (block, number), such as [(1, 4)], or one such list per prompt."
        ) from error
    return layer, k


def _check(model: LanguageModel, given: Sequence[Sequence[Neuron]]) -> dict[int, int]:
    """Block -> number of its neurons."""
    widths: dict[int, int] = {}
    for layer in sorted({layer for one in given for layer, _ in one}):
        if not 0 <= layer < model.n_layers:
            raise DataError(f"Block {layer} does not exist: {model.name} has blocks 0–{model.n_layers - 1}.")
        (site,) = model.resolve(f"blocks.{layer}.mlp.hook_post")
        down = model.module(site.module)
        weight = getattr(down, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim != 2:
            raise SiteError(
                f"{site.name} goes into a {type(down).__name__}, whose neurons cannot be counted."
            )
        widths[layer] = weight.shape[0 if type(down).__name__ == "Conv1D" else 1]
    for one in given:
        for layer, k in one:
            if not 0 <= k < widths[layer]:
                raise DataError(f"Neuron {k} of block {layer} does not exist: it has 0–{widths[layer] - 1}.")
    return widths


def _drawn(given: Sequence[Neuron], widths: dict[int, int], rng: np.random.Generator) -> list[Neuron]:
    """As many other neurons of the same blocks."""
    out: list[Neuron] = []
    for layer in sorted({layer for layer, _ in given}):
        taken = [k for at, k in given if at == layer]
        free = np.setdiff1d(np.arange(widths[layer]), taken)
        if len(free) < len(taken):
            raise DataError(
                f"{len(taken)} of the {widths[layer]} neurons of block {layer} were given, so there are not as many "
                "others to compare with. Give fewer, or n_control=0."
            )
        out += [(layer, int(k)) for k in rng.choice(free, len(taken), replace=False)]
    return out


def _entry(replay: Replay, neurons: Sequence[Neuron], at: Sequence[int], start: int) -> Entry:
    """A row in which these neurons are silent."""
    first = min(layer for layer, _ in neurons)
    rows = torch.tensor([p - start for p in at])[:, None]
    edits = {
        f"blocks.{layer}.mlp.hook_post": _silence(rows, [k for where, k in neurons if where == layer])
        for layer in sorted({layer for layer, _ in neurons})
    }
    return Entry(first, replay.inputs[first][start:], edits)


def _silence(rows: Tensor, neurons: Sequence[int]) -> EditFunction:
    columns = torch.tensor(neurons)

    def edit(post: Tensor) -> Tensor:
        post[rows.to(post.device), columns.to(post.device)] = 0
        return post

    return edit


def _measured(logits: Tensor, target: int) -> np.ndarray:
    """[row, measure]."""
    right = (logits.argmax(-1) == target).double().cpu()
    return torch.stack([log_probability(logits, target), right], dim=-1).numpy()


def _dataset(found: np.ndarray, seed: int) -> xr.Dataset:
    """From [prompt, run, measure]; runs: base, ablated, controls."""
    base, dims = found[:, 0], ("measure",)
    made: dict[str, object] = {
        "base": array(("prompt", *dims), base, long_name="base run"),
        "ablated": array(("prompt", *dims), found[:, 1], long_name="with the neurons silent"),
    }
    made |= over_prompts("effect", found[:, 1] - base, dims, "silent − base", seed)
    if found.shape[1] > 2:
        drawn = found[:, 2:] - base[:, None]
        label = "control: random neurons of the same blocks silent − base"
        made["control"] = array(
            ("prompt", "draw", *dims), found[:, 2:], long_name="with random neurons silent"
        )
        made["control_effect"] = array(("prompt", "draw", *dims), drawn, long_name=label)
        made["mean_control_effect"] = array(
            ("draw", *dims), drawn.mean(0), long_name=f"{label}, mean over prompts"
        )
        effect = np.abs((found[:, 1] - base).mean(0))
        p = (1 + (np.abs(drawn.mean(0)) >= effect - 1e-12).sum(0)) / (1 + drawn.shape[1])
        made["p_value"] = array(dims, p, long_name="share of draws whose |mean effect| is as large")
    return xr.Dataset(made)  # pyright: ignore[reportArgumentType]


def _summary(data: xr.Dataset) -> dict[str, object]:
    found: dict[str, object] = {
        "n_prompts": int(data.sizes["prompt"]), "n_neurons": data.attrs["n_neurons"], "control": data.attrs["control"],
    }  # fmt: skip
    for measure, name in zip(MEASURES, ("log_p", "accuracy"), strict=True):
        one = data.sel(measure=measure)
        row: dict[str, object] = {
            "base": round(float(one["base"].mean()), 4), "ablated": round(float(one["ablated"].mean()), 4),
        }  # fmt: skip
        if data.sizes["prompt"] > 1:
            row["interval_of_effect"] = [round(float(one[f"effect_{end}"]), 4) for end in ("low", "high")]
        if "control" in data:
            row["random_neurons"] = round(float(one["control"].mean()), 4)
            row["p_value"] = round(float(one["p_value"]), 4)
        found[name] = row
    return found
