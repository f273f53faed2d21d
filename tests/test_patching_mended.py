"""What a patch puts in, what stands beside it, and what does not depend on how much memory there is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import tiny_model

from workbench import patching
from workbench.errors import DataError, PositionError, PromptError
from workbench.patching import wave
from workbench.patching.alignment import Alignment, Group
from workbench.patching.recording import Recording

METRIC = patching.LogitDifference(40, 41)
CLEAN = [[1, 10, 11, 12, 13, 14], [1, 30, 11, 12, 33, 14], [1, 50, 11, 52, 33, 14], [1, 50, 61, 52, 13, 70]]
CORRUPT = [[1, 10, 20, 12, 13, 14], [1, 30, 20, 12, 33, 14], [1, 50, 20, 52, 33, 14], [1, 50, 61, 62, 13, 70]]


class Stop(Exception):
    pass


def stopped(*_):
    raise Stop


def test_a_checkpoint_of_another_function_is_refused(llama, tmp_path):
    """Functions have no name that tells them apart; what they say of the unpatched runs does."""
    file = tmp_path / "sweep.safetensors"
    first, second = (lambda x: x[:, 40] - x[:, 41]), (lambda x: x[:, 50] - x[:, 51])
    with pytest.raises(Stop):
        patching.sweep(llama, CLEAN[0], CORRUPT[0], first, checkpoint=file, watch=stopped)
    before = file.read_bytes()
    with pytest.raises(DataError, match="another metric: of pair 0 it was"):
        patching.sweep(llama, CLEAN[0], CORRUPT[0], second, checkpoint=file)
    assert file.read_bytes() == before
    again = patching.sweep(llama, CLEAN[0], CORRUPT[0], lambda x: x[:, 40] - x[:, 41], checkpoint=file)
    fresh = patching.sweep(llama, CLEAN[0], CORRUPT[0], first)
    assert np.allclose(again.data["metric"], fresh.data["metric"], atol=1e-5) and not file.exists()


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("seed", range(6))
def test_the_control_of_resampling_is_never_what_was_put_in(llama, n, seed):
    data = patching.sweep(llama, CLEAN[:n], CORRUPT[:n], METRIC, source="resample", seed=seed).data
    for pair in range(n):
        assert float(abs(data["effect"][pair] - data["control_effect"][pair]).max()) > 1e-3


def test_a_resampled_span_is_read_where_the_other_pair_has_it(llama):
    """The span stands at position 2 in the first pair and at 3 in the second."""
    clean = [[1, 10, 11, 12, 13, 14], [1, 30, 31, 11, 33, 14]]
    corrupt = [[1, 10, 20, 12, 13, 14], [1, 30, 31, 25, 33, 14]]
    at = [Alignment((Group("x", (p,), (p,)),)) for p in (2, 3)]
    data = patching.sweep(
        llama, clean, corrupt, METRIC, by="span", alignment=at, source="resample", control=False
    ).data
    site = "blocks.1.hook_resid_pre"
    for pair, other in ((0, 1), (1, 0)):
        with torch.inference_mode():
            with llama.hooks(read=[site]) as seen:
                llama.hf(torch.tensor([clean[other]]), use_cache=False)
            new = seen[site][0, (2, 3)[other]]

            def put(x, pair=pair, new=new):
                x[:, (2, 3)[pair]] = new
                return x

            with llama.edit({site: put}):
                logits = llama.hf(torch.tensor([corrupt[pair]])).logits[0, -1]
        expected = float(logits[40] - logits[41])
        assert float(data["metric"].sel(pair=pair, layer=1)[0]) == pytest.approx(expected, abs=1e-4)


def test_noise_is_no_attention(llama):
    with pytest.raises(PromptError, match="Noise is no attention"):
        patching.sweep(llama, CLEAN[:2], CORRUPT[:2], METRIC, kind="pattern", source="noise")


def test_heads_at_positions_need_runs_of_one_length(llama):
    short, long = [1, 10, 11, 12], [1, 30, 11, 12, 33, 14]
    same = [{p: p for p in range(4)}, {p: p for p in range(6)}]
    with pytest.raises(PromptError, match=r"one grid of positions needs one length"):
        patching.sweep(
            llama,
            [short, long],
            [[1, 10, 20, 12], CORRUPT[1]],
            METRIC,
            kind="z",
            by="head_position",
            alignment=same,
        )


@pytest.mark.parametrize("how", ["noise", "zero"])
def test_an_ablation_does_not_depend_on_how_much_memory_there_is(llama, monkeypatch, how):
    whole = patching.ablate(llama, CLEAN[:3], "blocks.*.hook_mlp_out", METRIC, how=how, seed=3).data
    real, failed = wave.logits_of, []

    def full(rows, *more):
        found = real(rows, *more)
        if len(rows) > 1 and len(failed) < 3:
            failed.append(len(rows))
            raise torch.OutOfMemoryError
        return found

    monkeypatch.setattr(wave, "logits_of", full)
    parts = patching.ablate(llama, CLEAN[:3], "blocks.*.hook_mlp_out", METRIC, how=how, seed=3).data
    assert failed
    for name in ("metric", "control_effect"):
        assert np.allclose(whole[name], parts[name], atol=1e-4), name


class TestKnockoutWithASlidingWindow:
    LONG = (1, *range(20, 49))

    @pytest.fixture(scope="class")
    def gemma(self):
        return tiny_model("gemma2", sliding_window=8)  # layers 0 and 2 slide, 1 sees all

    def test_edges_beyond_the_window_are_neither_counted_nor_drawn(self, gemma):
        data = patching.knockout(
            gemma, list(self.LONG), METRIC, queries="last", keys=[3, 26], layers=[[0], [1], [0, 1]], seed=0
        ).data
        assert data["n_edges"][0].values.tolist() == [1, 2, 2]
        assert data["n_control_edges"][0].values.tolist() == [1, 2, 2]
        drawn = [
            float(
                patching.knockout(
                    gemma, list(self.LONG), METRIC, queries="last", keys=[26], layers=[[0]], seed=seed
                ).data["control_effect"][0, 0]
            )
            for seed in range(12)
        ]
        assert min(map(abs, drawn)) > 1e-6

    def test_a_window_that_is_blocked_whole_is_found_before_the_run(self, gemma, monkeypatch):
        monkeypatch.setattr(wave, "run", lambda *_: pytest.fail("rows were run"))
        with pytest.raises(PositionError, match=r"Query 29 .* has nothing left .* that it sees"):
            patching.knockout(gemma, list(self.LONG), METRIC, queries="last", keys=list(range(22, 30)))
        with pytest.raises(PositionError, match=r"No edge to block in prompt 0: in no layer"):
            patching.knockout(gemma, list(self.LONG), METRIC, queries="last", keys=[3], layers=[[0]])
        with pytest.raises(DataError, match=r"give lists of layers"):
            patching.knockout(gemma, list(self.LONG), METRIC, queries="last", keys=[3], layers=[0, 1])


def test_no_prompts_are_an_error(llama):
    with pytest.raises(PromptError, match="No prompts were given"):
        patching.ablate(llama, [], "blocks.*.hook_mlp_out", METRIC, how="zero")
    with pytest.raises(PromptError, match="No prompts were given"):
        patching.knockout(llama, [], METRIC, queries="last", keys=[0])


def test_sites_first_asked_of_a_recording_are_learnt_before_it():
    """What an MLP adds is checked by running the model once: that run is none of the recording."""
    model = tiny_model("llama")
    recorded = Recording(model, model.batch([5, 6, 7]), read=["blocks.1.hook_mlp_out"])
    with model.hooks(read=["blocks.1.hook_mlp_out", "blocks.2.hook_resid_post"]) as seen:
        model.forward(model.batch([5, 6, 7]))
    assert torch.equal(recorded.activations["blocks.1.hook_mlp_out"], seen["blocks.1.hook_mlp_out"][0])
    assert torch.equal(recorded.inputs[-1], seen["blocks.2.hook_resid_post"][0])
