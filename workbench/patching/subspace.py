"""Interchange interventions in a subspace, and distributed alignment search (DAS).

    x' = x + B^T B (s - x)          x: base run's activation, s: source run's, B: [rank, d] orthonormal rows

puts the source's coordinates into the subspace spanned by B and leaves the rest of the base run's activation alone. If
the subspace holds a variable, the model then answers as if that variable alone had the source's value. DAS finds B by
gradient descent on the log-probability of that counterfactual answer.

A rotation that is trained always finds something, so it is scored on pairs it was not trained on and stands beside
random subspaces of the same rank, the leading principal components of the differences s - x, and the whole activation.

Source: Geiger et al. 2024 (2303.02536), section 3. Interchange intervention accuracy (IIA): share of held-out pairs
whose first choice is the counterfactual answer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from workbench.errors import DataError, MetricError, PromptError, SiteError
from workbench.model.language_model import LanguageModel
from workbench.model.tokens import Prompt, as_list
from workbench.patching.mediation_answers import Tokens, token_ids
from workbench.patching.pairs import as_pairs
from workbench.progress import Progress, Silent
from workbench.provenance import provenance
from workbench.results import Result, array
from workbench.statistics import bootstrap_interval

SUBSPACES = ("trained", "pca", "random", "whole")


@dataclass(frozen=True)
class _Task:
    """Pairs of one length, as tensors."""

    model: LanguageModel
    site: str
    base: Tensor
    """[pair, position] ids."""
    position: Tensor
    """[pair] where the subspace is."""
    taken: Float[Tensor, "pair d"]
    """The source runs' activations there."""
    own: Float[Tensor, "pair d"]
    answers: Tensor
    """[pair] the counterfactual answer's token."""
    targets: Float[Tensor, "pair d_vocab"] | None

    def logits(self, basis: Float[Tensor, "rank d"] | None, some: Tensor) -> Float[Tensor, "row d_vocab"]:
        """Logits at the end of some pairs' base prompts; None exchanges the whole activation."""
        rows = torch.arange(len(some))
        position, taken = self.position[some], self.taken[some]

        def edit(activation: Tensor) -> Tensor:
            x = activation[rows, position].flatten(1)
            source = taken.to(x)
            new = source if basis is None else x + (source - x) @ basis.T.to(x) @ basis.to(x)
            activation[rows, position] = new.reshape(activation[rows, position].shape)
            return activation

        with self.model.edit({self.site: edit}):
            out = self.model.hf(input_ids=self.base[some], use_cache=False, logits_to_keep=1)
        return out.logits[:, -1]

    def loss(self, basis: Tensor, some: Tensor) -> Tensor:
        """Mean over pairs, in nats."""
        logits = self.logits(basis, some).float()
        if self.targets is not None:
            return torch.nn.functional.cross_entropy(logits, self.targets[some].to(logits))
        return torch.nn.functional.cross_entropy(logits, self.answers[some].to(logits.device))


def das(
    model: LanguageModel,
    base: Sequence[Prompt],
    source: Sequence[Prompt],
    answers: Tokens,
    *,
    site: str,
    positions: int | Sequence[int] = -1,
    rank: int = 1,
    steps: int = 200,
    learning_rate: float = 0.01,
    batch_size: int = 32,
    train_share: float = 0.7,
    n_random: int = 5,
    targets: Float[Tensor, "pair d_vocab"] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """Train a subspace that holds a variable, and score it on held-out pairs beside its controls.

    Args:
        model: the language model. Its weights are left alone.
        base, source: pairs of prompts, all of one length.
        answers: what the model should answer to the base prompt if the variable had the source's value; one token each,
            one for all pairs or one per pair.
        site: where the subspace is: one site that has a vector at every position (no attention pattern, no logits).
        positions: one index for all pairs (negative: from the end), or one per pair.
        rank: dimensions of the subspace.
        steps, learning_rate, batch_size: of Adam on the rotation (QR of a [d, rank] matrix).
        train_share: pairs the rotation is trained on; scored on the others.
        n_random: random subspaces that the control averages, at least one.
        targets: distributions over the vocabulary to train towards in place of the answers.
        seed: of the split, the start, the batches and the random subspaces.
        progress: one item a step.

    Returns:
        A `Result` of kind `das`: `success` and `log_probability` [subspace, pair] on held-out pairs, `accuracy` with
        `accuracy_low`, `accuracy_high` [subspace] for trained, pca, random, whole; `basis` [rank, d], `loss`
        [step]. `summary["unpatched"]` is the share that gives the counterfactual answer without any intervention.
        `attrs` and `summary` have `pca_rank`: the principal components in the subspace `pca`. Where training pairs
        differ in fewer directions than `rank`, the others of its dimensions are random ones, orthogonal to those.

    Raises:
        PromptError, MetricError: no pairs, or pairs, positions or answers that do not fit.
        SiteError: a site without a vector at every position.
        DataError: too few pairs to train and to test, a rank that the site does not have, or numbers that cannot be.

    Example:
        >>> wb.patching.das(model, base, source, answers, site="blocks.9.hook_resid_post", rank=2).summary["accuracy"]
    """
    progress, started = progress or Silent(), time.perf_counter()
    for name, number in (("steps", steps), ("batch_size", batch_size), ("n_random", n_random)):
        if isinstance(number, bool) or not isinstance(number, Integral) or number < 1:
            raise DataError(f"{name} is {number!r}; expected a whole number, 1 or more.")
    task = _task(model, base, source, answers, site, positions, targets)
    n, width = len(task.base), task.taken.shape[1]
    train, test = _split(n, train_share, seed)
    if not 1 <= rank <= width:
        raise DataError(f"rank is {rank}; {task.site!r} has {width} dimensions, give 1 to {width}.")
    progress.stage("das", steps)
    basis, losses = _train(task, train, rank, steps, learning_rate, batch_size, seed, progress)
    pca, pca_rank = _principal(task, train, rank, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    random = [_orthonormal(torch.randn(width, rank, generator=generator)) for _ in range(n_random)]
    scores = [
        _score(task, basis, test),
        _score(task, pca, test),
        [np.mean(values, axis=0) for values in zip(*(_score(task, b, test) for b in random), strict=True)],
        _score(task, None, test),
    ]
    success, log_probability = (np.stack([score[i] for score in scores]) for i in range(2))
    low, high = bootstrap_interval(success.T, seed)
    untouched = _score(task, torch.zeros(1, width), test)[0]
    variables = {
        "success": array(
            ("subspace", "pair"), success, long_name="first choice is the counterfactual answer"
        ),
        "log_probability": array(
            ("subspace", "pair"), log_probability, long_name="ln p(counterfactual answer)"
        ),
        "accuracy": array(
            ("subspace",), success.mean(1), long_name="interchange intervention accuracy, held out"
        ),
        "accuracy_low": array(("subspace",), low, long_name="95 % bootstrap interval over pairs, lower end"),
        "accuracy_high": array(
            ("subspace",), high, long_name="95 % bootstrap interval over pairs, upper end"
        ),
        "basis": array(("rank", "d"), basis.numpy(), long_name="orthonormal rows of the trained subspace"),
        "loss": array(("step",), np.array(losses), long_name="training loss, nats"),
    }
    attrs = {
        "site": task.site,
        "n_train": len(train),
        "n_test": len(test),
        "rank": rank,
        "pca_rank": pca_rank,
        "control": f"{n_random} random subspaces of the same rank, averaged",
    }
    coords = {"subspace": np.array(SUBSPACES), "pair": test.numpy()}
    summary = {
        "accuracy": {m: round(float(a), 4) for m, a in zip(SUBSPACES, success.mean(1), strict=True)},
        "unpatched": round(float(untouched.mean()), 4),
        "pca_rank": pca_rank,
        "n_test": len(test),
    }
    where = provenance(
        model, tokens=task.base.tolist(), seed=seed, seconds={"das": time.perf_counter() - started}
    )
    return Result("das", xr.Dataset(variables, coords=coords, attrs=attrs), where, summary)


@torch.inference_mode()
def interchange(
    model: LanguageModel,
    base: Prompt | Sequence[Prompt],
    source: Prompt | Sequence[Prompt],
    *,
    site: str,
    positions: int | Sequence[int] = -1,
    basis: Float[Tensor, "rank d"] | None = None,
) -> Float[Tensor, "pair d_vocab"]:
    """Logits at the end of each base prompt with the source's coordinates in a subspace.

    Args:
        model, base, source, site, positions: as in `das`; one pair may be given as two prompts.
        basis: rows that span it, linearly independent, made orthonormal here; None exchanges the whole activation.

    Raises:
        PromptError, SiteError: as in `das`.
        DataError: a basis of another shape or width, or whose rows depend on each other.
    """
    task = _task(model, base, source, 0, site, positions, None)
    rows = None if basis is None else _orthonormal(_checked(basis, task).T)
    return task.logits(rows, torch.arange(len(task.base)))


def _checked(basis: Tensor, task: _Task) -> Float[Tensor, "rank d"]:
    given, width = torch.as_tensor(basis).float(), task.taken.shape[1]
    if given.ndim != 2 or not len(given) or given.shape[1] != width:
        raise DataError(
            f"basis has shape {tuple(given.shape)}; {task.site!r} has {width} dimensions, give [rank, {width}]."
        )
    if not given.isfinite().all() or int(torch.linalg.matrix_rank(given)) < len(given):
        raise DataError(
            f"The {len(given)} rows of the basis depend on each other (or are not finite), so they do not span "
            f"{len(given)} dimensions: give linearly independent rows."
        )
    return given


def _task(model, base, source, answers, site, positions, targets) -> _Task:
    pairs = as_pairs(model, as_list(base), as_list(source))
    if isinstance(answers, (list, tuple)) and len(answers) != len(pairs):
        raise MetricError(f"{len(answers)} answers were given for {len(pairs)} pairs: give one for each.")
    given = token_ids(model, answers, len(pairs))
    sites = model.resolve(site)
    if len(sites) != 1:
        raise PromptError(f"{site!r} names {len(sites)} sites; a subspace is at one.")
    if sites[0].where == "pattern" or "d_vocab" in sites[0].dims:
        raise SiteError(
            f"{sites[0].name!r} has dims {sites[0].dims}: a subspace needs a vector of activations at every position. "
            "Give a stream, an attention or MLP output, neurons, or q, k, v or z."
        )
    length = pairs[0][0].lengths[0]
    one = isinstance(positions, Integral)
    listed = [positions] * len(pairs) if one else [int(p) for p in positions]
    if len(listed) != len(pairs) or any(not -length <= p < length for p in listed):
        raise PromptError(f"positions must be one index, or one per pair, within prompts of {length} tokens.")
    position = torch.tensor([int(p) % length for p in listed])
    if targets is not None and tuple(targets.shape) != (len(pairs), model.vocab_size):
        raise MetricError(
            f"targets have shape {tuple(targets.shape)}, expected {(len(pairs), model.vocab_size)}."
        )
    ids = [torch.cat([pair[i].ids for pair in pairs]) for i in range(2)]
    rows = torch.arange(len(pairs))
    read = []
    with torch.inference_mode():
        for one in ids:
            with model.hooks(read=sites[0].name, stop=True) as session:
                model.hf(input_ids=one, use_cache=False)
            read.append(session[sites[0].name][rows, position].flatten(1).float().cpu().numpy())
    tokens = torch.tensor(given)
    # Through numpy: tensors made in inference mode cannot be saved for a backward pass.
    own, taken = (torch.from_numpy(x.copy()) for x in read)
    return _Task(model, sites[0].name, ids[0], position, taken, own, tokens, targets)


def _split(n: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    at = round(n * share)
    if at < 1 or n - at < 1:
        raise DataError(f"{n} pairs with train_share={share} leave none to train on, or none to test on.")
    return order[:at], order[at:].sort().values


def _train(task, train, rank, steps, learning_rate, batch_size, seed, progress) -> tuple[Tensor, list[float]]:
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode(False), torch.enable_grad():
        raw = torch.randn(task.taken.shape[1], rank, generator=generator).requires_grad_()
        optimiser = torch.optim.Adam([raw], lr=learning_rate)
        losses = []
        for _ in range(steps):
            some = train[torch.randint(len(train), (min(batch_size, len(train)),), generator=generator)]
            loss = task.loss(_orthonormal(raw), some)
            (raw.grad,) = torch.autograd.grad(loss, [raw])  # of nothing else: weights collect no gradients
            optimiser.step()
            losses.append(float(loss.detach()))
            progress.advance()
    return _orthonormal(raw.detach()), losses


def _principal(task: _Task, train: Tensor, rank: int, seed: int) -> tuple[Float[Tensor, "rank d"], int]:
    """Leading principal components of the training differences, and how many there are.

    Singular values that rounding alone could give do not count; random directions stand in for what is missing.
    """
    own, taken = task.own[train].double(), task.taken[train].double()
    difference = taken - own
    _, values, rows = torch.linalg.svd(difference - difference.mean(0), full_matrices=False)
    rounding = 1e-6 * torch.cat([own, taken]).norm()
    found = rows[: min(rank, int((values > rounding).sum()))].float()
    if len(found) == rank:
        return found, rank
    generator = torch.Generator().manual_seed(seed + 2)
    more = torch.randn(rank - len(found), found.shape[1], generator=generator)
    return _orthonormal(torch.cat([found, more]).T), len(found)


def _orthonormal(columns: Float[Tensor, "d rank"]) -> Float[Tensor, "rank d"]:
    return torch.linalg.qr(columns).Q.T


@torch.inference_mode()
def _score(task: _Task, basis: Tensor | None, some: Tensor) -> list[np.ndarray]:
    """Success and log-probability of each pair."""
    logits = task.logits(basis, some).float()
    answers = task.answers[some].to(logits.device)
    right = (logits.argmax(-1) == answers).float()
    log_p = logits.log_softmax(-1).gather(-1, answers[:, None])[:, 0]
    return [right.cpu().numpy(), log_p.cpu().numpy()]
