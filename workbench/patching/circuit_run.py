"""Circuits run exactly: every edge of the circuit carries this run, every other edge an ablated one.

Receiver r of circuit C reads, in place of the residual stream,

    stream_r  =  ablated stream_r  +  sum over edges (s, r) in C of  (out_s - ablated out_s)

before its own norm; the norm and what is behind it are the model's own. out_s is what s writes *in this run*, given
what it reads by the same rule; `input` writes the clean prompt's. So the full circuit is the clean run, and with
`ablate="run"` the empty one is the corrupt run. What is ablated (the ablated streams are sums of it):

    run    out_s of the corrupt prompt's run
    mean   its mean over the pairs' corrupt prompts, position by position
    zero   0 (for a head: its z; a bias of the output projection belongs to no head and stays)

Where a norm stands behind the attention's projection (Gemma 2), heads do not add up. There, what a block's heads add to
stream_r is that norm of their projected sum, with the heads of C from this run and the others ablated, less the same
with all of them ablated.

Many circuits are rows of one forward pass of the untouched model. The stream that its blocks pass on among themselves
is NaN meanwhile: were it read anywhere but at a receiver, the logits would say so.

`circuit_curves` runs circuits of growing size; what it measures is defined in `circuit_export`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.errors import DataError, SiteError
from workbench.hooks.session import EditFunction
from workbench.hooks.tensors import first_tensor, replace_first
from workbench.model.language_model import LanguageModel
from workbench.model.tokens import Prompt, TokenBatch
from workbench.patching.circuit import By, Circuit, Null, graph_of, prune, ranked, strongest
from workbench.patching.circuit_export import curves_result
from workbench.patching.edge_attribution import Graph
from workbench.patching.gradients import INPUT, Activations, Forward, precise
from workbench.patching.metrics import Metric, MetricFunction, function_of
from workbench.patching.pairs import Pair, Pairs, as_pairs
from workbench.patching.replay import Entry, Replay
from workbench.progress import Progress, Silent
from workbench.results import Result

Ablate = Literal["run", "mean", "zero"]
TOKENS_PER_CALL = 2048
"""Tokens in one batch; each of them has a stream for every receiver."""


def run_circuit(
    model: LanguageModel,
    clean: Prompt | Sequence[Prompt],
    corrupt: Prompt | Sequence[Prompt],
    circuits: Circuit | Sequence[Circuit],
    *,
    ablate: Ablate = "run",
    tokens_per_call: int = TOKENS_PER_CALL,
    progress: Progress | None = None,
) -> Float[Tensor, "pair circuit d_vocab"]:
    """Logits at the last position of each pair under each circuit (float32, on the CPU).

    Args:
        model: the language model.
        clean, corrupt: one prompt each, or as many as there are pairs, all of one length.
        circuits: one or several of one graph (with or without heads).
        ablate: what all other edges carry (see the module's text); the corrupt run by default.
        tokens_per_call: tokens that go through together. Results do not depend on it.
        progress: one item a pair and circuit.

    Raises:
        DataError: no circuits, circuits of another graph, or a way of ablation that cannot be.
        PromptError: prompts of several lengths.
        SiteError: this architecture has no edges, or its stream is read in places that are no receivers.

    Example:
        >>> logits = run_circuit(model, clean, corrupt, [circuit, circuit.complement()])
    """
    listed = [circuits] if isinstance(circuits, Circuit) else list(circuits)
    graph = graph_of(model, listed)
    pairs, progress = as_pairs(model, clean, corrupt), progress or Silent()
    masks = np.stack([circuit.matrix for circuit in listed])
    ablations = _ablations(model, graph, pairs, ablate, 1)
    progress.stage("run circuits", len(pairs) * len(masks))
    return torch.stack([one.each(masks, Tensor.float, tokens_per_call, progress) for one in ablations])


def circuit_curves(
    model: LanguageModel,
    clean: Prompt | Sequence[Prompt],
    corrupt: Prompt | Sequence[Prompt],
    metric: Metric | MetricFunction | Sequence[Metric],
    ranking: Result | Sequence[tuple[str, str]],
    *,
    sizes: Sequence[int] | None = None,
    by: By = "abs",
    n_random: int = 10,
    null: Null = "uniform",
    ablate: Ablate = "run",
    seed: int = 0,
    tokens_per_call: int = TOKENS_PER_CALL,
    progress: Progress | None = None,
) -> Result:
    """How much of the behaviour the strongest edges carry, and how much is left without them, by their number.

    At each size the strongest edges are taken, pruned and run, and so is their complement; beside them random circuits
    of as many edges as pruning left, and their complements. Rank the edges on other pairs than are given here: on the
    same ones the circuit fits too well.

    Args:
        model: the language model.
        clean, corrupt: one prompt each, or as many as there are pairs, all of one length.
        metric: logits -> number, one for all pairs or one per pair. It need not be differentiable.
        ranking: a result of `edges`, or (sender, receiver) pairs in an order of one's own, best first.
        sizes: numbers of edges, sorted here; None: 1, 2, 5, 10, 20, … and all that are ranked.
        by: order of a result's edges, by |effect| ("abs") or by effect ("signed").
        n_random: random circuits for each size. Those of a larger size hold those of a smaller one.
        null: how they are drawn (see `Circuit.random`).
        ablate: what all other edges carry.
        seed: of random circuits and bootstrap.
        tokens_per_call, progress: as in `run_circuit`.

    Returns:
        A `Result` of kind `circuit`, see `circuit_export.curves_result`.

    Raises:
        DataError: as in `run_circuit`; an unknown edge, size or null.
        MetricError: the metric does not tell the clean run from the ablated one.
        PromptError, SiteError: as in `run_circuit`.

    Example:
        >>> ranking = edges(model, *other_pairs, metric, integrate=5)
        >>> circuit_curves(model, clean, corrupt, metric, ranking).summary["smallest"]
    """
    progress, started = progress or Silent(), time.perf_counter()
    if n_random < 0 or (sizes is not None and not len(sizes)):
        raise DataError(
            f"n_random is {n_random}, sizes are {sizes}; expected 0 or more, and one or more sizes."
        )
    runs = Pairs.of(model, clean, corrupt, metric, "denoising")
    whole, graph = ranked(model, ranking)
    steps = [digit * 10**i for i in range(9) for digit in (1, 2, 5)]
    sizes = sorted({*(n for n in steps if n < whole.n_edges), whole.n_edges} if sizes is None else set(sizes))
    kept = [prune(strongest(whole, n, by)) for n in sizes]
    every = [[c, *(c.random(None, [seed, i], null) for i in range(n_random))] for c in kept]
    masks = np.stack([m for some in every for c in some for m in (c.matrix, c.causal & ~c.matrix)])
    masks = np.concatenate([np.zeros_like(masks[:1]), masks])
    ends, values = [], []
    progress.stage("run circuits", len(runs.pairs) * len(masks))
    ablations = _ablations(model, graph, runs.pairs, ablate, runs.keep)
    for one, given in zip(ablations, runs.metrics, strict=True):
        function = function_of(given, model, one.clean_logits)
        found = one.each(masks, function, tokens_per_call, progress).double().numpy()
        ends.append([float(function(one.clean_logits[None])[0]), found[0]])
        values.append(found[1:].reshape(len(sizes), 1 + n_random, 2))
    settings = {"ablate": ablate, "by": by, "null": null, "n_random": n_random, "heads": str(graph.heads)}
    seconds = time.perf_counter() - started
    return curves_result(model, runs, kept, sizes, np.array(ends), np.stack(values), settings, seed, seconds)


def _ablations(
    model: LanguageModel, graph: Graph, pairs: Sequence[Pair], how: str, keep: int
) -> Iterator[_Ablation]:
    """Each pair, ready to run circuits on."""
    if how not in ("run", "mean", "zero") or (how == "mean" and len(pairs) < 2):
        raise DataError(
            f"ablate={how!r} with {len(pairs)} pairs: give 'run', 'zero', or 'mean' and two pairs or more."
        )
    sites = list(dict.fromkeys(sender.site for sender in graph.senders))
    common: Activations = {}
    for _, corrupt in pairs if how == "mean" else pairs[:1] if how == "zero" else ():
        run = Forward(model, corrupt.ids, graph.points).activations()
        weight = 1 / len(pairs) if how == "mean" else 0.0
        common = {site: common.get(site, 0) + weight * precise(run[site]) for site in sites}
    for clean, corrupt in pairs:
        ablated = Forward(model, corrupt.ids, graph.points).activations()
        graph.check(ablated)
        differ = (clean.ids != corrupt.ids)[0].nonzero().flatten().tolist()
        same = differ[0] if how == "run" and differ else 0
        one = _Ablation(model, graph, clean, common or ablated, same, keep)
        one.check()
        yield one


class _Ablation:
    """One pair of prompts, what is ablated, and the circuits run on it.

    Positions before `same`, which are the same in every run, are not run again.
    """

    @torch.no_grad()
    def __init__(
        self, model: LanguageModel, graph: Graph, clean: TokenBatch, ablated: Activations, same: int, keep: int
    ) -> None:  # fmt: skip
        self._model, self._graph, self._keep = model, graph, keep
        self._replay = Replay(model, clean)
        self._start = self._replay.starts(same)
        self._replay.call(0, self._start)  # asks the model, which must not meet our hooks
        self.clean_logits = self._replay.end_logits(keep)
        self._sites = {point.name: point for point in graph.points}
        self._out = {name: precise(value[self._start :]) for name, value in ablated.items()}
        self._input = precise(self._replay.inputs[0][self._start :]) - self._out[INPUT]
        numbers: dict[str, list[int]] = {}
        for i, sender in enumerate(graph.senders):
            numbers.setdefault(sender.site, []).append(i)
        self._sent = {name: slice(some[0], some[-1] + 1) for name, some in numbers.items() if name != INPUT}
        self._weights: dict[str, Tensor] = {}
        self._projected: dict[str, Tensor] = {}
        for name in self._sent:
            if self._sites[name].heads:
                module, z = model.module(self._sites[name].module), self._out[name]
                self._weights[name] = _weight(module, z)
                self._projected[name] = module(z.flatten(-2).to(model.dtype))
        recorded = all(r.stream in self._out for r in graph.receivers)
        streams = [self._out[r.stream] if recorded else self._sum(r.stage) for r in graph.receivers]
        self._streams = torch.stack([stream.to(streams[0].device) for stream in streams])

    def each(
        self, masks: Bool[np.ndarray, "circuit sender receiver"], function: Callable[[Tensor], Tensor],
        tokens_per_call: int, progress: Progress,
    ) -> Tensor:  # fmt: skip
        """[circuit, ...] a function of the logits [row, d_vocab], on the CPU."""
        size, found = max(1, tokens_per_call // self._streams.shape[1]), []
        for at in range(0, len(masks), size):
            some = torch.from_numpy(masks[at : at + size])
            found.append(function(self._logits(some)).cpu())
            progress.advance(len(some))
        return torch.cat(found)

    def check(self) -> None:
        """The full circuit must be the clean run; otherwise something is missing from the graph."""
        full = self._logits(torch.from_numpy(self._graph.causal)[None])[0]
        near = 5e-2 if self._model.dtype.itemsize < 4 else 2e-3
        if bool((full - self.clean_logits).abs().max() > near * self.clean_logits.abs().max()):
            self._refuse("with all edges its logits are not those of the clean run")

    @torch.inference_mode()
    def _logits(self, masks: Bool[Tensor, "row sender receiver"]) -> Tensor:
        share = masks.to(self._streams)
        told = self._streams.expand(len(masks), -1, -1, -1).clone()
        self._add(told, share, slice(0, 1), self._input.expand(len(masks), 1, -1, -1), INPUT)
        nothing = torch.full_like(self._replay.inputs[0][self._start :], torch.nan)
        with self._hooked(told, share):
            logits = self._replay.logits_of([Entry(0, nothing)] * len(masks), self._start, self._keep)
        if not bool(logits.isfinite().all()):
            self._refuse("its stream is read in places that are no receivers")
        return logits

    @contextmanager
    def _hooked(self, told: Tensor, share: Tensor) -> Iterator[None]:
        """Receivers read `told`, [row, receiver, position, d_model]; what senders write is added to it as they do."""
        handles: list[Any] = []

        def reads(i: int, name: str) -> Callable[..., Any]:
            def hook(_module: Any, args: Any, kwargs: Any) -> Any:
                whole = first_tensor(args, kwargs, name)
                return replace_first(args, kwargs, told[:, i].to(whole).reshape(whole.shape))

            return hook

        *norms, end = self._graph.receivers
        edits: dict[str, EditFunction] = {end.point: lambda x: told[:, -1].to(x)}
        edits |= {name: lambda x, name=name: self._write(name, x, told, share) for name in self._sent}
        try:
            for i, receiver in enumerate(norms):
                module = self._model.module(self._sites[receiver.point].module)
                hook = reads(i, receiver.point)
                handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            with self._model.edit(edits):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _write(self, name: str, written: Tensor, told: Tensor, share: Tensor) -> Tensor:
        """Add what a block's heads, its attention or its MLP wrote; it goes on unchanged (and is read by nobody)."""
        change, weight = precise(written) - self._out[name], self._weights.get(name)
        each = change[:, None] if weight is None else torch.einsum("rphk,hkd->rhpd", change, weight)
        self._add(told, share, self._sent[name], each, name)
        return written

    def _add(self, told: Tensor, share: Tensor, which: slice, change: Tensor, name: str) -> None:
        """Receivers behind some senders are told of their changes, [row, sender, position, d_model]."""
        first = int(self._graph.causal[which.start].argmax())
        behind, share = told[:, first:], share[:, which, first:].transpose(1, 2)
        change, norm = change.flatten(2).to(told.device), self._norm(name)
        if norm is None:
            behind.flatten(2).baddbmm_(share, change)
        else:
            base = self._projected[name]
            sums = torch.bmm(share, change).unflatten(2, told.shape[2:])
            behind += precise(norm(base + sums.to(base)) - norm(base)).to(told)

    def _norm(self, name: str) -> torch.nn.Module | None:
        """The norm between a block's heads and the stream."""
        path, site = self._model.catalog.map.paths.get("block.ln1_post"), self._sites[name]
        if path is None or name not in self._weights or site.layer is None:
            return None
        return self._model.block(site.layer).get_submodule(path)

    def _sum(self, stage: int) -> Tensor:
        """[position, d_model] the sum of all that is ablated and written up to a stage."""
        total = self._out[INPUT]
        for name, which in self._sent.items():
            if self._graph.senders[which.start].stage <= stage:
                norm, out = self._norm(name), self._projected.get(name, self._out[name])
                total = total + precise(out if norm is None else norm(out)).to(total.device)
        return total

    def _refuse(self, why: str) -> NoReturn:
        raise SiteError(
            f"Circuits of {self._model.name} ({self._model.catalog.map.architecture}) cannot be run: {why}. Patch "
            "nodes (`sweep`) or paths (`path_patch`) instead."
        )


@torch.inference_mode(False)
@torch.no_grad()
def _weight(module: torch.nn.Module, z: Tensor) -> Float[Tensor, "head d_head d_model"]:
    """The matrix of a linear module, without its bias, however the module stores it."""
    like = next(module.parameters())
    unit = torch.eye(z[0].numel(), dtype=like.dtype, device=like.device)
    made = torch.func.jvp(module, (torch.zeros_like(unit),), (unit,))[1]
    return precise(made).unflatten(0, z.shape[1:])  # type: ignore[arg-type]
