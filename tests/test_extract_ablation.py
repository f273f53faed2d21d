"""Erasing and ablating: closed forms beside the probes' own LEACE, a stream without the direction, a planted behaviour."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import hooks_left
from sklearn.linear_model import LogisticRegression

import workbench as wb
from workbench.errors import DataError
from workbench.steering.extract import Eraser, ablation_direction, leace
from workbench.steering.extract.ablation import ablate_everywhere
from workbench.steering.extract.leace import factors, moments

SITE = "blocks.1.hook_resid_post"
DRAW = np.random.default_rng(0)
POSITIVE = [[*DRAW.integers(10, 100, 3).tolist(), 5] for _ in range(40)]
NEGATIVE = [[*DRAW.integers(10, 100, 3).tolist(), 6] for _ in range(32)]


def two_classes(n=90, m=60, d=12, seed=1):
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=g, dtype=torch.float64)
    a, b = (torch.randn(k, d, generator=g, dtype=torch.float64) @ mix for k in (n, m))
    return a + torch.linspace(-2, 2, d, dtype=torch.float64), b


def erased(left, right, mean, x):
    return x - ((x - mean) @ right)[:, None] * left


def test_class_means_agree_and_no_linear_probe_reads_the_label():
    a, b = two_classes()
    mean, cov, cross = moments(a, b)
    left, right = factors(mean, cov, cross)
    assert float(left @ right) == pytest.approx(1)
    x, y = erased(left, right, mean, a), erased(left, right, mean, b)
    assert torch.allclose(x.mean(0), y.mean(0), atol=1e-9)
    both = torch.cat([x, y]).numpy()
    labels = np.r_[np.ones(90), np.zeros(60)]
    assert np.abs(LogisticRegression(C=1e6, solver="newton-cholesky").fit(both, labels).coef_).max() < 1e-4
    raw = torch.cat([a, b]).numpy()
    assert LogisticRegression(max_iter=2000).fit(raw, labels).score(raw, labels) > 0.9


def test_it_is_the_projection_of_the_paper_and_of_the_probes():
    a, b = two_classes()
    mean, cov, cross = moments(a, b)
    left, right = factors(mean, cov, cross)
    variance, vectors = torch.linalg.eigh(cov)
    whiten = vectors @ torch.diag(variance**-0.5) @ vectors.T
    u = whiten @ cross / (whiten @ cross).norm()
    by_paper = torch.linalg.inv(whiten) @ torch.outer(u, u) @ whiten
    assert torch.allclose(torch.outer(left, right), by_paper, atol=1e-9)
    theirs = (
        pytest.importorskip("probes.leace").Leace().fit(torch.cat([a, b]), np.r_[np.ones(90), np.zeros(60)])
    )
    assert np.allclose(theirs.proj_left_ @ theirs.proj_right_, by_paper, atol=1e-9)
    eraser = Eraser.of(theirs, SITE)
    assert torch.allclose(eraser(a.float()), erased(left, right, mean, a).float(), atol=1e-4)


def test_no_other_erasure_by_one_direction_changes_less():
    a, b = two_classes()
    mean, cov, cross = moments(a, b)
    left, right = factors(mean, cov, cross)
    rows = torch.cat([a, b])
    least = float((erased(left, right, mean, rows) - rows).square().sum())
    for seed in range(
        20
    ):  # any oblique projection that takes the difference of means away and reads by another b
        other = right + 0.05 * torch.randn(
            12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        other = other / (other @ left)
        assert float((erased(left, other, mean, rows) - rows).square().sum()) > least
    orthogonal = cross / cross.norm()
    assert float((erased(orthogonal, orthogonal, mean, rows) - rows).square().sum()) >= least


def test_an_eraser_in_a_model_makes_two_sets_alike_there(llama):
    eraser = leace(llama, POSITIVE, NEGATIVE, SITE, shuffles=5)
    with llama.hooks(read=SITE, edit={SITE: eraser}) as session:
        llama.forward(llama.batch([*POSITIVE, *NEGATIVE]))
    rows = session[SITE][:, -1]
    gap = (rows[:40].mean(0) - rows[40:].mean(0)).norm()
    assert float(gap) < 1e-3 * torch.tensor(eraser.settings["gap"]).norm()
    found = eraser.settings["erased_held_out"]
    assert found["nothing"] > 0.8
    assert abs(found["random_direction"] - found["nothing"]) < 0.1
    assert found["n"] == 72
    read, removed = eraser.directions()
    assert read.name == "LEACE read"
    assert abs(read.cosine(removed)) < 1
    gap = torch.tensor(eraser.settings["gap"])
    assert torch.allclose(removed.vector, gap / gap.norm(), atol=1e-4)
    assert removed.scale == pytest.approx(float(gap.norm()), rel=1e-4)


def test_labels_stay_erased_where_there_are_rows_enough():
    """Held out, with far more rows than dimensions, the AUC falls to about a half."""
    from workbench.steering.extract.leace import _erased

    found = _erased(*two_classes(900, 800), seed=0)
    assert found["nothing"] > 0.7
    assert abs(found["leace"] - 0.5) < 0.1
    assert found["random_direction"] > 0.65


def test_ablated_everywhere_the_stream_never_has_the_direction(family):
    from conftest import tiny_model

    model = tiny_model(family)
    v = torch.nn.functional.normalize(torch.randn(48, generator=torch.Generator().manual_seed(0)), dim=0)
    reads = "blocks.*.hook_resid_post"
    with model.hooks(read=reads, edit=ablate_everywhere(model, v)) as session:
        model.forward(model.batch([[5, 6, 7]]))
    for layer in range(3):
        stream = session[f"blocks.{layer}.hook_resid_post"]
        assert float((stream @ v).abs().max()) < 1e-4 * float(stream.norm(dim=-1).max())
    assert hooks_left(model) == 0


def test_a_planted_behaviour_is_taken_away_and_put_in_exactly(llama):
    """Blocks that add nothing: the stream is the last token's embedding, so removing E5 - E6 makes both prompts one."""
    with torch.no_grad():
        for name, weight in llama.hf.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                weight.zero_()
    e5, e6 = llama.hf.get_input_embeddings().weight[[5, 6]].detach()
    v = (e5 - e6) / (e5 - e6).norm()
    both = llama.readout(e5 - (e5 @ v) * v)
    plain = [llama.logits([p])[0, -1] for p in (POSITIVE[0], NEGATIVE[0])]
    lost = plain[0] - both
    metric = wb.LogitDifference(int(lost.argmax()), int(lost.argmin()))
    of = metric.resolve(llama)
    found = ablation_direction(
        llama, POSITIVE[:16], NEGATIVE[:16], metric, layers=[0, 1], kl_at_most=1e9, induced_at_least=-1e9
    )
    d, chosen = found.direction, found.direction.settings
    assert torch.allclose(d.vector, v, atol=1e-4)
    assert d.scale == pytest.approx(float((e5 - e6).norm()), rel=1e-4)
    assert chosen["test"]["ablated"]["mean"] == pytest.approx(float(of(both[None])), abs=1e-3)
    assert chosen["test"]["induced"]["mean"] == pytest.approx(float(of(plain[0][None])), abs=1e-3)
    assert chosen["test"]["ablated"]["mean"] < chosen["random"]["ablated"]
    assert chosen["plain"]["positive"] == pytest.approx(float(of(plain[0][None])), abs=1e-4)
    assert chosen["plain"]["negative"] == pytest.approx(float(of(plain[1][None])), abs=1e-4)
    assert chosen["n"] == {"candidates": [8, 8], "choice": [4, 4], "test": [4, 4]}


def test_a_candidates_scores_are_those_of_plain_hooks(llama):
    metric = wb.LogitDifference(7, 9)
    found = ablation_direction(
        llama, POSITIVE[:8], NEGATIVE[:8], metric, layers=[1], kl_at_most=1e9, induced_at_least=-1e9, seed=2
    )
    draw = np.random.default_rng(2)
    pos, neg = (draw.permutation(8).tolist() for _ in range(2))
    w = found.direction.vector * found.direction.scale
    means = [
        wb.collect(llama, [s[i] for i in o[:4]], SITE).rows(SITE).mean(0)
        for s, o in ((POSITIVE, pos), (NEGATIVE, neg))
    ]
    assert torch.allclose(w, means[0] - means[1], atol=1e-4)
    value, kl = [], []
    for i in neg[4:6]:
        with llama.edit({SITE: lambda x: x + w}):
            value.append(float(metric.resolve(llama)(llama.logits([NEGATIVE[i]])[:, -1])))
        p = llama.logits([NEGATIVE[i]])[0, -1].log_softmax(-1)
        with llama.edit(ablate_everywhere(llama, found.direction)):
            q = llama.logits([NEGATIVE[i]])[0, -1].log_softmax(-1)
        kl.append(float((p.exp() * (p - q)).sum()))
    assert float(found.result.data["induced"][0, 0]) == pytest.approx(np.mean(value), abs=1e-3)
    assert float(found.result.data["kl"][0, 0]) == pytest.approx(np.mean(kl), abs=1e-4)


METRIC = wb.LogitDifference(7, 9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: leace(m, [], NEGATIVE, SITE), "positive set has no prompts"),
        (lambda m: leace(m, POSITIVE, POSITIVE[::-1], SITE), "same prompts"),
        (lambda m: leace(m, POSITIVE, NEGATIVE, "blocks.*.hook_resid_post"), "3 sites"),
        (lambda m: ablation_direction(m, [], NEGATIVE, METRIC), "positive set has no prompts"),
        (lambda m: ablation_direction(m, POSITIVE, NEGATIVE[:5], METRIC), "negative set has 5 prompts"),
        (lambda m: ablation_direction(m, POSITIVE, NEGATIVE, METRIC, positions=(0,)), "negative: they count"),
        (
            lambda m: ablation_direction(m, POSITIVE[:8], NEGATIVE[:8], METRIC, kl_at_most=-1),
            "candidates passes",
        ),
        (lambda m: Eraser.of(SimpleNamespace(), SITE), "proj_left"),
        (lambda m: Eraser(torch.ones(3, 1), torch.ones(1, 4), torch.ones(3), SITE), "left \\[d, rank\\]"),
        (lambda m: Eraser(torch.ones(3, 1), torch.ones(1, 3), torch.full((3,), torch.nan), SITE), "NaN"),
        (
            lambda m: Eraser(torch.ones(3, 1), torch.ones(1, 3), torch.ones(3), SITE)(torch.ones(2, 4)),
            "width 3",
        ),
        (lambda m: factors(torch.zeros(2), torch.tensor([[1.0, 5], [0, 1]]), torch.ones(2)), "symmetric"),
        (lambda m: factors(torch.zeros(2), torch.eye(2), torch.zeros(2)), "nothing to erase"),
    ],
)
def test_what_cannot_be_erased_is_one_clear_error(llama, call, message):
    with pytest.raises(DataError, match=message):
        call(llama)
