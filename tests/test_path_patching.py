"""Path patching against the two whole hooked forwards it is defined by."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import hooks_left

import workbench as wb
from workbench.errors import PromptError, SiteError
from workbench.patching.path import path_patch

CLEAN = [50, 51, 52, 53, 54, 55, 56, 57, 58, 59]
CORRUPT = [50, 51, 60, 53, 54, 55, 61, 57, 58, 59]
METRIC = wb.LogitDifference(7, 9)


def by_hand(model, nodes, receivers, freeze, source=CLEAN, base=CORRUPT):
    """Freeze, read, put in: with whole forwards, written without the engine."""
    zs = [f"blocks.{i}.attn.hook_z" for i in range(model.n_layers)]
    mlps = [f"blocks.{i}.hook_mlp_out" for i in range(model.n_layers)]
    runs = {}
    for name, prompt in (("source", source), ("base", base)):
        with model.hooks(read=[*zs, *mlps]) as session:
            model.logits(prompt)
        runs[name] = {site: session[site] for site in (*zs, *mlps)}
    receiving = {site for site, _ in receivers}
    edits = {}
    for i in range(model.n_layers):

        def hold(x, i=i):
            new = runs["base"][zs[i]].clone()
            for block, head in nodes:
                if block == i and head != "mlp":
                    new[:, :, head] = runs["source"][zs[i]][:, :, head]
            return new

        edits[zs[i]] = hold
        if (i, "mlp") in nodes:
            edits[mlps[i]] = lambda x, i=i: runs["source"][mlps[i]].clone()
        elif freeze == "all" and mlps[i] not in receiving:
            edits[mlps[i]] = lambda x, i=i: runs["base"][mlps[i]].clone()
    metric = METRIC.resolve(model)
    with model.hooks(read=list(receiving), edit=edits) as session:
        logits = model.logits(base)
    if not receivers:
        return float(metric(logits[:, -1])[0])

    def put(site):
        def edit(x):
            for name, head in receivers:
                if name == site and head is None:
                    x = session[site].clone()
                elif name == site:
                    x[:, :, head] = session[site][:, :, head]
            return x

        return edit

    with model.edit({site: put(site) for site in receiving}):
        return float(metric(model.logits(base)[:, -1])[0])


@pytest.mark.parametrize("freeze", ["heads", "all"])
@pytest.mark.parametrize(
    "receivers",
    [
        [],
        [("blocks.2.attn.hook_q", 1)],
        [("blocks.1.attn.hook_k", 0), ("blocks.2.attn.hook_v", None)],
        [("blocks.2.hook_mlp_out", None)],
    ],
)
def test_every_sender_equals_two_whole_forwards(model, receivers, freeze):
    given = (
        "logits" if not receivers else [site if head is None else (site, head) for site, head in receivers]
    )
    data = path_patch(model, CLEAN, CORRUPT, METRIC, given, freeze=freeze, control=False).data
    grid = data["metric"].values[0]
    assert grid.shape == (model.n_layers, model.n_heads + 1)
    highest = max([int(site.split(".")[1]) for site, _ in receivers], default=model.n_layers)
    for layer in range(model.n_layers):
        for at, head in enumerate((*range(model.n_heads), "mlp")):
            if at not in (0, model.n_heads - 1, model.n_heads):
                continue
            if layer > highest:
                expected = float(METRIC.resolve(model)(model.logits(CORRUPT)[:, -1])[0])
            else:
                expected = by_hand(model, [(layer, head)], receivers, freeze)
            assert abs(grid[layer, at] - expected) < 1e-4, (layer, head)
    assert hooks_left(model) == 0


def test_sets_of_senders_are_patched_together(llama):
    sets = [[(0, 1), (1, "mlp")], [(0, 0), (0, 1), (0, 2), (0, 3)]]
    result = path_patch(llama, CLEAN, CORRUPT, METRIC, [("blocks.2.attn.hook_q", 1)], senders=sets)
    for i, nodes in enumerate(sets):
        expected = by_hand(llama, nodes, [("blocks.2.attn.hook_q", 1)], "heads")
        assert abs(result.data["metric"].values[0, i] - expected) < 1e-4
    assert result.data["effect"].dims == ("pair", "set")
    assert list(result.data["set_name"].values) == ["0.1+1.mlp", "0.0+0.1+0.2+0.3"]


def test_all_paths_into_the_logits_together_are_the_whole_effect_of_the_last_block(llama):
    """With every head and MLP a sender nothing is left but the embedding's own path."""
    every = [(layer, head) for layer in range(llama.n_layers) for head in (*range(llama.n_heads), "mlp")]
    result = path_patch(llama, CLEAN, CORRUPT, METRIC, senders=[every], freeze="all", control=False)
    site = "blocks.0.hook_resid_pre"
    with llama.hooks(read=site) as session:
        llama.logits(CLEAN)
        llama.logits(CORRUPT)
    clean, corrupt = session.calls(site)
    with llama.hooks(read="blocks.2.hook_resid_post") as last:
        llama.logits(CLEAN)
    stream = last["blocks.2.hook_resid_post"] - clean + corrupt
    expected = float(METRIC.resolve(llama)(llama.readout(stream)[:, -1])[0])
    assert abs(float(result.data["metric"][0, 0]) - expected) < 1e-4


def test_several_pairs_and_noising(llama):
    pairs = ([CLEAN, CORRUPT], [CORRUPT, [50, 51, 62, 53, 54, 55, 63, 57, 58, 59]])
    result = path_patch(
        llama, *pairs, METRIC, "blocks.2.attn.hook_v", direction="noising", tokens_per_call=30
    )
    expected = by_hand(llama, [(1, 2)], [("blocks.2.attn.hook_v", None)], "heads", source=CORRUPT, base=CLEAN)
    assert abs(float(result.data["metric"][0, 1, 2]) - expected) < 1e-4
    assert np.isfinite(result.data["effect_low"]).all()
    assert result.summary["strongest"]["component"] in ("mlp", *(f"head {h}" for h in range(llama.n_heads)))
    assert result.data.attrs["freeze"] == "heads"


def test_receivers_and_senders_that_cannot_be_are_errors(llama):
    with pytest.raises(SiteError, match="cannot receive"):
        path_patch(llama, CLEAN, CORRUPT, METRIC, "blocks.1.attn.hook_z")
    with pytest.raises(SiteError, match="goes alone"):
        path_patch(llama, CLEAN, CORRUPT, METRIC, ["logits", "blocks.1.attn.hook_q"])
    with pytest.raises(SiteError, match="has heads 0–3"):
        path_patch(llama, CLEAN, CORRUPT, METRIC, [("blocks.1.attn.hook_q", 9)])
    with pytest.raises(PromptError, match="does not exist"):
        path_patch(llama, CLEAN, CORRUPT, METRIC, senders=[[(0, 9)]])
    with pytest.raises(PromptError, match="is empty"):
        path_patch(llama, CLEAN, CORRUPT, METRIC, senders=[[]])
    with torch.no_grad():
        before = llama.logits(CLEAN)
    assert torch.equal(before, llama.logits(CLEAN))
