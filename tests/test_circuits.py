"""Circuits against a slow run written by hand, networkx, plain numpy, and models in which the answer is known."""

from __future__ import annotations

import json
import re

import networkx as nx
import numpy as np
import pytest
import torch
from conftest import hooks_left, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from test_attribution import CLEAN, CORRUPT, FINAL, LENGTH, METRIC, MORE_CLEAN, MORE_CORRUPT, PARTS, is_edge

import workbench as wb
from workbench.errors import Cancelled, DataError, MetricError, PromptError, SiteError
from workbench.model.language_model import LanguageModel
from workbench.patching.circuit import Circuit, prune, select
from workbench.patching.circuit_export import load, save, to_graph
from workbench.patching.circuit_run import circuit_curves, run_circuit
from workbench.patching.edge_attribution import Graph, edges
from workbench.patching.metrics import KLDivergence
from workbench.progress import Silent


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


def ends(model, clean=CLEAN, corrupt=CORRUPT):
    return torch.stack([model.logits(clean)[0, -1], model.logits(corrupt)[0, -1]])


def same(a, b, tolerance=1e-4):
    return float((torch.as_tensor(a) - torch.as_tensor(b)).abs().max()) < tolerance


# -- the slow run --------------------------------------------------------------------------------------


def passing(model, ids, tell=None, get=()):
    """One plain forward: the inputs of some modules are replaced, inputs ("in") and outputs ("out") of others kept."""
    found, handles = {}, []
    for path, stream in (tell or {}).items():

        def replace(_m, args, stream=stream):
            return (stream.to(args[0]).reshape(args[0].shape),)

        handles.append(model.hf.get_submodule(path).register_forward_pre_hook(replace))
    for path, where in get:
        module = model.hf.get_submodule(path)
        if where == "in":

            def keep(_m, args, kwargs, key=(path, where)):
                found[key] = (
                    (args[0] if args else kwargs["hidden_states"]).detach().reshape(LENGTH, -1).clone()
                )

            handles.append(module.register_forward_pre_hook(keep, with_kwargs=True))
        else:

            def keep_output(_m, _args, output, key=(path, where)):
                value = output if torch.is_tensor(output) else output[0]
                found[key] = value.detach().reshape(LENGTH, -1).clone()

            handles.append(module.register_forward_hook(keep_output))
    with torch.no_grad():
        found["logits"] = model.hf(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
    for handle in handles:
        handle.remove()
    return found


def written(model, family, ids):
    """What every component writes in a plain run: the embedded prompt, z of attentions, outputs of MLPs."""
    blocks, norm, out, _, mlp, _ = PARTS[family]
    n = range(model.n_layers)
    get = [(f"{blocks}.0.{norm}", "in"), *((f"{blocks}.{i}.{out}", "in") for i in n)]
    run = passing(model, ids, get=[*get, *((f"{blocks}.{i}.{mlp}", "out") for i in n)])
    found = {"input": run[get[0]]}
    for i in n:
        found |= {f"a{i}": run[f"{blocks}.{i}.{out}", "in"], f"m{i}": run[f"{blocks}.{i}.{mlp}", "out"]}
    return found


def by_hand(model, family, circuit, clean, ablated):
    """The logits of a circuit: one forward for every node, its stream the sum of what each edge carries."""
    blocks, before_attention, out, before_mlp, mlp, behind = PARTS[family]
    now = {"input": written(model, family, clean)["input"]}

    def carried(sender, receiver):
        return bool(circuit.matrix[circuit.senders.index(sender), circuit.receivers.index(receiver)])

    def stream(receiver):
        total = (now if carried("input", receiver) else ablated)["input"].clone()
        for layer in range(model.n_layers):
            if is_edge(f"m{layer}", receiver, family == "neox"):
                total += (now if carried(f"m{layer}", receiver) else ablated)[f"m{layer}"]
            if is_edge(f"a{layer}", receiver, family == "neox"):
                z = ablated[f"a{layer}"].unflatten(-1, (model.n_heads, -1)).clone()
                for head in range(model.n_heads):
                    name = f"a{layer}.h{head}"
                    if carried(name if name in circuit.senders else f"a{layer}", receiver):
                        z[:, head] = now[f"a{layer}"].unflatten(-1, (model.n_heads, -1))[:, head]
                with torch.no_grad():
                    added = model.hf.get_submodule(f"{blocks}.{layer}.{out}")(z.flatten(-2))
                    if behind is not None:
                        added = model.hf.get_submodule(f"{blocks}.{layer}.{behind}")(added)
                total += added
        return total

    for layer in range(model.n_layers):
        at = f"{blocks}.{layer}"
        place = (f"{at}.{out}", "in")
        told = {f"{at}.{before_attention}": stream(f"a{layer}")}
        now[f"a{layer}"] = passing(model, clean, told, [place])[place]
        place = (f"{at}.{mlp}", "out")
        told = {f"{at}.{before_mlp}": stream(f"m{layer}")}
        now[f"m{layer}"] = passing(model, clean, told, [place])[place]
    return passing(model, clean, {FINAL.get(family, "model.norm"): stream("logits")})["logits"]


def half(whole, seed):
    """A random circuit with half of the edges; most of its nodes are told something of both runs."""
    return whole.random(whole.n_edges // 2, seed)


@pytest.mark.parametrize("heads", [True, False])
def test_a_circuit_equals_a_slow_run_by_hand(family, heads):
    model = tiny_model(family)
    whole = whole_graph(model, heads)
    circuits = [half(whole, seed) for seed in (0, 1)]
    ablated = written(model, family, CORRUPT)
    expected = torch.stack([by_hand(model, family, c, CLEAN, ablated) for c in circuits])
    ours = run_circuit(model, CLEAN, CORRUPT, circuits)[0]
    assert same(ours, expected, 1e-5)
    assert not any(same(a, b, 1e-2) for a in ours for b in ends(model)), (
        "a circuit like its ends tests nothing"
    )


@pytest.mark.parametrize("ablate", ["mean", "zero"])
@pytest.mark.parametrize("family", ["gpt2", "neox", "gemma2", "opt"])
def test_mean_and_zero_ablation_equal_a_slow_run_by_hand(family, ablate):
    model = tiny_model(family)
    circuit = half(whole_graph(model), 3)
    runs = [written(model, family, ids) for ids in MORE_CORRUPT]
    ablated = {k: torch.stack([r[k] for r in runs]).mean(0) * (ablate == "mean") for k in runs[0]}
    expected = torch.stack([by_hand(model, family, circuit, ids, ablated) for ids in MORE_CLEAN])
    ours = run_circuit(model, MORE_CLEAN, MORE_CORRUPT, circuit, ablate=ablate)[:, 0]
    assert same(ours, expected, 1e-5)


# -- identities ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [True, False])
def test_the_full_circuit_is_the_clean_run_and_the_empty_one_the_corrupt_run(model, heads):
    whole = whole_graph(model, heads)
    found = run_circuit(model, MORE_CLEAN, MORE_CORRUPT, [whole, whole.complement()])
    for i in range(3):
        assert same(found[i], ends(model, MORE_CLEAN[i], MORE_CORRUPT[i]))
    assert not same(found[:, 0], found[:, 1], 1e-2)
    assert hooks_left(model) == 0


@pytest.mark.parametrize("ablate", ["mean", "zero"])
def test_the_full_circuit_is_the_clean_run_whatever_is_ablated(model, ablate):
    found = run_circuit(model, MORE_CLEAN, MORE_CORRUPT, whole_graph(model), ablate=ablate)[:, 0]
    assert same(found, torch.stack([model.logits(ids)[0, -1] for ids in MORE_CLEAN]))


def test_edges_into_the_logits_alone_are_the_direct_effect_of_the_input(model):
    """All nodes are told of the corrupt prompt, so they send what they sent there; the input's change goes through."""
    into_logits = with_edges(whole_graph(model), lambda _, receiver: receiver == "logits")
    streams = []
    for ids, site in ((CORRUPT, "blocks.2.hook_resid_post"), (CLEAN, "blocks.0"), (CORRUPT, "blocks.0")):
        site = site if "." in site.removeprefix("blocks.") else f"{site}.hook_resid_pre"
        with model.hooks(read=[site]) as session:
            model.logits(ids)
        streams.append(session[site][0, -1])
    expected = model.readout(streams[0] + streams[1] - streams[2])
    assert same(run_circuit(model, CLEAN, CORRUPT, into_logits)[0, 0], expected)


def test_blocks_with_one_norm_for_both_run_too():
    from transformers import AutoModelForCausalLM, GPTJConfig

    torch.manual_seed(0)
    config = GPTJConfig(vocab_size=120, n_embd=48, n_layer=2, n_head=4, n_positions=64, rotary_dim=8)
    model = LanguageModel(AutoModelForCausalLM.from_config(config), None, name="tiny-gptj")
    whole = whole_graph(model)
    assert whole.receivers == ("a0+m0", "a1+m1", "logits")
    assert same(run_circuit(model, CLEAN, CORRUPT, [whole, whole.complement()])[0], ends(model))
    chain = {("input", "a0+m0"), ("a0.h1", "logits"), ("m0", "a1+m1"), ("input", "logits")}
    circuit = with_edges(whole, lambda s, r: (s, r) in chain)
    assert {e[:2] for e in prune(circuit).edges} == chain - {("m0", "a1+m1")}
    assert nx.has_path(to_graph(circuit), "a0+m0", "a1+m1")


def test_circuits_together_give_what_each_gives_alone_in_batches_of_any_size(model):
    whole = whole_graph(model)
    circuits = [whole.random(n, n) for n in (5, 15, 30, 45)]
    together = run_circuit(model, MORE_CLEAN, MORE_CORRUPT, circuits)
    for tokens in (1, 2 * LENGTH):
        batched = run_circuit(model, MORE_CLEAN, MORE_CORRUPT, circuits, tokens_per_call=tokens)
        assert same(together, batched, 1e-5)
    alone = torch.stack([run_circuit(model, MORE_CLEAN[1], MORE_CORRUPT[1], c)[0, 0] for c in circuits])
    assert same(together[1], alone, 1e-5)


def test_prompts_that_differ_from_the_first_token_on_run_whole(llama):
    whole = whole_graph(llama)
    clean, corrupt = [70, *CLEAN[1:]], [71, *CLEAN[1:]]
    found = run_circuit(llama, clean, corrupt, [whole, whole.complement(), half(whole, 0)])[0]
    assert same(found[:2], ends(llama, clean, corrupt))
    expected = by_hand(llama, "llama", half(whole, 0), clean, written(llama, "llama", corrupt))
    assert same(found[2], expected, 1e-5)


def test_pruning_changes_no_logit(model):
    whole = whole_graph(model)
    circuits = [whole.random(n, n) for n in (8, 12, 16, 24, 32)]
    pruned = [prune(c) for c in circuits]
    assert any(0 < p.n_edges < c.n_edges for p, c in zip(pruned, circuits, strict=True))
    found = run_circuit(model, CLEAN, CORRUPT, circuits + pruned)[0]
    assert same(found[:5], found[5:], 1e-5)


def test_a_model_in_bfloat16_or_frozen_or_inside_inference_mode(llama):
    circuit = half(whole_graph(llama), 0)
    expected = run_circuit(llama, CLEAN, CORRUPT, circuit)
    for parameter in llama.hf.parameters():
        parameter.requires_grad_(False)
    with torch.inference_mode():
        assert same(run_circuit(llama, CLEAN, CORRUPT, circuit), expected, 1e-6)
    llama.hf.bfloat16()
    found = run_circuit(llama, CLEAN, CORRUPT, circuit)
    assert found.dtype == torch.float32
    assert np.corrcoef(found.flatten(), expected.flatten())[0, 1] > 0.99


def test_a_stream_that_is_read_elsewhere_is_an_error(llama):
    seen = {}
    block = llama.block(1)
    block.register_forward_pre_hook(lambda _m, args: seen.update(x=args[0]))
    block.self_attn.register_forward_hook(lambda _m, _a, out: (out[0] + 0.1 * seen["x"], *out[1:]))
    assert edges(llama, CLEAN, CORRUPT, METRIC, heads=False, control=False).summary[
        "n_edges"
    ]  # the sums hold
    with pytest.raises(SiteError, match="read in places that are no receivers"):
        run_circuit(llama, CLEAN, CORRUPT, whole_graph(llama, heads=False))


def test_a_graph_that_does_not_give_the_clean_run_is_an_error(llama):
    llama.block(1).mlp.register_forward_hook(lambda _m, _a, out: out + torch.randn_like(out))
    with pytest.raises(SiteError, match="not those of the clean run"):
        run_circuit(llama, CLEAN, CORRUPT, whole_graph(llama))
    assert hooks_left(llama) == 1


# -- choosing edges ------------------------------------------------------------------------------------


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


# -- curves --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ablate", ["run", "mean"])
def test_curves_are_the_runs_of_the_pruned_circuits_and_their_complements(llama, attributed, ablate):
    sizes, seed = [3, 15, 40], 4
    result = circuit_curves(
        llama, MORE_CLEAN, MORE_CORRUPT, METRIC, attributed, sizes=sizes, n_random=3, seed=seed, ablate=ablate
    )
    data = result.data
    of_size = {size: prune(select(attributed, size)) for size in sizes}
    drawn = {size: [c.random(seed=[seed, i]) for i in range(3)] for size, c in of_size.items()}
    every = [select(attributed, 0), *of_size.values(), *(c for some in drawn.values() for c in some)]
    every += [c.complement() for c in every]
    logits = run_circuit(llama, MORE_CLEAN, MORE_CORRUPT, every, ablate=ablate).numpy()
    metric = dict(zip(map(id, every), (logits[..., 7] - logits[..., 9]).T, strict=True))
    clean = np.array([float((x := llama.logits(ids)[0, -1])[7] - x[9]) for ids in MORE_CLEAN])
    empty = metric[id(every[0])]
    share = {key: (value - empty) / (clean - empty) for key, value in metric.items()}
    rest = {id(a): share[id(b)] for a, b in zip(every, every[len(every) // 2 :], strict=False)}

    assert np.allclose(data["ablated_metric"], empty, atol=1e-5)
    assert np.allclose(data["clean_metric"], clean, atol=1e-5)
    if ablate == "run":
        corrupt = [float((x := llama.logits(ids)[0, -1])[7] - x[9]) for ids in MORE_CORRUPT]
        assert np.allclose(empty, corrupt, atol=1e-5)
    for size, circuit in of_size.items():
        at = data.sel(size=size)
        assert (int(at["n_edges"]), int(at["n_nodes"])) == (circuit.n_edges, circuit.n_nodes)
        assert np.allclose(at["metric"], metric[id(circuit)], atol=1e-5)
        assert np.allclose(at["faithfulness"], share[id(circuit)], atol=1e-3)
        assert np.allclose(at["completeness"], 1 - rest[id(circuit)], atol=1e-3)
        for i, one in enumerate(drawn[size]):
            assert np.allclose(at["random_faithfulness"].sel(random=i), share[id(one)], atol=1e-3)
            assert np.allclose(at["random_completeness"].sel(random=i), 1 - rest[id(one)], atol=1e-3)


def test_curves_have_intervals_a_null_and_a_summary(llama, attributed):
    result = circuit_curves(llama, MORE_CLEAN, MORE_CORRUPT, METRIC, attributed, n_random=5)
    data, summary = result.data, result.summary
    sizes = list(data["size"].values)
    assert sizes == [1, 2, 5, 10, 20, 50, int(np.isfinite(attributed.data["mean_effect"]).sum())]
    for what in ("faithfulness", "completeness"):
        mean = data[what].mean("pair")
        null = data[f"random_{what}"].mean("pair")
        assert np.allclose(data[f"mean_{what}"], mean)
        assert np.allclose(data[f"{what}_se"], data[what].std("pair", ddof=1) / np.sqrt(3))
        assert (data[f"{what}_low"] <= mean + 1e-9).all() and (mean <= data[f"{what}_high"] + 1e-9).all()
        assert np.allclose(data[f"mean_random_{what}"], null.mean("random"))
        assert np.allclose(data[f"random_{what}_sd"], null.std("random", ddof=1))
        for i in range(len(sizes)):
            as_well = sum(float(null[i, j]) >= float(mean[i]) - 1e-9 for j in range(5))
            assert float(data[f"{what}_p"][i]) == pytest.approx((1 + as_well) / 6)
        assert np.allclose(data[what].isel(size=-1), 1, atol=1e-3)
    for level in (0.8, 0.9):
        first = next(i for i, value in enumerate(data["mean_faithfulness"].values) if value >= level)
        assert summary["smallest"][str(level)]["size"] == sizes[first]
    x, y = np.log(sizes), data["mean_faithfulness"].values
    by_trapezoids = sum((x[i + 1] - x[i]) * (y[i] + y[i + 1]) / 2 for i in range(len(x) - 1)) / (x[-1] - x[0])
    assert summary["area"]["circuit"] == pytest.approx(by_trapezoids, abs=1e-4)
    assert summary["area"]["interval"][0] <= summary["area"]["circuit"] <= summary["area"]["interval"][1]
    assert summary["n_pairs"] == 3 and summary["strongest"] == select(attributed, 1).edges[0]._asdict()


def test_the_edges_of_a_planted_circuit_are_all_it_takes(llama):
    """Only block 0's heads and block 1's MLP write, and the last token is the same: 10 edges do everything."""
    with torch.no_grad():
        for layer in (1, 2):
            llama.block(layer).self_attn.o_proj.weight.zero_()
        for layer in (0, 2):
            llama.block(layer).mlp.down_proj.weight.zero_()
    ranking = edges(llama, MORE_CLEAN[1:], MORE_CORRUPT[1:], METRIC, integrate=3, control=False)
    result = circuit_curves(llama, CLEAN, CORRUPT, METRIC, ranking, sizes=[10], n_random=20, null="layers")
    live = {"input": {"a0"}, "m1": {"logits"}} | {f"a0.h{h}": {"m1", "logits"} for h in range(4)}
    found = {}
    for sender, receiver, _ in select(ranking, 10).edges:
        found.setdefault(sender, set()).add(receiver)
    assert found == live
    data = result.data.isel(size=0, pair=0)
    assert float(data["faithfulness"]) == pytest.approx(1, abs=1e-3)
    assert float(data["completeness"]) == pytest.approx(1, abs=1e-3)
    assert float(data["faithfulness_p"]) == pytest.approx(1 / 21)
    assert np.isnan(float(data["faithfulness_low"])), "one pair has no interval"
    assert result.summary["smallest"]["0.9"] == {"size": 10, "n_edges": 10, "n_nodes": 7, "faithfulness": 1.0}
    reverse = [edge[:2] for edge in reversed(select(ranking, 10).edges)]
    by_name = circuit_curves(llama, CLEAN, CORRUPT, METRIC, reverse, sizes=[4, 10], n_random=0)
    assert float(by_name.data["faithfulness"][0, 1]) == pytest.approx(1, abs=1e-3)
    assert "random_faithfulness" not in by_name.data and by_name.summary["strongest"]["score"] == 10
    chosen = {edge[:2] for edge in prune(select(ranking, 10)).edges} & set(reverse[:4])
    weak = prune(with_edges(whole_graph(llama), lambda s, r: (s, r) in chosen))
    assert int(by_name.data["n_edges"][0]) == weak.n_edges


def test_longer_answers_kl_and_steps_have_curves_too(llama):
    n = whole_graph(llama).n_edges
    for metric in (wb.LogProbability((7, 9)), KLDivergence()):
        ranking = edges(llama, CLEAN, CORRUPT, metric, control=False)
        data = circuit_curves(llama, CLEAN, CORRUPT, metric, ranking, sizes=[10, n], n_random=1).data
        assert float(data["faithfulness"][0, 1]) == pytest.approx(1, abs=1e-3)
        assert not 0.999 < float(data["faithfulness"][0, 0]) < 1.001
    first = int(llama.logits(CLEAN)[0, -1].argmax())
    accuracy = wb.patching.Accuracy(first)
    data = circuit_curves(llama, CLEAN, CORRUPT, accuracy, ranking, sizes=[n], n_random=0).data
    assert float(data["clean_metric"][0]) == 1 and float(data["faithfulness"][0, 0]) == 1


def test_curves_do_not_depend_on_the_batches_and_a_seed_repeats_them(llama, attributed):
    options = {"sizes": [20], "n_random": 3}
    first, again, small, other = (
        circuit_curves(
            llama, CLEAN, CORRUPT, METRIC, attributed, **options, seed=seed, tokens_per_call=tokens
        ).data
        for seed, tokens in ((1, 2048), (1, 2048), (1, 20), (2, 2048))
    )
    assert first.identical(again)
    assert np.allclose(first["random_faithfulness"], small["random_faithfulness"], atol=1e-3)
    assert not np.allclose(first["random_faithfulness"], other["random_faithfulness"], atol=1e-3)


def test_progress_counts_every_run_and_a_cancel_leaves_no_hook(llama, attributed):
    class Counting(Silent):
        def __init__(self, stop=10**9):
            self.total, self.done, self.stop = 0, 0, stop

        def stage(self, name, total):
            self.total += total

        def advance(self, n=1):
            self.done += n
            if self.done > self.stop:
                raise Cancelled

    options = {"sizes": [5, 20], "n_random": 2}
    progress = Counting()
    circuit_curves(llama, MORE_CLEAN, MORE_CORRUPT, METRIC, attributed, **options, progress=progress)
    assert progress.done == progress.total == 3 * (1 + 2 * 3 * 2)
    with pytest.raises(Cancelled):
        circuit_curves(
            llama,
            MORE_CLEAN,
            MORE_CORRUPT,
            METRIC,
            attributed,
            **options,
            progress=Counting(2),
            tokens_per_call=1,
        )
    assert hooks_left(llama) == 0


def test_curves_that_cannot_be_are_errors(llama, attributed):
    with pytest.raises(MetricError, match="nothing for a circuit to carry"):
        circuit_curves(llama, CLEAN, CLEAN, METRIC, attributed, sizes=[3], n_random=0)
    with pytest.raises(DataError, match="there are 0 to"):
        circuit_curves(llama, CLEAN, CORRUPT, METRIC, attributed, sizes=[999])
    with pytest.raises(DataError, match="n_random is -1"):
        circuit_curves(llama, CLEAN, CORRUPT, METRIC, attributed, n_random=-1)
    with pytest.raises(DataError, match="one or more sizes"):
        circuit_curves(llama, CLEAN, CORRUPT, METRIC, attributed, sizes=[])
    with pytest.raises(DataError, match="like='degree'"):
        circuit_curves(llama, CLEAN, CORRUPT, METRIC, attributed, sizes=[3], null="degree")
    with pytest.raises(DataError, match="'a0.h9' is not in the graph of tiny-llama. Did you mean 'a0.h"):
        circuit_curves(llama, CLEAN, CORRUPT, METRIC, [("a0.h9", "logits")])
    with pytest.raises(DataError, match="stands twice in the ranking"):
        circuit_curves(llama, CLEAN, CORRUPT, METRIC, [("m0", "logits"), ("m0", "logits")])
    with pytest.raises(DataError, match="m2 -> a0 cannot be an edge"):
        circuit_curves(llama, CLEAN, CORRUPT, METRIC, [("m2", "a0")])
    with pytest.raises(DataError, match="of another graph"):
        circuit_curves(tiny_model("llama", num_hidden_layers=2), CLEAN, CORRUPT, METRIC, attributed)


def test_a_result_is_saved_and_loaded_without_loss(llama, attributed, tmp_path):
    result = circuit_curves(llama, CLEAN, CORRUPT, METRIC, attributed, sizes=[5], n_random=2)
    result.save(tmp_path / "curves")
    loaded = wb.Result.load(tmp_path / "curves")
    assert loaded.data.identical(result.data) and loaded.summary == result.summary


# -- graphs and files ----------------------------------------------------------------------------------


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
