"""Circuits: a few of the edges of a model's graph, chosen from an edge attribution.

Edges go from senders to receivers, with the names of `edge_attribution`: `input`, `a3.h5` (or `a3`), `m3` write;
`a3`, `m3` (`a3+m3` where both read through one norm) and `logits` read. Behind a receiver stand the senders of its
component: who reads as `a3` writes as `a3` or as its heads `a3.h0`, `a3.h1`, …

`select` takes the strongest edges, `prune` leaves out those that carry nothing. An edge s -> r stays iff it lies on a
path input -> … -> logits within the circuit:

    s is reached:   s is `input`, or the receiver s belongs to has an edge from a sender that is reached
    r is of use:    r is `logits`, or a sender that belongs to r has an edge to a receiver that is of use

These are the edges that are left when nodes (but `input`) without incoming and nodes (but `logits`) without outgoing
edges are removed until there are none. Where what is ablated comes from a corrupt run, pruning changes no logit: a
sender that is not reached sends what it sent there, so its edges carry a difference of 0. With `ablate="mean"` or
"zero" such a sender (an MLP of a mean is not the mean of MLPs) still sends a little.

Source: Conmy et al. 2023 (2304.14997), ACDC; Syed et al. 2023 (2310.10348) for top edges of EAP; Hanna et al. 2024
(2403.17806), which prunes in this way (and picks edges greedily from the logits on; here the top n are taken as such).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from workbench.errors import DataError, did_you_mean
from workbench.model.language_model import LanguageModel
from workbench.patching.edge_attribution import Graph
from workbench.results import Result

By = Literal["abs", "signed"]
Null = Literal["uniform", "layers"]


class Edge(NamedTuple):
    """One edge: who writes, who reads, and its score."""

    sender: str
    receiver: str
    score: float


@dataclass(frozen=True, eq=False)
class Circuit:
    """Some of the edges of one model's graph.

    Attributes:
        senders, receivers: names, in the order in which they write and read.
        matrix: [sender, receiver] bool, True at the circuit's edges.
        scores: [sender, receiver] float64 scores of all edges of the graph; NaN where there can be none.
        metadata: where it comes from: model, its fingerprint, metric, number of pairs, how it was chosen.

    Raises:
        DataError: shapes that do not fit, a name twice, or an edge where the graph has none.

    Example:
        >>> circuit = prune(select(edges(model, clean, corrupt, metric), 50))
        >>> circuit.n_edges, circuit.edges[0]
        (43, Edge(sender='a9.h6', receiver='logits', score=0.31))
    """

    senders: tuple[str, ...]
    receivers: tuple[str, ...]
    matrix: Bool[np.ndarray, "sender receiver"]
    scores: Float[np.ndarray, "sender receiver"]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = (len(self.senders), len(self.receivers))
        for what, kind in (("matrix", bool), ("scores", np.float64)):
            value = np.array(getattr(self, what), dtype=kind)
            if value.shape != shape:
                raise DataError(
                    f"The circuit's {what} has shape {value.shape}, expected {shape}: one row for each sender, one "
                    "column for each receiver."
                )
            value.setflags(write=False)
            object.__setattr__(self, what, value)
        for names in (self.senders, self.receivers):
            if len(set(names)) != len(names):
                raise DataError(
                    f"A name stands twice among {list(names)}: senders and receivers are told by it."
                )
        wrong = np.argwhere(self.matrix & ~self.causal)
        if len(wrong):
            s, r = wrong[0]
            raise DataError(
                f"{self.senders[s]} -> {self.receivers[r]} cannot be an edge: its score is not a number, so the "
                "receiver does not read after the sender has written. Leave it out."
            )

    def __repr__(self) -> str:
        return f"Circuit({self.n_edges} of {self.causal.sum()} edges, {self.n_nodes} nodes)"

    @property
    def causal(self) -> Bool[np.ndarray, "sender receiver"]:
        """Where the graph has an edge."""
        return np.isfinite(self.scores)

    @property
    def n_edges(self) -> int:
        return int(self.matrix.sum())

    @property
    def edges(self) -> list[Edge]:
        """The circuit's edges, largest |score| first."""
        at = np.argwhere(self.matrix)
        order = np.argsort(-np.abs(self.scores[self.matrix]), kind="stable")
        return [Edge(self.senders[s], self.receivers[r], float(self.scores[s, r])) for s, r in at[order]]

    @property
    def nodes(self) -> list[str]:
        """`input`, heads (or attentions), MLPs and `logits` that an edge begins or ends at. The common input of a
        block's heads is no node of its own."""
        touched = {s for s, row in zip(self.senders, self.matrix, strict=True) if row.any()}
        ends = {r for r, column in zip(self.receivers, self.matrix.T, strict=True) if column.any()}
        return [name for name in (*self.senders, "logits") if name in touched | ends]

    @property
    def n_nodes(self) -> int:
        return len(self.nodes)

    def complement(self) -> Circuit:
        """All edges of the graph that are not in the circuit."""
        return self.choose(self.causal & ~self.matrix, chosen="complement")

    def choose(self, matrix: Bool[np.ndarray, "sender receiver"], **metadata: Any) -> Circuit:
        """Other edges of the same graph, with more (or other) metadata."""
        return replace(self, matrix=matrix, metadata={**self.metadata, **metadata})

    def random(self, n: int | None = None, seed: int | Sequence[int] = 0, like: Null = "uniform") -> Circuit:
        """A random circuit with as many edges.

        Args:
            n: number of edges; None: as many as here. With one seed, a larger one holds the smaller one's edges.
            seed: of the draw.
            like: "uniform" draws from all edges of the graph. "layers" draws as many between each pair of layers as
                are here (input and logits count as layers): a stricter null, for which n must be None.

        Raises:
            DataError: more edges than there are, or `n` beside `like="layers"`.
        """
        order = np.random.default_rng(seed).permutation(np.argwhere(self.causal))
        if like == "uniform":
            wanted = _count(self.n_edges if n is None else n, len(order))
            keep = np.arange(len(order)) < wanted
        elif like == "layers" and n is None:
            group = self._layers()
            left = dict(zip(*np.unique(group[self.matrix], return_counts=True), strict=True))
            keep = np.zeros(len(order), bool)
            for i, (s, r) in enumerate(order):
                keep[i] = left.get(group[s, r], 0) > 0
                left[group[s, r]] = left.get(group[s, r], 0) - 1
        else:
            raise DataError(f"like={like!r} with n={n}: give like='uniform', or like='layers' and no n.")
        matrix = np.zeros_like(self.matrix)
        matrix[tuple(order[keep].T)] = True
        return self.choose(matrix, chosen=f"random ({like}), seed {seed}")

    def _layers(self) -> np.ndarray:
        """[sender, receiver] a number for each pair of layers."""
        n = 2 + max(layer_of(name) or 0 for name in self.senders)
        sender, receiver = (
            np.array([n if name == "logits" else -1 if (layer := layer_of(name)) is None else layer for name in some])
            for some in (self.senders, self.receivers)
        )  # fmt: skip
        return (sender[:, None] + 1) * (n + 1) + receiver[None, :]


def select(
    result: Result,
    n_edges: int | None = None,
    *,
    share: float | None = None,
    threshold: float | None = None,
    by: By = "abs",
) -> Circuit:
    """The strongest edges of an edge attribution, by its mean effect over pairs.

    Args:
        result: of `edges` (kind `edge_attribution`).
        n_edges: that many edges.
        share: or this share of the graph's edges, from 0 to 1 (rounded to a whole number of them).
        threshold: or all edges of at least this effect (as a share of the whole effect, as `mean_effect` is).
        by: "abs" by |effect|: edges against the behaviour count as well; "signed" by the effect itself.

    Returns:
        The circuit, not pruned. Of equal effects those of the earlier sender are taken.

    Raises:
        DataError: another kind of result, none or several of the three, or more edges than there are.

    Example:
        >>> select(result, share=0.01, by="signed").edges[:3]
    """
    asked = {"n_edges": n_edges, "share": share, "threshold": threshold}
    given = [name for name, value in asked.items() if value is not None]
    if len(given) != 1:
        raise DataError(
            f"{' and '.join(given) or 'Nothing'} was given: give one of n_edges, share, threshold."
        )
    whole = of_result(result)
    strength = _strength(whole.scores, by)
    if threshold is not None:
        return whole.choose(whole.causal & (strength >= threshold), chosen=f"threshold={threshold}, by {by}")
    if share is not None:
        if not 0 <= share <= 1:
            raise DataError(f"share is {share}; expected a share of the edges, from 0 to 1.")
        n_edges = round(share * whole.n_edges)
    assert n_edges is not None
    return strongest(whole, n_edges, by)


def strongest(whole: Circuit, n: int, by: By = "abs") -> Circuit:
    """The n edges of largest score (by |score| or the score itself) out of those of a circuit."""
    at = np.argwhere(whole.matrix)
    order = np.argsort(-_strength(whole.scores[whole.matrix], by), kind="stable")
    matrix = np.zeros_like(whole.matrix)
    matrix[tuple(at[order[: _count(n, len(at))]].T)] = True
    return whole.choose(matrix, chosen=f"n_edges={n}, by {by}")


def of_result(result: Result) -> Circuit:
    """The whole graph of an edge attribution, as a circuit of all its edges scored by `mean_effect`."""
    if result.kind != "edge_attribution":
        raise DataError(
            f"A result of kind {result.kind!r} has no edges to select: give one of `edges` ('edge_attribution')."
        )
    data, made = result.data, result.provenance
    scores = data["mean_effect"].transpose("sender", "receiver").values
    settings = {k: data.attrs[k] for k in ("metric", "direction", "integrate") if k in data.attrs}
    metadata = {
        "model": made.model.get("name", ""),
        "fingerprint": made.model.get("fingerprint", ""),
        "n_pairs": int(data.sizes["pair"]),
        **settings,
    }
    senders, receivers = (tuple(map(str, data[dim].values)) for dim in ("sender", "receiver"))
    return Circuit(senders, receivers, np.isfinite(scores), scores, metadata)


def ranked(model: LanguageModel, ranking: Result | Sequence[tuple[str, str]]) -> tuple[Circuit, Graph]:
    """All ranked edges of a model, and its graph, from an edge attribution or from edges in an order of one's own.

    Edges (sender, receiver), best first, are scored n, n - 1, …, 1, all others 0.

    Raises:
        DataError: a name that the graph does not have, or an edge that is named twice or cannot be.
    """
    if isinstance(ranking, Result):
        whole = of_result(ranking)
        return whole, graph_of(model, [whole])
    graph = Graph.of(model, heads=any("." in sender for sender, _ in ranking))
    senders, receivers = [s.name for s in graph.senders], [r.name for r in graph.receivers]
    scores = np.where(graph.causal, 0.0, np.nan)
    matrix = np.zeros_like(graph.causal)
    for rank, (sender, receiver) in enumerate(ranking):
        for name, known in ((sender, senders), (receiver, receivers)):
            if name not in known:
                raise DataError(f"{name!r} is not in the graph of {model.name}.{did_you_mean(name, known)}")
        at = senders.index(sender), receivers.index(receiver)
        if matrix[at]:
            raise DataError(f"{sender} -> {receiver} stands twice in the ranking: name each edge once.")
        matrix[at], scores[at] = True, len(ranking) - rank if graph.causal[at] else np.nan
    return Circuit(tuple(senders), tuple(receivers), matrix, scores, {"chosen": "a ranking"}), graph


def graph_of(model: LanguageModel, circuits: Sequence[Circuit]) -> Graph:
    """The model's graph, with heads or without; raises `DataError` where it is not that of the circuits."""
    if not circuits:
        raise DataError("No circuits were given: give at least one.")
    graph = Graph.of(model, heads=any("." in name for name in circuits[0].senders))
    known = tuple(s.name for s in graph.senders), tuple(r.name for r in graph.receivers)
    for i, circuit in enumerate(circuits):
        if (circuit.senders, circuit.receivers) != known or (circuit.causal & ~graph.causal).any():
            raise DataError(
                f"Circuit {i} is of another graph: it has {len(circuit.senders)} senders and "
                f"{len(circuit.receivers)} receivers, {model.name} (heads={graph.heads}) has {len(known[0])} and "
                f"{len(known[1])}, or others. Select one from an attribution of this model; run those with and without "
                "heads apart."
            )
    return graph


def prune(circuit: Circuit) -> Circuit:
    """Only the edges on paths from `input` to `logits` within the circuit (see the module's text)."""
    belongs = reader_of(circuit.senders, circuit.receivers)
    inside, matrix = belongs >= 0, np.asarray(circuit.matrix)
    reached = ~inside
    useful = np.array([name == "logits" for name in circuit.receivers])
    for _ in circuit.receivers:  # a path has at most as many edges as there are receivers
        told = (matrix & reached[:, None]).any(axis=0)
        reached = ~inside | np.take(told, belongs)
        telling = (matrix & useful).any(axis=1)
        useful[belongs[inside & telling]] = True
    return circuit.choose(matrix & reached[:, None] & useful, pruned_from=circuit.n_edges)


def reader_of(senders: Sequence[str], receivers: Sequence[str]) -> np.ndarray:
    """[sender] number of the receiver that a sender belongs to (`a3.h5` to `a3` or `a3+m3`); -1 for `input`."""
    of_part = {part: i for i, name in enumerate(receivers) for part in name.split("+")}
    return np.array([of_part.get(name.split(".")[0], -1) for name in senders])


def layer_of(name: str) -> int | None:
    """3 of `a3.h5`, `m3` and `a3+m3`; None of `input` and `logits`."""
    found = re.match(r"[am](\d+)", name)
    return int(found[1]) if found else None


def _strength(scores: np.ndarray, by: str) -> np.ndarray:
    if by not in ("abs", "signed"):
        raise DataError(f"by={by!r} is not known: give 'abs' or 'signed'.")
    return np.abs(scores) if by == "abs" else scores


def _count(n: int, available: int) -> int:
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or not 0 <= n <= available:
        raise DataError(f"{n!r} edges were asked for; there are 0 to {available}.")
    return int(n)
