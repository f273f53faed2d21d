"""Path patching: what goes from senders to receivers directly, and not through other heads.

Of a run that is patched (base) and one that activations are taken from (source):

1. The base run again, with the senders' outputs from the source run. All other heads' outputs (z) are held at the base
   run's (`freeze="heads"`); MLPs are recomputed, so paths through them count as direct. With `freeze="all"` the MLPs'
   outputs are held too, and only the residual connection is left. The receivers' activations are read.
2. The base run once more, with what was read put in at the receivers, everything else recomputed. Its metric is the
   effect.

With the receiver `logits` the first run is all there is: its own logits are the direct effect.

Both runs are replayed from the sender's, or the first receiver's, block on; every sender is a row of one batch.

Source: Wang et al. 2022 (2211.00593), appendix B; Goldowsky-Dill et al. 2023 (2304.05969). Whether MLPs are frozen
differs between papers and changes the numbers, so it stands in the result (`attrs["freeze"]`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from torch import Tensor

from workbench.errors import DataError, MetricError, PromptError, SiteError
from workbench.hooks.session import EditFunction
from workbench.model.language_model import LanguageModel
from workbench.model.tokens import Prompt
from workbench.patching.alignment import Alignment
from workbench.patching.metrics import Metric, MetricFunction
from workbench.patching.outcome import Outcome
from workbench.patching.pairs import Pairs
from workbench.patching.replay import TOKENS_PER_CALL, Entry, Replay
from workbench.patching.sources import Activations, deranged, read
from workbench.progress import Progress, Silent
from workbench.results import Result

Node = tuple[int, int | Literal["mlp"]]
"""A sender: block and head, or block and `mlp`."""


def path_patch(
    model: LanguageModel,
    clean: Prompt | Sequence[Prompt],
    corrupt: Prompt | Sequence[Prompt],
    metric: Metric | MetricFunction | Sequence[Metric],
    receivers: str | tuple[str, int] | Sequence[str | tuple[str, int]] = "logits",
    *,
    senders: Sequence[Sequence[Node]] | None = None,
    freeze: Literal["heads", "all"] = "heads",
    direction: Literal["denoising", "noising"] = "denoising",
    alignment: Alignment | Mapping[int, int] | Sequence[Alignment | Mapping[int, int]] | None = None,
    control: bool = True,
    seed: int = 0,
    tokens_per_call: int = TOKENS_PER_CALL,
    progress: Progress | None = None,
) -> Result:
    """Patch the paths from senders to receivers and measure what the answer does.

    Args:
        model: the language model.
        clean, corrupt: one prompt each, or as many as there are pairs; of one length unless an `alignment` is given.
        metric: logits -> number; one for all pairs, or one per pair.
        receivers: `logits`, or sites (`blocks.9.attn.hook_q`, `.hook_k`, `.hook_v`, `blocks.7.hook_mlp_out`), with a
            head as `(site, head)` or for all heads of it. One, or a list of several, which are patched together.
        senders: sets of `(block, head)` or `(block, "mlp")`, each set patched together; None: every head and MLP alone.
        freeze: `heads` holds all other heads and recomputes MLPs; `all` holds MLPs as well.
        direction: as in `sweep`.
        alignment: which positions correspond where prompts differ in length, as in `sweep`; at others senders stay.
        control: also run with wrong sources (as in `sweep`).
        seed: for control, bootstrap and permutations.
        tokens_per_call: tokens in one replayed batch.
        progress: one item a pair and source.

    Returns:
        A `Result` of kind `path_patching`, like `sweep`'s: dims `pair`, `layer`, `component` (heads, then `mlp`;
        coordinate `component_name`), or `pair`, `set` where sets of senders are given. Senders above the receivers have
        effect 0.

    Raises:
        SiteError: no receiver, one that is no site or would be frozen (`hook_z`), or `logits` beside others.
        PromptError: as in `sweep`; no senders, or one that does not exist.
        DataError: another `freeze`.

    Example:
        >>> wb.patching.path_patch(model, clean, corrupt, metric, [("blocks.9.attn.hook_q", 6)]).summary["strongest"]
    """
    progress, started = progress or Silent(), time.perf_counter()
    if freeze not in ("heads", "all"):
        raise DataError(f"freeze is {freeze!r}; expected 'heads' or 'all'.")
    into = _receivers(model, receivers)
    sets = _each(model) if senders is None else _sets(model, senders)
    pairs = Pairs.of(model, clean, corrupt, metric, direction, alignment=alignment, one_grid=False)
    if pairs.keep > 1:
        raise MetricError(
            f"{pairs.metrics[0]} has an answer of several tokens: path patching takes answers of one."
        )
    frozen = [s.name for s in model.resolve("blocks.*.attn.hook_z")]
    outputs = [s.name for s in model.resolve("blocks.*.hook_mlp_out")]
    sites = [*frozen, *outputs]
    taken = [read(model, batch, sites) for batch in pairs.sources]
    held = [site for site in (sites if freeze == "all" else frozen) if site not in dict(into)]
    values, wrong_values, ends = [], [], []
    progress.stage("path patching", len(pairs) * (2 if control else 1))
    for i, base in enumerate(pairs.bases):
        replay = Replay(model, base, read=sites)
        function = pairs.function(i, taken[i]["logits"], replay.logits)
        ends.append([float(function(logits[None])[0]) for logits in (taken[i]["logits"], replay.logits)])
        own, other = replay.activations, (i + 1) % len(pairs)
        sources = [(pairs.moved(i, taken[i], own), values)]
        if control:
            wrong = pairs.moved(i, taken[other], own, other)
            sources.append(
                (
                    wrong if len(pairs) > 1 else deranged(wrong, np.random.default_rng(seed), "z"),
                    wrong_values,
                )
            )
        for put, kept in sources:
            run = _Paths(replay, own, put, held, into, function, tokens_per_call)
            kept.append(run.measure(sets))
            progress.advance()
    shape = (len(pairs), model.n_layers, model.n_heads + 1) if senders is None else (len(pairs), len(sets), 1)
    outcome = Outcome(
        pairs=pairs,
        layers=list(range(shape[1])),
        axes=("component",),
        settings={"kind": "path", "freeze": freeze, "receivers": str(receivers)},
        ends=np.array(ends),
        raw=np.reshape(values, shape),
        wrong=np.reshape(wrong_values, shape) if control else None,
        control="wrong source: as in sweep" if control else "not run",
        seed=seed,
        seconds=time.perf_counter() - started,
    )
    return _labelled(outcome.result(model), model, sets if senders is not None else None)


class _Paths:
    """The two runs, for one pair and one source."""

    def __init__(
        self,
        replay: Replay,
        own: Activations,
        source: Activations,
        held: Sequence[str],
        into: Sequence[tuple[str, int | None]],
        metric: MetricFunction,
        tokens_per_call: int,
    ) -> None:
        self._replay, self._own, self._source, self._held = replay, own, source, held
        self._into, self._metric, self._tokens = into, metric, tokens_per_call

    def measure(self, sets: Sequence[Sequence[Node]]) -> np.ndarray:
        """[set] the metric."""
        out = np.full(len(sets), float(self._metric(self._replay.logits[None])[0]))
        entries = [self._first(nodes) for nodes in sets]
        for chunk in self._replay.chunks(entries, self._tokens):
            some = [entries[i] for i in chunk]
            if not self._into:
                found, rows = list(range(len(some))), some
            else:
                found, rows = self._second(some)
            if rows:
                values = self._metric(self._replay.logits_of(rows)).float().cpu().tolist()
                for at, value in zip(found, values, strict=True):
                    out[chunk[at]] = value
        return out

    def _first(self, nodes: Sequence[Node]) -> Entry:
        """The base run with the senders of the source, everything that is held held."""
        layer = min(block for block, _ in nodes)
        put: dict[str, list[int | None]] = {}
        for block, head in nodes:
            site = f"blocks.{block}.hook_mlp_out" if head == "mlp" else f"blocks.{block}.attn.hook_z"
            put.setdefault(site, []).append(None if head == "mlp" else int(head))
        edits: dict[str, EditFunction] = {}
        for site in dict.fromkeys([*self._held, *put]):
            if int(site.split(".")[1]) >= layer:
                hold = self._own[site] if site in self._held else None
                edits[site] = _edit(hold, self._source[site], put.get(site, []))
        return Entry(layer, self._replay.inputs[layer], edits)

    def _second(self, first: Sequence[Entry]) -> tuple[list[int], list[Entry]]:
        """The base run with what the receivers had in the first run; of those rows that reach a receiver."""
        read = self._replay.read(first, [site for site, _ in self._into])
        found: list[int] = []
        rows: list[Entry] = []
        for i in range(len(first)):
            edits = {
                site: _edit(None, read[site][i], [head for name, head in self._into if name == site])
                for site, _ in self._into
                if i in read[site]
            }
            if edits:
                layer = min(int(site.split(".")[1]) for site in edits)
                found.append(i)
                rows.append(Entry(layer, self._replay.inputs[layer], edits))
        return found, rows


def _edit(hold: Tensor | None, put: Tensor, heads: Sequence[int | None]) -> EditFunction:
    """Everything as in `hold` (None: as it comes), but for the heads (None: all of it) as in `put`."""

    def edit(activation: Tensor) -> Tensor:
        new = activation if hold is None else hold.to(activation).clone()
        for head in heads:
            if head is None:
                new[:] = put.to(new)
            else:
                new[:, head] = put[:, head].to(new)
        return new

    return edit


def _receivers(
    model: LanguageModel, given: str | tuple[str, int] | Sequence[str | tuple[str, int]]
) -> list[tuple[str, int | None]]:
    """Sites and heads; empty for the logits."""
    single = isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], (int, np.integer))
    listed: list[Any] = [given] if single or isinstance(given, str) else list(given)
    if not listed:
        raise SiteError("No receivers were given: give 'logits', or one or more sites.")
    if "logits" in listed:
        if len(listed) > 1:
            raise SiteError(
                "The receiver 'logits' goes alone: measure it and the other receivers in two calls."
            )
        return []
    out: list[tuple[str, int | None]] = []
    for one in listed:
        pattern: Any
        head: Any
        pattern, head = one if isinstance(one, (tuple, list)) and len(one) == 2 else (one, None)
        if not isinstance(pattern, str) or not (head is None or isinstance(head, (int, np.integer))):
            raise SiteError(f"{one!r} is no receiver: give a site, or (site, head) with the head's number.")
        for site in model.resolve(pattern):
            if site.part not in ("attn.hook_q", "attn.hook_k", "attn.hook_v", "hook_mlp_out"):
                raise SiteError(
                    f"{site.name!r} cannot receive: give hook_q, hook_k or hook_v of heads, hook_mlp_out of MLPs, or "
                    "'logits'."
                )
            if head is not None and not 0 <= head < (site.heads or 0):
                known = (
                    f"heads 0–{site.heads - 1}, not {head}" if site.heads else "no heads: leave the head out"
                )
                raise SiteError(f"{site.name!r} has {known}.")
            out.append((site.name, None if head is None else int(head)))
    return out


def _each(model: LanguageModel) -> list[list[Node]]:
    return [[(layer, head)] for layer in range(model.n_layers) for head in (*range(model.n_heads), "mlp")]  # type: ignore[misc]


def _sets(model: LanguageModel, given: Any) -> list[list[Node]]:
    """The sets of senders that were given, each of nodes that exist."""
    if not len(given):
        raise PromptError("No sets of senders were given: give one or more, or None for every node alone.")
    sets: list[list[Node]] = []
    for nodes in given:
        try:
            listed = [(block, head) for block, head in nodes]
        except (TypeError, ValueError) as error:
            raise PromptError(
                f"{nodes!r} is no set of senders: give lists of (block, head) or (block, 'mlp'), such as [[(1, 0)]]."
            ) from error
        if not listed:
            raise PromptError("A set of senders is empty: give at least one (block, head) or (block, 'mlp').")
        for block, head in listed:
            known = head == "mlp" or (isinstance(head, (int, np.integer)) and 0 <= head < model.n_heads)
            if not isinstance(block, (int, np.integer)) or not 0 <= block < model.n_layers or not known:
                raise PromptError(
                    f"Sender ({block}, {head!r}) does not exist: {model.name} has blocks 0–{model.n_layers - 1} with "
                    f"heads 0–{model.n_heads - 1} and 'mlp'."
                )
        sets.append([(int(block), "mlp" if isinstance(head, str) else int(head)) for block, head in listed])
    return sets


def _labelled(result: Result, model: LanguageModel, sets: Sequence[Sequence[Node]] | None) -> Result:
    """Names of the components, or of the sets."""
    data, summary = result.data, dict(result.summary)
    strongest: Mapping[str, Any] = summary["strongest"]  # type: ignore[assignment]
    if sets is None:
        names = [*(f"head {head}" for head in range(model.n_heads)), "mlp"]
        data = data.assign_coords(component_name=("component", np.array(names)))
        summary["strongest"] = {**strongest, "component": names[strongest["component"]]}
    else:
        data = data.squeeze("component", drop=True).rename(layer="set")
        names = ["+".join(f"{block}.{head}" for block, head in nodes) for nodes in sets]
        data = data.assign_coords(set_name=("set", np.array(names)))
        more = {k: v for k, v in strongest.items() if k not in ("layer", "component")}
        summary["strongest"] = {"set": names[strongest["layer"]], **more}
    return replace(result, kind="path_patching", data=data, summary=summary)
