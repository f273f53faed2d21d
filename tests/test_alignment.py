"""Prompts of different lengths: what corresponds, and grids against whole hooked forwards on aligned positions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

import workbench as wb
from workbench.errors import PromptError
from workbench.patching import Alignment, align

CLEAN = [50, 51, 52, 53, 54, 55, 56, 57]
CORRUPT = [50, 60, 61, 53, 54, 55, 62, 56, 57, 58][:9]
MAP = {0: 0, 2: 2, 3: 3, 4: 4, 5: 5, 6: 7, 7: 8}
METRIC = wb.LogitDifference(7, 9)
FAMILIES = ["llama", "gpt2", "neox", "gemma2"]


@pytest.fixture(params=FAMILIES)
def model(request):
    return tiny_model(request.param)


def by_hand(model, site, clean, corrupt, groups, direction):
    """[group] the metric with the positions of a group exchanged, in whole forwards."""
    source, base = (clean, corrupt) if direction == "denoising" else (corrupt, clean)
    with model.hooks(read=site) as session:
        model.logits(source)
    taken = session[site]
    out = []
    for come, to in groups if direction == "denoising" else [(b, a) for a, b in groups]:

        def put(x, come=come, to=to):
            x[:, list(to)] = taken[:, list(come)]
            return x

        with model.edit({site: put}):
            out.append(float(METRIC.resolve(model)(model.logits(base)[:, -1])[0]))
    return np.array(out)


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("kind", ["resid_pre", "mlp_out"])
def test_a_grid_on_aligned_positions_equals_whole_forwards(model, kind, direction):
    data = wb.patching.sweep(
        model, CLEAN, CORRUPT, METRIC, kind=kind, direction=direction, alignment=MAP, control=False
    ).data
    to = {v: k for k, v in MAP.items()} if direction == "denoising" else MAP
    length = len(CORRUPT if direction == "denoising" else CLEAN)
    assert data.sizes["position"] == length
    for layer in range(model.n_layers):
        site = f"blocks.{layer}.hook_{kind}"
        groups = [((a,), (b,)) for a, b in MAP.items()]
        expected = dict(
            zip(
                MAP.values() if direction == "denoising" else MAP.keys(),
                by_hand(model, site, CLEAN, CORRUPT, groups, direction),
                strict=True,
            )
        )
        row = data["metric"].values[0, layer]
        for position in range(length):
            if position in to:
                assert abs(row[position] - expected[position]) < 1e-4
            else:
                assert np.isnan(row[position])
    assert f"{len(MAP)} of {length} positions" in data.attrs["alignment"]


def test_spans_of_pairs_of_different_lengths_share_one_grid(model):
    """Two pairs whose prompts have four different lengths; every cell against a whole forward."""
    pairs = [
        (CLEAN, CORRUPT, {"name": ((1, 3), (1, 3)), "end": ((6, 8), (7, 9))}),
        ([50, 51, 53, 54, 55], [50, 60, 61, 54, 55, 58], {"name": ((1, 3), (1, 3)), "end": ((3, 5), (4, 6))}),
    ]
    alignments = [Alignment.of_spans(model, a, b, spans) for a, b, spans in pairs]
    result = wb.patching.sweep(
        model, [p[0] for p in pairs], [p[1] for p in pairs], METRIC, by="span", alignment=alignments
    )
    assert list(result.data["span"].values) == ["name", "end"]
    assert result.data["metric"].dims == ("pair", "layer", "span")
    for i, (clean, corrupt, spans) in enumerate(pairs):
        groups = [(tuple(range(*a)), tuple(range(*b))) for a, b in spans.values()]
        for layer in range(model.n_layers):
            expected = by_hand(model, f"blocks.{layer}.hook_resid_pre", clean, corrupt, groups, "denoising")
            np.testing.assert_allclose(result.data["metric"].values[i, layer], expected, atol=1e-4)
    assert result.summary["strongest"]["span"] in ("name", "end")
    # Everything from the layer up at all spans of the end exchanges the answer: at the last layer's output it is all.
    last = wb.patching.sweep(
        model, CLEAN, CORRUPT, METRIC, kind="resid_post", by="span", alignment=alignments[0], control=False
    )
    assert abs(last.data["effect"].values[0, -1, 1] - 1) < 1e-4


def test_the_control_of_spans_is_the_next_pairs_span(model):
    pairs = [
        (CLEAN, CORRUPT, {"name": ((1, 3), (1, 3))}),
        ([50, 51, 53, 54, 55], [50, 60, 61, 54, 55, 58], {"name": ((2, 4), (1, 3))}),
    ]
    alignments = [Alignment.of_spans(model, a, b, spans) for a, b, spans in pairs]
    data = wb.patching.sweep(
        model, [p[0] for p in pairs], [p[1] for p in pairs], METRIC, by="span", alignment=alignments
    ).data
    site = "blocks.1.hook_resid_pre"
    with model.hooks(read=site) as session:
        model.logits(pairs[1][0])
    wrong = session[site][:, 2:4]

    def put(x):
        x[:, 1:3] = wrong
        return x

    with model.edit({site: put}):
        metric = float(METRIC.resolve(model)(model.logits(CORRUPT)[:, -1])[0])
    clean, corrupt = (float(data[f"{side}_metric"].values[0]) for side in ("clean", "corrupt"))
    expected = (metric - corrupt) / (clean - corrupt)
    assert abs(data["control_effect"].values[0, 1, 0] - expected) < 1e-3


def test_heads_are_exchanged_at_aligned_positions_only(model):
    data = wb.patching.sweep(model, CLEAN, CORRUPT, METRIC, kind="z", alignment=MAP, control=False).data
    site = "blocks.1.attn.hook_z"
    with model.hooks(read=site) as session:
        model.logits(CLEAN)
    taken = session[site]

    def put(x):
        x[:, list(MAP.values()), 2] = taken[:, list(MAP), 2]
        return x

    with model.edit({site: put}):
        expected = float(METRIC.resolve(model)(model.logits(CORRUPT)[:, -1])[0])
    assert abs(data["metric"].values[0, 1, 2] - expected) < 1e-4


def test_attribution_takes_the_same_alignment_and_recheck_agrees_with_the_sweep():
    model = tiny_model("llama")
    options = {"kind": "mlp_out", "alignment": MAP, "control": False}
    exact = wb.patching.sweep(model, CLEAN, CORRUPT, METRIC, **options).data
    estimate = wb.patching.attribution(model, CLEAN, CORRUPT, METRIC, recheck="all", **options).data
    np.testing.assert_allclose(estimate["exact_effect"], exact["effect"], atol=1e-4)
    assert np.array_equal(np.isnan(estimate["effect"]), np.isnan(exact["effect"]))
    spans = Alignment.of_spans(model, CLEAN, CORRUPT, {"name": (2, 4), "last": ((7, 8), (8, 9))})
    by_span = wb.patching.attribution(
        model, CLEAN, CORRUPT, METRIC, kind="mlp_out", by="span", alignment=spans, control=False
    ).data
    sums = estimate["effect"].values[0][:, [2, 3]].sum(-1)
    np.testing.assert_allclose(by_span["effect"].values[0, :, 0], sums, atol=1e-6)


def test_paths_carry_aligned_positions_only(model):
    """The direct path of a head to the logits, by hand: its change at aligned positions, everything else held."""
    given = wb.patching.path_patch(
        model, CLEAN, CORRUPT, METRIC, senders=[[(1, 2)]], freeze="all", alignment=MAP, control=False
    ).data["metric"]
    zs, mlps = (
        [f"blocks.{i}.{part}" for i in range(model.n_layers)] for part in ("attn.hook_z", "hook_mlp_out")
    )
    runs = []
    for prompt in (CLEAN, CORRUPT):
        with model.hooks(read=[*zs, *mlps]) as session:
            model.logits(prompt)
        runs.append({site: session[site] for site in (*zs, *mlps)})
    edits = {site: lambda x, site=site: runs[1][site].clone() for site in (*zs, *mlps)}

    def put(x):
        new = runs[1][zs[1]].clone()
        new[:, list(MAP.values()), 2] = runs[0][zs[1]][:, list(MAP), 2]
        return new

    with model.edit({**edits, zs[1]: put}):
        expected = float(METRIC.resolve(model)(model.logits(CORRUPT)[:, -1])[0])
    assert abs(float(given.values.ravel()[0]) - expected) < 1e-4


def test_texts_are_found_in_the_prompt_and_unequal_spans_are_said(smollm_like):
    model, clean, corrupt = smollm_like
    with pytest.raises(PromptError, match="3 tokens in the clean prompt and 1"):
        Alignment.of_spans(model, clean, corrupt, {"who": ("Mary and John", "Tom")})
    found = Alignment.of_spans(model, clean, corrupt, {"who": ("Mary and John", "Tom")}, unequal="last")
    assert found.groups[0].clean == (3,) and found.groups[0].corrupt == (1,)
    assert found.left_out == ((1, 2), ())
    with pytest.raises(PromptError, match="occurs 2 times"):
        Alignment.of_spans(model, clean, corrupt, {"the": "the"})
    with pytest.raises(PromptError, match="occurs 0 times"):
        Alignment.of_spans(model, clean, corrupt, {"x": "elephant"})


@pytest.fixture
def smollm_like():
    return tiny_model("llama"), "the Mary and John went to the store", "the Tom went to the store"


@given(
    st.lists(st.integers(3, 8), min_size=1, max_size=12), st.lists(st.integers(3, 8), min_size=1, max_size=12)
)
@settings(max_examples=60, deadline=None)
def test_a_diff_maps_in_order_and_accounts_for_every_token(a, b):
    model = tiny_model("llama")
    try:
        made = align(model, a, b)
    except PromptError:
        assert not set(a) & set(b)
        return
    left = [p for g in made.groups for p in g.clean]
    right = [p for g in made.groups for p in g.corrupt]
    assert left == sorted(left) and right == sorted(right) and len(left) == len(right)
    assert sorted([*left, *made.left_out[0]]) == list(range(len(a)))
    assert sorted([*right, *made.left_out[1]]) == list(range(len(b)))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "positions do not correspond"),
        ({"alignment": {0: 9}}, "has position 9 of the corrupt prompt"),
        ({"alignment": {0: 1, 2: 1}}, "aligned twice"),
        ({"alignment": {}}, "without positions"),
        ({"alignment": [MAP, MAP]}, "2 alignments were given for 1 pairs"),
        ({"by": "span", "alignment": None}, "positions do not correspond"),
        ({"alignment": MAP, "kind": "pattern"}, "do not correspond. Patch z"),
    ],
)
def test_what_cannot_be_aligned_is_an_error(options, match):
    with pytest.raises(PromptError, match=match):
        wb.patching.sweep(tiny_model("llama"), CLEAN, CORRUPT, METRIC, **options)


def test_spans_need_an_alignment_and_the_same_names():
    model = tiny_model("llama")
    with pytest.raises(PromptError, match="needs spans"):
        wb.patching.sweep(model, CLEAN, [*CLEAN[:3], 70, *CLEAN[4:]], METRIC, by="span")
    two = [Alignment.of_spans(model, CLEAN, CORRUPT, {name: (0, 1), "end": (6, 7)}) for name in ("a", "b")]
    with pytest.raises(PromptError, match="same names in one order"):
        wb.patching.sweep(model, [CLEAN] * 2, [CORRUPT] * 2, METRIC, by="span", alignment=two)


def test_pairs_that_go_up_together_give_what_they_give_alone(model):
    """One wave for several pairs: every row attends to its own run's keys and values."""
    clean = [CLEAN, [*CLEAN[:2], 70, *CLEAN[3:]], [71, *CLEAN[1:]]]
    corrupt = [[*c[:4], 80, *c[5:]] for c in clean]
    for kind in ("resid_pre", "z", "pattern"):
        together = wb.patching.sweep(model, clean, corrupt, METRIC, kind=kind, control=False).data["metric"]
        for i in range(3):
            alone = wb.patching.sweep(model, clean[i], corrupt[i], METRIC, kind=kind, control=False)
            np.testing.assert_allclose(together.values[i], alone.data["metric"].values[0], atol=1e-5)
    one = wb.patching.sweep(model, clean, corrupt, METRIC, control=False, tokens_per_call=1).data["metric"]
    both = wb.patching.sweep(model, clean, corrupt, METRIC, control=False).data["metric"]
    np.testing.assert_allclose(one, both, atol=1e-5)


def test_runs_whose_blocks_are_called_otherwise_do_not_go_together(monkeypatch):
    from workbench.patching import wave
    from workbench.patching.recording import Recording

    model = tiny_model("llama")
    clean = [CLEAN, [*CLEAN[:2], 70, *CLEAN[3:]]]
    corrupt = [[*c[:4], 80, *c[5:]] for c in clean]
    expected = wb.patching.sweep(model, clean, corrupt, METRIC, control=False).data["metric"]
    waves, real = [], wave.climb
    monkeypatch.setattr(
        wave, "climb", lambda rows, *a: waves.append(len({id(of) for of, _ in rows})) or real(rows, *a)
    )
    wb.patching.sweep(model, clean, corrupt, METRIC, control=False)
    assert max(waves) == 2
    waves.clear()
    monkeypatch.setattr(Recording, "called_like", lambda self, other, start: self is other)
    apart = wb.patching.sweep(model, clean, corrupt, METRIC, control=False).data["metric"]
    assert max(waves) == 1
    np.testing.assert_allclose(apart, expected, atol=1e-5)
    assert torch.is_inference_mode_enabled() is False
