"""Curves of circuits over their size: runs, intervals, null, progress, errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attribution_parts import CLEAN, CORRUPT, METRIC, MORE_CLEAN, MORE_CORRUPT
from circuit_parts import whole_graph, with_edges
from conftest import hooks_left, tiny_model

import workbench as wb
from workbench.errors import Cancelled, DataError, MetricError
from workbench.patching.circuit import prune, select
from workbench.patching.circuit_run import circuit_curves, run_circuit
from workbench.patching.edge_attribution import edges
from workbench.patching.metrics import KLDivergence
from workbench.progress import Silent

# -- choosing edges ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def attributed():
    return edges(tiny_model("llama"), MORE_CLEAN, MORE_CORRUPT, METRIC, control=False)


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
