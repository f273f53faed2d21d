"""Attribution patching against finite differences of whole patched forwards, and recheck against the sweep."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from attribution_parts import (
    CLEAN,
    CORRUPT,
    LENGTH,
    METRIC,
    close,
    difference,
    doubled,
    estimated_change,
    in_double,
    read,
    small,
)
from conftest import hooks_left, tiny_model

from workbench.errors import SiteError
from workbench.patching.attribution import ATTRIBUTED, attribution
from workbench.patching.recheck import agreement
from workbench.patching.sweep import KINDS, sweep


def metric_of_rows(model, site, rows):
    """The metric with the activation of each row at a site replaced, in one whole hooked forward."""
    with model.edit({site: lambda _: rows}):
        return difference(model.logits([CORRUPT] * len(rows))[:, -1]).numpy()


def cells_of(kind, by, n_heads):
    if kind not in ("z", "q", "k", "v"):
        return [(p,) for p in range(LENGTH)]
    if by == "auto":
        return [(slice(None), h) for h in range(n_heads)]
    return [(p, h) for h in range(n_heads) for p in range(LENGTH)]


def slopes(model, kind, layer, by="auto"):
    """Central differences of the exact patch along base + t (source - base), one for each cell."""
    step = small(model)
    site = f"blocks.{layer}.{KINDS[kind]}"
    source, base = read(model, CLEAN, site), read(model, CORRUPT, site)
    cells = cells_of(kind, by, base.shape[1])
    rows = base.repeat(2 * len(cells), *[1] * base.ndim)
    for i, at in enumerate(cells):
        rows[2 * i][at] += step * (source - base)[at]
        rows[2 * i + 1][at] -= step * (source - base)[at]
    values = metric_of_rows(model, site, rows)
    return (values[::2] - values[1::2]) / (2 * step)


def test_every_kind_equals_finite_differences_of_whole_patched_forwards(family):
    model = in_double(family)
    kinds = [k for k in ATTRIBUTED if k != "resid_mid" or family != "neox"]
    data = attribution(model, CLEAN, CORRUPT, difference, kind=kinds, control=False).data
    for kind in kinds:
        ours = estimated_change(data, f"_{kind}")
        expected = np.stack([slopes(model, kind, layer) for layer in range(model.n_layers)])
        assert close(ours, expected), kind


@pytest.mark.parametrize("kind", ["z", "q", "k", "v"])
def test_heads_at_each_position_equal_finite_differences_and_add_up_to_the_head(family, kind):
    model = in_double(family)
    data = attribution(model, CLEAN, CORRUPT, difference, kind=kind, by="head_position", control=False).data
    ours = estimated_change(data)
    expected = slopes(model, kind, 1, by="head_position")
    assert close(ours[1].reshape(-1), expected)
    whole = attribution(model, CLEAN, CORRUPT, difference, kind=kind, control=False).data
    assert np.allclose(ours.sum(-1), estimated_change(whole))


def test_grouped_experts_give_the_gradients_of_single_ones():
    grouped, single = tiny_model("mixtral"), tiny_model("mixtral")
    single.hf.set_experts_implementation("eager")
    a, b = (attribution(m, CLEAN, CORRUPT, METRIC, kind="attn_out").data["effect"] for m in (grouped, single))
    assert close(a, b, rtol=1e-4)


def test_parallel_blocks_have_no_resid_mid():
    with pytest.raises(SiteError, match="parallel"):
        attribution(tiny_model("neox"), CLEAN, CORRUPT, METRIC, kind="resid_mid")


def test_one_kind_alone_gives_what_several_together_give(llama):
    several = attribution(llama, CLEAN, CORRUPT, METRIC, kind=["z", "resid_post", "k"]).data
    for kind, dims in (("z", "head"), ("resid_post", "position"), ("k", "kv_head")):
        one = attribution(llama, CLEAN, CORRUPT, METRIC, kind=kind).data
        assert several[f"effect_{kind}"].dims == ("pair", "layer", dims)
        for name in ("effect", "control_effect", "metric"):
            assert np.allclose(several[f"{name}_{kind}"], one[name], atol=1e-6)


def test_a_small_enough_source_gives_the_exact_effect(model):
    """Along a short step the metric is linear: then the estimate is the sweep."""
    table = doubled(model).hf.get_input_embeddings().weight
    with torch.no_grad():
        for token, other in ((60, 52), (61, 56)):
            table[token] = table[other] + 1e-3 * (table[token] - table[other])
    kinds = ["resid_pre", "attn_out", "z"]
    ours = attribution(model, CLEAN, CORRUPT, difference, kind=kinds, control=False).data
    for kind in kinds:
        exact = sweep(model, CLEAN, CORRUPT, difference, kind=kind, control=False).data
        assert close(ours[f"effect_{kind}"], exact["effect"].values, rtol=1e-2), kind


def test_the_direction_decides_where_the_gradient_is_taken(llama):
    noising = attribution(llama, CLEAN, CORRUPT, METRIC, kind="z", direction="noising", control=False).data
    swapped = attribution(llama, CORRUPT, CLEAN, METRIC, kind="z", control=False).data
    assert np.allclose(noising["metric"], swapped["metric"], atol=1e-6)
    assert np.allclose(noising["clean_metric"], swapped["corrupt_metric"], atol=1e-6)
    denoising = attribution(llama, CLEAN, CORRUPT, METRIC, kind="z", control=False).data
    assert not np.allclose(noising["effect"], denoising["effect"], rtol=0.05)


# -- integrated gradients ------------------------------------------------------------------------------


def test_integrated_gradients_add_up_to_the_difference_of_the_metrics_the_better_the_more_steps(family):
    """Where the metric is continuous in the input: a mixture must ask all its experts."""
    model = tiny_model(family, **({"num_experts_per_tok": 4} if family == "mixtral" else {}))
    errors = []
    for steps in (1, 4, 64):
        run = attribution(model, CLEAN, CORRUPT, METRIC, layers=[0], integrate=steps, control=False)
        data = run.data
        change = float((data["clean_metric"] - data["corrupt_metric"])[0])
        errors.append(abs(float((data["effect"].sum() - 1) * change)))
    assert errors[2] < 2e-3 and errors[2] < 0.2 * max(errors[:2])


def test_integrated_gradients_are_the_mean_over_midpoints_of_whole_forwards(family):
    """The average of finite differences at z, with the stream into block 0 set by a plain edit."""
    model = in_double(family)
    first, site, step = "blocks.0.hook_resid_pre", "blocks.1.attn.hook_z", small(model)
    ends = [read(model, ids, first) for ids in (CORRUPT, CLEAN)]
    change = read(model, CLEAN, site) - read(model, CORRUPT, site)
    expected = np.zeros(model.n_heads)
    for fraction in (1 / 6, 1 / 2, 5 / 6):
        inputs = ends[0] + fraction * (ends[1] - ends[0])
        for head in range(model.n_heads):
            values = []
            for sign in (1, -1):

                def put(z, head=head, sign=sign):
                    z[:, :, head] += sign * step * change[:, head]
                    return z

                with model.edit({first: lambda _, inputs=inputs: inputs[None], site: put}):
                    values.append(float(difference(model.logits(CORRUPT)[:, -1])))
            expected[head] += (values[0] - values[1]) / (2 * step) / 3
    data = attribution(
        model, CLEAN, CORRUPT, difference, kind="z", layers=[1], integrate=3, control=False
    ).data
    assert close(estimated_change(data)[0], expected)


def test_how_many_steps_go_together_changes_nothing(llama):
    one, all_ = (
        attribution(llama, CLEAN, CORRUPT, METRIC, kind="z", integrate=7, tokens_per_backward=n).data
        for n in (1, 4096)
    )
    assert np.allclose(one["effect"], all_["effect"], atol=1e-4)


# -- recheck -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["resid_pre", "resid_post", "mlp_out", "z"])
def test_rechecked_cells_are_those_of_the_sweep_and_the_strongest(model, kind):
    swept = sweep(model, CLEAN, CORRUPT, METRIC, kind=kind, control=False).data["effect"].values
    result = attribution(model, CLEAN, CORRUPT, METRIC, kind=kind, recheck=4, control=False)
    exact, effect = result.data["exact_effect"].values, np.abs(result.data["effect"].values)
    done = np.isfinite(exact)
    assert done.sum() == 4 and effect[done].min() >= effect[~done].max()
    assert np.allclose(exact[done], swept[done], atol=1e-3 * np.abs(swept).max())
    whole = attribution(model, CLEAN, CORRUPT, METRIC, kind=kind, recheck="all", control=False)
    assert np.allclose(whole.data["exact_effect"], swept, atol=1e-3 * np.abs(swept).max())
    assert hooks_left(model) == 0


@pytest.mark.parametrize("kind", ["q", "v"])
def test_rechecked_heads_at_a_position_equal_whole_forwards(family, kind):
    model = in_double(family)
    result = attribution(
        model,
        CLEAN,
        CORRUPT,
        difference,
        kind=kind,
        by="head_position",
        layers=[1],
        recheck="all",
        control=False,
    )
    site = f"blocks.1.{KINDS[kind]}"
    source, base = read(model, CLEAN, site), read(model, CORRUPT, site)
    cells = cells_of(kind, "head_position", base.shape[1])
    rows = base.repeat(len(cells), 1, 1, 1)
    for i, at in enumerate(cells):
        rows[i][at] = source[at]
    ends = float(result.data["clean_metric"][0]), float(result.data["corrupt_metric"][0])
    expected = (metric_of_rows(model, site, rows) - ends[1]) / (ends[0] - ends[1])
    assert close(result.data["exact_effect"].values.reshape(-1), expected)


def test_the_summary_has_the_correlations_over_cells_whose_patch_changes_something(llama):
    result = attribution(llama, CLEAN, CORRUPT, METRIC, recheck="all")
    swept = sweep(llama, CLEAN, CORRUPT, METRIC, control=False).data["effect"].values.ravel()
    ours = result.data["effect"].values.ravel()
    moved = ours != 0  # positions before the first changed token are bit-equal in both runs
    found = result.summary["recheck"]
    assert found["n"] == moved.sum() < ours.size
    assert found["spearman"] == pytest.approx(scipy.stats.spearmanr(ours[moved], swept[moved])[0], abs=2e-2)
    assert found["pearson"] == pytest.approx(scipy.stats.pearsonr(ours[moved], swept[moved])[0], abs=1e-3)
    assert found["rechecked"].startswith("30 of 30 cells")


def test_agreement_has_a_null_and_an_interval():
    rng = np.random.default_rng(0)
    exact = rng.normal(size=(1, 40)) + 0.1 * rng.normal(size=(6, 40))
    good = agreement(exact**3, exact, seed=0)
    assert good["spearman"] > 0.95 and good["spearman_p"] < 0.01
    assert good["spearman_interval"][0] <= good["spearman"] + 0.02
    bad = [agreement(rng.normal(size=(1, 40)), exact[:1], seed=i)["spearman_p"] for i in range(200)]
    assert 0.01 <= np.mean(np.array(bad) < 0.05) <= 0.10
    assert agreement(exact[:, :2], exact[:, :2], seed=0)["spearman"] is None
    assert agreement(np.ones((1, 5)), exact[:1, :5], seed=0)["pearson"] is None
