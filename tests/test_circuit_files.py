"""Circuits as graphs and files."""

from __future__ import annotations

import json
import re

import networkx as nx
import numpy as np
import pytest
from circuit_parts import CAUSAL, RECEIVERS, SENDERS, circuits
from hypothesis import given, settings

from workbench.errors import DataError
from workbench.patching.circuit import Circuit
from workbench.patching.circuit_export import load, save, to_graph


@given(circuits())
@settings(max_examples=30, deadline=None)
def test_a_saved_circuit_is_loaded_without_loss(tmp_path_factory, circuit):
    path = tmp_path_factory.mktemp("circuits") / "circuit.json"
    loaded = load(save(circuit, path))
    assert (loaded.senders, loaded.receivers) == (SENDERS, RECEIVERS)
    assert (loaded.matrix == circuit.matrix).all() and loaded.metadata == circuit.metadata
    assert np.array_equal(loaded.scores, circuit.scores, equal_nan=True)
    graph = nx.node_link_graph(json.loads(path.read_text(encoding="utf-8")), edges="edges")
    assert nx.utils.graphs_equal(graph, to_graph(circuit))


def test_the_graph_has_every_edge_and_every_path_of_the_circuit():
    chain = {("input", "a0"): 0.5, ("a0.h1", "m1"): -2.0, ("m1", "logits"): 1.0, ("a0.h0", "logits"): 0.1}
    scores = np.where(CAUSAL, 0.0, np.nan)
    for (s, r), score in chain.items():
        scores[SENDERS.index(s), RECEIVERS.index(r)] = score
    circuit = Circuit(SENDERS, RECEIVERS, np.nan_to_num(scores) != 0, scores)
    graph = to_graph(circuit)
    assert list(graph) == ["input", "a0", "a0.h0", "a0.h1", "m1", "logits"]
    assert dict(graph.nodes(data="kind")) == {
        "input": "input", "a0": "common input", "a0.h0": "head", "a0.h1": "head", "m1": "mlp", "logits": "logits",
    }  # fmt: skip
    assert graph.nodes["a0.h1"]["layer"] == 0 and "layer" not in graph.nodes["input"]
    assert {(a, b): s for a, b, s in graph.edges(data="score") if s is not None} == chain
    assert {(a, b) for a, b, kind in graph.edges(data="kind") if kind == "inside"} == {
        ("a0", "a0.h0"),
        ("a0", "a0.h1"),
    }
    assert nx.shortest_path(graph, "a0", "m1") == ["a0", "a0.h1", "m1"]
    assert circuit.nodes == ["input", "a0.h0", "a0.h1", "m1", "logits"] and circuit.n_nodes == 5
    assert nx.is_directed_acyclic_graph(graph)


@given(circuits())
@settings(max_examples=20, deadline=None)
def test_graphml_and_dot_have_the_same_nodes_and_edges(tmp_path_factory, circuit):
    folder, graph = tmp_path_factory.mktemp("circuits"), to_graph(circuit)
    read = nx.read_graphml(save(circuit, folder / "circuit.graphml"))
    assert read.nodes(data=True) == graph.nodes(data=True)
    assert nx.utils.edges_equal(list(read.edges(data=True)), list(graph.edges(data=True)), directed=True)
    assert read.graph["model"] == 'ü"\\'
    text = save(circuit, folder / "circuit.dot").read_text(encoding="utf-8")
    drawn = re.findall(r'^  "(\S+)" -> "(\S+)" \[kind="(edge|inside)"(?:, score="([^"]+)")?', text, re.M)
    assert {(a, b, k, float(s) if s else None) for a, b, k, s in drawn} == {
        (a, b, more["kind"], more.get("score")) for a, b, more in graph.edges(data=True)
    }
    assert re.findall(r'^  "(\S+)" \[kind', text, re.M) == list(graph)
    assert text.startswith("digraph circuit {\n") and text.endswith("}\n")


def test_text_in_dot_is_quoted():
    odd = 'a "b" \\'
    circuit = Circuit(("input", odd), ("logits",), np.array([[True], [True]]), np.ones((2, 1)))
    from workbench.patching.circuit_export import _dot

    assert '"a \\"b\\" \\\\" -> "logits"' in _dot(circuit)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (None, "No such file"),
        ("{", "is not JSON"),
        ("[1, 2]", "holds no circuit"),
        ('{"format": "other"}', "holds no circuit"),
        ('{"format": "latent-workbench circuit", "schema": 99}', "schema 99"),
        ('{"format": "latent-workbench circuit", "schema": 1}', "is damaged: KeyError 'senders'"),
    ],
)
def test_a_file_that_is_no_circuit_is_an_error(tmp_path, text, match):
    path = tmp_path / "circuit.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=match):
        load(path)


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("scores", lambda x: x[:-1]),
        ("scores", lambda x: [["a"] * 5] * 7),
        ("scores", lambda x: [[None] * 5] * 7),
        ("edges", lambda x: [{"kind": "edge", "source": "m9", "target": "logits"}]),
        ("edges", lambda x: [{"source": "m0"}]),
        ("edges", lambda x: 3),
        ("senders", lambda x: ["input"] * 7),
        ("graph", lambda x: 5),
    ],
)
def test_a_damaged_circuit_is_an_error(tmp_path, key, change):
    path = save(Circuit(SENDERS, RECEIVERS, CAUSAL, np.where(CAUSAL, 1.0, np.nan)), tmp_path / "circuit.json")
    raw = json.loads(path.read_text())
    raw[key] = change(raw[key])
    path.write_text(json.dumps(raw))
    with pytest.raises(DataError, match="is damaged"):
        load(path)


def test_an_unknown_ending_is_an_error(tmp_path):
    circuit = Circuit(SENDERS, RECEIVERS, CAUSAL, np.where(CAUSAL, 1.0, np.nan))
    with pytest.raises(DataError, match="end it in .json, .graphml, .dot"):
        save(circuit, tmp_path / "circuit.pdf")
    with pytest.raises(DataError, match="is not JSON"):
        load(save(circuit, tmp_path / "circuit.graphml"))
