"""Choosing the edges of a circuit, pruning, complements and random circuits."""

from __future__ import annotations

import re

import networkx as nx
import numpy as np
import pytest
from attribution_parts import CLEAN, CORRUPT, METRIC, MORE_CLEAN, MORE_CORRUPT
from circuit_parts import CAUSAL, RECEIVERS, SENDERS, circuits, whole_graph
from conftest import hooks_left, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

import workbench as wb
from workbench.errors import DataError, PromptError
from workbench.patching.circuit import Circuit, prune, select
from workbench.patching.circuit_run import run_circuit
from workbench.patching.edge_attribution import edges


@pytest.fixture(scope="module")
def attributed():
    return edges(tiny_model("llama"), MORE_CLEAN, MORE_CORRUPT, METRIC, control=False)


def test_the_strongest_edges_are_those_of_largest_mean_effect(attributed):
    flat = attributed.data["effect"].mean("pair").to_dataframe().dropna()["effect"]
    for by, key in (("abs", abs), ("signed", None)):
        chosen = select(attributed, 10, by=by)
        expected = set(flat.sort_values(ascending=False, key=key and (lambda x: x.abs())).index[:10])
        assert {edge[:2] for edge in chosen.edges} == expected
    listed = [abs(edge.score) for edge in select(attributed, 10).edges]
    assert listed == sorted(listed, reverse=True)
    total = len(flat)
    assert select(attributed, share=0.25).n_edges == round(total / 4)
    assert select(attributed, share=1.0).n_edges == total
    assert select(attributed, 0).n_edges == 0
    limit = float(flat.abs().median())
    assert select(attributed, threshold=limit).n_edges == (flat.abs() >= limit).sum()
    assert select(attributed, threshold=0.01, by="signed").n_edges == (flat >= 0.01).sum()


def test_a_circuit_knows_where_it_comes_from(attributed):
    known = select(attributed, 10).metadata
    assert known["fingerprint"] == tiny_model("llama").fingerprint and known["n_pairs"] == 3
    assert known["metric"] == str(METRIC) and known["chosen"] == "n_edges=10, by abs"


def test_selections_that_cannot_be_are_errors(attributed):
    with pytest.raises(DataError, match="give one of"):
        select(attributed)
    with pytest.raises(DataError, match="n_edges and share was given"):
        select(attributed, 3, share=0.1)
    with pytest.raises(DataError, match="there are 0 to"):
        select(attributed, 10_000)
    with pytest.raises(DataError, match="True edges"):
        select(attributed, True)
    with pytest.raises(DataError, match="from 0 to 1"):
        select(attributed, share=1.5)
    with pytest.raises(DataError, match="by='size'"):
        select(attributed, 3, by="size")
    with pytest.raises(DataError, match="'patching_sweep' has no edges"):
        select(wb.patching.sweep(tiny_model("llama"), CLEAN, CORRUPT, METRIC, control=False), 3)


@given(circuits())
@settings(max_examples=200, deadline=None)
def test_pruning_keeps_the_edges_on_paths_from_input_to_logits(circuit):
    """By networkx: all simple paths of the graph in which `a0` reads for `a0.h0` and `a0.h1`."""
    graph = nx.DiGraph((f"reads {r}" if r != "logits" else r, r) for r in RECEIVERS if r != "logits")
    graph.add_edges_from(
        (e.sender, f"reads {e.receiver}" if e.receiver != "logits" else "logits") for e in circuit.edges
    )
    graph.add_edges_from((f"reads {s.split('.')[0]}", s) for s in SENDERS if s != "input")
    graph.add_nodes_from(["input", "logits"])
    on_a_path = {step for path in nx.all_simple_edge_paths(graph, "input", "logits") for step in path}
    expected = {
        (e.sender, e.receiver)
        for e in circuit.edges
        if (e.sender, f"reads {e.receiver}" if e.receiver != "logits" else "logits") in on_a_path
    }
    pruned = prune(circuit)
    assert {edge[:2] for edge in pruned.edges} == expected
    assert (prune(pruned).matrix == pruned.matrix).all()
    kept = {s for s, _ in expected} | {r for _, r in expected}
    assert set(pruned.nodes) == {n for n in kept if n in (*SENDERS, "logits")}


@given(circuits(), st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_complements_and_random_circuits_count_edges(circuit, seed):
    rest = circuit.complement()
    assert (circuit.matrix ^ rest.matrix == CAUSAL).all() and not (circuit.matrix & rest.matrix).any()
    drawn = circuit.random(seed=seed)
    assert drawn.n_edges == circuit.n_edges and not (drawn.matrix & ~CAUSAL).any()
    for like in ("uniform", "layers"):
        assert (
            circuit.random(seed=seed, like=like).matrix == circuit.random(seed=seed, like=like).matrix
        ).all()
    count = {}
    for which in (circuit, circuit.random(seed=seed, like="layers")):
        for s, r, _ in which.edges:
            pair = re.sub(r"[am.h]+", "", s[:2]), re.sub(r"[am]", "", r)
            count[pair] = count.get(pair, 0) + (1 if which is circuit else -1)
    assert not any(count.values())
    n = circuit.n_edges // 2
    assert not (circuit.random(n, seed).matrix & ~drawn.matrix).any()


def test_random_circuits_are_uniform():
    whole = Circuit(SENDERS, RECEIVERS, CAUSAL, np.where(CAUSAL, 0.0, np.nan))
    n, draws = 5, 2000
    counts = sum(whole.random(n, seed).matrix.astype(int) for seed in range(draws))[CAUSAL]
    expected = draws * n / CAUSAL.sum()
    assert abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_circuits_that_cannot_be_are_errors():
    scores = np.where(CAUSAL, 1.0, np.nan)
    with pytest.raises(DataError, match="expected \\(7, 5\\)"):
        Circuit(SENDERS, RECEIVERS, CAUSAL[:2], scores)
    with pytest.raises(DataError, match="m1 -> a0 cannot be an edge|a0.h0 -> a0 cannot be an edge"):
        Circuit(SENDERS, RECEIVERS, np.ones_like(CAUSAL), scores)
    with pytest.raises(DataError, match="stands twice"):
        Circuit(("input",) * 7, RECEIVERS, CAUSAL, scores)
    circuit = Circuit(SENDERS, RECEIVERS, CAUSAL, scores)
    with pytest.raises(DataError, match="give like='uniform'"):
        circuit.random(3, like="layers")
    with pytest.raises(ValueError, match="read-only"):
        circuit.matrix[0, 0] = False


def test_runs_that_cannot_be_are_errors(llama):
    whole = whole_graph(llama)
    with pytest.raises(DataError, match="of another graph"):
        run_circuit(llama, CLEAN, CORRUPT, whole_graph(tiny_model("llama", num_hidden_layers=2)))
    with pytest.raises(DataError, match="Circuit 1 is of another graph"):
        run_circuit(llama, CLEAN, CORRUPT, [whole, whole_graph(llama, heads=False)])
    with pytest.raises(DataError, match="No circuits"):
        run_circuit(llama, CLEAN, CORRUPT, [])
    with pytest.raises(DataError, match="ablate='noise'"):
        run_circuit(llama, CLEAN, CORRUPT, whole, ablate="noise")
    with pytest.raises(DataError, match="'mean' and two pairs or more"):
        run_circuit(llama, CLEAN, CORRUPT, whole, ablate="mean")
    with pytest.raises(PromptError, match="tokens"):
        run_circuit(llama, CLEAN, CORRUPT[:-1], whole)
    assert hooks_left(llama) == 0
