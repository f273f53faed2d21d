"""Running a circuit against a slow run by hand, and the identities it must keep."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch
from attribution_parts import CLEAN, CORRUPT, FINAL, LENGTH, METRIC, MORE_CLEAN, MORE_CORRUPT, PARTS, is_edge
from circuit_parts import whole_graph, with_edges
from conftest import hooks_left, tiny_model

from workbench.errors import SiteError
from workbench.model.language_model import LanguageModel
from workbench.patching.circuit import prune
from workbench.patching.circuit_export import to_graph
from workbench.patching.circuit_run import run_circuit
from workbench.patching.edge_attribution import edges


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
