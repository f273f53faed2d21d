"""Does the model use the helix? Put a fitted activation of another number at the number's token and read the answer.

For a pair of problems (a, b) and (a', b), layer l and basis, with the basis fitted to numbers other than a'

    1. run (a, b)
    2. replace the residual stream before block l at the token of a by ĥ_l(a')
    3. read the last position:  effect = Δ [logit(answer') − logit(answer)],  patched minus unpatched

| source | what is put in | knows h(a')? |
| --- | --- | --- |
| `layer` | h_l(a', b) itself, of the run on (a', b): the ceiling | yes |
| `helix`, `circle`, `polynomial` | the fit's prediction for a' | no |
| `pca` | the mean and k principal components of h_l(a', b) | yes: k of its coordinates |
| `permuted` | the helix fitted to permuted numbers: the null | no |
| `mean` | the mean of the training rows: takes a away, puts nothing in | no |

All with as many columns as the helix. Every number is a' in one of `n_folds` folds, and what is put in was fitted
without that fold. A logit difference also rises where the old answer is merely destroyed: `mean` and `permuted`
show by how much, and `probability` and `success` (answer' is the first choice) do not have this flaw.

Intervals resample the numbers a', not the pairs: pairs with the same a' share what is put in.

Source: Kantamneni & Tegmark 2025 (2502.00873), where the metric is the change of logit(answer') alone (`logit_change`
here). A comparison with principal components of equal size favours the components: they are given h(a').
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float64
from threadpoolctl import threadpool_limits

from probes.periodic.basis import (
    PERIODS,
    Basis,
    check_periods,
    circle_of_size,
    helix,
    permuted,
    polynomial,
)
from probes.periodic.causal_outcome import MEASURES, SOURCES, Fits, dataset, summary
from probes.periodic.helix import BasisProbe
from probes.periodic.numbers import (
    NumberActivations,
    NumberTask,
    ids_of,
    number_position,
    read_numbers,
    site_of,
)
from probes.periodic.pairs import NumberPairs, draw_pairs
from probes.periodic.periods import CANDIDATES, greedy, number_means
from probes.periodic.splits import number_folds
from workbench.errors import DataError
from workbench.progress import Progress, Silent
from workbench.provenance import provenance
from workbench.results import Result

if TYPE_CHECKING:
    from workbench.model.language_model import LanguageModel


def helix_patch(
    model: LanguageModel,
    task: NumberTask,
    *,
    periods: Sequence[float | int] | int | np.integer = PERIODS,
    candidates: Sequence[float | int] = CANDIDATES,
    layers: Sequence[int] | None = None,
    n_pairs: int = 200,
    n_folds: int = 4,
    n_contexts: int = 1,
    n_permutations: int = 5,
    n_bootstrap: int = 1000,
    batch_size: int = 512,
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """Replace the activation of a number by what a helix says another number's is, beside ceiling, rivals and null.

    Args:
        model: the language model; its weights are left alone.
        task: prompts and answers.
        periods: of the helix; a number: so many are chosen from `candidates`, on the training numbers of each fold.
        candidates: periods to choose from.
        layers: where to replace, the residual stream before these blocks; None: before each.
        n_pairs: pairs drawn; those whose two problems the model both gets right are used.
        n_folds: folds of the numbers; with 4, fits see three quarters of them.
        n_contexts: prompts a number for the fit (`read_numbers`).
        n_permutations: of the null, averaged for each pair.
        n_bootstrap: resamples of the numbers a' for the intervals.
        batch_size: rows in one forward pass. Results do not depend on it.
        seed: of pairs, folds, permutations and resamples.
        progress: one item a layer.

    Returns:
        A `Result` of kind `probe_periodic_patch`. (layer, source, pair): `effect`, `logit_change`, `probability`,
        `success` of each pair. (layer, source): their means `mean_effect`, …; `helix_minus_effect`, … (the helix's mean
        minus the source's, on the same pairs); `share` of the layer patch's mean effect; each with `_low` and `_high`
        (95 % over numbers). (source): `n_columns`. (layer, fold, rank): `period`.

    Raises:
        DataError: numbers of several tokens, no pair that the model gets right, too few numbers for the basis.
        MetricError: an answer that is not one token.

    Example:
        >>> task = NumberTask("{a} + {b} =", range(100), range(100))
        >>> helix_patch(wb.load_model("addition"), task, periods=4).summary["share"]
    """
    progress, started = progress or Silent(), time.perf_counter()
    if n_permutations < 1 or n_bootstrap < 1 or n_pairs < 1 or batch_size < 1:
        raise DataError("n_pairs, n_permutations, n_bootstrap and batch_size must each be 1 or more.")
    check_periods(candidates if isinstance(periods, (int, np.integer)) else periods)
    wanted = list(range(model.n_layers)) if layers is None else list(layers)
    number_position(model, task)  # numbers of several tokens are refused before anything is run
    pairs = draw_pairs(model, task, n_pairs, seed, batch_size)
    acts = read_numbers(model, task, layers=wanted, n_contexts=n_contexts, seed=seed)
    ceiling = _true_rows(model, task, pairs, wanted, acts.position)
    progress.stage("helix_patch", len(wanted))
    runs, fits = [], []
    for layer in wanted:
        fit = _fit(acts, layer, pairs, ceiling[layer], periods, candidates, n_folds, n_permutations, seed)
        runs.append(_run(model, pairs, site_of(model, layer), acts.position, fit.vectors, batch_size))
        fits.append(fit)
        progress.advance()
    values = {name: np.stack([run[name] for run in runs]) for name in MEASURES}
    data = dataset(values, wanted, pairs, fits, n_bootstrap, seed)
    data.attrs = {
        "n": len(pairs),
        "n_drawn": pairs.n_drawn,
        "n_numbers": len(np.unique(pairs.new)),
        "n_folds": n_folds,
        "operand": task.operand,
        "position": acts.position,
        "template": task.template,
        "chosen_periods": isinstance(periods, (int, np.integer)),
        "control": f"helix of permuted numbers, mean of {n_permutations} permutations",
    }
    where = provenance(
        model,
        tokens=pairs.ids.tolist(),
        seed=seed,
        seconds={"helix_patch": time.perf_counter() - started},
        settings={"task": task.to_dict(), "n_contexts": n_contexts, "n_bootstrap": n_bootstrap},
    )
    return Result("probe_periodic_patch", data, where, summary(data))


def _true_rows(
    model: LanguageModel, task: NumberTask, pairs: NumberPairs, layers: Sequence[int], position: int
) -> dict[int, Float64[np.ndarray, "pair d"]]:
    from workbench.activations import collect

    ids = ids_of(model, task, pairs.new.tolist(), pairs.other.tolist())
    sites = {layer: site_of(model, layer) for layer in layers}
    acts = collect(model, ids.tolist(), sites=list(dict.fromkeys(sites.values())), positions=position)
    return {layer: acts[site][:, 0].flatten(1).double().numpy() for layer, site in sites.items()}


@threadpool_limits.wrap(1, user_api="blas")  # many small systems: threads would wait for each other
def _fit(
    acts: NumberActivations,
    layer: int,
    pairs: NumberPairs,
    true: Float64[np.ndarray, "pair d"],
    periods: Sequence[float | int] | int | np.integer,
    candidates: Sequence[float | int],
    n_folds: int,
    n_permutations: int,
    seed: int,
) -> Fits:
    rows, numbers = acts.rows[layer].astype(np.float64), acts.numbers
    low, high = int(numbers.min()), int(numbers.max())
    fold = number_folds(numbers, n_folds, seed)
    fold_of = dict(zip(numbers.tolist(), fold.tolist(), strict=True))
    of_pair = np.array([fold_of[n] for n in pairs.new.tolist()])
    names = [n for n in SOURCES if n != "permuted"] + [f"permuted {i}" for i in range(n_permutations)]
    vectors = {name: np.zeros_like(true) for name in names}
    vectors["layer"] = true
    found, n_columns = [], 0
    for f in range(n_folds):
        train, here = fold != f, of_pair == f
        values, means = number_means(rows[train], numbers[train])
        if isinstance(periods, (int, np.integer)):
            chosen = greedy(means, values, candidates, int(periods), number_folds(values, 4, seed))[0]
        else:
            chosen = tuple(float(T) for T in periods)
        basis = helix(chosen, low, high)
        k = n_columns = max(n_columns, basis.n_columns)
        bases: dict[str, Basis] = {
            "helix": basis,
            "circle": circle_of_size(chosen, basis.n_columns, low, high),
            "polynomial": polynomial(basis.n_columns, low, high),
        }
        for i in range(n_permutations):
            bases[f"permuted {i}"] = permuted(basis, numbers, seed=1000 * seed + 100 * f + i)
        for name, one in bases.items():
            probe = BasisProbe(one, n_components=None).fit(numbers[train], rows[train])
            if here.any():
                vectors[name][here] = probe.predict(pairs.new[here])
        mean = rows[train].mean(0)
        axes = np.linalg.svd(rows[train] - mean, full_matrices=False)[2][:k]
        vectors["pca"][here] = mean + (true[here] - mean) @ axes.T @ axes
        vectors["mean"][here] = mean
        found.append(chosen)
    return Fits(vectors, tuple(found), n_columns)


@torch.inference_mode()
def _run(
    model: LanguageModel,
    pairs: NumberPairs,
    site: str,
    position: int,
    vectors: dict[str, Float64[np.ndarray, "pair d"]],
    batch_size: int,
) -> dict[str, Float64[np.ndarray, "source pair"]]:
    """Every source and pair as a row of a batch."""
    n, names = len(pairs), list(vectors)
    taken = torch.from_numpy(np.concatenate([vectors[name] for name in names])).to(model.device, model.dtype)
    ids = torch.from_numpy(np.tile(pairs.ids, (len(names), 1))).to(model.device)
    parts = []
    for start in range(0, len(ids), batch_size):
        some = slice(start, start + batch_size)

        def put(activation: torch.Tensor, some: slice = some) -> torch.Tensor:
            activation[:, position] = taken[some]
            return activation

        with model.edit({site: put}):
            out = model.hf(input_ids=ids[some], use_cache=False, logits_to_keep=1)
        parts.append(out.logits[:, -1].float())
    measured = pairs.measure(torch.cat(parts).reshape(len(names), n, -1))
    found = {}
    for measure, values in measured.items():
        null = np.mean([values[i] for i, name in enumerate(names) if name.startswith("permuted")], axis=0)
        rows = [null if m == "permuted" else values[names.index(m)] for m in SOURCES]
        found[measure] = np.stack(rows)
    return found
