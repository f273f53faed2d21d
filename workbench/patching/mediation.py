"""Causal mediation: which component, at which token, carries the result from the prompt to the answer?

A pair: prompt p with result r, prompt p' with result r' (other operands, or another operation, of equal length). A
component z of p's run (what the MLP or the attention of one block adds to the stream at one position) is replaced by
its value on p', and the rest of the run follows:

    IE(z) = ½ [log P*(r') - log P(r') + log P(r) - log P*(r)]        indirect effect, in nats: `effect`
    TE    = the same with P* replaced by P(. | p')                    total effect

above 0 where z moves the answer from r to r'. Stolfo et al. 2023 (2305.15054) take relative probabilities instead of
their logarithms; that form is here as `relative_effect`. Why it is not the default stands in `mediation_effects`: it
explodes where r' was improbable. `effect` is half the change of the logit difference r' - r, hence what a denoising
sweep measures, before it is divided by the pair's total effect.

Control, result-preserving (their type 2): a prompt p'' with other operands and the *same* result r. Its activations
carry other operands and the same result, so what they do is not due to the result: `control_effect` is the same form,
with the same r and r', and `control_change` = |P(r) - P*(r)|, which is what the paper compares. (With r' = r the log
form would be 0 whatever happens, and theirs ½ (P* - P)² / (P P*), which cannot tell up from down.) Without such prompts
the control is a wrong-source patch: the component of another pair's p'.

Patches run by `replay`: all components and blocks of one position, and the control's, go up as one wave. A patch that
is bit-equal to what it replaces is not run.

What differs from the paper: it also patches the word embeddings as a "layer -1", which is `resid_pre` of block 0 in a
sweep; attention is taken where it enters the stream. Its candidates (numbers up to a largest one) choose among answers,
but its probabilities stay those of the whole vocabulary; here `candidates` renormalises.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from workbench.errors import MetricError, PromptError
from workbench.hooks.session import EditFunction
from workbench.model.language_model import LanguageModel
from workbench.model.tokens import Positions, Prompt, as_list
from workbench.patching.cells import KINDS, check_layers
from workbench.patching.mediation_answers import Tokens, Vocabulary, token_ids
from workbench.patching.mediation_effects import relative_importance
from workbench.patching.mediation_outcome import dataset, summary
from workbench.patching.metrics import Answer
from workbench.patching.pairs import Pair, as_pairs
from workbench.patching.replay import TOKENS_PER_CALL, Entry, Replay
from workbench.patching.sources import Activations, read, wrong_sources
from workbench.progress import Progress, Silent
from workbench.provenance import provenance
from workbench.results import Result, array

__all__ = ["COMPONENTS", "mediation", "relative_importance"]

COMPONENTS = ("mlp_out", "attn_out")


def mediation(
    model: LanguageModel,
    prompts: Prompt | Sequence[Prompt],
    others: Prompt | Sequence[Prompt],
    results: Tokens,
    other_results: Tokens,
    *,
    same_result: Prompt | Sequence[Prompt] | None = None,
    components: str | Sequence[str] = COMPONENTS,
    layers: Sequence[int] | int | None = None,
    positions: Positions = "all",
    candidates: Sequence[Answer] | None = None,
    control: bool = True,
    seed: int = 0,
    tokens_per_call: int = TOKENS_PER_CALL,
    progress: Progress | None = None,
) -> Result:
    """Indirect effects of all components at all positions, for pairs of prompts with different results.

    Args:
        model: the language model.
        prompts, others: p and p', one each or as many as there are pairs, all of one number of tokens.
        results, other_results: r and r', each exactly one token (mind the leading space); one for all pairs, or one a
            pair.
        same_result: p'', one a pair: other operands, the result of p. Their patches are the control.
        components: `mlp_out`, `attn_out` or both.
        layers: which blocks; all by default.
        positions: which positions, all by default; negative ones count from the end.
        candidates: tokens over which probabilities are renormalised; None, the default, for the whole vocabulary. The
            log form `effect` does not depend on it.
        control: also run the control's patches (doubles the time).
        seed: of the bootstrap, the permutations and, with one pair and no `same_result`, the control.
        tokens_per_call: tokens in one replayed batch. Results do not depend on it.
        progress: where to report, one item per pair and position.

    Returns:
        A `Result` of kind `causal_mediation`, float64. Dims `pair`, `component`, `layer`, `position`: `effect`,
        `relative_effect`, `change`, `log_p_result` and `log_p_other_result` (patched run), and with a control
        `control_effect`, `control_relative_effect`, `control_change`. Over pairs: `mean_X`, `X_se` (standard error) and
        `X_low`, `X_high` (95 % bootstrap) of each, and `p_value` of effect against control (permutations). Per pair:
        `total_effect`, `total_relative_effect`, `total_change`, log-probabilities of both unpatched runs, and
        `correct`, `other_correct` (r, r' is the first choice). See `relative_importance` for shares.

    Raises:
        MetricError: a result that is not one token or no candidate, or r = r'.
        PromptError: prompts of different lengths or that do not differ, other numbers of them, an unknown component.
        SiteError: this architecture has no such component.

    Example:
        >>> result = mediation(model, "2 + 5 =", "3 + 1 =", " 7", " 4", same_result="4 + 3 =")
        >>> result.data["mean_effect"].sel(component="mlp_out", position=3)
    """
    progress, started = progress or Silent(), time.perf_counter()
    kinds = _kinds(components)
    chosen = check_layers(layers, model.n_layers, model.name)
    pairs = _pairs(model, others, prompts, "others")
    answers = _answers(model, results, other_results, len(pairs))
    vocabulary = Vocabulary(model, candidates)
    vocabulary.check([r for r, _ in answers], "results")
    vocabulary.check([r for _, r in answers], "other_results")
    if same_result is not None and not control:
        raise PromptError("same_result is the control, and control=False: leave one of them out.")
    same = None if same_result is None else _pairs(model, same_result, prompts, "same_result")
    at = list(dict.fromkeys(pairs[0][1].resolve(0, positions)))
    sites = {k: [s.name for s in model.resolve([f"blocks.{i}.{KINDS[k]}" for i in chosen])] for k in kinds}
    names = [site for k in kinds for site in sites[k]]

    taken = [read(model, other, names) for other, _ in pairs]
    wrong: list[Activations] | None = None
    name = "not run"
    if same is not None:
        wrong = [read(model, one, names) for one, _ in same]
        name = "result-preserving: prompts with other operands and the same result (type 2)"
    elif control:
        wrong = wrong_sources(taken, np.random.default_rng(seed), "")
        which = "the next pair's other prompt" if len(pairs) > 1 else "the other prompt at deranged positions"
        name = f"wrong source: {which}"
    patched, ends, first, unchanged = [], [], [], 0
    progress.stage("causal mediation", len(pairs) * len(at))
    for i, (_, base) in enumerate(pairs):
        replay = Replay(model, base)
        unpatched = torch.stack([replay.logits.to(taken[i]["logits"].device), taken[i]["logits"]])
        ends.append(vocabulary.log_probabilities(unpatched, answers[i]).numpy())
        first.append(vocabulary.first_choice(unpatched).numpy())
        sources = [taken[i]] if wrong is None else [taken[i], wrong[i]]
        own = read(model, base, names)
        log_p = lambda logits, i=i: vocabulary.log_probabilities(logits, answers[i]).numpy()  # noqa: E731
        grid, left_out = _grid(
            replay, sources, own, list(sites.values()), at, ends[i][0], log_p, tokens_per_call, progress
        )
        patched.append(grid)
        unchanged += left_out
    values = np.stack(patched)
    data = dataset(values, np.stack(ends), seed).assign_coords(
        pair=np.arange(len(pairs)),
        component=np.array(kinds),
        layer=np.array(chosen),
        position=np.array(at),
        token=("position", np.array([pairs[0][1].tokens[0][p] for p in at], dtype=str)),
        other_token=("position", np.array([pairs[0][0].tokens[0][p] for p in at], dtype=str)),
    )
    data["correct"] = array(("pair",), np.stack(first)[:, 0] == np.array(answers)[:, 0])
    data["other_correct"] = array(("pair",), np.stack(first)[:, 1] == np.array(answers)[:, 1])
    data.attrs = {
        "probabilities": f"over {vocabulary}",
        "control": name,
        "unchanged": f"{unchanged} of {values[:, 0, ..., 0].size} patches put in what was there already, so they were "
        "not run",
        "n_pairs": len(pairs),
        "n_layers": model.n_layers,
        "n_tokens": pairs[0][1].lengths[0],
    }
    ids = [batch.ids[0].tolist() for pair in pairs for batch in reversed(pair)]
    settings = {
        "results": answers,
        "candidates": vocabulary.ids,
        "same_result_tokens": None if same is None else [one.ids[0].tolist() for one, _ in same],
    }
    seconds = {"mediation": time.perf_counter() - started}
    made = provenance(model, tokens=ids, seed=seed, seconds=seconds, settings=settings)
    return Result("causal_mediation", data, made, summary(data))


@torch.inference_mode()
def _grid(
    replay: Replay,
    sources: Sequence[Activations],
    own: Activations,
    sites: Sequence[Sequence[str]],
    positions: Sequence[int],
    untouched: np.ndarray,
    log_p: Callable[[Tensor], np.ndarray],
    tokens_per_call: int,
    progress: Progress,
) -> tuple[np.ndarray, int]:
    """[source, component, layer, position, token] log-probabilities, and how many patches of others were not run."""
    grid = np.empty((len(sources), len(sites), len(sites[0]), len(positions), 2))
    left_out = 0
    for column, position in enumerate(positions):
        start = replay.starts(position)
        entries, places = [], []
        for s, source in enumerate(sources):
            for c, some in enumerate(sites):
                for row, site in enumerate(some):
                    if torch.equal(source[site][position], own[site][position]):
                        grid[s, c, row, column] = untouched
                        left_out += s == 0
                        continue
                    layer = int(site.split(".")[1])
                    edit = _put(source[site][position], position - start)
                    entries.append(Entry(layer, replay.inputs[layer][start:], {site: edit}))
                    places.append((s, c, row, column))
        for part, logits in replay.logits_in_parts(entries, start, tokens_per_call=tokens_per_call):
            for i, value in zip(part, log_p(logits), strict=True):
                grid[places[i]] = value
        progress.advance()
    return grid, left_out


def _put(new: Tensor, at: int) -> EditFunction:
    def edit(activation: Tensor) -> Tensor:
        activation[at] = new.to(activation)
        return activation

    return edit


def _kinds(components: str | Sequence[str]) -> list[str]:
    kinds = list(dict.fromkeys([components] if isinstance(components, str) else components))
    unknown = [kind for kind in kinds if kind not in COMPONENTS]
    if unknown or not kinds:
        problem = f"Component {unknown[0]!r} is not known" if unknown else "No components were asked for"
        raise PromptError(
            f"{problem}: give {' or '.join(map(repr, COMPONENTS))}, or both (streams: `sweep`)."
        )
    return kinds


def _answers(model: LanguageModel, results: Tokens, other_results: Tokens, n: int) -> list[tuple[int, int]]:
    """(r, r') of each pair."""
    both = list(
        zip(
            token_ids(model, results, n, "results"),
            token_ids(model, other_results, n, "other_results"),
            strict=True,
        )
    )
    for i, (r, other) in enumerate(both):
        if r == other:
            raise MetricError(
                f"Pair {i}: both results are token {r}, so no component can move the answer from one to the "
                "other. Give pairs with different results; prompts with the same result are for `same_result`."
            )
    return both


def _pairs(
    model: LanguageModel, sources: Prompt | Sequence[Prompt], prompts: Prompt | Sequence[Prompt], name: str
) -> list[Pair]:
    """(source, prompt) of each pair; a message about them names where the sources come from."""
    n_sources, n = len(as_list(sources)), len(as_list(prompts))
    if n_sources != n:
        raise PromptError(f"{n_sources} prompts of `{name}` were given for {n} `prompts`: give one for each.")
    try:
        pairs = as_pairs(model, sources, prompts)
    except PromptError as error:
        raise PromptError(f"`{name}` (clean) and `prompts` (corrupt) do not go together. {error}") from error
    for i, (source, prompt) in enumerate(pairs):
        if torch.equal(source.ids, prompt.ids):
            raise PromptError(
                f"Pair {i}: the prompt of `{name}` is the prompt itself, so its patches change nothing. Give another."
            )
    return pairs
