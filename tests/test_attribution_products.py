"""What attribution leaves out (equal positions, gradients nobody reads, other tokens' logits) changes no result."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import hooks_left, tiny_model

import workbench as wb
from workbench.patching import first_order, products
from workbench.patching.attribution import ATTRIBUTED, attribution
from workbench.patching.cells import KINDS
from workbench.patching.edge_attribution import edges
from workbench.patching.metrics import KLDivergence

BASE = [50, 51, 52, 53, 54, 55, 56, 57, 58, 59]
LENGTH = len(BASE)
METRIC = wb.LogitDifference(7, 9)


def but(*changes: tuple[int, int]) -> list[int]:
    """The base prompt with other tokens at some positions."""
    ids = list(BASE)
    for position, token in changes:
        ids[position] = token
    return ids


def kinds_of(family) -> list[Any]:
    return [k for k in ATTRIBUTED if k != "resid_mid" or family != "neox"]


def read(model, ids, site):
    with model.hooks(read=[site]) as session:
        model.logits(ids)
    return session[site][0].clone()


def gradient(model, ids, site, metric, inputs=None):
    """d metric / d activation: one whole forward of one prompt in which the site's activation is a leaf."""
    leaves = []

    def leaf(activation):
        leaves.append(activation.detach().requires_grad_())
        return leaves[0]

    first = "blocks.0.hook_resid_pre"
    edits: dict[str, Any] = {} if inputs is None else {first: lambda _: inputs[None]}
    edits[site] = leaf if inputs is None or site != first else lambda _: leaf(inputs[None])
    with torch.enable_grad(), model.edit(edits):
        logits = model.hf(input_ids=torch.tensor([ids]), use_cache=False).logits
        (found,) = torch.autograd.grad(metric(logits[:, -1]).sum(), leaves)
    return found[0]


def expected(model, source, base, site, kind, function, wrong=None):
    """[cell] (a' - a) · dm/da of one site, of whole forwards of single prompts; `wrong`: takes its source from there."""
    delta = (read(model, source, site) if wrong is None else wrong) - read(model, base, site)
    each = (delta * gradient(model, base, site, function)).sum(-1).double()
    return (each.sum(0) if kind in ("z", "q", "k", "v") else each).numpy()


def close(ours, oracle, tolerance=2e-5):
    oracle = np.asarray(oracle)
    assert np.abs(oracle).max() > 1e-4, "an oracle of zeros tests nothing"
    return np.abs(np.asarray(ours) - oracle).max() < tolerance * max(1, np.abs(oracle).max())


def change(result, kind, pair=0):
    data = result.data
    name = "metric" if "metric" in data else f"metric_{kind}"
    return data[name].values[pair] - float(data["corrupt_metric"][pair])


def swapped(model):
    return [name for name, module in model.hf.named_modules() if "forward" in module.__dict__]


@pytest.mark.parametrize("first", [0, 4, LENGTH - 1])
def test_every_kind_equals_whole_forwards_of_single_prompts(family, first):
    model = tiny_model(family)
    source, function = but((first, 60)), METRIC.resolve(model)
    result = attribution(model, source, BASE, METRIC, kind=kinds_of(family), control=False)
    for kind in kinds_of(family):
        oracle = np.stack(
            [
                expected(model, source, BASE, f"blocks.{i}.{KINDS[kind]}", kind, function)
                for i in range(model.n_layers)
            ]
        )
        assert close(change(result, kind), oracle), kind
        if kind not in ("z", "q", "k", "v"):
            assert not result.data[f"effect_{kind}"].values[..., :first].any(), (
                "equal positions have no effect"
            )
    assert hooks_left(model) == 0 and not swapped(model)


PAIRS = ([but((7, 60)), but((2, 61)), but((5, 62), (6, 70))], [BASE, BASE, but((5, 63))])


@pytest.mark.parametrize("few", [0, 64])
@pytest.mark.parametrize("metric", [METRIC, [METRIC, wb.LogitDifference(11, 7), wb.LogitDifference(5, 6)]])
def test_pairs_that_begin_to_differ_at_different_positions(family, few, metric, monkeypatch):
    """With their own sources and with the next pair's, together and apart."""
    monkeypatch.setattr(first_order, "FEW_TOKENS", few)
    model = tiny_model(family)
    functions = [m.resolve(model) for m in (metric if isinstance(metric, list) else [metric] * 3)]
    result = attribution(model, *PAIRS, metric, kind="resid_post", layers=[1])
    site = "blocks.1.hook_resid_post"
    for i, (source, base) in enumerate(zip(*PAIRS, strict=True)):
        assert close(
            change(result, "resid_post", i)[0],
            expected(model, source, base, site, "resid_post", functions[i]),
        )
        wrong = read(model, PAIRS[0][(i + 1) % 3], site)
        oracle = expected(model, source, base, site, "resid_post", functions[i], wrong)
        span = float(result.data["clean_metric"][i] - result.data["corrupt_metric"][i])
        assert close(result.data["control_effect"].values[i, 0] * span, oracle)


def test_the_control_of_one_pair_has_gradients_before_the_first_difference(model):
    result = attribution(model, but((8, 60)), BASE, METRIC, kind="attn_out", layers=[0], seed=3)
    site, function = "blocks.0.hook_attn_out", METRIC.resolve(model)
    from workbench.patching.sources import deranged

    taken = {site: read(model, but((8, 60)), site)}
    wrong = deranged(taken, np.random.default_rng(3), "")[site]
    oracle = expected(model, but((8, 60)), BASE, site, "attn_out", function, wrong)
    span = float(result.data["clean_metric"][0] - result.data["corrupt_metric"][0])
    assert np.abs(oracle[:8]).max() > 1e-4
    assert close(result.data["control_effect"].values[0, 0] * span, oracle)


def test_metrics_of_all_logits_are_given_all(model):
    source = but((6, 60))
    clean = model.logits(source)[0, -1]
    cases = (
        (KLDivergence(), KLDivergence().against(clean)),
        (wb.LogProbability(7), wb.LogProbability(7).resolve(model)),
        (lambda logits: logits.square().mean(-1), lambda logits: logits.square().mean(-1)),
    )
    for metric, function in cases:
        result = attribution(model, source, BASE, metric, kind="mlp_out", layers=[0], control=False)
        oracle = expected(model, source, BASE, "blocks.0.hook_mlp_out", "mlp_out", function)
        assert close(change(result, "mlp_out")[0], oracle)


def test_integrated_gradients_begin_at_the_first_difference(model):
    """Midpoints of whole forwards of single inputs."""
    source, function, site = but((6, 60)), METRIC.resolve(model), "blocks.1.attn.hook_z"
    first = "blocks.0.hook_resid_pre"
    ends = [read(model, ids, first) for ids in (BASE, source)]
    kinds: tuple[tuple[Any, str], ...] = (("z", site), ("resid_pre", first))
    for kind, at in kinds:
        delta = read(model, source, at) - read(model, BASE, at)
        oracle = 0
        for fraction in (1 / 6, 1 / 2, 5 / 6):
            inputs = ends[0] + fraction * (ends[1] - ends[0])
            oracle = oracle + (delta * gradient(model, BASE, at, function, inputs)).sum(-1).double() / 3
        oracle = oracle.sum(0) if kind == "z" else oracle
        layer = [int(at.split(".")[1])]
        for tokens in (1, 1024):
            result = attribution(
                model, source, BASE, METRIC, kind=kind, layers=layer, integrate=3, control=False,
                tokens_per_backward=tokens,
            )  # fmt: skip
            assert close(change(result, kind)[0], oracle.numpy())


def test_prompts_of_different_lengths_share_nothing(model):
    """Position 2 of the base run takes position 1 of the source run; the first tokens are the same."""
    source, moved = BASE[:4] + BASE[5:], {p: p if p < 4 else p + 1 for p in range(LENGTH - 1)}
    moved |= {1: 2, 2: 1}
    result = attribution(model, source, BASE, METRIC, layers=[1], alignment=moved, control=False)
    site = "blocks.1.hook_resid_pre"
    theirs, own = read(model, source, site), read(model, BASE, site)
    taken = own.clone()
    for from_, to in moved.items():
        taken[to] = theirs[from_]
    oracle = ((taken - own) * gradient(model, BASE, site, METRIC.resolve(model))).sum(-1).numpy()
    ours = np.nan_to_num(change(result, "resid_pre")[0])
    assert np.abs(oracle[1:3]).min() > 1e-5
    assert close(ours, oracle)


def test_edges_are_the_same_with_and_without_what_is_left_out(model, monkeypatch):
    source = but((6, 60), (8, 61))
    ours = edges(model, source, BASE, METRIC, control=False).data["score"].values
    monkeypatch.setattr(first_order, "_first_difference", lambda _a, _b: 0)
    monkeypatch.setattr(products, "_has_one_dnn", lambda: False)
    whole = edges(model, source, BASE, METRIC, control=False).data["score"].values
    assert np.array_equal(np.isnan(ours), np.isnan(whole))
    assert close(np.nan_to_num(ours), np.nan_to_num(whole))


@pytest.mark.parametrize("layer", [-1, 2])
def test_blocks_are_counted_from_the_end_too(llama, layer):
    source = but((6, 60))
    result = attribution(llama, source, BASE, METRIC, kind=["z", "mlp_out"], layers=[layer, 0], control=False)
    assert result.data["layer"].values.tolist() == [0, 2]  # in the order of the blocks, as a sweep has them
    whole = attribution(llama, source, BASE, METRIC, kind="z", control=False)
    assert np.allclose(result.data["effect_z"], whole.data["effect"].sel(layer=[0, 2]), atol=1e-6)


def test_modules_that_somebody_changed_do_as_they_do(llama):
    """A forward put in by an offloading hook, a subclass, an unembedding of another kind."""
    first, second = (llama.hf.model.layers[i].mlp for i in (0, 1))

    class Doubling(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    second.up_proj.__class__ = Doubling
    plain = first.up_proj.forward
    first.up_proj.forward = lambda x: 3 * plain(x)
    source, function = but((7, 60)), METRIC.resolve(llama)
    result = attribution(llama, source, BASE, METRIC, kind="resid_pre", layers=[0], control=False)
    oracle = expected(llama, source, BASE, "blocks.0.hook_resid_pre", "resid_pre", function)
    assert close(change(result, "resid_pre")[0], oracle)
    assert swapped(llama) == ["model.layers.0.mlp.up_proj"]


def test_one_dnn_gives_what_torch_gives(model, monkeypatch):
    source = but((7, 60))
    plain, weight = torch.nn.functional.linear, torch.zeros(2, 2)
    assert products._has_one_dnn() and products.product_of(weight, True) is not plain
    assert products.product_of(weight, False) is products.product_of(weight.double(), True) is plain
    ours = attribution(model, source, BASE, METRIC, kind="z").data["metric"]
    monkeypatch.setattr(products, "_has_one_dnn", lambda: False)
    assert close(ours, attribution(model, source, BASE, METRIC, kind="z").data["metric"])
