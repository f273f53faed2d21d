"""What the tests of circuits share: graphs, ends, runs."""

from __future__ import annotations

import numpy as np
from attribution_parts import is_edge
from hypothesis import strategies as st

from workbench.patching.circuit import Circuit
from workbench.patching.edge_attribution import Graph


def whole_graph(model, heads=True, seed=0):
    """All edges of a model, with random scores."""
    graph = Graph.of(model, heads=heads)
    scores = np.where(graph.causal, np.random.default_rng(seed).normal(size=graph.causal.shape), np.nan)
    names = tuple(s.name for s in graph.senders), tuple(r.name for r in graph.receivers)
    return Circuit(*names, graph.causal, scores)


def with_edges(whole, wanted):
    """The circuit of those edges that `wanted(sender, receiver)` is true of."""
    matrix = [[wanted(s, r) for r in whole.receivers] for s in whole.senders]
    return whole.choose(np.array(matrix) & whole.causal)


SENDERS = ("input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1")
RECEIVERS = ("a0", "m0", "a1", "m1", "logits")
CAUSAL = np.array([[is_edge(s, r, parallel=False) for r in RECEIVERS] for s in SENDERS])


@st.composite
def circuits(draw):
    bits = draw(st.lists(st.booleans(), min_size=CAUSAL.size, max_size=CAUSAL.size))
    values = draw(st.lists(st.floats(-1e6, 1e6), min_size=CAUSAL.size, max_size=CAUSAL.size))
    scores = np.where(CAUSAL, np.reshape(values, CAUSAL.shape), np.nan)
    return Circuit(
        SENDERS, RECEIVERS, np.reshape(bits, CAUSAL.shape) & CAUSAL, scores, {"model": 'ü"\\', "n": 1}
    )
