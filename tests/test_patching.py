"""Patching: replayed grids against TransformerLens' loop and against plain hooked forwards."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import scipy.stats
import torch
from conftest import hooks_left, tiny_model
from transformer_lens.model_bridge.sources import build_bridge_from_module

import workbench as wb
from workbench.errors import Cancelled, DataError, MetricError, PromptError, SiteError
from workbench.patching import wave
from workbench.patching.metrics import KLDivergence, Probability, Rank
from workbench.patching.replay import Entry, Replay
from workbench.patching.sweep import KINDS
from workbench.statistics import paired_permutation

CLEAN = [50, 51, 52, 53, 54, 55, 56, 57, 58, 59]
CORRUPT = [50, 51, 60, 53, 54, 55, 61, 57, 58, 59]
METRIC = wb.LogitDifference(7, 9)


GROUP = 16


def cells_of(kind, activation):
    """Where each cell of a grid lies in a [batch, ...] activation, written out for each kind."""
    everything = slice(None)
    if kind in ("z", "q", "k", "v"):
        return [(everything, everything, head) for head in range(activation.shape[2])]
    if kind == "pattern":
        return [(everything, head) for head in range(activation.shape[1])]
    if kind == "neurons":
        width = activation.shape[-1]
        return [(everything, everything, slice(n, min(n + GROUP, width))) for n in range(0, width, GROUP)]
    return [(everything, position) for position in range(activation.shape[1])]


def by_whole_forwards(model, clean, corrupt, kind, cells=None):
    """The same grid with one whole hooked forward per cell."""
    metric = METRIC.resolve(model)
    sites = [f"blocks.{i}.{KINDS[kind]}" for i in range(model.n_layers)]
    with model.hooks(read=sites) as source:
        model.logits(clean)
    cells = cells or cells_of(kind, source[sites[0]])
    grid = np.zeros((model.n_layers, len(cells)))
    for layer, site in enumerate(sites):
        for at, where in enumerate(cells):

            def put(x, site=site, where=where):
                x[where] = source[site][where]
                return x

            with model.edit({site: put}):
                grid[layer, at] = metric(model.logits(corrupt)[:, -1])
    return grid


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_replayed_grid_equals_whole_hooked_forwards(model, kind):
    try:
        ours = wb.patching.sweep(model, CLEAN, CORRUPT, METRIC, kind=kind, control=False, group_size=GROUP)
    except SiteError as error:
        assert (kind == "resid_mid" and "parallel" in str(error)) or (
            kind == "neurons" and "expert" in str(error)
        )
        return
    expected = by_whole_forwards(model, CLEAN, CORRUPT, kind)
    assert np.abs(ours.data["metric"].values[0] - expected).max() < 1e-4
    assert hooks_left(model) == 0


@pytest.mark.parametrize("kind", ["z", "v"])
def test_heads_at_positions_equal_whole_hooked_forwards(model, kind):
    data = wb.patching.sweep(model, CLEAN, CORRUPT, METRIC, kind=kind, by="head_position", control=False).data
    assert data["metric"].dims == ("pair", "layer", "head", "position")
    heads = model.n_heads if kind == "z" else model.n_kv_heads
    cells = [(slice(None), p, h) for h in range(heads) for p in range(len(CLEAN))]
    expected = by_whole_forwards(model, CLEAN, CORRUPT, kind, cells)
    ours = data["metric"].values[0].reshape(model.n_layers, -1)
    assert np.abs(ours - expected).max() < 1e-4


def test_a_grid_equals_transformer_lens_own_patching_loop(family):
    from transformer_lens import patching as tl_patching

    model = tiny_model(family)
    hf = model.hf
    bridge = build_bridge_from_module(
        copy.deepcopy(hf), type(hf).__name__, hf_config=hf.config, tokenizer=None
    )
    metric = METRIC.resolve(model)
    with torch.no_grad():
        _, cache = bridge.run_with_cache(torch.tensor([CLEAN]))
        theirs = tl_patching.get_act_patch_resid_pre(
            bridge, torch.tensor([CORRUPT]), cache, lambda logits: metric(logits[:, -1])[0]
        )
    ours = wb.patching.sweep(model, CLEAN, CORRUPT, METRIC, control=False).data["metric"].values[0]
    assert np.abs(ours - theirs.numpy()).max() < 1e-4


def test_a_replay_without_a_patch_gives_the_base_logits(model):
    replay = Replay(model, model.batch([CLEAN]))
    assert replay.suffixes
    for start in range(len(CLEAN)):
        layers = range(model.n_layers + 1)
        entries = [Entry(layer, replay.inputs[layer][start:]) for layer in layers for _ in range(2)]
        logits = replay.logits_of(entries[::-1], start)
        assert torch.allclose(logits, replay.logits.expand(len(entries), -1), atol=1e-5)


def test_an_edit_sees_the_rows_only_not_the_run_that_asks_for_their_arguments(model):
    replay = Replay(model, model.batch([CLEAN]))
    seen = []

    def look(x):
        seen.append(tuple(x.shape))
        return x * 0

    entries = [Entry(1, replay.inputs[1][4:], {"blocks.1.hook_resid_pre": look})]
    logits = replay.logits_of(entries, 4)
    assert seen == [(len(CLEAN) - 4, model.d_model)]
    assert torch.allclose(logits, replay.logits_of([Entry(1, replay.inputs[1][4:] * 0)], 4), atol=1e-5)


def test_a_model_that_gives_no_keys_and_values_back_is_replayed_whole(llama, monkeypatch):
    expected = wb.patching.sweep(llama, CLEAN, CORRUPT, METRIC, control=False).data["metric"]
    monkeypatch.setattr("workbench.patching.recording._keys_and_values", lambda *_: None)
    assert not Replay(llama, llama.batch([CLEAN])).suffixes
    ours = wb.patching.sweep(llama, CLEAN, CORRUPT, METRIC, control=False).data["metric"]
    assert np.allclose(ours, expected, atol=1e-5)


def test_effects_run_from_zero_to_one(model):
    denoising = wb.patching.sweep(model, CLEAN, CORRUPT, METRIC, kind="resid_pre").data
    assert np.allclose(denoising["mean_effect"].sel(layer=0, position=0), 0, atol=1e-4)  # the same token
    post = wb.patching.sweep(model, CLEAN, CORRUPT, METRIC, kind="resid_post", control=False).data
    assert np.allclose(post["mean_effect"].sel(layer=model.n_layers - 1, position=9), 1, atol=1e-4)
    noising = wb.patching.sweep(model, CLEAN, CORRUPT, METRIC, kind="resid_post", direction="noising").data
    assert np.allclose(noising["mean_effect"].sel(layer=model.n_layers - 1, position=9), 1, atol=1e-4)


@pytest.mark.parametrize("kind", ["resid_pre", "z"])
def test_patches_that_change_nothing_are_not_run_and_give_the_base_metric(model, kind):
    quick, whole = (
        wb.patching.sweep(model, CLEAN, CORRUPT, METRIC, kind=kind, skip_unchanged=skip).data
        for skip in (True, False)
    )
    assert np.allclose(quick["metric"], whole["metric"], atol=1e-5)
    assert np.allclose(quick["control_effect"], whole["control_effect"], atol=1e-4)
    n = int(quick.attrs["unchanged"].split()[0])
    assert whole.attrs["unchanged"].startswith("0 of")
    if kind == "resid_pre":  # in layer 0 the stream differs at the two changed tokens only
        assert n >= len(CLEAN) - 2


def test_batching_of_rows_changes_nothing(llama):
    one, many = (
        wb.patching.sweep(llama, CLEAN, CORRUPT, METRIC, control=False, tokens_per_call=n).data["metric"]
        for n in (1, 4096)
    )
    assert np.allclose(one, many, atol=1e-5)


def test_noising_swaps_the_runs(llama):
    noising = wb.patching.sweep(llama, CLEAN, CORRUPT, METRIC, direction="noising", control=False).data
    swapped = wb.patching.sweep(llama, CORRUPT, CLEAN, METRIC, control=False).data
    assert np.allclose(noising["metric"], swapped["metric"], atol=1e-5)
    assert np.allclose(noising["clean_metric"], swapped["corrupt_metric"], atol=1e-5)


def test_several_pairs_have_a_mean_an_interval_and_the_next_pairs_source_as_control(llama):
    clean = [CLEAN, [*CLEAN[:2], 70, *CLEAN[3:]], [*CLEAN[:2], 71, *CLEAN[3:]]]
    corrupt = [CORRUPT, [*CLEAN[:2], 72, *CLEAN[3:]], [*CLEAN[:2], 73, *CLEAN[3:]]]
    data = wb.patching.sweep(llama, clean, corrupt, METRIC).data
    single = wb.patching.sweep(llama, clean[1], corrupt[1], METRIC, control=False).data
    assert np.allclose(data["effect"].sel(pair=1), single["mean_effect"], atol=1e-4)
    assert np.allclose(data["mean_effect"], data["effect"].mean("pair"), atol=1e-6)
    assert (data["effect_low"] <= data["mean_effect"] + 1e-6).all()
    assert (data["mean_effect"] <= data["effect_high"] + 1e-6).all()
    wrong = wb.patching.sweep(llama, clean[2], corrupt[1], METRIC, control=False).data["metric"]
    expected = (wrong[0] - data["corrupt_metric"][1]) / (data["clean_metric"][1] - data["corrupt_metric"][1])
    assert np.allclose(data["control_effect"].sel(pair=1), expected, atol=1e-4)


def test_one_pair_has_no_interval_and_a_control_at_deranged_positions(llama):
    data = wb.patching.sweep(llama, CLEAN, CORRUPT, METRIC, seed=1).data
    assert np.isnan(data["effect_low"]).all()
    assert "deranged positions" in data.attrs["control"]
    assert not np.allclose(data["control_effect"], data["effect"])


def test_prompts_of_different_lengths_are_an_error_that_shows_both(llama):
    with pytest.raises(PromptError, match=r"clean prompt has 3 tokens and the corrupt one 2.*'Mary'"):
        wb.patching.sweep(llama, "Mary went to", "Mary went", METRIC)
    with pytest.raises(PromptError, match="Pair 1 has 3 tokens and pair 0 has 2"):
        wb.patching.sweep(llama, ["Mary went", "Mary went to"], ["John went", "John went to"], METRIC)
    with pytest.raises(PromptError, match="2 clean and 1 corrupt"):
        wb.patching.sweep(llama, ["Mary", "John"], ["Mary"], METRIC)


def test_metrics_that_cannot_be_are_errors(llama):
    with pytest.raises(MetricError, match="is 2 tokens"):
        wb.patching.sweep(llama, CLEAN, CORRUPT, wb.LogitDifference("Mary went", "John"))
    with pytest.raises(MetricError, match="the same token"):
        wb.patching.sweep(llama, CLEAN, CORRUPT, wb.LogitDifference("Mary", "Mary"))
    with pytest.raises(MetricError, match="no effect to normalise"):
        wb.patching.sweep(llama, CLEAN, CLEAN, METRIC)


def test_log_probability_is_the_log_softmax(llama):
    logits = llama.logits(CLEAN)[:, -1]
    assert torch.allclose(
        wb.LogProbability(7).resolve(llama)(logits), logits.softmax(-1)[:, 7].log(), atol=1e-5
    )


def test_a_sliding_window_that_bites_is_replayed_exactly():
    model = tiny_model("gemma2", sliding_window=3)
    ours = wb.patching.sweep(model, CLEAN, CORRUPT, METRIC, control=False).data["metric"].values[0]
    assert np.abs(ours - by_whole_forwards(model, CLEAN, CORRUPT, "resid_pre")).max() < 1e-4


PAIRS = (
    [CLEAN, [*CLEAN[:2], 70, *CLEAN[3:]], [*CLEAN[:2], 71, *CLEAN[3:]]],
    [CORRUPT, [*CLEAN[:2], 72, *CLEAN[3:]], [*CLEAN[:2], 73, *CLEAN[3:]]],
)


@pytest.mark.parametrize("source", ["zero", "mean", "resample", "noise"])
def test_what_is_put_in_is_what_the_source_says(llama, source):
    """Each cell against a whole forward with the vector worked out here."""
    clean, corrupt = PAIRS
    data = wb.patching.sweep(
        llama, clean, corrupt, METRIC, kind="mlp_out", source=source, direction="noising", layers=[1], seed=3
    ).data
    site = "blocks.1.hook_mlp_out"
    with llama.hooks(read=site) as session:
        for prompt in corrupt:
            llama.logits(prompt)
    runs = torch.stack([run[0] for run in session.calls(site)])
    metric = METRIC.resolve(llama)

    def patched(pair, position, vector):
        def put(x):
            x[:, position] = vector
            return x

        with llama.edit({site: put}):
            return float(metric(llama.logits(clean[pair])[:, -1]))

    ours = data["metric"].values[:, 0]
    for pair in range(3):
        for position in (2, 9):
            got = ours[pair, position]
            if source == "zero":
                assert abs(got - patched(pair, position, 0.0)) < 1e-4
            elif source == "mean":
                assert abs(got - patched(pair, position, runs.mean(0)[position])) < 1e-4
            elif source == "resample":
                others = [patched(pair, position, runs[i][position]) for i in range(3) if i != pair]
                assert min(abs(got - other) for other in others) < 1e-4
    if source == "noise":
        again = (
            wb.patching.sweep(
                llama,
                clean,
                corrupt,
                METRIC,
                kind="mlp_out",
                source=source,
                direction="noising",
                layers=[1],
                seed=4,
            )
            .data["metric"]
            .values[:, 0]
        )
        assert not np.allclose(ours, again, atol=1e-5)


def test_sources_made_of_several_pairs_need_them(llama):
    with pytest.raises(PromptError, match="two pairs or more"):
        wb.patching.sweep(llama, CLEAN, CORRUPT, METRIC, source="mean")
    with pytest.raises(PromptError, match="source 'other'"):
        wb.patching.sweep(llama, CLEAN, CORRUPT, METRIC, source="other")
    with pytest.raises(PromptError, match="kind 'resid'"):
        wb.patching.sweep(llama, CLEAN, CORRUPT, METRIC, kind="resid")
    with pytest.raises(PromptError, match="does not go with"):
        wb.patching.sweep(llama, CLEAN, CORRUPT, METRIC, kind="mlp_out", by="head")


def last_logits(model, prompt):
    return model.logits(prompt)[0, -1].float()


@pytest.mark.parametrize(
    ("metric", "of"),
    [
        (Probability(7), lambda logits, _clean: logits.softmax(-1)[7]),
        (Rank(7), lambda logits, _clean: (logits > logits[7]).sum()),
        (KLDivergence(), lambda logits, clean: torch.nn.functional.kl_div(
            logits.log_softmax(-1), clean.log_softmax(-1), log_target=True, reduction="sum")),
        (lambda logits: logits[:, 3] * 2, lambda logits, _clean: 2 * logits[3]),
    ],
)  # fmt: skip
def test_metrics_are_what_they_say(llama, metric, of):
    data = wb.patching.sweep(llama, CLEAN, CORRUPT, metric, control=False).data
    clean, corrupt = last_logits(llama, CLEAN), last_logits(llama, CORRUPT)
    assert abs(float(data["clean_metric"][0]) - float(of(clean, clean))) < 1e-4
    assert abs(float(data["corrupt_metric"][0]) - float(of(corrupt, clean))) < 1e-4
    site = "blocks.1.hook_resid_pre"
    with llama.hooks(read=site) as session:
        llama.logits(CLEAN)

    def put(x):
        x[:, 6] = session[site][:, 6]
        return x

    with llama.edit({site: put}):
        patched = last_logits(llama, CORRUPT)
    assert abs(float(data["metric"][0, 1, 6]) - float(of(patched, clean))) < 1e-4


def test_an_answer_of_several_tokens_is_scored_token_by_token(model):
    answer = (7, 9, 30)
    data = wb.patching.sweep(model, CLEAN, CORRUPT, wb.LogProbability(answer), control=False).data
    assert data.sizes["position"] == len(CLEAN) + 2

    def score(prompt):
        logits = model.logits([*prompt, 7, 9])[0].float().log_softmax(-1)
        return sum(float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(answer))

    assert abs(float(data["clean_metric"][0]) - score(CLEAN)) < 1e-3
    whole, site = [*CLEAN, 7, 9], "blocks.1.hook_resid_pre"
    with model.hooks(read=site) as session:
        model.logits(whole)
    for position in (2, 9, 11):

        def put(x, position=position):
            x[:, position] = session[site][:, position]
            return x

        with model.edit({site: put}):
            assert abs(float(data["metric"][0, 1, position]) - score(CORRUPT)) < 1e-3


def test_metrics_that_do_not_fit_are_errors(llama):
    with pytest.raises(MetricError, match="one number per row"):
        wb.patching.sweep(llama, CLEAN, CORRUPT, lambda logits: logits.mean())
    with pytest.raises(MetricError, match="is no metric"):
        wb.patching.sweep(llama, CLEAN, CORRUPT, 7)
    with pytest.raises(MetricError, match="answers of one length"):
        several = [wb.LogProbability(7), wb.LogProbability((7, 9)), wb.LogProbability(7)]
        wb.patching.sweep(llama, *PAIRS, several)


def test_a_stopped_sweep_goes_on_and_computes_nothing_twice(llama, tmp_path, monkeypatch):
    whole = wb.patching.sweep(llama, *PAIRS, METRIC).data
    path = tmp_path / "sweep.safetensors"

    class Stop:
        left = 14

        def stage(self, name, total):
            assert total == 3 * len(CLEAN)

        def advance(self, n=1):
            Stop.left -= n
            if not Stop.left:
                raise Cancelled

    with pytest.raises(Cancelled):
        wb.patching.sweep(llama, *PAIRS, METRIC, checkpoint=path, progress=Stop())
    assert path.exists()
    with pytest.raises(DataError, match="another sweep"):
        wb.patching.sweep(llama, *PAIRS, METRIC, checkpoint=path, kind="mlp_out")
    rows, real = [], wave.run
    monkeypatch.setattr(wave, "run", lambda some, *a: rows.append(len(some)) or real(some, *a))
    seen = []
    again = wb.patching.sweep(
        llama,
        *PAIRS,
        METRIC,
        checkpoint=path,
        watch=lambda pair, grid: seen.append((pair, np.isnan(grid).sum())),
    ).data
    assert not path.exists()
    np.testing.assert_array_equal(again["metric"], whole["metric"])
    resumed = sum(rows)
    rows.clear()
    wb.patching.sweep(llama, *PAIRS, METRIC)
    assert resumed < sum(rows)
    # The three pairs go together, column by column: two had five columns done and the third four.
    assert seen[0] == (2, (len(CLEAN) - 5) * llama.n_layers) and seen[-1] == (2, 0)


def test_the_permutation_p_value_is_that_of_all_swaps():
    rng = np.random.default_rng(0)
    values, null = rng.normal(0.8, 1, (6, 3)), rng.normal(0, 1, (6, 3))
    ours = paired_permutation(values, null, 0)
    for cell in range(3):
        found = scipy.stats.permutation_test(
            (values[:, cell], null[:, cell]), lambda a, b, axis: (a - b).mean(axis=axis), vectorized=True,
            permutation_type="samples", n_resamples=np.inf,
        )  # fmt: skip
        assert abs(ours[cell] - found.pvalue) < 1e-9
    many = paired_permutation(rng.normal(1, 1, (40, 1)), np.zeros((40, 1)), 0)
    assert many[0] < 0.01
    assert np.isnan(paired_permutation(values[:1], null[:1], 0)).all()


def test_layers_may_be_given_in_any_order_and_from_the_end(llama):
    whole = wb.patching.sweep(llama, CLEAN, CORRUPT, METRIC, control=False).data["metric"]
    some = wb.patching.sweep(llama, CLEAN, CORRUPT, METRIC, control=False, layers=[-1, 0]).data["metric"]
    assert some["layer"].values.tolist() == [0, 2]
    np.testing.assert_allclose(some, whole.sel(layer=[0, 2]), atol=1e-6)
    with pytest.raises(DataError, match="Layer 3 does not exist"):
        wb.patching.sweep(llama, CLEAN, CORRUPT, METRIC, layers=[3])


def test_heads_are_patched_from_the_first_position_that_differs(llama, monkeypatch):
    """Before it both runs are the same, so a patch over all positions changes nothing there."""
    starts, real = [], wave.run
    monkeypatch.setattr(wave, "run", lambda rows, start, *a: starts.append(start) or real(rows, start, *a))
    first = next(i for i, (a, b) in enumerate(zip(CLEAN, CORRUPT, strict=True)) if a != b)
    short = wb.patching.sweep(llama, CLEAN, CORRUPT, METRIC, kind="z", control=False).data["metric"]
    assert set(starts) == {first}
    starts.clear()
    options = {"kind": "z", "control": False, "skip_unchanged": False}
    whole = wb.patching.sweep(llama, CLEAN, CORRUPT, METRIC, **options).data["metric"]
    assert set(starts) == {0}
    np.testing.assert_allclose(short, whole, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_of_some_tokens_are_those_of_all(model, dtype):
    model = wb.LanguageModel(copy.deepcopy(model.hf).to(dtype), None)
    resid = torch.randn(5, model.d_model, dtype=dtype)
    whole, some = model.readout(resid), model.readout(resid, [7, 3, 9])
    assert some.shape == (5, 3) and some.dtype == whole.dtype
    torch.testing.assert_close(some, whole[:, [7, 3, 9]], atol=1e-5, rtol=1e-5)


def test_a_metric_of_two_tokens_unembeds_no_others(llama, monkeypatch):
    asked, real = [], type(llama).readout
    monkeypatch.setattr(
        type(llama), "readout", lambda self, x, tokens=None: asked.append(tokens) or real(self, x, tokens)
    )
    few = wb.patching.sweep(llama, *PAIRS, METRIC, control=False).data["metric"]
    assert [7, 9] in asked and None not in asked
    asked.clear()
    metric = METRIC.resolve(llama)
    every = wb.patching.sweep(llama, *PAIRS, lambda logits: metric(logits), control=False).data["metric"]
    assert set(map(str, asked)) == {"None"}
    np.testing.assert_allclose(few, every, atol=1e-5)


def test_rows_that_do_not_fit_into_memory_go_up_in_halves(llama, monkeypatch):
    expected = wb.patching.sweep(llama, CLEAN, CORRUPT, METRIC, kind="z", control=False).data["metric"]
    tried, real = [], wave.run

    def full(rows, *a):
        tried.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("no memory left")
        return real(rows, *a)

    monkeypatch.setattr(wave, "run", full)
    found = wb.patching.sweep(llama, CLEAN, CORRUPT, METRIC, kind="z", control=False).data["metric"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert max(tried) == llama.n_layers * llama.n_heads and sum(n for n in tried if n <= 2) == max(tried)
    monkeypatch.setattr(
        wave, "run", lambda rows, *a: (_ for _ in ()).throw(torch.OutOfMemoryError("none at all"))
    )
    with pytest.raises(torch.OutOfMemoryError):
        wb.patching.sweep(llama, CLEAN, CORRUPT, METRIC, control=False)
